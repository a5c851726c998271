"""Identities of the decoder: cached equals uncached, padding does not matter, the past alone does."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.checkpoints import load

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

    # Two programs round differently, each by up to `rounding` from float64.
    return apply, loaded.model.empty_cache(2, 24), golden['tokens'][:, :LENGTH], 2 * float(golden['rounding'])


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
