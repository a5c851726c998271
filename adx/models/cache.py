"""Key/value caches: explicit pytrees, head-major, one pair of arrays per layer.

Head-major [B, G, S, K] keeps a head's keys together: decode attention on a CPU was four times slower in [B, S, G, K].
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

Array = jax.Array


@flax.struct.dataclass
class LayerCache:
    k_BGSK: Array
    v_BGSK: Array


@flax.struct.dataclass
class Cache:
    """Row b holds the token at position s in column s; columns past the row's position are never read."""

    layers: tuple[LayerCache, ...]


def empty_cache(num_layers: int, shape_BGSK: tuple[int, int, int, int], dtype: jnp.dtype) -> Cache:
    return Cache(
        tuple(LayerCache(jnp.zeros(shape_BGSK, dtype), jnp.zeros(shape_BGSK, dtype)) for _ in range(num_layers))
    )


def write(past: LayerCache | None, k_BLGK: Array, v_BLGK: Array, positions_BL: Array) -> LayerCache:
    """Writes new keys and values at their positions. Without a past the new ones are the cache (positions 0..L-1)."""
    if past is None:
        return LayerCache(rearrange(k_BLGK, 'B L G K -> B G L K'), rearrange(v_BLGK, 'B L G K -> B G L K'))
    rows_B1 = jnp.arange(positions_BL.shape[0])[:, None]

    def place(cache_BGSK: Array, new_BLGK: Array) -> Array:
        return cache_BGSK.at[rows_B1, :, positions_BL].set(new_BLGK.astype(cache_BGSK.dtype))

    return LayerCache(place(past.k_BGSK, k_BLGK), place(past.v_BGSK, v_BLGK))
