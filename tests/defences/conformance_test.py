"""What holds for every defence of the menu, proved once for all; then each rule against its formula in float64."""

from __future__ import annotations

import dataclasses
import json

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import defences
from adx.aggregation import Aggregation
from adx.defences import (
    Antidistillation,
    Bank,
    Budget,
    Chain,
    Controller,
    CrossModelHard,
    CrossModelReweight,
    CrossModelSoft,
    CrossModelWeighted,
    EntropyGate,
    EqualKl,
    Permutation,
    ProbabilityFloor,
    ProductOfExperts,
    Schedule,
    Undefended,
)
from adx.experiment import from_json, to_json
from adx.numerics import MASKED, renormalise

EXAMPLES = {
    'undefended': Undefended(),
    'product_of_experts': ProductOfExperts(0.4),
    'cross_model_hard': CrossModelHard(),
    'cross_model_weighted': CrossModelWeighted(0.7),
    'cross_model_soft': CrossModelSoft(0.7, 1.5),
    'cross_model_reweight': CrossModelReweight(2.0),
    'antidistillation': Antidistillation(0.6),
    'permutation': Permutation(ProductOfExperts(0.4)),
    'chain': Chain((ProductOfExperts(0.3), CrossModelSoft(0.5, 1.0))),
    'budget': Budget(ProductOfExperts(0.4), 0.1),
    'bank': Bank(Chain((ProductOfExperts(0.4), CrossModelSoft(0.5, 1.0))), 0.2, 0.01, 0.1),
    'entropy_gate': EntropyGate(Antidistillation(0.6), 0.5),
    'probability_floor': ProbabilityFloor(Budget(ProductOfExperts(0.4), 0.1), 0.05),
    'schedule': Schedule(ProductOfExperts(0.4), 0, 4, 0.5, 1.0),
    'controller': Controller(Antidistillation(0.6), 0.1, 0.2),
    'equal_kl': EqualKl(Permutation(ProductOfExperts(0.4)), ProductOfExperts(0.4), 4.0),
}
NEUTRAL = [
    Undefended(),
    ProductOfExperts(0.0),
    CrossModelSoft(0.0, 1.0),
    CrossModelReweight(0.0),
    Antidistillation(0.0, Aggregation(how='min')),
    Permutation(ProductOfExperts(0.0)),
    Chain((ProductOfExperts(0.0), CrossModelSoft(0.0, 1.0))),
    Budget(ProductOfExperts(0.0), 0.1),
    Budget(ProductOfExperts(0.4), 0.0),
    Bank(ProductOfExperts(0.4), 0.0, 0.0),
    Bank(ProductOfExperts(0.4), 1.0, 0.0, 0.0),
    EntropyGate(CrossModelHard(), 100.0),
    EntropyGate(ProductOfExperts(0.0), 0.0),
    ProbabilityFloor(ProductOfExperts(0.0), 0.1),
    Schedule(ProductOfExperts(0.4), 1, 9, 0.0, 1.0),
    Schedule(CrossModelHard(), 1, 1, 0.0, 1.0),
    Controller(ProductOfExperts(0.0)),
    EqualKl(ProductOfExperts(0.4), ProductOfExperts(0.0)),
    EqualKl(ProductOfExperts(0.0), ProductOfExperts(0.4)),
    Budget(Chain((ProductOfExperts(0.0), EntropyGate(Schedule(ProductOfExperts(0.4), 3, 3), 0.1))), 0.1),
]
ALLOWED = np.arange(32) % 3 > 0


ADJUST = jax.jit(lambda defence, views: defence.adjust(views, defence.init())[0])


def served(defence, views):
    scores_V = ADJUST(jax.tree.map(jnp.float32, defence), views)
    return np.asarray(renormalise(scores_V, views.allowed_V), np.float64)


@pytest.mark.parametrize('name', EXAMPLES)
def test_round_trips_through_json(name):
    assert from_json(json.loads(json.dumps(to_json(EXAMPLES[name])))) == EXAMPLES[name]


def test_every_option_has_an_example():
    assert set(EXAMPLES) == set(defences.MENU)


JOINED = {f'{name}_softmin': dataclasses.replace(rule, join=Aggregation(2.0, 'softmin'))
          for name, rule in EXAMPLES.items() if hasattr(rule, 'join')}  # fmt: skip


@pytest.mark.parametrize('defence', [*EXAMPLES.values(), *JOINED.values()], ids=[*EXAMPLES, *JOINED])
def test_serves_a_distribution_on_the_set(defence):
    defence.check()
    log_q_V = served(defence, fakes.make_views(allowed=ALLOWED))
    assert log_q_V.shape == (32,)
    assert np.isfinite(log_q_V).all()
    assert (log_q_V[~ALLOWED] == np.float32(MASKED)).all()
    assert abs(np.exp(log_q_V).sum() - 1) < 1e-6  # 32 float32 terms


