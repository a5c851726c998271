"""Two rules at one price: what a comparison of a defence with its control needs."""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.defences.tilting import Wrapper, furthest, make_way, solve_scale, spent, tilted
from adx.types import Array, Defence, State, Views, check_range


@struct.dataclass
class EqualKl(Wrapper):
    """`rule`, its log-ratio scaled so that every token costs what it costs under `reference`.

    EqualKl(Permutation(rule), rule) is the control of `rule` that spends the same. max_scale: >= 1, the scale at most;
    where even that, or all mass on one token, costs less than the reference, the token falls short of it.
    """

    rule: Defence
    reference: Defence
    max_scale: float | Array = 8.0

    has_price = True
    wants_tangents = property(lambda self: self.rule.wants_tangents or self.reference.wants_tangents)
    wants_proxies = property(lambda self: self.rule.wants_proxies or self.reference.wants_proxies)

    def check(self) -> None:
        super().check()
        self.reference.check()
        if self.reference.is_argmax:
            name = type(self.reference).__name__
            raise ValueError(f'EqualKl.reference = {name} puts all mass on one token; it must be a rule that samples')
        check_range('EqualKl.max_scale', self.max_scale, 1.0)

    def init(self) -> State:
        return self.rule.init(), self.reference.init()

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V, inner = self.rule.adjust(views, state[0])
        reference_V, other = self.reference.adjust(views, state[1])
        asked = make_way(reference_V, views)
        nats = jnp.where(asked.square > 0, spent(asked, jnp.float32(1))[0], 0.0)  # rounding alone costs nothing
        way = make_way(scores_V, views)
        scale, _ = solve_scale(way, nats, furthest(way, jnp.float32(self.max_scale)))
        return tilted(way, scale, scores_V, views), (inner, other)
