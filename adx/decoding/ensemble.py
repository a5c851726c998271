"""The teacher and its proxies as one forward pass.

Proxies of one architecture are stacked on a leading axis and vmapped; other architectures run side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adx.mesh import PROXY, Layout
from adx.models.cache import Cache, map_layout
from adx.models.transformer import Model, Params
from adx.types import Array


@dataclasses.dataclass(frozen=True)
class Group:
    """`count` proxies of one architecture; their params and caches have a leading axis N."""

    model: Model
    layout: Layout
    count: int


class Weights(NamedTuple):
    teacher: Params
    groups: tuple[Params, ...]


class Caches(NamedTuple):
    teacher: Cache
    groups: tuple[Cache, ...]

    def map(self, change: Callable[[Array, str], Array]) -> Caches:
        """Applies change(array, axes) to every array."""
        groups = (map_layout(change, cache, stacked=True) for cache in self.groups)
        return Caches(map_layout(change, self.teacher), tuple(groups))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Pure functions over `Weights` and `Caches`. All models share the vocabulary, padded to the same rows."""

    teacher: Model
    teacher_layout: Layout
    groups: tuple[Group, ...] = ()

    def prefill(self, weights: Weights, tokens_BL: Array) -> Caches:
        """Caches of the prompts, right-padded to L. Touches no vocabulary-sized tensor."""
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)

        def fill(model: Model, params: Params) -> Cache:
            return model.apply(params, tokens_BL, positions_BL, None, method='hidden')[1]

        teacher = fill(self.teacher, weights.teacher)
        groups = (
            _each(group, lambda p, m=group.model: fill(m, p), params)
            for group, params in zip(self.groups, weights.groups, strict=True)
        )
        return self.place(Caches(teacher, tuple(groups)))

    def step(self, weights: Weights, caches: Caches, token_B: Array, position_B: Array):
        """One token for every row: (teacher logits_BV, proxies' logits_NBV, caches), float32."""
        tokens_BL, positions_BL = token_B[:, None], position_B[:, None]
        logits_BLV, teacher = self.teacher.apply(weights.teacher, tokens_BL, positions_BL, caches.teacher)
        proxy_logits, groups = [], []
        for group, params, cache in zip(self.groups, weights.groups, caches.groups, strict=True):
            run = lambda p, c, m=group.model: m.apply(p, tokens_BL, positions_BL, c)  # noqa: E731
            logits_NBLV, cache = _each(group, run, params, cache)
            # Said twice: told only the teacher's shards, XLA gathers the proxies' heads instead of moving their logits.
            proxy_logits.append(group.layout.shard(logits_NBLV[:, :, 0], 'NBV'))
            groups.append(cache)
        # The combine runs on the teacher's shards of rows and vocabulary, whatever split the proxies' own pass.
        logits_BV = self.teacher_layout.shard(logits_BLV[:, 0], 'BV')
        stacked = [self.teacher_layout.shard(x, '.BV') for x in proxy_logits]
        empty = jnp.zeros((0, *logits_BV.shape), jnp.float32)
        logits_NBV = jnp.concatenate(stacked) if stacked else empty
        return logits_BV, logits_NBV, self.place(Caches(teacher, tuple(groups)))

    def empty_caches(self, rows: int, length: int) -> Caches:
        groups = []
        for group in self.groups:
            one = group.model.empty_cache(rows, length)
            groups.append(jax.tree.map(lambda x, n=group.count: jnp.zeros((n, *x.shape), x.dtype), one))
        return self.place(Caches(self.teacher.empty_cache(rows, length), tuple(groups)))

    def place(self, caches: Caches) -> Caches:
        """Constrains caches to their layouts, inside jit."""
        teacher = map_layout(self.teacher_layout.shard, caches.teacher)
        groups = (
            map_layout(group.layout.shard, cache, stacked=True)
            for group, cache in zip(self.groups, caches.groups, strict=True)
        )
        return Caches(teacher, tuple(groups))


def _each(group: Group, run: Callable[..., Any], *stacked: Any) -> Any:
    """`run` of every proxy of a group, on the leading axis. One proxy is no batch: its products stay plain."""
    if group.count == 1:
        return jax.tree.map(lambda y: y[None], run(*jax.tree.map(lambda x: x[0], stacked)))
    return jax.vmap(run, spmd_axis_name=PROXY if 'N' in group.layout.rules else None)(*stacked)


def stack_params(model: Model, layout: Layout, members: Sequence[Params]) -> Params:
    """Stacks proxies of one architecture on a leading axis N, weight by weight, placed by `layout`."""
    stacked = {}
    for path, axes in model.axes.items():
        stack = jax.jit(lambda *xs: jnp.stack(xs), out_shardings=layout.sharding('N' + axes))
        stacked[path] = stack(*(member[path] for member in members))
    return stacked
