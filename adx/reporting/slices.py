"""Slices: groups of prompts of one kind, in which a mean may hide a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adx.errors import InputError

SHOWN = 60  # slices in a message
LEAST = 20  # prompts of a slice; fewer say nothing
FEW = f'not run: fewer than {LEAST} prompts are there'
Slices = Mapping[str, Sequence[str]]  # name -> one label a prompt
Pair = tuple[Sequence[bool], Sequence[bool]]  # right without and with a defence, one bool a prompt


class Worst(NamedTuple):
    """The slice that loses most: 'name=label', of how many, and its losses in points, one a pair."""

    label: str
    of: int
    losses: list[float]

    @property
    def reason(self) -> str:
        return f'the worst of {self.of} slices: {self.label}'


def worst_slice(slices: Sequence[Slices], pairs: Sequence[Pair]) -> Worst | None:
    """pairs: (right without, right with a defence), one bool a prompt, one pair a seed, whose prompts have the `slices`
    of that seed; None without a slice.
    """
    found = []
    for name, label in sorted({(name, label) for of in slices for name, labels in of.items() for label in labels}):
        mine = [np.array([one == label for one in of[name]]) for of in slices]
        if min(one.sum() for one in mine) >= LEAST:
            found.append((f'{name}={label}', _losses(mine, pairs)))
    if not found:
        return None
    label, losses = max(found, key=lambda one: (float(np.mean(one[1])), one[0]))
    return Worst(label, len(found), losses)


def halves(slices: Sequence[Slices], only: Sequence[str], pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """'inside' the slices 'name=label' and 'outside' of them -> the losses in points, one a pair, see `worst_slice`;
    none for a half with too few prompts. Neither half where `only` is empty.
    """
    if not only:
        return {}
    mine = [
        np.any([[f'{name}={label}' in only for label in labels] for name, labels in of.items()], axis=0)
        for of in slices
    ]
    return {
        name: _losses(half, pairs) if min(one.sum() for one in half) >= LEAST else []
        for name, half in (('inside', mine), ('outside', [~one for one in mine]))
    }


def _losses(mine: Sequence[np.ndarray], pairs: Sequence[Pair]) -> list[float]:
    gaps = [np.asarray(clean, float) - np.asarray(defended, float) for clean, defended in pairs]
    return [100 * float(gap[own].mean()) for own, gap in zip(mine, gaps, strict=True)]


def inside(dataset: object, questions: Sequence[str], only: Sequence[str]) -> list[bool]:
    """Whether each question is in one of the slices 'name=label', of the dataset's own; all are where there are none.

    Raises InputError where no question is in one of them, which a wrong name or label is the reason of.
    """
    if not only:
        return [True] * len(questions)
    own: Callable[[str], dict[str, str]] = getattr(dataset, 'slices', lambda question: {})
    labels = [{f'{name}={label}' for name, label in own(question).items()} for question in questions]
    known = sorted(set().union(*labels))
    if empty := [one for one in only if one not in known]:
        shown = f'{", ".join(known[:SHOWN])}{", ..." if len(known) > SHOWN else ""}' or 'none'
        raise InputError(f'no question is in {empty}; the slices are {shown}')
    return [bool(mine & set(only)) for mine in labels]


def label_prompts(dataset: object, questions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The slices of prompts: thirds by length, and what the dataset's own `slices(question)` says."""
    sizes = [len(question) for question in questions]
    short, long = np.quantile(sizes, [1 / 3, 2 / 3], method='inverted_cdf') if sizes else (0, 0)
    found = {'length': tuple('short' if n <= short else 'middle' if n <= long else 'long' for n in sizes)}
    own = getattr(dataset, 'slices', None)
    labelled = [own(question) for question in questions] if own else []
    return found | {name: tuple(one[name] for one in labelled) for name in (labelled[0] if labelled else ())}
