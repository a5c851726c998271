"""Which figures may be claimed in a headline, and what the others lack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from adx import statistics
from adx.reporting.cells import Cells
from adx.reporting.plan import Plan
from adx.reporting.rows import MEASURED, NOT_RUN, Row

LEAST_GRID = 6  # optimiser settings, 3 learning rates x 2 budgets, that an arm of a headline was tuned over


def headlines(rows: Sequence[Row], plan: Plan, cells: Cells) -> list[Row]:
    """Holm over the family, and which of its rows may carry a headline; the others say what they lack."""
    members = [i for i, row in enumerate(rows) if row.figure in plan.family and row.role == 'defence']
    adjusted = statistics.holm([1.0 if (p := rows[i].p) is None else p for i in members])
    attacked = [row for row in rows if row.figure == 'damage_attacked' and row.status != NOT_RUN]
    ran = {(row.arm, row.attack) for row in attacked}
    result = list(rows)
    for i, p in zip(members, adjusted, strict=True):
        row, lacks = rows[i], []
        if row.value is None:
            continue
        lacks += [] if row.eligible else ['not eligible']
        lacks += [] if row.status == MEASURED else [f'{row.n} seeds only screen']
        lacks += ['a proxy was of this family'] if row.seen else []
        lacks += [] if plan.split == 'test' else [f'read on {plan.split}']
        lacks += ['rules were searched on this family'] if row.student in plan.searched else []
        lacks += ['the base student was asked in one way only'] if cells.ways(row.student) == 1 else []
        if row.figure == 'damage_adaptive':
            never = [attack for attack in (*plan.attacks, *plan.left_out) if (row.arm, attack) not in ran]
            lacks += [f'never run: {", ".join(never)}'] if never else []
            elsewhere = _worst_elsewhere(row, attacked)
            lacks += [f'not run on this family: {", ".join(elsewhere)}, which leave the least'] if elsewhere else []
        grid = cells.fewest_settings(row.arm, row.student)
        lacks += [] if grid >= LEAST_GRID else [f'tuned over {grid} settings, fewer than {LEAST_GRID}']
        if p > 1 - plan.level:
            lacks.append(f'p = {p:.2g} after Holm over {len(members)} rows')
        elif row.low is None or not 0 < row.low < math.inf:  # what is claimed is the lower end
            lacks.append('the interval reaches 0')
        if not lacks and row.arm in plan.temperatures:
            lacks.append('it is the baseline that only samples hotter')
        reason = '; '.join(part for part in (row.reason, f'no headline: {", ".join(lacks)}' if lacks else '') if part)
        result[i] = dataclasses.replace(row, p=p, headline=not lacks, reason=reason)
    return result


def _worst_elsewhere(of: Row, attacked: Sequence[Row]) -> list[str]:
    """Which of the two attacks that leave the least of an arm's damage, on any family, were not run on this one."""
    least: dict[str, float] = {}
    for row in attacked:
        if row.arm == of.arm and row.value is not None:
            least[row.attack] = min(row.value, least.get(row.attack, math.inf))
    here = {row.attack for row in attacked if (row.arm, row.student) == (of.arm, of.student)}
    return [attack for attack in sorted(least, key=lambda name: least[name])[:2] if attack not in here]
