"""What the attackers of a study have beside the traces: the teacher, asked again as an arm serves it, and a model of
their own that judges lessons.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from adx import curves, generation, pipeline
from adx.batching import Example, batches
from adx.bystander import Bystander
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import InputError
from adx.experiment import Experiment
from adx.gradients import Differentiator
from adx.lessons import Lesson, Resources, from_trace, prompts_of
from adx.loading import blueprint, resolve
from adx.mesh import make_mesh
from adx.models.transformer import Params
from adx.selection import harms
from adx.study import Study
from adx.study_traces import seed_path
from adx.types import Prompt, Request, Sampling

VALIDATION = 64  # clean holdout traces whose gradient lessons are compared with
WRITING = Sampling(temperature=0.7, top_p=0.95)  # of the attackers' own model


class Attackers:
    """The attackers of one seed. Models are read when they are first asked."""

    def __init__(self, study: Study, path: str, seed: int):
        self.study, self.path = study, seed_path(path, seed)
        self.experiment = dataclasses.replace(study.experiment, seed=seed)

    def resources(self, arm: str, clean: Sequence[Lesson]) -> Resources:
        """What an attacker has against an arm, '' against none. clean: lessons of the undefended arm."""
        dataset, own = self.experiment.dataset, self.study.own
        return Resources(
            clean=tuple(clean),
            grade=dataset.grade,
            canonicalise=getattr(dataset, 'canonicalise', None),
            query=functools.partial(self._ask, arm) if arm and not self.experiment.selections else None,
            nll=self._nll if own else None,
            own=self._write if own else None,
            gradient_scores=self._gradient_scores if own else None,
            own_name=own.name if own else '',
            validation=VALIDATION if own else None,
            prompts=prompts_of(clean),
            seed=self.experiment.seed,
        )

    def _ask(self, arm: str, prompts: Sequence[Prompt], samples: int, prefill: str) -> list[Lesson]:
        """The arm's answers, each begun with `prefill`; prompts that cannot be served have none."""
        asked = dataclasses.replace(
            self.experiment, arms=tuple(a for a in self.experiment.arms if a.name == arm), samples=samples
        )
        words = tuple(self._models.tokenizer.encode(prefill)) if prefill else ()
        made = generation.make_requests(asked, prompts, self._models.tokenizer)
        begun = [_begun(request, words) for request in made.requests.values()]
        fitting = [request for request in begun if _fits(request, asked)]
        made = dataclasses.replace(made, requests={str(request.id): request for request in fitting})
        source = 'clean' if arm == self.study.clean else 'defended'
        lessons = (
            from_trace(trace, source, knows_gold=True)
            for _, trace in generation.decode(asked, self._models, made, fitting)
        )
        return [self._whole(lesson, words) for lesson in lessons]

    def _whole(self, lesson: Lesson, words: tuple[int, ...]) -> Lesson:
        """An answer with the words that it was begun with."""
        tokens = (*words, *lesson.tokens)
        return dataclasses.replace(lesson, text=self._models.tokenizer.decode(tokens), tokens=tokens)

    @functools.cached_property
    def _models(self) -> generation.Models:
        return pipeline.load_models(self.experiment, self.path, blueprint(self.experiment))

    def _nll(self, lessons: Sequence[Lesson]) -> list[float]:
        """Nats a token of each completion under the attackers' own model."""
        return [nats / max(tokens, 1) for nats, tokens in self._own.nll(self._examples(lessons))]

    def _write(self, texts: Sequence[str], instruction: str, samples: int) -> list[list[str]]:
        """What the attackers' own model says when it is given the instruction and each text."""
        asked, of = [f'{instruction}\n\n{text}' for text in texts], self.experiment
        return self._own.write(asked, samples, WRITING, of.max_new_tokens, of.decode, of.seed)

    def _examples(self, lessons: Sequence[Lesson]) -> list[Example]:
        return [self._own.example(lesson.id, lesson.messages, lesson.text) for lesson in lessons]

    def _gradient_scores(self, lessons: Sequence[Lesson]) -> list[float]:
        """<gradient of a lesson's NLL, gradient of that of clean holdout traces>, of the attackers' own model."""
        own, direction = self._own, self._direction
        found = harms(own.loaded.model, own.loaded.params, direction, self._examples(lessons))
        return [-found[lesson.id] for lesson in lessons]

    @functools.cached_property
    def _own(self) -> Bystander:
        assert self.study.own is not None
        return Bystander(self.study.own)

    @functools.cached_property
    def _direction(self) -> Params:
        own, teacher = self._own, load_tokenizer(resolve(self.experiment.teacher.source))
        length = self.study.recipe.length
        held = curves.holdout_examples(self.path, own.tokenizer, own.student.prompting, length, teacher)[:VALIDATION]
        if not held:
            raise InputError(
                f'{self.path} has no clean holdout traces to compare gradients with; --stages=prepare decodes them '
                'where a rule wants directions'
            )
        taker = Differentiator(own.loaded.model, make_mesh())
        return taker.mean_gradient(own.loaded.params, (batch for _, batch in batches(held, taker.rows)))[0]


def _begun(request: Request, words: tuple[int, ...]) -> Request:
    left = request.max_new_tokens - len(words)
    return dataclasses.replace(request, tokens=(*request.tokens, *words), max_new_tokens=left)


def _fits(request: Request, experiment: Experiment) -> bool:
    return request.max_new_tokens > 0 and len(request.tokens) <= experiment.decode.buckets[-1]
