"""How far a rule moves the teacher, and going a part of the way: utility control.

p is the teacher and q a rule's result, both on the allowed set; r = log q - log p. The way from p to q is
q_s = p exp(s r) / Z_s. It spends KL(s) = KL(q_s || p) = s E_s[r] - log Z_s nats, with dKL/ds = s Var_s[r] >= 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adx.numerics import MASKED, log_sums, totals
from adx.types import Array, Defence, State, Views

# What is asked of r: -40 lets the part of a way to probability 0 still exist, and is 4e-18 at the end of it; no
# float32 probability can be raised by more than 88.
LOWEST, HIGHEST = -40.0, 88.0
EXPONENT = 65.0  # s beyond 1 raises no token's weight above exp of this: squares of r, summed, stay below 3e38
ACCURACY = 4e-3  # of the KL that `solve_scale` reaches
NOISE = 3e-7  # nats: about what rounding does to a KL in float32; nearer than that no step can tell
EVALUATIONS = 40


class Wrapper:
    """Defaults of a defence around another one, `rule`, whose change of the teacher it alters."""

    rule: Defence

    wants_tangents = property(lambda self: self.rule.wants_tangents)
    wants_proxies = property(lambda self: self.rule.wants_proxies)
    is_argmax = False
    has_price = False  # of KL a token

    def check(self) -> None:
        self.rule.check()
        if self.rule.is_argmax:
            name, own = type(self.rule).__name__, type(self).__name__
            raise ValueError(
                f'{own}.rule = {name} puts all mass on one token, so its KL is a step and its change has no part to '
                'take or shuffle; it must be a rule that samples'
            )

    def init(self) -> State:
        return self.rule.init()


def priced(rule: Defence) -> list[str]:
    """The types of those within a rule that hold it to a price."""
    leaves = jax.tree.leaves(rule, is_leaf=lambda x: getattr(x, 'has_price', False))
    return [type(leaf).__name__ for leaf in leaves if getattr(leaf, 'has_price', False)]


class Way(NamedTuple):
    """From p to q on the allowed set: log p, MASKED outside, and r within [LOWEST, HIGHEST], 0 outside.

    mean, square: E_p[r] and E_p[r^2]; the latter is 0 only where nothing changes.
    """

    log_p_V: Array
    change_V: Array
    mean: Array
    square: Array


def make_way(scores_V: Array, views: Views) -> Way:
    scores_V = jnp.where(views.allowed_V, jnp.clip(scores_V, MASKED, -MASKED), MASKED)
    teacher_V = jnp.where(views.allowed_V, views.teacher_V, MASKED)
    total_p, total_q = log_sums(teacher_V, scores_V)
    change_V = jnp.clip(scores_V - teacher_V - (total_q - total_p), LOWEST, HIGHEST)
    log_p_V, change_V = jnp.maximum(teacher_V - total_p, MASKED), jnp.where(views.allowed_V, change_V, 0.0)
    p_V = jnp.exp(log_p_V)
    return Way(log_p_V, change_V, *totals(p_V * change_V, p_V * jnp.square(change_V)))


def spent(way: Way, scale: Array) -> tuple[Array, Array]:
    """KL(scale) in nats and Var_scale[r]. One pass over the vocabulary."""
    # From its mean under p, r is small where a sure teacher has its mass: large terms would cancel.
    change_V = way.change_V - way.mean
    weight_V = jnp.exp(way.log_p_V + scale * change_V)
    total, first, second = totals(weight_V, weight_V * change_V, weight_V * jnp.square(change_V))
    mean = first / total
    return scale * mean - jnp.log(total), jnp.maximum(second / total - jnp.square(mean), 0.0)


def furthest(way: Way, max_scale: Array) -> Array:
    """max_scale, or where the token that gains most has all the mass and the sums of `spent` would overflow."""
    gain = jnp.max(way.change_V) - way.mean
    return jnp.minimum(max_scale, jnp.maximum(1.0, EXPONENT / jnp.maximum(gain, 1e-6)))


def solve_scale(way: Way, nats: Array, max_scale: Array) -> tuple[Array, Array]:
    """(s, KL(s)) with the largest s <= max_scale that spends at most `nats`, to ACCURACY of it. s = 0 at nats = 0.

    Newton's method on log KL over log s: KL is a power of s at first (the second) and then steeper, so that few steps
    do; a step that leaves the bracket becomes a bisection. The last step squares the error left and is not evaluated.
    """
    kl_end, variance_end = spent(way, max_scale)
    binds = (kl_end > nats) & (nats > 0) & (way.square > 0)
    high = jnp.asarray(max_scale, jnp.float32)
    start = jnp.sqrt(2 * nats / (way.square - jnp.square(way.mean)))
    start = jnp.where(start < high, start, _step(high, kl_end, variance_end, nats, jnp.zeros_like(high), high)[0])

    def evaluate(carry: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        scale, low, high, _, count = carry
        kl, variance = spent(way, scale)
        low, high = jnp.where(kl > nats, low, scale), jnp.where(kl > nats, scale, high)
        scale, near = _step(scale, kl, variance, nats, low, high)
        return scale, low, high, near, count + 1

    carry = (start, jnp.zeros_like(high), high, ~binds, jnp.int32(0))
    scale, *_ = lax.while_loop(lambda carry: ~carry[3] & (carry[4] < EVALUATIONS), evaluate, carry)
    scale = jnp.where(binds, scale, jnp.where(nats > 0, max_scale, 0.0))
    return scale, jnp.minimum(kl_end, nats)


def _step(
    scale: Array, kl: Array, variance: Array, nats: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """The next scale, inside (low, high), and whether it is near enough, given KL and variance at this one."""
    slope = jnp.square(scale) * variance / kl  # d log KL / d log s
    error = jnp.log(nats / kl)
    newton = scale * jnp.exp(error / slope)
    inside = (newton > low) & (newton < high)
    near = inside & (jnp.square(error) <= ACCURACY * jnp.minimum(slope, 1.0))
    settled = jnp.abs(kl - nats) <= NOISE
    return jnp.where(settled, scale, jnp.where(inside, newton, (low + high) / 2)), near | settled


def tilted(way: Way, scale: Array, scores_V: Array, views: Views) -> Array:
    """Scores of q_scale: at 0, or where nothing changes, the teacher's own bits; at 1 the rule's."""
    part_V = jnp.where(scale == 1, scores_V, way.log_p_V + scale * way.change_V)
    return jnp.where((scale == 0) | (way.square == 0), views.teacher_V, part_V)


def spend(scores_V: Array, views: Views, nats: Array) -> tuple[Array, Array]:
    """The part of a rule's change that costs at most `nats` as it is served, and what it costs.

    Protected tokens keep their mass: with m = open_mass, q = m q' on the others against p = m p', and so
    KL(q || p) = m KL(q' || p').
    """
    mass = jnp.maximum(views.open_mass, 1e-30)
    way = make_way(scores_V, views)
    scale, kl = solve_scale(way, nats / mass, jnp.float32(1))
    return tilted(way, scale, scores_V, views), mass * kl
