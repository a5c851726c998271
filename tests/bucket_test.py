"""A workdir on an object store: one object a flush, leases in the place of locks, uploads that are retried."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import fsspec
import pytest
from etils.epath import backend
from storage_test import make_trace, open_workdir

from adx import files, locks, retries, watch
from adx.errors import WorkdirError
from adx.storage import Workdir


@pytest.fixture
def bucket(monkeypatch):
    """s3:// paths that lead to fsspec's memory: real epath and fsspec code, no network. For gs:// see gcs_test."""
    memory = fsspec.filesystem('memory')
    monkeypatch.setattr(backend._FileSystemSpecBackend, 'fs', lambda self, path: memory)
    yield 's3://bucket/run'
    memory.store.clear()


class TestObjectStore:
    def test_one_object_per_flush(self, bucket):
        with open_workdir(bucket) as workdir:
            workdir.append([make_trace(0), make_trace(1)])
            workdir.append([make_trace(2)])
            workdir.heartbeat({'totals': {'plain': 5}})
            assert watch.status(bucket)['running'] == 1
        assert len(files.list_files(Workdir(bucket).private / 'journal', '.jsonl')) == 2
        with open_workdir(bucket, num_shards=2) as workdir:
            assert workdir.finished() == {make_trace(row).request_id for row in range(3)}
        assert watch.status(bucket)['total'] == 5

    def test_a_lease_is_held_refreshed_and_abandoned(self, bucket, monkeypatch):
        path = Workdir(bucket).private / 'locks' / '0-of-1.lock'
        foreign = {'host': 'far', 'pid': 7, 'since': 'then', 'token': 'x', 'time': time.time()}
        path.write_text(json.dumps(foreign))
        with pytest.raises(WorkdirError, match='pid 7 on host far since then'), open_workdir(bucket):
            pass
        later = time.time() + locks.WEAK_LEASE_SECONDS + 1
        monkeypatch.setattr(time, 'time', lambda: later)
        with open_workdir(bucket) as workdir:
            assert json.loads(path.read_text())['time'] == later
            path.write_text(json.dumps(foreign | {'time': later}))
            with pytest.raises(WorkdirError, match='host far'):
                workdir.heartbeat({})
        assert json.loads(path.read_text())['host'] == 'far'  # not ours to release

    def test_a_lease_from_a_clock_far_ahead_is_abandoned(self, bucket):
        path = Workdir(bucket).private / 'locks' / '0-of-1.lock'
        path.write_text(json.dumps({'host': 'far', 'pid': 7, 'token': 'x', 'time': time.time() + 10.0**6}))
        with open_workdir(bucket):
            pass

    def test_the_lease_of_a_dead_local_process_is_free(self, bucket):
        child = subprocess.Popen([sys.executable, '-c', ''])
        child.wait()
        path = Workdir(bucket).private / 'locks' / '0-of-1.lock'
        path.write_text(json.dumps(locks._holder() | {'pid': child.pid, 'time': time.time()}))
        with open_workdir(bucket):
            pass
        assert not path.exists()

    def test_an_upload_is_retried_then_refused(self, bucket):
        class Flaky:
            def __init__(self, failures):
                self.failures, self.data = failures, None

            def __fspath__(self):
                return 's3://bucket/object'

            def write_bytes(self, data):
                self.data = data  # stored, but the reply is lost
                self.failures -= 1
                if self.failures >= 0:
                    raise RuntimeError('503')

        waits: list[float] = []
        flaky = Flaky(retries.ATTEMPTS - 1)
        files.upload(flaky, b'data', waits.append)
        assert flaky.data == b'data'
        assert [0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits)] == [True] * 3
        with pytest.raises(OSError, match=r'503 \(after 4 attempts\)'):
            files.upload(Flaky(retries.ATTEMPTS), b'data', waits.append)
