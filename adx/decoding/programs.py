"""The compiled programs of engines, shared by those of the same models and shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adx.decoding import loop
from adx.decoding.ensemble import Ensemble
from adx.types import Array

KEPT = 32  # ensembles and shapes whose programs a process keeps, the last ones used
Program = Any  # a jitted function: called, lowered, and asked for the size of its cache


class Programs(NamedTuple):
    """prefill(weights, tokens_BL) -> caches; see Ensemble.prefill.
    insert(rows, caches, new, prefix, sources, targets) -> rows, caches; see loop.insert. rows and caches are donated.
    chunk(weights, rows, caches, constants) -> rows, caches, tokens_TB, statistics; see loop.chunk. Donates as insert.
    start(defence) -> rows, caches; see loop.start.
    resize(x, length, axis, sharding) -> x cut or padded with zeros to `length`.
    """

    prefill: Program
    insert: Program
    chunk: Program
    start: Program
    resize: Program

    def compiled(self) -> int:
        """How many were compiled so far, by this engine and those it shares them with."""
        return sum(program._cache_size() for program in self)


@functools.lru_cache(KEPT)
def programs(ensemble: Ensemble, slots: int, length: int, chunk: int, record: str) -> Programs:
    """Nothing is compiled yet. length: of the caches that `start` makes, in tokens; chunk: steps."""
    formats = ensemble.formats(jax.eval_shape(lambda: ensemble.empty_caches(slots, length)))

    def jit(function: Callable[..., Any], donated: tuple[int, ...] = (), outputs: Any = (None, formats)) -> Program:
        return jax.jit(function, donate_argnums=donated, out_shardings=outputs)

    return Programs(
        prefill=jax.jit(ensemble.prefill),
        insert=jit(functools.partial(loop.insert, ensemble), (0, 1)),
        chunk=jit(
            lambda weights, rows, caches, constants: loop.chunk(
                ensemble, weights, rows, caches, constants, chunk, record
            ),
            (1, 2),
            (None, formats, None, None),
        ),
        start=jit(lambda defence: loop.start(ensemble, defence, slots, length)),
        resize=jax.jit(_resized, static_argnums=(1, 2, 3)),
    )


def _resized(x: Array, length: int, axis: int, sharding: jax.sharding.Sharding) -> Array:
    if length < x.shape[axis]:
        y = lax.slice_in_dim(x, 0, length, axis=axis)
    else:
        y = jnp.pad(x, [(0, (length - size) * (i == axis)) for i, size in enumerate(x.shape)])
    return lax.with_sharding_constraint(y, sharding)
