"""The bench of rewriting by gradient counts what it says: weights, tokens and passes."""

from __future__ import annotations

import types

import numpy as np
import pytest

from adx.batching import Batch
from adx.models.tiny import PRESETS
from adx.models.transformer import make_model
from tools.bench import editing

TARGETS = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
BATCH = Batch(np.ones((3, 4), np.int32), TARGETS)


def test_a_token_meets_every_matrix_but_the_lookup():
    model = make_model(PRESETS['testbed-teacher'])
    c, d, f = model.config, 128, 320
    layer = 2 * d * c.num_heads * c.head_dim + 2 * d * c.num_kv_heads * c.head_dim + 3 * d * f
    assert editing.weights_in_products(model) == c.num_layers * layer + 100 * d


def test_padding_is_no_work():
    assert editing._tokens(BATCH) == 3 + 4


@pytest.mark.parametrize(('calls', 'expected'), [((1, 0), 7 + 6 * 10), ((0, 2), 2 * 3 * 10), ((2, 1), 14 + 120 + 30)])
def test_passes_are_counted_in_operations(calls, expected):
    editor = types.SimpleNamespace(_propose=lambda *given: 'proposed', _values=lambda *given: 'valued')
    meter = editing.Meter(teacher=7, proxies=10)
    meter.watch(editor)
    for _ in range(calls[0]):
        assert editor._propose(None, None, BATCH, None) == 'proposed'
    for _ in range(calls[1]):
        assert editor._values(None, BATCH) == 'valued'
    assert meter.operations == 2 * 7 * expected
