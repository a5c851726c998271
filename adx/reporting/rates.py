"""Rates and ratios beside the figures: how answers were read, nats a token, lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adx import statistics
from adx.outcomes import Outcome, Quality
from adx.quality import Criterion
from adx.reporting.rows import NOT_RUN, Row, Subject

TRACES: dict[str, tuple[str, Callable[[Quality], float]]] = {  # figure -> unit, value of one seed
    'forced_accuracy': ('points', lambda one: 100 * float(np.mean(one.forced))),
    'lenient_accuracy': ('points', lambda one: 100 * float(np.mean(one.lenient))),
    'unparsed': ('share', lambda one: one.unparsed),
    'truncated': ('share', lambda one: 1 - one.finished),
    'several_forms': ('share', lambda one: one.several),
    'first_differs': ('share', lambda one: one.first_differs),
    'timed_out': ('share', lambda one: one.timed_out),
    'fallback': ('share of tokens', lambda one: one.fallback),
    'kl_mean': ('nats a token', lambda one: one.kl_mean),
    'kl_95': ('nats a token', lambda one: one.kl_95),
}
RATIOS = {'length_ratio': 'tokens', 'retention': 'retention'}  # figure -> the criterion of eligibility that it is
STUDENTS = ('unparsed', 'truncated', 'lenient', 'timed_out')  # of Outcome.rates


def trace_rows(of: Subject, cell: Mapping[int, Quality], level: float) -> list[Row]:
    """Of an arm's traces, over its seeds; what was not recorded has no value."""
    rows = []
    for figure, (unit, value) in TRACES.items():
        values = [value(one) for one in cell.values()]
        if any(math.isnan(x) for x in values):
            rows.append(of.row(figure, '', unit=unit, status=NOT_RUN, reason='not run: it was not recorded'))
        else:
            rows.append(of.measured(figure, '', statistics.t_interval(values, level), len(values), unit=unit))
    return rows


def length_rows(of: Subject, criteria: Sequence[Criterion], seeds: int) -> list[Row]:
    """Tokens of an arm's traces, and of their reasoning, over those of the undefended ones; intervals are over prompts,
    at the level of eligibility."""
    by_name = {one.name: one for one in criteria}
    found = {figure: by_name[name] for figure, name in RATIOS.items() if name in by_name}
    return [
        of.measured(figure, '', statistics.Interval(one.value, one.low, one.high), seeds, unit='x undefended')
        for figure, one in found.items()
        if not math.isnan(one.value)
    ]


def student_rows(of: Subject, attack: str, side: Mapping[int, Outcome], level: float) -> list[Row]:
    """How the answers of distilled students were read."""
    rows = []
    for name in STUDENTS:
        values = [one.rates[name] for one in side.values() if name in one.rates]
        if values:
            found = statistics.t_interval(values, level)
            rows.append(of.measured(f'student_{name}', attack, found, len(values)))
    return rows
