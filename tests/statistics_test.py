from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from adx.statistics import (
    binomial_interval,
    fieller,
    holm,
    log_holm,
    paired_p,
    paired_t,
    paired_upper,
    rank_correlation,
    t_interval,
)  # fmt: skip


def draws(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def near_rate(hits, rate):
    """Within 3.5 standard errors of the nominal rate."""
    assert abs(np.mean(hits) - rate) < 3.5 * math.sqrt(rate * (1 - rate) / len(hits)), np.mean(hits)


class TestT:
    def test_is_scipys(self):
        x, y = draws(8) + 2, draws(8, 1)
        expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
        np.testing.assert_allclose(t_interval(x, 0.9)[:3], (x.mean(), *expected), rtol=1e-12)
        expected = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
        np.testing.assert_allclose(paired_t(x, y)[1:3], expected, rtol=1e-12)
        assert paired_p(x, y) == pytest.approx(scipy.stats.ttest_rel(x, y, alternative='greater').pvalue, rel=1e-12)

    def test_without_spread(self):
        assert t_interval([3.0])[:3] == (3.0, -math.inf, math.inf)
        assert t_interval([2.0, 2.0])[:3] == (2.0, 2.0, 2.0)
        assert [paired_p([x] * 3, [1.0] * 3) for x in (0.0, 1.0, 2.0)] == [1.0, 1.0, 0.0]
        assert paired_p([5.0], [1.0]) == 1.0

    @pytest.mark.parametrize(
        ('call', 'message'),
        [
            (lambda: t_interval([]), 'at least 1'),
            (lambda: t_interval([1.0, math.nan]), 'not finite'),
            (lambda: t_interval([1.0], 95), 'level = 95'),
            (lambda: paired_t([1.0], [1.0, 2.0]), 'a has 1 values and b has 2'),
        ],
    )
    def test_refuses(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestFieller:
    def test_holds_exactly_the_ratios_that_a_t_test_does_not_reject(self):
        top, below = 1 + draws(8), 3 + draws(8, 1)
        value, low, high, note = fieller(top, below)
        assert low < value < high
        assert not note
        for ratio in (low, high):
            assert scipy.stats.ttest_1samp(top - ratio * below, 0).pvalue == pytest.approx(0.05, abs=1e-9)

    def test_covers_as_stated(self):
        x = draws((4000, 2, 5), 3)
        hits = []
        for (top, below) in x:
            _, low, high, _ = fieller(1 + top, 6 + below + top)
            hits.append(low <= 1 / 6 <= high)
        near_rate(hits, 0.95)

    def test_says_what_is_not_bounded(self):
        everything = fieller([0.1, -0.1, 0.05], [0.1, -0.2, 0.15])
        outside = fieller([5.0, 5.1, 4.9], [0.1, -0.2, 0.15])
        assert everything[1:3] == outside[1:3] == (-math.inf, math.inf)
        assert 'the denominator may be 0' in everything.note
        low, high = (float(word) for word in outside.note.split('outside ')[1].split(',')[0].split(' to '))
        for ratio in (low, high):
            gap = np.array([5.0, 5.1, 4.9]) - ratio * np.array([0.1, -0.2, 0.15])
            assert scipy.stats.ttest_1samp(gap, 0).pvalue == pytest.approx(0.05, abs=1e-3)
        assert fieller([1.0], [2.0])[:3] == (0.5, -math.inf, math.inf)

    def test_no_spread_gives_the_ratio(self):
        np.testing.assert_allclose(fieller([0.2] * 4, [0.4] * 4)[:3], 0.5, rtol=1e-12)


@pytest.mark.parametrize(('k', 'n'), [(0, 200), (1, 7), (7, 7), (30, 100)])
def test_binomial_interval_is_scipys_exact_one(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.9, 'exact')
    np.testing.assert_allclose(binomial_interval(k, n, 0.9)[1:3], (expected.low, expected.high), rtol=1e-9)


class TestPairedUpper:
    def test_is_the_one_sided_t_bound(self):
        a, b = np.random.default_rng(0).integers(0, 2, (2, 300))
        expected = scipy.stats.ttest_rel(a, b, alternative='less').confidence_interval(0.95).high
        assert paired_upper(a, b) == pytest.approx(expected, rel=1e-12)

    def test_no_discordant_pair_is_no_proof_of_none(self):
        assert paired_upper([True] * 59, [True] * 59) == pytest.approx(0.0495, abs=1e-4)

    def test_samples_of_a_prompt_are_one_unit(self):
        """Doubling every sample changes nothing; coverage holds where samples of a prompt agree."""
        a, b = np.random.default_rng(1).integers(0, 2, (2, 40))
        doubled = [np.repeat(x, 2) for x in (a, b)]
        clusters = np.repeat(np.arange(40), 2).tolist()
        assert paired_upper(*doubled, clusters=clusters) == pytest.approx(paired_upper(a, b), rel=1e-12)
        assert paired_upper(*doubled) < paired_upper(a, b)
        draw = np.random.default_rng(2)
        hits = []
        for _ in range(2000):
            loss = np.clip(draw.normal(0.1, 0.1, 30)[:, None] + draw.normal(0, 0.05, (30, 3)), -1, 1).ravel()
            hits.append(paired_upper(loss, np.zeros(90), clusters=np.repeat(np.arange(30), 3).tolist()) >= 0.1)
        near_rate(hits, 0.95)


def test_holm_is_the_closed_test_of_bonferroni():
    """Brute force: the largest Bonferroni p over every intersection that holds the hypothesis."""
    p = np.random.default_rng(5).uniform(0, 0.3, 5)
    for i, adjusted in enumerate(holm(p)):
        sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k) if i in s]
        assert adjusted == pytest.approx(min(1, max(len(s) * min(p[list(s)]) for s in sets)))
    assert holm([]) == []
    logs = log_holm(np.log(p))
    np.testing.assert_allclose(np.exp(logs), holm(p), rtol=1e-12)
    with pytest.raises(ValueError, match='nan is no p-value'):
        log_holm([-1.0, float('nan')])
    assert log_holm([-60000.0, 0.0, -2.0]) == [-60000.0 + np.log(3), 0.0, -2.0 + np.log(2)]


class TestRankCorrelation:
    def test_is_scipys_with_ties(self):
        x, y = np.random.default_rng(6).integers(0, 5, (2, 30))
        assert rank_correlation(x, y).value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)

    def test_covers_as_stated(self):
        """Of normal pairs with correlation r, the true rho is 6/pi asin(r/2)."""
        x, e = draws((2, 3000, 25), 7)
        y = 0.6 * x + 0.8 * e
        true = 6 / math.pi * math.asin(0.3)
        intervals = [rank_correlation(*pair) for pair in zip(x, y, strict=True)]
        assert abs(np.mean([low <= true <= high for _, low, high, _ in intervals]) - 0.95) < 0.015  # it is asymptotic

    def test_bounds_nothing_without_data(self):
        assert rank_correlation([1, 2, 3], [1, 3, 2])[1:3] == (-1, 1)
        assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).value)

    def test_ranks_that_agree_by_chance_are_no_certainty(self):
        for n, least in ((4, -0.85), (5, -0.2), (30, 0.9)):
            rho, low, high, _ = rank_correlation(range(n), range(10, 10 + n))
            assert (rho, high) == (1, 1)
            nearly = [1, 0, *range(2, n)]
            assert rank_correlation(range(n), nearly).low <= low < 1
            assert low > least
            assert rank_correlation(range(n), range(n, 0, -1))[:3] == (-1, -1, -low)
