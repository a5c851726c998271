"""Antidistillation sampling: favours tokens whose learning would raise the student's loss."""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.aggregation import Aggregation
from adx.types import Array, State, Stateless, Views, check_range


@struct.dataclass
class Antidistillation(Stateless):
    """Scores lp_T + lam delta, delta(v) = <g, d/dtheta log p_S(v)> at temperature 1 (arXiv 2504.13146).

    lam: finite, in nats per unit of delta, whose unit `Derivative.scale` sets: published strengths belong to 'raw',
    the default divides g by the deviation of delta. g raises the proxy's loss on the teacher's clean traces, so lam > 0
    favours tokens that harm who learns them; lam < 0 is the helpful direction, and 0 the teacher. lam is not divided
    by the temperature: code that adds the term to logits before it has an effective strength of lam / tau.
    join: over all directions of all proxies. delta is centred, its mean under the proxy is 0, so that the extremes of
    several compare what learning a token changes and not what it adds to every token alike.
    """

    lam: float | Array = 0.1
    join: Aggregation = Aggregation()

    wants_proxies = True
    wants_tangents = True

    def check(self) -> None:
        check_range('Antidistillation.lam', self.lam)
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        assert views.tangents_MV is not None
        scores_V = views.teacher_V + self.join(self.lam * views.tangents_MV)
        return jnp.where(self.lam == 0, views.teacher_V, scores_V), state
