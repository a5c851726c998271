"""The stage `distil`: trains and grades students of every arm under every attack.

    private/study.json        which study this is
    private/seeds/<seed>/     a workdir of its own: the traces of one seed
    private/outcomes/         journals of adx.outcomes.Outcome, one line a graded student

Every family, attack and arm has the whole grid of optimiser settings on the first seed, graded on attack_val; the best
is frozen for the other seeds, which are graded on the study's split only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adx import attacks, curves, outcomes_io, readings, study_traces, teaching
from adx.attackers import Attackers, check_holdout
from adx.attacks import Attack
from adx.batching import Example
from adx.errors import InputError
from adx.evaluation import Evaluation, evaluate
from adx.families import CHOICE, Family, Lab, Tell, make_family, make_lab, shown_examples
from adx.lesson_encoding import Encoded, encode
from adx.lessons import Lesson, check_apart, tallied
from adx.models.transformer import Params
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Known, Log, check_same
from adx.study import Share, Study, attack_hash, attack_hashes, commitment, identity, study_hash
from adx.study_traces import seed_path
from adx.supervision import Supervision, supervise
from adx.teaching import Job, Mark, Setting, Taught

OWN, BASE = 'own', 'base'  # sources that are no arm's

Prepare = Callable[[Attack, str], attacks.Prepared | None]  # (attack, arm or OWN) -> its lessons, None without any


class Estimate(NamedTuple):
    """What a run has ahead at most: students, their steps in all, and the seconds that training alone takes."""

    students: int
    steps: int
    seconds: float


def distil(
    study: Study,
    path: str,
    tell: Tell = lambda name, done, total: None,
    guard: Callable[[], Any] = contextlib.nullcontext,
    announce: Callable[[Estimate], None] = lambda estimate: None,
    share: Share = Share(),  # noqa: B008
) -> list[Outcome]:
    """Trains and grades what is missing, and returns all outcomes. The traces of every seed must be there.

    Stopped at any moment outside `guard` it goes on with the arm that it was at. announce: told what is ahead. share:
    what of it to work on; other processes may work on the rest in the same workdir.
    """
    mine = share.of(study)
    outcomes_io.claim(path, identity(study))
    check_holdout(study, path, [attack for _, chosen in mine for attack in chosen])
    with contextlib.ExitStack() as stack:
        logs = {}
        for student, chosen in mine:
            names = [attack.name for attack in chosen]
            logs[student.name] = stack.enter_context(outcomes_io.open_log(path, student.name, names, guard))
        lab = make_lab(study, path, tell)
        families = [(make_family(lab, student), chosen) for student, chosen in mine]
        hashes = attack_hashes(study)
        for family, _ in families:
            check_same(logs[family.student.name].known, hashes, {family.student.name: family.identity})
        announce(_estimate(lab, families, logs))
        for seed in study.seeds:
            # All families learn from the same lessons.
            attackers, arms = Attackers(study, path, seed), study_traces.lessons(study, path, seed)
            prepare = functools.cache(functools.partial(_prepare, lab, attackers, arms))
            for family, chosen in families:
                log = logs[family.student.name]
                _grade_base(lab, family, seed, arms[study.clean], log)
                for attack in chosen:
                    _Group(lab, family, attack, attackers).run(prepare, log)
    return [one for _, one in sorted(outcomes_io.read(path).items())]


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


def _prepare(
    lab: Lab, attackers: Attackers, arms: Mapping[str, Sequence[Lesson]], attack: Attack, name: str
) -> attacks.Prepared | None:
    """What an attack makes of an arm's traces, or of its own resources alone; None where there are no lessons."""
    resources = attackers.resources('' if name == OWN else name, arms[lab.study.clean])
    own = name == OWN
    with _told(attack, name):
        prepared = attack.own_only(resources.prompts, resources) if own else attack.prepare(arms[name], resources)
        if prepared is None or not prepared.lessons:
            return None
        check_apart(prepared.lessons, itertools.chain(*lab.prompts.values()))
    return prepared


