"""The order of operations against a slow float64 oracle, and what is drawn against the textbook distribution."""

from __future__ import annotations

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.decoding import loop, sampling
from adx.defences import CrossModelHard, CrossModelWeighted, ProductOfExperts, Undefended
from adx.types import Sampling

VOCAB = 24
ROWS = 3000


SERVE = jax.jit(sampling.serve)


def make_rows(defence, numbers: Sampling, rows: int = ROWS) -> loop.Rows:
    def full(x):
        return jnp.full(rows, x, jnp.float32)

    index = jnp.arange(rows, dtype=jnp.int32)
    keys = jax.random.key_data(jax.random.split(jax.random.key(7), rows))
    return loop.Rows(
        index * 0, index, index + 9, index < 0, keys, index >= 0, index * 0,
        jax.tree.map(full, numbers), jax.tree.map(full, defence), defence.init(),
    )  # fmt: skip


def serve(defence, numbers, protected=(), seed=0):
    """(Served over ROWS rows, teacher logits, proxy logits): equal logits, different keys."""
    views = fakes.make_views(seed, VOCAB, proxies=1)
    logits_V, proxy_V = views.teacher_V + 1.0, views.proxies_NV[0] - 2.0
    rows = make_rows(defence, numbers)
    protected_V = jnp.isin(jnp.arange(VOCAB), jnp.asarray(protected or [-1]))
    key_B = jax.random.wrap_key_data(rows.key_B)
    served = SERVE(jnp.tile(logits_V, (ROWS, 1)), jnp.tile(proxy_V, (1, ROWS, 1)), rows, key_B, protected_V)
    return served, np.asarray(logits_V, np.float64), np.asarray(proxy_V, np.float64)


def oracle(logits, proxy, numbers: Sampling, gamma: float, protected=()):
    """The served distribution in float64, by sorting."""
    p, q = (np.exp(z / numbers.temperature - np.logaddexp.reduce(z / numbers.temperature)) for z in (logits, proxy))
    order = np.argsort(-p)
    kept = np.zeros(VOCAB, bool)
    kept[order[: 1 + int(np.sum(np.cumsum(p[order]) < numbers.top_p))]] = True
    if numbers.top_k:
        kept &= np.isin(np.arange(VOCAB), order[: int(numbers.top_k)])
    kept &= p >= numbers.min_p * p.max()
    teacher = np.where(kept, p, 0) / p[kept].sum()
    protected = np.isin(np.arange(VOCAB), protected)
    open_ = kept & ~protected
    mixed = np.where(open_, p ** (1 - gamma) * q**gamma, 0)
    return np.where(protected, teacher, mixed / mixed.sum() * (1 - teacher[protected].sum())), teacher


@pytest.mark.parametrize(
    'numbers',
    [
        Sampling(),
        Sampling(0.7, 0, 0.8, 0.0),
        Sampling(1.3, 5, 1.0, 0.0),
        Sampling(0.9, 12, 0.9, 0.02),
        Sampling(1.0, 0, 1.0, 0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize('gamma', [0.0, 0.5])
def test_served_distribution_and_draws_are_the_textbooks(numbers, gamma):
    protected = (3, 5) if gamma else ()
    served, logits, proxy = serve(ProductOfExperts(gamma), numbers, protected)
    expected_V, teacher_V = oracle(logits, proxy, numbers, gamma, protected)
    np.testing.assert_allclose(np.exp(served.served_V[0]), expected_V, atol=2e-6)
    np.testing.assert_allclose(np.exp(served.teacher_V[0]), teacher_V, atol=2e-6)
    error_V = np.sqrt(expected_V * (1 - expected_V) / ROWS)
    frequency_V = np.bincount(np.asarray(served.token), minlength=VOCAB) / ROWS
    assert (np.abs(frequency_V - expected_V) <= 4.5 * error_V).all()  # 4.5 standard errors, 24 tokens, 10 cases
    frequency_V = np.bincount(np.asarray(served.undefended), minlength=VOCAB) / ROWS
    assert (np.abs(frequency_V - teacher_V) <= 4.5 * np.sqrt(teacher_V * (1 - teacher_V) / ROWS)).all()


@pytest.mark.parametrize('defence', [CrossModelHard(), CrossModelWeighted(0.7)], ids=lambda d: type(d).__name__)
def test_an_argmax_rule_emits_a_protected_token_exactly_when_the_teacher_would(defence):
    likely = np.argsort(-np.asarray(fakes.make_views(0, VOCAB, proxies=1).teacher_V))
    protected = tuple(likely[1:3].tolist())
    served, *_ = serve(defence, Sampling(top_p=0.9), protected)
    is_protected = np.isin(served.undefended, protected)
    assert 0 < is_protected.mean() < 1
    np.testing.assert_array_equal(np.asarray(served.token)[is_protected], np.asarray(served.undefended)[is_protected])
    assert len(np.unique(np.asarray(served.token)[~is_protected])) == 1


def test_temperature_zero_is_the_argmax_of_the_adjusted_scores():
    served, logits, proxy = serve(ProductOfExperts(0.5), Sampling(temperature=0.0))
    assert (np.asarray(served.token) == (logits + proxy).argmax()).all()
    assert (np.asarray(served.undefended) == logits.argmax()).all()


def test_without_a_defence_nothing_is_intervened():
    served, *_ = serve(Undefended(), Sampling(0.8, 0, 0.9, 0.0), protected=(1, 2))
    np.testing.assert_array_equal(served.token, served.undefended)
    np.testing.assert_array_equal(served.served_V, served.teacher_V)


def test_tokens_of_no_probability_are_never_candidates():
    """With top-p 1 a reference admitted them, and a rule that dislikes likely tokens then emits one."""
    logits_BV = jnp.where(jnp.arange(VOCAB) < 4, 0.0, -300.0)[None]
    allowed_BV, _ = sampling.truncation(
        sampling.tempered(logits_BV, jnp.ones(1)), jax.tree.map(lambda x: jnp.full(1, x, jnp.float32), Sampling())
    )
    assert np.flatnonzero(allowed_BV[0]).tolist() == [0, 1, 2, 3]