@pytest.mark.parametrize('name', EXAMPLES)
@pytest.mark.parametrize('what', ['impossible', 'ties', 'certain'])
def test_stays_finite_on_extremes(name, what):
    views = fakes.make_views(allowed=ALLOWED)
    extreme = {
        'impossible': jnp.where(jnp.arange(32) < 16, -np.log(16.0), MASKED),
        'ties': jnp.full(32, -np.log(32.0)),
        'certain': jnp.where(jnp.arange(32) == 4, 0.0, MASKED),
    }[what]
    views = dataclasses.replace(views, proxies_NV=jnp.stack([extreme, extreme]))
    log_q_V = served(EXAMPLES[name], views)
    assert np.isfinite(log_q_V).all()
    assert abs(np.exp(log_q_V).sum() - 1) < 1e-6


@pytest.mark.parametrize('name', EXAMPLES)
def test_rows_are_independent_and_numbers_do_not_retrace(name):
    """A row's result does not depend on its neighbours, and other strengths run the same program."""
    defence = jax.tree.map(jnp.float32, EXAMPLES[name])
    views = [fakes.make_views(seed, allowed=ALLOWED) for seed in range(3)]
    traces = []

    @jax.jit
    def adjust(defence_B, views_B):
        traces.append(0)
        return jax.vmap(lambda d, v: d.adjust(v, d.init())[0])(defence_B, views_B)

    def stack(trees):
        return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)

    rows = stack([defence] * 3)
    first = adjust(rows, stack(views))
    other = adjust(rows, stack([views[0], views[2], views[1]]))
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[1], other[2])
    adjust(jax.tree.map(lambda x: x * 0.5, rows), stack(views))
    assert len(traces) == 1


@pytest.mark.parametrize('defence', NEUTRAL, ids=str)
def test_strength_zero_is_the_teacher_bit_for_bit(defence):
    views = fakes.make_views(allowed=ALLOWED)
    scores_V = ADJUST(jax.tree.map(jnp.float32, defence), views)
    np.testing.assert_array_equal(scores_V[ALLOWED], views.teacher_V[ALLOWED])


def test_weighted_at_zero_is_greedy_on_the_candidates():
    views = fakes.make_views(allowed=ALLOWED)
    best = int(np.where(ALLOWED, views.teacher_V, -np.inf).argmax())
    assert best != int(np.asarray(views.teacher_V).argmax())  # the teacher's own first choice is no candidate
    log_q_V = served(CrossModelWeighted(0.0), views)
    assert (log_q_V[best], log_q_V.argmax()) == (0.0, best)


@pytest.mark.parametrize(
    'defence',
    [
        ProductOfExperts(float('nan')),
        ProductOfExperts(1.5),
        CrossModelWeighted(-1.0),
        CrossModelSoft(float('inf')),
        CrossModelSoft(1.0, 0.0),
        CrossModelReweight(-0.1),
        Antidistillation(float('inf')),
        ProductOfExperts(0.5, Aggregation(1.0, 'median')),
        Chain(()),
        Chain((CrossModelHard(), ProductOfExperts(0.5))),
        Permutation(CrossModelHard()),
        *(wrap(CrossModelHard()) for wrap in (Budget, Bank, ProbabilityFloor, Controller, Schedule)),
        EqualKl(CrossModelHard(), ProductOfExperts(0.5)),
        EqualKl(ProductOfExperts(0.5), CrossModelHard()),
        EqualKl(ProductOfExperts(0.5), ProductOfExperts(0.5), 0.5),
        Budget(ProductOfExperts(2.0), 0.1),
        Budget(ProductOfExperts(0.5), -0.1),
        Bank(ProductOfExperts(0.5), -1.0),
        Bank(ProductOfExperts(0.5), 1.0, -1.0),
        Bank(ProductOfExperts(0.5), 1.0, 1.0, float('inf')),
        EntropyGate(ProductOfExperts(0.5), float('nan')),
        ProbabilityFloor(ProductOfExperts(0.5), 1.5),
        Schedule(ProductOfExperts(0.5), 5, 4),
        Schedule(ProductOfExperts(0.5), 0, 4, -0.1),
        Schedule(CrossModelHard(), 3, 3, 0.0, 0.5),
        Controller(ProductOfExperts(0.5), 0.0),
        Controller(ProductOfExperts(0.5), 0.1, 1.5),
    ],
    ids=str,
)
def test_refuses_numbers_out_of_range(defence):
    with pytest.raises(ValueError, match=r'must|only|empty|no score'):
        defence.check()


def formulas(views):
    """Unnormalised log-scores of each rule in float64, one proxy."""
    lp_T, lp_S = (np.asarray(x, np.float64) for x in (views.teacher_V, views.proxies_NV[0]))
    hard = np.where(lp_S == lp_S[ALLOWED].min(), 0.0, MASKED)
    difference = lp_T - 0.7 * lp_S
    return {
        'undefended': lp_T,
        'product_of_experts': 0.6 * lp_T + 0.4 * lp_S,
        'cross_model_hard': hard,
        'cross_model_weighted': np.where(difference == difference[ALLOWED].max(), 0.0, MASKED),
        'cross_model_soft': difference / 1.5,
        'cross_model_reweight': lp_T + 2.0 * np.log1p(-np.exp(lp_S)),
        'antidistillation': lp_T + 0.6 * np.asarray(views.tangents_MV[0], np.float64),
    }


