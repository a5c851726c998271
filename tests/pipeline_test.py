"""What a run says of itself: that it lives while nothing is finished, and how many requests it has."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time

import pytest

from adx import forgetting, generation, pipeline, readings, watch
from adx.errors import ConfigError
from adx.experiment import experiment_hash
from adx.storage import Workdir
from tests import tiny


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return tiny.one_arm(tmp_path_factory.mktemp('pipeline'))


def test_it_lives_while_weights_are_read(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, 'BEAT_SECONDS', 0.05)
    beats = []

    def load(*given, load=pipeline.load_models):
        until = time.monotonic() + 30.0
        while len(set(beats)) < 3 and time.monotonic() < until:
            beats.extend(beat['time'] for beat in watch.status(tmp_path)['processes'] if beat['state'] == 'running')
            time.sleep(0.02)
        return load(*given)

    monkeypatch.setattr(pipeline, 'load_models', load)
    assert tiny.generate(experiment, tmp_path).done == 3
    assert len(set(beats)) == 3
    (last,) = Workdir(tmp_path).heartbeats()
    assert last['state'] == 'stopped'
    time.sleep(0.2)
    assert Workdir(tmp_path).heartbeats()[0]['time'] == last['time']


def test_forgotten_requests_are_neither_there_nor_rejected(experiment, tmp_path, monkeypatch):
    def refusing_one(*given, make=generation.make_requests):
        made = make(*given)
        id_ = list(made.requests)[-1]
        return dataclasses.replace(
            made, requests={one: made.requests[one] for one in made.requests if one != id_}, rejected={id_: 'too long'}
        )

    monkeypatch.setattr(generation, 'make_requests', refusing_one)
    report = tiny.generate(experiment, tmp_path)
    assert (report.total, report.done, report.rejected) == (3, 2, 1)
    (refused,), finished = Workdir(tmp_path).rejected(), sorted(Workdir(tmp_path).finished())
    for id_, expected in ((refused, (2, 2, 0)), (finished[0], (1, 1, 0))):
        forgetting.forget(tmp_path, id_)
        report = tiny.generate(experiment, tmp_path)
        assert (report.total, report.done_before, report.rejected) == expected
        assert report.done == 0


def test_the_split_test_is_read_once_it_is_frozen_and_each_reading_is_kept(experiment, tmp_path):
    tested = dataclasses.replace(experiment, split='test')
    with pytest.raises(ConfigError, match='may not read the split test: frozen are none'):
        tiny.generate(tested, tmp_path)
    readings.freeze(tmp_path, experiment_hash(tested))
    assert tiny.generate(tested, tmp_path).done == 3
    assert [(one['experiment'], one['arm']) for one in readings.readings(tmp_path)] == [
        (experiment_hash(tested), 'generate')
    ]
    with pytest.raises(ConfigError, match='may not read the split test'):
        tiny.generate(dataclasses.replace(tested, seed=7), tmp_path)


def test_tokens_that_fell_back_are_counted(experiment, tmp_path):
    tiny.generate(experiment, tmp_path)
    trace = next(iter(Workdir(tmp_path).traces()))
    report = pipeline.Report(total=2, done_before=0, rejected=0, left_out={})
    report.count(dataclasses.replace(trace, statistics={'fallback': [0, 1, 1]}))
    report.count(dataclasses.replace(trace, statistics={}))
    assert report.fallbacks == 2


def test_a_trace_says_which_versions_made_it(experiment, tmp_path):
    one = dataclasses.replace(experiment, limit=1, max_new_tokens=1)
    tiny.generate(one, tmp_path)
    (trace,) = Workdir(tmp_path).traces()
    assert trace.versions == {name: importlib.metadata.version(name) for name in ('adx', 'jax', 'flax')}
