"""What utility control promises of the served distribution, KL as it is recorded."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import numerics
from adx.decoding import sampling
from adx.defences import (
    Antidistillation,
    Bank,
    Budget,
    Chain,
    Controller,
    CrossModelHard,
    CrossModelSoft,
    EntropyGate,
    EqualKl,
    Permutation,
    ProbabilityFloor,
    ProductOfExperts,
    Schedule,
)

VOCAB, ROWS = 48, 64
PROTECTED = np.isin(np.arange(VOCAB), [1, 2, 30])
RULES = {
    'product_of_experts': ProductOfExperts(0.7),
    'soft': CrossModelSoft(1.0, 0.7),
    'antidistillation': Antidistillation(2.0),
    'chain': Chain((ProductOfExperts(0.5), Antidistillation(1.0))),
    'permutation': Permutation(ProductOfExperts(0.7)),
}
# Teachers from near-deterministic to nearly flat, one row each.
SHARPNESS = np.geomspace(0.2, 6.0, ROWS)


ROWS_OF = jax.jit(jax.vmap(lambda seed: fakes.make_views(seed, VOCAB, allowed=np.arange(VOCAB) % 5 > 0)))


@functools.cache
def make_views(seed=0):
    """ROWS rows whose truncation set leaves out every fifth token."""
    views = ROWS_OF(seed * ROWS + jnp.arange(ROWS))
    teacher_BV = numerics.renormalise(views.teacher_V * np.float32(SHARPNESS)[:, None], views.allowed_V)
    return dataclasses.replace(views, teacher_V=teacher_BV)


@jax.jit
def serve(defence, views_B, state_B):
    """(served, recorded KL) of every row; the defence's numbers are shared. `state_B` None is the initial one."""

    def one(views, state):
        state = defence.init() if state is None else state
        served = sampling.serve_row(defence, state, views, views.key, jnp.asarray(PROTECTED))
        return served, numerics.kl(served.served_V, served.teacher_V)

    return jax.vmap(one)(views_B, state_B)


def play(defence, steps=1, views=None):
    """[(served, KL of each row)] of `steps` tokens, over the same views if given, else other ones at each step."""
    defence = jax.tree.map(jnp.float32, defence)
    state, results = None, []
    for step in range(steps):
        served, kl_B = serve(defence, make_views(step) if views is None else views, state)
        state = served.state
        results.append((served, np.asarray(kl_B, np.float64)))
    return results


@pytest.mark.parametrize('name', RULES)
def test_a_budget_is_spent_to_one_per_cent_where_it_binds_and_untouched_below(name):
    rule = RULES[name]
    (free, cost_B), = play(rule)
    for nats in (0.003, 0.05, 0.6):
        (served, spent_B), = play(Budget(rule, nats))
        binds_B = cost_B > 1.001 * nats
        assert binds_B.any()
        # Recorded KLs are float32 sums with an error of about 1e-6.
        np.testing.assert_allclose(spent_B[binds_B], nats, rtol=0.01)
        below_B = cost_B < 0.999 * nats
        np.testing.assert_array_equal(served.served_V[below_B], free.served_V[below_B])
        np.testing.assert_array_equal(served.token[below_B], free.token[below_B])


def test_a_budget_of_zero_is_the_teacher():
    (served, spent_B), = play(Budget(ProductOfExperts(0.7), 0.0))
    np.testing.assert_array_equal(served.served_V, served.teacher_V)
    np.testing.assert_array_equal(served.token, served.undefended)
    assert np.all(spent_B == 0)


def test_a_bank_never_lends():
    """Each row spends its capacity, then its refill; never more, to the 1 % of each token's cost."""
    capacity, refill = 0.5, 0.02
    costs_TB = np.array([kl_B for _, kl_B in play(Bank(ProductOfExperts(0.7), capacity, refill), 12)])
    allowed_T = capacity + refill * np.arange(12)
    assert np.all(np.cumsum(costs_TB, axis=0) <= 1.01 * allowed_T[:, None])
    assert np.mean(costs_TB.sum(axis=0) > 0.9 * allowed_T[-1]) > 0.5  # and it is there to be spent
    capped_TB = np.array([kl_B for _, kl_B in play(Bank(ProductOfExperts(0.7), capacity, refill, 0.05), 12)])
    assert capped_TB.max() <= 0.0505
    assert np.all(np.cumsum(capped_TB, axis=0) <= 1.01 * allowed_T[:, None])


def test_a_bank_starts_full_and_never_overflows():
    still = dataclasses.replace(make_views(), proxies_NV=make_views().teacher_V[:, None])  # the rule has nothing to do
    served, _ = play(Bank(ProductOfExperts(0.7), 0.3, 0.1), 3, still)[-1]
    np.testing.assert_allclose(served.state[1], 0.3)


def test_the_entropy_gate_opens_where_the_teacher_is_unsure():
    nats = 1.0
    views = make_views()
    open_V = np.asarray(views.allowed_V[0]) & ~PROTECTED
    lp_BV = np.where(open_V, np.asarray(views.teacher_V, np.float64), -np.inf)
    lp_BV -= np.logaddexp.reduce(lp_BV, axis=1)[:, None]
    entropy_B = -np.sum(np.exp(lp_BV[:, open_V]) * lp_BV[:, open_V], axis=1)
    unsure_B = entropy_B >= nats
    assert 0.2 < unsure_B.mean() < 0.8
    for rule in (ProductOfExperts(0.7), CrossModelHard()):
        (free, _), (served, _) = play(rule)[0], play(EntropyGate(rule, nats))[0]
        np.testing.assert_array_equal(served.served_V[unsure_B], free.served_V[unsure_B])
        np.testing.assert_array_equal(served.token[unsure_B], free.token[unsure_B])
        np.testing.assert_array_equal(served.served_V[~unsure_B], served.teacher_V[~unsure_B])
        np.testing.assert_array_equal(served.token[~unsure_B], served.undefended[~unsure_B])


