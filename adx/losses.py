"""The next-token loss of completions: prompts and padding are masked, the end of sequence counts.

targets_BL marks the tokens that are to be predicted, never the first of a row. Token l is predicted by the logits at
l - 1. Sums are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adx.types import Array


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
