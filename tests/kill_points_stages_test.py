"""Kills at every write of the later stages: releases, selections, retention, environments, cases, searches and
directions. The same command again ends with what an uninterrupted run has.

Models are played by stand-ins, since JAX does not outlive a fork; a real Orbax saver is in kill_points_orbax_test.py.

What stays outside: what C++ writes into export.new (Parquet, ArrayRecord) and into Orbax's unfinished directory on a
disk, since a folder that is renamed once it is whole is the same at every byte before that; a lost machine, where what
was not fsynced is gone; models that are written for users (save_hf, save_orbax: a directory under another name, or a
manifest last), the copies of staging (a folder that is renamed) and the pages of tools (show_traces, blind_review),
which are made again from what is kept; the matrix of transfer and the attributions of several cases, which are one
write_private each, as all of them here.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import types

import numpy as np
import pytest
from detecting_test import CASE, KEY, SIGNER, Parrot
from etils import epath
from forgetting_test import SECRET, holding, make
from kill_points import AFTER, BEFORE, HALF, everywhere, said, say
from kill_points_test import bucket  # noqa: F401  (a fixture)
from storage_test import make_trace, open_workdir

from adx import (
    detecting,
    directions,
    environments,
    evolving,
    files,
    instructions,
    orbax_io,
    retention,
    selecting,
    storage,
    verdicts,
)
from adx import experiment as experiments
from adx.aggregation import Aggregation
from adx.evolving import Evolution
from adx.export import CARD, export
from adx.journal import read_records
from adx.selection import Selection
from adx.storage import Workdir

EVERY = (BEFORE, HALF, AFTER)


def contents(path: epath.PathLike) -> dict[str, bytes]:
    """Name -> bytes of every file under a directory."""
    root, found = epath.Path(path), {}
    left = [root] if root.exists() else []
    while left:
        for one in left.pop().iterdir():
            if one.is_dir():
                left.append(one)
            else:
                found[str(one).removeprefix(f'{root}/')] = one.read_bytes()
    return found


def copied(source: pathlib.Path):
    return lambda place: shutil.copytree(source, place / 'run')


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A workdir with a release of one arm, and what it was and what that of another is to be, by format."""
    root = tmp_path_factory.mktemp('released')
    make(root / 'whole')
    before = contents(export(root / 'whole', 'chat', 'plain', 'cc-by-4.0'))
    return root / 'whole', before


def released_as(source: pathlib.Path, root: pathlib.Path, out_format: str) -> dict[str, bytes]:
    shutil.copytree(source, root / 'expected')
    return contents(export(root / 'expected', out_format, 'poe', 'cc0-1.0'))


@pytest.mark.parametrize('out_format', [
    'chat', pytest.param('parquet', marks=pytest.mark.slow), pytest.param('tfds', marks=pytest.mark.slow),
])  # fmt: skip
def test_a_release_in_place_of_another(tmp_path, released, out_format):
    source, before = released
    after = released_as(source, tmp_path, out_format)

    def between(place):
        """A whole one, or none."""
        assert contents(place / 'run' / 'release') in ({}, before, after)

    def check(place):
        assert contents(place / 'run' / 'release') == after
        assert json.loads((place / 'run' / 'private' / 'export.json').read_text())['recipe']['setting'] == 'poe'
        assert not any((place / 'run' / 'private' / name).exists() for name in ('export.new', 'export.old'))

    run = lambda place: export(place / 'run', out_format, 'poe', 'cc0-1.0')  # noqa: E731
    assert everywhere(tmp_path, run, check, EVERY, copied(source), between) > 20


def test_a_release_in_an_object_store(tmp_path, released, bucket):  # noqa: F811
    source, before = released
    after = released_as(source, tmp_path, 'chat')

    def prepare(place):
        shutil.copytree(source, place / 'bucket' / 'run')

    def between(place):
        found = contents(f'{bucket(place)}/release')
        assert CARD not in found or found in (before, after)  # a release without its card is incomplete

    def check(place):
        assert contents(f'{bucket(place)}/release') == after

    run = lambda place: export(bucket(place), 'chat', 'poe', 'cc0-1.0')  # noqa: E731
    assert everywhere(tmp_path, run, check, (BEFORE, AFTER), prepare, between) > 5


