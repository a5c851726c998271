"""The teacher and its proxies as one forward pass.

Proxies of one architecture are stacked on a leading axis and vmapped; other architectures run side by side.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from adx.decoding import derivative
from adx.errors import ConfigError
from adx.mesh import PROXY, Layout
from adx.models.cache import Cache, map_layout, place_prefix
from adx.models.products import Linear, linear
from adx.models.transformer import Model, Params, translate
from adx.types import Array


@dataclasses.dataclass(frozen=True)
class Group:
    """`count` proxies of one architecture; their params and caches have a leading axis N.

    directions: per proxy, along which the pass is differentiated; 0 for none, and equal for all groups that run.
    difference: eps of the central difference of two copies, or 0 for the exact derivative. With eps the params hold
      theta + eps g, and `Weights.directions` theta - eps g of the one direction that a proxy then has.
    exit: the proxies are early exits: their blocks are the first so many of the teacher's. 0 where they are not.
    """

    model: Model
    layout: Layout
    count: int
    directions: int = 0
    difference: float = 0.0
    exit: int = 0

    @property
    def reads(self) -> int:
        """After how many of the teacher's blocks a proxy takes its hidden state, 0 where it runs blocks of its own: a
        derivative is along their weights."""
        return 0 if self.directions or self.difference else self.exit

    @property
    def paths(self) -> list[str]:
        """Of the model's weights those that a step of this group reads."""
        return [path for path in self.model.axes if not self.reads or path.startswith('translator')]


class Weights(NamedTuple):
    """groups: at least `Group.paths` of each. directions: per group, of the params' dtypes and with leading axes
    [N, M / N]; empty if none has any.
    """

    teacher: Params
    groups: tuple[Params, ...]
    directions: tuple[Params, ...] = ()


