"""The figures of a report: what a defence takes from a thief and costs a reader, by rules.

Every figure is of per-seed pairs: one arm against the clean traces, on the same prompts. Accuracies are in points (0 to
100), damages are shares of what distillation from clean traces gains. A figure that was not measured is a row without a
value and with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adx import statistics
from adx.outcomes import Outcome, Quality
from adx.reporting.cells import UNEQUAL, Cells, Joined, at_equal, join, missing
from adx.reporting.headlines import AT_EQUAL, headlines
from adx.reporting.ladder import cost_rows
from adx.reporting.plan import Plan
from adx.reporting.rates import student_rows
from adx.reporting.rows import NO_CREDIT, NOT_RUN, UNRESOLVED, Row, Subject, Verdicts, is_eligible, status_of
from adx.reporting.slices import halves, worst_slice
from adx.reporting.utility import of_half, quality_rows, teacher_accuracies
from adx.statistics import Interval

MIN_GAIN = 10.0  # points that the lower bound of clean - base must reach, or a share of it means nothing
MUCH = 0.01  # of the clean lessons, destroyed beyond those that are in clean ones
MAX_GAP = 3.0  # points of teacher accuracy between two measured neighbours of an interpolation
Sides = dict[str, dict[int, Outcome]]
NOTHING_LOST = 'the passive student lost nothing that an attack could recover'
LITTLE_TAUGHT = 'from clean traces this attack learns no more than the passive student from defended ones'
NO_TEACHER = 'own resources alone reach the clean student: the teacher is irrelevant to this attacker'


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The outcomes by cell, with all that a figure needs besides them."""

    cells: Cells
    plan: Plan
    quality: Mapping[str, Mapping[int, Quality]]

    def clean_pair(self, of: Subject) -> Sides:
        attack = self.plan.passive
        return {'clean': self.cells.clean(attack, of.student), of.arm: self.cells.defended(of.arm, attack, of.student)}

    def own(self, attack: str, student: str) -> dict[int, Outcome]:
        """Of who has nothing to train on, the student as it was, asked in the better way: the base of every figure."""
        own = self.cells.own(attack, student)
        is_untrained = attack == self.plan.passive or (own and not any(one.threat.steps for one in own.values()))
        return (self.cells.base(student) if is_untrained else {}) or own


def _measured(of: Subject, figure: str, attack: str, found: Interval, joined: Joined, **more: Any) -> Row:
    return of.measured(figure, attack, found, len(joined.seeds), joined.notes, **more)


def frontier(
    outcomes: Iterable[Outcome], quality: Sequence[Quality], plan: Plan, verdicts: Verdicts
) -> list[Row]:
    """Every figure of every arm and student, in a fixed order. verdicts: arm -> its criteria of eligibility.

    damage: (clean - defended) / (clean - base), of accuracies; damage_attacked: (clean - defended) / (clean - own), all
    under one attack; damage_adaptive: the least of those; recovered: (attacked - passive) / (clean - passive).
    Raises InputError for an outcome without a threat model and for two of the same student and seed.
    """
    by_arm: dict[str, dict[int, Quality]] = {}
    for one in sorted(quality, key=lambda q: (q.arm, q.seed)):
        by_arm.setdefault(one.arm, {})[one.seed] = one
    sheet = Sheet(Cells(outcomes, plan.split), plan, by_arm)
    roles = sheet.cells.arms()
    rows = quality_rows(by_arm, roles, plan.undefended, verdicts, plan.level, plan.selective)
    for student, seen in sheet.cells.students().items():
        rows += _references(sheet, student, seen)
        for arm, role in roles.items():
            of = Subject(arm, role, student, seen, is_eligible(arm, verdicts))
            rows += [*_accuracies(sheet, of), *_points_lost(sheet, of), *_damages(sheet, of), _excess(sheet, of)]
            attacked = [_attacked(sheet, of, attack) for attack in plan.attacks]
            attacked += _left_out(plan, of)
            rows += [*attacked, _adaptive(sheet, of, attacked)]
            rows += [_recovered(sheet, of, attack) for attack in plan.attacks if attack != plan.passive]
            rows += cost_rows(sheet.cells, of, plan.ladder)
    return headlines(rows, plan, sheet.cells)


