"""Float32 arithmetic on log-probabilities, and the searches and draws that sampling is made of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# The log-probability of what cannot happen. Finite, because -inf - -inf and 0 * -inf are nan.
MASKED = -1e30
THRESHOLDS_PER_PASS = 15


def log_softmax(logits: Array) -> Array:
    """Float32 log-softmax over the last axis."""
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def renormalise(scores: Array, allowed: Array) -> Array:
    """Log-probs over `allowed`, MASKED elsewhere. A row whose scores are all MASKED or lower becomes uniform on it.

    Scores are clipped to [MASKED, -MASKED]: a rule may subtract the log-prob of what a proxy cannot say.
    """
    scores = jnp.where(allowed, jnp.clip(scores, MASKED, -MASKED), -jnp.inf)
    return jnp.maximum(jax.nn.log_softmax(scores, axis=-1), MASKED)


def kl(log_q: Array, log_p: Array) -> Array:
    """KL(q || p) in nats over the last axis. Both are normalised log-probs on the same set."""
    return jnp.sum(jnp.where(log_q > MASKED, jnp.exp(log_q) * (log_q - log_p), 0.0), axis=-1)


def argmax(x: Array) -> Array:
    """Index of the largest entry of the last axis, the lowest among ties.

    Two reductions rather than one: a sharded axis then exchanges one number per row and is never gathered.
    """
    index = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    best = jnp.max(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(x == best, index, x.shape[-1] - 1), axis=-1)


def largest_threshold(p: Array, mass: Callable[[Array], Array], target: Array) -> Array:
    """The largest t among the values of p >= 0 with `sum(mass(p)[p >= t]) >= target`, per row: exact, no sort.

    Non-negative floats order as their bit patterns do, so this bisects integers, THRESHOLDS_PER_PASS + 1 ways a
    pass, until one distinct value is left (about 4 passes on a language model's distribution, 8 at most).
    Returns 0 where even all of p is not enough. With mass = ones it is the k-th largest value, ties kept.

    p: [..., V]; target: [...]; result [...].
    """
    bits = lax.bitcast_convert_type(p, jnp.int32)
    weight = mass(p)
    parts = jnp.arange(1, THRESHOLDS_PER_PASS + 1)

    def extremes(low: Array, high: Array) -> tuple[Array, Array]:
        inside = (bits >= low[..., None]) & (bits < high[..., None])
        smallest = jnp.min(jnp.where(inside, bits, jnp.iinfo(jnp.int32).max), axis=-1)
        return smallest, jnp.max(jnp.where(inside, bits, -1), axis=-1)

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        return jnp.any(carry[2] < carry[3])

    def narrow(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        low, high, smallest, largest = carry
        # The interval tightens to the values that occur, then splits evenly in bit space.
        low, high = jnp.maximum(low, smallest), jnp.minimum(high, largest + 1)
        step = jnp.maximum((high - low) // (THRESHOLDS_PER_PASS + 1), 1)
        cuts = jnp.minimum(low[..., None] + step[..., None] * parts, high[..., None])
        enough = jnp.stack(
            [
                jnp.sum(jnp.where(bits >= cuts[..., i, None], weight, 0.0), axis=-1) >= target
                for i in range(THRESHOLDS_PER_PASS)
            ],
            axis=-1,
        )
        enough &= cuts < high[..., None]
        new_low = jnp.max(jnp.where(enough, cuts, low[..., None]), axis=-1)
        new_high = jnp.min(jnp.where(enough, high[..., None], cuts), axis=-1)
        return (new_low, new_high, *extremes(new_low, new_high))

    low = jnp.zeros(p.shape[:-1], jnp.int32)
    high = jnp.full(p.shape[:-1], jnp.iinfo(jnp.int32).max, jnp.int32)
    _, _, smallest, _ = lax.while_loop(unfinished, narrow, (low, high, *extremes(low, high)))
    enough = jnp.sum(weight, axis=-1) >= target
    return jnp.where(enough, lax.bitcast_convert_type(smallest, jnp.float32), 0.0)


def gumbel(key: Array, size: int) -> Array:
    """Standard Gumbel noise [size], float32.

    From all 32 random bits: the upper tail, where a rare token wins, then moves in steps of 2^-32 and not of 2^-23.
    Entry i depends on the key and i alone, so a padded or sharded vocabulary draws the same noise.
    """
    bits = jax.random.bits(key, (size,), jnp.uint32)
    uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, 1.0 - 2.0**-24)))
