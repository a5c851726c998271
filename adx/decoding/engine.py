"""The host side of decoding: slots are refilled while the device works.

A chunk is dispatched, then the chunk before it is read while it runs. A row that ended in chunk i is therefore seen
during chunk i + 1 and its slot refilled before chunk i + 2, except that ends by length are known in advance.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adx.decoding import loop
from adx.decoding.ensemble import Caches, Ensemble, Weights
from adx.errors import ConfigError, InputError
from adx.hashing import row_key
from adx.types import Completion, Request

StopFn = Callable[[Sequence[int]], int | None]


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Shapes of the decoding programs. Lengths in tokens.

    slots: rows decoded together, at least 2; chunk: steps between two looks at the host.
    buckets: prompt lengths that are padded to and compiled, ascending; prefill_rows: prompts per prefill.
    cache_length: room for prompt plus new tokens. record: 'none', 'scalars' or 'top'.
    """

    slots: int = 32
    chunk: int = 8
    buckets: tuple[int, ...] = (64, 128, 192, 256)
    prefill_rows: int = 4
    cache_length: int = 512
    record: str = 'none'

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


class _Prefix(NamedTuple):
    """Prefilled prompts waiting on the device."""

    caches: Caches
    requests: list[list[Request]]  # per row of `caches`: the samples of that prompt still to insert


@dataclasses.dataclass
class _Live:
    """A request in a slot, on the host."""

    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    statistics: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    dispatched: int = 0  # steps sent to the device, an upper bound of len(tokens)
    finished: bool = False


class _Chunk(NamedTuple):
    owners: list[_Live | None]  # who sat in each slot when the chunk was dispatched
    tokens_TB: jax.Array
    statistics: dict[str, jax.Array]


@dataclasses.dataclass
class Occupancy:
    """How full the slots were: emitted tokens of rows over slot-steps, before the queue ran dry and in all."""

    tokens: int = 0
    slot_steps: int = 0
    busy_tokens: int = 0
    busy_slot_steps: int = 0

    @property
    def share(self) -> float:
        """Tokens per slot-step while requests were still queued (the drain is left out); 0 before the first."""
        return self.busy_tokens / self.busy_slot_steps if self.busy_slot_steps else 0.0


