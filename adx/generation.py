"""From prompts to traces: requests of every arm and sample, decoded structure by structure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from adx import automata
from adx.datasets.chat import encode_prompt, split_reasoning
from adx.datasets.tokenizing import BYTE, Tokenizer
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Weights
from adx.defences import Undefended
from adx.errors import ConfigError, InputError
from adx.experiment import Arm, Experiment, experiment_hash, policy_hash, to_json
from adx.needs import needed
from adx.policy import DeriveKey, Terms, is_keyed, with_key
from adx.types import Completion, Prompt, Request, RequestId, Trace

MARGIN = 4  # tokens: a character of UTF-8 that the tail cuts at its start spans no more


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


def make_requests(
    experiment: Experiment, prompts: Sequence[Prompt], tokenizer: Tokenizer, derive_key: DeriveKey | None = None
) -> Requests:
    """One request per prompt, sample and arm; duplicate prompts stay distinct by their row.

    Under a policy the terms of a customer's licence give the rule's numbers, and `derive_key` its key.
    Raises InputError when no prompt can be rendered and all for the same reason: then it is not the rows' fault.
    """
    encoded = [_encode(prompt, tokenizer, experiment) for prompt in prompts]
    if not any(tokens for tokens, _ in encoded) and len({problem for _, problem in encoded}) == 1:
        raise InputError(encoded[0][1])
    made = Requests({}, {}, {})
    for prompt, (tokens, problem) in zip(prompts, encoded, strict=True):
        terms, refusal = _terms(experiment, prompt, derive_key)
        for sample in range(experiment.samples):
            for arm in experiment.arms:
                id_ = RequestId(prompt.dataset, prompt.split, prompt.row, sample, arm.name)
                made.prompts[str(id_)] = prompt
                if problem or refusal:
                    made.rejected[str(id_)] = problem or refusal
                    continue
                defence, defended = (arm.defence, True) if terms is None else (terms.defence, terms.defence is not None)
                made.requests[str(id_)] = Request(
                    id_, tokens, experiment.max_new_tokens, arm.sampling, defence or arm.defence, defended
                )
    return made


def _terms(experiment: Experiment, prompt: Prompt, derive_key: DeriveKey | None) -> tuple[Terms | None, str]:
    """The terms of a prompt's customer with its key, None without a policy; and why it is refused, '' if it is not."""
    if experiment.policy is None:
        return None, ''
    try:
        customer, terms = experiment.policy.serve(prompt.customer)
    except InputError as error:
        return None, str(error)
    if not (customer.key_id and is_keyed(terms.defence)):
        return terms, ''
    if derive_key is None:
        raise ConfigError(f'customer {customer.name!r} has key_id = {customer.key_id!r} and there is no key; remove it')
    return dataclasses.replace(terms, defence=with_key(terms.defence, derive_key(customer.key_id))), ''


def read_prompts(experiment: Experiment) -> list[Prompt]:
    """The prompts of an experiment: of its split, up to its limit. Raises ConfigError if fewer follow on `skip`."""
    skip, limit, prompts = experiment.skip, experiment.limit, experiment.dataset.prompts(experiment.split)
    wanted = skip + max(limit, 1)
    if skip and len(prompts) < wanted:
        raise ConfigError(
            f'skip = {skip} and limit = {limit} want {wanted} prompts, and split {experiment.split!r} has '
            f'{len(prompts)}; lower them'
        )
    return prompts[skip:][: limit or None]


def left_out(experiment: Experiment) -> dict[str, Any]:
    """What the dataset does without: bad lines, and near-duplicates of rows that stay in another split, by split."""
    dataset: Any = experiment.dataset  # those that are read from files say what they did without
    source = dataset.source() if getattr(dataset, 'skip_bad', False) else None
    dropped = dataset.splits().dropped if hasattr(dataset, 'splits') else {}
    return {
        'bad_lines_skipped': source.pool.skipped + source.test.skipped if source else 0,
        'near_duplicates_dropped': dropped if experiment.split in dropped else {},
    }


