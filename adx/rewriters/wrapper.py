"""What stands around another rewriter and chooses among its drafts."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from adx.drafts import Rewriter


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """To inherit from. rewriter: one that makes several drafts, or there is nothing to choose. tool: what the choice
    needs beside what that one does."""

    rewriter: Rewriter

    tool: ClassVar[str]

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.rewriter.needs, self.tool)

    @property
    def most(self) -> float:
        return getattr(self.rewriter, 'most', 1.0)

    def check(self) -> None:
        self.rewriter.check()
