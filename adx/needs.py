"""What runs beside the teacher for a rule: nothing, proxies, or proxies with derivatives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from adx.aggregation import Aggregation
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.experiment import Derivative, Experiment
from adx.models.transformer import Params, make_model
from adx.types import Defence


def needed(ensemble: Ensemble, weights: Weights, defence: Defence) -> tuple[Ensemble, Weights]:
    """The part of all models that a rule wants."""
    if not (defence.wants_proxies or defence.wants_tangents):
        return dataclasses.replace(ensemble, groups=()), Weights(weights.teacher, ())
    if defence.wants_tangents and ensemble.directions > 1 and sums_directions(defence):
        return summed(ensemble, weights)
    # A difference holds no weights of the proxy itself: its two copies stand for it, to second order in eps.
    if defence.wants_tangents or any(group.difference for group in ensemble.groups):
        return ensemble, weights
    groups = tuple(dataclasses.replace(group, directions=0, shared=False) for group in ensemble.groups)
    return dataclasses.replace(ensemble, groups=groups), Weights(weights.teacher, weights.groups)


def sums_directions(defence: Defence) -> bool:
    """Whether all of the rule's joins are means: the directions of a proxy are then one, their mean."""
    leaves = jax.tree.leaves(defence, is_leaf=lambda x: isinstance(x, Aggregation))
    joins = [leaf for leaf in leaves if isinstance(leaf, Aggregation)]
    return bool(joins) and all(join.how == 'mean' for join in joins)


def one_direction(experiment: Experiment) -> bool:
    """Whether one for each proxy is all that the run's rules read: each of them takes the mean."""
    return all(sums_directions(arm.defence) for arm in experiment.arms if arm.defence.wants_tangents)


def summed(ensemble: Ensemble, weights: Weights) -> tuple[Ensemble, Weights]:
    """With one direction for each proxy, the mean of those it had."""
    return _summed(ensemble), Weights(weights.teacher, weights.groups, _mean_directions(weights.directions))


def _summed(ensemble: Ensemble) -> Ensemble:
    return dataclasses.replace(ensemble, groups=tuple(dataclasses.replace(g, directions=1) for g in ensemble.groups))


@jax.jit
def _mean_directions(directions: tuple[Params, ...]) -> tuple[Params, ...]:
    """[N, 1, ...] each."""
    return jax.tree.map(lambda g: jnp.mean(g.astype(jnp.float32), axis=1, keepdims=True).astype(g.dtype), directions)


def planned(ensemble: Ensemble, experiment: Experiment) -> Ensemble:
    """What the neediest of the arms runs."""
    if not any(arm.defence.wants_tangents for arm in experiment.arms):
        return ensemble
    whole = differentiated(ensemble, experiment.derivative)
    return _summed(whole) if one_direction(experiment) else whole


def differentiated(ensemble: Ensemble, derivative: Derivative) -> Ensemble:
    """An ensemble as it runs where derivatives of its proxies are wanted."""
    groups = [_differentiated(group, derivative) for group in ensemble.groups]
    able = [i for i, group in enumerate(groups) if _can_share(ensemble, group)]
    if able:  # one pass leads on to the teacher's: of several that could, the one that spares the most
        deepest = max(able, key=lambda i: groups[i].exit)
        groups[deepest] = dataclasses.replace(groups[deepest], shared=True)
    return dataclasses.replace(ensemble, groups=tuple(groups))


def _differentiated(group: Group, derivative: Derivative) -> Group:
    group = dataclasses.replace(group, directions=derivative.directions)
    if derivative.method == 'exact':
        return group
    config = dataclasses.replace(group.model.config, dtype=derivative.dtype)
    return dataclasses.replace(group, model=make_model(config), difference=derivative.eps)


def _can_share(ensemble: Ensemble, group: Group) -> bool:
    """Whether an early exit is one with the teacher's first blocks: a single proxy, split over the mesh as they are."""
    split_alike = all(group.layout.ways(axis) == ensemble.teacher_layout.ways(axis) for axis in 'BVFHG')
    return bool(group.exit and group.count == 1 and not group.difference and split_alike)
