"""Ranks of damages on two testbeds, by hand and against scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from adx.reporting.agreement import agreement, damages
from adx.reporting.rows import Row


def row(arm, value, student='s', seen=False, figure='damage'):
    return Row(figure, 'defence', arm, 'sft', student, seen, True, value)


def test_damages_are_means_over_unseen_students():
    rows = [row('a', 0.2), row('a', 0.4, 't'), row('a', 9.0, 'u', seen=True), row('b', None), row('a', 7, figure='x')]
    assert damages(rows) == {'a': pytest.approx(0.3)}


def test_agreement_is_spearmans_correlation_of_the_arms_of_both():
    here = dict(zip('abcdefg', (0.1, 0.5, 0.2, 0.9, 0.4, 0.0, 0.3), strict=True))
    there = dict(zip('abcdefx', (0.2, 0.4, 0.1, 0.8, 0.6, 0.1, 5.0), strict=True))
    found = agreement(here, there, 'the bridge')
    both = 'abcdef'
    expected = stats.spearmanr([here[arm] for arm in both], [there[arm] for arm in both]).statistic
    assert (found.n, found.value) == (6, pytest.approx(expected))
    assert found.low < found.value < found.high
    assert 'the bridge' in found.reason


def test_too_few_arms_or_no_other_testbed_is_not_run():
    few = {'a': 0.1, 'b': 0.2}
    assert agreement(few, few, 'the bridge').value is None
    assert 'no other testbed' in agreement(few, {}, '').reason
