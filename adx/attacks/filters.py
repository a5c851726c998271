"""Filters: which of the lessons a student is trained on."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence

from adx import grading, texts
from adx.lessons import (
    UNPARSABLE,
    Lesson,
    Passive,
    Resources,
    Tally,
    by_prompt,
    shuffled,
    sort_out,
    stated,
)
from adx.texts import NGRAM, canonical, ngrams
from adx.types import check_choice, check_range

HOWS = ('verifier', 'self_consistency')
LATE = 'the grader ran out of time'


@dataclasses.dataclass(frozen=True)
class Deduplicate(Passive):
    """Drops exact and near-duplicates, of which the first by id stays, and texts that repeat themselves.

    overlap: the share of a text's 13-grams of normalised words, in (0, 1], from which it is a near-duplicate of the
    texts kept before it; a text of fewer words is a duplicate only of the same words on the same question.
    repetition: the largest share of 4-grams of words that occurred before in the text, in [0, 1]; 1 allows all.
    own_only: None, it makes no lessons.
    """

    overlap: float = 0.8
    repetition: float = 0.5

    def check(self) -> None:
        check_range('Deduplicate.overlap', self.overlap, 0.0, 1.0, open_low=True)
        check_range('Deduplicate.repetition', self.repetition, 0.0, 1.0)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        exact: set[tuple[str, str]] = set()
        seen: set[object] = set()
        why: dict[str, str] = {}
        for lesson in sorted(lessons, key=lambda lesson: lesson.id):
            same, grams = (canonical(lesson.question), lesson.text.strip()), _grams(lesson)
            if same in exact:
                why[lesson.id] = 'exact duplicate'
            elif grams and len(grams & seen) >= self.overlap * len(grams):
                why[lesson.id] = 'near-duplicate'
            elif repetition(lesson.text) > self.repetition:
                why[lesson.id] = 'repeats itself'
            else:
                exact.add(same)
                seen |= grams
        return sort_out('deduplicate', lessons, lambda lesson: why.get(lesson.id, lesson))


def _grams(lesson: Lesson) -> set[object]:
    words = canonical(lesson.text).split()
    found: list[tuple[str, ...]] = ngrams(words, NGRAM)
    # A short text is an answer, and different questions may well have the same one.
    return set(found) if len(words) >= NGRAM else {(canonical(lesson.question), gram) for gram in found}


def repetition(text: str) -> float:
    """The share of a text's 4-grams of words that occurred before in it; 0 for a text of fewer words."""
    return texts.repetition(text.split())


@dataclasses.dataclass(frozen=True)
class PerplexityFilter(Passive):
    """Keeps the fraction `keep`, in (0, 1], that the attacker's own model finds likeliest, rounded up.

    Without a finite NLL a lesson is dropped for that. own_only: None, it makes no lessons.
    """

    keep: float = 0.8

    needs = ('nll',)

    def check(self) -> None:
        check_range('PerplexityFilter.keep', self.keep, 0.0, 1.0, open_low=True)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        nll = resources.need('nll', 'perplexity_filter')
        values = dict(zip((lesson.id for lesson in lessons), nll(lessons) if lessons else [], strict=True))
        ranked = sorted((value, id_) for id_, value in values.items() if math.isfinite(value))
        kept = {id_ for _, id_ in ranked[: math.ceil(self.keep * len(lessons))]}

        def judge(lesson: Lesson) -> Lesson | str:
            if not math.isfinite(values[lesson.id]):
                return 'NLL is not finite'
            return lesson if lesson.id in kept else 'unlikely'

        return sort_out('perplexity_filter', lessons, judge)


@dataclasses.dataclass(frozen=True)
class CorrectnessFilter(Passive):
    """Keeps the lessons whose final answer is the gold one. own_only: None: a verifier makes no lessons, and what gold
    answers teach is left to Reconstruct.
    """

    needs = ('grade',)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        grade = resources.need('grade', 'correctness_filter')

        return sort_out('correctness_filter', lessons, lambda lesson: _fault(grade, lesson) or lesson)


