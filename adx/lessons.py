"""What a student is taught: traces as an attacker has them, and what is done to them.

A step takes lessons and returns lessons with a `Tally`, so that every lesson given is kept or was dropped for a reason.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from adx import grading
from adx.errors import InputError
from adx.hashing import content_hash, row_key
from adx.texts import canonical
from adx.types import Prompt, RequestId, Trace, check_choice

SOURCES = ('defended', 'clean', 'own')
EMPTY, TRUNCATED, UNPARSABLE = 'empty', 'truncated', 'states no answer'
Messages = tuple[dict[str, str], ...]
Own = Callable[[Sequence[str], str, int], Sequence[Sequence[str]]]
Item = TypeVar('Item')


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One completion of one prompt.

    id: a request id as text, different for every lesson of a set; messages: the prompt; text: the completion.
    gold: None where the attacker does not know it. stop: as Completion has it, 'eos' also where a stop string ended it.
    tokens: the teacher's ids; empty once an attacker changed the text, since soft labels no longer fit.
    weight: of its loss, relative to the others. statistics: what was recorded of the served distribution per token.
    source: whose words they are, one of SOURCES; words made out of a defended trace are defended.
    defence: a hash of the rule it was served under; account: whom it was served to; '' for none.
    """

    id: str
    messages: Messages
    text: str
    gold: str | None = None
    stop: str = 'eos'
    tokens: tuple[int, ...] = ()
    weight: float = 1.0
    statistics: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    source: str = 'defended'
    defence: str = ''
    account: str = ''

    @property
    def request(self) -> RequestId:
        return RequestId.parse(self.id)

    @property
    def prompt_id(self) -> str:
        """What the samples of one prompt share, under every setting."""
        return self.request.prompt_id

    @property
    def question(self) -> str:
        """The last thing that was asked."""
        return question(self.messages)

    @property
    def prompt(self) -> Prompt:
        dataset, split, row, *_ = self.request
        return Prompt(dataset, split, row, self.messages, self.gold, self.account)

    def rewritten(self, text: str) -> Lesson:
        """With words of the attacker's; the same lesson where they are the teacher's."""
        if text == self.text:
            return self
        return dataclasses.replace(self, text=text, tokens=(), statistics={})


def from_trace(trace: Trace, source: str = 'defended', knows_gold: bool = False) -> Lesson:
    """The lesson in a finished trace. Raises ValueError for a source that is none.

    The text before a stop string is whole, but its tokens have no end of sequence, which is to be learnt: it is spelt
    anew.
    """
    check_choice('source', source, SOURCES)
    if trace.stop == 'stop_string':
        trace = dataclasses.replace(trace, stop='eos', tokens=(), statistics={})
    return Lesson(
        trace.request_id, trace.messages, trace.text, trace.gold if knows_gold else None, trace.stop, trace.tokens,
        statistics=trace.statistics, source=source, defence=content_hash(trace.defence), account=trace.customer,
    )  # fmt: skip


def question(messages: Messages) -> str:
    """The last message of a user; all that was said where there is none."""
    asked = [message['content'] for message in messages if message['role'] == 'user']
    return asked[-1] if asked else '\n'.join(message['content'] for message in messages)


def stated(lesson: Lesson) -> str | None:
    """The final answer that a lesson states; None where it states none.

    gold is looked at for its kind only: who asks knows whether a letter is wanted.
    """
    return grading.stated_answer(lesson.text, lesson.gold)


def by_prompt(lessons: Iterable[Lesson]) -> dict[str, list[Lesson]]:
    """Prompt id -> its lessons in the order of their samples; prompts in the order of their ids."""
    groups: dict[str, list[Lesson]] = {}
    for lesson in sorted(lessons, key=lambda lesson: (lesson.prompt_id, lesson.request.sample, lesson.id)):
        groups.setdefault(lesson.prompt_id, []).append(lesson)
    return groups


def prompts_of(lessons: Iterable[Lesson], sent: Iterable[Prompt] = ()) -> tuple[Prompt, ...]:
    """Each prompt once: those `sent`, then those of lessons that are not among them, by id."""
    found = {prompt.id: prompt for prompt in sent}
    for id_, group in by_prompt(lessons).items():
        found.setdefault(id_, group[0].prompt)
    return tuple(found.values())


