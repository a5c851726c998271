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
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from adx import courses, loading, outcomes_io, processes, study_traces
from adx.attackers import Attackers, check_holdout_traces
from adx.attacks import Attack
from adx.cohorts import BASE, Cohort, Settled, graded, sources
from adx.courses import OWN
from adx.errors import ConfigError
from adx.families import Family, Lab, Tell, make_family, make_lab, shown_examples
from adx.hashing import content_hash
from adx.keeping import Keeping
from adx.lessons import Lesson
from adx.outcomes import Outcome, ThreatModel
from adx.outcomes_io import Log, check_same
from adx.study import Share, Student, Study, attack_hashes, commitment, identity


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
                    Cohort(lab, family, attack, attackers).run(prepare, log)
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
    families = [(make_family(lab, student), chosen) for student, chosen in mine]
    proxies = set(loading.proxy_hashes(study.experiment))
    for family, _ in families:
        if family.identity in proxies and not family.student.seen:  # by another name than the proxy has
            raise ConfigError(f'student {family.student.name!r} has the weights of a proxy; say seen=True')
    return lab, families


def _estimate(lab: Lab, families: Sequence[tuple[Family, Sequence[Attack]]], logs: Mapping[str, Log]) -> Estimate:
    """Of an attack without transforms nobody learns from the attacker's own resources."""
    students, steps, seconds = 0, 0, 0.0
    for family, chosen in families:
        ahead, known = list[int](), logs[family.student.name].known
        for seed, attack in itertools.product(lab.study.seeds, chosen):
            group = Cohort(lab, family, attack, Attackers(lab.study, lab.path, seed))
            names = [name for name in sources(lab.study, attack) if name != OWN or attack.transforms]
            ahead += [n for name in names if not group.is_done(name, known) for n in group.steps_ahead()]
        students, steps = students + len(ahead), steps + sum(ahead)
        seconds += family.classroom.seconds_per_step() * sum(ahead) if ahead else 0.0
    return Estimate(students, steps, seconds)


def _grade_base(lab: Lab, family: Family, seed: int, clean: Sequence[Lesson], log: Log) -> None:
    """The student that was not distilled, once a seed: by the first attack's name and, where the study shows it
    worked examples, by their number.
    """
    study, threat = lab.study, ThreatModel(0, 0, 0, 0, family.student.name, 0, 0)
    for way in (study.attacks[0].name, *([f'{study.shots}-shot'] if study.shots else [])):
        settled = Settled(family.student.name, way, '', BASE, seed)
        if outcomes_io.name(settled, {}, study.split) not in log.known:
            asked = family if way == study.attacks[0].name else shown_examples(lab, family, seed, clean)
            level = graded(lab, asked, {'': family.params}, study.split, settled.label)['']
            log.add([settled.outcome(study, family, {}, study.split, level, threat)])
