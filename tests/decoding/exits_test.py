"""Early exits of the teacher that take its hidden state, against the same proxies with blocks of their own."""

from __future__ import annotations

import dataclasses
import functools
import math
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
from adx.needs import differentiated
from adx.planning import plan_memory
from adx.scaling import Machine
from adx.settings import Derivative

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


def build(members, shape=(1, 1, 1), shard_weights=False):
    """(Ensemble, Weights) of a teacher and of groups: (config, how many, after which of its blocks they exit)."""
    mesh = make_mesh(*shape)
    model, layout = make_model(TEACHER), teacher_layout(mesh, TEACHER.sizes, shard_weights)
    drawn = model.init(0)
    params = {path: jax.device_put(x, layout.sharding(model.axes[path])) for path, x in drawn.items()}
    groups, weights = [], []
    for config, count, exit_layer in members:
        proxy = make_model(config)
        group = Group(proxy, proxy_layout(mesh, config.sizes, count), count, exit=exit_layer)
        own_params = [early_exit(proxy, drawn, n) if exit_layer else proxy.init(7) for n in range(count)]
        groups.append(group)
        weights.append(stack_params(proxy, group.layout, own_params))
    return Ensemble(model, layout, tuple(groups)), Weights(params, tuple(weights))


@functools.cache
def models(shape=(1, 1, 1), shard_weights=False):
    """Of a teacher, two early exits of one depth, another model, and two bare earlier exits."""
    return build([(EARLY, 2, 2), (fakes.PROXY, 1, 0), (EARLIEST, 2, 1)], shape, shard_weights)


def own(ensemble):
    """Every proxy with blocks and a pass of its own."""
    return dataclasses.replace(
        ensemble, groups=tuple(dataclasses.replace(g, exit=0, shared=False) for g in ensemble.groups)
    )


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


@functools.cache
def sloped(shape=(1, 1, 1), directions=1):
    """(Ensemble, Weights) of a teacher, an early exit that shares its pass, another model, and a bare earlier exit,
    which has blocks of its own; random directions of all. Weights are whole."""
    ensemble, weights = build([(EARLY, 1, 2), (fakes.PROXY, 1, 0), (EARLIEST, 1, 1)], shape)
    ensemble = differentiated(ensemble, Derivative(directions=directions))
    along = tuple(fakes.make_directions(group, seed) for seed, group in enumerate(ensemble.groups))
    return ensemble, weights._replace(directions=along)


TOKENS = np.random.default_rng(0).integers(0, fakes.VOCAB, (8, 11)).astype(np.int32)


@pytest.mark.parametrize(
    ('shape', 'directions'),
    [
        ((1, 1, 1), 1),
        ((2, 2, 2), 3),
        pytest.param((1, 1, 1), 3, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
        pytest.param((4, 1, 2), 1, marks=pytest.mark.slow),
    ],
)
def test_derivatives_along_the_teachers_own_pass_are_those_along_another_of_the_same_blocks(shape, directions):
    ensemble, weights = sloped(shape, directions)
    assert [group.shared for group in ensemble.groups] == [True, False, False]
    mine = fakes.decoded(ensemble, held(ensemble, weights), TOKENS, 8)
    theirs = fakes.decoded(own(ensemble), weights, TOKENS, 8)
    for x, y in zip(mine, theirs, strict=True):
        # Logits of size 1, and slopes of their size, summed in another order.
        np.testing.assert_allclose(x, y, rtol=0, atol=5e-5)
    for x, y in zip(jax.jit(ensemble.whole)(held(ensemble, weights), TOKENS), mine, strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(x), -2, 0)[7:], y, rtol=0, atol=5e-5)


def test_a_row_with_a_rule_along_the_teachers_pass_draws_what_it_would_beside_it():
    ensemble, weights = sloped()
    requests = fakes.make_requests(12, fakes.Sloped(2.0))
    mine, theirs = (
        {str(one.id): one for one in Engine(*models, fakes.DECODE).generate(requests)}
        for models in ((ensemble, held(ensemble, weights)), (own(ensemble), weights))
    )
    fakes.check_agreement(mine, theirs)


