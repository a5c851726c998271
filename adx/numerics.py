"""Float32 arithmetic on log-probabilities, and the searches and draws of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# The log-probability of what cannot happen. Finite, because -inf - -inf and 0 * -inf are nan.
MASKED = -1e30
THRESHOLDS_PER_PASS = 15
PIECES = 16  # of the vocabulary, see totals; a mesh splits it into fewer and they divide these
NORMAL = 0x00800000  # the bits of the smallest normal float32: below it only 0 compares as it should


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


def keep_mass(adjusted_V: Array, teacher_V: Array, kept_V: Array, open_mass: Array) -> Array:
    """The teacher's log-prob where `kept_V`, and `adjusted_V` scaled to the mass `open_mass` of the other tokens.

    adjusted_V: log-probs normalised over the others. Leaving only the logits of kept tokens alone would not do: while
    others move, their chance moves too.
    """
    return jnp.where(kept_V, teacher_V, jnp.maximum(adjusted_V + jnp.log(open_mass), MASKED))


def totals(*parts: Array) -> tuple[Array, ...]:
    """The sum of each part over the last axis, all in one pass.

    PIECES of the axis are added up before it is summed: entries that stand side by side are then added side by side,
    where a plain sum of several parts takes one entry after the other.
    """
    split = tuple(x.reshape(*x.shape[:-1], math.gcd(x.shape[-1], PIECES), -1) for x in parts)
    zeros = (jnp.float32(0),) * len(parts)
    add = lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True))  # noqa: E731
    return tuple(jnp.sum(x, axis=-1) for x in lax.reduce(split, zeros, add, (split[0].ndim - 2,)))


def log_sums(*scores: Array) -> tuple[Array, ...]:
    """log sum exp of each over the last axis, all in two passes. Finite entries."""
    best = [jnp.max(x, axis=-1) for x in scores]
    sums = totals(*(jnp.exp(x - top[..., None]) for x, top in zip(scores, best, strict=True)))
    return tuple(jnp.log(total) + top for total, top in zip(sums, best, strict=True))


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
    weight = mass(p)

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        return jnp.any(carry[2] < carry[3])

    def narrow(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        low, high, smallest, largest = carry
        # The interval tightens to the values that occur, then splits evenly in bit space.
        low, high = jnp.maximum(low, smallest), jnp.minimum(high, jnp.maximum(largest + 1, NORMAL))
        cuts = _cuts(low, high)
        enough = (_masses_above(p, weight, _float(cuts)) >= target[..., None]) & (cuts < high[..., None])
        new_low = jnp.max(jnp.where(enough, cuts, low[..., None]), axis=-1)
        new_high = jnp.min(jnp.where(enough, high[..., None], cuts), axis=-1)
        return (new_low, new_high, *_extremes(p, new_low, new_high))

    low = jnp.zeros(p.shape[:-1], jnp.int32)
    high = _bits(jnp.full(p.shape[:-1], jnp.inf))
    _, _, smallest, _ = lax.while_loop(unfinished, narrow, (low, high, *_extremes(p, low, high)))
    enough = jnp.sum(weight, axis=-1) >= target
    return jnp.where(enough, _float(smallest), 0.0)


def _cuts(low: Array, high: Array) -> Array:
    """[..., THRESHOLDS_PER_PASS] bit patterns that split [low, high) evenly; high where it is too short for all."""
    step = jnp.maximum((high - low) // (THRESHOLDS_PER_PASS + 1), 1)
    cuts = low[..., None] + step[..., None] * jnp.arange(1, THRESHOLDS_PER_PASS + 1)
    return jnp.maximum(jnp.minimum(cuts, high[..., None]), NORMAL)


def _extremes(p: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The bit patterns of the smallest and the largest value of p in [low, high)."""
    inside = (p >= _float(low)[..., None]) & (p < _float(high)[..., None])
    smallest = jnp.min(jnp.where(inside, p, jnp.inf), axis=-1)
    return _bits(smallest), _bits(jnp.max(jnp.where(inside, p, -1.0), axis=-1))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _masses_above(p: Array, weight: Array, cuts: Array) -> Array:
    """sum(weight[p >= cut]) for every cut of a row, [..., cuts]: one reduction of many operands reads p once."""
    parts = tuple(jnp.where(p >= cuts[..., i, None], weight, 0.0) for i in range(cuts.shape[-1]))
    zeros = (jnp.float32(0),) * len(parts)
    sums = lax.reduce(parts, zeros, lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True)), (p.ndim - 1,))
    return jnp.stack(sums, axis=-1)


def random_bits(key: Array, size: int) -> Array:
    """uint32 [size]: the bits of jax.random.bits(key, (size,)), which runs on CPU as loops over the whole array.

    Threefry-2x32 of 20 rounds (Salmon et al., SC 2011) on the counters 0 to size - 1; xor joins the two words.
    """
    words = jax.random.key_data(key)
    keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = jnp.full(size, keys[0]), lax.iota(jnp.uint32, size) + keys[1]
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = ((y << turn) | (y >> (32 - turn))) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x ^ y


def gumbel(key: Array, size: int) -> Array:
    """Standard Gumbel noise [size], float32.

    From all 32 random bits: the upper tail, where a rare token wins, then moves in steps of 2^-32 and not of 2^-23.
    Entry i depends on the key and i alone, so a padded or sharded vocabulary draws the same noise.
    """
    uniform = (random_bits(key, size).astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, 1.0 - 2.0**-24)))
