"""Early exits of the teacher that take its hidden state, against the same proxies with blocks of their own."""

from __future__ import annotations

import dataclasses
import functools
import re

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.decoding.engine import Engine
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.defences import ProductOfExperts
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import make_model
from adx.planning import plan_memory

TEACHER = dataclasses.replace(fakes.TEACHER, num_layers=3)
EARLY = dataclasses.replace(TEACHER, num_layers=2, translator=True)  # of which there are two
EARLIEST = dataclasses.replace(TEACHER, num_layers=1)


def early_exit(model, teacher, seed):
    """The weights of an early exit: the teacher's, and a translator of its own where it has one."""
    params = {path: teacher[path] for path in model.shapes if path in teacher}
    if model.config.translator:
        at, bias = jax.random.split(jax.random.key(seed))
        noise = 0.3 * jax.random.normal(at, model.shapes['translator'])
        params['translator'] = jnp.eye(len(noise)) + noise
        params['translator_bias'] = 0.1 * jax.random.normal(bias, model.shapes['translator_bias'])
    return params


@functools.cache
def models(shape=(1, 1, 1), shard_weights=False):
    """(Ensemble, Weights) of a teacher, two early exits of one depth, another model, and two bare earlier exits."""
    mesh = make_mesh(*shape)
    model, layout = make_model(TEACHER), teacher_layout(mesh, TEACHER.sizes, shard_weights)
    drawn = model.init(0)
    params = {path: jax.device_put(x, layout.sharding(model.axes[path])) for path, x in drawn.items()}
    groups, weights = [], []
    for config, count, exit_layer in ((EARLY, 2, 2), (fakes.PROXY, 1, 0), (EARLIEST, 2, 1)):
        proxy = make_model(config)
        group = Group(proxy, proxy_layout(mesh, config.sizes, count), count, exit=exit_layer)
        members = [early_exit(proxy, drawn, n) if exit_layer else proxy.init(7) for n in range(count)]
        groups.append(group)
        weights.append(stack_params(proxy, group.layout, members))
    return Ensemble(model, layout, tuple(groups)), Weights(params, tuple(weights))


def own(ensemble):
    """Every proxy with blocks of its own."""
    return dataclasses.replace(ensemble, groups=tuple(dataclasses.replace(g, exit=0) for g in ensemble.groups))


def held(ensemble, weights):
    """No weight more than the groups say that they read."""
    pairs = zip(ensemble.groups, weights.groups, strict=True)
    return weights._replace(groups=tuple({path: params[path] for path in group.paths} for group, params in pairs))


def decode(ensemble, weights):
    requests = fakes.make_requests(12, ProductOfExperts(0.6))
    return {str(one.id): one for one in Engine(ensemble, weights, fakes.DECODE).generate(requests)}


@pytest.mark.parametrize(
    ('shape', 'shard_weights'),
    [
        ((2, 2, 2), False),
        pytest.param((1, 1, 1), False, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), True, marks=pytest.mark.slow),
        pytest.param((1, 4, 2), False, marks=pytest.mark.slow),
        pytest.param((1, 1, 8), True, marks=pytest.mark.slow),
    ],
)
def test_early_exits_that_read_the_teacher_serve_what_their_own_blocks_would(shape, shard_weights):
    ensemble, weights = models(shape, shard_weights)
    fakes.check_agreement(decode(ensemble, held(ensemble, weights)), decode(own(ensemble), weights))


def test_texts_are_read_as_steps_would():
    ensemble, weights = models()
    tokens = np.random.default_rng(0).integers(0, fakes.VOCAB, (2, 9)).astype(np.int32)
    mine = jax.jit(ensemble.whole)(held(ensemble, weights), tokens)
    theirs = jax.jit(own(ensemble).whole)(weights, tokens)
    for a, b in zip(mine[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    caches = ensemble.empty_caches(2, 9)
    step = jax.jit(ensemble.step)
    for at in range(9):
        *said, caches = step(held(ensemble, weights), caches, tokens[:, at], np.full(2, at, np.int32))
        np.testing.assert_allclose(said[0], mine[0][:, at], atol=2e-5)
        np.testing.assert_allclose(said[1], mine[1][:, :, at], atol=2e-5)


def test_they_have_no_caches_and_the_head_is_read_once_for_all():
    ensemble, weights = models()
    caches = ensemble.empty_caches(2, 9)
    assert [len(cache.layers) for cache in caches.groups] == [0, 1, 0]
    asked = jnp.zeros(2, jnp.int32)

    def heads(one):
        """How many products with a matrix of the vocabulary's size a step has."""
        lowered = jax.jit(one.step).lower(weights, one.empty_caches(2, 9), asked, asked).as_text()
        products = [line for line in lowered.splitlines() if 'dot_general' in line]
        return sum(bool(re.search(rf'tensor<(\d+x)?{fakes.VOCAB_ROWS}x\d+xf32>\)', line)) for line in products)

    assert (heads(ensemble), heads(own(ensemble))) == (2, 4)  # teacher and the other model; two are stacked


def test_a_derivative_is_along_blocks_of_their_own():
    ensemble, _ = models()
    early = ensemble.groups[0]
    assert early.reads == 2
    assert early.paths == ['translator', 'translator_bias']
    for other in (dataclasses.replace(early, directions=1), dataclasses.replace(early, directions=1, difference=0.1)):
        assert other.reads == 0
        assert set(other.paths) == set(early.model.shapes)


def test_the_plan_counts_what_they_hold():
    ensemble, _ = models()
    exits = dataclasses.replace(ensemble, groups=(ensemble.groups[0], ensemble.groups[2]))
    alone = dataclasses.replace(ensemble, groups=())
    plan, teacher = plan_memory(exits, fakes.DECODE), plan_memory(alone, fakes.DECODE)
    assert (plan.caches, plan.prefix) == (teacher.caches, teacher.prefix)
    assert plan.proxy_weights == 2 * 4 * (TEACHER.embed_dim + 1) * TEACHER.embed_dim
