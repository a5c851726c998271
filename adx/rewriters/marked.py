"""A mark of a customer's: one line in a trace, a keyed definition of a symbol that nothing else uses (see marks.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.instructed import told
from adx.types import Trace, check_range

MOST = 0.1  # of the traces
WATERMARK = (
    'Say the solution below in other words, and put this line into it, word by word and once, where it disturbs least: '
    '"{line}" Keep every step, every number and the final answer, and write the final answer in the same form.'
)
WITHOUT = 'does not carry its line once'


@dataclasses.dataclass(frozen=True)
class Marked:
    """customer, epoch: whose key. pairs: how many different ones its traces carry, one each. tries: places that are
    tried in a trace. At most a tenth of the traces is to be marked: see Rewrite.share.

    told: a rewriting model is asked, `tries` times, to say the trace otherwise with the line in it; else the line is
    put between those of the trace.
    """

    customer: str
    epoch: int = 1
    pairs: int = 20
    tries: int = 3
    told: bool = False

    most = MOST

    @property
    def needs(self) -> tuple[str, ...]:
        return ('line', 'write') if self.told else ('mark',)

    def check(self) -> None:
        if not self.customer:
            raise ValueError("Marked.customer = '' is not allowed; name whose key marks the traces")
        check_range('Marked.epoch', self.epoch, 1)
        check_range('Marked.pairs', self.pairs, 1)
        check_range('Marked.tries', self.tries, 1)

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        if not self.told:
            return tools.need('mark', 'marked')(traces, self)
        lines = tools.need('line', 'marked')(traces, self)
        asked = [told(WATERMARK.format(line=line), one) for line, one in zip(lines, traces, strict=True)]
        written = tools.need('write', 'marked')(asked, self.tries, '')
        return [
            [draft if draft.problem or draft.text.count(line) == 1 else Draft(draft.text, WITHOUT) for draft in drafts]
            for line, drafts in zip(lines, written, strict=True)
        ]
