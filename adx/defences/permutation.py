"""The control without information: another rule's change, shuffled, with random signs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from adx import struct
from adx.defences.tilting import Wrapper
from adx.numerics import renormalise
from adx.types import Array, Defence, State, Views


@struct.dataclass
class Permutation(Wrapper):
    """Adds `rule`'s score changes to the wrong tokens: a fresh permutation of the truncation set per row and
    position, each change with a random sign. Same sizes, no information about the proxies.

    The change is taken between normalised log-probs on the truncation set. An argmax rule has none of finite size
    and is refused.
    """

    rule: Defence

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V, state = self.rule.adjust(views, state)
        base_V = renormalise(views.teacher_V, views.allowed_V)
        change_V = renormalise(scores_V, views.allowed_V) - base_V
        order_key, sign_key = jax.random.split(views.key)
        # Sorting by noise puts the n allowed changes first, in random order; the i-th allowed token takes the i-th.
        noise_V = jnp.where(views.allowed_V, jax.random.uniform(order_key, change_V.shape), jnp.inf)
        _, shuffled_V = lax.sort((noise_V, change_V), num_keys=1)
        rank_V = jnp.maximum(jnp.cumsum(views.allowed_V) - 1, 0)
        sign_V = jax.random.rademacher(sign_key, change_V.shape, jnp.float32)
        moved_V = jnp.where(views.allowed_V, sign_V * shuffled_V[rank_V], 0.0)
        return jnp.where(jnp.all(change_V == 0), views.teacher_V, base_V + moved_V), state
