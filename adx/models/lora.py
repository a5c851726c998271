"""Low-rank adaptation: W becomes W + scale * B A (Hu et al., arXiv 2106.09685, eq. 3).

Adapters are a flat dict, 'blocks.0.attention.q.a' [J, inputs] and 'blocks.0.attention.q.b' [outputs, J], float32; J is
the rank. All functions are pure and may be mapped over a stack.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from adx.models.transformer import Model, Params

ATTENTION, MLP = ('q', 'k', 'v', 'o'), ('gate', 'up', 'down')
PROJECTIONS = (*ATTENTION, *MLP)
Array = jax.Array


def targets(model: Model, on: Sequence[str]) -> list[str]:
    """The paths of the weights that projections `on` name, in every block."""
    wanted = {f'attention.{name}' if name in ATTENTION else f'mlp.{name}' for name in on}
    return [path for path in model.axes if path.split('.', 2)[-1] in wanted]


def axes(model: Model, on: Sequence[str]) -> dict[str, str]:
    """The axis letters of every adapter."""
    letters: dict[str, str] = {}
    for path in targets(model, on):
        outputs, inputs = _sides(model.axes[path])
        letters |= {f'{path}.a': 'J' + inputs, f'{path}.b': outputs + 'J'}
    return letters


def init(model: Model, rank: int, on: Sequence[str], key: Array) -> Params:
    """Fresh adapters: A normal with deviation fan_in ** -0.5 and B zero, so that merging them changes nothing."""
    adapters = {}
    for path, letters in axes(model, on).items():
        shape = tuple(rank if letter == 'J' else model.config.sizes[letter] for letter in letters)
        if path.endswith('.b'):
            adapters[path] = jnp.zeros(shape)
            continue
        drawn = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), shape)
        adapters[path] = drawn * math.prod(shape[1:]) ** -0.5
    return adapters


def merge(model: Model, params: Params, adapters: Params, scale: float | Array) -> Params:
    """params with W + scale * B A where there is an adapter; `scale` is alpha / rank."""
    merged = dict(params)
    for path in (path.removesuffix('.a') for path in adapters if path.endswith('.a')):
        outputs, inputs = _sides(model.axes[path])
        change = jnp.einsum(
            f'{outputs}J,J{inputs}->{outputs}{inputs}', adapters[f'{path}.b'], adapters[f'{path}.a'],
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        merged[path] = params[path] + (scale * change).astype(params[path].dtype)
    return merged


def _sides(letters: str) -> tuple[str, str]:
    """A projection's outputs and inputs: the model's width is the one side, all other axes are the other."""
    return ('D', letters[1:]) if letters[0] == 'D' else (letters[:-1], letters[-1])
