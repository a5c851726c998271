"""What is promised across meshes: the same tokens until a near tie, and bfloat16 equal in distribution."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import numpy as np
import pytest

from adx.decoding.engine import Engine
from adx.defences import ProductOfExperts
from adx.loading import cache_directory
from adx.mesh import make_mesh
from adx.types import Array, Sampling
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


@pytest.mark.parametrize('shape', [(1, 1, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
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


def test_tokens_do_not_depend_on_the_number_of_slots_until_a_near_tie():
    """Four slots and eight are two programs, whose matmuls may be tiled otherwise."""
    side = alone()
    requests = fakes.make_requests(20, ProductOfExperts(0.5), Sampling(0.7, top_k=20, top_p=0.95), new=12)
    assert fakes.DECODE.slots == 8
    few, many = (decode(side, requests, dataclasses.replace(fakes.DECODE, slots=slots)) for slots in (4, 8))
    fakes.check_agreement(few, many)


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


def in_bfloat16(shape=(1, 1, 1), **numbers) -> Engine:
    """An engine of teacher and two proxies that compute in bfloat16."""
    teacher, proxy = (dataclasses.replace(config, dtype='bfloat16') for config in (fakes.TEACHER, fakes.PROXY))
    ensemble, weights = fakes.make_ensemble(make_mesh(*shape), teacher, proxy)
    return Engine(ensemble, weights, dataclasses.replace(fakes.DECODE, **numbers))


def test_bfloat16_tokens_do_not_depend_on_slot_neighbours_order_or_chunking():
    """Eight prompts of one bucket fill the eight slots; turned, each sits in every slot once, in other company."""
    requests = [request for request in fakes.make_requests(32) if len(request.tokens) > 4][:8]
    engine = in_bfloat16()
    expected = {str(done.id): done for done in engine.generate(requests)}
    assert len({done.tokens for done in expected.values()}) > 1
    for turn in range(1, 8):
        turned = engine.generate([*requests[turn:], *requests[:turn]])
        assert {str(done.id): done for done in turned} == expected
    alone = list(engine.generate(requests[5:6]))
    assert alone == [expected[str(requests[5].id)]]
    assert {str(done.id): done for done in in_bfloat16(chunk=5).generate(requests)} == expected


@pytest.mark.slow  # a quarter of a minute each
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 4)])
def test_bfloat16_samples_follow_the_distribution_of_an_uncached_pass(shape):
    """Chi-square of 8192 draws after one prompt against product of experts on logits of full bfloat16 passes.

    Two bfloat16 programs differ by about 2^-8 of a logit of size 1: that adds 8192 * 2^-16 = 0.1 to the statistic.
    """
    draws, vocab = 8192, fakes.VOCAB
    engine = in_bfloat16(shape, slots=256, chunk=1)
    (prompt,) = (r for r in fakes.make_requests(4, ProductOfExperts(0.5), Sampling(), new=1) if len(r.tokens) == 4)
    requests = [dataclasses.replace(prompt, id=prompt.id._replace(sample=i)) for i in range(draws)]
    counts_V = np.bincount([done.tokens[0] for done in engine.generate(requests)], minlength=vocab)
    teacher_V, proxies_NV = (np.asarray(x, np.float64)[..., :vocab] for x in full_pass(engine, prompt.tokens))
    served_V = np.exp(0.5 * teacher_V + 0.5 * proxies_NV.mean(0))
    expected_V = draws * served_V / served_V.sum()
    chi_square, freedom = np.sum((counts_V - expected_V) ** 2 / expected_V), vocab - 1
    # Its standard error is sqrt(2 * freedom), around `freedom`. Logits off by a tenth add what is allowed, or more.
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def full_pass(engine: Engine, tokens) -> tuple[Array, Array]:
    """(teacher logits_V, proxies' logits_NV) after `tokens`, without a cache."""
    ids, positions = np.asarray(tokens)[None], np.arange(len(tokens))[None]
    (group,) = engine.ensemble.groups
    teacher = engine.ensemble.teacher.apply(engine.weights.teacher, ids, positions)[0]
    proxies = jax.vmap(lambda params: group.model.apply(params, ids, positions)[0])(engine.weights.groups[0])
    return teacher[0, -1], proxies[:, 0, -1]
