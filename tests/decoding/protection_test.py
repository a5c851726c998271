"""Rows, tokens and spans in which the teacher is served as it is, beside others that are defended."""

from __future__ import annotations

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import automata
from adx.decoding import sampling
from adx.decoding.engine import Engine
from adx.defences import Bank, CrossModelHard, ProductOfExperts, Undefended
from adx.types import Sampling

EOS = (5,)
BROKEN = (7, 11, 13, 17)  # tokens that the second proxy answers with nan


def decode(requests, ensemble, record='scalars', **kwargs):
    engine = Engine(*ensemble, dataclasses.replace(fakes.DECODE, record=record), 0, EOS, EOS, **kwargs)
    return {str(done.id): done for done in engine.generate(requests)}


@pytest.mark.parametrize('rule', [ProductOfExperts(0.9), CrossModelHard()], ids=lambda rule: type(rule).__name__)
def test_an_undefended_row_has_the_teachers_tokens(rule):
    requests = fakes.make_requests(12, rule, Sampling(0.9))
    mixed = [dataclasses.replace(r, defended=bool(i % 2)) for i, r in enumerate(requests)]
    ensemble = fakes.make_ensemble()
    done, defended = decode(mixed, ensemble), decode(requests, ensemble)
    plain = decode([dataclasses.replace(r, defence=Undefended()) for r in requests], ensemble)
    for i, request in enumerate(requests):
        id_ = str(request.id)
        assert done[id_].tokens == (defended if i % 2 else plain)[id_].tokens
        assert i % 2 or not any(done[id_].statistics['kl'])
    assert {id_: one.tokens for id_, one in defended.items()} != {id_: one.tokens for id_, one in plain.items()}


def untied_ensemble(value=None):
    """Of two proxies; the second embeds the tokens BROKEN as `value`."""
    ensemble, weights = fakes.make_ensemble(proxy=dataclasses.replace(fakes.PROXY, tied=False))
    proxies = dict(weights.groups[0])
    if value is not None:
        proxies['embed'] = proxies['embed'].at[1, np.array(BROKEN)].set(value)
    return ensemble, weights._replace(groups=(proxies,))


@pytest.mark.parametrize('record', ['none', 'scalars'])
def test_a_row_whose_proxy_is_broken_falls_back_and_harms_no_other(record):
    """From the broken token on, which stays in the proxy's cache; and the slot's next row is sound again."""
    requests = fakes.make_requests(40, ProductOfExperts(0.9), Sampling(0.9))
    done, sound = (decode(requests, untied_ensemble(value), record) for value in (np.nan, None))
    fallen = 0
    for request in requests:
        mine, theirs = done[str(request.id)], sound[str(request.id)]
        read = [*request.tokens, *mine.tokens]
        first = next((i for i, token in enumerate(read) if token in BROKEN), len(read))
        kept = max(first + 1 - len(request.tokens), 0)  # tokens drawn before the broken one was read
        assert mine.tokens[:kept] == theirs.tokens[:kept]
        if kept >= len(mine.tokens):
            assert mine == theirs
            assert 'fallback' not in mine.statistics
            continue
        fallen += 1
        assert mine.statistics['fallback'] == [0] * kept + [1] * (len(mine.tokens) - kept)
        assert record == 'none' or not any(mine.statistics['kl'][kept:] + mine.statistics['intervened'][kept:])
    assert 5 < fallen < 35


@pytest.mark.parametrize('field', ['proxies_NV', 'tangents_MV'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_leaves_no_trace_in_the_state(field, bad):
    views, rule = fakes.make_views(), Bank(ProductOfExperts(0.5), 1.0, 0.0)
    if field == 'proxies_NV':
        logits_NV = views.proxies_NV.at[1, 9].set(bad)
        views = dataclasses.replace(views, proxies_NV=sampling.tempered(logits_NV, jnp.ones(2)))
    else:
        views = dataclasses.replace(views, tangents_MV=views.tangents_MV.at[1].set(bad))  # as its centring leaves it
    served = jax.jit(lambda views, plays: sampling.serve_row(
        rule, rule.init(), views, views.key, jnp.zeros(32, bool), plays))(views, jnp.bool_(True))  # fmt: skip
    assert served.fallback
    assert served.state[1] == 1.0
    np.testing.assert_array_equal(served.served_V, served.teacher_V)
    assert served.token == served.undefended


def test_a_logit_of_minus_infinity_is_no_fault():
    log_probs_V = sampling.tempered(jnp.where(jnp.arange(8) == 3, -jnp.inf, 0.0), jnp.float32(1))
    np.testing.assert_allclose(np.exp(log_probs_V), np.where(np.arange(8) == 3, 0, 1 / 7), atol=1e-6)
    assert np.isfinite(log_probs_V).all()


def test_inside_spans_the_teacher_is_served():
    token_bytes = [b'x'] * fakes.VOCAB
    token_bytes[8:28] = [b'2 ####'] * 20
    token_bytes[28:36] = [b'.\n'] * 8
    spans = automata.lift(('final_answer',), token_bytes, fakes.VOCAB_ROWS)
    requests = fakes.make_requests(24, ProductOfExperts(0.9), Sampling(1.0), new=12)
    done = decode(requests, fakes.make_ensemble(), spans=spans)
    inside, outside = [], []
    for request in requests:
        mine, text = done[str(request.id)], ''
        for token, kl, moved in zip(mine.tokens, mine.statistics['kl'], mine.statistics['intervened'], strict=True):
            is_inside = '####' in text.rpartition('\n')[2]
            (inside if is_inside else outside).append((kl, moved))
            text += token_bytes[token].decode()
    assert len(inside) > 10
    assert not np.any(inside)
    assert np.min([kl for kl, _ in outside]) > 0
    free = decode(requests, fakes.make_ensemble())
    assert {id_: one.tokens for id_, one in free.items()} != {id_: one.tokens for id_, one in done.items()}
