"""Slices: groups of prompts of one kind, in which a mean may hide a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEAST = 20  # prompts of a slice; fewer say nothing
Slices = Mapping[str, Sequence[str]]  # name -> one label a prompt


class Worst(NamedTuple):
    """The slice that loses most: 'name=label', of how many, and its losses in points, one a pair."""

    label: str
    of: int
    losses: list[float]

    @property
    def reason(self) -> str:
        return f'the worst of {self.of} slices: {self.label}'


def worst_slice(slices: Slices, pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Worst | None:
    """pairs: (right without, right with a defence), one bool a prompt, one pair a seed; None without a slice."""
    found = []
    for name, labels in slices.items():
        for label in sorted(set(labels)):
            inside = np.array([one == label for one in labels])
            if inside.sum() >= LEAST:
                gaps = [np.asarray(clean, float) - np.asarray(defended, float) for clean, defended in pairs]
                found.append((f'{name}={label}', [100 * float(gap[inside].mean()) for gap in gaps]))
    if not found:
        return None
    label, losses = max(found, key=lambda one: (float(np.mean(one[1])), one[0]))
    return Worst(label, len(found), losses)


def label_prompts(dataset: object, questions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The slices of prompts: thirds by length, and what the dataset's own `slices(question)` says."""
    sizes = [len(question) for question in questions]
    short, long = np.quantile(sizes, [1 / 3, 2 / 3], method='inverted_cdf') if sizes else (0, 0)
    found = {'length': tuple('short' if n <= short else 'middle' if n <= long else 'long' for n in sizes)}
    own = getattr(dataset, 'slices', None)
    labelled = [own(question) for question in questions] if own else []
    return found | {name: tuple(one[name] for one in labelled) for name in (labelled[0] if labelled else ())}
