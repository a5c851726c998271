"""Key/value caches: explicit pytrees, head-major, one pair of arrays per layer.

Keys are [B, G, K, S] and values [B, G, S, K], the layouts in which the two products of a decode step read a head's
cache front to back.
"""

from __future__ import annotations

from collections.abc import Callable

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


def write(past: LayerCache | None, k_BLGK: Array, v_BLGK: Array, positions_BL: Array) -> LayerCache:
    """Writes new keys and values at their positions. Without a past the new ones are the cache (positions 0..L-1).

    A row's positions differ from each other. Said to XLA, because a scatter that may overlap is differentiated by
    way of several more arrays of the cache's size.
    """
    if past is None:
        return LayerCache(rearrange(k_BLGK, 'B L G K -> B G K L'), rearrange(v_BLGK, 'B L G K -> B G L K'))
    rows_B1 = jnp.arange(positions_BL.shape[0])[:, None]
    k_BGKS = past.k_BGKS.at[rows_B1, :, :, positions_BL].set(k_BLGK.astype(past.k_BGKS.dtype), unique_indices=True)
    v_BGSK = past.v_BGSK.at[rows_B1, :, positions_BL].set(v_BLGK.astype(past.v_BGSK.dtype), unique_indices=True)
    return LayerCache(k_BGKS, v_BGSK)


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
