"""A defended row against full forward passes of its models, each by itself: what is served and what is recorded."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import numerics
from adx.decoding.engine import Engine
from adx.decoding.ensemble import Ensemble, Group, Weights, stack_params
from adx.defences import ProductOfExperts
from adx.hashing import row_key
from adx.mesh import make_mesh, proxy_layout
from adx.models.transformer import make_model
from adx.types import Sampling

# Wider, deeper and of other heads than fakes.PROXY, of which there are two.
OTHER = dataclasses.replace(fakes.PROXY, num_layers=2, embed_dim=12, num_heads=3, num_kv_heads=3)
GAMMA, NUMBERS = 0.6, Sampling(0.8, top_k=30, top_p=0.95)
ACCURACY = 2e-5  # of log-probs: logits of size 1 summed in another order, a few units of float32's last place


@functools.cache
def models():
    """(Ensemble of two architectures, its weights, [(model, weights) of the teacher and of each proxy])."""
    ensemble, weights = fakes.make_ensemble(count=2)
    group = Group(make_model(OTHER), proxy_layout(make_mesh(), OTHER.sizes, 1), 1)
    params = group.model.init(8)
    stacked = stack_params(group.model, group.layout, [params])
    (first,), (pair,) = ensemble.groups, weights.groups
    proxies = [(first.model, jax.tree.map(lambda x, n=n: x[n], pair)) for n in range(2)] + [(group.model, params)]
    together = Ensemble(ensemble.teacher, ensemble.teacher_layout, (first, group))
    return together, Weights(weights.teacher, (pair, stacked)), [(ensemble.teacher, weights.teacher), *proxies]


@functools.cache
def traces():
    """(request, completion) of product of experts at a positive strength, of all the models in one program."""
    ensemble, weights, _ = models()
    requests = fakes.make_requests(12, ProductOfExperts(GAMMA), NUMBERS)
    engine = Engine(ensemble, weights, dataclasses.replace(fakes.DECODE, buckets=(8,)))
    done = {str(one.id): one for one in engine.generate(requests)}
    return [(request, done[str(request.id)]) for request in requests]


@functools.cache
def forward(config):
    return jax.jit(lambda params, ids: make_model(config).apply(params, ids, jnp.arange(ids.shape[1])[None])[0][0])


def log_probs(tokens) -> list[np.ndarray]:
    """Of the teacher and of each proxy, [L, V] in float64 at the temperature, by a pass over all tokens at once."""
    ids = np.zeros((1, fakes.DECODE.cache_length), np.int32)
    ids[0, : len(tokens)] = tokens
    logits = [
        np.asarray(forward(model.config)(params, ids), np.float64)[:, : fakes.VOCAB] for model, params in models()[2]
    ]
    return [z / NUMBERS.temperature - np.logaddexp.reduce(z / NUMBERS.temperature, -1)[:, None] for z in logits]


def expected(request, done):
    """For each token: its noise_V, and the served and the teacher's log-probs on the truncation set, -inf outside."""
    tokens = [*request.tokens, *done.tokens]
    teacher_LV, *proxies = log_probs(tokens)
    key = jax.random.wrap_key_data(jnp.asarray(row_key(0, request.id.noise_name)))
    for i in range(len(request.tokens) - 1, len(tokens) - 1):
        lp_V = teacher_LV[i]
        order = np.argsort(-lp_V)
        crossing = 1 + int(np.sum(np.cumsum(np.exp(lp_V[order])) < NUMBERS.top_p))
        kept_V = np.isin(np.arange(fakes.VOCAB), order[: min(crossing, NUMBERS.top_k)])
        score_V = (1 - GAMMA) * lp_V + GAMMA * np.mean([lp[i] for lp in proxies], axis=0)
        served_V, own_V = (np.where(kept_V, x, -np.inf) for x in (score_V, lp_V))
        noise_V = np.asarray(numerics.gumbel(jax.random.fold_in(key, i), fakes.VOCAB_ROWS))[: fakes.VOCAB]
        yield noise_V, served_V - np.logaddexp.reduce(served_V), own_V - np.logaddexp.reduce(own_V)


def test_two_architectures_side_by_side_are_what_each_says_alone():
    draws, moved = 0, 0
    for request, done in traces():
        for i, (noise_V, served_V, _) in enumerate(expected(request, done)):
            token = done.tokens[i]
            assert served_V[token] + noise_V[token] > (served_V + noise_V).max() - 2 * ACCURACY
            assert done.statistics['log_prob'][i] == pytest.approx(served_V[token], abs=ACCURACY)
            draws += 1
            moved += done.statistics['intervened'][i]
    assert draws == 12 * 7
    assert moved > 5  # the strength is one that changes tokens


def test_what_is_recorded_of_a_defended_row_is_the_teacher_s():
    ranks = set()
    for request, done in traces():
        for i, (_, served_V, own_V) in enumerate(expected(request, done)):
            own, rank = own_V[done.tokens[i]], done.statistics['teacher_rank'][i]
            assert done.statistics['teacher_log_prob'][i] == pytest.approx(own, abs=ACCURACY)
            assert np.sum(own_V > own + ACCURACY) <= rank <= np.sum(own_V > own - ACCURACY) - 1
            q_V, p_V = served_V[np.isfinite(own_V)], own_V[np.isfinite(own_V)]
            kl = np.sum(np.exp(q_V) * (q_V - p_V))
            assert done.statistics['kl'][i] == pytest.approx(kl, abs=ACCURACY)
            ranks.add(rank)
    assert len(ranks) > 5
