"""What the attackers of a study have beside traces: the teacher, asked again, and a judge.

The teacher is asked as an arm serves it; a model of the attackers' own judges lessons.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from adx import curves, generation, marks, pipeline
from adx.answers import reader_of
from adx.attacks import Attack
from adx.batching import Batch, Example, batches
from adx.bystander import Bystander, told
from adx.decoding.labels import ROWS, Labeller
from adx.directions import holdout_path
from adx.errors import InputError
from adx.evaluation import hidden
from adx.experiment import Arm, Experiment
from adx.gradients import Differentiator
from adx.lessons import Lesson, Resources, from_trace, prompts_of
from adx.loading import blueprint, read_tokenizer
from adx.mesh import make_mesh
from adx.models.transformer import Params
from adx.selection import harms
from adx.storage import Workdir
from adx.study import Study
from adx.study_traces import seed_path
from adx.types import Array, Prompt, Request, RequestId, Sampling

VALIDATION = 64  # clean holdout traces whose gradient lessons are compared with
WRITING = Sampling(temperature=0.7, top_p=0.95)  # of the attackers' own model


def check_holdout_traces(study: Study, path: str, attacks: Sequence[Attack]) -> None:
    """Raises InputError for a seed without the clean holdout traces that one of the attacks compares gradients with."""
    wants = [attack.name for attack in attacks if attack.wants_holdout]
    for seed in study.seeds if wants else ():
        if not Workdir(holdout_path(seed_path(path, seed))).finished():
            raise InputError(
                f'seed {seed} has no clean holdout traces, and attack {wants[0]!r} compares gradients with them; run '
                '--stages=prepare first'
            )


class Attackers:
    """The attackers of one seed. Models are read when they are first asked."""

    def __init__(self, study: Study, path: str, seed: int):
        self.study, self.path = study, seed_path(path, seed)
        self.experiment = study.of_seed(seed)
        self._labeller = functools.cache(self._make_labeller)

    def resources(self, arm: str, clean: Sequence[Lesson]) -> Resources:
        """What an attacker has against an arm, '' against none. clean: lessons of the undefended arm."""
        dataset, own = self.experiment.dataset, self.study.own
        return Resources(
            clean=tuple(clean),
            grade=reader_of(dataset).grade,
            canonicalise=getattr(dataset, 'canonicalise', None),
            forge=getattr(dataset, 'forge', marks.symbols),
            query=functools.partial(self._ask, arm) if arm and self.study.asks_arms else None,
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
        asked, made = self._requests(arm, prompts, samples)
        words = tuple(self.models.tokenizer.encode(prefill)) if prefill else ()
        begun = [_begun(request, words) for request in made.requests.values()]
        fitting = [request for request in begun if _fits(request, asked)]
        made = dataclasses.replace(made, requests={str(request.id): request for request in fitting})
        source = 'clean' if arm == self.study.clean else 'defended'
        lessons = (
            from_trace(trace, source, knows_gold=True)
            for _, trace in generation.decode(asked, self.models, made, fitting)
        )
        return [self._whole(lesson, words) for lesson in lessons]

    def _whole(self, lesson: Lesson, words: tuple[int, ...]) -> Lesson:
        """An answer with the words that it was begun with."""
        if not lesson.tokens:  # a stop string ended it: its text is all that is learnt from
            return lesson.rewritten(self.models.tokenizer.decode(words) + lesson.text)
        tokens = (*words, *lesson.tokens)
        return dataclasses.replace(lesson, text=self.models.tokenizer.decode(tokens), tokens=tokens)

    def labels(
        self, arm: str, examples: Sequence[Example], prompts: Mapping[str, Prompt], candidates: int
    ) -> dict[str, dict[str, np.ndarray]]:
        """What the arm would have served at every token of the examples' completions, whoever wrote them: 'ids' and
        'log_probs', each by example id. prompts: by example id.
        """
        requests, read = self._read_by(arm, examples, prompts)
        found = {id_: both for id_, *both in self._labeller(arm, candidates)(requests, read)}
        return {name: {id_: both[i] for id_, both in found.items()} for i, name in enumerate(('ids', 'log_probs'))}

    def features(
        self, arm: str, examples: Sequence[Example], prompts: Mapping[str, Prompt]
    ) -> dict[str, np.ndarray]:
        """Example id -> float32 [L, E], the teacher's last hidden state where it predicts each token."""
        found = {}
        for inside, batch in batches(self._read_by(arm, examples, prompts)[1], ROWS):
            hidden_BLE = np.asarray(self._hidden(self.models.weights.teacher, batch), np.float32)
            for row_LE, example in zip(hidden_BLE, inside, strict=False):
                first = len(example.prompt) - 1
                found[example.id] = row_LE[first : first + len(example.completion)]
        return found

    def _read_by(
        self, arm: str, examples: Sequence[Example], prompts: Mapping[str, Prompt]
    ) -> tuple[dict[str, Request], list[Example]]:
        """As the arm would have answered them: the requests by example id, and the examples behind its own prompts."""
        made = self._requests(arm, prompts_of((), prompts.values()), 1)[1].requests
        requests, read = {}, []
        for example in examples:
            prompt, sample = prompts[example.id], RequestId.parse(example.id).sample
            id_ = RequestId(prompt.dataset, prompt.split, prompt.row, 0, arm)
            if str(id_) not in made:
                raise InputError(f'{id_}: its prompt does not fit decode.buckets; the teacher cannot be asked about it')
            requests[example.id] = dataclasses.replace(made[str(id_)], id=id_._replace(sample=sample))
            read.append(Example(example.id, made[str(id_)].tokens, example.completion))
        return requests, read

    def _requests(
        self, arm: str, prompts: Sequence[Prompt], samples: int
    ) -> tuple[Experiment, generation.Requests]:
        """The experiment in which one arm alone is asked, and what it is asked."""
        asked = dataclasses.replace(self.experiment, arms=(self._arm(arm),), samples=samples)
        return asked, generation.make_requests(asked, prompts, self.models.tokenizer)

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in self.experiment.arms if arm.name == name)

    def _make_labeller(self, arm: str, candidates: int) -> Labeller:
        e = self.experiment
        [(engine, _)] = generation.make_engines(self.models, [self._arm(arm)], e.decode, e.seed, e.protected_spans)
        return Labeller(engine, candidates)

    @functools.cached_property
    def _hidden(self) -> Callable[[Params, Batch], Array]:
        return jax.jit(functools.partial(hidden, self.models.ensemble.teacher))

    @functools.cached_property
    def models(self) -> generation.Models:
        return pipeline.load_models(self.experiment, self.path, blueprint(self.experiment))

    def _nll(self, lessons: Sequence[Lesson]) -> list[float]:
        """Nats a token of each completion under the attackers' own model."""
        return [nats / max(tokens, 1) for nats, tokens in self._own.nll(self._examples(lessons))]

    def _write(self, texts: Sequence[str], instruction: str, samples: int) -> list[list[str]]:
        """What the attackers' own model says when it is given the instruction and each text."""
        asked, of = [told(instruction, text) for text in texts], self.experiment
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
        own, teacher = self._own, read_tokenizer(self.experiment.teacher.source)
        length = self.study.recipe.length
        held = curves.holdout_examples(self.path, own.tokenizer, own.student.prompting, length, teacher)[:VALIDATION]
        if not held:
            raise InputError(f'{self.path} has no clean holdout traces to compare gradients with; run --stages=prepare')
        taker = Differentiator(own.loaded.model, make_mesh())
        return taker.mean_gradient(own.loaded.params, (batch for _, batch in batches(held, taker.rows)))[0]


def _begun(request: Request, words: tuple[int, ...]) -> Request:
    left = request.max_new_tokens - len(words)
    return dataclasses.replace(request, tokens=(*request.tokens, *words), max_new_tokens=left)


def _fits(request: Request, experiment: Experiment) -> bool:
    return request.max_new_tokens > 0 and len(request.tokens) <= experiment.decode.buckets[-1]
