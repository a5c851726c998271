"""What is promised across meshes: the same tokens until a near tie, and bfloat16 equal in distribution."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import numpy as np
import pytest

from adx.defences import ProductOfExperts
from adx.loading import cache_directory
from adx.mesh import make_mesh
from adx.types import Sampling
from tools.bench import determinism
from tools.bench.determinism import Side, decode, flip_probability, replay

# Nine heads over three key/value heads: attention is replicated, feed-forward and vocabulary are split.
ODD = dataclasses.replace(fakes.TEACHER, num_heads=9, num_kv_heads=3)
SMOLLM2 = cache_directory() / 'smollm2-135m-instruct.gguf'
REQUESTS = fakes.make_requests(8, ProductOfExperts(0.5), Sampling(0.7), new=16)


def differing(requests, traces, others) -> int:
    """Rows whose traces are not the same."""
    return sum(traces[str(request.id)].tokens != others[str(request.id)].tokens for request in requests)


@functools.cache
def alone() -> Side:
    return Side(*fakes.make_ensemble(make_mesh(), ODD))


@pytest.mark.parametrize('shape', [(1, 1, 2), (2, 2, 2)])
def test_a_trace_replayed_on_another_mesh_differs_in_near_ties_only(shape):
    made, other = alone(), Side(*fakes.make_ensemble(make_mesh(*shape), ODD))
    traces = decode(made, REQUESTS, fakes.DECODE)
    result = replay(made, other, REQUESTS, traces)
    assert result.draws == 8 * 16
    # Logits of size 1 summed in another order: a few units of float32's last place.
    assert 0 < result.difference < 1e-5
    assert all(gap < 2 * result.difference for gap in result.behind)
    # A row leaves the other mesh's path where its first token differs, and nowhere else.
    rows = differing(REQUESTS, traces, decode(other, REQUESTS, fakes.DECODE))
    assert rows <= len(result.behind)
    assert result.share < 1e-5


def test_a_replay_finds_what_differs_and_foresees_how_much():
    """Weights that are off by one part in a hundred: the gaps grow with X, and as many tokens differ as expected."""
    ensemble, weights = made = alone()
    key = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(weights))))
    off = jax.tree.map(lambda x: x * (1 + 0.01 * jax.random.normal(next(key), x.shape)), weights)
    requests = fakes.make_requests(64, ProductOfExperts(0.5), Sampling(0.7), new=16)
    result = replay(made, Side(ensemble, off), requests, decode(made, requests, fakes.DECODE))
    assert max(result.behind) > 1e-3
    assert all(gap < 2 * result.difference for gap in result.behind)
    expected = result.share * result.draws
    assert expected > 5
    assert abs(len(result.behind) - expected) < 4 * expected**0.5  # 4 standard errors of a count of rare events


def test_flip_probability_is_the_first_order_of_the_exact_one():
    p, q = (np.asarray(jax.nn.log_softmax(x)) for x in np.array([[0.0], [1e-4]]) * fakes.make_views(1).teacher_V
            + fakes.make_views(0).teacher_V)  # fmt: skip
    ratio = np.exp(q - p.astype(np.float64))
    excess = np.maximum(ratio[None, :] / ratio[:, None] - 1, 0) @ np.exp(p)
    exact = 1 - np.sum(np.exp(p) / np.exp(p).sum() / (1 + excess))
    assert flip_probability(p, q) == pytest.approx(exact, rel=1e-2)  # the second order is about 1e-4 of the first


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason=f'{SMOLLM2} is absent: ./tools/demo fetches it')
def test_smollm2_differs_in_near_ties_only(monkeypatch):
    monkeypatch.setattr(determinism, 'NEW', 16)
    for result in determinism.compare([(1, 1, 2), (2, 2, 2)]):
        # Its logits reach 30, where float32 steps by 2e-6, after 30 layers of sums of up to 1536 terms.
        assert 0 < result.difference < 3e-4
        assert all(gap < 2 * result.difference for gap in result.behind)
        assert result.share < 5e-5
