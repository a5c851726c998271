"""The host side of decoding: slots are refilled while the device works.

A chunk is dispatched, then the chunk before it is read while it runs. A row that ended in chunk i is therefore seen
during chunk i + 1 and its slot refilled before chunk i + 2, except that ends by length are known in advance.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from adx import pace
from adx.decoding import loop
from adx.decoding.ensemble import Caches
from adx.hashing import row_key
from adx.types import POISONED, Completion, Request

if TYPE_CHECKING:
    from adx.decoding.engine import DecodeConfig, Engine

StopFn = Callable[[Sequence[int]], int | None]
PATIENCE = 1  # chunks beyond the next that a shorter cache must serve: moving into it copies it


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
    poisoned: bool = False
    finished: bool = False


class _Chunk(NamedTuple):
    owners: list[_Live | None]  # who sat in each slot when the chunk was dispatched
    tokens_TB: jax.Array
    statistics: dict[str, jax.Array]


class Slots:
    """One call of generate: the queue, the slots and the chunk in flight."""

    def __init__(self, engine: Engine, requests: Sequence[Request], stop_fn: StopFn | None):
        self.engine, self.stop_fn = engine, stop_fn
        self.queue = _prefill_batches(requests, engine.config)
        self.prefixes: collections.deque[_Prefix] = collections.deque()
        self.slots: list[_Live | None] = [None] * engine.config.slots
        self.rows, self.caches = engine.start(requests[0].defence)

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
        length = bucket_of(len(batch[0][0].tokens), config.buckets)
        tokens_BL = np.zeros((config.prefill_rows, length), np.int32)
        for b, samples in enumerate(batch):
            prompt = samples[0].tokens
            tokens_BL[b, : len(prompt)] = prompt
        prefix = self.engine.programs.prefill(self.engine.weights, tokens_BL)
        return _Prefix(prefix, [list(samples) for samples in batch])

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
        self.fit()
        padded = moved + moved[-1:] * (size - len(moved))
        new = request_rows(padded, self.engine.seed)
        insert = self.engine.programs.insert
        self.rows, self.caches = insert(self.rows, self.caches, new, prefix.caches, sources, targets)

    def fit(self) -> None:
        """Moves the caches to the shortest length that holds every live row for one more chunk."""
        config, lengths = self.engine.config, self.engine.config.cache_lengths
        reach = max(self.reach(live) for live in self.slots if live is not None)
        needed = next(length for length in lengths if length >= reach)
        lasting = next((length for length in lengths if length >= reach + PATIENCE * config.chunk), lengths[-1])
        current = self.caches.teacher.length
        target = needed if needed > current else min(current, lasting)
        if target != current:
            self.caches = self.engine.resize(self.caches, target)

    def reach(self, live: _Live) -> int:
        """How many columns of the cache a row has filled after the next chunk at most."""
        config, length = self.engine.config, len(live.request.tokens)
        new = min(live.dispatched + config.chunk, live.request.max_new_tokens)
        return max(length - 1 + new, bucket_of(length, config.buckets))

    def dispatch(self) -> _Chunk:
        engine = self.engine
        pace.step()
        self.fit()
        self.rows, self.caches, tokens_TB, statistics = engine.programs.chunk(
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
            live.poisoned = loop.POISON in new
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
        elif live.poisoned:
            kept, stop = len(live.tokens), POISONED
        elif live.tokens and live.tokens[-1] in self.engine.eos:
            kept, stop = len(live.tokens), 'eos'
        elif len(live.tokens) >= live.request.max_new_tokens:
            kept, stop = len(live.tokens), 'length'
        else:
            return None
        cut = {name: values[:kept] for name, values in live.statistics.items()}
        if not any(cut['fallback']):
            del cut['fallback']
        return Completion(live.request.id, tuple(live.tokens[:kept]), stop, cut)

    def count(self, emitted: int, slot_steps: int) -> None:
        occupancy = self.engine.occupancy
        occupancy.tokens += emitted
        occupancy.slot_steps += slot_steps
        if self.queue or self.prefixes:
            occupancy.busy_tokens += emitted
            occupancy.busy_slot_steps += slot_steps


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    return next(bucket for bucket in buckets if length <= bucket)


def _prefill_batches(requests: Sequence[Request], config: DecodeConfig) -> collections.deque[list[list[Request]]]:
    """Prompts of one bucket, `prefill_rows` at a time; requests with equal tokens share one row."""
    by_prompt: dict[tuple[int, ...], list[Request]] = collections.defaultdict(list)
    for request in requests:
        by_prompt[request.tokens].append(request)
    by_bucket: dict[int, list[list[Request]]] = collections.defaultdict(list)
    for tokens, samples in by_prompt.items():
        by_bucket[bucket_of(len(tokens), config.buckets)].append(samples)
    size = config.prefill_rows
    return collections.deque(
        group[i : i + size] for _, group in sorted(by_bucket.items()) for i in range(0, len(group), size)
    )


def request_rows(requests: Sequence[Request], seed: int) -> loop.Rows:
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
        'defended_B': np.array([request.defended for request in requests]),
        'span_B': np.zeros(len(requests), np.int32),
        'sampling': stack([request.sampling for request in requests], np.float32),
        'defence': stack([request.defence for request in requests], np.float32),
        'state': stack([request.defence.init() for request in requests]),
    }
    return loop.Rows(**fields)
