"""Derivatives inside decoding: against float64, cached against uncached, by both methods, and in the engine."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.checkpoints import load
from adx.decoding import derivative, sampling
from adx.decoding.engine import Engine
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.errors import ConfigError
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.products import linear
from adx.models.transformer import make_model
from adx.numerics import MASKED

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FAMILIES = sorted(path.parent.name for path in GOLDENS.glob('*/logits.npz'))
SLOW = pytest.mark.slow
MORE = {'llama3', 'mistral', 'qwen3'}  # their mechanisms are others' too
ROWS, PROMPT, LENGTH = 2, 8, 11  # beyond the windows of 7 tokens
EOS = (5, 9)


def families():
    for family in FAMILIES:
        yield pytest.param(family, marks=SLOW if family in MORE else ())


def decoded(ensemble, weights, tokens_BL):
    """(logits_LNBV, tangents_LMBV): see fakes.decoded."""
    return fakes.decoded(ensemble, weights, tokens_BL, PROMPT)[1:]


def whole(model, tokens_BL):
    """(linear, params) -> logits_LBV of all tokens at once, of the positions that `decoded` gives."""

    def run(linear, params):
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        logits_BLV = model.apply(params, tokens_BL, positions_BL, None, linear)[0]
        return jnp.swapaxes(logits_BLV, 0, 1)[PROMPT - 1 :]

    return run


def float64_slope(monkeypatch, model, params, direction, tokens_BL, eps=1e-5):
    """The central difference of logits_LBV in float64: float32 means float64 while it is computed."""
    config = dataclasses.replace(model.config, dtype='float64')
    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(jnp, 'float32', jnp.float64)
        run = jax.jit(functools.partial(whole(make_model(config), tokens_BL), linear))
        theta, g = (jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), x) for x in (params, direction))
        plus, minus = (run({path: theta[path] + sign * eps * g[path] for path in theta}) for sign in (1, -1))
        assert plus.dtype == jnp.float64
        return np.asarray((plus - minus) / (2 * eps))


@pytest.mark.parametrize('family', families())
def test_cached_tangents_are_the_float64_slopes(family, monkeypatch):
    """Soft caps, post norms, query-key norms, biases and windows are all differentiated, in prefill and in steps."""
    loaded, mesh = load(str(GOLDENS / family), num_layers=2), make_mesh()
    tokens_BL = np.load(GOLDENS / family / 'logits.npz')['tokens'][:ROWS, :LENGTH]
    model, params, sizes = loaded.model, loaded.params, loaded.model.config.sizes
    keys = dict(zip(params, jax.random.split(jax.random.key(0), len(params)), strict=True))
    direction = {path: jnp.std(w) * jax.random.normal(keys[path], w.shape) for path, w in params.items()}
    ensemble = Ensemble(model, teacher_layout(mesh, sizes), (Group(model, proxy_layout(mesh, sizes, 1), 1, 1),))
    stacked, along = jax.tree.map(lambda x: x[None], params), jax.tree.map(lambda x: x[None, None], direction)
    weights = Weights(params, (stacked,), (along,))
    _, tangents_LMBV = decoded(ensemble, weights, tokens_BL)
    expected_LBV = float64_slope(monkeypatch, model, params, direction, tokens_BL)
    # Sums of some hundred terms of both signs, each rounded to 6e-8, of terms larger than the sum.
    np.testing.assert_allclose(tangents_LMBV[:, 0], expected_LBV, rtol=0, atol=1e-5 * np.abs(expected_LBV).max())


def fake_tokens():
    return np.random.default_rng(0).integers(0, fakes.VOCAB, (8, LENGTH)).astype(np.int32)


@pytest.mark.parametrize(
    ('count', 'directions'), [(2, 3), pytest.param(1, 3, marks=SLOW), pytest.param(2, 1, marks=SLOW)]
)
def test_proxies_and_directions_keep_their_order(count, directions):
    """Every proxy along each of its directions, cached, against one plain jvp each of the whole sequence."""
    ensemble, weights = fakes.make_ensemble(count=count, directions=directions)
    (group,), tokens_BL = ensemble.groups, fake_tokens()
    logits_LNBV, tangents_LMBV = decoded(ensemble, weights, tokens_BL)
    push = jax.jit(functools.partial(jax.jvp, functools.partial(whole(group.model, tokens_BL), linear)))
    for n in range(count):
        for m in range(directions):
            params, g = ({path: w[at] for path, w in stack[0].items()}
                         for stack, at in ((weights.groups, n), (weights.directions, (n, m))))  # fmt: skip
            logits_LBV, slope_LBV = push((params,), (g,))
            # Logits and slopes of size 1, whose sums another program takes in another order.
            np.testing.assert_allclose(logits_LNBV[:, n], logits_LBV, rtol=0, atol=1e-5)
            np.testing.assert_allclose(tangents_LMBV[:, n * directions + m], slope_LBV, rtol=0, atol=2e-5)


@pytest.mark.parametrize('directions', [1, 3])
def test_the_primal_pass_runs_once_and_weights_are_read_once(directions):
    """x and every dx meet the weight in one product, x and every dw in another."""
    counts = (0, 0), (1, 0), (1, directions)
    teacher, plain, along = (fakes.dot_sizes(*fakes.make_ensemble(count=n, directions=m)) for n, m in counts)
    proxy = len(plain) - len(teacher)
    assert len(along) == len(teacher) + 2 * proxy
    assert sum(along) - sum(teacher) == (1 + 2 * directions) * (sum(plain) - sum(teacher))


def test_a_difference_converges_to_the_exact_derivative_until_it_rounds():
    tokens_BL = fake_tokens()
    ensemble, weights = fakes.make_ensemble(count=1, directions=1)
    logits_LNBV, expected_LMBV = decoded(ensemble, weights, tokens_BL)

    def errors(eps):
        groups = tuple(dataclasses.replace(group, difference=eps) for group in ensemble.groups)
        copies = derivative.difference_weights(weights.groups[0], weights.directions[0], eps)
        both = Weights(weights.teacher, *((copy,) for copy in copies))
        found = decoded(dataclasses.replace(ensemble, groups=groups), both, tokens_BL)
        masked = (logits_LNBV[..., fakes.VOCAB :], expected_LMBV[..., fakes.VOCAB :])
        for mine, other in zip(found, masked, strict=True):
            np.testing.assert_array_equal(mine[..., fakes.VOCAB :], other)
        pairs = zip(found, (logits_LNBV, expected_LMBV), strict=True)
        return np.array([np.sqrt(np.mean((mine - exact)[..., : fakes.VOCAB] ** 2)) for mine, exact in pairs])

    large, half, rounded = errors(0.02), errors(0.01), errors(1e-6)
    np.testing.assert_allclose(np.log2(large / half), 2, atol=0.1)  # the next order adds a share of eps squared
    assert rounded[1] > half[1]  # logits of size 1 round to about 1e-7, a tenth of eps


def test_tangents_become_those_of_log_probs():
    keys = jax.random.split(jax.random.key(0))
    logits_NBV, tangents_MBV = (jax.random.normal(keys[i], (n, 3, fakes.VOCAB_ROWS)) for i, n in enumerate((2, 4)))
    padded_V = jnp.arange(fakes.VOCAB_ROWS) >= fakes.VOCAB
    logits_NBV, tangents_MBV = jnp.where(padded_V, MASKED, logits_NBV), jnp.where(padded_V, 0.0, tangents_MBV)
    centred_MBV = sampling.centred(tangents_MBV, logits_NBV)
    for m in range(4):
        _, expected_BV = jax.jvp(jax.nn.log_softmax, (logits_NBV[m // 2],), (tangents_MBV[m],))
        np.testing.assert_allclose(centred_MBV[m, :, : fakes.VOCAB], expected_BV[:, : fakes.VOCAB], atol=1e-6)
    assert not np.asarray(centred_MBV[..., fakes.VOCAB :]).any()


def decode(requests, engine):
    return {str(done.id): done for done in engine.generate(requests)}


@functools.cache
def make_engine(chunk=fakes.DECODE.chunk, directions=1, short_caches=()):
    config = dataclasses.replace(fakes.DECODE, chunk=chunk, short_caches=short_caches)
    return Engine(*fakes.make_ensemble(directions=directions), config, 0, EOS, EOS)


def sloped(**kwargs):
    return fakes.make_requests(defence=fakes.Sloped(2.0), **kwargs)


@pytest.mark.parametrize('directions', [1, pytest.param(2, marks=SLOW)])
def test_tokens_do_not_depend_on_slot_order_neighbours_or_chunking(directions):
    requests, engine = sloped(count=20), make_engine(directions=directions)
    expected = decode(requests, engine)
    assert sum(sum(done.statistics['kl']) for done in expected.values()) > 1
    assert decode(requests[::-1], engine) == expected
    alone = decode(requests[3:4], engine)
    assert alone == {str(requests[3].id): expected[str(requests[3].id)]}
    assert decode(requests, make_engine(5, directions)) == expected


def test_nothing_is_compiled_after_the_warm_up_and_short_caches_serve_the_same():
    """As for plain engines: among 160 draws no tie is as near as sums over other lengths round differently."""
    engine = make_engine(short_caches=(16,))
    engine.warm_up(fakes.Sloped())
    warm, used, resize = engine.compiled_programs(), [], engine.resize
    engine.resize = lambda caches, length: used.append(length) or resize(caches, length)
    requests = sloped(count=20)
    long = [dataclasses.replace(request, max_new_tokens=15) for request in requests[:4]]
    done, expected = (decode([*long, *requests[4:]], one) for one in (engine, make_engine()))
    assert {id_: one.tokens for id_, one in done.items()} == {id_: one.tokens for id_, one in expected.items()}
    assert engine.compiled_programs() == warm
    assert used[0] == 24  # grown by the long rows
    assert used[-1] == 16  # and short again after them


@pytest.mark.parametrize('directions', [1, pytest.param(2, marks=SLOW)])
def test_caches_and_their_tangents_are_donated(directions):
    engine = make_engine(directions=directions)
    rows, caches = engine.start(fakes.Sloped())
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(x)) for x in (caches.groups, caches.tangents)]
    assert sizes[1] == directions * sizes[0]
    compiled = engine.programs.chunk.lower(engine.weights, rows, caches, engine.constants).compile()
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes


def test_a_rule_without_directions_and_groups_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match='Sloped wants derivatives'):
        decode(sloped(count=1), Engine(*fakes.make_ensemble(), fakes.DECODE))
    ensemble, weights = fakes.make_ensemble(directions=2)
    (group,) = ensemble.groups
    for groups, message in (
        ((dataclasses.replace(group, difference=0.01),), 'has one direction per proxy, not 2'),
        ((group, dataclasses.replace(group, directions=1)), 'the same number'),
    ):
        with pytest.raises(ConfigError, match=message):
            Engine(dataclasses.replace(ensemble, groups=groups), weights, fakes.DECODE)


MESHES = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2)]


def meshes():
    for shape in MESHES:
        yield pytest.param(shape, marks=() if shape == (2, 2, 2) else SLOW, id='x'.join(map(str, shape)))


@pytest.mark.parametrize('shape', meshes())
@pytest.mark.parametrize('directions', [1, pytest.param(2, marks=SLOW)])
def test_meshes_give_the_same_tangents(shape, directions):
    ensembles = (fakes.make_ensemble(make_mesh(*s), directions=directions) for s in ((1, 1, 1), shape))
    one, other = (decoded(*ensemble, fake_tokens()) for ensemble in ensembles)
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)  # size 1 summed in another order
