"""Killed before, within and after every write, fsync, rename and upload, a restart ends with the same things, once."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import shutil
import types

import gcs_fake
import jax
import kill_points
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from forgetting_test import GONE, SECRET, holding, make
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from kill_points import AFTER, BEFORE, HALF, everywhere, killed_at_requests, said, say
from storage_test import EXPERIMENT, make_trace

from adx import files, forgetting, journal, orbax_io, outcomes_io, rewrites_io, rewriting, storage, training_io, watch
from adx.drafting import Rewrite
from adx.drafts import Tools
from adx.outcomes import Outcome, ThreatModel
from adx.rewriters import Instructed
from adx.storage import Workdir
from adx.training import Metrics, TrainState
from adx.training_io import Run

ROWS, BATCH, STEPS = 6, 2, 4
TRACES = [make_trace(row, text='x' * 300) for row in range(ROWS)]
IDS = {trace.request_id for trace in TRACES}


def generate(path, place: pathlib.Path) -> None:
    """As the stage does, without models: what is missing, batch by batch, with a heartbeat each."""
    with Workdir.open(path, EXPERIMENT, 'hash') as workdir:
        workdir.keep_policy('policy', {})
        workdir.reject('gsm8k/test/99/0/plain', 'too long')
        finished = workdir.finished()
        left = [trace for trace in TRACES if trace.request_id not in finished]
        for start in range(0, len(left), BATCH):
            batch = left[start : start + BATCH]
            workdir.append(batch)
            say(place, [trace.request_id for trace in batch])
            workdir.heartbeat({'totals': {'plain': ROWS}})


def check_generated(path, place: pathlib.Path) -> None:
    ids = [record['request_id'] for _, record in journal.read_records(Workdir(path).private / 'journal')]
    assert sorted(ids) == sorted(IDS)  # nothing lost, nothing twice
    assert said(place) <= IDS
    assert storage.hashes(path) == {trace.request_id: storage.trace_hash(trace) for trace in TRACES}
    assert watch.status(path)['done'] == ROWS


def test_traces(tmp_path):
    points = everywhere(
        tmp_path, lambda place: generate(place / 'run', place), lambda place: check_generated(place / 'run', place),
        (BEFORE, HALF, AFTER),
    )  # fmt: skip
    assert points > 40


def test_torn_ends(tmp_path):
    """Killed while what a kill left of a journal is cut."""

    def prepare(place):
        with Workdir.open(place / 'run', EXPERIMENT, 'hash') as workdir:
            workdir.append(TRACES[:BATCH])
            workdir.reject('gsm8k/test/99/0/plain', 'too long')
        for path in (place / 'run' / 'private').glob('*/0-of-1.*.jsonl'):
            path.write_text(f'{path.read_text()}{{"request_id": "gsm8k')

    def run(place):
        with Workdir.open(place / 'run', EXPERIMENT, 'hash') as workdir:
            workdir.append([trace for trace in TRACES if trace.request_id not in workdir.finished()])

    def check(place):
        ids = [record['request_id'] for _, record in journal.read_records(Workdir(place / 'run').private / 'journal')]
        assert sorted(ids) == sorted(IDS)
        assert list(Workdir(place / 'run').rejected()) == ['gsm8k/test/99/0/plain']

    assert everywhere(tmp_path, run, check, (BEFORE, AFTER), prepare) > 10


def test_nothing_that_was_said_to_be_saved_is_gone_before_the_restart(tmp_path):
    """Also in the eyes of a reader who comes between the kill and the restart."""
    at, code = 0, -9
    while code:
        at += 1
        place = tmp_path / str(at)
        place.mkdir()
        code = kill_points.killed(lambda place=place: generate(place / 'run', place), place, at, BEFORE)
        if said(place):
            assert said(place) <= Workdir(place / 'run').finished()


@pytest.fixture
def bucket(monkeypatch):
    """s3:// paths that lead to a directory, so that objects outlive a process."""

    def lead_to(root):
        store = DirFileSystem(str(root), LocalFileSystem(auto_mkdir=True))
        monkeypatch.setattr(backend._FileSystemSpecBackend, 'fs', lambda self, path: Stripped(store))
        return 's3://bucket/run'

    return lead_to


