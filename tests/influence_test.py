"""Objectives of a rewritten trace: gradients against differences, scores against exact one-token changes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adx import influence
from adx.batching import Batch
from adx.influence import Bilevel, Chance, Difference, Harm, Loss
from adx.models.transformer import TransformerConfig, make_model

CONFIG = TransformerConfig(
    vocab_size=13, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
)  # fmt: skip
LENGTH, START = 9, 3


@pytest.fixture(scope='module')
def given():
    """(model, params, direction, batch, holdout)"""
    model = make_model(CONFIG)
    params, rng = model.init(0), np.random.default_rng(0)
    batch, holdout = (rows(rng, count) for count in (2, 3))
    g = jax.jit(jax.grad(lambda params: influence.holdout_loss(model, params, holdout)))(params)
    return model, params, g, batch, holdout


def rows(rng, count):
    tokens_BL = rng.integers(0, CONFIG.vocab_size, (count, LENGTH)).astype(np.int32)
    targets_BL = np.zeros((count, LENGTH), bool)
    targets_BL[:, START:] = True
    targets_BL[-1, -2:] = False  # a shorter trace
    return Batch(tokens_BL, targets_BL)


def objectives(given):
    *_, g, _, holdout = given
    return [(Harm(), g), (Difference(2e-3), g), (Loss(), None), (Bilevel(0.1), holdout)]


@pytest.mark.parametrize('which', range(4), ids=['harm', 'difference', 'loss', 'bilevel'])
def test_slopes_are_the_derivative_of_values_in_the_one_hot_rows(given, which):
    """An independent path: X is a free array, embedded by hand and read by hand, and differentiated by jax."""
    model, params, _, batch, _ = given
    objective, beside = objectives(given)[which]

    def soft_loss(params, x_BLV):
        x_BLD = jnp.einsum('BLV,VD->BLD', x_BLV, params['embed'])
        if CONFIG.scale_embeddings:
            x_BLD *= CONFIG.embed_dim**0.5
        positions_BL = jnp.broadcast_to(jnp.arange(LENGTH), x_BLV.shape[:2])
        states, _ = model.apply(params, x_BLD, positions_BL, method='states')
        log_p_BLV = jax.nn.log_softmax(model.apply(params, states[-1], method='unembed'))
        losses_BL = -jnp.sum(x_BLV[:, 1:] * log_p_BLV[:, :-1], axis=-1)
        targets_BL = batch.targets_BL[:, 1:]
        return jnp.sum(losses_BL * targets_BL, axis=-1) / targets_BL.sum(axis=-1)

    def value(x_BLV):
        if isinstance(objective, Loss):
            return jnp.sum(soft_loss(params, x_BLV))
        if isinstance(objective, Bilevel):
            step = jax.grad(lambda p: soft_loss(p, x_BLV)[0])(params)
            return influence.holdout_loss(model, influence.moved(params, step, -0.1), beside)
        return -sum(
            jnp.vdot(a, b) for a, b in zip(
                jax.tree.leaves(jax.grad(lambda p: jnp.sum(soft_loss(p, x_BLV)))(params)), jax.tree.leaves(beside),
                strict=True,
            )
        )  # fmt: skip

    if isinstance(objective, Bilevel):
        # Of rows with other numbers of targets `soft_loss` of one row would read the wrong mask: compare the first.
        batch = Batch(batch.tokens_BL[:1], batch.targets_BL[:1])
    slopes_BLV = jax.jit(lambda p: objective.slopes(influence.token_gradients, model, p, beside, batch))(params)
    x_BLV = jax.nn.one_hot(batch.tokens_BL, CONFIG.vocab_size)
    expected_BLV = jax.jit(jax.grad(value))(x_BLV)
    # Differences of two copies carry a truncation error of eps^2 and float32 rounding over eps.
    tolerance = 2e-2 if isinstance(objective, Difference) else 2e-5
    np.testing.assert_allclose(slopes_BLV, expected_BLV, atol=tolerance * float(jnp.abs(expected_BLV).max()))


def test_values_are_what_real_steps_do(given):
    """Bilevel is one optimiser step; harm is its slope at size 0."""
    model, params, g, batch, holdout = given
    eta = 1e-3
    ahead = np.asarray(jax.jit(lambda p: Bilevel(eta).values(model, p, holdout, batch))(params), np.float64)
    behind = np.asarray(jax.jit(lambda p: Bilevel(-eta).values(model, p, holdout, batch))(params), np.float64)
    harm = jax.jit(lambda p: Harm().values(model, p, g, batch))(params)
    # float32 values of about 3 are known to 3e-7; over 2 eta that is 3e-4.
    np.testing.assert_allclose((ahead - behind) / (2 * eta), harm, atol=1e-3, rtol=1e-3)
    difference = jax.jit(lambda p: Difference(1e-3).values(model, p, g, batch))(params)
    np.testing.assert_allclose(difference, harm, rtol=1e-3, atol=1e-3)


def test_scores_rank_exact_one_token_changes(given):
    """Of all changes of one token the scores find good ones: they agree in rank with the exact changes of J."""
    model, params, g, batch, _ = given
    row = Batch(batch.tokens_BL[:1], batch.targets_BL[:1])
    slopes_LV = np.asarray(jax.jit(lambda p: Harm().slopes(influence.token_gradients, model, p, g, row))(params))[0]
    tokens_L = row.tokens_BL[0]
    flips = [(t, v) for t in range(START, LENGTH) for v in range(CONFIG.vocab_size) if v != tokens_L[t]]
    changed_BL = np.repeat(tokens_L[None], len(flips), axis=0)
    for i, (t, v) in enumerate(flips):
        changed_BL[i, t] = v
    many = Batch(changed_BL, np.repeat(row.targets_BL, len(flips), axis=0))
    value = jax.jit(lambda p, batch: Harm().values(model, p, g, batch))
    exact = np.asarray(value(params, many)) - np.asarray(value(params, row))
    predicted = np.array([slopes_LV[t, v] - slopes_LV[t, tokens_L[t]] for t, v in flips])
    rho = stats.spearmanr(predicted, exact).statistic
    best = exact[np.argsort(predicted)[-5:]].max() / exact.max()
    assert rho > 0.5, rho
    assert best > 0.5, best


def test_the_label_part_alone_is_the_derivative_of_log_probs(given):
    """Where nothing reads a token, at the last place, its slope is the share of delta in science's first section."""
    model, params, g, batch, _ = given
    row = Batch(batch.tokens_BL[:1], batch.targets_BL[:1])

    def log_probs(params):
        positions_BL = jnp.broadcast_to(jnp.arange(LENGTH), row.tokens_BL.shape)
        return jax.nn.log_softmax(model.apply(params, row.tokens_BL, positions_BL)[0])[0, -2]

    delta_V = jax.jit(lambda p: jax.jvp(log_probs, (p,), (g,))[1])(params)
    slopes_V = jax.jit(lambda p: Harm().slopes(influence.token_gradients, model, p, g, row)[0, -1])(params)
    np.testing.assert_allclose(slopes_V, delta_V / (LENGTH - START), atol=1e-6)


def test_chance_knows_the_tokens_and_nothing_else(given):
    model, params, _, batch, _ = given
    value = jax.jit(lambda tokens: Chance().values(model, params, None, Batch(tokens, batch.targets_BL)))
    slopes = jax.jit(lambda p: Chance().slopes(influence.token_gradients, model, p, None, batch))(params)
    assert slopes.shape == (2, LENGTH, CONFIG.vocab_size)
    other_BL = batch.tokens_BL.copy()
    other_BL[0, -1] += 1
    before, after = np.asarray(value(batch.tokens_BL)), np.asarray(value(other_BL))
    assert before[0] != after[0]
    assert before[1] == after[1]
    padded = Batch(*(np.pad(x, ((0, 0), (0, 3)), constant_values=0) for x in batch))
    longer = jax.jit(lambda p: Chance().slopes(influence.token_gradients, model, p, None, padded))(params)
    np.testing.assert_array_equal(longer[:, :LENGTH], slopes)
    np.testing.assert_array_equal(jax.jit(lambda: Chance().values(model, params, None, padded))(), before)


def test_objectives_are_frozen():
    for one in (Harm(), Difference(), Loss(), Bilevel(), Chance()):
        assert dataclasses.is_dataclass(one)
        hash(one)
