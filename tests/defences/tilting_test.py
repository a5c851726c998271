"""The scale that spends a budget, against brentq in float64, on cases from tame to near-deterministic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from adx.defences import tilting
from adx.numerics import MASKED
from adx.types import Views

VOCAB, ROWS = 512, 16


def draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(teacher's logits, the rule's scores)."""
    z = 3 * rng.normal(size=VOCAB)
    if kind == 'tame':
        return z, z + rng.normal(size=VOCAB)
    if kind == 'wide':
        return z, z + 8 * rng.normal(size=VOCAB)
    if kind == 'heavy':
        return z, z + np.clip(rng.standard_cauchy(VOCAB), -300, 300)
    if kind == 'impossible':  # q cannot say half of the tokens
        return z, np.where(np.arange(VOCAB) % 2, z, -np.inf)
    z[3] += 40  # the teacher is sure to 1e-15 and the rule of another token
    change = rng.normal(size=VOCAB)
    change[7] += 60
    return z, z + change


def path(z: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p and the clipped r in float64."""
    log_p, log_q = (x - np.logaddexp.reduce(x) for x in (z, scores))
    return log_p, np.clip(log_q - log_p, tilting.LOWEST, tilting.HIGHEST)


def kl(log_p: np.ndarray, r: np.ndarray, scale: float) -> float:
    log_q = log_p + scale * r
    log_q -= np.logaddexp.reduce(log_q)
    return float(np.sum(np.exp(log_q) * (log_q - log_p)))


def make_views(log_p_V) -> Views:
    zero = jnp.float32(0)
    allowed_V = jnp.ones(VOCAB, bool)
    return Views(log_p_V, jnp.zeros((0, VOCAB)), allowed_V, zero, zero, zero, jax.random.key(0), jnp.float32(1))


@jax.jit
def solve(teacher_BV, scores_BV, nats_B, max_scale):
    def one(teacher_V, scores_V, nats):
        way = tilting.make_way(scores_V, make_views(teacher_V))
        return tilting.solve_scale(way, nats, tilting.furthest(way, max_scale))

    return jax.vmap(one)(teacher_BV, scores_BV, nats_B)


@pytest.mark.parametrize('kind', ['tame', 'wide', 'heavy', 'impossible', 'sure'])
@pytest.mark.parametrize('max_scale', [1.0, 3.0])
def test_spends_the_budget_wherever_it_binds(kind, max_scale):
    rng, bound = np.random.default_rng(0), 0
    rows = [draw(kind, rng) for _ in range(ROWS)]
    paths = [path(*row) for row in rows]
    teacher_BV, scores_BV = (np.float32([row[i] for row in rows]) for i in (0, 1))
    teacher_BV -= np.logaddexp.reduce(teacher_BV, axis=1)[:, None]
    for nats in (1e-4, 1e-3, 0.01, 0.1, 1.0, 4.0):
        scales, spent = solve(teacher_BV, scores_BV, jnp.full(ROWS, nats), max_scale)
        for (log_p, r), scale, cost in zip(paths, np.asarray(scales, np.float64), spent, strict=True):
            assert 0 < scale <= max_scale
            if kl(log_p, r, max_scale) > 1.001 * nats:
                exact = brentq(lambda s: kl(log_p, r, s) - nats, 1e-9, max_scale)  # noqa: B023
                assert kl(log_p, r, scale) == pytest.approx(nats, rel=0.01), (nats, scale, exact)
                assert cost == pytest.approx(nats)
                bound += 1
            elif kl(log_p, r, max_scale) < 0.999 * nats:
                assert scale == max_scale or kl(log_p, r, scale) > 0.99 * kl(log_p, r, max_scale)
    assert bound >= 3 * ROWS


def test_few_passes_do(monkeypatch):
    """What a budget costs: two evaluations a token on average where it binds, and one of them is for Newton's start."""
    rng, counts = np.random.default_rng(1), []

    def counted(condition, body, carry):
        while condition(carry):
            carry = body(carry)
        counts.append(int(carry[4]))
        return carry

    monkeypatch.setattr(tilting.lax, 'while_loop', counted)
    for kind in ('tame', 'wide', 'heavy', 'sure'):
        for nats in (1e-8, 1e-7, 1e-6, 0.01, 0.1):
            z, scores = (np.float32(x) for x in draw(kind, rng))
            way = tilting.make_way(jnp.asarray(scores), make_views(jax.nn.log_softmax(z)))
            tilting.solve_scale(way, jnp.float32(nats), jnp.float32(1))
    assert max(counts) <= 10
    assert np.mean(counts) <= 4


def test_rows_do_not_see_each_other():
    """A row is solved in as many steps as it needs, whatever its neighbours need."""
    rng = np.random.default_rng(2)
    rows = [draw(kind, rng) for kind in ('tame', 'heavy', 'sure', 'wide')]
    teacher_BV, scores_BV = (np.float32([row[i] for row in rows]) for i in (0, 1))
    together = solve(teacher_BV, scores_BV, jnp.full(4, 0.1), 1.0)
    for b in range(4):
        twice = [b, b, b, b]
        alone = solve(teacher_BV[twice], scores_BV[twice], jnp.full(4, 0.1), 1.0)
        np.testing.assert_array_equal(alone[0][0], together[0][b])


def test_nothing_to_spend_and_nothing_to_change():
    z = np.float32(np.random.default_rng(3).normal(size=(4, VOCAB)))
    z -= np.logaddexp.reduce(z, axis=1)[:, None]
    assert np.all(solve(z, 2 * z, jnp.zeros(4), 1.0)[0] == 0)
    assert np.all(solve(z, z, jnp.full(4, 0.1), 1.0)[0] == 1)
    masked = np.where(np.arange(VOCAB) < 2, z, np.float32(MASKED))  # a teacher of two tokens
    assert np.isfinite(solve(masked, 2 * z, jnp.full(4, 0.1), 1.0)[0]).all()