def shuffled(items: Iterable[Item], seed: int, purpose: str, name: Callable[[Item], str]) -> list[Item]:
    """In an order drawn by seed, purpose and each item's name: it does not depend on the order given."""
    return sorted(items, key=lambda item: (row_key(seed, f'{purpose}/{name(item)}').tolist(), name(item)))


# ------------------------------------------------------------------------------------------ the record


@dataclasses.dataclass(frozen=True)
class Tally:
    """What one step did: given = kept + dropped, and it returned kept + added lessons.

    dropped, added, changed: reason -> how many lessons; the changed are among the kept.
    refused: reason -> how many candidates were thrown away before they became lessons.
    destroyed: of the dropped, those that no honest reader could use either: a defence's cost, not its protection.
    """

    step: str
    given: int
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    added: dict[str, int] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    destroyed: int = 0

    @property
    def kept(self) -> int:
        return self.given - sum(self.dropped.values())

    @property
    def returned(self) -> int:
        return self.kept + sum(self.added.values())

    def check(self, given: int, returned: int) -> None:
        """Raises ValueError unless the counts are those of the lessons."""
        counts = (*self.dropped.values(), *self.added.values(), *self.changed.values(), *self.refused.values())
        fits = min((*counts, self.kept, self.destroyed), default=0) >= 0 and sum(self.changed.values()) <= self.kept
        if (self.given, self.returned) != (given, returned) or not fits:
            raise ValueError(
                f'{self.step} was given {given} lessons and returned {returned}, and its tally says {self.given} and '
                f'{self.returned}; count every lesson that is dropped or added'
            )


def tallied(tallies: Iterable[Tally]) -> dict[str, int]:
    """Reason -> how many lessons all steps dropped or refused for it; 'destroyed': how many counted as such."""
    found: collections.Counter[str] = collections.Counter()
    for tally in tallies:
        found.update(tally.dropped)
        found.update(tally.refused)
        found['destroyed'] += tally.destroyed
    return {reason: count for reason, count in sorted(found.items()) if count}


def sort_out(
    step: str,
    lessons: Sequence[Lesson],
    judge: Callable[[Lesson], Lesson | str],
    change: str = 'rewritten',
    destroyed: str = '',
) -> tuple[list[Lesson], Tally]:
    """Keeps the lessons that `judge` returns, in their order; text that it returns instead is why one is dropped.

    change: how lessons count that come back other than they were. destroyed: the reason that is counted as such.
    """
    judged = [judge(lesson) for lesson in lessons]
    dropped = collections.Counter(verdict for verdict in judged if isinstance(verdict, str))
    kept = [verdict for verdict in judged if isinstance(verdict, Lesson)]
    pairs = zip(lessons, judged, strict=True)
    changed = sum(isinstance(verdict, Lesson) and verdict != lesson for lesson, verdict in pairs)
    tally = Tally(
        step, len(lessons), dict(sorted(dropped.items())), changed={change: changed} if changed else {},
        destroyed=dropped[destroyed],
    )  # fmt: skip
    return kept, tally


def finished(lessons: Sequence[Lesson], answered: bool = False) -> tuple[list[Lesson], Tally]:
    """Drops what is empty or did not end by itself; where `answered`, also what states no final answer."""

    def judge(lesson: Lesson) -> Lesson | str:
        if not lesson.text.strip():
            return EMPTY
        if lesson.stop != 'eos':
            return TRUNCATED
        return UNPARSABLE if answered and stated(lesson) is None else lesson

    return sort_out('finished', lessons, judge)