def test_a_shut_gate_keeps_the_rules_state():
    rule = EntropyGate(Bank(ProductOfExperts(0.7), 0.3, 0.0), 1.0)
    views = make_views()
    served, kl_B = play(rule, 1, views)[0]
    np.testing.assert_allclose(served.state[1], 0.3 - kl_B, atol=0.003)
    assert np.mean(kl_B == 0) > 0.2


def test_below_the_floor_tokens_keep_the_teachers_probability():
    floor = 0.1
    (served, _), = play(ProbabilityFloor(ProductOfExperts(0.7), floor))
    teacher_BV, served_BV = (np.exp(np.asarray(x, np.float64)) for x in (served.teacher_V, served.served_V))
    views = make_views()
    open_V = np.asarray(views.allowed_V[0]) & ~PROTECTED
    plays_BV = open_V & (teacher_BV >= floor * np.max(teacher_BV * open_V, axis=1, keepdims=True))
    np.testing.assert_allclose(served_BV[~plays_BV], teacher_BV[~plays_BV], atol=1e-6)
    mixed_BV = np.where(plays_BV, teacher_BV**0.3 * np.exp(np.mean(views.proxies_NV, axis=1)) ** 0.7, 0)
    mixed_BV *= np.sum(teacher_BV * plays_BV, axis=1, keepdims=True) / mixed_BV.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(served_BV[plays_BV], mixed_BV[plays_BV], atol=2e-6)
    # All play at 0; a budget inside counts what is kept.
    np.testing.assert_allclose(
        play(ProbabilityFloor(ProductOfExperts(0.7), 0.0))[0][1], play(ProductOfExperts(0.7))[0][1], atol=1e-5
    )
    free_B = play(ProbabilityFloor(ProductOfExperts(0.7), floor))[0][1]
    spent_B = play(ProbabilityFloor(Budget(ProductOfExperts(0.7), 0.02), floor))[0][1]
    assert np.sum(free_B > 0.0201) > 10
    np.testing.assert_allclose(spent_B[free_B > 0.0201], 0.02, rtol=0.01)


def test_a_schedule_follows_its_ramp():
    """At half scale the rule of gamma 0.8 is that of 0.4, on the same position again and again."""
    views, rule = make_views(), ProductOfExperts(0.8)
    steps = play(Schedule(rule, 1, 5), 7, views)
    expected = {0: 0.0, 1: 0.0, 2: 0.2, 3: 0.4, 4: 0.6, 5: 0.8, 6: 0.8}
    for t, gamma in expected.items():
        (same, _), = play(ProductOfExperts(gamma), 1, views)
        np.testing.assert_allclose(steps[t][0].served_V, same.served_V, atol=2e-5)
    np.testing.assert_array_equal(steps[1][0].served_V, steps[1][0].teacher_V)
    np.testing.assert_array_equal(steps[6][0].served_V, play(rule, 1, views)[0][0].served_V)
    on, off = play(Schedule(CrossModelHard(), 1, 1, 1.0, 0.0), 2, views)
    np.testing.assert_array_equal(on[0].token, play(CrossModelHard(), 1, views)[0][0].token)
    np.testing.assert_array_equal(off[0].token, off[0].undefended)


def test_a_controller_holds_the_mean():
    """The mean misses the target by log s_T / (rate T) of it, exactly; at most 10 % for what s does here."""
    target, rate, steps = 0.05, 0.1, 150
    results = play(Controller(ProductOfExperts(0.7), target, rate, 8.0), steps)
    mean_B = np.mean([kl_B for _, kl_B in results], axis=0)
    log_scale_B = np.asarray(results[-1][0].state[1], np.float64)
    inside_B = log_scale_B < np.log(7.9)
    assert inside_B.mean() > 0.5  # sure teachers spend less than the target whatever the rule does
    np.testing.assert_allclose(mean_B[inside_B], target * (1 - log_scale_B[inside_B] / (rate * steps)), rtol=0.01)
    free_B = np.mean([kl_B for _, kl_B in play(ProductOfExperts(0.7), steps)], axis=0)
    reachable_B = free_B > 2 * target
    assert reachable_B.sum() > 10
    assert abs(mean_B[reachable_B].mean() / target - 1) < 0.1


@pytest.mark.parametrize('rule', [ProductOfExperts(0.5), Antidistillation(1.0)], ids=lambda rule: type(rule).__name__)
def test_a_control_spends_what_its_defence_spends(rule):
    """Mean and 95th percentile within 2 %: tokens where the control cannot spend as much are few and cheap."""
    theirs = np.concatenate([kl_B for _, kl_B in play(rule, 6)])
    results = play(EqualKl(Permutation(rule), rule, 8.0), 6)
    ours = np.concatenate([kl_B for _, kl_B in results])
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.02)
    assert np.percentile(ours, 95) == pytest.approx(np.percentile(theirs, 95), rel=0.02)
    short = ours < 0.98 * theirs
    assert short.mean() < 0.05
