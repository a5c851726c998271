"""Traces as padded rows of token ids, on which losses, gradients and scores are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax

from adx import struct
from adx.mesh import Layout

SHORTEST = 64  # tokens of the shortest batch
HALVED = 256  # from here on there is a length between one and its half


class Example(NamedTuple):
    """A trace as a proxy reads it: the ids of its prompt and of its completion, as the engine had them."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Batch(NamedTuple):
    """Right-padded rows, NumPy arrays until they are placed on the devices; targets are the completions' tokens."""

    tokens_BL: Any
    targets_BL: Any

    def on(self, layout: Layout | None) -> Batch:
        """On the devices, its rows split; each process has all of it. Without a layout it stays where it is."""
        return Batch(*(layout.place(x, 'B.') for x in self)) if layout else self


def batches(examples: Iterable[Example], rows: int) -> list[tuple[list[Example], Batch]]:
    """All examples in batches of `rows`, with what is in each, ordered by padded length and id.

    What is missing in the last batch of a length are rows without targets.
    """
    by_length: dict[int, list[Example]] = {}
    for example in sorted(examples):
        by_length.setdefault(bucket(_size(example)), []).append(example)
    return [
        (group[i : i + rows], _pad(group[i : i + rows], rows, length))
        for length, group in sorted(by_length.items())
        for i in range(0, len(group), rows)
    ]


def one_batch(examples: Iterable[Example]) -> Batch:
    """All examples, at least one, as the rows of one batch."""
    ordered = sorted(examples)
    return _pad(ordered, len(ordered), bucket(max(map(_size, ordered))))


def ends(targets_BL: np.ndarray) -> np.ndarray:
    """How many tokens each row has up to its last target, [B]; 0 without any."""
    last_B = targets_BL.shape[1] - np.argmax(targets_BL[:, ::-1], axis=1)
    return np.where(targets_BL.any(axis=1), last_B, 0)


def positions(tokens_BL: Any) -> jax.Array:
    """positions_BL of rows that begin in their first column."""
    return jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)


def map_rows(f: Callable[[Any], Any], rows: Any, ways: int) -> Any:
    """f of all rows, `ways` at a time, so that what is large in between exists for those alone.

    rows: arrays [B, ...], which may be split over devices into `ways` pieces: f has one row of each. f: of arrays
    [ways, ...] to arrays [ways, ...].
    """
    dealt = jax.tree.map(lambda x: rearrange(x, '(W B) ... -> B W ...', W=ways), rows)
    return jax.tree.map(lambda x: rearrange(x, 'B W ... -> (W B) ...'), lax.map(f, dealt))


def bucket(size: int, shortest: int = SHORTEST, halved: int = HALVED) -> int:
    """How many tokens a row is padded to: few lengths, so that programs are few, and long rows at most half as long
    again. halved: the length from which on there is one between it and its half."""
    double = 1 << (max(shortest, size) - 1).bit_length()
    between = double * 3 // 4
    return between if double >= halved and size <= between else double


def _size(example: Example) -> int:
    return len(example.prompt) + len(example.completion)


