"""Which figures may be claimed in a headline, and what the others lack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from adx import statistics
from adx.reporting.cells import UNEQUAL, Cells, at_equal, join
from adx.reporting.plan import Plan
from adx.reporting.rows import MEASURED, NOT_RUN, Row

AT_EQUAL = ('damage_at_steps', 'damage_at_tokens')
LEAST_GRID = 6  # optimiser settings, 3 learning rates x 2 budgets, that an arm of a headline was tuned over


def headlines(rows: Sequence[Row], plan: Plan, cells: Cells) -> list[Row]:
    """Holm over the family, and which of its rows may carry a headline; the others say what they lack."""
    members = [i for i, row in enumerate(rows) if row.figure in plan.family and row.role == 'defence']
    adjusted = statistics.holm([1.0 if (p := rows[i].p) is None else p for i in members])
    result = list(rows)
    for i, p in zip(members, adjusted, strict=True):
        row = rows[i]
        if row.value is None:
            continue
        lacks = [*_of_itself(row, plan, cells), *_beside(row, plan, rows)]
        lacks += [*_beyond_control(row, plan, cells, rows), *_at_equal_steps(row, plan, rows)]
        if p > 1 - plan.level:
            lacks.append(f'p = {p:.2g} after Holm over {len(members)} rows')
        elif row.low is None or not 0 < row.low < math.inf:  # what is claimed is the lower end
            lacks.append('the interval reaches 0')
        if not lacks and row.arm in plan.temperatures:
            lacks.append('it is the baseline that only samples hotter')
        reason = '; '.join(part for part in (row.reason, f'no headline: {", ".join(lacks)}' if lacks else '') if part)
        result[i] = dataclasses.replace(row, p=p, headline=not lacks, reason=reason)
    return result


def _of_itself(row: Row, plan: Plan, cells: Cells) -> Iterator[str]:
    """What the figure's own students lack."""
    if not row.eligible:
        yield 'not eligible' if row.eligible is False else 'eligibility is not known'
    if row.status != MEASURED:
        yield f'{row.n} seeds only screen'
    if row.seen:
        yield 'a proxy was of this family'
    if plan.split != 'test':
        yield f'read on {plan.split}'
    if row.student in plan.searched:
        yield 'rules were searched on this family'
    if cells.ways(row.student) == 1:
        yield 'the base student was asked in one way only'
    grid = cells.fewest_settings(row.arm, row.student)
    if grid < LEAST_GRID:
        yield f'tuned over {grid} settings, fewer than {LEAST_GRID}'


def _beside(row: Row, plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """What must stand beside the figure and does not."""
    attacked = [one for one in rows if one.figure == 'damage_attacked' and one.status != NOT_RUN]
    here = {one.attack for one in attacked if (one.arm, one.student) == (row.arm, row.student)}
    if never := [what for what, attack in plan.always.items() if attack not in here]:
        yield f'not run beside it: {", ".join(never)}'
    if row.figure != 'damage_adaptive':
        return
    anywhere = {one.attack for one in attacked if one.arm == row.arm}
    if never := [attack for attack in (*plan.attacks, *plan.left_out) if attack not in anywhere]:
        yield f'never run: {", ".join(never)}'
    if elsewhere := [attack for attack in _worst(row.arm, attacked) if attack not in here]:
        yield f'not run on this family: {", ".join(elsewhere)}, which leave the least'


def _beyond_control(row: Row, plan: Plan, cells: Cells, rows: Sequence[Row]) -> Iterator[str]:
    """Which control may do the same: of the arm's own, or of all where nobody says which are."""
    names = plan.controls.get(row.arm, tuple(dict.fromkeys(one.arm for one in rows if one.role == 'control')))
    own = cells.defended(row.arm, plan.passive, row.student)
    sides = {name: join(own=own, control=cells.defended(name, plan.passive, row.student)) for name in names}
    graded = {name: joined for name, joined in sides.items() if len(joined.seeds) > 1}
    if not graded or (row.arm in plan.controls and len(graded) < len(names)):
        yield 'no control was graded on this family' if not graded else 'not every control was graded on this family'
    for name, joined in graded.items():
        unequal = any(note.startswith(UNEQUAL) for note in joined.notes)
        levels, unknown = at_equal(joined, 'steps') if unequal else (joined.values(), '')
        if unknown or statistics.paired_p(levels[1], levels[0]) > 1 - plan.level:
            yield f'not known to take more than its control: {name}'


def _at_equal_steps(row: Row, plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Whether something is left of the passive damage, and whether an attack trained one side for longer."""
    mine = [one for one in rows if (one.arm, one.student) == (row.arm, row.student)]
    held = [one for one in mine if one.figure in AT_EQUAL and one.value is not None]
    figure = 'damage_attacked' if row.figure == 'damage_adaptive' else row.figure
    unequal = {one.attack for one in mine if one.figure == figure and UNEQUAL in one.reason}
    if unequal - {plan.passive} or (unequal and len(held) < len(AT_EQUAL)):
        yield 'trained for unequal steps'
    if nothing := [one.figure for one in held if one.low is None or one.low <= 0]:
        yield f'the interval reaches 0 in {", ".join(nothing)}'


def _worst(arm: str, attacked: Sequence[Row]) -> list[str]:
    """The two attacks that leave the least of an arm's damage, on any family."""
    least: dict[str, float] = {}
    for row in attacked:
        if row.arm == arm and row.value is not None:
            least[row.attack] = min(row.value, least.get(row.attack, math.inf))
    return sorted(least, key=lambda name: least[name])[:2]
