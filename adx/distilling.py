"""The stage `distil`: trains and grades students of every arm under every attack.

    private/study.json        which study this is
    private/seeds/<seed>/     a workdir of its own: the traces of one seed
    private/outcomes/         journals of adx.outcomes.Outcome, one line a graded student
    private/training/         students that are trained, see adx/keeping.py

Every family, attack and arm has the whole grid of optimiser settings on the first seed, graded on attack_val; the best
is frozen for the other seeds, which are graded on the study's split only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from adx import attacks, courses, curves, outcomes_io, processes, readings, study_traces, teaching
from adx.attackers import Attackers, check_holdout_traces
from adx.attacks import Attack
from adx.batching import Example
from adx.courses import OWN, Course, Prepare, make_course
from adx.evaluation import Evaluation, evaluate
from adx.families import CHOICE, Family, Lab, Tell, make_family, make_lab, shown_examples
from adx.hashing import content_hash
from adx.keeping import Keeping, Shelf, make_shelf
from adx.lessons import Lesson
from adx.models.transformer import Params
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Known, Log, check_same
from adx.study import Share, Student, Study, attack_hash, attack_hashes, commitment, identity, study_hash
from adx.study_traces import seed_path
from adx.supervision import Supervision
from adx.teaching import Job, Mark, Setting, Taught

BASE = 'base'  # a source that is no arm's, as OWN


class Estimate(NamedTuple):
    """What a run has ahead at most: students, their steps in all, and the seconds that training alone takes."""

    students: int
    steps: int
    seconds: float


def distil(
    study: Study,
    path: str,
    tell: Tell = lambda name, done, total: None,
    keeping: Keeping = Keeping(),  # noqa: B008
    announce: Callable[[Estimate], None] = lambda estimate: None,
    share: Share = Share(),  # noqa: B008
) -> list[Outcome]:
    """Trains and grades what is missing, and returns all outcomes. The traces of every seed must be there.

    Stopped at any moment outside the guard of `keeping` it goes on with the arm that it was at, and with its students
    from their last checkpoints. announce: told what is ahead. share: what of it to work on; other processes may work on
    the rest in the same workdir.
    """
    mine = processes.together(lambda: share.of(study))
    processes.together(lambda: courses.check_together([attack for _, chosen in mine for attack in chosen]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.ending_together())
        logs = _open_logs(study, path, mine, keeping, stack)
        lab, families = processes.together(lambda: _open_families(study, path, mine, tell, keeping))
        processes.check_same('students', lambda: content_hash([family.identity for family, _ in families]))
        hashes = attack_hashes(study)
        for family, _ in families:
            check_same(logs[family.student.name].known, hashes, {family.student.name: family.identity})
        announce(_estimate(lab, families, logs))
        for seed in study.seeds:
            # All families learn from the same lessons.
            attackers = Attackers(study, path, seed)
            arms = processes.together(lambda seed=seed: study_traces.lessons(study, path, seed))  # type: ignore[misc]
            prepare = functools.cache(functools.partial(courses.prepare, lab, attackers, arms))
            for family, chosen in families:
                log = logs[family.student.name]
                _grade_base(lab, family, seed, arms[study.clean], log)
                for attack in chosen:
                    _Group(lab, family, attack, attackers).run(prepare, log)
    return [one for _, one in sorted(outcomes_io.read(path).items())]


def _open_logs(
    study: Study, path: str, mine: Sequence[tuple[Student, Sequence[Attack]]], keeping: Keeping,
    stack: contextlib.ExitStack,
) -> dict[str, Log]:  # fmt: skip
    """By family, closed with `stack`. Of the processes of one program one holds the locks, and all know the same."""

    def write() -> dict[str, Log]:
        outcomes_io.claim(path, identity(study))
        check_holdout_traces(study, path, [attack for _, chosen in mine for attack in chosen])
        opened = {}
        for student, chosen in mine:
            names = [attack.name for attack in chosen]
            opened[student.name] = stack.enter_context(outcomes_io.open_log(path, student.name, names, keeping.guard))
        return opened

    written = processes.together(write if keeping.writes else dict)
    logs = processes.together(lambda: written or {student.name: Log(path, None) for student, _ in mine})
    known = [sorted(log.known) for log in logs.values()]
    processes.check_same('study or outcomes', lambda: content_hash([commitment(study), known]))
    return logs


def _open_families(
    study: Study, path: str, mine: Sequence[tuple[Student, Sequence[Attack]]], tell: Tell, keeping: Keeping
) -> tuple[Lab, list[tuple[Family, Sequence[Attack]]]]:
    lab = make_lab(study, path, tell, keeping)
    return lab, [(make_family(lab, student), chosen) for student, chosen in mine]


def _estimate(lab: Lab, families: Sequence[tuple[Family, Sequence[Attack]]], logs: Mapping[str, Log]) -> Estimate:
    """Of an attack without transforms nobody learns from the attacker's own resources."""
    students, steps, seconds = 0, 0, 0.0
    for family, chosen in families:
        ahead, known = list[int](), logs[family.student.name].known
        for seed, attack in itertools.product(lab.study.seeds, chosen):
            group = _Group(lab, family, attack, Attackers(lab.study, lab.path, seed))
            names = [name for name in sources(lab.study, attack) if name != OWN or attack.transforms]
            ahead += [n for name in names if not group.is_done(name, known) for n in group.steps_ahead()]
        students, steps = students + len(ahead), steps + sum(ahead)
        seconds += family.classroom.seconds_per_step() * sum(ahead) if ahead else 0.0
    return Estimate(students, steps, seconds)