def _pad(examples: Sequence[Example], rows: int, length: int) -> Batch:
    batch = Batch(np.zeros((rows, length), np.int32), np.zeros((rows, length), bool))
    for row, (_, prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        batch.tokens_BL[row, :end] = (*prompt, *completion)
        batch.targets_BL[row, len(prompt) : end] = True
    return batch


@struct.dataclass
class Rows:
    """What one training step reads; a stack of students has an axis N before all of these.

    targets_BL: the completions' tokens. weights_BL: the factor of each target's loss, float32; it may be negative.
    segments_BL: which example of a packed row a token belongs to, from 1, 0 for padding; None where nothing is packed.
    positions_BL: each token's place in its own example.
    extras: name -> [B, L, ...], what a loss wants to know about a target, at the target's column and 0 elsewhere.
    """

    tokens_BL: Any
    targets_BL: Any
    weights_BL: Any
    positions_BL: Any
    segments_BL: Any = None
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What one student learns from, and the seed of the order.

    weights: example id -> factor of its loss, 1 where it is not named.
    extras: name -> example id -> an array with one entry per token of the completion, the same names for every one.
    """

    examples: Sequence[Example]
    seed: int = 0
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)


class Stream:
    """The batches of a stack of students, a function of the step alone: a resumed run reads what it would have read.

    A student reads all its rows once an epoch, in an order of its own that depends on nothing but its corpus; rows of
    about one length share a batch. All students of a step are padded to the longest of them.
    pack: several examples share a row of `length` tokens. dropped: per student, the examples longer than `length` or
    with an empty prompt or completion, which are left out. Raises ValueError where nothing is left.
    """

    def __init__(self, corpora: Sequence[Corpus], rows: int, length: int, pack: bool = False):
        self.rows, self.length, self.pack = rows, length, pack
        kept = [[e for e in c.examples if e.prompt and e.completion and _size(e) <= length] for c in corpora]
        self.dropped = tuple(len(c.examples) - len(k) for c, k in zip(corpora, kept, strict=True))
        for student, examples in enumerate(kept):
            if not examples:
                raise ValueError(
                    f'student {student} has no example of 1 to length = {length} tokens with prompt and completion, '
                    f'{self.dropped[student]} were dropped; raise length or give others'
                )
        self._decks = [_Deck(c, sorted(k), self) for c, k in zip(corpora, kept, strict=True)]

    def __call__(self, step: int) -> Rows:
        """[N, rows, L] NumPy arrays."""
        groups = [deck.batch(step) for deck in self._decks]
        length = max(self.padded(row) for group in groups for row in group)
        filled = [deck.fill(group, length) for deck, group in zip(self._decks, groups, strict=True)]
        return jax.tree.map(lambda *xs: np.stack(xs), *filled)

    def padded(self, row: Sequence[Example]) -> int:
        return self.length if self.pack else min(self.length, bucket(_size(row[0])))


class _Deck:
    """The rows of one student, shuffled anew every epoch."""

    def __init__(self, corpus: Corpus, examples: Sequence[Example], stream: Stream):
        self.corpus, self.stream = corpus, stream
        self.items = pack(examples, stream.length) if stream.pack else [[example] for example in examples]
        self.lengths = np.array([stream.padded(row) for row in self.items])
        self.batches = -(-len(self.items) // stream.rows)
        self._epoch, self._order = -1, np.empty(0, int)

    def batch(self, step: int) -> list[list[Example]]:
        epoch, index = divmod(step, self.batches)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return [self.items[i] for i in self._order[index] if i >= 0]

    def _shuffled(self, epoch: int) -> np.ndarray:
        """[batches, rows] indices of items, -1 where none is left. What a length leaves over joins the next longer."""
        random = np.random.default_rng((self.corpus.seed, epoch))
        order = random.permutation(len(self.items))
        order = order[np.argsort(self.lengths[order], kind='stable')]
        missing = self.batches * self.stream.rows - len(order)
        order = np.concatenate([order, np.full(missing, -1)]).reshape(self.batches, self.stream.rows)
        return order[random.permutation(self.batches)]

    def fill(self, group: Sequence[Sequence[Example]], length: int) -> Rows:
        shape = (self.stream.rows, length)
        extras = {name: self._empty(named, shape) for name, named in self.corpus.extras.items()}
        rows = Rows(
            np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32), np.zeros(shape, np.int32),
            np.zeros(shape, np.int32) if self.stream.pack else None, extras,
        )  # fmt: skip
        for row, examples in enumerate(group):
            start = 0
            for segment, example in enumerate(examples, 1):
                start = self._write(rows, row, start, segment, example)
        return rows

    def _empty(self, named: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        first = np.asarray(named[self.items[0][0].id])
        return np.zeros(shape + first.shape[1:], first.dtype)

    def _write(self, rows: Rows, row: int, start: int, segment: int, example: Example) -> int:
        """Writes an example into a row from column `start` on; the column behind it."""
        first, end = start + len(example.prompt), start + _size(example)
        rows.tokens_BL[row, start:end] = (*example.prompt, *example.completion)
        rows.targets_BL[row, first:end] = True
        rows.weights_BL[row, first:end] = self.corpus.weights.get(example.id, 1.0)
        rows.positions_BL[row, start:end] = np.arange(end - start)
        if rows.segments_BL is not None:
            rows.segments_BL[row, start:end] = segment
        for name, named in self.corpus.extras.items():
            rows.extras[name][row, first:end] = named[example.id]
        return end


def pack(examples: Sequence[Example], length: int) -> list[list[Example]]:
    """Examples of at most `length` tokens together in rows of `length`: the longest first, each into the first row
    that has room (first-fit decreasing).
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    shortest, opened = min(map(_size, examples)), 0
    for example in sorted(examples, key=lambda e: (-_size(e), e)):
        while opened < len(room) and room[opened] < shortest:
            opened += 1
        row = next((i for i in range(opened, len(room)) if room[i] >= _size(example)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(example)
        room[row] -= _size(example)
    return rows
