"""A price in nats that no token, or no sequence, exceeds: what it buys is served."""

from __future__ import annotations

import jax.numpy as jnp

from adx import struct
from adx.defences.tilting import Wrapper, spend
from adx.types import Array, Defence, State, Views, check_range


@struct.dataclass
class Budget(Wrapper):
    """`rule`, its log-ratio to the teacher scaled down where a token would cost more than `nats`.

    nats: >= 0, KL(served || teacher) per token; 0 is the teacher. Met within 1 % wherever it binds, from 1e-4 nats
    on; below it the rule is untouched. In a Chain the KL is from the result of the rule before. Temperature 0 puts all
    mass on one token, at no price that could be stated: arms refuse it.
    """

    rule: Defence
    nats: float | Array = 0.1

    has_price = True

    def check(self) -> None:
        super().check()
        check_range('Budget.nats', self.nats, 0.0)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        scores_V, state = self.rule.adjust(views, state)
        scores_V, _ = spend(scores_V, views, jnp.float32(self.nats))
        return scores_V, state


@struct.dataclass
class Bank(Wrapper):
    """`rule` on an account of nats per sequence: a token costs at most the balance, as Budget scales it.

    capacity: >= 0, the balance at the start and at most. refill: >= 0, added after each token at which this plays: not
    in protected spans, nor where a gate around it is shut; gates inside `rule` stop nothing. After t such tokens at
    most capacity + refill (t - 1) nats are spent, to 1 %.
    nats: >= 0, the most that one token may cost; None leaves it to the balance.
    """

    rule: Defence
    capacity: float | Array = 5.0
    refill: float | Array = 0.05
    nats: float | Array | None = None

    has_price = True

    def check(self) -> None:
        super().check()
        check_range('Bank.capacity', self.capacity, 0.0)
        check_range('Bank.refill', self.refill, 0.0)
        if self.nats is not None:
            check_range('Bank.nats', self.nats, 0.0)

    def init(self) -> State:
        return self.rule.init(), jnp.float32(self.capacity)

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        inner, balance = state
        scores_V, inner = self.rule.adjust(views, inner)
        allowed = balance if self.nats is None else jnp.minimum(balance, self.nats)
        scores_V, cost = spend(scores_V, views, allowed)
        left = jnp.minimum(jnp.maximum(balance - cost, 0.0) + self.refill, self.capacity)
        return scores_V, (inner, left)
