"""The stage `distil`: trains students on the traces of every arm under every attack, and grades them.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from adx import attacks, curves, outcomes_io, readings, study_traces, teaching
from adx.attackers import Attackers
from adx.attacks import Attack
from adx.batching import Example
from adx.errors import ConfigError
from adx.evaluation import Evaluation, evaluate
from adx.families import CHOICE, Family, Lab, Tell, make_family, make_lab, shown_examples
from adx.lesson_encoding import Encoded, encode
from adx.lessons import Lesson, check_apart, from_trace
from adx.models.transformer import Params
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Known, Log
from adx.study import Student, Study, identity, study_hash
from adx.study_traces import seed_path
from adx.supervision import Supervision, supervise
from adx.teaching import Job, Mark, Setting, Taught
from adx.types import RequestId, Trace

OWN, BASE = 'own', 'base'  # sources that are no arm's


Named = TypeVar('Named', Student, Attack)
Prepare = Callable[[Attack, str], attacks.Prepared | None]  # (attack, arm or OWN) -> its lessons, None without any


class Share(NamedTuple):
    """What of a study one process works on: the families and the attacks by name, all where there are none; and of
    these, family by family, every `num_shards`-th pair from number `shard` on.
    """

    students: Sequence[str] = ()
    attacks: Sequence[str] = ()
    shard: int = 0
    num_shards: int = 1

    def of(self, study: Study) -> list[tuple[Student, list[Attack]]]:
        """Families, each with its attacks. Raises ConfigError for a name that the study does not have."""
        students = _chosen('--students', study.students, self.students)
        chosen = _chosen('--attacks', study.attacks, self.attacks)
        mine = list(itertools.product(students, chosen))[self.shard :: self.num_shards]
        return [(one, [attack for _, attack in pairs]) for one, pairs in itertools.groupby(mine, lambda pair: pair[0])]


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
    with contextlib.ExitStack() as stack:
        logs = {}
        for student, chosen in mine:
            names = [attack.name for attack in chosen]
            logs[student.name] = stack.enter_context(outcomes_io.open_log(path, student.name, names, guard))
        lab = make_lab(study, path, tell)
        families = [(make_family(lab, student), chosen) for student, chosen in mine]
        announce(_estimate(lab, families, logs))
        for seed in study.seeds:
            # All families learn from the same lessons.
            attackers, arms = Attackers(study, path, seed), _lessons(study, path, seed)
            prepare = functools.cache(functools.partial(_prepare, lab, attackers, arms))
            for family, chosen in families:
                log = logs[family.student.name]
                _grade_base(lab, family, seed, arms[study.clean], log)
                for attack in chosen:
                    _Group(lab, family, attack, attackers).run(prepare, log)
    return [one for _, one in sorted(outcomes_io.read(path).items())]


def _chosen(flag: str, among: Sequence[Named], only: Sequence[str]) -> list[Named]:
    names = [one.name for one in among]
    for name in only:
        if name not in names:
            raise ConfigError(f'{flag} has {name!r}; the study has {names}')
    return [one for one in among if not only or one.name in only]


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


def _lessons(study: Study, path: str, seed: int) -> dict[str, list[Lesson]]:
    """Arm -> the traces of one seed. Raises InputError where some are missing."""
    return {
        arm: [_lesson(study, arm, trace) for trace in traces]
        for arm, traces in study_traces.read(study, path, seed).items()
    }


def _lesson(study: Study, arm: str, trace: Trace) -> Lesson:
    """A selection leaves the thief one answer a prompt, whichever sample of its arm that was."""
    lesson = from_trace(trace, 'clean' if arm == study.clean else 'defended', knows_gold=True)
    if not study.experiment.selections:
        return lesson  # of rewrites of arms too: their samples are those of the arm
    id_ = RequestId.parse(trace.request_id)
    return dataclasses.replace(lesson, id=str(id_._replace(sample=0, setting=arm)))


def _prepare(
    lab: Lab, attackers: Attackers, arms: Mapping[str, Sequence[Lesson]], attack: Attack, name: str
) -> attacks.Prepared | None:
    """What an attack makes of an arm's traces, or of its own resources alone; None where there are no lessons."""
    resources = attackers.resources('' if name == OWN else name, arms[lab.study.clean])
    own = name == OWN
    prepared = attack.own_only(resources.prompts, resources) if own else attack.prepare(arms[name], resources)
    if prepared is None or not prepared.lessons:
        return None
    check_apart(prepared.lessons, itertools.chain(*lab.prompts.values()))
    return prepared


