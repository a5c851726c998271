"""Identities of the decoder: cached equals uncached, padding does not matter, the past alone does."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.checkpoints import load
from adx.models.cache import empty_cache, write
from adx.models.products import fused_linear, linear

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
# Every family; the windows of 7 tokens and Llama 3's scaled positions lie within the 20.
FAMILIES = sorted(path.parent.name for path in GOLDENS.glob('*/logits.npz'))
LENGTH, SPLIT = 20, 9


@pytest.fixture(scope='module', params=FAMILIES)
def decoder(request):
    """Of a golden checkpoint: apply jitted, an empty cache of 2 rows, tokens [2, 20], the tolerance."""
    loaded = load(str(GOLDENS / request.param))
    golden = np.load(GOLDENS / request.param / 'logits.npz')

    @jax.jit
    def apply(tokens, positions, cache=None):
        return loaded.model.apply(loaded.params, tokens, positions, cache)

    # Two programs round differently, each by up to `rounding` from float64 as XLA optimises them for users.
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield apply, loaded.model.empty_cache(2, 24), golden['tokens'][:, :LENGTH], 2 * float(golden['rounding'])
    jax.config.update('jax_disable_most_optimizations', before)


def whole(apply, tokens):
    return np.asarray(apply(tokens, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape))[0])


def test_prefill_then_steps_equal_one_pass(decoder):
    apply, cache, tokens, tolerance = decoder
    expected = whole(apply, tokens)
    prefix = np.broadcast_to(np.arange(SPLIT), (2, SPLIT))
    logits, cache = apply(tokens[:, :SPLIT], prefix, cache)
    np.testing.assert_allclose(logits, expected[:, :SPLIT], rtol=0, atol=tolerance)
    for position in range(SPLIT, LENGTH):
        logits, cache = apply(tokens[:, position : position + 1], np.full((2, 1), position), cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], rtol=0, atol=tolerance)


def test_padding_after_a_row_does_not_matter(decoder):
    """A row of 9 tokens in a batch padded to 20, then continued at its own position."""
    apply, cache, tokens, tolerance = decoder
    expected = whole(apply, tokens)
    padded = tokens.copy()
    padded[0, SPLIT:] = 0
    positions = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    logits, cache = apply(padded, positions, cache)
    np.testing.assert_allclose(logits[0, :SPLIT], expected[0, :SPLIT], rtol=0, atol=tolerance)
    np.testing.assert_allclose(logits[1], expected[1], rtol=0, atol=tolerance)
    # Row 0 goes on from position 9 while row 1 writes at 20: what padding left in the cache is never read.
    logits, _ = apply(np.array([[tokens[0, SPLIT]], [5]]), np.array([[SPLIT], [LENGTH]]), cache)
    np.testing.assert_allclose(logits[0, 0], expected[0, SPLIT], rtol=0, atol=tolerance)


def test_log_prob_of_what_is_sampled_is_what_scoring_gives(decoder):
    apply, cache, tokens, tolerance = decoder
    text, sampled = tokens[:, :1], []
    for position in range(LENGTH - 1):
        logits, cache = apply(text[:, -1:], np.full((2, 1), position), cache)
        log_probs = jax.nn.log_softmax(logits[:, 0])
        new = np.asarray(jax.random.categorical(jax.random.key(position), log_probs))
        sampled.append(np.take_along_axis(np.asarray(log_probs), new[:, None], 1)[:, 0])
        text = np.concatenate([text, new[:, None].astype(np.int32)], 1)
    scores = np.asarray(jax.nn.log_softmax(jnp.asarray(whole(apply, text))))[:, :-1]
    scored = np.take_along_axis(scores, text[:, 1:, None], 2)[..., 0]
    # A log-prob adds the rounding of its normaliser to that of its logit.
    np.testing.assert_allclose(np.stack(sampled, 1), scored, rtol=0, atol=2 * tolerance)


def test_only_the_past_matters_and_within_the_window():
    """Exact zero gradients outside what a token sees: causality, and in one layer the sliding window."""
    loaded = load(str(GOLDENS / 'mistral'), num_layers=1)
    window, position = loaded.model.config.window, 12
    tokens = np.load(GOLDENS / 'mistral' / 'logits.npz')['tokens'][:1, :LENGTH]

    def energy(scale_L):
        """A function of the size of each token's embedding; the norms' eps keeps it from cancelling."""
        params = dict(loaded.params)
        params['embed'] = params['embed'][tokens[0]] * scale_L[:, None]
        ids = np.arange(LENGTH)[None]
        hidden, _ = loaded.model.apply(params, ids, ids, None, method='hidden')
        return jnp.sum(hidden[0, position] ** 2)

    gradient = np.asarray(jax.jit(jax.grad(energy))(jnp.linspace(0.05, 0.1, LENGTH)))
    seen = set(np.flatnonzero(gradient))
    assert seen == set(range(position - window + 1, position + 1))


@pytest.mark.parametrize(
    ('equation', 'x', 'w'),
    [('BLD,FD->BLF', (3, 1, 8), (5, 8)), ('BGMK,BGKS->BGMS', (3, 2, 4, 8), (3, 2, 8, 5))],
)
def test_the_fused_product_reads_the_weight_once_and_its_tangent_is_the_plain_one(equation, x, w):
    keys = jax.random.split(jax.random.key(0), 4)
    primals, tangents = ([jax.random.normal(keys[2 * i + j], (x, w)[j]) for j in range(2)] for i in range(2))

    def push(product):
        return jax.jit(lambda *both: jax.jvp(functools.partial(product, equation), *both))

    dots = [push(product).lower(primals, tangents).as_text().count('dot_general') for product in (fused_linear, linear)]
    assert dots == [2, 3]
    for mine, plain in zip(push(fused_linear)(primals, tangents), push(linear)(primals, tangents), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=0, atol=2e-6)  # sums of 8 terms of size 1


@pytest.mark.parametrize('product', [linear, fused_linear], ids=['plain', 'fused'])
def test_training_takes_the_plain_product(product):
    """A gradient through two layers and its derivative. The fused product has no such gradient, and JAX says so."""
    loaded = load(str(GOLDENS / 'smollm2'), num_layers=2)
    tokens = np.load(GOLDENS / 'smollm2' / 'logits.npz')['tokens'][:1, :4]

    def loss(params):
        logits, _ = loaded.model.apply(params, tokens, np.arange(4)[None], None, product)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    if product is fused_linear:
        with pytest.raises(Exception, match='Linearization failed'):
            jax.eval_shape(jax.grad(loss), loaded.params)
        return
    slope, curvature = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (p,)))(loaded.params)
    eps = 1e-2
    plus, minus = (loss({path: w * (1 + step) for path, w in loaded.params.items()}) for step in (eps, -eps))
    expected = sum(float(jnp.vdot(g, loaded.params[path])) for path, g in slope.items())
    assert (plus - minus) / (2 * eps) == pytest.approx(expected, rel=1e-2)  # the third order is eps squared of it
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(curvature))


def test_a_written_cache_is_differentiated_by_writing_its_tangent():
    """Not by the scheme for writes that may overlap, which takes more arrays of the cache's size."""
    past, new = empty_cache(1, 2, 1, 6, 4, jnp.float32).layers[0], jnp.ones((2, 1, 1, 4))
    positions_BL = jnp.ones((2, 1), int)
    push = functools.partial(jax.jvp, lambda past, new: write(past, new, new, positions_BL))
    text = jax.jit(push).lower((past, new), (past, new)).as_text()
    assert text.count('"stablehlo.scatter"') == 4  # keys and values, and the tangents of both
    assert 'stablehlo.gather' not in text
