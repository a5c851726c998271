"""Where a rule plays: where the teacher is unsure, among tokens that it finds likely."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from adx import struct
from adx.defences.tilting import Wrapper
from adx.numerics import keep_mass, renormalise
from adx.types import Array, Defence, State, Views, check_range


@struct.dataclass
class EntropyGate(Wrapper):
    """`rule` where the teacher's entropy on the allowed set is at least `nats`, else the teacher's bits.

    nats: >= 0; at 0 the gate is open. An argmax rule may be gated: on or off is all it needs. A rule's state stands
    still where the gate is shut.
    """

    rule: Defence
    nats: float | Array = 0.5

    is_argmax = property(lambda self: self.rule.is_argmax)

    def check(self) -> None:
        self.rule.check()
        check_range('EntropyGate.nats', self.nats, 0.0)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V, after = self.rule.adjust(views, state)
        log_p_V = renormalise(views.teacher_V, views.allowed_V)
        # A sure teacher's entropy may round to just below 0.
        is_open = jnp.maximum(-jnp.sum(jnp.exp(log_p_V) * log_p_V), 0.0) >= self.nats
        state = jax.tree.map(lambda new, old: jnp.where(is_open, new, old), after, state)
        return jnp.where(is_open, scores_V, views.teacher_V), state


@struct.dataclass
class ProbabilityFloor(Wrapper):
    """`rule` among the tokens of p_T >= floor max p_T; the others keep the teacher's probability, as protected ones do.

    floor: [0, 1], relative to the likeliest token of the allowed set, which always plays; at 0 all tokens do. It stands
    outermost: a wrapper around it moves the others with the rest.
    """

    rule: Defence
    floor: float | Array = 0.01

    def check(self) -> None:
        super().check()
        check_range('ProbabilityFloor.floor', self.floor, 0.0, 1.0)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        log_p_V = renormalise(views.teacher_V, views.allowed_V)
        plays_V = views.allowed_V & (log_p_V >= jnp.max(log_p_V) + jnp.log(self.floor))
        mass = jnp.sum(jnp.where(plays_V, jnp.exp(log_p_V), 0.0))
        inner = dataclasses.replace(views, allowed_V=plays_V, open_mass=views.open_mass * mass)
        scores_V, state = self.rule.adjust(inner, state)
        unchanged = jnp.all((scores_V == views.teacher_V) | ~plays_V)
        played_V = keep_mass(renormalise(scores_V, plays_V), log_p_V, ~plays_V, mass)
        return jnp.where(unchanged, views.teacher_V, played_V), state
