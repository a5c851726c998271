"""The products of a decoder with weights and caches: plain, and fused with derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

Array = jax.Array
Linear = Callable[..., Array]  # (equation, x, weight or cache, dtype of the result = x's) -> y


def linear(equation: str, x: Array, w: Array, dtype: Any = None) -> Array:
    """The plain product of activations and a weight or a cache, in the activations' dtype; the result in `dtype`."""
    return jnp.einsum(equation, x, w.astype(x.dtype), precision=_precision(x.dtype), preferred_element_type=dtype)


@jax.custom_batching.custom_vmap
def lookup(w_VD: Array, tokens: Array) -> Array:
    """The rows of w that tokens name, in a decode step: of a stack it says every index, for the reason in cache.write.

    It has no gradient.
    """
    return w_VD[tokens]


@lookup.def_vmap
def _stacked_lookup(size: int, batched: Sequence[bool], w: Array, tokens: Array) -> tuple[Array, bool]:
    if not batched[0]:
        return w[tokens], batched[1]
    tokens = tokens if batched[1] else tokens[None]
    return w[jnp.arange(size).reshape(-1, *(1,) * (tokens.ndim - 1)), tokens], True


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def fused_linear(equation: str, x: Array, w: Array, dtype: Any = None) -> Array:
    """`linear` whose value and derivatives read w once, for jvp of a decode step. Under grad of two layers it fails.

    x and dx become rows of one matrix along axis -2, positions or queries: no mesh splits those.
    """
    return linear(equation, x, w, dtype)


@fused_linear.defjvp
def _fused_linear_jvp(equation: str, dtype: Any, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    return _value_and_derivative(equation, dtype)(*primals, *tangents)


@functools.cache
def _value_and_derivative(equation: str, dtype: Any) -> Callable[..., tuple[Array, Array]]:
    """(x, w, dx, dw) -> (y, dy). Mapped over several (dx, dw) of one x and w it still reads w once, and y stays one."""
    product = functools.partial(linear, equation, dtype=dtype)

    def one(x: Array, w: Array, dx: Array, dw: Array) -> tuple[Array, Array]:
        y, dy = jnp.split(product(jnp.concatenate([x, dx], axis=-2), w), 2, axis=-2)
        return y, dy + product(x, dw)

    def mapped(size: int, batched: Sequence[bool], *arrays: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        if batched[0] or batched[1]:
            return jax.vmap(one, in_axes=tuple(0 if b else None for b in batched))(*arrays), (True, True)
        x, w, *tangents = arrays
        dx, dw = (
            t if b else jnp.broadcast_to(t, (size, *t.shape)) for t, b in zip(tangents, batched[2:], strict=True)
        )
        rows = jnp.concatenate([x[None], dx])
        y = product(rearrange(rows, 'N ... L D -> ... (N L) D'), w)
        y, dy = jnp.split(rearrange(y, '... (N L) F -> N ... L F', N=size + 1), [1])
        # x is repeated, for XLA would transpose dw to make a product of one x with many dw.
        return (y[0], dy + jax.vmap(product)(jnp.broadcast_to(x, (size, *x.shape)), dw)), (False, True)

    pair = jax.custom_batching.custom_vmap(one)
    pair.def_vmap(mapped)
    return pair


def _precision(dtype: jnp.dtype) -> jax.lax.Precision:
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