def _grade_base(lab: Lab, family: Family, seed: int, clean: Sequence[Lesson], log: Log) -> None:
    """The student that was not distilled, once a seed: by the first attack's name and, where the study shows it
    worked examples, by their number.
    """
    study, threat = lab.study, ThreatModel(0, 0, 0, 0, family.student.name, 0, 0)
    for way in (study.attacks[0].name, *([f'{study.shots}-shot'] if study.shots else [])):
        settled = _Settled(family.student.name, way, '', BASE, seed)
        if outcomes_io.name(settled, {}, study.split) not in log.known:
            asked = family if way == study.attacks[0].name else shown_examples(lab, family, seed, clean)
            graded = _graded(lab, asked, {'': family.params}, study.split)['']
            log.add([settled.outcome(study, family, {}, study.split, graded, threat)])


@dataclasses.dataclass(frozen=True)
class _Settled:
    """What names an outcome beside its setting and split."""

    student: str
    attack: str
    arm: str
    source: str
    seed: int

    def outcome(
        self, study: Study, family: Family, setting: Setting, split: str, graded: Evaluation, threat: ThreatModel
    ) -> Outcome:
        return Outcome(
            arm=self.arm, role=study.role(self.arm), attack=self.attack, source=self.source, student=self.student,
            seen=family.student.seen, seed=self.seed, setting=setting, split=split, prompts=graded.prompts,
            correct=graded.correct, rates=graded.rates, threat=threat,
            identity={'study': study_hash(study), 'student': family.identity},
        )  # fmt: skip


def _graded(lab: Lab, family: Family, students: Mapping[str, Params], split: str) -> dict[str, Evaluation]:
    if split == 'test':
        readings.read_test(lab.path, study_hash(lab.study), ', '.join(students))
    return dict(evaluate(family.engine, students, family.exams[split]))


@dataclasses.dataclass(frozen=True)
class _Course:
    """What the students of one arm are taught."""

    prepared: attacks.Prepared
    encoded: Encoded
    supervision: Supervision


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
                found += self._grade(name, taught[name], functools.partial(self._threat, courses[name]))
        log.add(found)

    def _untrained(self, name: str, known: Known) -> list[Outcome]:
        """Without resources of its own an attacker keeps the student as it was. An arm without lessons has none."""
        if name != OWN:
            return []
        base = dataclasses.replace(self._settled(name), attack=self.study.attacks[0].name, source=BASE)
        found = known[outcomes_io.name(base, {}, self.study.split)]
        return [dataclasses.replace(found, attack=self.attack.name, source=OWN)]

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
        encoded = encode(prepared.lessons, self.family.tokenizer, student.prompting, length, self.lab.teacher)
        asked = '' if name == OWN else name
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

    def _grade(
        self, name: str, taught: Sequence[Taught], threat: Callable[[Setting], ThreatModel]
    ) -> list[Outcome]:
        """On the first seed all on attack_val, then the best of them on the study's split."""
        best, found = taught[0], []
        if self.first:
            graded = self._graded(taught, CHOICE)
            found = [self._outcome(name, one, CHOICE, g, threat) for one, g in zip(taught, graded, strict=True)]
            best = taught[max(range(len(taught)), key=lambda i: graded[i].accuracy)]
        levels = self._graded(best.marks, self.study.split)
        outcome = self._outcome(name, best, self.study.split, levels[-1], threat)
        return [*found, dataclasses.replace(outcome, curve=self._curve(best, levels))]

    def _graded(self, students: Sequence[Taught | Mark], split: str) -> list[Evaluation]:
        named = {str(i): one.params for i, one in enumerate(students)}
        return list(_graded(self.lab, self.family, named, split).values())

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

    def _outcome(
        self, name: str, one: Taught, split: str, graded: Evaluation, threat: Callable[[Setting], ThreatModel]
    ) -> Outcome:
        of = self._settled(name)
        outcome = of.outcome(self.study, self.family, one.setting, split, graded, threat(one.setting))
        return dataclasses.replace(outcome, diverged=one.diverged, seconds=one.seconds)

    def _threat(self, course: _Course, setting: Setting) -> ThreatModel:
        steps, shown = self._steps(setting), course.supervision
        training = attacks.Training(
            self.family.student.name, steps, len(self.study.settings), course.encoded.tokens, shown.queries(steps),
            shown.log_probs,
        )  # fmt: skip
        return self.attack.threat(course.prepared, training)