@pytest.mark.parametrize('directions', [1, 3])
def test_the_pass_that_they_share_runs_once(directions):
    """What is spared are the products of two blocks with weights and caches, once, whatever the directions."""
    ensemble, weights = sloped(directions=directions)
    models = [make_model(config) for config in (dataclasses.replace(EARLY, translator=False), EARLIEST)]
    alone = [(Ensemble(model, ensemble.teacher_layout), Weights(model.init(0), ())) for model in models]
    two, one = (sum(fakes.dot_sizes(*each)) for each in alone)
    mine, theirs = (sum(fakes.dot_sizes(e, weights)) for e in (ensemble, own(ensemble)))
    assert theirs - mine == 2 * (two - one)


def test_one_that_shares_has_no_cache_but_its_tangents():
    ensemble, weights = sloped(directions=3)
    caches = ensemble.empty_caches(4, 9)
    assert [len(cache.layers) for cache in caches.groups] == [0, 1, 1]
    tangents = [(len(cache.layers), len(cache.layers[0].v_BGSK)) for cache in caches.tangents]
    assert tangents == [(2, 3), (1, 3), (1, 3)]
    index_B = np.zeros(4, np.int32)
    step = jax.jit(ensemble.step, donate_argnums=1).lower(held(ensemble, weights), caches, index_B, index_B).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    assert step.memory_analysis().alias_size_in_bytes >= size


def test_a_derivative_is_along_the_blocks_whose_pass_it_shares_or_its_own():
    early, *_ = models()[0].groups
    assert (early.reads, early.has_blocks) == (2, False)
    assert early.paths == ['translator', 'translator_bias']
    shared = dataclasses.replace(early, directions=1, shared=True)
    assert (shared.reads, shared.has_blocks, shared.paths) == (0, False, early.paths)
    for other in (dataclasses.replace(early, directions=1), dataclasses.replace(early, directions=1, difference=0.1)):
        assert (other.reads, other.has_blocks) == (0, True)
        assert set(other.paths) == set(early.model.shapes)


def test_the_plan_counts_what_they_hold():
    ensemble, _ = models()
    exits = dataclasses.replace(ensemble, groups=(ensemble.groups[0], ensemble.groups[2]))
    alone = dataclasses.replace(ensemble, groups=())
    plan, teacher = plan_memory(exits, fakes.DECODE), plan_memory(alone, fakes.DECODE)
    assert (plan.caches, plan.prefix) == (teacher.caches, teacher.prefix)
    assert plan.proxy_weights == 2 * 4 * (TEACHER.embed_dim + 1) * TEACHER.embed_dim


def test_the_plan_of_one_that_shares_counts_tangents_directions_and_its_translator():
    ensemble, _ = sloped(directions=3)
    early = ensemble.groups[0]
    shares, beside = (plan_memory(one, fakes.DECODE) for one in (only(ensemble, early), own(only(ensemble, early))))
    teacher = plan_memory(dataclasses.replace(ensemble, groups=()), fakes.DECODE)
    layers = 2 / TEACHER.num_layers  # of the teacher's cache, for each direction
    assert shares.caches - teacher.caches == 3 * layers * teacher.caches
    assert beside.caches - shares.caches == layers * teacher.caches
    assert shares.proxy_weights == 4 * (TEACHER.embed_dim + 1) * TEACHER.embed_dim
    assert shares.directions == beside.directions == 3 * beside.proxy_weights


def only(ensemble, group):
    return dataclasses.replace(ensemble, groups=(group,))


def test_the_least_time_of_a_step_spares_what_is_shared():
    """Operations: of the exit's own pass the translator and the head are left; bytes: of its weights the translator."""
    ensemble, _ = sloped()
    early, sizes = ensemble.groups[0], ensemble.groups[0].model.shapes
    shares, beside = only(ensemble, early), own(only(ensemble, early))
    count = lambda paths: sum(math.prod(sizes[path]) for path in paths)  # noqa: E731
    spared = count(path for path in sizes if path not in ('embed', 'translator', 'translator_bias'))
    products, memory = Machine(rate=1.0, bandwidth=1e30), Machine(rate=1e30, bandwidth=1.0)
    seconds = [[machine.step_seconds(one, 4, 16) for one in (beside, shares)] for machine in (products, memory)]
    assert seconds[0][0] - seconds[0][1] == pytest.approx(2 * 4 * spared, rel=1e-9)
    cache = 2 * 4 * 2 * TEACHER.num_kv_heads * TEACHER.head_dim * 16 * 4
    assert seconds[1][0] - seconds[1][1] == pytest.approx(4 * (count(sizes) - count(early.paths)) + cache, rel=1e-9)
