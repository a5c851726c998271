"""The completion loss against closed forms and a loop over its tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.losses import loss, row_losses, token_losses
from adx.numerics import MASKED

ROWS, LENGTH, VOCAB = 3, 7, 11
# Row 0: two prompt tokens, three of the completion, padding. Row 1: all but the first. Row 2: padding.
TARGETS = np.zeros((ROWS, LENGTH), bool)
TARGETS[0, 2:5] = TARGETS[1, 1:] = True


def draw(seed=0):
    keys = jax.random.split(jax.random.key(seed))
    logits = 3 * jax.random.normal(keys[0], (ROWS, LENGTH, VOCAB))
    return logits, np.asarray(jax.random.randint(keys[1], (ROWS, LENGTH), 0, VOCAB))


def test_losses_are_those_of_a_loop_in_float64():
    logits, tokens = draw()
    sums, counts = row_losses(logits, tokens, TARGETS)
    for row in range(ROWS):
        total = 0.0
        for i in np.flatnonzero(TARGETS[row]):
            z = np.asarray(logits[row, i - 1], np.float64)
            total += np.log(np.exp(z).sum()) - z[tokens[row, i]]
        assert float(sums[row]) == pytest.approx(total, rel=1e-6)
        assert counts[row] == TARGETS[row].sum()
    assert loss(logits, tokens, TARGETS)[0] == pytest.approx(float(sums.sum()), rel=1e-6)
    assert loss(logits, tokens, TARGETS)[1] == 9


def test_equal_logits_cost_the_log_of_the_vocabulary_padding_left_out():
    logits = jnp.zeros((ROWS, LENGTH, VOCAB + 5)).at[..., VOCAB:].set(MASKED)
    losses = token_losses(logits, draw()[1], TARGETS)
    np.testing.assert_allclose(losses[TARGETS[:, [*range(1, LENGTH), 0]]], np.log(VOCAB), rtol=1e-6)


def test_what_is_no_target_has_neither_loss_nor_gradient():
    logits, tokens = draw()
    other = np.where(TARGETS, tokens, 0)
    assert loss(logits, other, TARGETS) == loss(logits, tokens, TARGETS)
    gradient = jax.grad(lambda z: loss(z, tokens, TARGETS)[0])(logits)
    probabilities = jax.nn.softmax(logits[1, 3])
    assert not gradient[0, [0, 4, 5, 6]].any()
    assert not gradient[2].any()
    np.testing.assert_allclose(gradient[1, 3], probabilities - np.eye(VOCAB)[tokens[1, 4]], atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits, tokens = draw()
    half = logits.astype(jnp.bfloat16)
    assert loss(half, tokens, TARGETS)[0].dtype == jnp.float32
    assert loss(half, tokens, TARGETS)[0] == loss(half.astype(jnp.float32), tokens, TARGETS)[0]
