"""Answer forcing continues what the defended decoder was doing, with the whole chat before it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from adx import forcing, generation, loading
from adx.answers import Reader, reader_of
from adx.datasets import Gsm8k
from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.defences import ProductOfExperts
from adx.errors import ConfigError
from adx.experiment import Arm, Experiment, ModelSource
from adx.forcing import Forcing
from adx.generation import Models, make_requests
from adx.loading import read_tokenizer
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import make_model
from adx.types import Prompt, Sampling
from configs import testbed_screen
from tests import tiny

TOKENIZER = tiny.make_tokenizer()
GREEDY = Sampling(temperature=0.0)
EXPERIMENT = Experiment(
    dataset=Gsm8k(), teacher=ModelSource('none'), proxies=(ModelSource('none'),), max_new_tokens=12,
    disclosure='public', arms=(Arm('plain', sampling=GREEDY), Arm('poe', ProductOfExperts(0.9), GREEDY)),
    decode=DecodeConfig(slots=4, chunk=4, buckets=(32,), prefill_rows=2, cache_length=43),
)  # fmt: skip
PROMPTS = [
    Prompt('d', 'test', str(i), ({'role': 'user', 'content': text},), '7') for i, text in enumerate(['How?', 'Why? 12'])
]


@pytest.fixture(scope='module')
def run():
    """Models, requests and the traces of both arms under greedy decoding."""
    # With a head of its own: tied to the embedding, a random model repeats what it reads.
    model, mesh = make_model(dataclasses.replace(tiny.make_params()[0].config, tied=False)), make_mesh()
    params = model.init(3)
    proxy = make_model(dataclasses.replace(model.config, num_layers=1))
    group = Group(proxy, proxy_layout(mesh, proxy.config.sizes, 1), 1)
    weights = Weights(params, ({path: jnp.asarray(w)[None] for path, w in proxy.init(5).items()},))
    ensemble = Ensemble(model, teacher_layout(mesh, model.config.sizes), (group,))
    models = Models(ensemble, weights, TOKENIZER, {})
    made = make_requests(EXPERIMENT, PROMPTS, TOKENIZER)
    traces = [trace for _, trace in generation.decode(EXPERIMENT, models, made, list(made.requests.values()))]
    return models, made, sorted(traces, key=lambda trace: trace.request_id)


def cut(trace):
    """The trace up to a token that is spelt as it is encoded, that token's text, and what came after it."""
    for k in range(1, 6):
        text = TOKENIZER.decode(trace.tokens[k : k + 1])
        rest = TOKENIZER.decode(trace.tokens[k + 1 :])
        if TOKENIZER.encode(text) == [trace.tokens[k]] and text.strip():
            return dataclasses.replace(trace, tokens=trace.tokens[:k]), text, rest.lstrip().partition('\n')[0]
    raise AssertionError(trace.text)


def test_a_greedy_trace_that_is_cut_goes_on_as_it_did(run):
    """The next token as the suffix: any other prompt, cache or rule would lead elsewhere."""
    models, made, traces = run
    by_arm = {trace.request_id: trace.tokens for trace in traces}
    assert by_arm['d/test/0/0/plain'] != by_arm['d/test/0/0/poe']
    for trace in (traces[0], traces[1]):
        shorter, suffix, rest = cut(trace)
        found = dict(forcing.force(EXPERIMENT, models, made, [shorter], Forcing(suffix, 16)))
        [text] = found.values()
        assert text.startswith(suffix + rest)
        assert len(rest) > 8
        assert list(found) == [trace.request_id]