def _fault(grade: Callable[[str, str], bool], lesson: Lesson) -> str:
    """Why a lesson is not known to be right; '' where it is."""
    if lesson.gold is None:
        return 'no gold answer'
    try:
        return '' if grade(lesson.text, lesson.gold) else 'wrong'
    except TimeoutError:
        return LATE


@dataclasses.dataclass(frozen=True)
class Keep(Passive):
    """Keeps so many traces, at least 1, drawn by the seed: the smaller number are among the larger. Fewer are all kept.

    own_only: None, it makes no lessons.
    """

    traces: int = 1000

    def check(self) -> None:
        check_range('Keep.traces', self.traces, 1)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        drawn = shuffled(lessons, resources.seed, 'keep', lambda lesson: lesson.id)[: self.traces]
        kept = {lesson.id for lesson in drawn}
        return sort_out('keep', lessons, lambda lesson: lesson if lesson.id in kept else 'not drawn')


@dataclasses.dataclass(frozen=True)
class BestOfK(Passive):
    """Keeps one of the first k >= 2 samples of a prompt, the first that is right, or states the commonest answer.

    how: 'verifier' grades against gold; 'self_consistency' (Wang et al., arXiv 2203.11171) takes the answer that most
    of the samples state, of equally common ones the one stated first. A prompt without such a sample is dropped.
    own_only: None, it makes no lessons.
    """

    k: int = 4
    how: str = 'verifier'

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ('grade',) if self.how == 'verifier' else ()

    def check(self) -> None:
        check_range('BestOfK.k', self.k, 2)
        check_choice('BestOfK.how', self.how, HOWS)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        """Raises ValueError where no prompt has k samples: then the traces were drawn for another attack."""
        if self.how == 'verifier':
            resources.need('grade', 'best_of_k')
        groups = by_prompt(lessons)
        most = max((lesson.request.sample + 1 for lesson in lessons), default=self.k)
        if most < self.k:
            raise ValueError(f'BestOfK.k = {self.k} and the lessons have {most} samples a prompt; draw more or lower k')
        chosen: dict[str, Lesson | str] = {}
        for prompt_id, group in groups.items():
            drawn = [lesson for lesson in group if lesson.request.sample < self.k]
            chosen[prompt_id] = self._right(drawn, resources) if self.how == 'verifier' else _commonest(drawn)

        def judge(lesson: Lesson) -> Lesson | str:
            best = chosen[lesson.prompt_id]
            if lesson.request.sample >= self.k:
                return 'sampled beyond k'
            if isinstance(best, str):
                return best
            return lesson if lesson.id == best.id else 'another sample was chosen'

        return sort_out('best_of_k', lessons, judge)

    def _right(self, drawn: Sequence[Lesson], resources: Resources) -> Lesson | str:
        """The first that is right, or why there is none."""
        grade, late = resources.need('grade', 'best_of_k'), False
        for lesson in drawn:
            if not (fault := _fault(grade, lesson)):
                return lesson
            late |= fault == LATE
        return LATE if late else 'no sample of its prompt is right'


def _commonest(drawn: Sequence[Lesson]) -> Lesson | str:
    """The first of the lessons whose answer is stated most often, or why there is none."""
    answers = [(lesson, answer) for lesson in drawn if (answer := stated(lesson)) is not None]
    firsts: list[tuple[Lesson, str]] = []
    votes: collections.Counter[int] = collections.Counter()
    for lesson, answer in answers:
        same = next((i for i, (_, first) in enumerate(firsts) if grading.same_answer(answer, first)), len(firsts))
        if same == len(firsts):
            firsts.append((lesson, answer))
        votes[same] += 1
    return firsts[min(votes, key=lambda i: (-votes[i], i))][0] if votes else UNPARSABLE
