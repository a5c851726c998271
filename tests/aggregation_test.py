"""Joining proxies: closed forms and the limits of the soft minimum."""

from __future__ import annotations

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


@pytest.mark.parametrize('how', AGGREGATIONS)
def test_one_proxy_is_itself(how):
    np.testing.assert_allclose(Aggregation(2.0, how)(X[:1]), X[0], atol=1e-6)


@pytest.mark.parametrize(
    'bad', [Aggregation(how='softmax'), *(Aggregation(b) for b in (0.0, -1.0, np.nan, np.inf))]
)
def test_check_refuses(bad):
    with pytest.raises(ValueError, match=r'Aggregation\.(how|beta) = '):
        bad.check()
