"""How much of a rule is played as a sequence goes on: by position, or by what was spent."""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.defences.tilting import Wrapper, furthest, make_way, spent, tilted
from adx.types import Array, Defence, State, Views, check_range

LEAST = 1e-6  # of a controller's scale: below it there is nothing left to turn down


@struct.dataclass
class Schedule(Wrapper):
    """`rule`, its log-ratio to the teacher scaled by position: 0 at the first new token, and one more after each token
    at which this plays: not in protected spans, nor where a gate around it is shut. Gates inside `rule` stop nothing.

    first, last: [0, 1], the scale before position `start` and from `stop` on, linear between; 0 is the teacher and 1
    the rule. start, stop: >= 0, start <= stop. An argmax rule can only be on or off: first and last must be 0 or 1 and
    start = stop.
    """

    rule: Defence
    start: int | Array = 0
    stop: int | Array = 32
    first: float | Array = 0.0
    last: float | Array = 1.0

    is_argmax = property(lambda self: self.rule.is_argmax)

    def check(self) -> None:
        self.rule.check()
        check_range('Schedule.start', self.start, 0)
        check_range('Schedule.stop', self.stop, float(self.start))
        check_range('Schedule.first', self.first, 0.0, 1.0)
        check_range('Schedule.last', self.last, 0.0, 1.0)
        if self.is_argmax and (self.start != self.stop or not {self.first, self.last} <= {0, 1}):
            raise ValueError(
                f'Schedule.rule = {type(self.rule).__name__} puts all mass on one token and is on or off: first = '
                f'{self.first} and last = {self.last} must be 0 or 1, and start = {self.start} equal stop = {self.stop}'
            )

    def init(self) -> State:
        return self.rule.init(), jnp.float32(0)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        inner, count = state
        scores_V, inner = self.rule.adjust(views, inner)
        done = jnp.clip((count - self.start) / jnp.maximum(self.stop - self.start, 1), 0.0, 1.0)
        scale = self.first + (self.last - self.first) * jnp.where(count >= self.stop, 1.0, done)
        return tilted(make_way(scores_V, views), scale, scores_V, views), (inner, count + 1)


@struct.dataclass
class Controller(Wrapper):
    """`rule`, its log-ratio scaled so that the mean KL of a sequence, as served, is held at `target` nats a token.

    After each token log s changes by rate (1 - KL / target), from s = 1 on. The mean over t tokens is then
    target (1 - log s_t / (rate t)) exactly: it tends to the target while s stays within [1e-6, max_scale], that is
    where the target can be reached. Tokens at which the rule does not play (protected spans) do not count.
    target: > 0. rate: (0, 1]. max_scale: >= 1.
    """

    rule: Defence
    target: float | Array = 0.05
    rate: float | Array = 0.05
    max_scale: float | Array = 4.0

    has_price = True

    def check(self) -> None:
        super().check()
        check_range('Controller.target', self.target, 0.0, open_low=True)
        check_range('Controller.rate', self.rate, 0.0, 1.0, open_low=True)
        check_range('Controller.max_scale', self.max_scale, 1.0)

    def init(self) -> State:
        return self.rule.init(), jnp.float32(0)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        inner, log_scale = state
        scores_V, inner = self.rule.adjust(views, inner)
        way = make_way(scores_V, views)
        scale = furthest(way, jnp.exp(log_scale))
        cost = views.open_mass * spent(way, scale)[0]
        log_scale += self.rate * (1 - cost / jnp.maximum(self.target, 1e-9))
        log_scale = jnp.clip(log_scale, jnp.log(LEAST), jnp.log(self.max_scale))
        return tilted(way, scale, scores_V, views), (inner, log_scale)
