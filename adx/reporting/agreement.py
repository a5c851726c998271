"""Whether two testbeds rank defences alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from adx import statistics
from adx.reporting.rows import MEASURED, NOT_RUN, Row

FIGURE, LEAST = 'rank_agreement', 5  # arms with a damage on both; fewer have no interval
Damages = Mapping[str, float]


def damages(rows: Iterable[Row]) -> dict[str, float]:
    """Arm -> its mean passive damage over unseen students."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.figure == 'damage' and row.value is not None and not row.seen:
            found.setdefault(row.arm, []).append(row.value)
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def agreement(here: Damages, there: Damages, testbed: str) -> Row:
    """Spearman's correlation between the damages of the arms that both have; testbed: what the other is called, '' for
    none. n counts arms.
    """
    both = sorted(set(here) & set(there))
    if not testbed or len(both) < LEAST:
        why = f'{len(both)} arms have a damage on both, fewer than {LEAST}' if testbed else 'no other testbed was given'
        return Row(FIGURE, 'reference', '', '', '', None, None, n=len(both), status=NOT_RUN, reason=f'not run: {why}')
    found = statistics.rank_correlation([here[arm] for arm in both], [there[arm] for arm in both])
    if math.isnan(found.value):
        return Row(FIGURE, 'reference', '', '', '', None, None, n=len(both), status=NOT_RUN, reason=found.note)
    return Row(
        FIGURE, 'reference', '', '', '', None, None, found.value, found.low, found.high, len(both), 'rho', MEASURED,
        f'between arms, with {testbed}',
    )  # fmt: skip
