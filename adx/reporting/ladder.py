"""What a thief must pay more: the cheapest rung of attacks that reaches the clean student.

Every rung is an attack with more queries (Q), more traces to train on (D) or both; the first is D = Q = 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from adx.outcomes import Outcome
from adx.reporting.cells import Cells
from adx.reporting.rows import CENSORED, NOT_RUN, Row, Subject, status_of

REACHES = 0.95  # of the clean student's accuracy on the first rung
COSTS: dict[str, Callable[[Outcome], float]] = {
    'cost_multiplier': lambda one: one.threat.queries * one.threat.samples + one.threat.scored,  # texts of the teacher
    'cost_multiplier_tokens': lambda one: one.threat.tokens,
    'cost_multiplier_steps': lambda one: one.threat.steps,
    'cost_multiplier_seconds': lambda one: one.seconds,  # of training, on the machines of the study
}


def cost_rows(cells: Cells, of: Subject, ladder: Sequence[str]) -> list[Row]:
    """What the teacher answered and scored, training tokens, optimiser steps and seconds of training, over those of the
    clean student on the first rung.

    value: by the means of cost and accuracy over the seeds that all rungs share; low and high: of single seeds, None
    where one of them never gets there. Censored where no rung does.
    """
    if not ladder:
        return []
    clean = cells.clean(ladder[0], of.student)
    rungs = {name: cells.defended(of.arm, name, of.student) for name in ladder}
    lacking = [name for name, rung in rungs.items() if not rung] + ([] if clean else [f'clean {ladder[0]}'])
    seeds = sorted(set(clean).intersection(*rungs.values()))
    if lacking or not seeds:
        reason = f'not run: {", ".join(lacking)}' if lacking else 'no seed has all rungs'
        return [of.row(figure, '', unit='x', status=NOT_RUN, reason=reason) for figure in COSTS]
    paid = [clean[seed] for seed in seeds]
    return [_row(of, figure, paid, [[rung[seed] for seed in seeds] for rung in rungs.values()]) for figure in COSTS]


def _row(of: Subject, figure: str, clean: Sequence[Outcome], rungs: Sequence[Sequence[Outcome]]) -> Row:
    cost = COSTS[figure]
    if not all(cost(one) for one in (*clean, *itertools.chain(*rungs))):
        return of.row(figure, '', unit='x', status=NOT_RUN, reason='not run: it was not recorded')
    multiples = [sum(map(cost, rung)) / sum(map(cost, clean)) for rung in rungs]
    reached = _cheapest(multiples, [_mean(rung) for rung in rungs], _mean(clean))
    each = [
        _cheapest([cost(rung[i]) / cost(one) for rung in rungs], [rung[i].accuracy for rung in rungs], one.accuracy)
        for i, one in enumerate(clean)
    ]
    known = [value for value in each if value is not None]
    never = len(each) - len(known)
    notes = [f'{never} of {len(each)} seeds never reach it'] if never else []
    if reached is None:
        notes.insert(0, f'more than {max(multiples):g}: no rung reaches {REACHES:.0%} of the clean student')
        return of.row(figure, '', unit='x', n=len(each), status=CENSORED, reason='; '.join(notes))
    ends = {'value': reached, 'low': min(known, default=None), 'high': None if never else max(known)}
    return of.row(figure, '', **ends, n=len(each), unit='x', status=status_of(len(each)), reason='; '.join(notes))


def _mean(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.accuracy for outcome in outcomes]))


def _cheapest(multiples: Sequence[float], accuracies: Sequence[float], clean: float) -> float | None:
    """The smallest multiple whose accuracy reaches the clean student's, None where none does."""
    return min((m for m, a in zip(multiples, accuracies, strict=True) if a >= REACHES * clean), default=None)