class Caches(NamedTuple):
    """tangents: derivatives of the groups' caches along their directions, leading axis M, proxy n's together and placed
    as N is; empty without."""

    teacher: Cache
    groups: tuple[Cache, ...]
    tangents: tuple[Cache, ...] = ()

    def map(self, change: Callable[[Array, str], Array]) -> Caches:
        """Applies change(array, axes) to every array."""
        groups, tangents = (tuple(map_layout(change, c, 'N') for c in caches) for caches in self[1:])
        return Caches(map_layout(change, self.teacher), groups, tangents)

    def insert(self, prefix: Caches, sources: Array, targets: Array) -> Caches:
        """See models.cache.place_prefix."""
        one = lambda old, new: place_prefix(old, new, sources, targets)  # noqa: E731
        some = lambda old, new: jax.vmap(one)(old, new) if old.layers else old  # noqa: E731
        groups, tangents = (tuple(map(some, *pair)) for pair in zip(self[1:], prefix[1:], strict=True))
        return Caches(one(self.teacher, prefix.teacher), groups, tangents)


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

    @property
    def row_ways(self) -> int:
        """Into how many pieces rows are split, by the teacher's layout and by those of the groups."""
        return math.lcm(self.teacher_layout.ways('B'), *(group.layout.ways('B') for group in self.groups))

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
            if group.reads:
                groups.append(Cache(()))
                continue
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
        logits_BLV, exits, teacher = self._read(weights, tokens_BL, positions_BL, caches.teacher)
        logits_BV = self.teacher_layout.shard(logits_BLV[:, 0], 'BV')
        logits, slopes, groups, tangents = [jnp.zeros((0, *logits_BV.shape), jnp.float32)], [], [], []
        for group, params, cache, *others in self._zip(
            weights.groups, caches.groups, weights.directions, caches.tangents
        ):
            if group.reads:
                logits.append(self.teacher_layout.shard(next(exits)[:, :, 0], '.BV'))
                groups.append(cache)
                continue
            run = lambda product, p, c, m=group.model: m.apply(p, tokens_BL, positions_BL, c, product)  # noqa: E731
            z_NBV, dz_MBV, cache, tangent = _step(group, run, (params, cache), tuple(others))
            logits.append(self._gather(group, z_NBV))
            groups.append(cache)
            if group.directions:
                slopes.append(self._gather(group, dz_MBV))
                tangents.append(tangent)
        tangents_MBV = jnp.concatenate(slopes) if slopes else None
        caches = self.place(Caches(teacher, tuple(groups), tuple(tangents)))
        return logits_BV, jnp.concatenate(logits), tangents_MBV, caches

    def whole(self, weights: Weights, tokens_BL: Array):
        """What `step` says at every token of texts, right-padded to L: (teacher logits_BLV, proxies' logits_NBLV, their
        tangents_MBLV or None), float32.
        """
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)

        def read(model: Model, linear: Linear, params: Params) -> Array:
            return model.apply(params, tokens_BL, positions_BL, None, linear)[0]

        logits_BLV, exits, _ = self._read(weights, tokens_BL, positions_BL, None)
        logits, slopes = [jnp.zeros((0, *logits_BLV.shape), jnp.float32)], []
        for group, params, directions in self._zip(weights.groups, weights.directions):
            if group.reads:
                logits.append(next(exits))
                continue
            z_NBLV, dz_MBLV = _run(group, functools.partial(read, group.model), (params,), (directions,))
            if group.difference:
                z_NBLV, dz_MBLV = derivative.central(z_NBLV, dz_MBLV, group.difference)
            logits.append(z_NBLV)
            slopes += [dz_MBLV] if group.directions else []
        return logits_BLV, jnp.concatenate(logits), jnp.concatenate(slopes) if slopes else None

    def _read(
        self, weights: Weights, tokens_BL: Array, positions_BL: Array, cache: Cache | None
    ) -> tuple[Array, Iterator[Array], Cache]:
        """The teacher's pass: (its logits_BLV, logits_NBLV of each group that reads its hidden states, its cache).

        The head is read once for all of them.
        """
        teacher = functools.partial(self.teacher.apply, weights.teacher)
        x_BLD = teacher(tokens_BL, cache is not None, method='inputs')
        states, cache = teacher(x_BLD, positions_BL, cache, method='states')
        exits_NBLD = [
            _exits(group, states[group.reads], params)
            for group, params in zip(self.groups, weights.groups, strict=True)
            if group.reads
        ]
        unembed = functools.partial(teacher, method='unembed')
        if not exits_NBLD:
            return unembed(states[-1]), iter(()), cache
        together_NBLD = jnp.concatenate([states[-1][None], *exits_NBLD])
        logits_NBLV = jax.vmap(unembed)(self.teacher_layout.shard(together_NBLD, '.B..'))
        ends = list(itertools.accumulate((len(x) for x in exits_NBLD), initial=1))
        return logits_NBLV[0], (logits_NBLV[a:b] for a, b in itertools.pairwise(ends)), cache

    def empty_caches(self, rows: int, length: int) -> Caches:
        def stacked(group: Group, count: int) -> Cache:
            one = Cache(()) if group.reads else group.model.empty_cache(rows, length)
            return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)

        groups = tuple(stacked(group, group.count) for group in self.groups)
        tangents = tuple(stacked(group, group.count * group.directions) for group in self.groups if group.directions)
        return self.place(Caches(self.teacher.empty_cache(rows, length), groups, tangents))

    def place(self, caches: Caches) -> Caches:
        """Constrains caches to their layouts, inside jit."""
        return self._map(lambda layout, x, axes: layout.shard(x, axes), caches)

    def formats(self, caches: Caches) -> Caches | None:
        """How the devices are to keep caches of these shapes between programs, None where that makes no difference.

        On a TPU the keys of a token are contiguous as its values are: a step writes them so, and would else have a
        copy of all keys made for every chunk.
        """
        if self.teacher_layout.mesh.devices.flat[0].platform != 'tpu':
            return None
        keep = lambda layout, _, axes: layout.contiguous(axes, axes.replace('KS', 'SK'))  # noqa: E731
        return self._map(keep, caches)

    def _map(self, change: Callable[[Layout, Array, str], Any], caches: Caches) -> Caches:
        """Applies change(layout, array, axes) to every array."""
        groups, tangents = [], []
        for group, cache, tangent in self._zip(caches.groups, caches.tangents):
            one = functools.partial(change, group.layout)
            groups.append(map_layout(one, cache, 'N'))
            tangents += [map_layout(one, tangent, 'N')] if tangent else []
        teacher = map_layout(functools.partial(change, self.teacher_layout), caches.teacher)
        return Caches(teacher, tuple(groups), tuple(tangents))

    def _zip(self, *per_group: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Each group with what belongs to it; None from an empty tuple."""
        return zip(self.groups, *(x or (None,) * len(self.groups) for x in per_group), strict=True)

    def _gather(self, group: Group, x_NBV: Array) -> Array:
        """Proxies' logits, or their derivatives, on the teacher's shards of rows and vocabulary, whatever split the
        proxies' own pass: there they are combined."""
        # Said twice: told only the teacher's shards, XLA gathers the proxies' heads instead of moving their logits.
        return self.teacher_layout.shard(group.layout.shard(x_NBV, 'NBV'), '.BV')


def _exits(group: Group, x_BLD: Array, params: Params) -> Array:
    """[N, B, L, D]: x_BLD, the teacher's hidden state, as the head wants it from each proxy of a group."""
    if not group.model.config.translator:
        return jnp.broadcast_to(x_BLD, (group.count, *x_BLD.shape))
    return _each(group, lambda own: translate(x_BLD, own['translator'], own['translator_bias']), params)


def _step(group: Group, run: derivative.Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]):
    """A group's decode step: (logits_NBV, derivatives_MBV, caches, tangent caches); None for derivatives not asked."""
    (z_NBLV, cache), derivatives = _run(group, run, primals, tangents)
    if not group.directions:
        return z_NBLV[:, :, 0], None, cache, None
    z_NBV, dz_MBV = z_NBLV[:, :, 0], derivatives[0][:, :, 0]
    if group.difference:
        z_NBV, dz_MBV = derivative.central(z_NBV, dz_MBV, group.difference)
    return z_NBV, dz_MBV, cache, derivatives[1]


