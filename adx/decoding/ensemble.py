"""The teacher and its proxies as one forward pass.

Proxies of one architecture are stacked on a leading axis and vmapped; other architectures run side by side.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adx.decoding import derivative
from adx.errors import ConfigError
from adx.mesh import PROXY, Layout
from adx.models.cache import Cache, map_layout, place_prefix
from adx.models.transformer import Linear, Model, Params, linear
from adx.types import Array


@dataclasses.dataclass(frozen=True)
class Group:
    """`count` proxies of one architecture; their params and caches have a leading axis N.

    directions: per proxy, along which the pass is differentiated; 0 for none, and equal for all groups that run.
    difference: eps of the central difference of two copies, or 0 for the exact derivative. With eps the params hold
      theta + eps g, and `Weights.directions` theta - eps g of the one direction that a proxy then has.
    """

    model: Model
    layout: Layout
    count: int
    directions: int = 0
    difference: float = 0.0


class Weights(NamedTuple):
    """directions: per group, of the params' dtypes and with leading axes [N, M / N]; empty if none has any."""

    teacher: Params
    groups: tuple[Params, ...]
    directions: tuple[Params, ...] = ()


class Caches(NamedTuple):
    """tangents: derivatives of the groups' caches along their directions, leading axes [N, M / N]; empty without."""

    teacher: Cache
    groups: tuple[Cache, ...]
    tangents: tuple[Cache, ...] = ()

    def map(self, change: Callable[[Array, str], Array]) -> Caches:
        """Applies change(array, axes) to every array."""
        groups = (map_layout(change, cache, 'N') for cache in self.groups)
        tangents = (map_layout(change, cache, 'NM') for cache in self.tangents)
        return Caches(map_layout(change, self.teacher), tuple(groups), tuple(tangents))

    def insert(self, prefix: Caches, sources: Array, targets: Array) -> Caches:
        """See models.cache.place_prefix."""
        one = lambda old, new: place_prefix(old, new, sources, targets)  # noqa: E731
        stacked, tangent = jax.vmap(one), jax.vmap(jax.vmap(one))
        groups = (stacked(old, new) for old, new in zip(self.groups, prefix.groups, strict=True))
        tangents = (tangent(old, new) for old, new in zip(self.tangents, prefix.tangents, strict=True))
        return Caches(one(self.teacher, prefix.teacher), tuple(groups), tuple(tangents))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Pure functions over `Weights` and `Caches`. All models share the vocabulary, padded to the same rows."""

    teacher: Model
    teacher_layout: Layout
    groups: tuple[Group, ...] = ()

    @property
    def directions(self) -> int:
        """Per proxy."""
        return self.groups[0].directions if self.groups else 0

    def check(self) -> None:
        """Raises ConfigError if the groups' directions and differences do not go together."""
        counts = [group.directions for group in self.groups]
        if len(set(counts)) > 1:
            raise ConfigError(f'groups of proxies have {counts} directions each; every proxy needs the same number')
        for group in self.groups:
            if group.difference and group.directions != 1:
                raise ConfigError(
                    f'a difference of two copies (eps = {group.difference}) has one direction per proxy, not '
                    f"{group.directions}; take derivative.directions = 1 or derivative.method = 'exact'"
                )

    def prefill(self, weights: Weights, tokens_BL: Array) -> Caches:
        """Caches of the prompts, right-padded to L. Touches no vocabulary-sized tensor."""
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)

        def fill(model: Model, linear: Linear, params: Params) -> Cache:
            return model.apply(params, tokens_BL, positions_BL, None, linear, method='hidden')[1]

        groups, tangents = [], []
        for group, params, directions in self._zip(weights.groups, weights.directions):
            run = functools.partial(fill, group.model)
            cache, tangent = _run(group, run, (params,), (directions,))
            groups.append(cache)
            tangents += [tangent] if group.directions else []
        return self.place(Caches(fill(self.teacher, linear, weights.teacher), tuple(groups), tuple(tangents)))

    def step(self, weights: Weights, caches: Caches, token_B: Array, position_B: Array):
        """One token for every row: (teacher logits_BV, proxies' logits_NBV, their tangents_MBV, caches), float32.

        tangents_MBV: derivatives of the proxies' logits, proxy n's directions together; None if there are none.
        """
        tokens_BL, positions_BL = token_B[:, None], position_B[:, None]
        logits_BLV, teacher = self.teacher.apply(weights.teacher, tokens_BL, positions_BL, caches.teacher)
        logits_BV = self.teacher_layout.shard(logits_BLV[:, 0], 'BV')
        logits, slopes, groups, tangents = [jnp.zeros((0, *logits_BV.shape), jnp.float32)], [], [], []
        for group, params, cache, *others in self._zip(
            weights.groups, caches.groups, weights.directions, caches.tangents
        ):
            run = lambda product, p, c, m=group.model: m.apply(p, tokens_BL, positions_BL, c, product)  # noqa: E731
            z_NBV, dz_NMBV, cache, tangent = _step(group, run, (params, cache), tuple(others))
            logits.append(self._gather(group, z_NBV, 'NBV'))
            groups.append(cache)
            if group.directions:
                slopes.append(self._gather(group, dz_NMBV, 'NMBV'))
                tangents.append(tangent)
        tangents_MBV = jnp.concatenate(slopes) if slopes else None
        caches = self.place(Caches(teacher, tuple(groups), tuple(tangents)))
        return logits_BV, jnp.concatenate(logits), tangents_MBV, caches

    def empty_caches(self, rows: int, length: int) -> Caches:
        def stacked(group: Group, *lead: int) -> Cache:
            one = group.model.empty_cache(rows, length)
            return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), one)

        groups = (stacked(group, group.count) for group in self.groups)
        tangents = (stacked(group, group.count, group.directions) for group in self.groups if group.directions)
        return self.place(Caches(self.teacher.empty_cache(rows, length), tuple(groups), tuple(tangents)))

    def place(self, caches: Caches) -> Caches:
        """Constrains caches to their layouts, inside jit."""
        groups, tangents = [], []
        for group, cache, tangent in self._zip(caches.groups, caches.tangents):
            groups.append(map_layout(group.layout.shard, cache, 'N'))
            tangents += [map_layout(group.layout.shard, tangent, 'NM')] if tangent else []
        return Caches(map_layout(self.teacher_layout.shard, caches.teacher), tuple(groups), tuple(tangents))

    def _zip(self, *per_group: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Each group with what belongs to it; None from an empty tuple."""
        return zip(self.groups, *(x or (None,) * len(self.groups) for x in per_group), strict=True)

    def _gather(self, group: Group, x: Array, axes: str) -> Array:
        """Proxies' logits, or what has their shape, on the teacher's shards of rows and vocabulary, whatever split
        the proxies' own pass: there they are combined. The axes before B become one."""
        # Said twice: told only the teacher's shards, XLA gathers the proxies' heads instead of moving their logits.
        x = self.teacher_layout.shard(group.layout.shard(x, axes), axes)
        return x.reshape(-1, *x.shape[-2:])


def _step(group: Group, run: derivative.Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]):
    """A group's decode step: (logits_NBV, derivatives_NMBV, caches, tangent caches); None for derivatives not asked."""
    (z_NBLV, cache), derivatives = _run(group, run, primals, tangents)
    if not group.directions:
        return z_NBLV[:, :, 0], None, cache, None
    z_NBV, dz_NMBV = z_NBLV[:, :, 0], derivatives[0][:, :, :, 0]
    if group.difference:
        z_NBV, slope_NBV = derivative.central(z_NBV, dz_NMBV[:, 0], group.difference)
        dz_NMBV = slope_NBV[:, None]
    return z_NBV, dz_NMBV, cache, derivatives[1]


def _run(group: Group, run: derivative.Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`run(linear, *primals)` of every proxy, and its derivatives or the other copy's results: leading axes N, NM."""
    if not group.directions:
        return _each(group, functools.partial(run, linear), *primals), None
    method = derivative.two_passes if group.difference else derivative.exact
    return _each(group, functools.partial(method, run), primals, tangents)


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
