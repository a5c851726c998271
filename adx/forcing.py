"""Answer forcing: a finished trace is made to answer by the decoder that served it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from adx.answers import Reader
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.engine import DecodeConfig
from adx.errors import ConfigError
from adx.experiment import Experiment
from adx.generation import Models, Requests, make_engines
from adx.types import Request, Trace

MARK = '+forced'  # behind the split of a forced request: its noise is its own


@dataclasses.dataclass(frozen=True)
class Forcing:
    """suffix: what is put in the model's mouth behind its trace, the opening of a final-answer form.

    max_new_tokens: of the answer that follows; its first line counts.
    """

    suffix: str = '\n#### '
    max_new_tokens: int = 16

    def check(self) -> None:
        """Raises ConfigError naming the field, its value and what is allowed."""
        if not self.suffix.strip():
            raise ConfigError(f"forcing.suffix = {self.suffix!r} opens no answer; say '\\n#### ' or '\\n\\\\boxed{{'")
        if self.max_new_tokens < 1:
            raise ConfigError(f'forcing.max_new_tokens = {self.max_new_tokens} is not allowed; it must be at least 1')


def force(
    experiment: Experiment, models: Models, made: Requests, traces: Sequence[Trace], forcing: Forcing
) -> Iterator[tuple[str, str]]:
    """Yields (request id of the trace, suffix and the first line of what followed) as answers finish.

    made: the requests that the traces answer. A trace is continued under its own rule and sampling numbers. The rule
    and the automaton of protected spans start anew behind the suffix, as they do behind any prompt. What does not fit
    the models' context is left out: see `forced_requests`.
    """
    forcing.check()
    config = decode_config(experiment.decode, models, forcing)
    requests = forced_requests(made, traces, models.tokenizer, forcing, config)
    arms = {request.id.setting for request in requests.requests.values()}
    chosen = [arm for arm in experiment.arms if arm.name in arms]
    for engine, names in make_engines(models, chosen, config, experiment.seed, experiment.protected_spans):
        mine = {one.id: id_ for id_, one in requests.requests.items() if one.id.setting in names}
        for completion in engine.generate([requests.requests[id_] for id_ in mine.values()]):
            text = models.tokenizer.decode(completion.tokens).lstrip()
            yield mine[completion.id], forcing.suffix + text.partition('\n')[0]


def forced_requests(
    made: Requests, traces: Iterable[Trace], tokenizer: Tokenizer, forcing: Forcing, config: DecodeConfig
) -> Requests:
    """By the traces' own ids: prompt, trace without its end of sequence, and suffix, as one prompt.

    rejected: traces that leave no room for an answer. Raises ConfigError for a trace that `made` does not ask for, and
    as `opening` does.
    """
    suffix = opening(tokenizer, forcing)
    room = min(config.buckets[-1], config.cache_length - forcing.max_new_tokens + 1)
    forced = Requests({}, {}, {})
    for trace in traces:
        id_ = trace.request_id
        if id_ not in made.requests:
            raise ConfigError(f'{id_} is no trace of this experiment; force the answers of traces that it made')
        asked = made.requests[id_]
        ended = trace.tokens and trace.tokens[-1] in tokenizer.eos_ids
        tokens = (*asked.tokens, *(trace.tokens[:-1] if ended else trace.tokens), *suffix)
        forced.prompts[id_] = made.prompts[id_]
        if len(tokens) > room:
            forced.rejected[id_] = f'prompt, trace and suffix have {len(tokens)} tokens and there is room for {room}'
            continue
        forced.requests[id_] = _continued(asked, tokens, forcing)
    return forced


def opening(tokenizer: Tokenizer, forcing: Forcing) -> tuple[int, ...]:
    """The suffix in tokens, without the white space at its end where the tokenizer has no token for that: a model that
    is made to go on from a token that it never saw answers nothing. Raises ConfigError for a suffix that has no tokens.
    """
    for text in (forcing.suffix, forcing.suffix.rstrip()):
        tokens = tokenizer.encode(text)
        special = [tokenizer.backend.id_to_token(i) or '' for i in set(tokens) & tokenizer.control_ids]
        if tokens and all(token in text for token in special):  # and not that of unknown words, which no text has
            return tuple(tokens)
    raise ConfigError(
        f'forcing.suffix = {forcing.suffix!r} is {tokenizer.decode(tokens)!r} to the tokenizer of the teacher; give an '
        'opening that it has tokens for'
    )


def _continued(asked: Request, tokens: tuple[int, ...], forcing: Forcing) -> Request:
    own = asked.id._replace(split=asked.id.split + MARK)
    return dataclasses.replace(asked, id=own, tokens=tokens, max_new_tokens=forcing.max_new_tokens)


def decode_config(config: DecodeConfig, models: Models, forcing: Forcing) -> DecodeConfig:
    """Shapes that hold every trace of a run with the suffix behind it: buckets go on doubling up to there.

    They follow from the run's shapes and not from its traces, so that programs stay the same.
    """
    context = models.ensemble.teacher.config.max_length
    suffix = len(opening(models.tokenizer, forcing))
    longest = min(config.cache_length + 1 + suffix, context - forcing.max_new_tokens)
    buckets = [config.buckets[0]]
    while 2 * buckets[-1] < longest:
        buckets.append(2 * buckets[-1])
    buckets = [bucket for bucket in buckets if bucket < longest] + [longest]
    return dataclasses.replace(
        config, buckets=tuple(buckets), cache_length=longest + forcing.max_new_tokens, short_caches=(), record='none'
    )


def grade(forced: Mapping[str, str], traces: Iterable[Trace], reader: Reader) -> dict[str, bool]:
    """Request id -> whether the forced answer is right, by strict grading of suffix and answer alone.

    A trace without gold answer is left out; one whose answer could not be forced is wrong.
    """
    return {
        trace.request_id: trace.request_id in forced and reader.read(forced[trace.request_id], trace.gold).strict
        for trace in traces
        if trace.gold is not None
    }
