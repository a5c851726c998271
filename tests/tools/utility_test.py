"""The bench of utility: right answers by arm, and points lost by prompt."""

from __future__ import annotations

import types

import pytest
from storage_test import make_trace

from adx.datasets import Gsm8k
from adx.errors import InputError
from tools.bench import utility


def run(right):
    """(experiment, workdir) of two arms, and which answers of each are right."""
    traces = [
        make_trace(row, setting=arm, text=f'#### {7 if good else 8}', gold='7')
        for arm, goods in right.items()
        for row, good in enumerate(goods)
    ]
    arms = [types.SimpleNamespace(name=arm) for arm in ('plain', 'rule')]
    return (
        types.SimpleNamespace(arms=arms, dataset=Gsm8k()),
        types.SimpleNamespace(path='there', traces=lambda: iter(traces)),
    )


def test_points_lost_are_by_prompt(monkeypatch):
    rows = {}

    def append(table, figure, samples, **about):
        rows[figure] = list(samples)
        return {'figure': figure, 'value': samples[0]}

    monkeypatch.setattr(utility.figures, 'append', append)
    utility.publish(*run({'plain': [True] * 9 + [False], 'rule': [True] * 7 + [False] * 3}), 'gsm8k', 'command')
    assert rows['right_plain_gsm8k'] == [0.9]
    assert rows['right_rule_gsm8k'] == [0.7]
    assert rows['points_lost_rule_gsm8k'] == [pytest.approx(20)]
    assert 20 < rows['points_lost_upper_rule_gsm8k'][0] < 60
    assert len(rows) == 4


def test_arms_that_are_not_complete_are_refused():
    with pytest.raises(InputError, match="'rule': 1"):
        utility.publish(*run({'plain': [True, True], 'rule': [True]}), 'gsm8k', '')
