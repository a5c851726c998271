"""Traces as padded rows of token ids: what losses, gradients and scores of completions are computed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

SHORTEST = 64  # tokens of the shortest batch; the others double it, so that programs are few


class Example(NamedTuple):
    """A trace as a proxy reads it: the ids of its prompt and of its completion, as the engine had them."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Batch(NamedTuple):
    """Right-padded rows, NumPy arrays until they are placed on the devices; targets are the completions' tokens."""

    tokens_BL: Any
    targets_BL: Any


def batches(examples: Iterable[Example], rows: int) -> list[tuple[list[Example], Batch]]:
    """All examples in batches of `rows`, with what is in each, ordered by padded length and id.

    What is missing in the last batch of a length are rows without targets.
    """
    by_length: dict[int, list[Example]] = {}
    for example in sorted(examples):
        size = max(SHORTEST, len(example.prompt) + len(example.completion))
        by_length.setdefault(1 << (size - 1).bit_length(), []).append(example)
    return [
        (group[i : i + rows], _pad(group[i : i + rows], rows, length))
        for length, group in sorted(by_length.items())
        for i in range(0, len(group), rows)
    ]


def _pad(examples: Sequence[Example], rows: int, length: int) -> Batch:
    batch = Batch(np.zeros((rows, length), np.int32), np.zeros((rows, length), bool))
    for row, (_, prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        batch.tokens_BL[row, :end] = (*prompt, *completion)
        batch.targets_BL[row, len(prompt) : end] = True
    return batch
