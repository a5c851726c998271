"""How the contributions of several proxies to the score become one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adx import struct
from adx.types import Array, check_choice, check_range

AGGREGATIONS = ('mean', 'max', 'min', 'softmin')


@struct.dataclass
class Aggregation:
    """Joins contributions_NV (each proxy's change of the score, never its raw log-probs) over the proxies, or over the
    directions of all of them.

    how: 'mean', 'max', 'min' (the least harmed student decides) or 'softmin', -(1/beta) log mean exp(-beta x),
    which tends to the mean as beta -> 0 and to the minimum as beta -> inf. beta: > 0, in 1/nats.
    """

    beta: float | Array = 1.0
    how: str = struct.static(default='mean')

    def check(self) -> None:
        check_choice('Aggregation.how', self.how, AGGREGATIONS)
        check_range('Aggregation.beta', self.beta, 0.0, open_low=True)

    def __call__(self, contributions_NV: Array) -> Array:
        if self.how == 'softmin':
            # From the least on, so that a small beta loses nothing; the derivative does not depend on where one begins.
            low_V = jax.lax.stop_gradient(jnp.min(contributions_NV, axis=0))
            low_V = jnp.where(jnp.isfinite(low_V), low_V, 0.0)
            excess_V = jnp.mean(jnp.expm1(-self.beta * (contributions_NV - low_V)), axis=0)
            return low_V - jnp.log1p(excess_V) / self.beta
        if self.how == 'mean':
            return jnp.mean(contributions_NV, axis=0)
        extreme = jnp.max if self.how == 'max' else jnp.min
        return extreme(contributions_NV, axis=0)
