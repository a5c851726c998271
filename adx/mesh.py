"""The device mesh and the one table that maps axes to it. The only file with PartitionSpec.

Axes: `data` splits rows, `proxy` splits stacked proxies, `model` splits weights and the vocabulary.
The teacher is never replicated over `proxy`: there its rows are split too, or its weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format
from jax.experimental.layout import Layout as DeviceLayout
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

DATA, PROXY, MODEL = 'data', 'proxy', 'model'
MeshAxes = tuple[str, ...]


def make_mesh(data: int = 1, proxy: int = 1, model: int = 1, devices: Any = None) -> Mesh:
    """A data x proxy x model mesh over the first data*proxy*model devices. Raises ValueError if there are fewer."""
    devices = jax.devices() if devices is None else devices
    size = data * proxy * model
    if min(data, proxy, model) < 1 or size > len(devices):
        raise ValueError(
            f'mesh {data}x{proxy}x{model} needs {size} devices and {len(devices)} are visible; '
            'every axis must be at least 1 and their product at most the number of devices'
        )
    # Auto: jax.make_mesh defaults to Explicit axes, which would put shardings into types.
    return jax.make_mesh(
        (data, proxy, model), (DATA, PROXY, MODEL), axis_types=(AxisType.Auto,) * 3, devices=devices[:size]
    )


def abstract_mesh(data: int = 1, proxy: int = 1, model: int = 1) -> AbstractMesh:
    """A mesh of devices that are not there: enough for layouts, and for plans by them."""
    return AbstractMesh((data, proxy, model), (DATA, PROXY, MODEL), axis_types=(AxisType.Auto,) * 3)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each tensor axis lives: one letter of the axis legend to the mesh axes that split it."""

    mesh: Mesh
    rules: Mapping[str, MeshAxes] = dataclasses.field(hash=False)  # compared, but no mapping has a hash
    notes: tuple[str, ...] = ()  # what could not be split, for --dry_run

    def spec(self, axes: str) -> PartitionSpec:
        """The PartitionSpec of a tensor whose axes are the letters of `axes`. Refuses a mesh axis used twice."""
        entries = [self.rules.get(letter, ()) for letter in axes]
        used = [name for entry in entries for name in entry]
        if len(used) != len(set(used)):
            raise ValueError(f'axes {axes!r} use a mesh axis twice: {dict(zip(axes, entries, strict=True))}')
        return PartitionSpec(*(entry or None for entry in entries))

    def sharding(self, axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes))

    def contiguous(self, axes: str, order: str) -> Format:
        """The sharding, on devices that keep a tensor's axes in this `order`, the last one contiguous."""
        return Format(DeviceLayout(tuple(map(axes.index, order))), self.sharding(axes))

    def shard(self, x: jax.Array, axes: str) -> jax.Array:
        """Constrains x inside jit. `axes` has one letter per dimension; '.' is an unsplit one."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def place(self, x: np.ndarray, axes: str) -> jax.Array:
        """x on the devices, split by `axes`. Each process has all of it."""
        return jax.make_array_from_callback(x.shape, self.sharding(axes), x.__getitem__)

    def ways(self, axis: str) -> int:
        """Into how many pieces `axis` is split."""
        return _ways(self.mesh, self.rules.get(axis, ()))


def shard_bytes(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Of what one device holds of it."""
    assert x.sharding is not None
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _ways(mesh: Mesh, axes: MeshAxes) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _weight_rules(mesh: Mesh, axes: MeshAxes, sizes: Mapping[str, int]) -> tuple[dict[str, MeshAxes], list[str]]:
    """Splits heads, feed-forward and vocabulary over `axes` where their sizes divide; says where they do not."""
    ways = _ways(mesh, axes)
    rules: dict[str, MeshAxes] = {}
    notes = []
    for letter, word in (('V', 'vocabulary'), ('F', 'feed-forward')):
        if sizes[letter] % ways == 0:
            rules[letter] = axes
        else:
            notes.append(f'{word} of {sizes[letter]} does not divide by {ways}: replicated')
    heads, groups = sizes['H'], sizes['G']
    if heads % ways:
        notes.append(f'{heads} heads do not divide by {ways}: attention is replicated')
    elif groups % ways == 0:
        rules |= {'H': axes, 'G': axes}
    elif ways % groups == 0:
        rules['H'] = axes
        notes.append(f'{groups} key/value heads over {ways} devices: each is replicated {ways // groups} times')
    else:
        notes.append(f'{groups} key/value heads and {ways} devices do not divide: attention is replicated')
    return rules, notes


def teacher_layout(mesh: Mesh, sizes: Mapping[str, int], shard_weights: bool = False) -> Layout:
    """The teacher's layout: rows over (data, proxy) by default, or weights over (proxy, model).

    sizes: the model's V, F, H, G (see TransformerConfig.sizes).
    """
    rows: MeshAxes = (DATA,) if shard_weights else (DATA, PROXY)
    rules, notes = _weight_rules(mesh, (PROXY, MODEL) if shard_weights else (MODEL,), sizes)
    return Layout(mesh, rules | {'B': rows}, tuple(f'teacher: {note}' for note in notes))


def proxy_layout(mesh: Mesh, sizes: Mapping[str, int], count: int) -> Layout:
    """The layout of `count` stacked proxies: split over `proxy` where they divide, else their rows are."""
    stacked = count % mesh.shape[PROXY] == 0
    rules, notes = _weight_rules(mesh, (MODEL,), sizes)
    rules |= {'N': (PROXY,), 'B': (DATA,)} if stacked else {'B': (DATA, PROXY)}
    if not stacked:
        notes.append(f'{count} stacked do not divide by {mesh.shape[PROXY]}: rows are split over proxy instead')
    return Layout(mesh, rules, tuple(f'proxy: {note}' for note in notes))
