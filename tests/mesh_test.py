"""The table from tensor axes to mesh axes: what is split, what is not and why, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from adx.mesh import Layout, make_mesh, proxy_layout, teacher_layout

SIZES = {'V': 64, 'F': 32, 'H': 8, 'G': 4, 'K': 8, 'D': 16}


def test_rows_and_weights_of_the_teacher():
    layout = teacher_layout(make_mesh(2, 2, 2), SIZES)
    assert layout.spec('BLV') == PartitionSpec(('data', 'proxy'), None, ('model',))
    assert layout.ways('B') == 4
    assert layout.ways('D') == 1
    assert layout.notes == ()
    split = teacher_layout(make_mesh(2, 2, 2), SIZES, shard_weights=True)
    assert split.spec('BDHK') == PartitionSpec(('data',), None, ('proxy', 'model'), None)


def test_stacked_proxies_are_split_over_proxy_only_where_they_divide():
    mesh = make_mesh(2, 2, 2)
    assert proxy_layout(mesh, SIZES, 2).spec('NB') == PartitionSpec(('proxy',), ('data',))
    uneven = proxy_layout(mesh, SIZES, 3)
    assert uneven.spec('NB') == PartitionSpec(None, ('data', 'proxy'))
    assert '3 stacked do not divide by 2' in uneven.notes[0]


@pytest.mark.parametrize(
    ('sizes', 'model', 'split', 'note'),
    [
        ({'H': 9, 'G': 3}, 2, '', '9 heads do not divide by 2'),
        ({'V': 63, 'F': 33, 'H': 9, 'G': 3}, 3, 'HG', None),
        ({'H': 8, 'G': 2}, 4, 'H', '2 key/value heads over 4 devices: each is replicated 2 times'),
        ({'H': 12, 'G': 3}, 2, '', '3 key/value heads and 2 devices do not divide'),
        ({'V': 61}, 2, 'HG', 'vocabulary of 61'),
        ({'F': 31}, 2, 'HG', 'feed-forward of 31'),
    ],
)
def test_what_does_not_divide_is_replicated_and_said(sizes, model, split, note):
    layout = teacher_layout(make_mesh(model=model), SIZES | sizes)
    assert {letter for letter in 'HG' if layout.ways(letter) > 1} == set(split)
    assert len(layout.notes) == (note is not None)
    assert note is None or note in layout.notes[0]


def test_a_mesh_axis_used_twice_is_refused():
    with pytest.raises(ValueError, match="'HF' use a mesh axis twice"):
        teacher_layout(make_mesh(model=2), SIZES).spec('HF')


def test_a_dot_is_an_unsplit_axis():
    layout = Layout(make_mesh(2), {'B': ('data',)})
    assert layout.spec('.B') == PartitionSpec(None, ('data',))
    placed = jax.jit(lambda x: layout.shard(x, '.B'))(jnp.zeros((3, 4)))
    assert placed.sharding.shard_shape(placed.shape) == (3, 2)


@pytest.mark.parametrize('shape', [(0, 1, 1), (16, 1, 1), (3, 3, 1)])
def test_meshes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r'needs \d+ devices and 8 are visible'):
        make_mesh(*shape)
