"""The stage prepare on a tiny model, in process: what it keeps, how it goes on, and what it and generate refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import adx
from adx import directions, pipeline, preparation
from adx.aggregation import Aggregation
from adx.checkpoints import save_hf
from adx.datasets.tokenizing import save_tokenizer
from adx.defences import Antidistillation
from adx.errors import ConfigError, InputError
from adx.experiment import Arm, Derivative, ModelSource
from adx.loading import blueprint
from adx.storage import Workdir
from adx.types import Sampling
from launch.config import load_config
from tests import tiny

PROMPTS, SAMPLES = 2, 2
STILL = Antidistillation(lam=0.0, join=Aggregation(how='min'))  # wants all derivatives and leaves the teacher as it is
SETTINGS = Derivative(prompts=PROMPTS, samples=SAMPLES, max_new_tokens=10, directions=2)


def other_proxy(directory) -> str:
    """Of the same architecture, so that both are one group."""
    model, _ = tiny.make_params()
    write_tokenizer = functools.partial(save_tokenizer, tiny.make_tokenizer())
    save_hf(str(directory), model, model.init(7), write_tokenizer=write_tokenizer)
    return str(directory)


@pytest.fixture(scope='module', autouse=True)
def programs(tmp_path_factory):
    """Compile time is most of these tests: they share programs."""
    options = {
        'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('programs')),
        'jax_persistent_cache_min_compile_time_secs': 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for settings in (options, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is options:
            yield


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp('prepare')
    teacher = tiny.write_teacher(root / 'teacher')
    base = load_config(tiny.write_config(root / 'config.py', teacher))
    proxies = (*base.proxies, ModelSource(other_proxy(root / 'other'), exit_layer=1))
    return dataclasses.replace(base, proxies=proxies, arms=(Arm('slope', STILL),), limit=2, derivative=SETTINGS)


def prepare(experiment, path, place=pipeline.Place(), told=None):  # noqa: B008
    told = [] if told is None else told
    return preparation.prepare(
        experiment, str(path), place, lambda report, trace: None, contextlib.nullcontext, lambda *at: told.append(at)
    )


def generate(experiment, path):
    return pipeline.generate(
        experiment, str(path), pipeline.Place(), lambda report, trace: None, contextlib.nullcontext
    )


@pytest.fixture(scope='module')
def prepared(experiment, tmp_path_factory):
    path, told = tmp_path_factory.mktemp('run'), []
    report = prepare(experiment, path, told=told)
    return path, report, told


def record(path, index):
    return json.loads((directions.place(path, index) / 'identity.json').read_text())


def test_it_decodes_the_undefended_teacher_on_the_holdout_split(experiment, prepared):
    path, report, told = prepared
    assert report.done == PROMPTS * SAMPLES
    traces = list(Workdir(path / 'private' / 'holdout').traces())
    assert {trace.request_id.split('/')[1] for trace in traces} == {'holdout'}
    assert {trace.defence['type'] for trace in traces} == {'undefended'}
    assert all(trace.sampling['temperature'] == 1.0 and len(trace.tokens) <= 10 for trace in traces)
    assert not list(Workdir(path).traces())
    for i in range(2):
        assert [one['tokens'] for one in record(path, i)['directions']] == [
            sum(len(trace.tokens) for trace in sorted(traces, key=lambda t: t.request_id)[part::2]) for part in (0, 1)
        ]
        name = f'proxy_{i}'
        assert [at for at in told if at[0] == name][-1][1:] == (4, 4)  # two directions, of two lengths of batches
    assert record(path, 0)['proxy'] != record(path, 1)['proxy']


def test_holdout_traces_alone_are_decoded_for_who_reads_nothing_else(experiment, prepared, tmp_path):
    plain = dataclasses.replace(experiment, arms=(Arm('plain'),))
    place, nothing = pipeline.Place(), lambda *at: None
    with pytest.raises(ConfigError, match="no arm of \\['plain'\\] does"):
        prepare(plain, tmp_path)
    report = preparation.decode_holdout(plain, str(tmp_path), place, nothing, contextlib.nullcontext)
    assert report.done == PROMPTS * SAMPLES
    assert not (tmp_path / 'private' / 'directions').exists()
    found, expected = (Workdir(path / 'private' / 'holdout').traces() for path in (tmp_path, prepared[0]))
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    with pytest.raises(ConfigError, match='cannot be divided'):
        preparation.decode_holdout(plain, str(tmp_path), pipeline.Place(0, 2), nothing, contextlib.nullcontext)


def test_it_goes_on_where_it_stopped(experiment, prepared, tmp_path):
    """Half the traces and one proxy are there: the rest is made anew, to the same directions."""
    path, _, _ = prepared
    again = tmp_path / 'again'
    shutil.copytree(path, again)
    shutil.rmtree(again / 'private' / 'directions' / 'proxy_1')
    (journal,) = (again / 'private' / 'holdout' / 'private' / 'journal').iterdir()
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(''.join(lines[:2]))
    told = []
    report = prepare(experiment, again, told=told)
    assert (report.done, report.done_before) == (2, 2)
    assert {name for name, _, _ in told} == {'proxy_1'}
    assert record(again, 1) == record(path, 1)
    assert prepare(experiment, again).done == 0


def test_generate_runs_along_them_and_names_them(experiment, prepared, monkeypatch):
    path, _, _ = prepared
    seen = []
    decode = pipeline.generation.decode

    def watched(experiment, models, *rest):
        seen.append(models)
        return decode(experiment, models, *rest)

    monkeypatch.setattr(pipeline.generation, 'decode', watched)
    assert generate(experiment, path).done == 2
    (models,) = seen
    assert [group.directions for group in models.ensemble.groups] == [2, 2]  # the one is the teacher's early exit
    for along, group in zip(models.weights.directions, models.ensemble.groups, strict=True):
        assert {name: g.shape for name, g in along.items()} == {
            name: (1, 2, *shape) for name, shape in group.model.shapes.items()
        }
    hashes = next(Workdir(path).traces()).models
    assert set(hashes) == {'teacher', 'proxy_0', 'proxy_1', 'directions_0', 'directions_1'}
    assert hashes['directions_0'] != hashes['directions_1']


def test_generate_without_them_is_refused_before_any_work(experiment, prepared, tmp_path):
    with pytest.raises(InputError, match=r"no directions of \['proxy_0', 'proxy_1'\].*--stages=prepare,generate"):
        generate(experiment, tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


def test_changed_holdout_traces_are_refused(experiment, prepared, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(prepared[0], other)
    shutil.rmtree(other / 'private' / 'journal')
    (journal,) = (other / 'private' / 'holdout' / 'private' / 'journal').iterdir()
    journal.write_text(''.join(journal.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match=r'proxy_0 holds directions of something else .* traces: '):
        generate(experiment, other)


@pytest.mark.parametrize(
    ('change', 'place', 'error', 'message'),
    [
        ({}, pipeline.Place(0, 2), ConfigError, 'cannot be divided into 2 shards'),
        ({'arms': (Arm('plain'),)}, pipeline.Place(), ConfigError, 'no arm of'),
        ({'split': 'holdout'}, pipeline.Place(), ConfigError, "split = 'holdout'"),
        ({'proxies': ()}, pipeline.Place(), ConfigError, 'needs a proxy'),
        ({'derivative': Derivative(1, max_new_tokens=4, directions=2)}, pipeline.Place(), InputError, 'too few'),
    ],
)
def test_what_cannot_be_prepared_is_refused(change, place, error, message, experiment, tmp_path):
    with pytest.raises(error, match=message):
        prepare(dataclasses.replace(experiment, **change), tmp_path / 'x', place)
    assert not list((tmp_path / 'x').glob('private/directions/*'))


def test_holdout_prompts_in_the_served_split_are_refused(experiment, tmp_path):
    data = tmp_path / 'data.jsonl'
    data.write_text('\n'.join(json.dumps({'question': f'How many are {i} and {i}?'}) for i in range(40)))
    served_too = dataclasses.replace(experiment, dataset=adx.Jsonl(str(data)), split='all')
    with pytest.raises(InputError, match='prompts of the run are in the holdout split too'):
        prepare(served_too, tmp_path / 'x')


def test_rules_that_take_the_mean_of_directions_hold_no_others(experiment, prepared):
    path, _, _ = prepared
    plan = blueprint(experiment)
    every = pipeline.load_models(experiment, path, plan)
    mean = pipeline.load_models(dataclasses.replace(experiment, arms=(Arm('mean', Antidistillation()),)), path, plan)
    assert (every.ensemble.directions, mean.ensemble.directions) == (2, 1)
    for whole, one in zip(every.weights.directions, mean.weights.directions, strict=True):
        for name, x in one.items():
            np.testing.assert_allclose(x[:, 0], whole[name].mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_notebook_takes_the_directions_that_the_workdir_has(experiment, prepared):
    path, _, _ = prepared
    models = adx.prepare(experiment, adx.load(experiment))
    kept = directions.load(experiment, path, blueprint(experiment), adx.load(experiment))
    assert models.hashes == kept.hashes
    for ours, theirs in zip(models.weights.directions, kept.weights.directions, strict=True):
        for name, x in ours.items():
            np.testing.assert_allclose(x, theirs[name], atol=1e-5 * float(jax.numpy.abs(theirs[name]).max()))
    run = adx.decode(experiment, models)
    assert run.models is models
    assert len(run.traces) == 2


def test_a_notebook_makes_directions_where_there_are_none(experiment):
    one = dataclasses.replace(
        experiment, proxies=experiment.proxies[:1], limit=1,
        derivative=Derivative(prompts=1, max_new_tokens=4, sampling=Sampling(0.5), scale='raw'),
    )  # fmt: skip
    run = adx.decode(one)
    assert [group.directions for group in run.models.ensemble.groups] == [1]
    assert 'directions_0' in next(iter(run.traces.values())).models