class Engine:
    """Decodes requests that share one defence structure.

    Args:
      ensemble, weights: the models. A run in which no row is defended passes an ensemble without groups.
      config: shapes. seed: of all sampling. eos: the ids that end a row. protected: ids that keep the teacher's mass.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        weights: Weights,
        config: DecodeConfig,
        seed: int = 0,
        eos: Sequence[int] = (),
        protected: Sequence[int] = (),
    ):
        config.check(ensemble.teacher_layout.ways('B'))
        self.config, self.ensemble, self.weights, self.seed = config, ensemble, weights, seed
        self.eos = frozenset(eos)
        vocab = ensemble.teacher.config.sizes['V']
        protected_V = np.zeros(vocab, bool)
        protected_V[list(protected)] = True
        # An id of -1 never matches, so a run without EOS has the same program.
        self.constants = loop.Constants(jnp.asarray(list(eos) or [-1], jnp.int32), jnp.asarray(protected_V))
        self.occupancy = Occupancy()
        self._prefill = jax.jit(ensemble.prefill)
        self._insert = jax.jit(
            lambda rows, caches, *new: loop.insert(ensemble, rows, caches, *new), donate_argnums=(0, 1)
        )
        self._chunk = jax.jit(
            lambda weights, rows, caches, constants: loop.chunk(
                ensemble, weights, rows, caches, constants, config.chunk, config.record
            ),
            donate_argnums=(1, 2),
        )
        self._start = jax.jit(lambda defence: loop.start(ensemble, defence, config.slots, config.cache_length))

    def compiled_programs(self) -> int:
        """How many programs were compiled so far; it stays put after one request per bucket."""
        programs: tuple[Any, ...] = (self._prefill, self._insert, self._chunk, self._start)
        return sum(program._cache_size() for program in programs)

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
        if not all(0 <= token < limit for token in request.tokens):
            raise InputError(f'{request.id}: a prompt token lies outside the vocabulary of {limit}')

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
        yield from _Run(self, requests, stop_fn).completions()


class _Run:
    """One call of generate: the queue, the slots and the chunk in flight."""

    def __init__(self, engine: Engine, requests: Sequence[Request], stop_fn: StopFn | None):
        self.engine, self.stop_fn = engine, stop_fn
        self.queue = _prefill_batches(requests, engine.config)
        self.prefixes: collections.deque[_Prefix] = collections.deque()
        self.slots: list[_Live | None] = [None] * engine.config.slots
        structure = jax.tree.map(np.float32, requests[0].defence)  # 1 and 1.0 are one program
        self.rows, self.caches = engine._start(structure)

    def completions(self) -> Iterator[Completion]:
        in_flight: _Chunk | None = None
        while True:
            self.refill()
            dispatched = self.dispatch() if any(self.slots) else None
            if in_flight is not None:
                yield from self.read(in_flight)
            in_flight = dispatched
            if in_flight is None and not any(self.slots) and not self.queue and not self.prefixes:
                return

    def refill(self) -> None:
        """Fills every free slot from the prefilled prompts, prefilling more as needed."""
        free = collections.deque(b for b, live in enumerate(self.slots) if live is None)
        while free and (self.prefixes or self.queue):
            if not self.prefixes:
                self.prefixes.append(self.prefill(self.queue.popleft()))
            self.insert(self.prefixes[0], free)
            if not any(self.prefixes[0].requests):
                self.prefixes.popleft()

    def prefill(self, batch: list[list[Request]]) -> _Prefix:
        config = self.engine.config
        length = _bucket(len(batch[0][0].tokens), config.buckets)
        tokens_BL = np.zeros((config.prefill_rows, length), np.int32)
        for b, samples in enumerate(batch):
            prompt = samples[0].tokens
            tokens_BL[b, : len(prompt)] = prompt
        return _Prefix(self.engine._prefill(self.engine.weights, tokens_BL), [list(samples) for samples in batch])

    def insert(self, prefix: _Prefix, free: collections.deque[int]) -> None:
        """Moves up to prefill_rows requests from `prefix` into free slots, in one device call."""
        size, slots = self.engine.config.prefill_rows, self.engine.config.slots
        sources = np.zeros(size, np.int32)
        targets = np.full(size, slots, np.int32)  # past the last slot: dropped
        moved: list[Request] = []
        for source, samples in enumerate(prefix.requests):
            while samples and free and len(moved) < size:
                sources[len(moved)], targets[len(moved)] = source, free[0]
                self.slots[free.popleft()] = _Live(samples[0])
                moved.append(samples.pop(0))
        padded = moved + moved[-1:] * (size - len(moved))
        new = _request_rows(padded, self.engine.seed)
        self.rows, self.caches = self.engine._insert(self.rows, self.caches, new, prefix.caches, sources, targets)

    def dispatch(self) -> _Chunk:
        engine = self.engine
        self.rows, self.caches, tokens_TB, statistics = engine._chunk(
            engine.weights, self.rows, self.caches, engine.constants
        )
        sent = _Chunk(list(self.slots), tokens_TB, statistics)
        for b, live in enumerate(self.slots):
            if live is not None:
                live.dispatched += engine.config.chunk
                if live.dispatched >= live.request.max_new_tokens:
                    self.slots[b] = None  # it ends in this chunk at the latest: the slot can be refilled right after
        return sent

    def read(self, chunk: _Chunk) -> Iterator[Completion]:
        """Waits for a chunk, hands its tokens to their owners and yields those that ended."""
        tokens_TB = np.asarray(chunk.tokens_TB)
        statistics = {name: np.asarray(value) for name, value in chunk.statistics.items()}
        emitted = 0
        for b, live in enumerate(chunk.owners):
            if live is None or live.finished:
                continue
            new = tokens_TB[:, b]
            count = int(np.sum(new >= 0))
            live.tokens.extend(new[:count].tolist())
            for name, value in statistics.items():
                live.statistics.setdefault(name, []).extend(value[:count, b].tolist())
            emitted += count
            completion = self.ended(live)
            if completion is not None:
                if self.slots[b] is live:
                    self.slots[b] = None
                live.finished = True
                yield completion
        self.count(emitted, tokens_TB.size)

    def ended(self, live: _Live) -> Completion | None:
        kept = self.stop_fn(live.tokens) if self.stop_fn else None
        if kept is not None:
            stop = 'stop_string'
        elif live.tokens and live.tokens[-1] in self.engine.eos:
            kept, stop = len(live.tokens), 'eos'
        elif len(live.tokens) >= live.request.max_new_tokens:
            kept, stop = len(live.tokens), 'length'
        else:
            return None
        cut = {name: values[:kept] for name, values in live.statistics.items()}
        return Completion(live.request.id, tuple(live.tokens[:kept]), stop, cut)

    def count(self, emitted: int, slot_steps: int) -> None:
        occupancy = self.engine.occupancy
        occupancy.tokens += emitted
        occupancy.slot_steps += slot_steps
        if self.queue or self.prefixes:
            occupancy.busy_tokens += emitted
            occupancy.busy_slot_steps += slot_steps


def _bucket(length: int, buckets: Sequence[int]) -> int:
    return next(bucket for bucket in buckets if length <= bucket)


def _prefill_batches(requests: Sequence[Request], config: DecodeConfig) -> collections.deque[list[list[Request]]]:
    """Prompts of one bucket, `prefill_rows` at a time; requests with equal tokens share one row."""
    by_prompt: dict[tuple[int, ...], list[Request]] = collections.defaultdict(list)
    for request in requests:
        by_prompt[request.tokens].append(request)
    by_bucket: dict[int, list[list[Request]]] = collections.defaultdict(list)
    for tokens, samples in by_prompt.items():
        by_bucket[_bucket(len(tokens), config.buckets)].append(samples)
    size = config.prefill_rows
    return collections.deque(
        group[i : i + size] for _, group in sorted(by_bucket.items()) for i in range(0, len(group), size)
    )


def _request_rows(requests: Sequence[Request], seed: int) -> loop.Rows:
    """The slots' numbers for these requests, as host arrays with a leading axis."""

    def stack(trees: list[Any], dtype: Any = None) -> Any:
        return jax.tree.map(lambda *xs: np.stack([np.asarray(x, dtype) for x in xs]), *trees)

    last = np.array([len(request.tokens) - 1 for request in requests], np.int32)
    fields: dict[str, Any] = {
        'token_B': np.array([request.tokens[-1] for request in requests], np.int32),
        'position_B': last,
        'end_B': last + np.array([request.max_new_tokens for request in requests], np.int32),
        'done_B': np.zeros(len(requests), bool),
        'key_B': np.stack([row_key(seed, request.id.noise_name) for request in requests]),
        'sampling': stack([request.sampling for request in requests], np.float32),
        'defence': stack([request.defence for request in requests], np.float32),
        'state': stack([request.defence.init() for request in requests]),
    }
    return loop.Rows(**fields)
