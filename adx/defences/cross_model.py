"""Cross-model adversarial decoding: the teacher's candidates that proxies find unlikely.

The candidates are the truncation set: where an arm states no sampling, the teacher's top 20 inside its 0.95 nucleus,
as the published rules have it. Proxies are never truncated, so every candidate has a finite score.
"""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.aggregation import Aggregation
from adx.numerics import MASKED, argmax
from adx.types import Array, State, Stateless, Views, check_range


class CrossModel(Stateless):
    """What the rules share. top_k: of the truncation set where an arm states none."""

    wants_proxies = True
    top_k = 20


def _one_hot(scores_V: Array, allowed_V: Array) -> Array:
    """All mass on the best allowed token: log-prob 0 there, MASKED elsewhere."""
    best = argmax(jnp.where(allowed_V, scores_V, -jnp.inf))
    return jnp.where(jnp.arange(scores_V.shape[-1]) == best, 0.0, MASKED)


@struct.dataclass
class CrossModelHard(CrossModel):
    """argmin over the candidates of lp_S: the token the proxies find least likely. It has no strength."""

    join: Aggregation = Aggregation()

    is_argmax = True

    def check(self) -> None:
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        return _one_hot(self.join(-views.proxies_NV), views.allowed_V), state


@struct.dataclass
class CrossModelWeighted(CrossModel):
    """argmax over the candidates of lp_T - w lp_S. weight: w >= 0; at 0 it is greedy on the candidates."""

    weight: float | Array = 1.0
    join: Aggregation = Aggregation()

    is_argmax = True

    def check(self) -> None:
        check_range('CrossModelWeighted.weight', self.weight, 0.0)
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V = views.teacher_V + self.join(-self.weight * views.proxies_NV)
        return _one_hot(jnp.where(self.weight == 0, views.teacher_V, scores_V), views.allowed_V), state


@struct.dataclass
class CrossModelSoft(CrossModel):
    """softmax over the candidates of (lp_T - w lp_S) / soft_temperature.

    weight: w, finite. Negative values reward what the proxies know: w = -gamma / (1 - gamma) with
    soft_temperature = 1 / (1 - gamma) is ProductOfExperts(gamma). At w = 0, soft_temperature = 1 it is the teacher.
    """

    weight: float | Array = 1.0
    soft_temperature: float | Array = 1.0
    join: Aggregation = Aggregation()

    def check(self) -> None:
        check_range('CrossModelSoft.weight', self.weight)
        check_range('CrossModelSoft.soft_temperature', self.soft_temperature, 0.0, open_low=True)
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V = views.teacher_V + self.join(-self.weight * views.proxies_NV)
        scores_V = jnp.where(self.weight == 0, views.teacher_V, scores_V)
        return jnp.where(self.soft_temperature == 1, scores_V, scores_V / self.soft_temperature), state


@struct.dataclass
class CrossModelReweight(CrossModel):
    """p_T (1 - p_S)^alpha over the candidates. alpha >= 0; at 0 it is the teacher on the candidates."""

    alpha: float | Array = 1.0
    join: Aggregation = Aggregation()

    def check(self) -> None:
        check_range('CrossModelReweight.alpha', self.alpha, 0.0)
        self.join.check()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        # 2^-24 is the smallest gap below 1 in float32: p_S = 1 must not become log 0.
        log_complement_NV = jnp.log(jnp.maximum(-jnp.expm1(views.proxies_NV), 2.0**-24))
        scores_V = views.teacher_V + self.join(self.alpha * log_complement_NV)
        return jnp.where(self.alpha == 0, views.teacher_V, scores_V), state
