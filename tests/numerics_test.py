"""Searches and draws against sorting, float64 and the moments of the Gumbel distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import numerics
from adx.numerics import MASKED

threshold = jax.jit(numerics.largest_threshold, static_argnums=1)


def mass_of(p):
    return p


def by_sorting(p, mass, target):
    """The largest value t of p whose entries >= t carry the target; 0 when all of p does not."""
    for t in np.unique(p)[::-1]:
        if np.sum(mass[p >= t], dtype=np.float64) >= target:
            return t
    return 0.0


def cases():
    """Rows of p in multiples of 2^-10, so that every float32 sum is exact: with ties, zeros, one-hot, constant."""
    rng = np.random.default_rng(0)
    p = rng.integers(0, 40, (40, 33)) / 1024
    p[10:20] = rng.integers(0, 3, (10, 33)) / 1024
    p[20:30, 5:] = 0
    p[38] = 0
    p[38, 7] = 1
    p[39] = 1 / 1024
    return p.astype(np.float32), rng


@pytest.mark.parametrize('k', [1, 2, 7, 32, 33, 34])
def test_kth_largest_value(k):
    p, _ = cases()
    got = threshold(p, jnp.ones_like, jnp.full(len(p), k, jnp.float32))
    expected = np.sort(p, axis=-1)[:, ::-1][:, k - 1] if k <= 33 else np.zeros(len(p))
    np.testing.assert_array_equal(got, expected)


def test_top_p_threshold_is_the_sorted_one():
    p, rng = cases()
    target = (rng.integers(1, 700, len(p)) / 1024).astype(np.float32)
    got = threshold(p, mass_of, target)
    np.testing.assert_array_equal(got, [by_sorting(*row) for row in zip(p, p, target, strict=True)])
    assert len(set(np.asarray(got).tolist())) > 5


def test_threshold_on_wide_rows_of_tiny_probabilities():
    """Subnormal neighbours 1 bit apart are still told apart."""
    p = jnp.asarray([[1e-30, np.nextafter(np.float32(1e-30), np.float32(1)), 0.5, 0.25]], jnp.float32)
    for k in range(1, 5):
        got = threshold(p, jnp.ones_like, jnp.float32([k]))
        assert got[0] == np.sort(np.asarray(p[0]))[::-1][k - 1]


@pytest.mark.parametrize('size', [1, 2, 77])
def test_random_bits_are_those_of_jax(size):
    for seed in range(3):
        key = jax.random.fold_in(jax.random.key(seed), 5)
        np.testing.assert_array_equal(numerics.random_bits(key, size), jax.random.bits(key, (size,), jnp.uint32))


def test_gumbel_of_a_prefix_is_a_prefix():
    key = jax.random.key(3)
    np.testing.assert_array_equal(numerics.gumbel(key, 1000)[:77], numerics.gumbel(key, 77))


def test_gumbel_moments_and_upper_tail():
    """Mean 0.5772 and variance pi^2/6 within 4 standard errors (fourth central moment 14.6); P(x > 5) likewise."""
    n = 1 << 20
    x = np.asarray(numerics.gumbel(jax.random.key(0), n), np.float64)
    assert np.all(np.isfinite(x))
    variance = np.pi**2 / 6
    assert abs(x.mean() - np.euler_gamma) < 4 * np.sqrt(variance / n)
    assert abs(x.var() - variance) < 4 * np.sqrt((14.6 - variance**2) / n)
    tail = -np.expm1(-np.exp(-5.0))
    assert abs(np.mean(x > 5) - tail) < 4 * np.sqrt(tail / n)


def test_argmax_takes_the_lowest_of_ties():
    x = np.float32([[1, 3, 3, 0], [MASKED] * 4, [-np.inf, -np.inf, -1, -1]])
    np.testing.assert_array_equal(numerics.argmax(x), [1, 0, 2])


def test_kl_equals_float64_and_ignores_what_q_cannot_say():
    rng = np.random.default_rng(1)
    q, p = rng.dirichlet(np.ones(50), 2)
    got = numerics.kl(jnp.log(jnp.float32(q)), jnp.log(jnp.float32(p)))
    assert got == pytest.approx(np.sum(q * np.log(q / p)), rel=1e-5)
    assert numerics.kl(jnp.float32([0.0, MASKED]), jnp.float32([np.log(0.25), MASKED])) == pytest.approx(np.log(4))


def test_renormalise_on_infinities_ties_and_masked():
    inf = np.inf
    allowed = np.array([1, 1, 1, 0], bool)
    rows = {
        'plain': ([0.0, 0.0, -inf, 5.0], [0.5, 0.5, 0, 0]),
        'all -inf': ([-inf, -inf, -inf, 0.0], [1 / 3, 1 / 3, 1 / 3, 0]),
        'all masked': ([MASKED, MASKED, MASKED, 0.0], [1 / 3, 1 / 3, 1 / 3, 0]),
        '+inf is all the mass': ([inf, 0.0, -inf, inf], [1, 0, 0, 0]),
        'nan outside the set': ([1.0, 1.0, 1.0, np.nan], [1 / 3, 1 / 3, 1 / 3, 0]),
    }
    for name, (scores, expected) in rows.items():
        got = numerics.renormalise(jnp.float32(scores), allowed)
        assert np.all(np.isfinite(got)), name
        np.testing.assert_allclose(np.exp(got), expected, atol=1e-6, err_msg=name)
    assert got[3] == np.float32(MASKED)
