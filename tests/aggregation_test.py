"""Joining proxies: closed forms and the limits of the soft minimum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.aggregation import AGGREGATIONS, Aggregation

X = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)


@pytest.mark.parametrize('how', ['mean', 'min', 'max'])
def test_simple_aggregations(how):
    np.testing.assert_allclose(Aggregation(how=how)(X), getattr(np, how)(X, axis=0), atol=1e-6)


def test_softmin_is_its_formula_between_its_limits():
    x = X.astype(np.float64)
    for beta in (0.5, 1.0, 4.0):
        expected = -np.log(np.mean(np.exp(-beta * x), axis=0)) / beta
        np.testing.assert_allclose(Aggregation(beta, 'softmin')(X), expected, atol=2e-6)
    # beta -> inf: above the minimum by at most log(N)/beta. beta -> 0: below the mean by about beta var/2.
    excess = Aggregation(1e3, 'softmin')(X) - X.min(axis=0)
    assert np.all((excess > -1e-5) & (excess <= np.log(3) / 1e3 + 1e-5))
    np.testing.assert_allclose(Aggregation(1e-2, 'softmin')(X), X.mean(axis=0), atol=0.02)


def test_softmin_loses_nothing_at_a_small_beta():
    x = X.astype(np.float64)
    for beta in (1e-7, 1e-4, 1e-2):
        expected = -np.log1p(np.mean(np.expm1(-beta * x), axis=0)) / beta
        np.testing.assert_allclose(Aggregation(beta, 'softmin')(X), expected, atol=1e-6)


@pytest.mark.parametrize('beta', [1e-7, 1.0, 50.0])
def test_the_derivative_of_softmin_is_the_softmax_of_the_least(beta):
    """Also where two are the least, and where one is infinite."""
    rule = Aggregation(beta, 'softmin')
    for x_N in (X[:, 0], np.float32([1, 1, 2]), np.float32([0, 1, np.inf])):
        weights_N = np.exp(-beta * (x_N.astype(np.float64) - x_N.min()))
        weights_N /= weights_N.sum()
        np.testing.assert_allclose(jax.grad(lambda x_N: rule(x_N[:, None])[0])(x_N), weights_N, atol=1e-6)
        slope = jax.jvp(lambda x_N: rule(x_N[:, None])[0], (x_N,), (np.float32([1, 2, 3]),))[1]
        np.testing.assert_allclose(slope, weights_N @ [1, 2, 3], rtol=1e-5)


def test_softmin_of_infinities_is_their_limit():
    far = np.inf
    x = jnp.asarray([[far, -far, far, 1.0], [far, 0.0, 1.0, 1.0]], jnp.float32)
    found = np.asarray(Aggregation(2.0, 'softmin')(x))
    np.testing.assert_allclose(found, [far, -far, 1 + np.log(2) / 2, 1.0], rtol=1e-6)


@pytest.mark.parametrize('how', AGGREGATIONS)
def test_one_proxy_is_itself(how):
    np.testing.assert_allclose(Aggregation(2.0, how)(X[:1]), X[0], atol=1e-6)


@pytest.mark.parametrize(
    'bad', [Aggregation(how='softmax'), *(Aggregation(b) for b in (0.0, -1.0, np.nan, np.inf))]
)
def test_check_refuses(bad):
    with pytest.raises(ValueError, match=r'Aggregation\.(how|beta) = '):
        bad.check()
