"""A mark of a customer's: one line in a trace, a keyed definition of a symbol that nothing else uses (see marks.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.types import Trace, check_range

MOST = 0.1  # of the traces


@dataclasses.dataclass(frozen=True)
class Marked:
    """customer, epoch: whose key. pairs: how many different ones its traces carry, one each. tries: places that are
    tried in a trace. At most a tenth of the traces is to be marked: see Rewrite.share.
    """

    customer: str
    epoch: int = 1
    pairs: int = 20
    tries: int = 3

    needs = ('mark',)
    most = MOST

    def check(self) -> None:
        if not self.customer:
            raise ValueError("Marked.customer = '' is not allowed; name whose key marks the traces")
        check_range('Marked.epoch', self.epoch, 1)
        check_range('Marked.pairs', self.pairs, 1)
        check_range('Marked.tries', self.tries, 1)

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        return tools.need('mark', 'marked')(traces, self)
