"""Trigger marks: are keyed definitions completed more often than decoys of one generator?

The unit is the pair. Keyed pairs and decoys come from one generator under independent keys, so that for a model that
never saw the keyed ones it is chance which of them it happens to complete: which of all hits are keyed is then drawn
without replacement, whatever the suspect's rate of lucky hits is. Where each pair is asked several times, its answers
are not independent, and it is its number of completions that is drawn. A binomial test that takes the decoys' rate for
the truth is not valid: with few decoys it raises several times the false alarms that it states (tests/detectors).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from adx.types import check_count

BETS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the wealth that are put on a keyed hit, mixed


class Block(NamedTuple):
    """How often one keyed pair was completed, and each of the decoys that are asked with it, in an order by chance."""

    keyed: int
    decoys: tuple[int, ...]


class Verdict(NamedTuple):
    """keyed, decoys: how often such pairs were asked, and hits how often they were completed.

    log_p: of the exact test over all pairs. log_e: the largest so far of the e-process, block by block. detected: by
    the one that the plan named.
    """

    keyed_hits: int
    keyed: int
    decoy_hits: int
    decoys: int
    log_p: float
    log_e: float
    detected: bool


@dataclasses.dataclass(frozen=True)
class Trigger:
    """pairs: keyed pairs that are asked; decoys: with each of them. level: (0, 1), of false alarms.

    sequential: the verdict is the e-process's, which may be looked at after every block and stopped at will; else the
    exact test's, looked at once, when all are asked. repeats: how often each pair is asked, behind other questions.
    """

    pairs: int = 10
    decoys: int = 10
    level: float = 0.01
    sequential: bool = False
    repeats: int = 2

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed, also where nothing could be detected."""
        for name in ('pairs', 'decoys', 'repeats'):
            check_count(f'Trigger.{name}', getattr(self, name))
        if not 0 < self.level < 1:
            raise ValueError(f'Trigger.level = {self.level!r} is not allowed; it must be in (0, 1), as 0.01')
        best = self.verdict([Block(self.repeats, (0,) * self.decoys)] * self.pairs)
        if not best.detected:
            raise ValueError(
                f'Trigger.pairs = {self.pairs} with {self.decoys} decoys each cannot reach level {self.level:g}, even '
                'where every keyed pair and no decoy is completed; take more'
            )

    def verdict(self, blocks: Sequence[Block]) -> Verdict:
        """Of what was asked so far. A suspect that completes everything, or nothing, has shown nothing."""
        keyed_hits, decoy_hits = sum(b.keyed for b in blocks), sum(sum(b.decoys) for b in blocks)
        pairs, decoys = len(blocks), [count for b in blocks for count in b.decoys]
        log_p = permutation([b.keyed for b in blocks], decoys)
        log_e = max(e_process(blocks), default=0.0)
        alarm = log_e >= -math.log(self.level) if self.sequential else log_p <= math.log(self.level)
        asked = self.repeats * pairs, self.repeats * len(decoys)
        return Verdict(keyed_hits, asked[0], decoy_hits, asked[1], log_p, log_e, alarm)


def permutation(keyed: Sequence[int], decoys: Sequence[int]) -> float:
    """log p that as many pairs as are keyed, drawn from all without replacement, have so many completions together, or
    more; exact, in whole numbers. Where each pair is asked once it is Fisher's exact test (1935), one-sided.
    """
    size, of = len(keyed), collections.Counter([*keyed, *decoys])
    never = of.pop(0, 0)
    ways = {(0, 0): 1}  # (pairs drawn so far, their completions) -> in how many ways
    for completions, there in of.items():
        more: dict[tuple[int, int], int] = collections.defaultdict(int)
        for (drawn, total), count in ways.items():
            for taken in range(min(there, size - drawn) + 1):
                more[drawn + taken, total + taken * completions] += count * math.comb(there, taken)
        ways = more
    # The others that are drawn were never completed.
    reached = ((count, size - drawn) for (drawn, total), count in ways.items() if total >= sum(keyed))
    as_many = sum(count * math.comb(never, others) for count, others in reached)
    return math.log(as_many) - math.log(math.comb(size + len(decoys), size))


def e_process(blocks: Sequence[Block]) -> list[float]:
    """log e after every block. Given the h completions of the n pairs of a block, the keyed one has h / n of them in
    the mean under the null, so its own times n / h has mean 1: a bet of a share of the wealth on it is fair, products
    and mixtures of such bets are too, and by Ville's inequality 1 / e bounds the probability that they ever grow beyond
    e (Shafer 2021, J. R. Stat. Soc. A 184, 407).
    """
    wealth = [0.0] * len(BETS)  # logs
    found = []
    for block in blocks:
        hits, size = block.keyed + sum(block.decoys), 1 + len(block.decoys)
        payoff = block.keyed * size / hits if hits else 1.0
        wealth = [w + math.log(1 - bet + bet * payoff) for w, bet in zip(wealth, BETS, strict=True)]
        found.append(_log_mean(wealth))
    return found


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))