SAMPLES = 2
SELECTIONS = (Selection('longest', 'plain', 'max_length'), Selection('hardest', 'plain', 'max_nll'))


@pytest.mark.slow  # half a minute
def test_selections(tmp_path, monkeypatch):
    base = types.SimpleNamespace(
        selections=SELECTIONS, samples=SAMPLES, seed=0, prompting=None,
        dataset=types.SimpleNamespace(grade=lambda text, gold: True),
    )  # fmt: skip
    for target, name, value in (
        (experiments, 'check', lambda experiment: None), (experiments, 'experiment_hash', lambda experiment: 'hash'),
        (selecting.loading, 'blueprint', lambda experiment: types.SimpleNamespace(tokenizer=None)),
        (selecting, '_scorer_hash', lambda *given: 'by'), (selecting, 'ROWS', 2), (selecting, 'jnp', np),
        (selecting, '_scorer', lambda *given: lambda batch: np.array(batch.tokens_BL[None, :, -1], float)),
        (selecting, 'encode_prompt', lambda *given: (1, 2)), (Aggregation, '__call__', lambda self, x: x.mean(0)),
    ):  # fmt: skip
        monkeypatch.setattr(target, name, value)
    with open_workdir(tmp_path / 'whole', {'samples': SAMPLES}) as workdir:
        ids = [f'gsm8k/test/{row}/{sample}/plain' for row in range(3) for sample in range(SAMPLES)]
        workdir.append([make_trace(i, request_id=id_, tokens=(1,) * (i + 1)) for i, id_ in enumerate(ids)])
        workdir.heartbeat({'totals': {'plain': len(ids)}})
    shutil.copytree(tmp_path / 'whole', tmp_path / 'expected')
    selecting.select(base, str(tmp_path / 'expected'))
    expected = contents(tmp_path / 'expected' / 'private' / 'selections')
    assert set(expected) == {'longest.jsonl', 'hardest.jsonl'}

    def between(place):
        """What is there is whole: those who read selections take it as it is."""
        found = contents(place / 'run' / 'private' / 'selections')
        assert all(data == expected[name] for name, data in found.items() if not name.endswith(files.TEMPORARY))

    def check(place):
        between(place)
        workdir = Workdir(place / 'run')
        assert sorted(workdir.selections()) == ['hardest', 'longest']
        assert [one['request_id'] for _, one in read_records(workdir.private / 'scores' / 'nll')] == ids

    run = lambda place: selecting.select(base, str(place / 'run'))  # noqa: E731
    assert everywhere(tmp_path, run, check, EVERY, copied(tmp_path / 'whole'), between) > 20


@pytest.mark.slow  # half a minute
def test_retention(tmp_path, released, monkeypatch):
    source, before = released
    monkeypatch.setattr(retention, 'DAY', 1e-6)

    def check(place):
        private = place / 'run' / 'private'
        assert holding(private, 'gsm8k/test/', SECRET) == []
        assert json.loads((private / 'expired.json').read_text())['traces'] == 12
        assert (private / 'experiment.json').exists()
        assert contents(place / 'run' / 'release') == before

    run = lambda place: retention.expire(place / 'run', 1)  # noqa: E731
    assert everywhere(tmp_path, run, check, EVERY, copied(source)) > 15


