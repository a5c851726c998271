"""A store that fails: what is said to be saved is there, once; and the error after the last attempt says so."""

from __future__ import annotations

import asyncio
import json
import time
import types

import pytest
from etils import epath
from fsspec.core import url_to_fs
from gcs_fake import LOST, Fault, serve
from storage_test import make_trace, open_workdir

from adx import files, locks, retries, watch
from adx.datasets import Jsonl, builder
from adx.errors import StorageError, WorkdirError
from adx.storage import Workdir

PATH = 'gs://bucket/run'
JOURNAL = epath.Path(PATH) / 'private' / 'journal'


@pytest.fixture
def store(monkeypatch):
    """Nobody waits long, neither gcsfs nor we; a request may take a second."""
    with serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)
        files.configure_stores()
        from gcsfs import retry

        short = types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(min(seconds, 0.01)))
        monkeypatch.setattr(retry, 'asyncio', short)
        monkeypatch.setattr(retries, 'FIRST_WAIT', 0.01)
        JOURNAL.exists()  # makes the clients
        for fs in type(url_to_fs(PATH)[0])._cache.values():
            monkeypatch.setattr(fs, 'requests_timeout', 1.0)
        yield fake


def ids(*rows: int) -> list[str]:
    return sorted(make_trace(row).request_id for row in rows)


def saved() -> list[str]:
    """The request ids of all records in all journals; one that is there twice twice."""
    return sorted(record['request_id'] for _, record in Workdir(PATH)._traces())


@pytest.mark.parametrize('what', [429, 503, LOST, 1.5])
@pytest.mark.parametrize('part', ['/journal/', '/heartbeat/', '.lock', 'experiment.json', 'prefix='])
def test_one_failure_anywhere_loses_nothing(store, what, part):
    methods = {'prefix=': ['GET'], '.lock': ['POST', 'PATCH', 'DELETE']}
    store.faults = [Fault(method, part, what) for method in methods.get(part, ['POST'])]
    with open_workdir(PATH) as workdir:
        workdir.append([make_trace(0)])
        workdir.heartbeat({'totals': {'plain': 3}})
        workdir.append([make_trace(1), make_trace(2)])
    assert saved() == ids(0, 1, 2)
    assert not store.names('.lock')
    assert watch.status(PATH)['total'] == 3
    assert not any(fault.times for fault in store.faults)


@pytest.mark.parametrize('what', [503, LOST])
def test_the_error_after_the_last_attempt_says_what_is_safe(store, what):
    with open_workdir(PATH) as workdir:
        workdir.append([make_trace(0)])
        store.faults = [Fault('POST', '/journal/', what, times=10**6)]
        with pytest.raises(StorageError, match=r'not saved, all appended before are safe.*4 attempts') as error:
            workdir.append([make_trace(1)])
        assert error.value.exit_code == 74
        assert 10**6 - store.faults[0].times == retries.ATTEMPTS * 6
        store.faults = []
        workdir.append([make_trace(1)])
    # Each object is whole, and the one that was stored without a reply was written again, not beside itself.
    assert saved() == ids(0, 1)


def test_reading_and_heartbeats_fail_with_the_same_code(store):
    with open_workdir(PATH) as workdir:
        workdir.append([make_trace(0)])
        store.faults = [Fault('PATCH', '.lock', 503, times=10**6), Fault('GET', '/journal/', 503, times=10**6)]
        with pytest.raises(StorageError, match='finished traces are safe'):
            workdir.heartbeat({})
        with pytest.raises(StorageError, match='what was saved in it is safe'):
            workdir.finished()
        store.faults = []


def test_a_store_that_is_down_at_the_start_is_worth_a_retry(store):
    store.faults = [Fault('', '', 503, times=10**6)]
    with pytest.raises(StorageError, match='cannot be written'), open_workdir(PATH):
        pass


@pytest.mark.parametrize('what', [401, 403, 404])
def test_what_no_retry_mends_is_said_at_once(store, what):
    store.faults = [Fault('POST', 'experiment', what, times=10**6)]
    with pytest.raises(WorkdirError, match='cannot be written'), open_workdir(PATH):
        pass
    assert 10**6 - store.faults[0].times == 1