def _left_out(plan: Plan, of: Subject) -> list[Row]:
    return [of.row('damage_attacked', name, reason=f'not run: {why}') for name, why in plan.left_out.items()]


def _references(sheet: Sheet, student: str, seen: bool) -> list[Row]:
    """The clean student and the one that was not distilled."""
    rows = []
    sides = {sheet.plan.undefended: sheet.cells.clean(sheet.plan.passive, student), 'base': sheet.cells.base(student)}
    for arm, side in sides.items():
        of = Subject(arm, 'reference', student, seen, None)
        rows.append(_level(sheet, of, side))
    return rows


def _accuracies(sheet: Sheet, of: Subject) -> list[Row]:
    """Of the arm's students under the passive attack, and as they are under those of the others that were run."""
    plan, cells = sheet.plan, sheet.cells
    side = cells.defended(of.arm, plan.passive, of.student)
    rows = [_level(sheet, of, side), *student_rows(of, plan.passive, side, plan.level)]
    for attack in plan.attacks:
        if attack != plan.passive and (side := cells.defended(of.arm, attack, of.student)):
            found = statistics.t_interval([100 * one.accuracy for one in side.values()], plan.level)
            rows.append(of.measured('student_accuracy_attacked', attack, found, len(side), unit='points'))
    return rows


def _level(sheet: Sheet, of: Subject, side: dict[int, Outcome]) -> Row:
    if lacking := missing(**{of.arm: side}):
        return of.row('student_accuracy', sheet.plan.passive, unit='points', status=NOT_RUN, reason=lacking)
    joined = join(**{of.arm: side})
    found = statistics.t_interval(100 * joined.values()[0], sheet.plan.level)
    return _measured(of, 'student_accuracy', sheet.plan.passive, found, joined, unit='points')


def _empty(figure: str, of: Subject, attack: str, sides: Sides, unit: str = 'share') -> Row | None:
    """The row of a figure that lacks a side or has no seed in common."""
    reason = missing(**sides) or ('' if (joined := join(**sides)).seeds else '; '.join(joined.notes))
    return of.row(figure, attack, unit=unit, status=NOT_RUN, reason=reason) if reason else None


def _points_lost(sheet: Sheet, of: Subject) -> list[Row]:
    """In the mean, in the worst slice of the prompts, and inside and outside of what a selective rewrite is about."""
    sides, attack = sheet.clean_pair(of), sheet.plan.passive
    if empty := _empty('points_lost', of, attack, sides, 'points'):
        return [empty]
    joined = join(**sides)
    clean, defended = (100 * x for x in joined.values())
    found = statistics.paired_t(clean, defended, sheet.plan.level)
    rows = [_measured(of, 'points_lost', attack, found, joined, unit='points', p=statistics.paired_p(clean, defended))]
    pairs = [(one.correct, other.correct) for one, other in zip(*joined.sides, strict=True)]
    slices = [sheet.plan.slices] * len(pairs)
    if worst := worst_slice(slices, pairs):
        found = statistics.t_interval(worst.losses, sheet.plan.level)._replace(note=worst.reason)
        rows.append(_measured(of, 'points_lost_worst_slice', attack, found, joined, unit='points'))
    for where, losses in halves(slices, sheet.plan.selective.get(of.arm, ()), pairs).items():
        rows.append(of_half(of, f'points_lost_{where}', attack, losses, sheet.plan.level, joined.notes))
    return rows


def _gain(sheet: Sheet, clean: np.ndarray, base: np.ndarray) -> str:
    """Why the gain of distillation is too small to take a share of; '' when it is not."""
    gain = statistics.paired_t(100 * clean, 100 * base, sheet.plan.level)
    if gain.low >= MIN_GAIN:
        return ''
    return f'clean - base is {gain.value:.1f} points, its lower bound {gain.low:.1f} is below {MIN_GAIN:g}'