@pytest.mark.parametrize('name', ['undefended', *list(EXAMPLES)[1:7]])
@pytest.mark.parametrize('seed', range(5))
def test_equals_its_formula(name, seed):
    views = fakes.make_views(seed, proxies=1, allowed=ALLOWED)
    scores_V = np.where(ALLOWED, formulas(views)[name], -np.inf)
    expected_V = scores_V - np.logaddexp.reduce(scores_V)
    np.testing.assert_allclose(served(EXAMPLES[name], views)[ALLOWED], expected_V[ALLOWED], atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize('gamma', [0.1, 0.5, 0.9])
def test_product_of_experts_is_cross_model_soft_with_the_other_sign(gamma):
    views = fakes.make_views(proxies=1)
    joined = CrossModelSoft(-gamma / (1 - gamma), 1 / (1 - gamma))
    np.testing.assert_allclose(served(ProductOfExperts(gamma), views), served(joined, views), atol=1e-5)


@pytest.mark.parametrize('name', list(EXAMPLES)[:7])
def test_a_chain_of_one_is_the_one(name):
    views = fakes.make_views(allowed=ALLOWED)
    np.testing.assert_array_equal(served(Chain((EXAMPLES[name],)), views), served(EXAMPLES[name], views))


def test_permutation_keeps_sizes_and_forgets_tokens():
    """The changes are the rule's own up to sign and order, and over many positions they do not follow the rule's."""
    views = fakes.make_views(allowed=ALLOWED)
    base_V = np.asarray(renormalise(views.teacher_V, views.allowed_V))[ALLOWED]
    rule = ProductOfExperts(0.4)
    change_V = served(rule, views)[ALLOWED] - base_V
    keys = jax.random.split(jax.random.key(0), 2000)
    defence = jax.tree.map(jnp.float32, Permutation(rule))
    scores_TV = jax.vmap(lambda key: defence.adjust(dataclasses.replace(views, key=key), ())[0])(keys)
    moved_TV = np.asarray(scores_TV)[:, ALLOWED] - base_V
    np.testing.assert_allclose(
        np.sort(np.abs(moved_TV), axis=1), np.tile(np.sort(np.abs(change_V)), (2000, 1)), atol=1e-5
    )
    scale = np.sqrt(np.mean(change_V**2) / 2000)  # standard error of a mean of 2000 changes with random signs
    assert np.abs(moved_TV.mean(axis=0)).max() < 5 * scale


@pytest.mark.parametrize(('how', 'join'), [
    ('mean', lambda x_MV: x_MV.mean(axis=0)),
    ('max', lambda x_MV: x_MV.max(axis=0)),
    ('min', lambda x_MV: x_MV.min(axis=0)),
    ('softmin', lambda x_MV: -np.log(np.mean(np.exp(-2 * x_MV), axis=0)) / 2),
])  # fmt: skip
@pytest.mark.parametrize('lam', [0.6, -0.6])
def test_antidistillation_joins_what_each_direction_adds_to_the_score(how, join, lam):
    """Under a negative strength the minimum is that of the scores' changes, not of the derivatives."""
    views = fakes.make_views(proxies=3, allowed=ALLOWED)
    scores_V = views.teacher_V + join(lam * np.asarray(views.tangents_MV, np.float64))
    expected_V = np.where(ALLOWED, scores_V, -np.inf)
    expected_V -= np.logaddexp.reduce(expected_V)
    got_V = served(Antidistillation(lam, Aggregation(2.0, how)), views)
    np.testing.assert_allclose(got_V[ALLOWED], expected_V[ALLOWED], atol=5e-6)


def test_what_a_direction_adds_to_every_token_matters_to_the_minimum_only():
    """Why derivatives come centred: the mean of raw ones serves the same distribution, their minimum another."""
    views = fakes.make_views(allowed=ALLOWED)
    raw = dataclasses.replace(views, tangents_MV=views.tangents_MV + jnp.asarray([[3.0], [-3.0]]))
    same, other = (
        np.abs(served(Antidistillation(0.6, Aggregation(how=how)), raw) - served(
            Antidistillation(0.6, Aggregation(how=how)), views)).max() for how in ('mean', 'min')
    )  # fmt: skip
    assert same < 1e-5
    assert other > 0.1


def test_a_candidate_outside_the_proxys_nucleus_keeps_its_order():
    """A reference truncated the proxy too: its -inf made hard a tie and switched weight and temperature off."""
    lp_S = np.log(np.r_[0.9, np.full(31, 0.1 / 31) * np.linspace(1.5, 0.5, 31)])
    views = dataclasses.replace(fakes.make_views(proxies=1), proxies_NV=jnp.asarray(lp_S[None], jnp.float32))
    assert served(CrossModelHard(), views).argmax() == 31
    soft = [served(CrossModelSoft(w), views) for w in (0.2, 0.8)]
    assert np.abs(soft[0] - soft[1]).max() > 0.1
