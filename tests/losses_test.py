"""The completion loss against closed forms and a loop over its tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.losses import feature_losses, loss, predicting, row_losses, soft_losses, tempered, token_losses
from adx.numerics import MASKED, kl

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


def candidates(count, seed=5):
    """(ids, log-probs) of the `count` likeliest tokens at every column, and all of the log-probs."""
    log_p = jax.nn.log_softmax(draw(seed)[0])
    values, ids = jax.lax.top_k(log_p, count)
    return ids, values, log_p


def test_one_hot_soft_labels_are_the_hard_loss():
    logits, tokens = draw()
    ids = jnp.stack([tokens, jnp.zeros_like(tokens)], axis=-1)
    log_probs = jnp.stack([jnp.zeros(tokens.shape), jnp.full(tokens.shape, MASKED)], axis=-1)
    hard = lambda z: token_losses(z, tokens, TARGETS).sum()  # noqa: E731
    soft = lambda z: soft_losses(z, ids, log_probs, TARGETS).sum()  # noqa: E731
    np.testing.assert_allclose(soft(logits), hard(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(soft)(logits), jax.grad(hard)(logits), atol=1e-6)


def test_buckets_bound_the_full_divergence_from_below_and_reach_it_with_all_candidates():
    logits, _ = draw()
    teacher = jnp.roll(candidates(1)[2], -1, axis=1)  # at the predicting position
    full = np.where(predicting(TARGETS), kl(teacher, jax.nn.log_softmax(logits)), 0.0)
    below = np.zeros_like(full)
    for count in (1, 4, VOCAB):
        ids, values, _ = candidates(count)
        p = np.exp(np.asarray(values, np.float64))
        rest = np.maximum(1 - p.sum(axis=-1), 1e-300)
        entropy = -(p * np.log(p)).sum(axis=-1) - np.where(rest > 1e-5, rest * np.log(rest), 0.0)
        divergence = np.asarray(soft_losses(logits, ids, values, TARGETS))
        divergence = np.where(full > 0, divergence - np.roll(entropy, -1, axis=1), 0.0)
        assert (divergence >= below - 1e-5).all()
        assert (divergence <= full + 1e-5).all()
        below = divergence
    np.testing.assert_allclose(below, full, atol=1e-5)


def test_a_student_like_the_teacher_has_no_gradient_at_any_temperature():
    """Where labels name the whole vocabulary and are at that temperature too."""
    logits, _ = draw()
    ids, values, _ = candidates(VOCAB)
    like = jnp.roll(candidates(1)[2], -1, axis=1)
    for temperature in (1.0, 2.0):
        labels = tempered(values, temperature)
        slope = jax.grad(lambda z, labels=labels, t=temperature: soft_losses(z, ids, labels, TARGETS, t).sum())
        np.testing.assert_allclose(slope(like), 0, atol=1e-5)
        assert np.abs(slope(logits)).max() > 0.01


def test_what_has_no_mass_has_none_at_another_temperature():
    found = np.asarray(tempered(jnp.array([[[np.log(0.8), np.log(0.2), MASKED]]]), 2.0))[0, 0]
    np.testing.assert_allclose(np.exp(found), [2 / 3, 1 / 3, 0], atol=1e-6)
    assert found[2] == np.float32(MASKED)


def test_features_are_compared_at_predicting_positions_only():
    hidden, projection = np.ones((ROWS, LENGTH, 2)), np.array([[1.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
    found = feature_losses(hidden, projection, np.zeros((ROWS, LENGTH, 3)), TARGETS)
    np.testing.assert_allclose(found.sum(), 9 * (4 + 4 + 1) / 3)
