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

from adx.batching import positions
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
    shared: of one such exit with exact derivatives: they are taken along the teacher's own pass through those blocks.
    """

    model: Model
    layout: Layout
    count: int
    directions: int = 0
    difference: float = 0.0
    exit: int = 0
    shared: bool = False

    @property
    def reads(self) -> int:
        """After how many of the teacher's blocks a proxy takes its hidden state, 0 where it has derivatives, which are
        along the weights of its blocks."""
        return 0 if self.directions or self.difference else self.exit

    @property
    def has_blocks(self) -> bool:
        """Whether the proxies have blocks and caches of their own. The teacher's serve for others."""
        return not (self.reads or self.shared)

    @property
    def paths(self) -> list[str]:
        """Of the model's weights those that this group holds. Its directions are of all."""
        return [path for path in self.model.axes if self.has_blocks or path.startswith('translator')]


class Weights(NamedTuple):
    """groups: at least `Group.paths` of each. directions: per group, of the params' dtypes and with leading axes
    [N, M / N]; empty if none has any.
    """

    teacher: Params
    groups: tuple[Params, ...]
    directions: tuple[Params, ...] = ()


class Said(NamedTuple):
    """What a model makes of tokens: hidden states after its last block, logits where they are asked, and caches. Of
    several proxies, or their derivatives, with a leading axis."""

    hidden_BLD: Array
    logits_BLV: Array | None
    cache: Cache


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


NO_CACHES: Any = Caches(None, ())  # type: ignore[arg-type]


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
        positions_BL = positions(tokens_BL)
        return self.place(self._read(weights, tokens_BL, positions_BL, head=False)[-1])

    def step(self, weights: Weights, caches: Caches, token_B: Array, position_B: Array):
        """One token for every row: (teacher logits_BV, proxies' logits_NBV, their tangents_MBV, caches), float32.

        tangents_MBV: derivatives of the proxies' logits, proxy n's directions together; None if there are none.
        """
        *said, caches = self._read(weights, token_B[:, None], position_B[:, None], caches)
        (logits_BLV, proxies, slopes), last = said, lambda x: x[:, :, 0]
        logits_BV = self.teacher_layout.shard(logits_BLV[:, 0], 'BV')
        none_NBV = jnp.zeros((0, *logits_BV.shape), jnp.float32)
        logits_NBV = jnp.concatenate([none_NBV, *map(self._gather, self.groups, map(last, proxies))])
        tangents = [*map(self._gather, self.groups, map(last, slopes))]
        return logits_BV, logits_NBV, jnp.concatenate(tangents) if tangents else None, self.place(caches)

    def whole(self, weights: Weights, tokens_BL: Array):
        """What `step` says at every token of texts, right-padded to L: (teacher logits_BLV, proxies' logits_NBLV, their
        tangents_MBLV or None), float32.
        """
        positions_BL = positions(tokens_BL)
        logits_BLV, proxies, slopes, _ = self._read(weights, tokens_BL, positions_BL)
        none_NBLV = jnp.zeros((0, *logits_BLV.shape), jnp.float32)
        return logits_BLV, jnp.concatenate([none_NBLV, *proxies]), jnp.concatenate(slopes) if slopes else None

    def _read(
        self, weights: Weights, tokens_BL: Array, positions_BL: Array, caches: Caches | None = None, head: bool = True
    ) -> tuple[Any, list[Any], list[Any], Caches]:
        """All models read tokens: (teacher logits_BLV, logits_NBLV of each group, derivatives_MBLV of each that has
        directions, caches).

        Without caches these are the first tokens. Without a head there are no logits, but None.
        """
        past, read, begun = caches or NO_CACHES, (tokens_BL, positions_BL), None
        proxies: list[Any] = []
        kept: list[Cache] = []
        slopes: list[Said] = []
        run = functools.partial(_forward, read, head)
        given = weights.groups, past.groups, weights.directions, past.tangents
        for group, params, cache, *tangents in self._zip(*given):
            if group.reads:
                proxies.append(None)
                kept.append(Cache(()))
                continue
            if group.shared:
                params, cache = _of_teacher(group, weights.teacher, params, past.teacher)
            said, slope = _run(group, functools.partial(run, group.model), (params, cache), tuple(tangents))
            begun = (group.exit, said) if group.shared else begun
            proxies.append(said.logits_BLV)
            kept.append(said.cache if group.has_blocks else Cache(()))
            slopes += [slope] if group.directions else []
        states, teacher = self._teacher(weights.teacher, read, past.teacher, begun)
        logits_BLV, exits = self._unembed(weights, states) if head else (None, itertools.repeat(None))
        proxies = [next(exits) if group.reads else z for group, z in zip(self.groups, proxies, strict=True)]
        caches = Caches(teacher, tuple(kept), tuple(slope.cache for slope in slopes))
        return logits_BLV, proxies, [slope.logits_BLV for slope in slopes], caches

    def _teacher(
        self, params: Params, read: tuple[Array, Array], cache: Cache | None, begun: tuple[int, Said] | None
    ) -> tuple[list[Array], Cache]:
        """The teacher's hidden states and its cache. begun: what a proxy's pass was along so many of its blocks."""
        teacher = functools.partial(self.teacher.apply, params)
        if begun is None:
            x_BLD = teacher(read[0], cache is not None, method='inputs')
            return teacher(x_BLD, read[1], cache, method='states')
        first, said = begun
        x_BLD, before = jax.tree.map(lambda x: x[0], (said.hidden_BLD, said.cache))
        rest = None if cache is None else Cache(cache.layers[first:])
        states, rest = teacher(x_BLD, read[1], rest, method='states', first=first)
        return states, Cache((*before.layers, *rest.layers))

    def _unembed(self, weights: Weights, states: list[Array]) -> tuple[Array, Iterator[Array]]:
        """The teacher's logits_BLV and logits_NBLV of each group that reads its hidden states; its head is read once
        for all of them."""
        exits_NBLD = [
            _exits(group, states[group.reads], params)
            for group, params in zip(self.groups, weights.groups, strict=True)
            if group.reads
        ]
        unembed = functools.partial(self.teacher.apply, weights.teacher, method='unembed')
        if not exits_NBLD:
            return unembed(states[-1]), iter(())
        together_NBLD = jnp.concatenate([states[-1][None], *exits_NBLD])
        logits_NBLV = jax.vmap(unembed)(self.teacher_layout.shard(together_NBLD, '.B..'))
        ends = list(itertools.accumulate((len(x) for x in exits_NBLD), initial=1))
        return logits_NBLV[0], (logits_NBLV[a:b] for a, b in itertools.pairwise(ends))

    def empty_caches(self, rows: int, length: int) -> Caches:
        def stacked(group: Group, count: int) -> Cache:
            one = group.model.empty_cache(rows, length)
            return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), one)

        groups = tuple(stacked(group, group.count) if group.has_blocks else Cache(()) for group in self.groups)
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
        own_NBV = x_NBV if group.reads else group.layout.shard(x_NBV, 'NBV')
        return self.teacher_layout.shard(own_NBV, '.BV')