class Stripped:
    """A file system that knows nothing of the scheme."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        call = getattr(self._store, name)
        return lambda path, *more, **named: call(str(path).removeprefix('s3://'), *more, **named)


def test_traces_in_an_object_store(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr('adx.locks._is_gone', lambda holder: True)  # the killed process was here

    def check(place):
        check_generated(bucket(place), place)

    assert everywhere(tmp_path, lambda place: generate(bucket(place), place), check) > 5


def outcome(seed: int) -> Outcome:
    return Outcome(
        arm='plain', role='defence', attack='sft', source='clean', student='s', seen=False, seed=seed, setting={},
        split='tune', prompts='p', correct=(True,), rates={}, threat=ThreatModel(1, 1, 1, 1, 's', 1, 1),
    )  # fmt: skip


def test_outcomes(tmp_path):
    def run(place):
        outcomes_io.claim(str(place), {'a': 1})
        with outcomes_io.open_log(str(place), 's', ['sft'], contextlib.nullcontext) as log:
            for seed in range(3):
                if outcomes_io.name_of(outcome(seed)) not in log.known:
                    log.add([outcome(seed)])

    def check(place):
        records = list(journal.read_records(Workdir(place).private / 'outcomes'))
        assert len(records) == 3
        assert sorted(one.seed for one in outcomes_io.read(str(place)).values()) == [0, 1, 2]

    assert everywhere(tmp_path, run, check, (BEFORE, HALF, AFTER)) > 10


class Anything:
    """A workshop nobody asks for more than its parts."""

    experiment = senses = nll = None
    tools = Tools()


def test_rewrites(tmp_path, monkeypatch):
    one = Rewrite('told', 'plain', Instructed())
    share = rewriting._Share(one, TRACES, frozenset())
    experiment, shop = types.SimpleNamespace(rewriter=None, rewriter_prompting=None, rewrites=(one,)), Anything()
    monkeypatch.setattr(rewriting, 'BATCH', BATCH)
    monkeypatch.setattr(rewriting, 'LARGEST', BATCH)
    monkeypatch.setattr(rewriting.drafting, 'rewrite', lambda *given: [])  # all stay as they are: without models

    def run(place):
        workdir = Workdir(place)
        with storage.held(workdir, 'rewrite', ['locks', 'rewrites']) as owner:
            directory = rewrites_io.claim(experiment, workdir, one)
            journal.cut_torn_tails(directory, owner)
            known = rewriting._known(share, directory)
            told = journal.Journal(directory, owner)
            rewriting._rewrite(share, known, told, shop, lambda *told: None, contextlib.nullcontext)

    def check(place):
        directory = epath.Path(place) / 'private' / 'rewrites' / 'told'
        assert [record['request_id'] for _, record in journal.read_records(directory)] == sorted(IDS)
        assert rewrites_io.read_identity(directory)['rewrite']['of'] == 'plain'

    assert everywhere(tmp_path, run, check, (BEFORE, HALF, AFTER)) > 10


class Saver:
    """Arrays that appear whole, as Orbax writes them, in the calls of this process: JAX does not outlive a fork."""

    def begin(self, directory, arrays, whole):
        half = directory / 'params.half'
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(half)
        os.mkdir(half)
        files.write_private(half / 'array', directory.name.encode())
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory / 'params')
        os.rename(half, directory / 'params')
        whole()

    def close(self):
        pass


class Learner:
    """A trainer whose state is the number of its steps."""

    def step(self, state, rows):
        one = np.ones(1)
        return types.SimpleNamespace(step=state.step + 1), Metrics(one * state.step, one, one, one, one)


@pytest.mark.slow  # a minute; training_io_test interrupts at a few steps
def test_checkpoints_and_metrics(tmp_path, monkeypatch):
    for target, name, value in (
        (orbax_io, 'Saver', Saver), (training_io, '_flat', lambda state: {}), (training_io, 'jnp', np),
        (jax, 'process_index', lambda: 0), (jax, 'process_count', lambda: 1), (jax, 'device_get', lambda x: x),
        (training_io, '_resumed', lambda run, state: dataclasses.replace(state, step=training_io.last_step(run) or 0)),
    ):  # fmt: skip
        monkeypatch.setattr(target, name, value)
    state = TrainState({}, {}, None, 0, np.ones(1), np.array([STEPS]), np.zeros(1), np.zeros(1))

    def kept(place):
        return Run(epath.Path(place) / 'run', {}, every=1, keep=2)

    def between(place):
        """What is taken for a checkpoint is whole, and there is one once there was one."""
        found = training_io.steps(kept(place))
        assert all((kept(place).directory / f'{n:08d}/params/array').read_text() == f'{n:08d}' for n in found)
        steps = [record['step'] for record in training_io.metrics(kept(place))]
        assert steps == list(range(1, max(found, default=0) + 1))

    def run(place):
        training_io.train(Learner(), state, lambda step: None, kept(place))

    def check(place):
        between(place)
        assert training_io.steps(kept(place))[-2:] == [STEPS - 1, STEPS]  # the next one removes what is before them

    assert everywhere(tmp_path, run, check, (BEFORE, HALF, AFTER), between=between) > 40


def test_forgetting(tmp_path):
    make(tmp_path / 'whole')

    def check(place):
        assert holding(place / 'run', f'{GONE}/', SECRET) == []
        assert len(Workdir(place / 'run').finished()) == 8

    def forget(place):
        forgetting.forget(place / 'run', GONE)

    def prepare(place):
        shutil.copytree(tmp_path / 'whole', place / 'run')

    assert everywhere(tmp_path, forget, check, (BEFORE, HALF, AFTER), prepare) > 20


@pytest.mark.slow
def test_traces_on_gcs(tmp_path, monkeypatch):
    """Requests that change a store with preconditions, and plain uploads."""
    files.configure_stores()
    importlib.import_module('gcsfs')  # once, and not in every fork
    monkeypatch.setattr('adx.locks._is_gone', lambda holder: True)  # the killed process was here
    with gcs_fake.serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)

        def run(place):
            path = f'gs://bucket/{place.parent.name}/{place.name}'
            generate(path, place)
            check_generated(path, place)  # here: the client's threads would not outlive the next fork

        points = everywhere(tmp_path, run, lambda place: None, kill=killed_at_requests(fake))
        assert points > 10
        assert not fake.names('.lock')
