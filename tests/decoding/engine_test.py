"""The slot engine against a naive loop, and what it promises whatever the order, neighbours and chunking."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import numerics
from adx.decoding import loop
from adx.decoding.engine import DecodeConfig, Engine
from adx.defences import ProductOfExperts, Undefended
from adx.errors import ConfigError, InputError
from adx.hashing import row_key
from adx.models.transformer import make_model
from adx.types import Request, RequestId, Sampling

EOS = (5, 9)


@functools.cache  # compiling is what these tests spend their time on
def make_engine(chunk=fakes.DECODE.chunk, count=2):
    return Engine(*fakes.make_ensemble(count=count), dataclasses.replace(fakes.DECODE, chunk=chunk), 0, EOS, EOS)


def decode(requests, stop_fn=None, engine=None):
    """Completions by request id."""
    engine = engine or make_engine()
    return {str(done.id): done for done in engine.generate(requests, stop_fn)}


def test_tokens_do_not_depend_on_order_neighbours_or_chunking():
    requests = fakes.make_requests(20)
    expected = decode(requests)
    assert {done.stop for done in expected.values()} == {'eos', 'length'}
    assert decode(requests[::-1]) == expected
    alone = decode(requests[3:4])
    assert alone == {str(requests[3].id): expected[str(requests[3].id)]}
    assert decode(requests, engine=make_engine(chunk=5)) == expected


TEACHER = make_model(fakes.TEACHER)
FORWARD = jax.jit(lambda params, ids: TEACHER.apply(params, ids, jnp.arange(ids.shape[1])[None])[0][0])


def full_pass(weights, tokens):
    """logits_LV of the teacher over all tokens at once, padded to one length behind them."""
    ids = np.zeros((1, fakes.DECODE.cache_length), np.int32)
    ids[0, : len(tokens)] = tokens
    return FORWARD(weights.teacher, ids)


def naive(request: Request, weights) -> list[int]:
    """Undefended decoding by a full forward pass per token, no cache; the same noise."""
    tokens = list(request.tokens)
    key = jax.random.wrap_key_data(jnp.asarray(row_key(0, request.id.noise_name)))
    while len(tokens) - len(request.tokens) < request.max_new_tokens:
        logits_LV = full_pass(weights, tokens)
        lp_V = numerics.log_softmax(logits_LV[len(tokens) - 1] / request.sampling.temperature)
        noise_V = numerics.gumbel(jax.random.fold_in(key, len(tokens) - 1), lp_V.shape[0])
        tokens.append(int(jnp.argmax(lp_V + noise_V)))
        if tokens[-1] in EOS:
            break
    return tokens[len(request.tokens) :]


def test_equals_a_naive_loop_and_scores_what_it_sampled():
    requests = fakes.undefended(count=4, sampling=Sampling(0.8))
    engine = make_engine(count=0)
    done, weights = decode(requests, engine=engine), engine.weights
    for request in requests:
        mine = done[str(request.id)]
        assert list(mine.tokens) == naive(request, weights)
        logits_LV = full_pass(weights, [*request.tokens, *mine.tokens])
        scored = numerics.log_softmax(logits_LV / 0.8)[len(request.tokens) - 1 :]
        expected = [float(scored[i, token]) for i, token in enumerate(mine.tokens)]
        # Cached and uncached sums differ in order: a few units of float32's last place on logits of size 1.
        np.testing.assert_allclose(mine.statistics['log_prob'], expected, atol=1e-5)
        assert mine.statistics['teacher_log_prob'] == mine.statistics['log_prob']
        assert set(mine.statistics['intervened']) == {0}


def test_nothing_is_compiled_after_one_request_per_bucket():
    engine = Engine(*fakes.make_ensemble(), fakes.DECODE, 0, EOS, EOS)
    lengths = {len(request.tokens): request for request in fakes.make_requests(8)}
    decode([lengths[2], lengths[8]], engine=engine)
    warm = engine.compiled_programs()
    decode(fakes.make_requests(30, ProductOfExperts(1), Sampling(0, 3, 0.5, 0.1)), engine=engine)
    assert engine.compiled_programs() == warm


def test_short_caches_serve_the_same_tokens_and_are_warm():
    """Sums over 10, 16 or 24 columns round differently, by 1e-7: among 160 draws no tie is as near as that."""
    lengths = (10, 16)
    config = dataclasses.replace(fakes.DECODE, short_caches=lengths)
    engine = Engine(*fakes.make_ensemble(), config, 0, EOS, EOS)
    engine.warm_up(ProductOfExperts(0.5))
    warm, used = engine.compiled_programs(), []
    resize = engine.resize
    engine.resize = lambda caches, length: used.append(length) or resize(caches, length)
    requests = fakes.make_requests(20)
    long = [dataclasses.replace(request, max_new_tokens=15) for request in requests[:4]]
    done = decode([*long, *requests[4:]], engine=engine)
    expected = decode([*long, *requests[4:]])
    assert {id_: one.tokens for id_, one in done.items()} == {id_: one.tokens for id_, one in expected.items()}
    assert engine.compiled_programs() == warm
    assert used[:2] == [16, 24]  # grown by the long rows
    assert used[-1] == 16  # and short again after them


def test_samples_of_a_prompt_share_its_prefill_and_differ():
    engine, calls = make_engine(), []
    prefill = engine.programs.prefill

    def counted(*args):
        calls.append(0)
        return prefill(*args)

    engine.programs = engine.programs._replace(prefill=counted)
    requests = [r for r in fakes.make_requests(40, samples=8, sampling=Sampling()) if len(r.tokens) <= 4]
    done = decode(requests, engine=engine)
    assert len(calls) == 1
    assert len({done[str(request.id)].tokens for request in requests[:8]}) > 1
    assert len(done) == len(requests)


def test_duplicate_prompts_stay_distinct_and_arms_share_noise():
    prompt, numbers = (1, 2, 3), Sampling()

    def request(row, setting, gamma):
        return Request(RequestId('fake', 'train', row, 0, setting), prompt, 7, numbers, ProductOfExperts(gamma))

    done = decode([request('0', 'a', 0.0), request('1', 'a', 0.0), request('0', 'b', 0.0), request('0', 'c', 0.9)])
    assert done['fake/train/0/0/a'].tokens == done['fake/train/0/0/b'].tokens
    assert done['fake/train/0/0/a'].tokens != done['fake/train/1/0/a'].tokens
    assert sum(done['fake/train/0/0/a'].statistics['kl']) == 0.0
    assert sum(done['fake/train/0/0/c'].statistics['kl']) > 0.0


def test_stops_by_length_and_by_string():
    requests = fakes.make_requests(9)
    full = decode(requests)
    cut = decode(requests, stop_fn=lambda tokens: 2 if len(tokens) >= 2 else None)
    for id_, done in full.items():
        assert len(done.tokens) == len(done.statistics['kl'])
        assert (done.stop == 'eos') == (done.tokens[-1] in EOS)
        if len(done.tokens) > 2:
            assert cut[id_].stop == 'stop_string'
            assert cut[id_].tokens == done.tokens[:2]


def test_slots_are_refilled():
    engine = Engine(*fakes.make_ensemble(), fakes.DECODE, 0, (), ())
    decode(fakes.make_requests(64, new=12), engine=engine)
    assert engine.occupancy.tokens == 64 * 12
    assert engine.occupancy.share == 1.0  # 12 new tokens are four whole chunks, and ends by length are predicted


def test_caches_are_donated():
    """The chunk writes its caches in place: every one of them aliases an output."""
    engine = make_engine()
    rows, caches = engine.start(ProductOfExperts(0.5))
    compiled = engine.programs.chunk.lower(engine.weights, rows, caches, engine.constants).compile()
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes


def test_float32_multiplies_at_the_highest_precision():
    """Else a GPU would round its operands to TF32 and a TPU to bfloat16."""
    engine = make_engine()
    idle = engine.start(ProductOfExperts(0.5))
    lowered = engine.programs.chunk.lower(engine.weights, *idle, engine.constants).as_text()
    products = [line for line in lowered.splitlines() if 'dot_general' in line]
    assert len(products) > 20
    assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


def test_bfloat16_decodes():
    teacher = dataclasses.replace(fakes.TEACHER, dtype='bfloat16')
    proxy = dataclasses.replace(fakes.PROXY, dtype='bfloat16')
    ensemble, weights = fakes.make_ensemble(teacher=teacher, proxy=proxy)
    done = decode(fakes.make_requests(4), engine=Engine(ensemble, weights, fakes.DECODE, 0, EOS, EOS))
    assert len(done) == 4


BAD = {
    'the prompt is empty': {'tokens': ()},
    'decode.buckets allows 8': {'tokens': (1,) * 9},
    'do not fit decode.cache_length': {'max_new_tokens': 99},
    'outside the vocabulary of 61': {'tokens': (1, 61)},
    'temperature = -1': {'sampling': Sampling(-1.0)},
    'gamma = nan': {'defence': ProductOfExperts(float('nan'))},
}


@pytest.mark.parametrize('message', BAD)
def test_bad_requests_are_refused_before_any_work(message):
    good = fakes.make_requests(1)[0]
    with pytest.raises(InputError, match=message):
        decode([good, dataclasses.replace(good, **BAD[message])])


def test_bad_shapes_are_refused():
    with pytest.raises(ConfigError, match='at least 2'):
        DecodeConfig(slots=1).check()
    with pytest.raises(ConfigError, match='try 8'):
        DecodeConfig(slots=6).check(row_ways=4)
    with pytest.raises(ConfigError, match=r'decode\.short_caches'):
        DecodeConfig(cache_length=256, short_caches=(256,)).check()
    with pytest.raises(ConfigError, match='one defence structure'):
        decode([fakes.make_requests(1)[0], fakes.make_requests(1, Undefended())[0]])


def test_slots_that_were_never_filled_ask_for_no_truncation():
    ensemble, _ = fakes.make_ensemble()
    rows, _ = loop.start(ensemble, ProductOfExperts(0.5), 4, 8)
    for name, default in vars(Sampling()).items():
        np.testing.assert_array_equal(getattr(rows.sampling, name), np.full(4, default, np.float32))
