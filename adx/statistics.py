"""Intervals and tests of paired figures; the caller names the unit of inference.

It is a seed, a prompt or a cluster.

Values are finite numbers in the caller's unit. Every function raises ValueError on none, on nan and infinities, and on
pairs of unequal length. An interval that the data do not bound has infinite ends and says why in `note`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """A value with its two-sided interval; `note` says what is unusual about it, '' when nothing is."""

    value: float
    low: float
    high: float
    note: str = ''


def _stats() -> Any:
    import scipy.stats  # half a second that only reports need

    return scipy.stats


def _values(x: Any, name: str, least: int = 1) -> np.ndarray:
    values = np.asarray(x, np.float64)
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f'{name} has shape {values.shape}; it must be a list of at least {least}')
    if not np.isfinite(values).all():
        raise ValueError(f'{name} holds a value that is not finite; leave the unit out and say so')
    return values


def _pairs(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    left, right = _values(a, 'a'), _values(b, 'b')
    if len(left) != len(right):
        raise ValueError(f'a has {len(left)} values and b has {len(right)}; pairs need the same units in both')
    return left, right


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f'level = {level!r} is not allowed; it must be in (0, 1), as 0.95')


def t_interval(x: Values, level: float = 0.95) -> Interval:
    """The mean over units (seeds) with Student's interval. One unit has no interval."""
    _check_level(level)
    values = _values(x, 'x')
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 'one unit has no interval')
    half = _stats().t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(mean, mean - float(half), mean + float(half))


def paired_t(a: Values, b: Values, level: float = 0.95) -> Interval:
    """The mean of a - b over the same units in the same order."""
    left, right = _pairs(a, b)
    return t_interval(left - right, level)


def paired_p(a: Values, b: Values) -> float:
    """One-sided p of mean(a - b) <= 0 by Student's t; 1 where one unit, or no spread about 0, decides nothing."""
    left, right = _pairs(a, b)
    difference = left - right
    spread = difference.std(ddof=1) if len(difference) > 1 else math.nan
    if not spread > 0:
        return 0.0 if spread == 0 and difference[0] > 0 else 1.0
    return float(_stats().t.sf(difference.mean() / (spread / math.sqrt(len(difference))), len(difference) - 1))


def fieller(numerators: Values, denominators: Values, level: float = 0.95) -> Interval:
    """mean(numerators) / mean(denominators) of paired units, with the set of ratios that a t test doesn't reject.

    The set is an interval only where the denominator is clearly not 0; otherwise it is everything outside two numbers,
    or every number, and the ends are infinite. Fieller 1954, J. R. Stat. Soc. B 16, 175.
    """
    _check_level(level)
    top, below = _pairs(numerators, denominators)
    mean_top, mean_below, n = float(top.mean()), float(below.mean()), len(top)
    value = mean_top / mean_below if mean_below else math.nan
    if n == 1:
        return Interval(value, -math.inf, math.inf, 'one unit has no interval')
    (var_top, both), (_, var_below) = np.cov(top, below) * _stats().t.ppf(0.5 + level / 2, n - 1) ** 2 / n
    # A ratio r is in the set where quadratic r^2 - 2 linear r + constant <= 0.
    quadratic = mean_below**2 - var_below
    linear, constant = mean_top * mean_below - both, mean_top**2 - var_top
    discriminant = linear**2 - quadratic * constant
    if quadratic > 0:
        half = math.sqrt(max(discriminant, 0.0))
        return Interval(value, float((linear - half) / quadratic), float((linear + half) / quadratic))
    if quadratic < 0 and discriminant > 0:
        ends = sorted((linear + sign * math.sqrt(discriminant)) / quadratic for sign in (-1, 1))
        note = f'unbounded: every ratio outside {ends[0]:.3g} to {ends[1]:.3g}, the denominator may be 0'
        return Interval(value, -math.inf, math.inf, note)
    return Interval(value, -math.inf, math.inf, 'unbounded: the denominator may be 0')