@contextlib.contextmanager
def _told(attack: Attack, name: str) -> Iterator[None]:
    """What cannot be made of traces is an error that says by which attack and of whose."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise InputError(f'attack {attack.name!r} on the traces of {name!r}: {error}') from error


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
        readings.read_test(lab.path, commitment(lab.study), label, study_hash(lab.study))
    return dict(evaluate(family.engine, students, family.exams[split]))


@dataclasses.dataclass(frozen=True)
class _Course:
    """What the students of one arm are taught."""

    prepared: attacks.Prepared
    encoded: Encoded
    supervision: Supervision

    @property
    def lessons(self) -> dict[str, int]:
        """What became of them, as Outcome has it."""
        found = tallied([*self.prepared.tallies, self.encoded.tally])
        return found | ({'retokenised': self.encoded.retokenised} if self.encoded.retokenised else {})


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

    def _run(self, names: Sequence[str], prepare: Prepare, log: Log) -> None:
        prepared = {name: prepare(self.attack, name) for name in names}
        courses = {name: self._course(name, one) for name, one in prepared.items() if one is not None}
        taught = self._train(courses, {name: self._settings(name, log.known) for name in courses})
        found: list[Outcome] = []
        for name, one in prepared.items():
            if one is None:
                found += self._untrained(name, log.known)
            else:
                found += self._grade(name, taught[name], courses[name])
        log.add(found)

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

    def _course(self, name: str, prepared: attacks.Prepared) -> _Course:
        student, length = self.family.student, self.study.recipe.length
        asked = '' if name == OWN else name
        with _told(self.attack, name):
            encoded = encode(prepared.lessons, self.family.tokenizer, student.prompting, length, self.lab.teacher)
            return _Course(prepared, encoded, supervise(self.attackers, self.family, self.attack, asked, encoded))

    def _job(self, setting: Setting, shown: Supervision) -> Job:
        steps = self._steps(setting)
        marks = curves.marks(steps, self.study.curve)
        return Job(setting, steps, shown.corpus, marks, shown.fresh, shown.every)

    def _steps(self, setting: Setting) -> int:
        return max(1, round(setting['steps'] * self.attack.longer))

    def _train(
        self, courses: Mapping[str, _Course], settings: Mapping[str, Sequence[Setting]]
    ) -> dict[str, list[Taught]]:
        """The students of every course, in the order of its settings."""
        taught: dict[str, list[Taught]] = {}
        for objective in dict.fromkeys(course.supervision.objective for course in courses.values()):
            mine = [name for name, course in courses.items() if course.supervision.objective == objective]
            jobs = [self._job(one, courses[name].supervision) for name in mine for one in settings[name]]
            where = f'seed {self.seed}, {self.family.student.name}, {self.attack.name}, {", ".join(mine)}'
            tell = functools.partial(self.lab.tell, where)
            students = iter(self.family.classroom.teach(jobs, objective, self.seed, tell))
            taught |= {name: list(itertools.islice(students, len(settings[name]))) for name in mine}
        return taught

    def _grade(self, name: str, taught: Sequence[Taught], course: _Course) -> list[Outcome]:
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
        return curves.holdout_examples(
            path, family.tokenizer, family.student.prompting, self.study.recipe.length, self.lab.teacher
        )

    def _outcome(self, name: str, one: Taught, split: str, graded: Evaluation, course: _Course) -> Outcome:
        of, threat = self._settled(name), self._threat(course, one.setting)
        outcome = of.outcome(self.study, self.family, one.setting, split, graded, threat)
        return dataclasses.replace(
            outcome, diverged=one.diverged, seconds=one.seconds, identity=self._identity(outcome),
            lessons=course.lessons,
        )  # fmt: skip

    def _threat(self, course: _Course, setting: Setting) -> ThreatModel:
        steps, shown = self._steps(setting), course.supervision
        training = attacks.Training(
            self.family.student.name, steps, len(self.study.settings), course.encoded.tokens, shown.scored(steps),
            shown.log_probs,
        )  # fmt: skip
        return self.attack.threat(course.prepared, training)
