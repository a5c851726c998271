"""When two texts are the same, how far apart they are, what they share, how they repeat."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

NGRAM = 13  # words of a passage that two texts do not share by chance
GRAM = 4  # words or tokens whose return is repetition


def normalise(text: str) -> str:
    """NFKC, case folded, every run of characters that are no letter or digit made one space."""
    return ' '.join(re.findall(r'[^\W_]+', unicodedata.normalize('NFKC', text).casefold()))


def canonical(text: str) -> str:
    """The normalised text; a text without letters or digits would normalise to nothing and stays as it is."""
    return normalise(text) or text


def ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Every run of `size` words in order; of fewer words the one run that they are, of none nothing."""
    return [tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))] if words else []


def repetition(items: Sequence[Any]) -> float:
    """The share of 4-grams of words or tokens that occurred before among them; 0 where there are fewer items."""
    grams = [tuple(items[i : i + GRAM]) for i in range(len(items) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def edit_distance(before: Sequence[Any], after: Sequence[Any]) -> int:
    """The fewest items to put in, take out or replace that make one of the other (Levenshtein, 1966)."""
    ids = {item: i for i, item in enumerate(dict.fromkeys([*before, *after]))}
    theirs = np.array([ids[item] for item in after], np.int64)
    put_in = np.arange(len(after) + 1)
    row = put_in
    for i, item in enumerate(before, 1):
        taken_out_or_replaced = np.minimum(row[1:] + 1, row[:-1] + (theirs != ids[item]))
        row = np.minimum.accumulate(np.concatenate([[i], taken_out_or_replaced]) - put_in) + put_in
    return int(row[-1])
