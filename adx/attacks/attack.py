"""An attack: what is done to lessons, by which loss they are learned, and the threat model."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from adx.lessons import RESOURCES, Lesson, Resources, Tally, Transform, finished, prompts_of, shuffled
from adx.outcomes import ThreatModel
from adx.types import NAMING, Prompt, check_choice, check_range, is_name

LOSSES = {
    'hard': (),
    'soft': ('temperature', 'candidates'),
    'features': ('weight',),
    'on_policy': ('temperature', 'candidates', 'every', 'prompts'),
}  # loss -> the names of its arguments
KNOWS = ('nothing', 'algorithm', 'strength')
OF_OWN_MODEL = ('nll', 'own', 'gradient_scores')  # resources that a model of the attacker's gives


@dataclasses.dataclass(frozen=True)
class Record:
    """What an attack used of what it had: the part of a threat model that is known before training.

    asked: whether there was a teacher to ask at all; clean: of its undefended traces; the rest as ThreatModel.
    """

    asked: bool
    queries: int
    samples: int
    accounts: int
    prefill: str
    clean: int
    verifier: bool
    own_model: str


class Prepared(NamedTuple):
    """Lessons ready to be trained on, what each step did, and what was used."""

    lessons: list[Lesson]
    tallies: list[Tally]
    record: Record


@dataclasses.dataclass(frozen=True)
class Training:
    """What only training can tell of a threat model; None is not known.

    tokens: of the completions trained on, each lesson once. student, steps, settings: as ThreatModel.
    scored: texts that the teacher scored meanwhile; log_probs: how many per token were read of it
    meanwhile, beside those recorded in the lessons.
    """

    student: str | None = None
    steps: int | None = None
    settings: int | None = None
    tokens: int | None = None
    scored: int = 0
    log_probs: int = 0


@dataclasses.dataclass(frozen=True)
class Attack:
    """One way to distil a student.

    transforms: in the order in which they are applied. loss: one of LOSSES; arguments: (name, value) pairs of it:
      temperature of labels and student, where labels name the whole vocabulary; candidates that a label names, for
      soft labels that are asked for anew instead of those recorded; weight of the distance of features; prompts that
      are answered anew every so many steps. All above 0.
    longer: > 0, factor on the number of optimiser steps. answered: lessons that state no final answer are dropped.
    prompts: how many of the prompts are sent to the teacher, drawn by the seed; samples: how often each is, the first
      that were drawn. 0 for all.
    knows: what the attack presumes of the defence, one of KNOWS.
    """

    name: str
    transforms: tuple[Transform, ...] = ()
    loss: str = 'hard'
    arguments: tuple[tuple[str, Any], ...] = ()
    longer: float = 1.0
    answered: bool = False
    prompts: int = 0
    samples: int = 0
    knows: str = 'nothing'

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of all resources that its transforms read."""
        return tuple(name for name in RESOURCES if any(name in each.needs for each in self.transforms))

    @property
    def is_passive(self) -> bool:
        """Whether it takes what is served as it is."""
        return not self.transforms and self.loss == 'hard' and self.longer == 1

    @property
    def wants_holdout(self) -> bool:
        """Whether it compares lessons with clean traces of the split 'holdout'."""
        return 'gradient_scores' in self.needs

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if not is_name(self.name):
            raise ValueError(f'Attack.name = {self.name!r} is not allowed; it must be text {NAMING}')
        check_choice('Attack.loss', self.loss, tuple(LOSSES))
        check_choice('Attack.knows', self.knows, KNOWS)
        check_range('Attack.longer', self.longer, 0.0, open_low=True)
        check_range('Attack.prompts', self.prompts, 0)
        check_range('Attack.samples', self.samples, 0)
        for name, value in self.arguments:
            if name not in LOSSES[self.loss]:
                raise ValueError(f'Attack.arguments has {name!r}; loss {self.loss!r} takes {LOSSES[self.loss]}')
            check_range(f'Attack.arguments {name}', value, 0.0, open_low=True)
        for each in self.transforms:
            each.check()

    def prepare(self, lessons: Sequence[Lesson], resources: Resources) -> Prepared:
        """The lessons to train on, out of all that the teacher served, also what is empty or truncated.

        Deterministic by resources.seed. Raises ValueError naming what is missing or does not fit.
        """
        self.check()
        prompts = self._sent(prompts_of(lessons, resources.prompts), resources)
        resources, sent = dataclasses.replace(resources, prompts=prompts), {prompt.id for prompt in prompts}
        drawn = self.samples or math.inf
        lessons = [lesson for lesson in lessons if lesson.prompt_id in sent and lesson.request.sample < drawn]
        meter = _Meter(self, lessons, resources)
        held, tally = finished(lessons, self.answered)
        tallies = [tally]
        for each in self.transforms:
            given = held
            meter.ran.append(each)
            held, tally = each.apply(given, meter.watched(each))
            tally.check(len(given), len(held))
            tallies.append(tally)
        held, tally = finished(held, self.answered)  # what was added may be truncated too
        return Prepared(held, [*tallies, tally], meter.record(held))

    def own_only(self, prompts: Sequence[Prompt], resources: Resources) -> Prepared | None:
        """The same without a teacher: what the transforms make of the attacker's own resources, one after the other.

        A transform that makes no lessons is applied to those that others before it made, unless it is about the
        teacher. A prompt gets no second lesson of the same id. None where there is nothing to train on.
        """
        self.check()
        prompts = self._sent(prompts, resources)
        meter = _Meter(self, None, dataclasses.replace(resources, query=None))
        held: list[Lesson] = []
        tallies: list[Tally] = []
        for each in self.transforms:
            given, handed = held, meter.watched(each)
            made = each.own_only(handed, prompts)
            if made is not None:
                known = {lesson.id for lesson in given}
                fresh = [lesson for lesson in made if lesson.id not in known]
                refused = {'there already': len(made) - len(fresh), 'no lesson': _missed(prompts, made)}
                tally = Tally(
                    f'own {step_name(each)}', len(given), added={'own': len(fresh)},
                    refused={why: count for why, count in refused.items() if count},
                )  # fmt: skip
                held = [*given, *fresh]
            elif given and not getattr(each, 'asks_teacher', False):
                held, tally = each.apply(given, handed)
            else:
                continue
            meter.ran.append(each)
            tally.check(len(given), len(held))
            tallies.append(tally)
        held, tally = finished(held, self.answered)
        return Prepared(held, [*tallies, tally], meter.record(held)) if held else None

    def _sent(self, prompts: Sequence[Prompt], resources: Resources) -> tuple[Prompt, ...]:
        """Raises ValueError where there are fewer than the attack sends."""
        if not self.prompts:
            return tuple(prompts)
        if len(prompts) < self.prompts:
            raise ValueError(f'attack {self.name!r} sends {self.prompts} prompts and there are {len(prompts)}')
        return tuple(shuffled(prompts, resources.seed, 'sent', lambda prompt: prompt.id)[: self.prompts])

    def threat(self, prepared: Prepared, training: Training) -> ThreatModel:
        """The threat model of a student. Raises ValueError naming what is missing: a result without one is refused."""
        for field in ('student', 'steps', 'settings', 'tokens'):
            if not getattr(training, field):
                raise ValueError(
                    f'attack {self.name!r}: Training.{field} is {getattr(training, field)!r} and a result without its '
                    'threat model is refused; say what was trained'
                )
        record, own = prepared.record, [prepared.record.own_model]
        if self.loss == 'features' and record.asked:
            own.append("the teacher's hidden states")  # who reads those holds the teacher itself
        return ThreatModel(
            queries=record.queries,
            samples=record.samples,
            traces=len(prepared.lessons),
            tokens=training.tokens or 0,
            student=training.student or '',
            steps=training.steps or 0,
            settings=training.settings or 0,
            accounts=record.accounts,
            prefill=record.prefill,
            log_probs=self._log_probs(prepared, training),
            clean_traces=record.clean,
            verifier=record.verifier,
            own_model='; '.join(filter(None, own)),
            knows=self.knows,
            scored=training.scored,
        )

    def _log_probs(self, prepared: Prepared, training: Training) -> int:
        """How many of the served distribution were read per token."""
        if self.loss in ('hard', 'features') or not prepared.record.asked:
            return training.log_probs
        if self.loss == 'on_policy':
            if not (training.scored and training.log_probs):
                raise ValueError(
                    f"attack {self.name!r}: loss 'on_policy' asks the teacher while it trains; give Training.scored "
                    'and Training.log_probs'
                )
            return training.log_probs
        recorded = [len((x.statistics.get('top_log_probs') or [[]])[0]) for x in prepared.lessons]
        if not training.log_probs and not min(recorded, default=0):
            raise ValueError(
                f"attack {self.name!r}: loss 'soft' and {recorded.count(0)} of {len(recorded)} lessons have no served "
                "log-probs; record='top' keeps them, no transform may change texts, or give Training.log_probs"
            )
        return max(training.log_probs, *recorded)


