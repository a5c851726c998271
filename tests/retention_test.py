"""Old runs lose their traces, unless somebody went on with them."""
# ruff: noqa: F811, fixtures come by their names

from __future__ import annotations

import contextlib
import json
import os

import pytest
from forgetting_test import EXPERIMENT, RUN, beginning_before_it_is_written, holding, make, store  # noqa: F401

from adx import export, forgetting, locks, retention, storage
from adx.errors import ConfigError, StorageError, WorkdirError
from adx.storage import Workdir
from tests.storage_test import open_workdir


def test_old_runs_lose_their_traces_and_are_not_continued(tmp_path, monkeypatch):
    workdir = make(tmp_path)
    export.export(tmp_path, 'chat', 'plain', 'cc-by-4.0')
    (line,) = retention.expire(tmp_path, 30)
    assert 'stays, it is 0.0 days old' in line
    assert len(workdir.finished()) == 12
    now = retention.time.time()
    monkeypatch.setattr(retention.time, 'time', lambda: now + 31 * retention.DAY)
    (line,) = retention.expire(tmp_path, 30)
    assert '12 traces' in line
    assert holding(tmp_path / 'private', 'Question', 'gsm8k/test/') == []
    assert (tmp_path / 'release').exists()
    record = json.loads((tmp_path / 'private' / 'expired.json').read_text())
    assert (record['traces'], record['retention_days']) == (12, 30)
    with pytest.raises(WorkdirError, match='removed by age'), open_workdir(tmp_path, EXPERIMENT):
        pass
    retention.expire(tmp_path, 30)
    assert json.loads((tmp_path / 'private' / 'expired.json').read_text()) == record


@pytest.mark.parametrize('days', [0, -1, float('nan'), float('inf')])
def test_days_that_are_none_remove_nothing(tmp_path, days):
    workdir = make(tmp_path)
    with pytest.raises(ConfigError, match='--retention_days'):
        retention.expire(tmp_path, days)
    assert len(workdir.finished()) == 12


def test_on_a_store_old_runs_go_unless_somebody_began(store, monkeypatch):
    monkeypatch.setattr(retention, 'DAY', 1e-6)
    with (
        beginning_before_it_is_written(monkeypatch, storage.EXPIRED),
        pytest.raises(WorkdirError, match='0-of-1'),
    ):
        retention.expire(RUN, 1)
    assert len(Workdir(RUN).finished()) == 2
    retention.expire(RUN, 1)
    assert not Workdir(RUN).finished()


def test_a_run_that_is_expired_while_its_lock_is_taken_is_not_begun(tmp_path, monkeypatch):
    make(tmp_path)

    def acquire(path, what, acquire=locks.acquire):
        (tmp_path / 'private' / storage.EXPIRED).write_text('{}')
        return acquire(path, what)

    monkeypatch.setattr(locks, 'acquire', acquire)
    with pytest.raises(WorkdirError, match='removed by age'), open_workdir(tmp_path, EXPERIMENT):
        pass


@pytest.mark.parametrize(
    'file', ['scores/nll/select.a.jsonl', 'selections/short.jsonl', 'rewrites/said/rewrite.a.jsonl', 'outcomes/a.jsonl']
)
def test_a_run_that_a_later_stage_went_on_with_stays(tmp_path, monkeypatch, file):
    make(tmp_path / 'private' / 'seeds' / '0')
    outcome = file.startswith('outcomes')
    place = (tmp_path if outcome else tmp_path / 'private' / 'seeds' / '0') / 'private' / file
    now = retention.time.time()
    monkeypatch.setattr(retention.time, 'time', lambda: now + 31 * retention.DAY)

    @contextlib.contextmanager
    def alone(workdirs, alone=forgetting.alone):
        with alone(workdirs):
            place.parent.mkdir(exist_ok=True)
            place.touch()
            os.utime(place, (now + 30 * retention.DAY,) * 2)  # written by who had it before
            yield

    monkeypatch.setattr(retention, 'alone', alone)
    (line,) = retention.expire(tmp_path, 30)
    assert 'stays, it is 1.0 days old' in line


def test_retention_on_storage_that_fails_is_one_line(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(locks, 'exclusive', lambda path: contextlib.closing(os.open(path / 'none', 0)))
    with pytest.raises(StorageError, match='was not cleaned'):
        retention.expire(tmp_path, 30)
