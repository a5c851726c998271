"""A forgotten request is gone from every file, also after a kill, and nothing else is."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading

import pytest
from absl import flags
from absl.testing import flagsaver
from gcs_fake import serve

from adx import export, files, forgetting, instructions, locks, outcomes_io, storage
from adx.errors import ConfigError, InputError, WorkdirError
from adx.journal import FORMAT_VERSION
from adx.storage import Workdir
from adx.types import RequestId
from tests.export_test import read_chat, read_parquet, read_tfds
from tests.storage_test import make_trace, open_workdir
from tools import forget as program

GONE, SECRET = 'gsm8k/test/1', 'Question 1?'
READERS = {'chat': read_chat, 'parquet': read_parquet, 'tfds': read_tfds}
EXPERIMENT = {'samples': 2, 'split': 'test', 'dataset': {'type': 'jsonl', 'path': 'data/asked.jsonl'}}


def trace(row: int, sample: int, setting: str):
    one = make_trace(row, setting)
    return dataclasses.replace(one, request_id=str(RequestId.parse(one.request_id)._replace(sample=sample)))


def write(place: pathlib.Path, *records: dict) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(''.join(json.dumps({'format_version': FORMAT_VERSION} | one) + '\n' for one in records))


def make(path: pathlib.Path) -> Workdir:
    """Rows 1, 2 and 11 under two arms, two samples each; scores, a selection and a rewrite of them."""
    rows = (1, 2, 11)
    with open_workdir(path, EXPERIMENT) as workdir:
        workdir.append([trace(row, sample, arm) for row in rows for sample in (0, 1) for arm in ('plain', 'poe')])
        workdir.reject('gsm8k/test/1/0/other', f'too long: {SECRET}')
        workdir.heartbeat({'totals': {'plain': 6, 'poe': 6}})
    ids = [trace(row, 0, 'plain').request_id for row in rows]
    private = path / 'private'
    write(private / 'scores' / 'nll' / 'select.a.jsonl', *({'request_id': id_, 'scores': [1.0]} for id_ in ids))
    write(private / 'selections' / 'short.jsonl', *(
        {'prompt': id_.rsplit('/', 2)[0], 'request_id': id_, 'sample': 0, 'how': 'max_length', 'candidates': []}
        for id_ in ids
    ))  # fmt: skip
    (private / 'rewrites' / 'said').mkdir(parents=True)
    (private / 'rewrites' / 'said' / 'identity.json').write_text(json.dumps({'rewrite': {'of': 'plain'}}))
    refused = {'accepted': None, 'refusals': []}
    write(private / 'rewrites' / 'said' / 'rewrite.a.jsonl', *(
        {'request_id': id_, 'text': f'Of question {row}?'} | refused for id_, row in zip(ids, rows, strict=True)
    ))  # fmt: skip
    return Workdir(path)


def holding(path: pathlib.Path, *words: str) -> list[str]:
    """The files under a directory that hold any of the words."""
    found = [pathlib.Path(root) / name for root, _, names in os.walk(path) for name in names]
    return sorted(str(one.relative_to(path)) for one in found if any(word in one.read_text() for word in words))


def test_a_search_on_its_way_forgets_what_it_has_rewritten_and_its_scores_stay(tmp_path):
    workdir = make(tmp_path)
    (tmp_path / 'private' / 'evolved' / 'training' / 'tried').mkdir(parents=True)
    state = instructions.State(workdir, {'of': 'plain'})
    state.add('Say it so.', 0, 0.5, {})
    state.append('Say it slowly.', [{'request_id': f'{GONE}/0/plain', 'text': SECRET, 'refusals': []}])
    assert state.level('clean 0', lambda: 1.5) == 1.5
    assert 'private/evolved/state.json' in holding(tmp_path, SECRET)
    found = forgetting.forget(tmp_path, GONE)
    assert holding(tmp_path, GONE + '/', SECRET) == []
    assert not (tmp_path / 'private' / 'evolved' / 'training').exists()
    assert sum('evolved' in line for line in found.removed) == 2
    after = instructions.State(workdir, {'of': 'plain'})
    assert (after.scores, after.rewritten('Say it slowly.')) == ({'Say it so.': 0.5}, [])
    assert after.level('clean 0', lambda: 2.5) == 2.5


def test_all_samples_and_settings_go_and_others_stay(tmp_path):
    workdir = make(tmp_path)
    assert holding(tmp_path, GONE + '/', SECRET)
    found = forgetting.forget(tmp_path, f'{GONE}/0/plain')  # the rest of a longer id is left out
    assert holding(tmp_path, GONE + '/', SECRET) == []
    assert {RequestId.parse(id_).row for id_ in workdir.finished()} == {'2', '11'}
    assert len(workdir.finished()) == 8
    assert workdir.totals() == {'plain': 4, 'poe': 4}
    assert [one['prompt'] for one in workdir.selection('short')] == ['gsm8k/test/2', 'gsm8k/test/11']
    assert any('journal: 4 records' in line for line in found.removed)
    assert any('data/asked.jsonl' in line for line in found.left)
    assert any('backups' in line for line in found.left)
    assert (tmp_path / 'private' / 'forgotten.json').read_text().count(hashlib.sha256(GONE.encode()).hexdigest()) == 1
    is_forgotten = forgetting.is_forgotten(workdir)
    assert is_forgotten(f'{GONE}/1/poe')
    assert not is_forgotten('gsm8k/test/11/0/plain')
    again = forgetting.forget(tmp_path, GONE)
    assert again.removed == []


@pytest.mark.parametrize('out_format', ['chat', 'parquet', 'tfds'])
def test_the_release_is_written_again_without_it(tmp_path, out_format):
    make(tmp_path)
    export.export(tmp_path, out_format, 'plain', 'cc-by-4.0')

    def released() -> set[str]:
        return {row['id'] for row in READERS[out_format](tmp_path / 'release')}

    assert f'{GONE}/0' in released()
    found = forgetting.forget(tmp_path, GONE)
    assert released() == {f'gsm8k/test/{row}/{sample}' for row in (2, 11) for sample in (0, 1)}
    assert any('written again' in line for line in found.removed)


@pytest.mark.parametrize('damage', ['{}', 'nonsense', '{"recipe": {"setting": "gone"}}'])
def test_a_release_that_cannot_be_written_again_is_withdrawn(tmp_path, damage):
    make(tmp_path)
    export.export(tmp_path, 'chat', 'plain', 'cc-by-4.0')
    (tmp_path / 'private' / 'export.json').write_text(damage)
    found = forgetting.forget(tmp_path, GONE)
    assert not (tmp_path / 'release').exists()
    assert any('python -m tools.export_traces' in line for line in found.removed)


def test_killed_anywhere_it_goes_on(tmp_path, monkeypatch):
    """Every replacement of a file fails once, with what was done before it left in place."""
    make(tmp_path)
    replace, left = os.replace, [0]

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, 'replace', failing)
    for allowed in range(20):
        left[0] = allowed
        try:
            forgetting.forget(tmp_path, GONE)
            break
        except KeyboardInterrupt:
            assert Workdir(tmp_path).forgotten() or not allowed
    assert 3 < allowed < 20
    assert holding(tmp_path, GONE + '/', SECRET) == []
    assert len(Workdir(tmp_path).finished()) == 8


def test_seeds_and_holdout_traces_inside_a_study_are_cleaned_and_its_report_goes(tmp_path):
    seeds = tmp_path / 'private' / 'seeds'
    first, second = make(seeds / '0'), make(seeds / '1')
    holdout = make(seeds / '0' / 'private' / 'holdout')
    (seeds / '0' / 'private' / 'directions').mkdir()
    report = tmp_path / 'private' / 'report' / 'report.html'
    report.parent.mkdir()
    report.write_text(SECRET)
    (report.parent / 'audit.json').write_text(SECRET)
    quality = tmp_path / 'private' / 'quality' / '0' / 'plain.json'
    quality.parent.mkdir(parents=True)
    quality.write_text('{}')
    write(tmp_path / 'private' / 'outcomes' / 'distil.a.jsonl', {'request_id': '0/student/sft'})
    found = forgetting.forget(tmp_path, GONE)
    assert holding(tmp_path, GONE + '/', SECRET) == []
    assert not report.exists()
    assert [len(one.finished()) for one in (first, second, holdout)] == [8, 8, 8]
    assert any('1 students are graded' in line for line in found.left)
    assert any('directions was taken on it' in line for line in found.left)
    assert any(f'{quality.parents[1]} has numbers of it' in line for line in found.left)


@pytest.mark.parametrize('id_', ['', 'gsm8k', 'gsm8k/test', 'gsm8k//1', '/test/1', 'gsm8k/test/7', '../../x'])
def test_an_id_that_names_nothing_removes_nothing(tmp_path, id_):
    workdir = make(tmp_path)
    with pytest.raises(InputError):
        forgetting.forget(tmp_path, id_)
    assert len(workdir.finished()) == 12
    assert not workdir.forgotten()


def test_a_workdir_at_work_is_refused_and_what_is_none_is_named(tmp_path):
    make(tmp_path / 'run')
    with open_workdir(tmp_path / 'run', EXPERIMENT), pytest.raises(WorkdirError, match='0-of-1'):
        forgetting.forget(tmp_path / 'run', GONE)
    with (
        storage.held(Workdir(tmp_path / 'run'), 'rewrite', ()),
        pytest.raises(WorkdirError, match='rewrite'),
    ):
        forgetting.forget(tmp_path / 'run', GONE)
    with pytest.raises(WorkdirError, match='is no workdir'):
        forgetting.forget(tmp_path / 'none', GONE)


def test_the_program_says_what_it_removed_and_what_stays(tmp_path, capsys):
    make(tmp_path)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=str(tmp_path), request_id=GONE):
        program.main()
    removed, left = capsys.readouterr().out.split('cannot be undone here:')
    assert 'journal: 4 records' in removed
    assert 'models trained on these traces' in left
    with flagsaver.flagsaver(workdir=str(tmp_path), retention_days=30.0):
        program.main()
    assert 'stays' in capsys.readouterr().out
    with flagsaver.flagsaver(workdir=str(tmp_path)), pytest.raises(ConfigError, match='either'):
        program.main()


def test_what_a_killed_writer_left_of_a_file_goes_too(tmp_path):
    make(tmp_path)
    for folder in ('journal', 'rejected', 'scores/nll', 'selections', 'rewrites/said', 'report'):
        place = tmp_path / 'private' / folder
        place.mkdir(exist_ok=True)
        (place / f'x.7{files.TEMPORARY}').write_text(SECRET)
    forgetting.forget(tmp_path, GONE)
    assert holding(tmp_path, GONE + '/', SECRET) == []


def test_students_wait_while_a_workdir_is_cleaned(tmp_path):
    make(tmp_path)
    begun = threading.Event()

    def begin():
        with outcomes_io.open_log(str(tmp_path), 'wide', ['sft'], contextlib.nullcontext):
            begun.set()

    with forgetting.alone([Workdir(tmp_path)]):
        thread = threading.Thread(target=begin)
        thread.start()
        assert not begun.wait(0.3)
    thread.join(30)
    assert begun.is_set()


RUN = 'gs://bucket/run'


@pytest.fixture
def store(monkeypatch):
    """A run on a store, of which no lock is left."""
    with serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)
        monkeypatch.setattr(locks, 'POLL_SECONDS', 0.05)
        monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.1)
        with open_workdir(RUN, EXPERIMENT) as workdir:
            workdir.append([trace(row, 0, 'plain') for row in (1, 2)])
        assert not fake.names('/locks/')
        yield fake


@contextlib.contextmanager
def beginning_before_it_is_written(monkeypatch, name: str):
    """A process of the run begins in the instant before the file is written."""
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:

        def write(path, data, write=files.write_private):
            if path.name == name:
                stack.enter_context(open_workdir(RUN, EXPERIMENT))
            write(path, data)

        patch.setattr(files, 'write_private', write)
        yield


def test_on_a_store_who_began_before_the_note_is_seen(store, monkeypatch):
    with (
        beginning_before_it_is_written(monkeypatch, storage.FORGOTTEN),
        pytest.raises(WorkdirError, match='0-of-1'),
    ):
        forgetting.forget(RUN, GONE)
    assert len(Workdir(RUN).finished()) == 2
    with forgetting.alone([Workdir(RUN)]):
        assert store.names('/locks/') == ['run/private/locks/setup']
    forgetting.forget(RUN, GONE)
    assert Workdir(RUN).finished() == {'gsm8k/test/2/0/plain'}
