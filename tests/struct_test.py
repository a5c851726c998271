"""Pytrees of two classes are never taken for each other, and behave as dataclasses and as pytrees."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from adx import defences, struct


@struct.dataclass
class Point:
    x: float
    unit: str = struct.static(default='m')
    y: float = 2.0


@struct.dataclass
class Other:
    x: float
    unit: str = struct.static(default='m')
    y: float = 2.0


def test_classes_of_the_same_fields_differ_in_structure():
    assert jax.tree.structure(Point(1.0)) == jax.tree.structure(Point(3.0))
    assert jax.tree.structure(Point(1.0)) != jax.tree.structure(Other(1.0))


def test_no_two_defences_share_a_structure():
    """What jax looks programs up by: equal structures would let a defence run the program of another."""
    made = [cls() for cls in defences.MENU.values() if not any(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls)
    )]  # fmt: skip
    assert len(made) > 5
    for a, b in itertools.combinations(map(jax.tree.structure, made), 2):
        assert a != b, (a, b)


def test_static_fields_are_structure():
    assert jax.tree.leaves(Point(1.0, 'ft', 5.0)) == [1.0, 5.0]
    assert jax.tree.structure(Point(1.0)) != jax.tree.structure(Point(1.0, 'ft'))
    assert jax.tree.map(lambda x: 2 * x, Point(1.0, 'ft', 5.0)) == Point(2.0, 'ft', 10.0)


def test_paths_name_fields():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Point(1.0))]
    assert paths == ['.x', '.y']


def test_passes_through_jit():
    result = jax.jit(lambda p: dataclasses.replace(p, x=p.x + p.y))(Point(jnp.float32(1), 'ft'))
    assert result == Point(3.0, 'ft', 2.0)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(1.0).x = 2.0
