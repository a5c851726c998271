"""Rows that are read behind their beginnings, of which rows that begin alike read one.

What a search by gradient compares are many texts of one trace, all behind one prompt, whose keys and values, and the
derivatives of these by the weights, are the same for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from adx.batching import Batch, bucket, ends, positions
from adx.mesh import Layout
from adx.models.cache import HeadCache, LayerHead
from adx.models.transformer import Model, Params

SHORTEST, HALVED = 16, 64  # columns of heads and of tails, see batching.bucket


class Heads(NamedTuple):
    """Beginnings of rows. tokens_UP: each once, right-padded; of_B, sizes_B: which is a row's, and its tokens."""

    tokens_UP: Any
    of_B: Any
    sizes_B: Any

    def on(self, layout: Layout | None) -> Heads:
        """As Batch.on."""
        if layout is None:
            return self
        return Heads(layout.place(self.tokens_UP, 'B.'), layout.place(self.of_B, 'B'), layout.place(self.sizes_B, 'B'))


@dataclasses.dataclass(frozen=True)
class Behind:
    """Stands for a model whose rows, counted from position 0, are read behind their heads."""

    model: Model
    heads: Heads

    @property
    def config(self) -> Any:
        return self.model.config

    def apply(self, params: Params, *args: Any, method: str = '__call__') -> Any:
        """As Model.apply without a cache, and with all of its derivatives."""
        if method in ('inputs', 'unembed'):
            return self.model.apply(params, *args, method=method)
        x, positions_BL = args
        if method == 'states':
            behind_BL = positions_BL + self.heads.sizes_B[:, None]
            return self.model.apply(params, x, behind_BL, self._read(params), method='states')
        assert method == '__call__'
        states, cache = self.apply(params, self.apply(params, x, method='inputs'), positions_BL, method='states')
        return self.apply(params, states[-1], method='unembed'), cache

    def _read(self, params: Params) -> HeadCache:
        tokens_UP, of_B, sizes_B = self.heads
        positions_UP = positions(tokens_UP)
        x_UPD = self.model.apply(params, tokens_UP, method='inputs')
        _, cache = self.model.apply(params, x_UPD, positions_UP, method='states')
        return HeadCache(tuple(LayerHead(one.k_BGKS[of_B], one.v_BGSK[of_B], sizes_B) for one in cache.layers))


def behind(model: Model, heads: Heads) -> Any:
    """The model itself where rows have no heads."""
    return Behind(model, heads) if heads.tokens_UP.shape[1] else model


class Pass(NamedTuple):
    """Some rows of a batch, cut where tails begin. rows: which; rows without targets stand behind them."""

    rows: np.ndarray
    tails: Batch
    heads: Heads
    starts_B: np.ndarray

    def cut(self, x_BL: np.ndarray) -> np.ndarray:
        """The tails' part of what is said about every token of the batch."""
        return _cut(x_BL[self.rows], self.starts_B, self.tails.tokens_BL.shape)


def passes(batch: Batch, of_B: np.ndarray, most: int, ways: int, whole: bool, shortest: int) -> Iterator[Pass]:
    """All rows in passes of few shapes, those of short tails first.

    of_B: rows of the same number begin alike. most: rows of each of the `ways` pieces that a mesh splits them into; the
    last passes are of a quarter of them. whole: no row has a head. shortest: columns of tails.
    A head ends before the token that predicts the row's first target.
    """
    firsts_B = np.argmax(batch.targets_BL, axis=1)  # 0 without targets
    starts_B = np.zeros_like(firsts_B) if whole else np.maximum(firsts_B - 1, 0)
    sizes_B = np.maximum(ends(batch.targets_BL) - starts_B, 1)
    heads_B = np.array([bucket(start, SHORTEST, HALVED) if start else 0 for start in starts_B.tolist()])
    tails_B = np.array([bucket(size, max(shortest, SHORTEST), HALVED) for size in sizes_B.tolist()])
    order, done = np.lexsort((heads_B, tails_B)), 0
    while done < len(order):
        left = -(-(len(order) - done) // ways)
        rows = (most if 4 * left >= 3 * most else max(1, most // 4)) * ways
        mine = order[done : done + rows]
        half = most // 2 * ways  # of the heads that a pass of many rows may have
        _, firsts_U, whose_B = np.unique(of_B[mine], return_index=True, return_inverse=True)
        some = half if len(firsts_U) <= half < rows else rows
        shapes = (some, heads_B[mine].max()), (rows, tails_B[mine].max())
        yield _pass(batch, mine, starts_B[mine], (firsts_U, whose_B), shapes)
        done += rows


def _pass(
    batch: Batch, mine: np.ndarray, starts_B: np.ndarray, heads: tuple[np.ndarray, np.ndarray],
    shapes: Sequence[tuple[int, int]],
) -> Pass:  # fmt: skip
    """heads: the first row of each, and which is a row's. shapes: of heads and of tails."""
    firsts_U, of_B = heads
    heads_UP, tails = np.zeros(shapes[0], np.int32), Batch(*(_cut(x[mine], starts_B, shapes[1]) for x in batch))
    own_UP = batch.tokens_BL[mine[firsts_U], : shapes[0][1]]
    heads_UP[: len(firsts_U), : own_UP.shape[1]] = own_UP
    fill = np.zeros(len(tails.tokens_BL) - len(mine), np.int32)
    filled = (np.concatenate([x.astype(np.int32), fill]) for x in (of_B, starts_B))
    return Pass(mine, tails, Heads(heads_UP, *filled), starts_B)


def _cut(x_BL: np.ndarray, starts_B: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """From each row's start on, in an array of that shape, 0 where x has nothing."""
    columns_BL = starts_B[:, None] + np.arange(shape[1])
    some_BL = np.take_along_axis(x_BL, np.minimum(columns_BL, x_BL.shape[1] - 1), axis=1)
    cut_BL = np.zeros(shape, x_BL.dtype)
    cut_BL[: len(x_BL)] = np.where(columns_BL < x_BL.shape[1], some_BL, 0)
    return cut_BL
