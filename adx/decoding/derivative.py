"""Derivatives of a pass along directions of the weights: exact, or the central difference of two passes.

A pass is `run(linear, *primals)`: a pure function of params, and of caches where it has a past, that multiplies with
`linear`. What belongs to directions has a leading axis M.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adx.models.transformer import Params, fused_linear, linear
from adx.types import Array

Run = Callable[..., Any]


def exact(run: Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """(run's results, their derivatives along each of the M `tangents` of `primals`), by forward-mode differentiation.

    One direction shares every read of a weight or a cache with the primal pass. Several share the primal pass itself:
    only what depends on a direction is batched.
    """
    if len(jax.tree.leaves(tangents)[0]) == 1:
        one = jax.tree.map(lambda x: x[0], tangents)
        result, derivative = jax.jvp(functools.partial(run, fused_linear), primals, one)
        return result, jax.tree.map(lambda x: x[None], derivative)
    push = functools.partial(jax.jvp, functools.partial(run, linear), primals)
    return jax.vmap(push, out_axes=(None, 0))(tangents)


def two_passes(run: Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The results of both copies of the method 'difference': `primals` hold theta + eps g and its caches, `tangents`
    theta - eps g and its own, with an axis M of 1."""
    minus = run(linear, *jax.tree.map(lambda x: x[0], tangents))
    return run(linear, *primals), jax.tree.map(lambda x: x[None], minus)


def central(plus: Array, minus: Array, eps: float) -> tuple[Array, Array]:
    """(value, derivative) between the results of the two copies; float32. The value is off by order eps squared."""
    return (plus + minus) / 2, (plus - minus) / (2 * eps)


def difference_weights(params: Params, directions: Params, eps: float) -> tuple[Params, Params]:
    """(theta + eps g, theta - eps g): what a group with `difference` = eps takes for `params` and for `directions`.

    params: [N, ...] each; directions and the second result: [N, 1, ...] each. Sums are float32, and rounded to the
    params' dtypes at the end.
    """

    def moved(path: str, step: float) -> Array:
        theta, g = params[path], directions[path]
        return (theta[:, None].astype(jnp.float32) + step * g.astype(jnp.float32)).astype(theta.dtype)

    return {path: moved(path, eps)[:, 0] for path in params}, {path: moved(path, -eps) for path in params}