class TestRequests:
    def test_hold_the_chat_the_trace_and_the_suffix_under_their_own_noise(self, run):
        models, made, traces = run
        end = TOKENIZER.eos_id
        trace = dataclasses.replace(traces[1], tokens=(5, 6, end))
        config = forcing.decode_config(EXPERIMENT.decode, models, Forcing())
        found = forcing.forced_requests(made, [trace], TOKENIZER, Forcing(), config)
        asked, request = made.requests[trace.request_id], found.requests[trace.request_id]
        assert request.tokens == (*asked.tokens, 5, 6, *TOKENIZER.encode('\n#### '))
        assert (request.defence, request.sampling, request.defended) == (asked.defence, GREEDY, True)
        assert request.id.noise_name == 'd/test+forced/0/0'
        assert request.id.setting == 'poe'

    def test_every_trace_of_the_run_fits_and_what_does_not_is_said(self, run):
        models, made, traces = run
        config = forcing.decode_config(EXPERIMENT.decode, models, Forcing())
        config.check()
        full = EXPERIMENT.decode.cache_length + 1 - len(made.requests[traces[0].request_id].tokens)
        for extra, fits in ((0, True), (1, False)):
            trace = dataclasses.replace(traces[0], tokens=(5,) * (full + extra))
            found = forcing.forced_requests(made, [trace], TOKENIZER, Forcing(), config)
            assert bool(found.requests) == fits
            assert bool(found.rejected) != fits
        small = dataclasses.replace(EXPERIMENT.decode, cache_length=511)  # the model holds 512
        config = forcing.decode_config(small, models, Forcing())
        config.check()
        assert (config.buckets[-1], config.cache_length) == (496, 512)

    def test_a_trace_of_another_experiment_is_refused(self, run):
        models, made, traces = run
        trace = dataclasses.replace(traces[0], request_id='d/test/9/0/plain')
        with pytest.raises(ConfigError, match='d/test/9/0/plain is no trace of this experiment'):
            list(forcing.force(EXPERIMENT, models, made, [trace], Forcing()))


def test_only_what_was_forced_is_graded(run):
    traces = [dataclasses.replace(trace, text='#### 7') for trace in run[2]]
    texts = ['\n#### 7', '\n#### 8', '\n#### none']
    forced = {trace.request_id: text for trace, text in zip(traces, texts, strict=False)}
    traces[1] = dataclasses.replace(traces[1], gold=None)
    assert list(forcing.grade(forced, traces, Reader(Gsm8k().grade)).values()) == [True, False, False]
    assert traces[1].request_id not in forcing.grade(forced, traces, Reader(Gsm8k().grade))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [(Forcing(' \n'), "suffix = ' ..' opens no answer"), (Forcing(max_new_tokens=0), 'at least 1')],
)
def test_check_names_what_is_wrong(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong.check()


@pytest.mark.parametrize(('source', 'spelt'), [('testbed-teacher', '\n####'), (None, '\n#### ')])
def test_an_opening_has_no_token_that_the_model_never_saw(source, spelt):
    """The words of the testbed are its tokens, and white space behind the last is none."""
    tokenizer = read_tokenizer(source) if source else TOKENIZER
    tokens = forcing.opening(tokenizer, Forcing())
    assert tokens == tuple(tokenizer.encode(spelt))
    unknown = tokenizer.backend.token_to_id('<unk>')
    assert unknown is None or unknown not in tokens
    if source:
        with pytest.raises(ConfigError, match='has tokens for'):
            forcing.opening(tokenizer, Forcing('\nThe answer is '))


@pytest.mark.slow  # a language model decodes
def test_what_is_forced_on_the_testbed_is_an_answer():
    """Its teacher is right behind most of the solutions that it has written to the end."""
    asked = dataclasses.replace(testbed_screen.study().experiment, limit=64, proxies=())
    asked = dataclasses.replace(asked, arms=asked.arms[:1])
    models = loading.load_models(asked, loading.blueprint(asked))
    made = make_requests(asked, generation.read_prompts(asked), models.tokenizer)
    traces = [trace for _, trace in generation.decode(asked, models, made, list(made.requests.values()))]
    said = dict(forcing.force(asked, models, made, traces, Forcing()))
    right = forcing.grade(said, traces, reader_of(asked.dataset))
    assert sum(right.values()) > 0.7 * len(right)  # 0.88 of 200; 4 standard errors of 64 are 0.16
