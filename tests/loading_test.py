"""From names to models: the vocabulary that all have weights for, windows, ways of rows, content hashes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from adx import loading, pipeline
from adx.checkpoints import save_hf
from adx.datasets.tokenizing import save_tokenizer
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Weights
from adx.defences import Undefended
from adx.errors import ConfigError, InputError
from adx.experiment import Arm, ModelSource
from adx.mesh import abstract_mesh
from adx.models.rope import Rope
from adx.models.transformer import make_model
from adx.processes import Place
from adx.types import Request, RequestId, Sampling
from launch.config import load_config
from launch.dry_run import dry_run
from tests import fakes, tiny


@pytest.fixture
def experiment(tmp_path):
    return load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))


def short_of(experiment, path, added, rows):
    """The experiment's first arm on a model of so many rows, whose tokenizer has `added` tokens behind its words."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend.add_tokens(added)
    model = make_model(dataclasses.replace(tiny.make_params()[0].config, vocab_size=rows))
    write = functools.partial(save_tokenizer, tokenizer)
    save_hf(str(path), model, model.init(0), write_tokenizer=write)
    source = ModelSource(str(path))
    return dataclasses.replace(experiment, teacher=source, proxies=(source,), arms=experiment.arms[:1])


def test_a_token_without_weights_is_said_never_served_and_refused_in_prompts(tmp_path, experiment, capsys):
    alone = short_of(experiment, tmp_path / 'short', ['<|image|>', '<|sound|>'], tiny.VOCAB)
    plan = loading.blueprint(alone)
    assert (plan.tokenizer.size, plan.vocab_rows) == (tiny.VOCAB + 2, tiny.VOCAB + 2)
    lacks = "has no weights for 2 of 402 tokens, so that none is served: 400 ('<|image|>'), 401 ('<|sound|>')"
    said = [f'the {role} {alone.teacher.source!r} {lacks}' for role in ('teacher', 'proxy 0')]
    assert list(plan.without_weights) == said
    dry_run(alone, None)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if 'no weights' in line] == said
    teacher = plan.ensemble.teacher
    assert {teacher.config.vocab_size, plan.ensemble.groups[0].model.config.vocab_size} == {tiny.VOCAB}
    params = loading.load_models(alone, plan).weights.teacher
    logits_BLV, _ = teacher.apply(params, jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    assert np.all(np.asarray(logits_BLV)[..., tiny.VOCAB :] < -1e29)
    ensemble = dataclasses.replace(plan.ensemble, groups=())
    engine = Engine(ensemble, Weights(params, ()), DecodeConfig(slots=2, buckets=(8,), prefill_rows=2, cache_length=16))
    request = Request(RequestId('d', 's', '0', 0, 'a'), (1, tiny.VOCAB), 4, Sampling(), Undefended())
    with pytest.raises(InputError, match=rf'prompt token {tiny.VOCAB} lies outside the vocabulary'):
        next(engine.generate([request]))


def test_a_run_says_at_its_start_what_has_no_weights(tmp_path, experiment):
    alone, starts = short_of(experiment, tmp_path / 'short', ['<|image|>'], tiny.VOCAB), []
    run = dataclasses.replace(alone, proxies=(), limit=1, max_new_tokens=1)
    tell = lambda report, trace: starts.append(report.without_weights)  # noqa: E731
    pipeline.generate(run, str(tmp_path / 'run'), Place(), tell, contextlib.nullcontext)
    assert starts[0] == loading.blueprint(run).without_weights
    assert len(starts[0]) == 1


def test_weights_for_fewer_words_than_the_tokenizer_has_are_refused(tmp_path, experiment):
    alone = short_of(experiment, tmp_path / 'short', ['<|image|>'], tiny.VOCAB - 7)
    said = r"the teacher .* weights for 393 tokens .* has 401: none for 7 words, first 393 \('.*'\), .*, \.\.\.; take"
    with pytest.raises(InputError, match=said) as error:
        loading.blueprint(alone)
    assert '401 (' not in str(error.value)
    assert '\n' not in str(error.value)


def test_one_model_without_weights_for_a_token_is_enough(experiment):
    full = tiny.make_params()[0].config
    short, mesh = dataclasses.replace(full, vocab_size=390), abstract_mesh()
    laid_out = loading.lay_out(experiment, [full, short], 405, mesh)
    assert (laid_out.ensemble.teacher.config.vocab_size, laid_out.vocab_rows) == (390, 405)


def test_rows_divide_by_the_ways_of_every_layout(experiment):
    """Two models of one architecture do not divide by three: their rows are split over `proxy`, the teacher's not."""
    config = tiny.make_params()[0].config
    shape = dataclasses.replace(experiment.mesh, proxy=3, shard_teacher_weights=True)
    wide = dataclasses.replace(experiment, mesh=shape, proxies=experiment.proxies * 2)
    with pytest.raises(ConfigError, match=r'decode\.slots = 4 .* divide by 3'):
        loading.lay_out(wide, [config] * 3, tiny.VOCAB, abstract_mesh(1, 3, 1))


@pytest.mark.parametrize(
    ('rope', 'allowed'), [(Rope(), 64), (Rope(1e4, 'linear', 8.0), 512), (Rope(5e5, 'llama3'), 64)]
)
def test_caches_longer_than_the_window_of_a_model_are_refused(experiment, rope, allowed):
    config = dataclasses.replace(tiny.make_params()[0].config, max_length=64, rope=rope)
    laid_out = loading.lay_out(experiment, [config] * 2, tiny.VOCAB, abstract_mesh())

    def check(length):
        decode = dataclasses.replace(experiment.decode, cache_length=length)
        loading.check_window(dataclasses.replace(experiment, decode=decode), laid_out)

    check(allowed)
    with pytest.raises(ConfigError, match=rf'cache_length = {allowed + 1} and the teacher .* = {allowed} tokens'):
        check(allowed + 1)


def test_a_model_alone_has_its_translator(experiment, tmp_path):
    width = tiny.make_params()[0].config.embed_dim
    file = tmp_path / 'translator.safetensors'
    tensors = {'translator': 2 * np.eye(width, dtype=np.float32), 'translator_bias': np.zeros(width, np.float32)}
    save_file(tensors, file)
    source = dataclasses.replace(experiment.proxies[0], translator=str(file))
    loaded = loading.load_alone(source).loaded
    assert loaded.model.config.translator
    np.testing.assert_array_equal(loaded.params['translator'], tensors['translator'])


def test_hashes_of_proxies_need_no_weights(experiment):
    run = dataclasses.replace(experiment, proxies=(*experiment.proxies, experiment.teacher))
    _, hashes = loading.load_proxies(run, loading.blueprint(run))
    assert loading.proxy_hashes(run) == [hashes['proxy_0'], hashes['proxy_1']]
    assert len(set(hashes.values())) == 2


def test_an_early_exit_of_the_teacher_brings_what_is_its_own_only(experiment, tmp_path):
    width, file = tiny.make_params()[0].config.embed_dim, tmp_path / 'translator.safetensors'
    tensors = {'translator': 2 * np.eye(width, dtype=np.float32), 'translator_bias': np.ones(width, np.float32)}
    save_file(tensors, file)
    bare = experiment.proxies[0]
    other = dataclasses.replace(bare, source=str(shutil.copytree(bare.source, tmp_path / 'copy')))
    run = dataclasses.replace(experiment, proxies=(dataclasses.replace(bare, translator=str(file)), bare, other))
    plan = loading.blueprint(run)
    assert [group.exit for group in plan.ensemble.groups] == [1, 1, 0]
    loaded = loading.load_models(run, plan)
    translated, exited, full = loaded.weights.groups
    assert {path: np.asarray(x)[0].tolist() for path, x in translated.items()} == {
        path: x.tolist() for path, x in tensors.items()
    }
    assert exited == {}
    whole = loading.load_models(run, plan, whole=True)
    assert [set(params) for params in whole.weights.groups] == [set(g.model.axes) for g in plan.ensemble.groups]
    assert whole.hashes == loaded.hashes
    assert set(full) == set(plan.ensemble.groups[2].model.axes)
    wants = dataclasses.replace(run, arms=(Arm('sloped', fakes.Sloped()),))
    # The derivative of one of the exits is along the teacher's own pass.
    assert [set(params) for params in loading.load_models(wants, plan).weights.groups] == [
        set(translated),
        *(set(group.model.axes) for group in plan.ensemble.groups[1:]),
    ]


def test_exits_of_a_teacher_that_is_one_itself_run_their_own_blocks(experiment):
    early = dataclasses.replace(tiny.make_params()[0].config, translator=True)
    laid_out = loading.lay_out(experiment, [early, early], tiny.VOCAB, abstract_mesh())
    assert [group.exit for group in laid_out.ensemble.groups] == [0]
