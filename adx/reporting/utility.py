"""What a defence costs an honest reader: figures of traces, paired by seed."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence

import numpy as np

from adx import statistics
from adx.outcomes import Quality
from adx.reporting import rates
from adx.reporting.rows import NOT_RUN, Row, Subject, Verdicts, is_eligible
from adx.reporting.slices import FEW, halves, worst_slice

Qualities = Mapping[str, Mapping[int, Quality]]


def teacher_accuracies(quality: Qualities) -> dict[str, float]:
    """Arm -> mean accuracy over its seeds, in points."""
    return {arm: 100 * float(np.mean([np.mean(one.correct) for one in cell.values()])) for arm, cell in quality.items()}


def quality_rows(
    quality: Qualities, roles: Mapping[str, str], undefended: str, verdicts: Verdicts, level: float,
    selective: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> list[Row]:  # fmt: skip
    """Accuracy of every arm's traces and what stands beside it (rates.py); its loss in the mean and in the worst slice,
    and the cost a token, by pairs.

    selective: arm -> the slices 'name=label' that it is about: its losses inside and outside of them too.
    """
    rows = []
    for arm in sorted({*quality, *roles}):
        role = 'reference' if arm == undefended else roles.get(arm, 'control')
        of = Subject(arm, role, '', None, is_eligible(arm, verdicts))
        cell = quality.get(arm, {})
        if not cell:
            rows.append(of.row('teacher_accuracy', '', unit='points', reason=f'not run: quality of {arm}'))
            continue
        found = statistics.t_interval([100 * float(np.mean(one.correct)) for one in cell.values()], level)
        rows.append(of.measured('teacher_accuracy', '', found, len(cell), unit='points'))
        rows += rates.trace_rows(of, cell, level)
        if arm != undefended:
            rows += _against(of, cell, quality.get(undefended, {}), level, selective.get(arm, ()))
            rows += rates.length_rows(of, verdicts.get(arm, ()), len(cell))
    return rows


def of_half(
    of: Subject, figure: str, attack: str, losses: Sequence[float], level: float, notes: Sequence[str] = ()
) -> Row:
    """The row of what is lost in a half of the prompts, see slices.halves."""
    if not losses:
        return of.row(figure, attack, unit='points', status=NOT_RUN, reason=FEW)
    return of.measured(figure, attack, statistics.t_interval(losses, level), len(losses), notes, unit='points')


def _against(
    of: Subject, cell: Mapping[int, Quality], clean: Mapping[int, Quality], level: float, only: Sequence[str]
) -> list[Row]:
    seeds = [seed for seed in cell if seed in clean and cell[seed].prompts == clean[seed].prompts]
    if not seeds:
        names = ('teacher_lost', 'teacher_lost_worst_slice', 'cost_per_token')
        reason = 'not run: the undefended arm on these prompts'
        return [of.row(name, '', status=NOT_RUN, reason=reason) for name in names]
    pairs = [(clean[seed], cell[seed]) for seed in seeds]
    dropped = len(cell) - len(seeds)
    note = f'{dropped} seeds dropped: no undefended pair' if dropped else ''
    accuracies = [[100 * float(np.mean(one.correct)) for one in side] for side in zip(*pairs, strict=True)]
    lost = statistics.paired_t(accuracies[0], accuracies[1], level)
    rows = [of.measured('teacher_lost', '', lost, len(seeds), [note], unit='points')]
    right = [(one.correct, other.correct) for one, other in pairs]
    slices = [one.slices for one, _ in pairs]
    worst = worst_slice(slices, right)
    if worst:
        found = statistics.t_interval(worst.losses, level)
        rows.append(of.measured('teacher_lost_worst_slice', '', found, len(seeds), [worst.reason], unit='points'))
    for where, losses in halves(slices, only, right).items():
        rows.append(of_half(of, f'teacher_lost_{where}', '', losses, level))
    costs = [[one.seconds / (one.tokens * len(one.correct)) for one in side] for side in zip(*pairs, strict=True)]
    if all(cost > 0 for side in costs for cost in side):
        found = statistics.fieller(costs[1], costs[0], level)
        rows.append(of.measured('cost_per_token', '', found, len(seeds), unit='x undefended'))
    else:
        rows.append(of.row('cost_per_token', '', unit='x undefended', reason='not run: seconds were not recorded'))
    return rows
