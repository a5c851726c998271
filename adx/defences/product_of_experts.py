"""Product of experts: the teacher is blended with what a student would already say."""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.aggregation import Aggregation
from adx.types import Array, State, Stateless, Views, check_range


@struct.dataclass
class ProductOfExperts(Stateless):
    """Scores lp_T + gamma (lp_S - lp_T), that is ((1 - gamma) z_T + gamma z_S) / tau up to a constant.

    Source: arXiv 2605.22737.
    gamma: weight of the proxies, [0, 1]; 0 is the teacher, 1 the proxy inside the teacher's truncation set.
    """

    gamma: float | Array = 0.5
    join: Aggregation = Aggregation()

    wants_proxies = True

    def check(self) -> None:
        check_range('ProductOfExperts.gamma', self.gamma, 0.0, 1.0)
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V = views.teacher_V + self.join(self.gamma * (views.proxies_NV - views.teacher_V))
        return jnp.where(self.gamma == 0, views.teacher_V, scores_V), state
