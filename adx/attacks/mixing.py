"""Mixing: whose lessons a student gets, with which weights, and to which prompts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from adx import grading
from adx.lessons import Lesson, Passive, Resources, Tally, by_prompt, shuffled, sort_out, stated
from adx.types import Prompt, check_choice, check_range

HOWS = ('aligned', 'opposed', 'random')
ROUNDING = 1e-12  # of scores relative to the largest: a smaller spread is none


@dataclasses.dataclass(frozen=True)
class MixClean(Passive):
    """Takes the place of the lessons on some prompts by those of the undefended teacher, and adds what had none.

    fraction: of the prompts of resources.clean, in (0, 1], drawn by seed and prompt: the same subset whatever the
    lessons are. own_only: that subset alone.
    """

    fraction: float = 0.25

    needs = ('clean',)

    def check(self) -> None:
        check_range('MixClean.fraction', self.fraction, 0.0, 1.0, open_low=True)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        clean = self.subset(resources)
        prompts = {lesson.prompt_id for lesson in clean}
        kept, tally = sort_out(
            'mix_clean', lessons, lambda x: 'a clean one took its place' if x.prompt_id in prompts else x
        )
        added = {'clean': len(clean)} if clean else {}
        return [*kept, *clean], dataclasses.replace(tally, added=added)

    def own_only(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Lesson] | None:
        return self.subset(resources) or None

    def subset(self, resources: Resources) -> list[Lesson]:
        """All clean lessons of the drawn prompts; of any prompts, at least one."""
        groups = by_prompt(resources.need('clean', 'mix_clean'))
        drawn = shuffled(groups, resources.seed, 'mix_clean', str)[: math.ceil(self.fraction * len(groups))]
        return [dataclasses.replace(lesson, source='clean') for id_ in sorted(drawn) for lesson in groups[id_]]


@dataclasses.dataclass(frozen=True)
class Reweight(Passive):
    """Weights the lessons by how their gradients align with that of a clean validation set (arXiv 2605.22737).

    weight = exp(+-z / temperature) over its mean, z the standardised score: 'aligned' with plus, 'opposed' with minus;
    'random' deals the weights of 'aligned' out by chance. temperature > 0, in standard deviations. They multiply the
    weights that lessons have. own_only: None: weights make no lessons, and what the validation traces would teach by
    themselves is left to MixClean.
    """

    how: str = 'aligned'
    temperature: float = 1.0

    needs = ('gradient_scores',)

    def check(self) -> None:
        check_choice('Reweight.how', self.how, HOWS)
        check_range('Reweight.temperature', self.temperature, 0.0, open_low=True)

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        """Raises ValueError for a score that is not finite."""
        score = resources.need('gradient_scores', 'reweight')
        scores = np.array(score(lessons) if lessons else [], np.float64)
        if scores.shape != (len(lessons),) or not np.isfinite(scores).all():
            raise ValueError(f'resources.gradient_scores gave {scores}; it must give one finite number a lesson')
        ids = [lesson.id for lesson in lessons]
        weights = dict(zip(ids, self.weights(scores).tolist(), strict=True))
        if self.how == 'random':
            drawn = shuffled(ids, resources.seed, 'reweight', str)
            weights = dict(zip(drawn, [weights[id_] for id_ in sorted(ids)], strict=True))
        how = f'weighted, {self.how}'
        return sort_out('reweight', lessons, lambda x: dataclasses.replace(x, weight=x.weight * weights[x.id]), how)

    def weights(self, scores: np.ndarray) -> np.ndarray:
        """Of mean 1; all 1 where the scores are all the same."""
        scores = scores / (np.abs(scores).max(initial=0.0) or 1.0)  # so that squares of any scale are finite
        if not len(scores) or scores.std() < ROUNDING:
            return np.ones(len(scores))
        z = (scores - scores.mean()) / (scores.std() * self.temperature)
        z = -z if self.how == 'opposed' else z
        weights = np.exp(z - z.max())
        return weights / weights.mean()


@dataclasses.dataclass(frozen=True)
class ShuffledPrompts(Passive):
    """A control: each trace stands under another prompt whose trace states an answer of the same kind.

    Every trace is used once; where one prompt has more than half of its kind, what cannot be paired is dropped.
    own_only: None, all it has is the teacher's.
    """

    def apply(self, lessons: Sequence[Lesson], resources: Resources) -> tuple[list[Lesson], Tally]:
        kinds: dict[str, list[Lesson]] = {}
        for group in by_prompt(lessons).values():
            for lesson in group:
                kinds.setdefault(kind(lesson), []).append(lesson)
        # By prompt and sample: runs under several settings pair alike.
        trace_of = {x.id: other for same in kinds.values() for x, other in _paired(same, resources.seed)}

        def judge(lesson: Lesson) -> Lesson | str:
            other = trace_of.get(lesson.id)
            if other is None:
                return 'no other prompt of its kind'
            return dataclasses.replace(
                lesson, text=other.text, tokens=other.tokens, statistics=other.statistics, stop=other.stop
            )

        return sort_out('shuffled_prompts', lessons, judge, 'under another prompt')


def kind(lesson: Lesson) -> str:
    """'letter', 'integer', 'number', 'text' or 'none', of the answer that the lesson states."""
    answer = stated(lesson)
    if answer is None:
        return 'none'
    if re.fullmatch(r'\(?[A-J]\)?', answer):
        return 'letter'
    value = grading.to_number(answer)
    return 'text' if value is None else 'integer' if value.denominator == 1 else 'number'


def _paired(lessons: Sequence[Lesson], seed: int) -> list[tuple[Lesson, Lesson]]:
    """Pairs of a lesson and the one whose trace it gets: a permutation that leaves no trace at its prompt."""
    groups = by_prompt(lessons)
    order = shuffled(groups, seed, 'shuffled_prompts', str)
    most = max(order, key=lambda id_: len(groups[id_]))
    # Around a circle in which prompts are runs, a step as long as the longest run leaves every run, as long as the
    # longest is at most half of the circle.
    groups[most] = groups[most][: sum(map(len, groups.values())) - len(groups[most])]
    ring = [lesson for id_ in order for lesson in groups[id_]]
    step = max(map(len, groups.values()))
    return [(lesson, ring[(i + step) % len(ring)]) for i, lesson in enumerate(ring)]
