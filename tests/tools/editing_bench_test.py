"""The bench of rewriting by gradient counts what it says: weights, tokens and passes."""

from __future__ import annotations

import types

import numpy as np
import pytest

from adx.batching import Batch
from adx.models.tiny import PRESETS
from adx.models.transformer import make_model
from adx.tails import Heads
from tools.bench import editing

TARGETS = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
BATCH = Batch(np.ones((3, 4), np.int32), TARGETS)
HEADS = Heads(np.ones((2, 6), np.int32), np.array([0, 0, 1]), np.array([5, 5, 2]))  # the last is of no text


def test_a_token_meets_every_matrix_but_the_lookup():
    model = make_model(PRESETS['testbed-teacher'])
    c, d, f = model.config, 128, 320
    layer = 2 * d * c.num_heads * c.head_dim + 2 * d * c.num_kv_heads * c.head_dim + 3 * d * f
    kept = 2 * d * c.num_kv_heads * c.head_dim
    expected = c.num_layers * layer + 100 * d, (c.num_layers - 1) * layer + kept
    assert editing.weights_in_products(model) == expected


def test_padding_is_no_work_and_a_head_is_read_once():
    assert editing._tokens(BATCH, HEADS) == (3 + 4, 5)


TEACHER, PROXIES = editing.Weights(7, 4), editing.Weights(10, 9)
PROPOSED, VALUED = 7 * (7 + 6 * 10) + 5 * (4 + 3 * 9), 7 * 3 * 10 + 5 * 3 * 9


@pytest.mark.parametrize(
    ('calls', 'expected'), [((1, 0), PROPOSED), ((0, 2), 2 * VALUED), ((2, 1), 2 * PROPOSED + VALUED)]
)
def test_passes_are_counted_in_operations(calls, expected):
    editor = types.SimpleNamespace(_propose=lambda *given: 'proposed', _values=lambda *given: 'valued')
    meter = editing.Meter(TEACHER, PROXIES)
    meter.watch(editor)
    for _ in range(calls[0]):
        assert editor._propose(None, None, BATCH, HEADS, None) == 'proposed'
    for _ in range(calls[1]):
        assert editor._values(None, BATCH, HEADS) == 'valued'
    assert meter.operations == 2 * expected


def test_the_slowest_of_several_ends_the_work():
    done = [
        {'traces': 10, 'seconds': 2.0, 'operations': 30.0, 'rate': 10.0},
        {'traces': 30, 'seconds': 4.0, 'operations': 50.0, 'rate': 10.0},
    ]
    assert editing.joined(done) == (40 / 4, 80 / (4 * 20))  # together they could have made 20 a second
    assert editing.joined(done[:1]) == (5, 30 / 20)