def _exits(group: Group, x_BLD: Array, params: Params) -> Array:
    """[N, B, L, D]: x_BLD, the teacher's hidden state, as the head wants it from each proxy of a group."""
    if not group.model.config.translator:
        return jnp.broadcast_to(x_BLD, (group.count, *x_BLD.shape))
    return _each(group, lambda own: translate(x_BLD, own['translator'], own['translator_bias']), params)


def _of_teacher(group: Group, teacher: Params, own: Params, cache: Cache | None) -> tuple[Params, Cache | None]:
    """The weights and the cache of an early exit that is one with the teacher's first blocks; leading axis 1."""
    params = {path: own[path] if path in group.paths else teacher[path][None] for path in group.model.axes}
    return params, cache and jax.tree.map(lambda x: x[None], Cache(cache.layers[: group.exit]))


def _forward(
    read: tuple[Array, Array], head: bool, model: Model, linear: Linear, params: Params, cache: Cache | None
) -> Said:
    """read: tokens and their positions, [B, L]."""
    x_BLD, cache = model.apply(params, *read, cache, linear, method='hidden')
    return Said(x_BLD, model.apply(params, x_BLD, linear, method='unembed') if head else None, cache)


def _run(group: Group, run: Callable[..., Said], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """(`run(linear, *primals)` of every proxy, its derivatives, None where they are not asked).

    primals, results: leading axis N. tangents: directions [N, M / N, ...] and tangent caches [M, ...]; derivatives
    [M, ...].
    """
    if not group.directions:
        return _each(group, functools.partial(run, linear), *primals), None
    directions, caches = tangents
    if group.difference:
        return _difference(group, run, primals, (directions, caches))
    if group.directions == 1:
        # No axis of size 1 within the step: XLA would copy caches and weights for the sake of its layout.
        directions = jax.tree.map(lambda x: x.squeeze(1), directions)
        return _each(group, functools.partial(derivative.exact, run), primals, (directions, caches))
    caches = jax.tree.map(lambda x: rearrange(x, '(N M) ... -> N M ...', N=group.count), caches)
    several = functools.partial(derivative.exact_several, run)
    results, derivatives = _each(group, several, primals, (directions, caches))
    return results, jax.tree.map(lambda x: rearrange(x, 'N M ... -> (N M) ...'), derivatives)


def _difference(group: Group, run: Callable[..., Said], primals: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
    """The same of two copies. Their caches stay apart."""
    others = jax.tree.map(lambda x: x.squeeze(1), others[0]), others[1]
    plus, minus = _each(group, functools.partial(derivative.two_passes, run), primals, others)
    if plus.logits_BLV is None:
        return plus, minus
    logits, slopes = derivative.central(plus.logits_BLV, minus.logits_BLV, group.difference)
    return plus._replace(logits_BLV=logits), minus._replace(logits_BLV=slopes)


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
