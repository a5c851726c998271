"""The students of one seed, family and attack: trained on their lessons, and graded."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adx import attacks, curves, outcomes_io, processes, readings, teaching
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.batching import Example
from adx.courses import OWN, Course, Prepare, make_course
from adx.evaluation import Evaluation, evaluate
from adx.families import CHOICE, Family, Lab
from adx.hashing import content_hash
from adx.keeping import Shelf, make_shelf
from adx.models.transformer import Params
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Known, Log
from adx.study import Study, attack_hash, commitment, study_hash
from adx.study_traces import seed_path
from adx.supervision import Supervision
from adx.teaching import Job, Mark, Setting, Taught

BASE = 'base'  # a source that is no arm's, as OWN


def sources(study: Study, attack: Attack) -> list[str]:
    """What students of an attack learn from: a ladder is climbed on defended traces, and the clean student of its first
    rung is what they are to reach.
    """
    if attack.name in study.ladder[1:]:
        return [arm for arm in study.arms if arm != study.clean]
    return [*study.arms, OWN]


@dataclasses.dataclass(frozen=True)
class Settled:
    """What names an outcome beside its setting and split."""

    student: str
    attack: str
    arm: str
    source: str
    seed: int

    @property
    def label(self) -> str:
        """In the log of readings."""
        return f'{self.seed}/{self.student}/{self.attack}/{self.arm or self.source}'

    def outcome(
        self, study: Study, family: Family, setting: Setting, split: str, graded: Evaluation, threat: ThreatModel
    ) -> Outcome:
        return Outcome(
            arm=self.arm, role=study.role(self.arm), attack=self.attack, source=self.source, student=self.student,
            seen=family.student.seen, seed=self.seed, setting=setting, split=split, prompts=graded.prompts,
            correct=graded.correct, rates=graded.rates, threat=threat,
            identity={'study': study_hash(study), 'student': family.identity},
        )  # fmt: skip


def graded(
    lab: Lab, family: Family, students: Mapping[str, Params], split: str, label: str
) -> dict[str, Evaluation]:
    if split == 'test':
        processes.together(lambda: lab.keeping.writes and _note_reading(lab, label))
    return _agreed(dict(evaluate(family.engine, students, family.exams[split])))


def _note_reading(lab: Lab, label: str) -> int:
    return readings.read_test(lab.path, commitment(lab.study), label, study_hash(lab.study))


def _agreed(graded: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """As process 0 has it: the time of a grader may have run out in one process alone."""
    said = processes.gather(json.dumps({name: dataclasses.asdict(one) for name, one in graded.items()}))[0]
    return {name: Evaluation(**one | {'correct': tuple(one['correct'])}) for name, one in json.loads(said).items()}


def _merit(accuracy: float, setting: Setting) -> tuple[float, float, float]:
    """Among equally good settings the one that trains more is taken: a thief does not stop early."""
    return accuracy, setting['steps'], setting['learning_rate']


def _best_first(merits: Sequence[tuple[float, ...]]) -> list[int]:
    return sorted(range(len(merits)), key=lambda i: merits[i], reverse=True)


def _of_each_budget(ranked: Sequence[Any], setting: Callable[[Any], Setting] = lambda one: one) -> list[Any]:
    """The first of each number of steps, in order."""
    found: dict[float, Any] = {}
    for one in ranked:
        found.setdefault(setting(one)['steps'], one)
    return list(found.values())


def _point(mark: Mark, level: Evaluation) -> dict[str, float]:
    return {'step': mark.step, 'tokens': mark.tokens, 'accuracy': level.accuracy}


class Cohort:
    """The students of one seed, family and attack, trained together as far as that is faster."""

    def __init__(self, lab: Lab, family: Family, attack: Attack, attackers: Attackers):
        self.lab, self.study, self.family, self.attack, self.attackers = lab, lab.study, family, attack, attackers
        self.seed = attackers.experiment.seed
        self.first = self.seed == lab.study.seeds[0]

    def run(self, prepare: Prepare, log: Log) -> None:
        """Trains what is missing. The outcomes of an arm are noted all at once: it is done or it is not."""
        missing = [name for name in sources(self.study, self.attack) if not self.is_done(name, log.known)]
        at_once = max(1, teaching.stack_size() // (len(self.study.settings) if self.first else 1))
        for start in range(0, len(missing), at_once):
            self._run(missing[start : start + at_once], prepare, log)
        self._shelf.clear()  # also what a process left that was killed behind the last of them

    def _run(self, names: Sequence[str], prepare: Prepare, log: Log) -> None:
        prepared = processes.together(lambda: {name: prepare(self.attack, name) for name in names})
        made = processes.together(lambda: self._courses(prepared))
        processes.check_same('lessons', lambda: content_hash([one.encoded.examples for one in made.values()]))
        taught = self._train(made, {name: self._settings(name, log.known) for name in made})
        found: list[Outcome] = []
        for name, one in prepared.items():
            if one is None:
                found += self._untrained(name, log.known)
            else:
                found += self._grade(name, taught[name], made[name])
        log.add(found)
        self._shelf.clear()

    def _courses(self, prepared: Mapping[str, attacks.Prepared | None]) -> dict[str, Course]:
        of = self.lab, self.family, self.attackers, self.attack
        return {name: make_course(*of, name, one) for name, one in prepared.items() if one is not None}

    def _untrained(self, name: str, known: Known) -> list[Outcome]:
        """Without resources of its own an attacker keeps the student as it was. An arm without lessons has none."""
        if name != OWN:
            return []
        base = dataclasses.replace(self._settled(name), attack=self.study.attacks[0].name, source=BASE)
        found = known[outcomes_io.name(base, {}, self.study.split)]
        return [dataclasses.replace(found, attack=self.attack.name, source=OWN, identity=self._identity(found))]

    def _identity(self, of: Outcome) -> dict[str, str]:
        return of.identity | {'attack': attack_hash(self.attack)}

    def _settled(self, name: str) -> Settled:
        source = OWN if name == OWN else 'clean' if name == self.study.clean else 'defended'
        return Settled(self.family.student.name, self.attack.name, '' if name == OWN else name, source, self.seed)

    def is_done(self, name: str, known: Known) -> bool:
        of = self._settled(name)
        settings = [*self.study.settings, {}]
        return any(outcomes_io.name(of, setting, self.study.split) in known for setting in settings)

    def steps_ahead(self) -> list[int]:
        """Of every student of one arm: the whole grid on the first seed, the longest budget or each on the others."""
        steps = [self._steps(setting) for setting in self.study.settings]
        if self.first:
            return steps
        return sorted(set(steps)) if self.study.each_budget else [max(steps)]

    def _settings(self, name: str, known: Known) -> list[Setting]:
        """The grid on the first seed; on the others what it chose, the first of all where it had no lessons. Behind it,
        where the study wants each budget, the best of every other one."""
        grid = self.study.settings
        if self.first:
            return grid
        of = dataclasses.replace(self._settled(name), seed=self.study.seeds[0])
        chosen = [setting for setting in grid if outcomes_io.name(of, setting, self.study.split) in known]
        if not (chosen and self.study.each_budget):
            return (chosen or grid)[:1]
        merits = [_merit(known[outcomes_io.name(of, one, CHOICE)].accuracy, one) for one in grid]
        return _of_each_budget([chosen[0], *(grid[i] for i in _best_first(merits))])

    def _job(self, name: str, setting: Setting, shown: Supervision) -> Job:
        steps = self._steps(setting)
        marks = curves.marks(steps, self.study.curve)
        return Job(setting, steps, shown.corpus, marks, shown.fresh, shown.every, name)

    def _steps(self, setting: Setting) -> int:
        return max(1, round(setting['steps'] * self.attack.longer))

    def _train(
        self, given: Mapping[str, Course], settings: Mapping[str, Sequence[Setting]]
    ) -> dict[str, list[Taught]]:
        """The students of every course, in the order of its settings."""
        taught: dict[str, list[Taught]] = {}
        for objective in dict.fromkeys(course.supervision.objective for course in given.values()):
            mine = [name for name, course in given.items() if course.supervision.objective == objective]
            jobs = [self._job(name, one, given[name].supervision) for name in mine for one in settings[name]]
            where = f'seed {self.seed}, {self.family.student.name}, {self.attack.name}, {", ".join(mine)}'
            tell = functools.partial(self.lab.tell, where)
            students = iter(self.family.classroom.teach(jobs, objective, self.seed, tell, self._shelf))
            taught |= {name: list(itertools.islice(students, len(settings[name]))) for name in mine}
        return taught

    @functools.cached_property
    def _shelf(self) -> Shelf:
        identity = {
            'study': study_hash(self.study), 'student': self.family.identity, 'attack': attack_hash(self.attack),
            'seed': self.seed,
        }  # fmt: skip
        name = f'{self.seed}-{self.family.student.name}-{self.attack.name}'
        return make_shelf(self.lab.path, name, identity, self.lab.keeping)

    def _grade(self, name: str, taught: Sequence[Taught], course: Course) -> list[Outcome]:
        """On the first seed all on attack_val, then the best of them on the study's split."""
        ranked, found = list(taught), list[Outcome]()
        if self.first:
            chosen = self._graded(name, taught, CHOICE)
            found = [self._outcome(name, one, CHOICE, level, course) for one, level in zip(taught, chosen, strict=True)]
            merits = [_merit(level.accuracy, one.setting) for one, level in zip(taught, chosen, strict=True)]
            ranked = [taught[i] for i in _best_first(merits)]
        best, *others = _of_each_budget(ranked, lambda one: one.setting) if self.study.each_budget else ranked[:1]
        levels = self._graded(name, [*best.marks, *(one.marks[-1] for one in others)], self.study.split)
        level = levels[len(best.marks) - 1]
        outcome = self._outcome(name, best, self.study.split, level, course)
        ends = zip((best, *others), (level, *levels[len(best.marks) :]), strict=True) if self.study.each_budget else ()
        budgets = tuple(
            _point(one.marks[-1], of) | {'learning_rate': one.setting['learning_rate']} for one, of in ends
        )
        curve = self._curve(best, levels[: len(best.marks)])
        return [*found, dataclasses.replace(outcome, curve=curve, budgets=budgets)]

    def _graded(self, name: str, students: Sequence[Taught | Mark], split: str) -> list[Evaluation]:
        named = {str(i): one.params for i, one in enumerate(students)}
        return list(graded(self.lab, self.family, named, split, self._settled(name).label).values())

    def _curve(self, one: Taught, levels: Sequence[Evaluation]) -> tuple[dict[str, float], ...]:
        yardstick = self.family.yardstick
        if yardstick is None:
            return ()
        return tuple(
            _point(mark, level)
            | yardstick.measure(mark.params, self._holdout)
            for mark, level in zip(one.marks, levels, strict=True)
        )

    @functools.cached_property
    def _holdout(self) -> list[Example]:
        family, path = self.family, seed_path(self.lab.path, self.seed)
        read = family.tokenizer, family.student.prompting, self.study.recipe.length, self.lab.teacher
        return processes.together(lambda: curves.holdout_examples(path, *read))

    def _outcome(self, name: str, one: Taught, split: str, graded: Evaluation, course: Course) -> Outcome:
        of, threat = self._settled(name), self._threat(course, one.setting)
        outcome = of.outcome(self.study, self.family, one.setting, split, graded, threat)
        return dataclasses.replace(
            outcome, diverged=one.diverged, seconds=one.seconds, identity=self._identity(outcome),
            lessons=course.lessons,
        )  # fmt: skip

    def _threat(self, course: Course, setting: Setting) -> ThreatModel:
        steps, shown = self._steps(setting), course.supervision
        training = attacks.Training(
            self.family.student.name, steps, len(self.study.settings), course.encoded.tokens, shown.scored(steps),
            shown.log_probs,
        )  # fmt: skip
        return self.attack.threat(course.prepared, training)
