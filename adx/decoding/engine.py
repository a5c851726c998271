"""The engine: an ensemble and a defence, run by compiled programs, and what they accept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adx.automata import Spans
from adx.decoding import loop
from adx.decoding.ensemble import Caches, Ensemble, Weights
from adx.decoding.programs import programs
from adx.decoding.slots import Slots, StopFn, bucket_of, request_rows
from adx.errors import ConfigError, InputError
from adx.types import Array, Completion, Defence, Request, RequestId, Sampling


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Shapes of the decoding programs. Lengths in tokens.

    slots: rows decoded together, at least 2; chunk: steps between two looks at the host.
    buckets: prompt lengths that are padded to and compiled, ascending; prefill_rows: prompts per prefill.
    cache_length: room for prompt plus new tokens. record: 'none', 'scalars' or 'top'.
    short_caches: lengths below cache_length, ascending, each with a program of its own. A step reads the allocated
      cache, so the shortest one is used that holds the longest live row. Sums over another length may round
      differently: a row's tokens then depend on its neighbours at near ties, as they do on the mesh.
    """

    slots: int = 32
    chunk: int = 8
    buckets: tuple[int, ...] = (64, 128, 192, 256)
    prefill_rows: int = 4
    cache_length: int = 512
    record: str = 'none'
    short_caches: tuple[int, ...] = ()

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        return (*self.short_caches, self.cache_length)

    def check(self, row_ways: int = 1) -> None:
        """Raises ConfigError. row_ways: into how many pieces the mesh splits rows."""
        if self.record not in loop.RECORDS:
            raise ConfigError(f'decode.record = {self.record!r} is unknown; it must be one of {loop.RECORDS}')
        if self.chunk < 1:
            raise ConfigError(f'decode.chunk = {self.chunk} is not allowed; it must be at least 1')
        for name, value in (('slots', self.slots), ('prefill_rows', self.prefill_rows)):
            if value < 2 or value % row_ways:
                raise ConfigError(
                    f'decode.{name} = {value} is not allowed; it must be at least 2 and divide by {row_ways}, the '
                    f'ways the mesh splits rows: try {max(2, -(-value // row_ways)) * row_ways}'
                )
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise ConfigError(f'decode.buckets = {self.buckets} must be ascending lengths of at least 1')
        if self.buckets[-1] > self.cache_length:
            raise ConfigError(
                f'decode.buckets ends at {self.buckets[-1]} but decode.cache_length is {self.cache_length}; '
                'raise cache_length or drop buckets'
            )
        lengths = list(self.cache_lengths)
        if lengths != sorted(set(lengths)) or lengths[0] < self.buckets[0]:
            raise ConfigError(
                f'decode.short_caches = {self.short_caches} must ascend from the shortest bucket, {self.buckets[0]}, '
                f'and stay below decode.cache_length = {self.cache_length}'
            )


@dataclasses.dataclass
class Occupancy:
    """How full the slots were: emitted tokens of rows over slot-steps, before the queue ran dry and in all."""

    tokens: int = 0
    slot_steps: int = 0
    busy_tokens: int = 0
    busy_slot_steps: int = 0

    @property
    def share(self) -> float:
        """Tokens per slot-step while requests were still queued: the drain is left out. Of all steps if none were."""
        if self.busy_slot_steps:
            return self.busy_tokens / self.busy_slot_steps
        return self.tokens / self.slot_steps if self.slot_steps else 0.0


