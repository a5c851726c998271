"""Of several rewrites, and the trace itself, the one that harms the proxies most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.wrapper import Wrapper
from adx.types import Trace


@dataclasses.dataclass(frozen=True)
class Selected(Wrapper):
    """The drafts of `rewriter` in the order of their exact harm; those below the trace's own harm are no drafts.

    harm: of the whole text, see influence.Harm.
    """

    tool = 'harm'

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        harm = tools.need('harm', 'selected')
        proposed = self.rewriter.drafts(traces, tools)
        sound = [[draft for draft in drafts if not draft.problem] for drafts in proposed]
        texts = [[one.text, *(draft.text for draft in drafts)] for one, drafts in zip(traces, sound, strict=True)]
        scores = harm(traces, texts)
        return [
            [*_ranked(mine, of), *(draft for draft in drafts if draft.problem)]
            for mine, of, drafts in zip(sound, scores, proposed, strict=True)
        ]


def _ranked(drafts: Sequence[Draft], scores: Sequence[float]) -> list[Draft]:
    """scores: of the trace itself, then of the drafts. Equal ones stay in their order."""
    own, *others = scores
    better = [(score, draft) for score, draft in zip(others, drafts, strict=True) if score > own]
    return [draft for _, draft in sorted(better, key=lambda pair: -pair[0])]
