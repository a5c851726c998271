"""From prompts to traces: requests for every arm and sample, and decoding arm by arm structure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from adx.datasets.chat import encode_prompt, split_reasoning
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Weights
from adx.errors import InputError
from adx.experiment import Arm, Experiment, experiment_hash, to_json
from adx.types import Completion, Prompt, Request, RequestId, Trace

STOP_TAIL = 16  # tokens of the tail in which a stop string is looked for beyond the newest chunk


@dataclasses.dataclass(frozen=True)
class Models:
    """The loaded models of a run. hashes: role -> content hash."""

    ensemble: Ensemble
    weights: Weights
    tokenizer: Tokenizer
    hashes: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Requests:
    """By request id, in order: the requests, the prompt of each, and why the others cannot be served."""

    requests: dict[str, Request]
    prompts: dict[str, Prompt]
    rejected: dict[str, str]


def make_requests(experiment: Experiment, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Requests:
    """One request per prompt, sample and arm; duplicate prompts stay distinct by their row."""
    made = Requests({}, {}, {})
    for prompt in prompts:
        try:
            tokens = encode_prompt(prompt.messages, tokenizer, experiment.prompting)
            problem = _misfit(tokens, experiment)
        except InputError as error:
            tokens, problem = (), str(error)
        for sample in range(experiment.samples):
            for arm in experiment.arms:
                id_ = RequestId(prompt.dataset, prompt.split, prompt.row, sample, arm.name)
                made.prompts[str(id_)] = prompt
                if problem:
                    made.rejected[str(id_)] = problem
                else:
                    request = Request(id_, tokens, experiment.max_new_tokens, arm.sampling, arm.defence)
                    made.requests[str(id_)] = request
    return made


def _misfit(tokens: Sequence[int], experiment: Experiment) -> str:
    """Why a prompt of these tokens cannot be served, '' if it can."""
    decode, new = experiment.decode, experiment.max_new_tokens
    room = min(decode.buckets[-1], decode.cache_length - new + 1)
    if not tokens:
        return 'the prompt is empty; it needs at least one token'
    if len(tokens) > room:
        return (
            f'the prompt has {len(tokens)} tokens and there is room for {room} (decode.buckets, and '
            f'decode.cache_length = {decode.cache_length} less max_new_tokens = {new}); raise them or shorten it'
        )
    return ''


def make_engines(
    models: Models, arms: Iterable[Arm], config: DecodeConfig, seed: int
) -> list[tuple[Engine, frozenset[str]]]:
    """One engine per defence structure, with the names of its arms. Without proxies the teacher runs alone."""
    by_structure: dict[Any, list[Arm]] = {}
    for arm in arms:
        by_structure.setdefault(jax.tree.structure(arm.defence), []).append(arm)
    tokenizer, engines = models.tokenizer, []
    for group in by_structure.values():
        ensemble, weights = models.ensemble, models.weights
        if not group[0].defence.wants_proxies:
            ensemble, weights = dataclasses.replace(ensemble, groups=()), Weights(weights.teacher, ())
        engine = Engine(ensemble, weights, config, seed, sorted(tokenizer.eos_ids), sorted(tokenizer.control_ids))
        engines.append((engine, frozenset(arm.name for arm in group)))
    return engines


def generate(
    engines: Sequence[tuple[Engine, frozenset[str]]],
    requests: Sequence[Request],
    stop_fn: Callable[[Sequence[int]], int | None] | None = None,
) -> Iterator[tuple[Engine, Completion]]:
    """Decodes the requests of each engine in turn, yielding completions as they finish."""
    for engine, names in engines:
        mine = [request for request in requests if request.id.setting in names]
        for completion in engine.generate(mine, stop_fn):
            yield engine, completion


def make_stop_fn(stop_strings: Sequence[str], tokenizer: Tokenizer, chunk: int) -> Any:
    """How many tokens to keep once a stop string has been written: up to the token that completes it."""
    if not stop_strings:
        return None

    def stop_fn(tokens: Sequence[int]) -> int | None:
        if not any(stop in tokenizer.decode(tokens[-(chunk + STOP_TAIL) :]) for stop in stop_strings):
            return None
        first = max(1, len(tokens) - chunk)
        for count in range(first, len(tokens) + 1):
            if any(stop in tokenizer.decode(tokens[:count]) for stop in stop_strings):
                return count
        return None

    return stop_fn


class TraceMaker:
    """Turns completions into traces of one experiment."""

    def __init__(self, experiment: Experiment, models: Models, requests: Requests):
        self.experiment, self.models, self.requests = experiment, models, requests
        self.hash = experiment_hash(experiment)
        self.arms = {arm.name: (to_json(arm.defence), to_json(arm.sampling)) for arm in experiment.arms}
        self.versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax')}

    def __call__(self, completion: Completion) -> Trace:
        id_ = str(completion.id)
        prompt, request = self.requests.prompts[id_], self.requests.requests[id_]
        defence, sampling = self.arms[completion.id.setting]
        text = self.models.tokenizer.decode(completion.tokens)
        if completion.stop == 'stop_string':
            text = text[: min(text.find(stop) for stop in self.experiment.stop_strings if stop in text)]
        reasoning, answer = split_reasoning(text, self.experiment.prompting)
        return Trace(
            request_id=id_,
            messages=prompt.messages,
            text=text,
            reasoning=reasoning,
            answer=answer,
            tokens=completion.tokens,
            stop=completion.stop,
            prompt_tokens=len(request.tokens),
            defence=defence,
            sampling=sampling,
            seed=self.experiment.seed,
            gold=prompt.answer,
            statistics=completion.statistics,
            models=self.models.hashes,
            experiment=self.hash,
            versions=self.versions,
        )
