"""Key/value caches: explicit pytrees, head-major, one pair of arrays per layer.

Keys are [B, G, K, S] and values [B, G, S, K], the layouts in which the two products of a decode step read a head's
cache front to back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from adx import struct

Array = jax.Array


@struct.dataclass
class LayerCache:
    k_BGKS: Array
    v_BGSK: Array


@struct.dataclass
class LayerHead:
    """Keys and values that rows begin with; of row b the first sizes_B[b] columns count. New ones are put behind all
    columns, which has every derivative: a LayerCache, which is written into, has none backwards.
    """

    k_BGKS: Array
    v_BGSK: Array
    sizes_B: Array


Past = LayerCache | LayerHead | None


@struct.dataclass
class HeadCache:
    """Of a head in every layer."""

    layers: tuple[LayerHead, ...]


@struct.dataclass
class Cache:
    """Row b holds the token at position s in column s; columns past the row's position are never read."""

    layers: tuple[LayerCache, ...]

    @property
    def length(self) -> int:
        return self.layers[0].v_BGSK.shape[-2]


def empty_cache(num_layers: int, rows: int, heads: int, length: int, head_dim: int, dtype: jnp.dtype) -> Cache:
    def layer() -> LayerCache:
        return LayerCache(
            jnp.zeros((rows, heads, head_dim, length), dtype), jnp.zeros((rows, heads, length, head_dim), dtype)
        )

    return Cache(tuple(layer() for _ in range(num_layers)))


def write(past: Past, k_BLGK: Array, v_BLGK: Array, positions_BL: Array) -> LayerCache:
    """Writes new keys and values at their positions. Without a past the new ones are the cache (positions 0..L-1)."""
    if not isinstance(past, LayerCache):
        k_BGKS, v_BGSK = rearrange(k_BLGK, 'B L G K -> B G K L'), rearrange(v_BLGK, 'B L G K -> B G L K')
        if past is not None:
            k_BGKS = jnp.concatenate([past.k_BGKS, k_BGKS], axis=3)
            v_BGSK = jnp.concatenate([past.v_BGSK, v_BGSK], axis=2)
        return LayerCache(k_BGKS, v_BGSK)
    k_BGKS = _put_columns(past.k_BGKS, k_BLGK.astype(past.k_BGKS.dtype), positions_BL)
    v_BGSK = _put_rows(past.v_BGSK, v_BLGK.astype(past.v_BGSK.dtype), positions_BL)
    return LayerCache(k_BGKS, v_BGSK)


def positions_of_keys(past: Past, layer: LayerCache) -> Array:
    """Of each column of what `write` made, [S] or [B, 1, S]; padding of a head is behind everything."""
    columns_S = jnp.arange(layer.v_BGSK.shape[2])
    if not isinstance(past, LayerHead):
        return columns_S
    head, sizes_B1S = past.v_BGSK.shape[2], past.sizes_B[:, None, None]
    behind_B1S = jnp.where(columns_S < head, jnp.iinfo(jnp.int32).max, sizes_B1S + columns_S - head)
    return jnp.where(columns_S < sizes_B1S, columns_S, behind_B1S)


def _putter(place: Callable[..., Array]) -> Callable[..., Array]:
    """place(array, indices of stack, rows and heads, positions, new) as (array, new_BLGK, positions_BL) -> array.

    Every index is said, in the order of the axes, also that of a stack: else a TPU copies the whole cache into the
    order in which it is indexed, and back. A row's positions differ from each other, which is said too, because a
    scatter that may overlap is differentiated by way of several more arrays of the cache's size.
    """

    def indices(x: Array, positions_BL: Array) -> tuple[Array, Array, Array]:
        rows_B11, heads_G = jnp.arange(x.shape[-4])[:, None, None], jnp.arange(x.shape[-3])
        return rows_B11, heads_G, positions_BL[:, :, None]

    @jax.custom_batching.custom_vmap
    def put(x: Array, new_BLGK: Array, positions_BL: Array) -> Array:
        return place(x, (), *indices(x, positions_BL), new_BLGK)

    @put.def_vmap
    def mapped(size: int, batched: Sequence[bool], x: Array, new: Array, positions: Array) -> tuple[Array, bool]:
        if not any(batched):  # of values whose derivatives alone are mapped
            return place(x, (), *indices(x, positions), new), False
        stack = jnp.arange(size)[:, None, None, None]
        x, new = (y if b else jnp.broadcast_to(y, (size, *y.shape)) for y, b in zip((x, new), batched, strict=False))
        rows_B11, heads_G, _ = indices(x, positions[0] if batched[2] else positions)
        return place(x, (stack,), rows_B11, heads_G, positions[..., None], new), True

    return put


_put_columns = _putter(
    lambda x, stack, rows, heads, s, new: x.at[(*stack, rows, heads, slice(None), s)].set(new, unique_indices=True)
)
_put_rows = _putter(
    lambda x, stack, rows, heads, s, new: x.at[(*stack, rows, heads, s)].set(new, unique_indices=True)
)


def place_prefix(cache: Cache, prefix: Cache, sources: Array, targets: Array) -> Cache:
    """Copies rows `sources` of a shorter cache into rows `targets`; targets past the last row are dropped.

    The columns behind become 0: they weigh nothing, but 0 times a nan that an earlier row left there would be nan.
    """
    length = prefix.length

    def place(old: LayerCache, new: LayerCache) -> LayerCache:
        k_BGKS, v_BGSK = (x.at[targets].set(0, mode='drop') for x in (old.k_BGKS, old.v_BGSK))
        return LayerCache(
            k_BGKS.at[targets, :, :, :length].set(new.k_BGKS[sources], mode='drop'),
            v_BGSK.at[targets, :, :length].set(new.v_BGSK[sources], mode='drop'),
        )

    return Cache(tuple(place(old, new) for old, new in zip(cache.layers, prefix.layers, strict=True)))


def map_layout(place: Callable[[Array, str], Array], cache: Cache, lead: str = '') -> Cache:
    """Applies place(array, axes) to every array of a cache; `lead` are the axes of a stack of caches."""
    return Cache(
        tuple(
            LayerCache(place(layer.k_BGKS, lead + 'BGKS'), place(layer.v_BGSK, lead + 'BGSK'))
            for layer in cache.layers
        )
    )
