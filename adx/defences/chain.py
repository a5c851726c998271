"""Several rules one after another."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from adx import struct
from adx.numerics import renormalise
from adx.types import Array, Defence, State, Views


@struct.dataclass
class Chain:
    """Each rule sees the result of the one before it in the teacher's place. A chain of one is that rule.

    An argmax rule leaves nothing to adjust and may only stand last.
    """

    rules: tuple[Defence, ...]

    wants_proxies = property(lambda self: any(rule.wants_proxies for rule in self.rules))
    wants_tangents = property(lambda self: any(rule.wants_tangents for rule in self.rules))
    is_argmax = property(lambda self: self.rules[-1].is_argmax)

    def check(self) -> None:
        if not self.rules:
            raise ValueError('Chain.rules is empty; it needs at least one rule')
        for i, rule in enumerate(self.rules):
            rule.check()
            if rule.is_argmax and i + 1 < len(self.rules):
                raise ValueError(f'Chain.rules[{i}] = {type(rule).__name__} is an argmax rule; it may only stand last')

    def init(self) -> State:
        return tuple(rule.init() for rule in self.rules)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        states, scores_V = [], views.teacher_V
        for i, (rule, old) in enumerate(zip(self.rules, state, strict=True)):
            if i:
                # A rule that changed nothing hands on the very bits it was given, so that strength 0 stays exact.
                unchanged = jnp.all((scores_V == views.teacher_V) | ~views.allowed_V)
                result_V = renormalise(scores_V, views.allowed_V)
                views = dataclasses.replace(views, teacher_V=jnp.where(unchanged, views.teacher_V, result_V))
            scores_V, new = rule.adjust(views, old)
            states.append(new)
        return scores_V, tuple(states)
