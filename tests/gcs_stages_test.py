"""The later stages on gs://, where every request fails once: by 429, by 503, by a reply that is lost after the request
was carried out, or by one that comes too late. They end with what they end with on a disk.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import itertools
import types

import pytest
from assessing_test import assessing, distilling
from etils import epath
from etils.epath import backend
from forgetting_test import GONE, make
from gcs_fake import LOST, serve
from kill_points_stages_test import contents
from kill_points_studies_test import made, measured  # noqa: F401  (fixtures)
from rewriting_test import Shop, base, workdir  # noqa: F401
from studies import make_study, write_traces
from training_io_test import STREAM, assert_same, run_in, start, trainer, uninterrupted

from adx import (
    evolving,
    export,
    files,
    forgetting,
    instructions,
    locks,
    readings,
    retention,
    retries,
    rewrites_io,
    rewriting,
    selecting,
    training_io,
)
from adx.attacks import Attack
from adx.errors import Interrupted
from adx.evolving import Evolution
from adx.storage import Workdir

LATE, SECONDS = 0.8, 0.4  # an answer, and the client's patience
FAULTS = {'refused': (429, 503), 'lost': (LOST,), 'late': (LATE,)}


def impatient(monkeypatch) -> None:
    """Of both clients, adx's and epath's: each is kept for the process, with what it was made with."""
    for client in (files.client('gs://bucket')[0], backend.fsspec_backend.fs('gs://bucket')):
        assert client.requests_timeout == files.patience()['requests_timeout']
        monkeypatch.setattr(client, 'requests_timeout', files.patience(SECONDS)['requests_timeout'])


@pytest.fixture
def plain_store(monkeypatch):
    with serve() as fake:
        for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
            monkeypatch.setenv(name, fake.url)
        monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'x')
        yield fake


@pytest.fixture(params=['refused', 'lost', pytest.param('late', marks=pytest.mark.slow)])
def store(request, plain_store, monkeypatch):
    """A store that fails once `failing` was called."""
    if request.param == 'late':
        impatient(monkeypatch)
    files.configure_stores()
    retry, sleep = importlib.import_module('gcsfs.retry'), asyncio.sleep
    monkeypatch.setattr(retry, 'asyncio', types.SimpleNamespace(sleep=lambda seconds: sleep(seconds / 100)))
    monkeypatch.setattr(retries, 'FIRST_WAIT', 0.01)
    monkeypatch.setattr(locks, 'POLL_SECONDS', 0.05)
    plain_store.failing = lambda: setattr(plain_store, 'firsts', itertools.cycle(FAULTS[request.param]))
    return plain_store


def test_an_answer_that_comes_too_late_is_asked_for_again(monkeypatch):
    with serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)
        impatient(monkeypatch)
        place = files.path_of('gs://bucket/a')
        files.upload(place / 'b' / 'c', b'x')
        calls = (lambda: (place / 'b' / 'c').exists(), lambda: (place / 'b').is_dir(), (place / 'b' / 'c').read_text)
        for call in calls:
            fake.requests.clear()
            fake.firsts = itertools.cycle((LATE,))
            assert call()
            assert len(fake.requests) > len(set(fake.requests))


def on_store(local: epath.PathLike, name: str) -> str:
    """Puts a local workdir there; its path."""
    for part, data in contents(local).items():
        if '/locks/' not in part:
            files.upload(files.path_of(f'gs://bucket/{name}/{part}'), data)
    return f'gs://bucket/{name}'


@pytest.mark.slow
def test_training(store):
    """A quick sibling, where nothing fails, is below."""
    def stopping(step):
        if step == 3:
            raise Interrupted('stopped')
        return STREAM(step)

    store.failing()
    run = dataclasses.replace(run_in('x', every=3, keep=1), directory=files.path_of('gs://bucket/training'))
    with pytest.raises(Interrupted):
        training_io.train(trainer(), start(), stopping, run)
    assert training_io.steps(run) == [3]
    assert_same(training_io.train(trainer(), start(), STREAM, run), uninterrupted())
    assert [record['step'] for record in training_io.metrics(run)] == [1, 2, 3, 4, 5]
    assert not [name for name in store.names() if '00000003/' in name]


def test_checkpoints(plain_store):
    run = dataclasses.replace(run_in('x', keep=1), directory=files.path_of('gs://bucket/training'))
    assert_same(training_io.train(trainer(), start(), STREAM, run), uninterrupted())
    assert_same(training_io.restore(run, start()), uninterrupted())
    assert training_io.steps(run) == [5]
    assert [record['step'] for record in training_io.metrics(run)] == [1, 2, 3, 4, 5]


def test_selections_rewrites_and_a_release(store, base, workdir, monkeypatch):  # noqa: F811
    monkeypatch.setattr(rewriting, 'Workshop', Shop)
    path = on_store(workdir.path, 'run')
    store.failing()
    for where in (path, str(workdir.path)):
        selecting.select(base, where)
        rewriting.rewrite(base, where)
        rewriting.rewrite(base, where)  # nothing is left
    ours, theirs = Workdir(path), workdir
    assert ours.selections() == theirs.selections() == ['first']
    assert ours.selection('first') == theirs.selection('first')
    assert rewrites_io.names(ours) == ['chosen', 'said']
    for name in ('chosen', 'said'):
        assert list(rewrites_io.rewritten(ours, name)) == list(rewrites_io.rewritten(theirs, name))
    assert contents(export.export(path, 'chat', 'said', 'cc0-1.0', 'public')) == contents(
        export.export(workdir.path, 'chat', 'said', 'cc0-1.0', 'public')
    )


def test_what_is_to_be_gone_is_gone(store, tmp_path):
    make(tmp_path / 'run')
    export.export(tmp_path / 'run', 'chat', 'plain', 'cc-by-4.0')
    path = on_store(tmp_path / 'run', 'run')
    store.failing()
    forgetting.forget(path, GONE)
    words = f'{GONE}/'.encode()
    assert [name for name, data in contents(path).items() if words in data] == []
    assert len(Workdir(path).finished()) == 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, 'DAY', 1e-6)
        retention.expire(path, 1)
    assert not [name for name in contents(f'{path}/private') if 'journal' in name or 'rewrites' in name]


def test_measurements_reports_and_readings(store, made, measured):  # noqa: F811
    study, whole = made
    path = on_store(whole, 'study')
    store.failing()
    assert len(assessing.assess(study, path)) == 2
    assert len(assessing.assess(study, path)) == 2
    rows = assessing.report(study, path)
    assert rows
    assert sorted(contents(f'{path}/private/report')) == ['audit.json', 'report.html', 'report.json']
    readings.freeze(path, 'hash')
    readings.read_test(path, 'hash', 'plain')
    assert len(readings.readings(path)) == 1
    assert not store.names('.lock')


def test_a_search(store, tmp_path):
    path = 'gs://bucket/run'
    store.failing()
    for _ in range(2):
        state = instructions.State(Workdir(path), {'a': 1})
        judge = lambda instruction: (float(len(instruction)), {})  # noqa: E731
        found = evolving._search(state, judge, Evolution('plain', rounds=1), evolving.mutate, lambda *told: None)
    assert len(instructions.State(Workdir(path), {'a': 1}).scores) == len(found) == 6


@pytest.mark.slow
def test_students(store, students):
    study = make_study(students[:1], attacks=(Attack('sft'),), seeds=(0,), learning_rates=(1e-3,))
    path = 'gs://bucket/study'
    write_traces(study, path)
    store.failing()
    found = distilling.distil(study, path)
    assert {(one.arm, one.source) for one in found} >= {('plain', 'clean'), ('poe', 'defended'), ('', 'own')}
    assert distilling.distil(study, path) == found
