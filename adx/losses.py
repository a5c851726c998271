"""The next-token loss of completions: prompts and padding are masked, the end counts.

targets_BL marks the tokens that are to be predicted, never the first of a row. Token l is predicted by the logits at
l - 1. Sums are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adx.numerics import MASKED
from adx.types import Array

ROUNDING = 1e-5  # of a sum of float32 probabilities: a smaller rest is none


def token_losses(logits_BLV: Array, tokens_BL: Array, targets_BL: Array) -> Array:
    """losses_BL in nats: of target l at the position l - 1 that predicts it, 0 at all others."""
    logits_BLV = logits_BLV.astype(jnp.float32)
    next_BL = jnp.roll(tokens_BL, -1, axis=1)
    chosen_BL = jnp.take_along_axis(logits_BLV, next_BL[..., None], axis=-1)[..., 0]
    losses_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - chosen_BL
    return jnp.where(predicting(targets_BL), losses_BL, 0.0)


def predicting(targets_BL: Array) -> Array:
    """bool [B, L]: the positions that predict a target."""
    return jnp.roll(targets_BL, -1, axis=1).at[:, -1].set(False)


def ahead(x_BL: Array) -> Array:
    """What is said about a target, at the position that predicts it; [B, L, ...]."""
    return jnp.roll(x_BL, -1, axis=1)


def row_losses(logits_BLV: Array, tokens_BL: Array, targets_BL: Array) -> tuple[Array, Array]:
    """Per row the sum of its targets' losses in nats and how many there are: (sums_B float32, counts_B int32)."""
    sums_B = jnp.sum(token_losses(logits_BLV, tokens_BL, targets_BL), axis=-1)
    return sums_B, jnp.sum(predicting(targets_BL), axis=-1)


def loss(logits_BLV: Array, tokens_BL: Array, targets_BL: Array) -> tuple[Array, Array]:
    """`row_losses` of all rows together: what a mean over several batches is made of."""
    sums_B, counts_B = row_losses(logits_BLV, tokens_BL, targets_BL)
    return jnp.sum(sums_B), jnp.sum(counts_B)


def soft_losses(
    logits_BLV: Array, ids_BLC: Array, log_probs_BLC: Array, targets_BL: Array, temperature: float = 1.0
) -> Array:
    """losses_BL: cross-entropy against C candidates of each target with their served log-probs, and one bucket that
    holds the rest of the mass on both sides.

    Less the entropy of the buckets it is at most KL(served || student), for merging outcomes never raises a KL (Cover
    and Thomas, section 2.8), and it is 0 only where the student puts the served mass on each candidate. Renormalised
    over the candidates instead, a student with nearly all of its mass elsewhere would cost nothing.
    ids_BLC, log_probs_BLC: at the target's column; MASKED log-probs are no candidates. Both at `temperature`, which
    divides the student's logits; losses are scaled by its square (Hinton et al., arXiv 1503.02531, section 2).
    """
    logits_BLV = logits_BLV.astype(jnp.float32) / temperature
    p_BLC = jnp.where(log_probs_BLC > MASKED, jnp.exp(log_probs_BLC), 0.0)
    ids_BLC, p_BLC = (ahead(x) for x in (jnp.where(p_BLC > 0, ids_BLC, logits_BLV.shape[-1]), p_BLC))
    total_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    q_BLC = jnp.take_along_axis(logits_BLV, ids_BLC, axis=-1, mode='clip') - total_BL[..., None]
    rows, columns = jnp.indices(total_BL.shape)
    others_BLV = logits_BLV.at[rows[..., None], columns[..., None], ids_BLC].set(MASKED, mode='drop')
    rest_BL = 1.0 - jnp.sum(p_BLC, axis=-1)
    rest_BL = jnp.where(rest_BL > ROUNDING, rest_BL, 0.0)
    inside_BL = jnp.sum(p_BLC * q_BLC, axis=-1)
    losses_BL = -inside_BL - rest_BL * (jax.nn.logsumexp(others_BLV, axis=-1) - total_BL)
    return jnp.where(predicting(targets_BL), losses_BL * temperature**2, 0.0)


def tempered(log_probs_BLC: Array, temperature: float) -> Array:
    """Whole distributions, MASKED where there is no mass, at a temperature."""
    inside_BLC = log_probs_BLC > MASKED
    scaled_BLC = jnp.where(inside_BLC, log_probs_BLC / temperature, MASKED)
    total_BL1 = jax.nn.logsumexp(scaled_BLC, axis=-1, keepdims=True)
    return jnp.where(inside_BLC, scaled_BLC - total_BL1, MASKED)


def feature_losses(hidden_BLD: Array, projection_ED: Array, teacher_BLE: Array, targets_BL: Array) -> Array:
    """losses_BL: mean squared error of projected hidden states, at the positions that predict a target."""
    projected_BLE = jnp.einsum('BLD,ED->BLE', hidden_BLD.astype(jnp.float32), projection_ED, precision='highest')
    losses_BL = jnp.mean(jnp.square(projected_BLE - teacher_BLE.astype(jnp.float32)), axis=-1)
    return jnp.where(predicting(targets_BL), losses_BL, 0.0)
