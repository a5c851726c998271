"""Workdirs of every format that is read stay readable: the files in goldens/workdir_v* are never written again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import pytest
from etils import epath

from adx import (
    assessing,
    environments,
    export,
    forgetting,
    instructions,
    journal,
    readings,
    rewrites_io,
    storage,
    training_io,
    transfer,
    watch,
)
from adx.errors import StorageError, WorkdirError
from adx.journal import FORMAT_VERSION, READERS
from adx.outcomes import Quality
from adx.statistics import Interval
from adx.storage import Workdir
from adx.training import TrainState
from tests.storage_test import make_trace

GOLDENS = sorted((pathlib.Path(__file__).parent / 'goldens').glob('workdir_v*'))
DIGEST = '238b42100c0469676b61d37996badecb'  # of the traces in all of them


def test_there_is_one_of_every_format_and_the_previous_is_read():
    assert [path.name for path in GOLDENS] == [f'workdir_v{version}' for version in READERS]
    assert {FORMAT_VERSION, max(1, FORMAT_VERSION - 1)} <= set(READERS)
    assert make_trace(1).format_version == FORMAT_VERSION


@pytest.mark.parametrize('golden', GOLDENS, ids=lambda path: path.name)
def test_everything_in_it_is_read(golden):
    workdir = Workdir(golden)
    traces = list(workdir.traces())
    assert storage.digest(storage.hashes(golden)).startswith(DIGEST)
    first = next(trace for trace in traces if trace.request_id == 'gsm8k/test/1/0/poe')
    assert first.text == 'Because 0. 1 ✓'
    assert first.statistics == {'kl': [0.0, 0.25, 1e-9], 'intervened': [False, True, False]}
    assert (first.defence['gamma'], first.customer, first.policy) == (0.3, 'acme', 'p1')
    assert workdir.rejected() == {'gsm8k/test/3/0/plain': 'it has 900 tokens and 320 fit'}
    assert [one['sample'] for one in workdir.selection('long')] == [1, 1]
    said = list(rewrites_io.rewritten(workdir, 'said'))
    assert [trace.text for trace in said] == ['Because 0. 1 ✓', 'So. 1', 'Because 0. 2 ✓', 'So. 2']
    state = watch.status(golden)
    assert (state['done'], state['rejected'], state['total'], state['running']) == (8, 1, 9, 0)
    assert [line.split(': ', 1)[1] for line in environments.changes(workdir)] == ['jax: 0.10.2 -> 0.11.0']
    assert workdir.forgotten() == set()


@pytest.mark.parametrize('golden', GOLDENS, ids=lambda path: path.name)
def test_it_is_continued_released_and_cleaned(golden, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(golden, path)
    stored = Workdir(path).experiment
    with Workdir.open(path, stored['experiment'], stored['experiment_hash']) as workdir:
        workdir.append([make_trace(9)])
    assert len(Workdir(path).finished()) == 9
    assert (export.export(path, 'chat', 'long', 'cc-by-4.0', 'public') / 'traces.jsonl').exists()
    forgetting.forget(path, 'gsm8k/test/1')
    assert len(Workdir(path).finished()) == 5


@pytest.mark.parametrize('version', [0, 2, '1', True, None, 1.0])
def test_another_format_is_refused_by_name(tmp_path, version):
    path = tmp_path / 'run'
    shutil.copytree(GOLDENS[0], path)
    (file,) = (path / 'private' / 'journal').iterdir()
    file.write_text(file.read_text().replace('"format_version":1', f'"format_version":{journal.json.dumps(version)}'))
    with pytest.raises(WorkdirError, match='this adx reads 1; use the adx that wrote it'):
        list(Workdir(path).traces())


def test_an_older_record_goes_through_its_reader(monkeypatch):
    """As it will once there are two formats."""
    old = {'format_version': 0, 'id': 'a'}
    reader = lambda record: {'format_version': 1, 'request_id': record['id']}  # noqa: E731
    monkeypatch.setitem(journal.READERS, 0, reader)
    assert journal.upgrade(old) == {'format_version': 1, 'request_id': 'a'}


def beside(private, content, versioned):
    """The six files that hold one thing each, with that in them: as they are written, or as they were without a format.

    Yields name of the file, its path, and what it is read by.
    """
    for name, path, word, read in (
        ('quality', private / 'quality' / '0' / 'plain.json', 'quality', lambda path: assessing._read(path)),
        ('costs', private / 'quality' / 'costs' / '0.json', 'seconds', lambda path: assessing._read_costs(path, ['a'])),
        ('transfer', private / 'report' / 'transfer.json', 'cells', lambda path: transfer.read(path.parents[2])),
        ('readings', private / 'readings.json', 'readings', lambda path: readings.readings(path.parents[1])),
        ('frozen', private / 'frozen.json', 'frozen', lambda path: readings._load(path, dict)),
        ('search', private / 'evolved' / 'state.json', 'search', lambda path: instructions.State(
            Workdir(path.parents[2]), {'experiment': 'a'}).content),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        bare = json.dumps(content[name]).encode()
        path.write_bytes(journal.content_to_json(word, content[name]) if versioned else bare)
        yield name, epath.Path(path), read


def contents():
    numbers = dict.fromkeys(
        ('tokens', 'reasoning_tokens', 'finished', 'repetition', 'true_steps', 'unparsed', 'several', 'first_differs',
         'nll'), 0.5,
    )  # fmt: skip
    quality = Quality('plain', 0, 'p', (True,), (True,), (False,), {'difficulty': ('3',)}, **numbers)
    cell = transfer.Cell('a', 'p', 'm', Interval(0.5, 0.1, 0.9), 20)
    search = {'about': {'experiment': 'a'}, 'scored': [], 'proposed': {'1': ['Say it.']}}
    return {
        'quality': dataclasses.asdict(quality), 'costs': {'a': 0.25}, 'transfer': [dataclasses.asdict(cell)],
        'readings': [{'experiment': 'a', 'arm': 'b', 'time': 'c'}], 'frozen': {'a': 'then'},
        'search': search,  # as it was once written
    }, {'quality': quality, 'transfer': [cell], 'search': search | {'rewritten': {}, 'levels': {}}}  # fmt: skip


@pytest.mark.parametrize('versioned', [True, False])
def test_what_stages_write_of_themselves_is_read_with_a_format_and_without(tmp_path, versioned):
    content, read_as = contents()
    for name, path, read in beside(tmp_path / 'private', content, versioned):
        assert read(path) == read_as.get(name, content[name]), name


def test_what_stages_write_of_themselves_in_another_format_is_refused_by_name(tmp_path):
    for _, path, read in beside(tmp_path / 'private', contents()[0], versioned=True):
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises((StorageError, WorkdirError), match='format_version is 2 and this adx reads 1; use the adx'):
            read(path)


def test_checkpoints_of_another_format_are_refused_by_name(tmp_path):
    run, count_N = training_io.Run(epath.Path(tmp_path), {'a': 1}), jnp.ones(1, jnp.int32)
    counts = (count_N,) * 3
    state = TrainState({'w': jnp.ones((1, 2))}, {}, {}, jnp.ones((), jnp.int32), jnp.ones(1), *counts)
    training_io.save(run, state)
    (path,) = tmp_path.glob(f'*/{training_io.MANIFEST}')
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(WorkdirError, match='format_version is 2 and this adx reads 1; use the adx'):
        training_io.restore(run, state)
