"""The cost multiplier: the cheapest rung that reaches the clean student, by seed and in the mean."""

from __future__ import annotations

import dataclasses

from frontier_test import PLAN, THREAT, outcome, outcomes, rows

LADDER = ('one', 'two', 'four')
FACTORS = dict(zip(LADDER, (1, 2, 4), strict=True))
PAID = {name: dataclasses.replace(THREAT, queries=100 * n, steps=50 * n) for name, n in FACTORS.items()}


def ladder(*rights, clean=80, seeds=2, seconds=2.0):
    """right answers of the defended student by rung, one number or one a seed."""
    paid = {'threat': PAID['one'], 'seconds': seconds}
    given = [outcome('clean', clean, seed, attack='one', **paid) for seed in range(seeds)]
    for name, right in zip(LADDER, rights, strict=False):
        by_seed = right if isinstance(right, tuple) else (right,) * seeds
        took = {'threat': PAID[name], 'seconds': 3.0 * FACTORS[name]}
        given += [outcome('defended', r, s, 'ads', name, **took) for s, r in enumerate(by_seed)]
    found = rows([*outcomes(), *given], dataclasses.replace(PLAN, ladder=LADDER))
    return {row.figure: row for row in found if row.figure.startswith('cost_multiplier') and row.arm == 'ads'}


def test_the_cheapest_rung_that_reaches_95_percent():
    found = ladder(60, 76, 79)
    assert found['cost_multiplier'].value == found['cost_multiplier_steps'].value == 2.0
    assert found['cost_multiplier_tokens'].value == 1.0  # all rungs have the tokens of the first
    assert found['cost_multiplier_seconds'].value == 3.0  # 6 against 2
    assert ladder(60, 76, 79, seconds=0.0)['cost_multiplier_seconds'].reason == 'not run: it was not recorded'
    assert ladder(60, 75, 79)['cost_multiplier'].value == 4.0
    assert ladder(76, 60, 60)['cost_multiplier'].value == 1.0


def test_costs_are_each_seeds_own():
    """The clean student of the second seed took twice as long: the second rung is 3 times the first's, 1.5 of its."""
    given = [outcome('clean', 80, seed, attack='one', threat=PAID['one'], seconds=2.0 + 2 * seed) for seed in (0, 1)]
    for name, right in zip(LADDER, (60, 76, 79), strict=True):
        took = {'threat': PAID[name], 'seconds': 3.0 * FACTORS[name]}
        given += [outcome('defended', right, seed, 'ads', name, **took) for seed in (0, 1)]
    found = rows([*outcomes(), *given], dataclasses.replace(PLAN, ladder=LADDER))
    [row] = [row for row in found if (row.figure, row.arm) == ('cost_multiplier_seconds', 'ads')]
    assert (row.value, row.low, row.high) == (2.0, 1.5, 3.0)


def test_seeds_have_multiples_of_their_own():
    row = ladder(60, (80, 72), (80, 80))['cost_multiplier']
    assert (row.value, row.low, row.high) == (2.0, 2.0, 4.0)  # by the mean, 76 of 100, the second rung is enough
    row = ladder(60, (90, 62), (90, 70))['cost_multiplier']
    assert (row.value, row.low, row.high) == (2.0, 2.0, None)
    assert row.reason == '1 of 2 seeds never reach it'


def test_what_no_rung_reaches_is_censored():
    row = ladder(20, 30, 40)['cost_multiplier']
    assert (row.value, row.status) == (None, 'censored')
    assert row.reason.startswith('more than 4: no rung reaches 95%')


def test_a_rung_that_was_not_run_leaves_it_empty():
    row = ladder(60, 76)['cost_multiplier']
    assert (row.value, row.status, row.reason) == (None, 'not_run', 'not run: four')
    assert not any(row.figure == 'cost_multiplier' for row in rows())
