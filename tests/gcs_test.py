"""Locks on gs://: one of many takers, holders that are told, and no clock of ours is asked."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from etils import epath
from etils.epath import backend
from gcs_fake import LOST, Fault, serve

from adx import files, gcs, locks
from adx.errors import WorkdirError

PATH = epath.Path('gs://bucket/run/private/locks/0-of-1.lock')
NAME = 'run/private/locks/0-of-1.lock'


@pytest.fixture
def store(monkeypatch):
    with serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)
        monkeypatch.setattr(locks, 'POLL_SECONDS', 0.05)
        monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.2)
        yield fake


@pytest.fixture
def dead(monkeypatch, store):
    """A lease whose holder lives nowhere near and never refreshes it."""
    lease = locks.acquire(PATH, 'it')
    lease._renewal.close()
    resource, _ = store.objects[NAME]
    resource['metadata'] |= {'space': 'far', 'host': 'far', 'pid': '7'}
    return lease


def outcomes(count: int, take) -> tuple[list[locks.Lock], list[WorkdirError]]:
    """What so many takers get who start in the same instant."""
    ready, taken, refused = threading.Barrier(count), [], []

    def one(_):
        ready.wait()
        try:
            taken.append(take())
        except WorkdirError as error:
            refused.append(error)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))
    return taken, refused


def test_of_takers_in_the_same_instant_one_wins(store):
    for _ in range(3):
        (lease,), refused = outcomes(4, lambda: locks.acquire(PATH, 'shard 0'))
        assert len(refused) == 3
        assert all(f'shard 0 is in use by pid {os.getpid()} on host' in str(error) for error in refused)
        lease.release()
        assert not store.objects


def test_an_abandoned_lease_is_taken_over_once(store, dead):
    store.shift = locks.LEASE_SECONDS + 1.0
    (lease,), refused = outcomes(4, lambda: locks.acquire(PATH, 'it'))
    assert len(refused) == 3
    with pytest.raises(WorkdirError, match=f'in use by pid {os.getpid()}'):
        dead.refresh()
    dead.release()  # is not theirs to release
    lease.refresh()
    lease.release()
    assert not store.objects


def test_a_lease_that_was_refreshed_since_it_was_read_is_not_taken(store, dead):
    object = gcs.Object(PATH)
    read = object.find()
    dead.refresh()
    with pytest.raises(FileExistsError):
        object.delete(read, unchanged=True)
    with pytest.raises(FileExistsError):
        object.create({})
    assert NAME in store.objects


def comes_and_waits_until_it_is_abandoned(store):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(locks.acquire, PATH, 'it')
        time.sleep(0.3)
        assert not coming.done()
        store.shift = locks.LEASE_SECONDS + 1.0
        coming.result(timeout=60).release()


def test_a_lease_is_waited_for_until_it_is_abandoned(store, dead):
    """As after a kill: who comes back soon gets it all the same."""
    comes_and_waits_until_it_is_abandoned(store)


def test_a_holder_that_lost_it_is_told(store):
    lease = locks.acquire(PATH, 'it')
    lease.refresh()
    lease._renewal.close()
    del store.objects[NAME]
    with pytest.raises(WorkdirError, match='it is in use by pid unknown'):
        lease.refresh()
    lease.release()


def test_a_process_that_writes_nothing_for_long_keeps_it(store):
    """As one that compiles: a thread refreshes."""
    lease = locks.acquire(PATH, 'it')
    until = time.monotonic() + 30.0
    while store.objects[NAME][0]['metageneration'] == '1' and time.monotonic() < until:
        time.sleep(0.05)
    assert store.objects[NAME][0]['metageneration'] != '1'
    with pytest.raises(WorkdirError, match='in use by'):
        locks.check_free(PATH, 'it')
    lease.release()
    locks.check_free(PATH, 'it')


@pytest.mark.parametrize('jump', [-(10.0**6), 10.0**6])
def test_jumps_of_our_clock_change_nothing(store, monkeypatch, jump):
    lease = locks.acquire(PATH, 'it')
    now = time.time
    monkeypatch.setattr(locks.time, 'time', lambda: now() + jump)
    monkeypatch.setattr('gcs_fake.time.time', lambda: now())
    lease.refresh()
    with pytest.raises(WorkdirError, match='in use by'):
        locks.acquire(PATH, 'it')
    lease.refresh()
    lease.release()


def test_when_the_servers_clock_jumps_ahead_the_holder_is_told(store, dead):
    store.shift = 10.0**6
    other = locks.acquire(PATH, 'it')
    store.shift = -(10.0**6)  # and back: younger than now is not abandoned
    with pytest.raises(WorkdirError):
        locks.acquire(PATH, 'it')
    with pytest.raises(WorkdirError):
        dead.refresh()
    other.release()


@pytest.mark.parametrize('method', ['POST', 'PATCH', 'DELETE'])
def test_a_lost_reply_is_no_loss(store, method):
    store.faults = [Fault(method, 'lock', LOST)]
    lease = locks.acquire(PATH, 'it')
    lease.refresh()
    lease.release()
    assert not store.objects
    assert not store.faults[0].times


def test_the_lease_of_a_process_that_died_here_is_free_at_once(store):
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    lease = locks.acquire(PATH, 'it')
    lease._renewal.close()
    store.objects[NAME][0]['metadata'] |= {'pid': str(child.pid)}
    locks.acquire(PATH, 'it').release()


def test_the_same_pid_elsewhere_says_nothing(store, dead):
    store.objects[NAME][0]['metadata'] |= {'host': locks.identity()['host'], 'pid': '999999'}
    comes_and_waits_until_it_is_abandoned(store)


def test_a_critical_section_is_entered_one_by_one(store):
    inside, most = [], []

    def enter(_):
        with locks.exclusive(PATH):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == [1] * 4


def test_the_first_of_two_writers_stays(store):
    path = epath.Path('gs://bucket/run/experiment.json')
    files.write_first(path, b'first')
    files.write_first(path, b'second')
    assert files.read(path) == b'first'


class Stopped(Exception):
    pass


@pytest.fixture
def stopping(monkeypatch):
    """Raises Stopped where the process would be stopped."""

    def stop(number, frame):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def works_until_it_is_stopped():
    with pytest.raises(Stopped):
        time.sleep(30)


def test_a_holder_that_never_asks_is_stopped_when_it_lost_it(store, stopping):
    lease = locks.acquire(PATH, 'it')
    store.faults = [Fault('PATCH', 'lock', 503)]  # an outage is no loss
    time.sleep(3 * locks.RENEW_SECONDS)
    del store.objects[NAME]
    works_until_it_is_stopped()
    lease.release()


def test_one_that_was_released_stops_nobody(store, stopping):
    for _ in range(3):
        lease = locks.acquire(PATH, 'it')
        time.sleep(locks.RENEW_SECONDS)  # it is being refreshed just now
        lease.release()
    time.sleep(2 * locks.RENEW_SECONDS)


def test_a_weak_lease_is_renewed_too_and_its_loss_is_told(monkeypatch, stopping):
    memory = fsspec.filesystem('memory')
    monkeypatch.setattr(backend._FileSystemSpecBackend, 'fs', lambda self, path: memory)
    monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.05)
    path = epath.Path('s3://bucket/weak/0-of-1.lock')
    lease = locks.acquire(path, 'it')
    time.sleep(0.3)
    record = json.loads(path.read_text())
    assert time.time() - record['time'] < 0.25
    path.write_text(json.dumps(record | {'token': 'another'}))
    works_until_it_is_stopped()
    lease.release()
    assert json.loads(path.read_text())['token'] == 'another'
    path.unlink()