def _encode(prompt: Prompt, tokenizer: Tokenizer, experiment: Experiment) -> tuple[tuple[int, ...], str]:
    """The tokens of a prompt and why it cannot be served, '' if it can."""
    try:
        tokens = encode_prompt(prompt.messages, tokenizer, experiment.prompting)
    except InputError as error:
        return (), str(error)
    return tokens, _misfit(tokens, experiment)


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
    models: Models, arms: Iterable[Arm], config: DecodeConfig, seed: int, protected_spans: Sequence[str] = ()
) -> list[tuple[Engine, frozenset[str]]]:
    """One engine per defence structure, with the names of its arms. Each runs what its rule needs."""
    vocab = models.ensemble.teacher.config.sizes['V']
    spans = automata.lift(protected_spans, models.tokenizer.named_bytes, vocab) if protected_spans else None
    by_structure: dict[Any, list[Arm]] = {}
    for arm in arms:
        by_structure.setdefault(jax.tree.structure(arm.defence), []).append(arm)
    tokenizer, engines = models.tokenizer, []
    for group in by_structure.values():
        ensemble, weights = needed(models.ensemble, models.weights, group[0].defence)
        ends, control = sorted(tokenizer.eos_ids), sorted(tokenizer.control_ids)
        engine = Engine(ensemble, weights, config, seed, ends, control, spans=spans)
        engines.append((engine, frozenset(arm.name for arm in group)))
    return engines


def decode(
    experiment: Experiment, models: Models, made: Requests, pending: Sequence[Request]
) -> Iterator[tuple[Engine, Trace]]:
    """Decodes those of the requests that are pending, engine by engine, yielding traces as they finish."""
    wanted = {request.id.setting for request in pending}
    arms = [arm for arm in experiment.arms if arm.name in wanted]
    stop_fn = make_stop_fn(experiment.stop_strings, models.tokenizer, experiment.decode.chunk)
    make_trace = TraceMaker(experiment, models, made)
    engines = make_engines(models, arms, experiment.decode, experiment.seed, experiment.protected_spans)
    for engine, names in engines:
        mine = [request for request in pending if request.id.setting in names]
        for completion in engine.generate(mine, stop_fn):
            yield engine, make_trace(completion)


def make_stop_fn(
    stop_strings: Sequence[str], tokenizer: Tokenizer, chunk: int
) -> Callable[[Sequence[int]], int | None] | None:
    """How many tokens to keep once their text holds a stop string: up to the token that completes it.

    The function is called with a row's tokens at least once every `chunk` of them.
    """
    if not stop_strings:
        return None
    silent = frozenset(i for i, spelt in enumerate(tokenizer.token_bytes) if not spelt)
    inner = silent | _byte_tokens(tokenizer)
    # A stop string of n bytes spans at most n tokens that spell something, plus those that spell nothing.
    reach = max(len(stop.encode()) for stop in stop_strings) + MARGIN

    def holds_stop(tokens: Sequence[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(stop in text for stop in stop_strings)

    def stop_fn(tokens: Sequence[int]) -> int | None:
        seen = start = max(0, len(tokens) - chunk)
        left = reach
        # A run of byte tokens is decoded as a whole, silent ones in it or not: it is not cut.
        while start and (left > 0 or tokens[start] in inner):
            start -= 1
            left -= tokens[start] not in silent
        for count in range(seen + 1, len(tokens) + 1):
            # Cut at its start, a character can look like another: the whole text decides.
            if holds_stop(tokens[start:count]) and (not start or holds_stop(tokens[:count])):
                return count
        return None

    return stop_fn


def _byte_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of single bytes, as vocabularies with byte fallback spell them."""
    return frozenset(i for i, token in enumerate(tokenizer.tokens) if BYTE.fullmatch(token))


class TraceMaker:
    """Turns completions into traces of one experiment."""

    def __init__(self, experiment: Experiment, models: Models, requests: Requests):
        self.experiment, self.models, self.requests = experiment, models, requests
        self.hash = experiment_hash(experiment)
        self.arms = {arm.name: (to_json(arm.defence), to_json(arm.sampling)) for arm in experiment.arms}
        self.policy = policy_hash(experiment)
        self.versions = {name: importlib.metadata.version(name) for name in ('adx', 'jax', 'flax')}

    def __call__(self, completion: Completion) -> Trace:
        id_ = str(completion.id)
        prompt, request = self.requests.prompts[id_], self.requests.requests[id_]
        defence, sampling = self.arms[completion.id.setting]
        policy, licence = self.experiment.policy, ''
        if policy is not None:
            # As the policy states it: a key stays out of the record, which names the policy and the customer.
            terms = policy.serve(prompt.customer)[1]
            defence, licence = to_json(terms.defence or Undefended()), terms.licence
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
            policy=self.policy,
            terms=licence,
            customer=prompt.customer if policy is not None else '',
            versions=self.versions,
        )
