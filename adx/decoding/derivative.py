"""Derivatives along directions of the weights: exact, or the difference of two passes.

A pass is `run(linear, *primals)`: a pure function of params, and of caches where it has a past, that multiplies with
`linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adx.models.products import fused_linear, linear
from adx.models.transformer import Params
from adx.types import Array

Run = Callable[..., Any]


def exact(run: Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """(run's results, their derivatives along `tangents`, which match `primals`), by forward-mode differentiation."""
    return jax.jvp(functools.partial(run, fused_linear), primals, tangents)


def exact_several(run: Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The same along M directions: leaves of `tangents`, and of the derivatives, have a leading axis M.

    The directions share one primal pass and every read of its weights and caches.
    """
    return jax.vmap(functools.partial(exact, run, primals), out_axes=(None, 0))(tangents)


def two_passes(run: Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The results of both copies of the method 'difference': `primals` hold theta + eps g and its caches, `tangents`
    theta - eps g and its own."""
    return run(linear, *primals), run(linear, *tangents)


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