def _damages(sheet: Sheet, of: Subject) -> list[Row]:
    """`damage` of the finished students, and at the steps and training tokens that both of a pair reach."""
    sides, attack = sheet.clean_pair(of) | {'base': sheet.cells.base(of.student)}, sheet.plan.passive
    names = ('damage', *AT_EQUAL)
    if _empty('damage', of, attack, sides):
        return [row for name in names if (row := _empty(name, of, attack, sides))]
    joined = join(**sides)
    clean, defended, base = joined.values()
    if reason := _gain(sheet, clean, base):
        return [of.row(name, attack, n=len(base), status=NO_CREDIT, reason=reason) for name in names]
    equal = dataclasses.replace(joined, notes=tuple(note for note in joined.notes if not note.startswith(UNEQUAL)))
    pair = dataclasses.replace(joined, sides=joined.sides[:2])
    rows = []
    for name, unit in zip(names, ('', 'steps', 'tokens'), strict=True):
        (levels, reason) = at_equal(pair, unit) if unit else ([clean, defended], '')
        if reason:
            rows.append(of.row(name, attack, status=NOT_RUN, reason=reason))
            continue
        if reason := _gain(sheet, levels[0], base):
            rows.append(of.row(name, attack, n=len(base), status=NO_CREDIT, reason=reason))
            continue
        found = statistics.fieller(levels[0] - levels[1], levels[0] - base, sheet.plan.level)
        noted = equal if unit else joined
        rows.append(_measured(of, name, attack, found, noted, p=statistics.paired_p(*levels)))
    return rows


def _attacked(sheet: Sheet, of: Subject, attack: str) -> Row:
    """The damage that is left under one attack, by that attack's own three runs.

    An attack that hardly teaches from clean traces is nobody's choice: a share of nearly nothing is not looked at.
    Where it may teach enough or not, it is unresolved: noise is no reason to leave an attack out.
    """
    sides = {
        f'clean {attack}': sheet.cells.clean(attack, of.student),
        f'{of.arm} {attack}': sheet.cells.defended(of.arm, attack, of.student),
        f'own {attack}': sheet.own(attack, of.student),
        'base': sheet.cells.base(of.student),
    }
    if empty := _empty('damage_attacked', of, attack, sides):
        return empty
    joined = join(**sides)
    clean, defended, own, base = joined.values()
    if reason := NO_TEACHER if own.mean() >= clean.mean() else _gain(sheet, clean, base):
        may_teach = statistics.paired_t(100 * clean, 100 * base, sheet.plan.level).high >= MIN_GAIN
        status = UNRESOLVED if reason != NO_TEACHER and may_teach else NO_CREDIT
        return of.row('damage_attacked', attack, n=len(own), status=status, reason=reason)
    found = statistics.fieller(clean - defended, clean - own, sheet.plan.level)
    joined = dataclasses.replace(joined, notes=(*joined.notes, *_destroyed(joined)))
    return _measured(of, 'damage_attacked', attack, found, joined, p=statistics.paired_p(clean, defended))


def _destroyed(joined: Joined) -> list[str]:
    """What the attack could not use of defended lessons, and no honest reader either, where that is much."""
    clean, defended = (sum(one.lessons.get('destroyed', 0) for one in side) for side in joined.sides[:2])
    if defended - clean <= MUCH * sum(one.threat.traces for one in joined.sides[0]):
        return []
    return [f'{defended} lessons were destroyed, {clean} of the clean ones: utility lost, no protection']


def _adaptive(sheet: Sheet, of: Subject, attacked: Sequence[Row]) -> Row:
    """The least damage over attacks. Its ends are the least of theirs: the minimum exceeds x only if all do, and an
    attack that is not resolved may leave anything.
    """
    known = [row for row in attacked if row.value is not None]
    lacking, without, unresolved = (
        [row.attack for row in attacked if row.status == status] for status in (NOT_RUN, NO_CREDIT, UNRESOLVED)
    )
    named = (('not run', lacking), ('not resolved', unresolved), ('without a gain to take', without if known else []))
    reason = '; '.join(f'{why}: {", ".join(names)}' for why, names in named if names)
    if not known:
        is_settled = attacked and not lacking and not unresolved
        none = NO_TEACHER if is_settled else reason or 'not run: no attack was promised'
        status = NO_CREDIT if is_settled else UNRESOLVED if unresolved else NOT_RUN
        return of.row('damage_adaptive', '', status=status, reason=none)
    worst = min(known, key=lambda row: (row.value or 0.0, row.attack))
    notes = [f'the least of {len(known)} of {len(attacked)} attacks', reason, worst.reason]
    return dataclasses.replace(
        worst, figure='damage_adaptive', low=-math.inf if unresolved else _least(known, 'low'),
        high=_least(known, 'high'), n=min(row.n for row in known), status=status_of(min(row.n for row in known)),
        p=1.0 if unresolved else max(row.p or 0.0 for row in known),
        reason='; '.join(note for note in notes if note),
    )  # fmt: skip


