"""A dataset's own writer tells the solution otherwise: what a perfect rewriter could do on a testbed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.lessons import question
from adx.types import Trace, check_range


@dataclasses.dataclass(frozen=True)
class Rendered:
    """tries: how many other tellings are drawn. What the writer cannot read has none."""

    tries: int = 2

    needs = ('render',)

    def check(self) -> None:
        check_range('Rendered.tries', self.tries, 1)

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        render = tools.need('render', 'rendered')
        return [[Draft(text) for text in render(question(one.messages), one.text, self.tries)] for one in traces]
