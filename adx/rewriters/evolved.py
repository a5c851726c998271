"""A language model is told what a search has found to be best (arXiv 2602.15143, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.instructed import Instructed
from adx.types import Trace


@dataclasses.dataclass(frozen=True)
class Evolved:
    """As `Instructed`, by the best instruction that `tools.evolve` has found in the run's workdir."""

    tries: int = 2
    arm: str = ''

    needs = ('write', 'instruction')

    def check(self) -> None:
        Instructed(tries=self.tries).check()

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        words = tools.need('instruction', 'evolved')()
        return Instructed(words, self.tries, self.arm).drafts(traces, tools)