def sources(study: Study, attack: Attack) -> list[str]:
    """What students of an attack learn from: a ladder is climbed on defended traces, and the clean student of its first
    rung is what they are to reach.
    """
    if attack.name in study.ladder[1:]:
        return [arm for arm in study.arms if arm != study.clean]
    return [*study.arms, OWN]


def _grade_base(lab: Lab, family: Family, seed: int, clean: Sequence[Lesson], log: Log) -> None:
    """The student that was not distilled, once a seed: by the first attack's name and, where the study shows it
    worked examples, by their number.
    """
    study, threat = lab.study, ThreatModel(0, 0, 0, 0, family.student.name, 0, 0)
    for way in (study.attacks[0].name, *([f'{study.shots}-shot'] if study.shots else [])):
        settled = _Settled(family.student.name, way, '', BASE, seed)
        if outcomes_io.name(settled, {}, study.split) not in log.known:
            asked = family if way == study.attacks[0].name else shown_examples(lab, family, seed, clean)
            graded = _graded(lab, asked, {'': family.params}, study.split, settled.label)['']
            log.add([settled.outcome(study, family, {}, study.split, graded, threat)])


@dataclasses.dataclass(frozen=True)
class _Settled:
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


def _graded(
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


def _effort(setting: Setting) -> tuple[float, float]:
    """Among equally good settings the one that trains more is taken: a thief does not stop early."""
    return setting['steps'], setting['learning_rate']


class _Group:
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

    def _settled(self, name: str) -> _Settled:
        source = OWN if name == OWN else 'clean' if name == self.study.clean else 'defended'
        return _Settled(self.family.student.name, self.attack.name, '' if name == OWN else name, source, self.seed)

    def is_done(self, name: str, known: Known) -> bool:
        of = self._settled(name)
        settings = [*self.study.settings, {}]
        return any(outcomes_io.name(of, setting, self.study.split) in known for setting in settings)

    def steps_ahead(self) -> list[int]:
        """Of every student of one arm: the whole grid on the first seed, the longest budget on the others."""
        steps = [self._steps(setting) for setting in self.study.settings]
        return steps if self.first else [max(steps)]

    def _settings(self, name: str, known: Known) -> list[Setting]:
        """The grid on the first seed; on the others what it chose, the first of all where it had no lessons."""
        grid = self.study.settings
        if self.first:
            return grid
        of = dataclasses.replace(self._settled(name), seed=self.study.seeds[0])
        chosen = [setting for setting in grid if outcomes_io.name(of, setting, self.study.split) in known]
        return (chosen or grid)[:1]

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
        best, found = taught[0], []
        if self.first:
            graded = self._graded(name, taught, CHOICE)
            found = [self._outcome(name, one, CHOICE, g, course) for one, g in zip(taught, graded, strict=True)]
            best = taught[max(range(len(taught)), key=lambda i: (graded[i].accuracy, *_effort(taught[i].setting)))]
        levels = self._graded(name, best.marks, self.study.split)
        outcome = self._outcome(name, best, self.study.split, levels[-1], course)
        return [*found, dataclasses.replace(outcome, curve=self._curve(best, levels))]

    def _graded(self, name: str, students: Sequence[Taught | Mark], split: str) -> list[Evaluation]:
        named = {str(i): one.params for i, one in enumerate(students)}
        return list(_graded(self.lab, self.family, named, split, self._settled(name).label).values())

    def _curve(self, one: Taught, levels: Sequence[Evaluation]) -> tuple[dict[str, float], ...]:
        yardstick = self.family.yardstick
        if yardstick is None:
            return ()
        return tuple(
            {'step': mark.step, 'tokens': mark.tokens, 'accuracy': level.accuracy}
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
