"""The search by gradient on tiny models: it accepts what exact evaluation confirms, and only where it may edit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from influence_test import CONFIG, LENGTH, START, rows

from adx import influence
from adx.aggregation import Aggregation
from adx.batching import Batch
from adx.editing import Editor, Proxy
from adx.influence import Harm
from adx.models.transformer import make_model
from adx.rewriters.gradient import Gradient, nested_edits, nested_sizes, single_edits

WORDS_V = np.arange(CONFIG.vocab_size) >= 3  # the first three may not be placed


@pytest.fixture(scope='module')
def given():
    """(two proxies of one model, the teacher, a batch)"""
    model, rng = make_model(CONFIG), np.random.default_rng(0)
    batch, holdout = rows(rng, 3), rows(rng, 3)
    gradient = jax.jit(jax.grad(lambda params: influence.holdout_loss(model, params, holdout)))
    proxies = [Proxy(model, params, gradient(params)) for params in (model.init(1), model.init(2))]
    return proxies, (model, model.init(3)), batch


def editable(batch):
    editable_BL = batch.targets_BL.copy()
    editable_BL[:, 4] = False
    editable_BL[1] = False
    return editable_BL


@pytest.mark.parametrize('step', ['flip', 'embedding'])
def test_every_round_gains_by_exact_evaluation_and_changes_what_it_may(given, step):
    proxies, teacher, batch = given
    settings = Gradient(step=step, rounds=3, edits=4, floor=0.02, radius=2.0, join=Aggregation(how='min'))
    places_BL = editable(batch)
    found = Editor(settings, proxies, teacher, WORDS_V)(batch, places_BL)
    assert len(found.tokens) > 1
    assert np.all(np.diff(found.values, axis=0) >= 0)
    assert found.values[1, 0] > found.values[0, 0]
    changed_RBL = found.tokens != batch.tokens_BL
    assert not changed_RBL[:, ~places_BL].any()
    assert WORDS_V[found.tokens[changed_RBL]].all()
    np.testing.assert_array_equal(found.tokens[:, 1], np.repeat(batch.tokens_BL[1:2], len(found.tokens), axis=0))
    value = jax.jit(lambda params, g, batch: Harm().values(proxies[0].model, params, g, batch))
    for tokens_BL, values_B in zip(found.tokens, found.values, strict=True):
        each = [value(one.params, one.given, Batch(tokens_BL, batch.targets_BL)) for one in proxies]
        np.testing.assert_allclose(values_B, np.min(each, axis=0), rtol=1e-5, atol=1e-6)


def test_words_are_what_the_teacher_finds_likely_where_they_are_put(given):
    proxies, teacher, batch = given
    found = Editor(Gradient(rounds=1, edits=1, floor=0.5), proxies, teacher, WORDS_V)(batch, editable(batch))
    model, params = teacher
    positions_BL = jnp.broadcast_to(jnp.arange(LENGTH), batch.tokens_BL.shape)
    log_p_BLV = jax.nn.log_softmax(jax.jit(lambda p: model.apply(p, batch.tokens_BL, positions_BL)[0])(params))
    for row, place in zip(*np.nonzero(found.tokens[-1] != batch.tokens_BL), strict=True):
        log_p_V = log_p_BLV[row, place - 1]
        assert place >= START
        assert log_p_V[found.tokens[-1][row, place]] >= log_p_V.max() + np.log(0.5)


def test_edits_are_laid_out_one_by_one_and_nested():
    tokens_BL = np.array([[5, 6, 7, 8]])
    places_BM, words_BM = np.array([[1, 3, 0]]), np.array([[9, 10, 11]])
    assert single_edits(tokens_BL, places_BM, words_BM).tolist() == [[[5, 9, 7, 8], [5, 6, 7, 10], [11, 6, 7, 8]]]
    gains_BM = np.array([[0.1, 0.3, -0.2]])
    assert nested_sizes(3) == [1, 2, 3]
    assert nested_edits(tokens_BL, places_BM, words_BM, gains_BM).tolist() == [
        [[5, 6, 7, 10], [5, 9, 7, 10], [5, 9, 7, 10]]  # the last exchange helps nobody
    ]
