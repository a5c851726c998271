"""What runs beside the teacher for a rule, and that less of it gives the same."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from adx.aggregation import Aggregation
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.defences import Antidistillation, Budget, EqualKl, Permutation, ProductOfExperts, Undefended
from adx.experiment import Arm, Derivative
from adx.mesh import abstract_mesh, proxy_layout, teacher_layout
from adx.models.transformer import make_model
from adx.needs import differentiated, needed, planned, sums_directions
from tests import fakes

LEAST = Aggregation(how='min')


def stepped(ensemble: Ensemble, weights: Weights):
    """(logits_NBV, tangents_MBV) after two tokens of four rows."""
    caches, step = ensemble.empty_caches(4, 4), jax.jit(ensemble.step)
    for position in range(2):
        tokens_B = np.arange(4) * 7 + position
        _, logits_NBV, tangents_MBV, caches = step(weights, caches, tokens_B, np.full(4, position))
    return np.asarray(logits_NBV), np.asarray(tangents_MBV)


@pytest.mark.parametrize(
    ('rule', 'sums'),
    [
        (Antidistillation(), True),
        (Antidistillation(join=LEAST), False),
        (EqualKl(Permutation(Antidistillation()), Antidistillation(join=LEAST)), False),
        (Budget(Permutation(Antidistillation())), True),
        (fakes.Sloped(), False),
    ],
)
def test_only_means_sum_directions(rule, sums):
    assert sums_directions(rule) == sums


def test_under_the_mean_directions_are_one_with_the_same_mean():
    whole = fakes.make_ensemble(count=2, directions=3)
    summed = needed(*whole, Antidistillation())
    assert [e.directions for e, _ in (whole, summed, needed(*whole, Antidistillation(join=LEAST)))] == [3, 1, 3]
    (logits, six), (same, two) = stepped(*whole), stepped(*summed)
    np.testing.assert_allclose(logits, same, atol=1e-5)
    vocab = slice(fakes.VOCAB)
    np.testing.assert_allclose(six[..., vocab].mean(0), two[..., vocab].mean(0), atol=1e-5)


def test_rules_without_derivatives_run_without_them():
    whole = fakes.make_ensemble(count=2, directions=3)
    ensemble, weights = needed(*whole, ProductOfExperts())
    assert (ensemble.directions, weights.directions) == (0, ())
    ensemble, weights = needed(*whole, Undefended())
    assert (ensemble.groups, weights.groups) == ((), ())


def test_two_architectures_run_side_by_side():
    """Proxies and derivatives are those that each group gives alone, one after the other."""
    small = fakes.make_ensemble(count=2, directions=2)
    large = fakes.make_ensemble(proxy=fakes.TEACHER, count=1, directions=2)
    both = (
        dataclasses.replace(small[0], groups=small[0].groups + large[0].groups),
        Weights(small[1].teacher, *(x + y for x, y in zip(small[1][1:], large[1][1:], strict=True))),
    )
    alone = [np.concatenate(pair) for pair in zip(stepped(*small), stepped(*large), strict=True)]
    assert [len(x) for x in alone] == [3, 6]
    for mine, expected in zip(stepped(*both), alone, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_the_plan_is_of_the_neediest_arm():
    ensemble, _ = fakes.make_ensemble(count=2)

    def plan(*rules, **derivative):
        arms = tuple(Arm(str(i), rule) for i, rule in enumerate(rules))
        # planned reads two fields only
        experiment = type('Experiment', (), {'arms': arms, 'derivative': Derivative(**derivative)})
        (group,) = planned(ensemble, experiment).groups
        return group.directions, group.difference, group.model.config.dtype

    assert plan(ProductOfExperts()) == (0, 0.0, 'float32')
    assert plan(Undefended(), Antidistillation(), directions=3) == (1, 0.0, 'float32')
    assert plan(Antidistillation(), Antidistillation(join=LEAST), directions=3) == (3, 0.0, 'float32')
    assert plan(Antidistillation(), method='difference', eps=0.1, dtype='bfloat16') == (1, 0.1, 'bfloat16')


def exits(mesh=(1, 1, 1), counts=(1, 1), shard_weights=False):
    """A teacher of three blocks and early exits of it, so many after its first and after its second."""
    mesh, config = abstract_mesh(*mesh), dataclasses.replace(fakes.TEACHER, num_layers=3)
    layout = teacher_layout(mesh, config.sizes, shard_weights)
    models = [make_model(dataclasses.replace(config, num_layers=n)) for n in (1, 2)]
    groups = tuple(
        Group(model, proxy_layout(mesh, config.sizes, count), count, exit=n)
        for n, (model, count) in enumerate(zip(models, counts, strict=True), 1)
    )
    return Ensemble(make_model(config), layout, groups)


@pytest.mark.parametrize(
    ('ensemble', 'shared'),
    [
        (exits(), [False, True]),  # one pass leads on to the teacher's, and the deeper one spares more
        (exits(counts=(1, 2)), [True, False]),  # two of one depth are stacked
        (exits((2, 2, 2)), [False, True]),
        (exits((1, 2, 1), shard_weights=True), [False, False]),  # the teacher's weights are split in another way
        (exits((1, 2, 1), counts=(1, 2)), [True, False]),
        (fakes.make_ensemble(count=1)[0], [False]),
    ],
)
def test_which_early_exit_takes_its_derivative_along_the_teachers_pass(ensemble, shared):
    directed = differentiated(ensemble, Derivative(directions=2))
    assert [group.shared for group in directed.groups] == shared
    assert {group.directions for group in directed.groups} == {2}
    two = differentiated(ensemble, Derivative(method='difference'))
    assert not any(group.shared for group in two.groups)


def test_without_derivatives_it_reads_the_teacher_again():
    directed = differentiated(exits(), Derivative())
    ensemble, _ = needed(directed, Weights({}, ({}, {}), ({}, {})), ProductOfExperts())
    assert ensemble == exits()