def binomial_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """k of n as a share, exact. Clopper and Pearson 1934, Biometrika 26, 404."""
    _check_level(level)
    if not (n >= 1 and 0 <= k <= n):
        raise ValueError(f'k = {k!r} of n = {n!r} is not allowed; 0 <= k <= n and n >= 1')
    tail, beta = (1 - level) / 2, _stats().beta
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return Interval(k / n, low, high)


def paired_upper(
    a: Values, b: Values, level: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> float:
    """The one-sided upper bound of the mean of a - b over prompts: a loss below a margin if the bound is.

    a, b: values in [0, 1], as right or wrong. clusters: the prompt of each value where prompts have several samples;
    each prompt then counts once, by its mean. Where all differences are equal, the bound is their value plus the
    exact bound for none in n, 1 - (1 - level)^(1/n).
    """
    _check_level(level)
    left, right = _pairs(np.asarray(a, float), np.asarray(b, float))
    difference = left - right
    if clusters is not None:
        difference = _cluster_means(difference, clusters)
    n, mean = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1)) if n > 1 else 0.0
    if spread == 0:
        return mean + 1 - (1 - level) ** (1 / n)
    return mean + float(_stats().t.ppf(level, n - 1)) * spread / math.sqrt(n)


def _cluster_means(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    if len(clusters) != len(values):
        raise ValueError(f'clusters has {len(clusters)} labels for {len(values)} values; give one a value')
    order = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    index = np.array([order[label] for label in clusters])
    return np.bincount(index, values) / np.bincount(index)


def holm(p_values: Values) -> list[float]:
    """Adjusted p-values, in the order given: reject those at most alpha. Holm 1979, Scand. J. Stat. 6, 65."""
    p = _values(p_values, 'p_values', 0)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f'p_values = {p.tolist()} is not allowed; each must be in [0, 1]')
    return _step_down(p, lambda p, left: np.minimum(1, p * left))


def log_holm(log_p_values: Values) -> list[float]:
    """`holm` on natural logarithms, which p-values below 1e-308 need: adjusted log p, at most 0, in the order given.

    -inf, an exact 0, is a value; nan is none.
    """
    log_p = np.asarray(log_p_values, float)
    if np.isnan(log_p).any():
        raise ValueError(f'log_p_values = {log_p.tolist()} is not allowed; nan is no p-value')
    return _step_down(log_p, lambda log_p, left: np.minimum(0, log_p + np.log(left)))


def _step_down(values: np.ndarray, adjust: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[float]:
    """In the order given. adjust: values ascending, and how many hypotheses are left at each."""
    order, adjusted = np.argsort(values, kind='stable'), np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(adjust(values[order], np.arange(len(values), 0, -1)))
    return adjusted.tolist()


def rank_correlation(x: Values, y: Values, level: float = 0.95) -> Interval:
    """Spearman's rho, ties sharing their mean rank, with Fisher's interval at the standard error of Bonett and Wright.

    Fewer than 4 pairs bound nothing; constant values have no rho (nan). Where all ranks agree, the inner end is that of
    the next value that so many pairs can have: by chance they do in 1 of n! cases. Bonett and Wright 2000,
    Psychometrika 65, 23.
    """
    _check_level(level)
    left, right = _pairs(x, y)
    n = len(left)
    if len(set(left.tolist())) < 2 or len(set(right.tolist())) < 2:
        return Interval(math.nan, -1.0, 1.0, 'constant values have no rank correlation')
    ranks = _stats().rankdata(left), _stats().rankdata(right)
    rho = float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))
    if n < 4:
        return Interval(rho, -1.0, 1.0, 'fewer than 4 pairs have no interval')
    rho = round(rho, 15)  # all ranks agree to rounding only
    most = 1 - 12 / (n**3 - n)  # two neighbouring ranks are exchanged
    inner = math.copysign(min(abs(rho), most), rho)
    half = float(_stats().norm.ppf(0.5 + level / 2)) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + side * half) for side in (-1, 1))
    return Interval(rho, -1.0 if rho == -1 else low, 1.0 if rho == 1 else high)