def _run(group: Group, run: derivative.Run, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`run(linear, *primals)` of every proxy, and its derivatives or the other copy's results.

    primals, results: leading axis N. tangents: directions [N, M / N, ...] and tangent caches [M, ...]; derivatives
    [M, ...].
    """
    if not group.directions:
        return _each(group, functools.partial(run, linear), *primals), None
    directions, *caches = tangents
    if group.directions == 1:
        # No axis of size 1 within the step: XLA would copy caches and weights for the sake of its layout.
        method = derivative.two_passes if group.difference else derivative.exact
        directions = jax.tree.map(lambda x: x.squeeze(1), directions)
        return _each(group, functools.partial(method, run), primals, (directions, *caches))
    caches = jax.tree.map(lambda x: rearrange(x, '(N M) ... -> N M ...', N=group.count), caches)
    several = functools.partial(derivative.exact_several, run)
    results, derivatives = _each(group, several, primals, (directions, *caches))
    return results, jax.tree.map(lambda x: rearrange(x, 'N M ... -> (N M) ...'), derivatives)


def _each(group: Group, run: Callable[..., Any], *stacked: Any) -> Any:
    """`run` of every proxy of a group, on the leading axis. One proxy is no batch: its products stay plain."""
    if group.count == 1:
        return jax.tree.map(lambda y: y[None], run(*jax.tree.map(lambda x: x[0], stacked)))
    return jax.vmap(run, spmd_axis_name=PROXY if 'N' in group.layout.rules else None)(*stacked)


def stack_params(model: Model, layout: Layout, members: Sequence[Params]) -> Params:
    """Stacks proxies of one architecture on a leading axis N, weight by weight, placed by `layout`."""
    stacked = {}
    for path in members[0]:
        stack = jax.jit(lambda *xs: jnp.stack(xs), out_shardings=layout.sharding('N' + model.axes[path]))
        stacked[path] = stack(*(member[path] for member in members))
    return stacked