class Engine:
    """Decodes requests that share one defence structure.

    Args:
      ensemble, weights: the models. A run in which no row is defended passes an ensemble without groups.
      config: shapes. seed: of all sampling. eos: the ids that end a row. protected: ids that keep the teacher's mass.
      spans: where in a text the teacher is served, see automata.lift.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        weights: Weights,
        config: DecodeConfig,
        seed: int = 0,
        eos: Sequence[int] = (),
        protected: Sequence[int] = (),
        *,
        spans: Spans | None = None,
    ):
        config.check(ensemble.row_ways)
        ensemble.check()
        self.config, self.ensemble, self.weights, self.seed = config, ensemble, weights, seed
        self.eos = frozenset(eos)
        vocab = ensemble.teacher.config.sizes['V']
        protected_V = np.zeros(vocab, bool)
        protected_V[list(protected)] = True
        # An id of -1 never matches, so a run without EOS has the same program.
        ends = jnp.asarray(list(eos) or [-1], jnp.int32)
        self.constants = loop.Constants(ends, jnp.asarray(protected_V), jax.tree.map(jnp.asarray, spans))
        self.occupancy = Occupancy()
        self.programs = programs(ensemble, config.slots, config.cache_lengths[0], config.chunk, config.record)

    def start(self, defence: Defence) -> tuple[loop.Rows, Caches]:
        """Idle slots for rows of this structure, with the shortest caches.

        Raises ConfigError for a rule that wants derivatives where the proxies have no directions.
        """
        if defence.wants_tangents and not self.ensemble.directions:
            raise ConfigError(
                f'{type(defence).__name__} wants derivatives and the proxies have no directions; give each group of '
                'the ensemble some, and Weights.directions'
            )
        return self.programs.start(jax.tree.map(np.float32, defence))  # 1 and 1.0 are one program

    def resize(self, caches: Caches, length: int) -> Caches:
        """Caches of another of the config's lengths; the old ones are gone.

        One array at a time, so that at most one is held twice; through the lengths between, so that few programs do.
        """

        def resize_one(x: Any, axes: str) -> Array:
            y = self.programs.resize(x, lengths[at], axes.index('S'), x.sharding)
            y = y if y.format == x.format else jax.device_put(y, x.format)
            x.delete()
            return y

        lengths = self.config.cache_lengths
        at, end = lengths.index(caches.teacher.length), lengths.index(length)
        while at != end:
            at += 1 if at < end else -1
            caches = caches.map(resize_one)
        return caches

    def warm_up(self, defence: Defence) -> None:
        """Compiles every program by running it on idle slots, so that decoding compiles nothing."""
        size, config = self.config.prefill_rows, self.config
        idle = Request(RequestId('', '', '', 0, ''), (0,), 1, Sampling(), defence)
        new, nowhere = request_rows([idle] * size, 0), np.full(size, config.slots, np.int32)
        rows, caches = self.start(defence)
        for length in config.cache_lengths:
            caches = self.resize(caches, length)
            for bucket in config.buckets:
                if bucket <= length:
                    prefix = self.programs.prefill(self.weights, np.zeros((size, bucket), np.int32))
                    rows, caches = self.programs.insert(rows, caches, new, prefix, np.zeros(size, np.int32), nowhere)
            rows, caches, *_ = self.programs.chunk(self.weights, rows, caches, self.constants)
        jax.block_until_ready(self.resize(caches, config.cache_lengths[0]))

    def compile(self, requests: Sequence[Request]) -> None:
        """Compiles what `generate` needs for the requests with the shortest caches that hold all their prompts, into
        jax's persistent cache. The weights may be shapes."""
        size, config = self.config.prefill_rows, self.config
        idle = dataclasses.replace(requests[0], tokens=(0,))
        rows, caches = _shaped(self.programs.start, jax.tree.map(np.float32, idle.defence))
        new, at = request_rows([idle] * size, 0), np.zeros(size, np.int32)
        buckets = sorted({bucket_of(len(request.tokens), config.buckets) for request in requests})
        for length in config.cache_lengths[1:]:
            if caches.teacher.length < buckets[-1]:
                caches = caches.map(functools.partial(self._grown, length))
        for bucket in buckets:
            prefix = _shaped(self.programs.prefill, self.weights, np.zeros((size, bucket), np.int32))
            rows, caches = _shaped(self.programs.insert, rows, caches, new, prefix, at, at)
        _shaped(self.programs.chunk, self.weights, rows, caches, self.constants)

    def _grown(self, length: int, x: Any, axes: str) -> Any:
        return _shaped(self.programs.resize, x, length, axes.index('S'), x.sharding)

    def compiled_programs(self) -> int:
        """How many programs were compiled so far, by engines of the same models and shapes too. It stays put after
        `warm_up`, and where there are no short caches after one request per bucket."""
        return self.programs.compiled()

    def check_request(self, request: Request) -> None:
        """Raises InputError if the request cannot be served with these shapes, or its numbers are out of range."""
        try:
            request.sampling.check()
            request.defence.check()
        except ValueError as error:
            raise InputError(f'{request.id}: {error}') from error
        length, new, config = len(request.tokens), request.max_new_tokens, self.config
        if length == 0:
            raise InputError(f'{request.id}: the prompt is empty; it needs at least one token')
        if length > config.buckets[-1]:
            raise InputError(
                f'{request.id}: the prompt has {length} tokens and decode.buckets allows {config.buckets[-1]}; '
                'add a longer bucket or drop the prompt'
            )
        if new < 1 or length - 1 + new > config.cache_length:
            raise InputError(
                f'{request.id}: {length} prompt tokens and max_new_tokens = {new} do not fit decode.cache_length = '
                f'{config.cache_length}; max_new_tokens may be 1 to {config.cache_length - length + 1}'
            )
        limit = self.ensemble.teacher.config.vocab_size
        for token in request.tokens:
            if not 0 <= token < limit:
                raise InputError(
                    f'{request.id}: prompt token {token} lies outside the vocabulary of {limit} that all models have '
                    'weights for; drop the prompt, or what is spelt as that token'
                )

    def generate(self, requests: Sequence[Request], stop_fn: StopFn | None = None) -> Iterator[Completion]:
        """Yields completions as they finish, in no particular order.

        stop_fn: given the new tokens so far, how many to keep if a stop string ended the trace, else None. It sees
        every chunk's tokens once more than the ones before, so it may look at the tail only.
        Raises InputError before any work if a request does not fit.
        """
        for request in requests:
            self.check_request(request)
        if not requests:
            return
        structures = {jax.tree.structure(request.defence) for request in requests}
        if len(structures) > 1:
            raise ConfigError(f'one engine serves one defence structure, got {sorted(map(str, structures))}')
        yield from Slots(self, requests, stop_fn).completions()


def _shaped(program: Any, *arguments: Any) -> Any:
    """Compiles a program; the shapes and places of its results."""
    lowered = program.lower(*arguments)
    places = lowered.compile().output_shardings

    def leaf(x: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree.map(leaf, lowered.out_info, places)