class _Meter:
    """Hands every transform the resources that it declares, and counts what is asked of the teacher.

    lessons: what it served; None without a teacher.
    """

    def __init__(self, attack: Attack, lessons: Sequence[Lesson] | None, resources: Resources):
        self.attack, self.lessons, self.resources = attack, lessons, resources
        self.asked: list[tuple[int, int, str, list[Lesson]]] = []
        self.ran: list[Transform] = []
        if set(attack.needs) & set(OF_OWN_MODEL) and not resources.own_name:
            raise ValueError(f'attack {attack.name!r} uses a model of its own; name it in resources.own_name')
        if 'gradient_scores' in attack.needs and resources.validation is None:
            raise ValueError(
                f'attack {attack.name!r} reads resources.gradient_scores; give resources.validation, the number of '
                'clean traces behind them'
            )

    def watched(self, transform: Transform) -> Resources:
        resources = self.resources.only(transform.needs)
        return resources if resources.query is None else dataclasses.replace(resources, query=self._query)

    def _query(self, prompts: Sequence[Prompt], samples: int, prefill: str) -> Sequence[Lesson]:
        answers = list(self.resources.need('query', self.attack.name)(prompts, samples, prefill))
        self.asked.append((len(prompts), samples, prefill, answers))
        return answers

    def record(self, held: Sequence[Lesson]) -> Record:
        ran, r = self.ran, self.resources
        needs = {name for each in ran for name in each.needs}
        asks_anew = bool(ran) and getattr(ran[0], 'asks_anew', False)
        # Where nothing but their prompts was read, the lessons given need not have been served.
        counted = self.lessons is not None and not asks_anew
        given = [*(self.lessons or ())] if counted else []
        own = [step_name(each) for each in ran if set(each.needs) & set(OF_OWN_MODEL)]
        gold = self.lessons is None and any(getattr(each, 'own_reads_gold', False) for each in ran)
        accounts = {x.account for group in (given, held, *(a[-1] for a in self.asked)) for x in group} - {''}
        return Record(
            asked=self.lessons is not None,
            queries=len(r.prompts) * counted + sum(count for count, *_ in self.asked),
            samples=max([x.request.sample + 1 for x in given] + [samples for _, samples, *_ in self.asked], default=0),
            accounts=max(1, len(accounts)),
            prefill=' | '.join(sorted({prefill for _, _, prefill, _ in self.asked} - {''})),
            clean=len(r.clean or ()) * ('clean' in needs) + (r.validation or 0) * ('gradient_scores' in needs),
            verifier='grade' in needs or gold,
            own_model=f'{r.own_name}: {", ".join(own)}' if own else '',
        )


def _missed(prompts: Sequence[Prompt], made: Sequence[Lesson]) -> int:
    """How many of the prompts got no lesson."""
    return len({prompt.id for prompt in prompts} - {lesson.prompt_id for lesson in made})


def step_name(transform: Transform) -> str:
    """As a config names it: 'best_of_k'."""
    return re.sub('(?<!^)(?=[A-Z])', '_', type(transform).__name__).lower()
