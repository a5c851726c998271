"""Against marks: lines that look like those of a customer's key are taken out of lessons."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from adx.lessons import Lesson, Passive, Resources, Tally, check_text, sort_out
from adx.types import check_range

FORGED = 2000  # lines that the attacker makes by the algorithm, half of them to set the threshold by
GRAM = 3  # characters

Score = Callable[[str], float]  # of a line: how much more it looks like a mark than like the others, in nats a gram


@dataclasses.dataclass(frozen=True)
class StripLines(Passive):
    """Takes out every line that the regular expression matches from end to end.

    own_only: None, it makes no lessons.
    """

    pattern: str = r'(Let|let|we know) .*[=:] \d+\.?'

    def check(self) -> None:
        check_text('StripLines.pattern', self.pattern)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f'StripLines.pattern = {self.pattern!r} is no regular expression: {error}') from error

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        marked = re.compile(self.pattern)
        return _without('strip_lines', lessons, lambda line: marked.fullmatch(line.strip()) is not None)


@dataclasses.dataclass(frozen=True)
class FilterLines(Passive):
    """Takes out what a detector finds that the attacker trained: it knows how marks are made, and has no key.

    The detector compares the characters of a line with those of lines that the attacker forges by keys of its own and
    of the lessons' lines. caught: (0, 1], the share of other forged lines that its threshold lets it find.
    own_only: None, it makes no lessons.
    """

    caught: float = 0.95

    needs = ('forge',)

    def check(self) -> None:
        check_range('FilterLines.caught', self.caught, 0.0, 1.0, open_low=True)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        forged = forge_lines(resources)
        if not lessons:
            return sort_out('filter_lines', lessons, lambda lesson: lesson)
        score = learn(forged[::2], lines_of(lessons))
        least = float(np.quantile([score(line) for line in forged[1::2]], 1.0 - self.caught))
        return _without('filter_lines', lessons, lambda line: score(line) >= least)


def forge_lines(resources: Resources) -> list[str]:
    """Lines of marks by keys that the attacker drew."""
    forge, draw = resources.need('forge', 'filter_lines'), random.Random(f'filter_lines/{resources.seed}')
    return [forge(draw).line for _ in range(FORGED)]


def lines_of(lessons: Iterable[Lesson]) -> list[str]:
    """Every line once, in an order of their own."""
    return sorted({line for lesson in lessons for line in lesson.text.splitlines() if line.strip()})


def learn(forged: Sequence[str], others: Sequence[str]) -> Score:
    """Naive Bayes on the GRAMs of characters: the mean log-ratio of their smoothed frequencies in a line."""
    counts = [collections.Counter(gram for line in lines for gram in _grams(line)) for lines in (forged, others)]
    known = len(set(counts[0]) | set(counts[1])) + 1
    totals = [sum(count.values()) + known for count in counts]

    def score(line: str) -> float:
        grams = _grams(line)
        logs = (
            math.log((counts[0][gram] + 1) / totals[0]) - math.log((counts[1][gram] + 1) / totals[1]) for gram in grams
        )
        return sum(logs) / len(grams)

    return score


def _grams(line: str) -> list[str]:
    """Of the line with a border at each end, digits as one character: which number it is tells nothing."""
    text = f'\n{re.sub(r"[0-9]", "0", line.strip())}\n'
    return [text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))]


def _without(step: str, lessons: Sequence[Lesson], is_mark: Callable[[str], bool]) -> tuple[list[Lesson], Tally]:
    def judge(lesson: Lesson) -> Lesson:
        lines = lesson.text.splitlines(keepends=True)
        return lesson.rewritten(''.join(line for line in lines if not line.strip() or not is_mark(line)))

    return sort_out(step, lessons, judge)
