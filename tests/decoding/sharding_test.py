"""Decoding on eight devices: the same tokens as on one until a near tie, with the vocabulary left where it lies."""

from __future__ import annotations

import dataclasses
import re

import fakes
import jax
import numpy as np
import pytest

from adx.decoding.engine import Engine
from adx.defences import ProductOfExperts
from adx.mesh import make_mesh
from adx.types import Sampling
from tools.bench.memory import compile_chunk

# Nine heads over three key/value heads divide by no axis of these meshes, as in SmolLM2.
ODD = dataclasses.replace(fakes.TEACHER, num_heads=9, num_kv_heads=3)
SHAPES = [(8, 1, 1), (4, 1, 2), (2, 1, 4), (1, 1, 8), (2, 2, 2), (1, 4, 2)]
DEFAULT = [(2, 2, 2)]


def make_engine(shape, teacher=fakes.TEACHER, shard_weights=False):
    ensemble, weights = fakes.make_ensemble(make_mesh(*shape), teacher=teacher, shard_weights=shard_weights)
    return Engine(ensemble, weights, fakes.DECODE)


def decode(engine):
    requests = fakes.make_requests(16, ProductOfExperts(0.5), Sampling(0.9, 0, 0.95, 0.0))
    return {str(done.id): done for done in engine.generate(requests)}


@pytest.fixture(scope='module')
def alone():
    return {odd: decode(make_engine((1, 1, 1), ODD if odd else fakes.TEACHER)) for odd in (False, True)}


def shapes():
    for shape in SHAPES:
        yield pytest.param(shape, marks=() if shape in DEFAULT else pytest.mark.slow, id='x'.join(map(str, shape)))


@pytest.mark.parametrize('odd', [False, True])
@pytest.mark.parametrize('shape', shapes())
def test_meshes_agree_until_a_near_tie(shape, odd, alone):
    fakes.check_agreement(decode(make_engine(shape, ODD if odd else fakes.TEACHER)), alone[odd])


def short_traces(shape):
    """A few tokens of the least that a mesh can split: one layer of nine heads, and one program of each kind."""
    teacher = dataclasses.replace(ODD, num_layers=1)
    ensemble, weights = fakes.make_ensemble(make_mesh(*shape), teacher)
    engine = Engine(ensemble, weights, dataclasses.replace(fakes.DECODE, buckets=(8,), chunk=4))
    requests = fakes.make_requests(8, ProductOfExperts(0.5), Sampling(0.9, 0, 0.95, 0.0), new=4)
    return {str(done.id): done for done in engine.generate(requests)}


@pytest.fixture(scope='module')
def short_alone():
    return short_traces((1, 1, 1))


@pytest.mark.parametrize('shape', [shape for shape in SHAPES if shape not in DEFAULT], ids=str)
def test_every_other_shape_agrees_on_a_few_tokens(shape, short_alone):
    fakes.check_agreement(short_traces(shape), short_alone)


@pytest.mark.parametrize(
    ('shape', 'odd'),
    [((2, 2, 2), False), *(pytest.param((1, 4, 2), odd, marks=pytest.mark.slow) for odd in (False, True))],
)
def test_a_teacher_whose_weights_are_split_over_proxy_serves_the_same(shape, odd, alone):
    engine = make_engine(shape, ODD if odd else fakes.TEACHER, shard_weights=True)
    fakes.check_agreement(decode(engine), alone[odd])


def test_the_teacher_is_split_over_proxy_and_never_copied():
    engine = make_engine((2, 2, 2))
    _, caches = engine.start(ProductOfExperts(0.5))
    spec = caches.teacher.layers[0].v_BGSK.sharding.spec
    assert spec[0] == ('data', 'proxy')
    weights = make_engine((2, 2, 2), shard_weights=True).weights.teacher['blocks.0.mlp.gate']
    assert weights.sharding.spec[0] == ('proxy', 'model')


@pytest.mark.parametrize(('shape', 'sizes'), [((2, 1, 4), {64}), ((2, 2, 2), {64, 32})])
def test_no_collective_gathers_the_vocabulary(shape, sizes):
    """Neither logits nor output heads leave their shards: no all-gather in the compiled chunk gives a float tensor
    with all of the vocabulary's 64 rows, nor, where proxies are split, a device's 32 rows of several proxies."""
    text = compile_chunk(make_engine(shape), ProductOfExperts(np.float32(0.5))).as_text()
    gathers = re.findall(r'= f32\[([\d,]*)\]\S* all-gather', text)
    assert not [dims for dims in gathers if sizes & set(map(int, dims.split(',')[1:]))], gathers
    assert jax.device_count() == 8