def test_environments(tmp_path):
    first, second = ({'adx': version, 'device': 'cpu'} for version in '12')

    def prepare(place):
        with open_workdir(place / 'run'):
            pass

    def run(place):
        workdir = Workdir(place / 'run')
        if not environments.read(workdir):
            environments.enter(workdir, '0-of-1', first, False)
        environments.enter(workdir, '0-of-1', second, True)

    def check(place):
        [(owner, records)] = environments.read(Workdir(place / 'run')).items()
        assert owner == '0-of-1'
        assert [record['environment'] for record in records] == [first, second]
        assert [record['changed'] for record in records] == [[], ['adx: 1 -> 2']]

    assert everywhere(tmp_path, run, check, EVERY, prepare) > 5


@pytest.mark.slow  # half a minute
def test_a_case(tmp_path):
    """Committed to, asked and judged; what was asked once is not journaled twice, and no verdict is lost."""
    case = dataclasses.replace(CASE, test=dataclasses.replace(CASE.test, pairs=2, decoys=10, level=0.1, repeats=1))

    def run(place):
        path = place / 'case'
        if not (path / 'plan.json').exists():
            detecting.commit(case, path, KEY)
        detecting.ask(path, Parrot(KEY))
        signed = detecting.verdict(path, KEY, SIGNER)
        say(place, [signed['signature']])

    def check(place):
        issued = verdicts.read(place / 'case')
        assert said(place) <= {one['signature'] for one in issued}  # one that nobody was shown may be there too
        assert [one['verdict']['issued_before'] for one in issued] == list(range(len(issued)))
        for one in issued:
            assert verdicts.is_signed(one, one['public_key'])
            assert one['verdict']['asked'] == 22
            assert not one['verdict']['exploratory']
        numbers = [record['request_id'] for _, record in read_records(epath.Path(place / 'case' / 'answers'))]
        assert sorted(map(int, numbers)) == list(range(22))

    assert everywhere(tmp_path, run, check, EVERY) > 20


@pytest.mark.slow  # half a minute
def test_a_search_for_instructions(tmp_path):
    plan = Evolution('plain', start=('paraphrase', 'formalise'), rounds=2, proposals=2)

    def run(place):
        workdir = Workdir(place)
        with storage.held(workdir, 'evolve', ['locks', 'evolved']):
            state = instructions.State(workdir, {'a': 1})
            judge = lambda instruction: (float(len(instruction)), {})  # noqa: E731
            evolving._search(state, judge, plan, evolving.mutate, lambda *told: None)

    run(tmp_path / 'expected')
    expected = (tmp_path / 'expected' / 'private' / 'evolved' / 'state.json').read_bytes()

    def check(place):
        assert (place / 'private' / 'evolved' / 'state.json').read_bytes() == expected
        assert len(json.loads(expected)['search']['scored']) == 6

    assert everywhere(tmp_path, run, check, EVERY) > 20


@pytest.mark.slow  # half a minute
def test_directions(tmp_path, monkeypatch):
    """Arrays as Orbax leaves them: under another name until they are whole."""

    def write_arrays(directory, params):
        half = directory / 'params.half'
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        for name in params:
            files.write_private(half / name, name.encode())
        shutil.rmtree(directory / 'params', ignore_errors=True)
        (half).rename(directory / 'params')

    monkeypatch.setattr(orbax_io, 'write_arrays', write_arrays)
    taken = [types.SimpleNamespace(tokens=1, loss=1.0, deviation=1.0, norms={'a': 1.0})]
    found = directions.Directions({'a': 0, 'b': 1}, (1.0,), 'hash')

    def run(place):
        for i in range(2):
            where, identity = directions.place(place, i), {'proxy': str(i)}
            if directions.known(where, identity) is None:
                directions.save(where, found, taken, identity, True)

    def between(place):
        """What is taken for directions has all its arrays."""
        for i in range(2):
            where = directions.place(place, i)
            if directions.known(where, {'proxy': str(i)}) is not None:
                assert contents(where / 'params') == {'a': b'a', 'b': b'b'}

    def check(place):
        between(place)
        assert all(directions.known(directions.place(place, i), {'proxy': str(i)}) for i in range(2))

    assert everywhere(tmp_path, run, check, EVERY, between=between) > 20
