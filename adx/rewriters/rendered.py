"""A dataset's own writer tells the solution otherwise: a testbed's perfect rewriter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.lessons import question
from adx.types import Trace, check_count


@dataclasses.dataclass(frozen=True)
class Rendered:
    """tries: >= 1, how many other tellings are drawn. What the writer cannot read has none.

    voice: the name of one that the writer has; '' lets it draw.
    """

    tries: int = 2
    voice: str = ''

    needs = ('render',)

    def check(self) -> None:
        check_count('Rendered.tries', self.tries)

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        render = tools.need('render', 'rendered')
        asked = [(question(one.messages), one.text, self.tries, self.voice) for one in traces]
        return [[Draft(text) for text in render(*each)] for each in asked]
