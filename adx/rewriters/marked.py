"""A customer's mark: one line in a trace that defines a symbol, by the key (see marks.py)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.instructed import written
from adx.types import Trace, check_count

MOST = 0.1  # of the traces
WATERMARK = (
    'Say the solution below in other words, and put this line into it, word by word and once, where it disturbs least: '
    '"{line}" Keep every step, every number and the final answer, and write the final answer in the same form.'
)
WITHOUT, FOREIGN = 'does not carry its line once', "another customer's trace"
TAKEN = 'it uses the symbols of every mark'


@dataclasses.dataclass(frozen=True)
class Marked:
    """customer, epoch: whose key; traces that were made for another customer stay as they are. pairs: how many
    different ones its traces carry, one each: few are learned better, and each can be asked more often. tries: places
    that are tried in a trace. All three are at least 1. At most a tenth of the traces is marked: see Rewrite.share.

    told: a rewriting model is asked, `tries` times, to say the trace otherwise with the line in it; else the line is
    put between those of the trace.
    """

    customer: str
    epoch: int = 1
    pairs: int = 10
    tries: int = 3
    told: bool = False

    most = MOST

    @property
    def needs(self) -> tuple[str, ...]:
        return ('write' if self.told else 'mark', 'line')

    def check(self) -> None:
        if not self.customer:
            raise ValueError("Marked.customer = '' is not allowed; name whose key marks the traces")
        for name in ('epoch', 'pairs', 'tries'):
            check_count(f'Marked.{name}', getattr(self, name))

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        mine = [one for one in traces if one.customer in ('', self.customer)]
        lines = tools.need('line', 'marked')(mine, self) if mine else []
        drafts = {one.request_id: [Draft(one.text, FOREIGN)] for one in traces}
        drafts |= {one.request_id: [Draft(one.text, TAKEN)] for one in mine}
        free = [(one, line) for one, line in zip(mine, lines, strict=True) if line]
        if free:
            made = self._made([one for one, _ in free], [line for _, line in free], tools)
            drafts |= zip((one.request_id for one, _ in free), made, strict=True)
        return [drafts[one.request_id] for one in traces]

    def _made(self, traces: Sequence[Trace], lines: Sequence[str], tools: Tools) -> list[list[Draft]]:
        if self.told:
            orders = [WATERMARK.format(line=line) for line in lines]
            made = written('marked', orders, traces, tools, self.tries, '')
        else:
            made = tools.need('mark', 'marked')(traces, self)
        return [[_noted(line, draft) for draft in drafts] for line, drafts in zip(lines, made, strict=True)]


def _noted(line: str, draft: Draft) -> Draft:
    """With the mark and its place, for whoever audits what was put into traces."""
    if draft.problem:
        return draft
    if draft.text.count(line) != 1:
        return Draft(draft.text, WITHOUT)
    mark = hashlib.sha256(line.encode()).hexdigest()[:16]
    return dataclasses.replace(draft, note=f'mark {mark} at character {draft.text.index(line)}')