def _least(rows: Sequence[Row], end: str) -> float:
    return min(getattr(row, end) for row in rows)


def _recovered(sheet: Sheet, of: Subject, attack: str) -> Row:
    sides = {
        f'{of.arm} {attack}': sheet.cells.defended(of.arm, attack, of.student),
        f'clean {attack}': sheet.cells.clean(attack, of.student),
        of.arm: sheet.cells.defended(of.arm, sheet.plan.passive, of.student),
    }
    if empty := _empty('recovered', of, attack, sides):
        return empty
    joined = join(**sides)
    attacked, clean, passive = joined.values()
    if clean.mean() <= passive.mean():
        undefended = sheet.cells.clean(sheet.plan.passive, of.student)
        unharmed = join(clean=undefended, passive=sides[of.arm])
        lost = unharmed.seeds and np.subtract(*(x.mean() for x in unharmed.values())) > 0
        reason = LITTLE_TAUGHT if lost else NOTHING_LOST
        return of.row('recovered', attack, n=len(clean), status=NO_CREDIT, reason=reason)
    found = statistics.fieller(attacked - passive, clean - passive, sheet.plan.level)
    return _measured(of, 'recovered', attack, found, joined)


def _excess(sheet: Sheet, of: Subject) -> Row:
    """Damage beyond that of plain temperature at the same teacher accuracy, between two measured neighbours."""
    attack, plan = sheet.plan.passive, sheet.plan
    teachers = teacher_accuracies(sheet.quality)
    if of.arm not in teachers:
        return of.row('excess_damage', attack, status=NOT_RUN, reason=f'not run: quality of {of.arm}')
    measured = [arm for arm in (plan.undefended, *plan.temperatures) if arm in teachers and arm != of.arm]
    baseline = {arm: teachers[arm] for arm in measured}
    weights, reason = neighbours(baseline, teachers[of.arm])
    if reason:
        return of.row('excess_damage', attack, status=NOT_RUN, reason=reason)
    students = {
        arm: sheet.cells.clean(attack, of.student)
        if arm == plan.undefended
        else sheet.cells.defended(arm, attack, of.student)
        for arm in weights
    }
    sides = sheet.clean_pair(of) | {'base': sheet.cells.base(of.student)}
    sides |= {f'baseline {arm}': side for arm, side in students.items()}
    if empty := _empty('excess_damage', of, attack, sides):
        return empty
    joined = join(**sides)
    clean, defended, base, *beside = joined.values()
    if reason := _gain(sheet, clean, base):
        return of.row('excess_damage', attack, n=len(base), status=NO_CREDIT, reason=reason)
    level = sum(weight * side for weight, side in zip(weights.values(), beside, strict=True))
    found = statistics.fieller(level - defended, clean - base, sheet.plan.level)
    note = '; '.join(filter(None, (found.note, f'against {", ".join(weights)}')))
    return _measured(of, 'excess_damage', attack, found._replace(note=note), joined)


def neighbours(baseline: Mapping[str, float], accuracy: float) -> tuple[dict[str, float], str]:
    """The measured arms around a teacher accuracy (points) with their weights, or none and the reason."""
    below = max(((x, arm) for arm, x in baseline.items() if x <= accuracy), default=None)
    above = min(((x, arm) for arm, x in baseline.items() if x >= accuracy), default=None)
    if below is None or above is None:
        return {}, f'no temperature on both sides of a teacher accuracy of {accuracy:.1f}: never extrapolated'
    gap = above[0] - below[0]
    if gap > MAX_GAP:
        return {}, f'neighbouring temperatures are {gap:.1f} points of teacher accuracy apart, more than {MAX_GAP:g}'
    if below[0] == above[0]:
        return {below[1]: 1.0}, ''
    share = (accuracy - below[0]) / gap
    return {below[1]: 1 - share, above[1]: share}, ''