def test_attempts_end_after_a_while(store, monkeypatch):
    monkeypatch.setattr(retries, 'ATTEMPT_SECONDS', 0.0)
    store.faults = [Fault('POST', '', 503, times=10**6)]
    with pytest.raises(OSError, match='1 attempts'):
        files.upload(epath.Path(PATH) / 'x', b'data')


def test_no_page_of_a_listing_is_left_out(store):
    with open_workdir(PATH) as workdir:
        workdir.append([make_trace(0)])
    ((resource, data),) = [store.objects[name] for name in store.names('/journal/')]
    for row in range(1, 1200):
        name = f'run/private/journal/0-of-1.x.{row:06d}.jsonl'
        store.objects[name] = (resource | {'name': name}, data.replace(b'test/0/0', b'test/%d/0' % row))
    assert len(files.list_files(JOURNAL, '.jsonl')) == 1200
    assert len([request for request in store.requests if 'pageToken' in request]) == 1
    for name in store.names('/journal/')[100:]:
        del store.objects[name]
    store.page, before = 7, len(store.requests)
    assert len(saved()) == len(set(saved())) == 100
    assert len([request for request in store.requests[before:] if 'pageToken' in request]) == 2 * 14


def test_many_small_objects_are_read_side_by_side(store):
    with open_workdir(PATH) as workdir:
        for row in range(64):
            workdir.append([make_trace(row)])
    store.delay = 0.2
    began = time.monotonic()
    assert saved() == ids(*range(64))
    assert time.monotonic() - began < 0.5 * 64 * store.delay


def test_another_process_is_seen(store):
    """gcsfs would show the listing that it read first."""
    with open_workdir(PATH, shard=0, num_shards=2) as one, open_workdir(PATH, shard=1, num_shards=2) as two:
        one.append([make_trace(0)])
        assert two.finished() == set(ids(0))
        resource, data = store.objects[store.names('/journal/')[0]]
        name = 'run/private/journal/9-of-9.jsonl'
        store.objects[name] = (resource | {'name': name}, data.replace(b'test/0/0', b'test/7/0'))
        assert two.finished() == set(ids(0, 7))


def test_two_layouts_at_once_are_refused(store, monkeypatch):
    monkeypatch.setattr(locks, 'POLL_SECONDS', 0.05)
    monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.1)
    with open_workdir(PATH, num_shards=2):
        with pytest.raises(WorkdirError, match=r'shard 0-of-2 \(not of 1\), is in use'), open_workdir(PATH):
            pass
        assert store.names('.lock') == ['run/private/locks/0-of-2.lock']


def test_the_first_experiment_keeps_the_workdir(store):
    with open_workdir(PATH):
        pass
    with pytest.raises(WorkdirError, match='belongs to another experiment'), open_workdir(PATH, {'seed': 2}, 'other'):
        pass
    assert json.loads(store.objects['run/private/experiment.json'][1])['experiment_hash'] == 'hash'


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """Containers on a shared disk have the same pids."""
    place, others = epath.Path(tmp_path / 'file'), [b'second']

    def write_all(fd, data, write_all=files.write_all):
        if others:
            files.write_private(place, others.pop())
        write_all(fd, data)

    monkeypatch.setattr(files, 'write_all', write_all)
    files.write_private(place, b'first')
    assert place.read_bytes() == b'first'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('path', ['gs://bucket/rows.jsonl', 'gs://bucket/data'])
def test_data_on_a_store_that_fails_for_a_while_is_read(store, tmp_path, path):
    """gcsfs gives a request up after six times."""
    rows = tmp_path / 'rows.jsonl'
    rows.write_text('\n'.join(json.dumps({'question': f'q{i}', 'answer': '5', 'id': f'{i}'}) for i in range(3)))
    files.upload(files.path_of('gs://bucket/rows.jsonl'), rows.read_bytes())
    built = builder.build(Jsonl(str(rows)), str(tmp_path / 'built'))
    files.upload_directory(files.path_of(built), files.path_of('gs://bucket/data'), last='dataset_info.json')
    store.faults = [Fault('GET', part, 503, times=8) for part in ('rows.jsonl', 'array_record')]
    ours, theirs = (Jsonl(where).source().pool.rows for where in (str(rows), path))
    assert set(ours) == set(theirs)
    store.faults = [Fault('GET', '', 503, times=10**6)]
    with pytest.raises(StorageError, match='run the same command again'):
        Jsonl(path).source()