def check_apart(lessons: Sequence[Lesson], tests: Iterable[Prompt]) -> None:
    """Raises InputError for a set that nothing can be concluded from: an empty one, one under several defences, one
    with an id twice, or one with a prompt that is also in `tests`, but for case and punctuation.
    """
    if not lessons:
        raise InputError('the set of lessons is empty; a student needs at least one')
    ids = [lesson.id for lesson in lessons]
    if len(set(ids)) < len(ids):
        twice, count = collections.Counter(ids).most_common(1)[0]
        raise InputError(f'{twice} is there {count} times; each lesson of a set needs its own id')
    served: dict[str, set[tuple[str, str]]] = {}
    for lesson in lessons:
        if lesson.source == 'defended':
            served.setdefault(lesson.account, set()).add((lesson.request.setting, lesson.defence))
    for account, settings in sorted(served.items()):
        if len(settings) > 1:
            to = f' to account {account!r}' if account else ''
            names = sorted(f'{setting} ({defence or "no hash"})' for setting, defence in settings)
            raise InputError(f'traces of several defences{to} are mixed: {names}; take those of one arm')
    held = {canonical(question(prompt.messages)): prompt for prompt in tests}
    both = [lesson for lesson in lessons if canonical(lesson.question) in held]
    if both:
        other = held[canonical(both[0].question)]
        raise InputError(
            f'{len(both)} lessons have prompts that are held apart, first {both[0].prompt_id} as {other.dataset}/'
            f'{other.split}/{other.row}; nothing that is measured on may be trained on: take another split'
        )


# ------------------------------------------------------------------------------- what an attacker has


@dataclasses.dataclass(frozen=True)
class Resources:
    """What an attacker has beside the traces it was served; None where it has none.

    clean: lessons of the undefended teacher. grade(text, gold): whether a completion's final answer is `gold`; it
      raises TimeoutError where it ran out of time.
    own(texts, instruction, samples): what the attacker's own model writes to each text, `samples` texts each;
    own_name: which model that is, also behind `nll` and `gradient_scores`.
    nll(lessons): per lesson the mean NLL of its completion under the own model, nats a token.
    query(prompts, samples, prefill): the lessons that the teacher under attack answers with; completions start with
    `prefill`. Ids are those of the prompts, under the setting of the arm.
    forge(draw): a pair of a mark as the traces may carry them, see marks.py.
    canonicalise(question, text): the trace in standard phrasing and order, None where it does not parse.
    gradient_scores(lessons): per lesson the alignment of its gradient with that of a clean validation set of
    `validation` traces. prompts: all that were sent to the teacher, also those without a lesson; Attack.prepare adds
    the prompts of the lessons it is given.
    """

    clean: tuple[Lesson, ...] | None = None
    grade: Callable[[str, str], bool] | None = None
    nll: Callable[[Sequence[Lesson]], Sequence[float]] | None = None
    own: Own | None = None
    query: Callable[[Sequence[Prompt], int, str], Sequence[Lesson]] | None = None
    canonicalise: Callable[[str, str], str | None] | None = None
    gradient_scores: Callable[[Sequence[Lesson]], Sequence[float]] | None = None
    forge: Callable[[random.Random], Any] | None = None
    own_name: str = ''
    validation: int | None = None
    prompts: tuple[Prompt, ...] = ()
    seed: int = 0

    def need(self, name: str, who: str) -> Any:
        """The resource of that name. Raises ValueError naming who asks for it where there is none."""
        resource = getattr(self, name)
        if resource is None:
            raise ValueError(f'{who} needs resources.{name} and the attacker has none; give it or leave {who} out')
        return resource

    def only(self, names: Iterable[str]) -> Resources:
        """With none but the named ones."""
        without: dict[str, Any] = {name: None for name in RESOURCES if name not in names}
        return dataclasses.replace(self, **without)


RESOURCES = ('clean', 'grade', 'nll', 'own', 'query', 'canonicalise', 'gradient_scores', 'forge')


@runtime_checkable
class Transform(Protocol):
    """What an attacker does to its lessons: a frozen dataclass, the same for the same lessons and seed.

    needs: the names of the RESOURCES that it reads; no others are handed to it.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        ...

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        """Raises ValueError naming a resource that is missing, whatever the lessons."""
        ...

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        """What the attacker could train on without any answer of the teacher under attack; None for nothing."""
        ...


class Passive:
    """Defaults of a transform that reads the lessons only, to inherit from: without a teacher it has nothing.

    own_reads_gold: `own_only` is told the answers of the prompts. asks_anew: it reads nothing of the lessons but their
    prompts. asks_teacher: it is about how the teacher is asked, and nothing without one.
    """

    needs: tuple[str, ...] = ()
    own_reads_gold = False
    asks_anew = False
    asks_teacher = False

    def check(self) -> None:
        pass

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        return None


def check_text(name: str, value: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{name} = {value!r} is not allowed; it must be text, and not empty')
