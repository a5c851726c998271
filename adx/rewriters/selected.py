"""Of several rewrites, and the trace itself, the one that harms the proxies most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from adx.drafts import Draft, Tools
from adx.rewriters.wrapper import Wrapper
from adx.types import Trace

MILD, UNREAD = 'harms the proxies no more than the trace', "longer than a proxy's window"


@dataclasses.dataclass(frozen=True)
class Selected(Wrapper):
    """The drafts of `rewriter` in the order of their exact harm; those that harm no more than the trace are disowned.

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
    """scores: of the trace itself, then of the drafts, nan where no proxy can read it. Equal ones stay in order."""
    own, *others = scores
    pairs = list(zip(others, drafts, strict=True))
    better = sorted((pair for pair in pairs if pair[0] > own), key=lambda pair: -pair[0])
    disowned = [
        Draft(draft.text, UNREAD if math.isnan(score) or math.isnan(own) else MILD)
        for score, draft in pairs if not score > own
    ]  # fmt: skip
    return [*(draft for _, draft in better), *disowned]
