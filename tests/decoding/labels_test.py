"""Labels of texts that were decoded are the distributions that were recorded meanwhile: caches against one pass."""

from __future__ import annotations

import dataclasses

import fakes
import jax
import numpy as np
import pytest

from adx import automata
from adx.batching import Example
from adx.decoding.engine import Engine
from adx.decoding.labels import Labeller
from adx.decoding.loop import TOP
from adx.defences import Bank, Permutation, ProductOfExperts
from adx.mesh import make_mesh
from adx.numerics import MASKED
from adx.types import Sampling

EOS = (5,)
CONFIG = dataclasses.replace(fakes.DECODE, record='top')
RULES = {
    'state': Bank(ProductOfExperts(0.9), 1.0, 0.05),
    'own_noise': Permutation(ProductOfExperts(0.7)),
    'derivatives': fakes.Sloped(0.5),
}


def decoded(rule, ensemble, **kwargs):
    """(engine, requests by id, completions by id)."""
    engine = Engine(*ensemble, CONFIG, 3, EOS, EOS, **kwargs)
    requests = fakes.make_requests(12, rule, Sampling(0.9, top_k=12, top_p=0.97))
    requests[3] = dataclasses.replace(requests[3], defended=False)
    done = {str(one.id): one for one in engine.generate(requests)}
    return engine, {str(request.id): request for request in requests}, done


def labels(engine, requests, completions, count=TOP):
    examples = [Example(id_, requests[id_].tokens, tokens) for id_, tokens in completions.items()]
    return {id_: (ids, log_probs) for id_, ids, log_probs in Labeller(engine, count)(requests, examples)}


def check(engine, requests, done):
    found = labels(engine, requests, {id_: one.tokens for id_, one in done.items()})
    assert set(found) == set(done)
    for id_, one in done.items():
        ids, log_probs = found[id_]
        recorded = np.array(one.statistics['top_log_probs'])
        np.testing.assert_allclose(log_probs, recorded, atol=2e-5)
        clear = np.diff(recorded, prepend=0.0, append=2 * MASKED) < -1e-4  # no near tie with the next likelier
        clear = clear[:, :-1] & clear[:, 1:] & (recorded > MASKED)
        np.testing.assert_array_equal(ids[clear], np.array(one.statistics['top_ids'])[clear])


@pytest.mark.parametrize('name', RULES)
def test_labels_are_what_was_recorded(name):
    check(*decoded(RULES[name], fakes.make_ensemble(directions=RULES[name].wants_tangents * 2)))


def test_inside_protected_spans_the_teacher_is_labelled():
    token_bytes = [b'x'] * fakes.VOCAB
    token_bytes[8:28] = [b'2 ####'] * 20
    token_bytes[28:36] = [b'.\n'] * 8
    spans = automata.lift(('final_answer',), token_bytes, fakes.VOCAB_ROWS)
    engine, requests, done = decoded(ProductOfExperts(0.7), fakes.make_ensemble(), spans=spans)
    kls = [kl for id_, one in done.items() if requests[id_].defended for kl in one.statistics['kl']]
    assert min(kls) == 0 < max(kls)  # some tokens were drawn inside a span and some outside
    check(engine, requests, done)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
def test_on_a_mesh():
    check(*decoded(RULES['derivatives'], fakes.make_ensemble(make_mesh(2, 2, 2), directions=2)))


def test_texts_of_others_have_labels_over_the_whole_vocabulary_that_follow_from_the_text_so_far():
    engine, requests, _ = decoded(RULES['state'], fakes.make_ensemble())
    labeller, texts = Labeller(engine), ((1, 2, 3, 4), (1, 2, 9, 9))
    one, other = (
        {
            id_: (ids, log_probs)
            for id_, ids, log_probs in labeller(requests, [Example(i, r.tokens, text) for i, r in requests.items()])
        }
        for text in texts
    )
    for id_, (ids, log_probs) in one.items():
        assert ids.shape == log_probs.shape == (4, fakes.VOCAB)
        assert (np.sort(ids, axis=-1) == np.arange(fakes.VOCAB)).all()
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1.0, atol=1e-5)
        np.testing.assert_allclose(log_probs[:3], other[id_][1][:3], atol=2e-5)  # the third token is not yet read
        assert np.abs(log_probs[3] - other[id_][1][3]).max() > 1e-3
