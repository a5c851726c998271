"""The control of another rewrite: as much changed, and as long, for no reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.wrapper import Wrapper
from adx.texts import edit_distance
from adx.types import Trace

LEFT = 'stays as in the rewrite that it is to match'


@dataclasses.dataclass(frozen=True)
class Matched(Wrapper):
    """The drafts of `rewriter` in the order of how near each is, in distance from the trace and in length, to what the
    rewrite `like` made of the trace; that text itself is none of them, and a trace that it left stays.

    Both are counted in words, and what they are off is added. like: the name of an earlier rewrite of the same traces.
    """

    like: str

    tool = 'like'

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        texts = tools.need('like', 'matched')(traces, self.like)
        changed = [one for one, text in zip(traces, texts, strict=True) if text != one.text]
        proposed = dict(zip((one.request_id for one in changed), self.rewriter.drafts(changed, tools), strict=True))
        return [
            _nearest(one.text, text, proposed[one.request_id])
            if one.request_id in proposed
            else [Draft(one.text, LEFT)]
            for one, text in zip(traces, texts, strict=True)
        ]


def _nearest(own: str, like: str, drafts: Sequence[Draft]) -> list[Draft]:
    """Equal ones stay in their order; what the rewriter disowns comes last."""
    words = own.split()

    def sizes(text: str) -> tuple[int, int]:
        return edit_distance(words, text.split()), len(text.split())

    distance, length = sizes(like)

    def off(draft: Draft) -> tuple[bool, int]:
        mine = sizes(draft.text)
        return bool(draft.problem), abs(mine[0] - distance) + abs(mine[1] - length)

    return sorted((draft for draft in drafts if draft.text != like), key=off)
