"""Who may write: one process per (workdir, shard).

Local: flock on a file. The kernel drops it when its process dies, however it dies, so a stale lock is free
at once and no pid is guessed at; the file stays and says who held it last. Across hosts it is as good as
the file system's flock (NFSv4 and Lustre mounted with flock have it).

gs://: a lease, an object that is created only where none is and refreshed only while it is the one that was created
(generation match), every RENEW_SECONDS by a thread, which stops the process as SIGTERM does where the lease is lost,
and with every heartbeat. It is abandoned when the server saw no
change of it for LEASE_SECONDS, by the server's own clock: no clock of ours is asked. Whoever finds a lease waits until
it is refreshed, and is refused, or abandoned, and then one of those who wait gets it. So a process that was killed
and starts again elsewhere waits for at most LEASE_SECONDS.

Other object stores: a weaker lease, refreshed likewise and abandoned after WEAK_LEASE_SECONDS by the clocks of the
hosts. They offer no precondition through epath, so two processes that start in the same second can both
see it free; the one that wrote last keeps it and the other is told at its first refresh. Nothing is corrupted
meanwhile: journals never share objects and readers drop duplicates.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from etils import epath

from adx import files, gcs
from adx.errors import StorageError, WorkdirError
from adx.journal import from_json, to_json

LEASE_SECONDS, RENEW_SECONDS = 120.0, 30.0  # on gs://
POLL_SECONDS = 2.0
WEAK_LEASE_SECONDS = 300.0  # on other object stores


class Lock(Protocol):
    """A lock that is held."""

    def refresh(self) -> None:
        """Says that the holder lives. Raises WorkdirError if another process took the lock."""
        ...

    def release(self) -> None: ...


def acquire(path: epath.Path, what: str) -> Lock:
    """Takes the lock, or raises WorkdirError that names its holder. `what` says what is locked."""
    if files.is_gcs(path):
        return Lease(path, what)
    if files.is_object_store(path):
        return WeakLease(path, what)
    lock = FileLock(path, what)
    try:
        lock.write_holder()
    except OSError:
        lock.release()
        raise
    return lock


def check_free(path: epath.Path, what: str) -> None:
    """Raises WorkdirError naming the holder if the lock is held."""
    if files.is_gcs(path):
        _wait_until_free(gcs.Object(path), what)
    elif files.is_object_store(path):
        _check_weak(path, what)
    else:
        FileLock(path, what).release()


@contextlib.contextmanager
def exclusive(path: epath.Path) -> Iterator[None]:
    """Waits for a short critical section. On object stores other than gs:// it excludes nobody."""
    if files.is_gcs(path):
        lease = Lease(path, '', patient=True)
        try:
            yield
        finally:
            lease.release()
        return
    if files.is_object_store(path):
        yield
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def identity() -> dict[str, Any]:
    """Which process this is: host, pid."""
    return {'host': socket.gethostname(), 'pid': os.getpid()}


def _holder() -> dict[str, Any]:
    """What a lease says of its holder. space: a boot and a namespace of processes, where its pid means something."""
    space = ''
    with contextlib.suppress(OSError), open('/proc/sys/kernel/random/boot_id') as file:  # Linux has both
        space = f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
    return identity() | {'space': space, 'since': utc_now(), 'token': secrets.token_hex(8)}


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _read(path: epath.Path) -> dict[str, Any]:
    """What the holder wrote; empty if there is none or it has not written yet."""
    try:
        return from_json(files.read(path))
    except (FileNotFoundError, ValueError):
        return {}


def _busy(what: str, holder: dict[str, Any], hint: str = '') -> WorkdirError:
    host, pid, since = (holder.get(key, 'unknown') for key in ('host', 'pid', 'since'))
    return WorkdirError(
        f'{what} is in use by pid {pid} on host {host} since {since}; '
        f'wait for it or stop it{hint}, or give another workdir'
    )


class FileLock:
    """A held flock. Constructing it takes the lock or raises WorkdirError."""

    def __init__(self, path: epath.Path, what: str):
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _busy(what, _read(path)) from error
            raise StorageError(
                f'{what} {path} cannot be locked ({error.strerror}); use a file system that has flock'
            ) from error

    def write_holder(self) -> None:
        """Leaves the name of this process for whoever is refused."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, to_json(identity() | {'since': utc_now()}).encode(), 0)

    def refresh(self) -> None:
        pass

    def release(self) -> None:
        os.close(self._fd)


class Renewal:
    """A thread that refreshes a lease until it is closed, and stops the process where the lease is another's.

    refresh: as that of a Lock. Only generation calls it itself; the other stages would go on without their lock.
    """

    def __init__(self, refresh: Callable[[], None]):
        self._refresh, self._stop = refresh, threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._refresh()
            except WorkdirError as error:
                if not self._stop.is_set():
                    logging.error('%s; this process stops', error)
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError:  # the next one may pass
                pass

    def close(self) -> None:
        """Returns when nothing is refreshed any more."""
        self._stop.set()
        self._thread.join()


class Lease:
    """A held lease on gs://. Constructing it takes the lease or raises WorkdirError; `patient` waits for its holder."""

    def __init__(self, path: epath.Path, what: str, patient: bool = False):
        self._object, self._what, self._changes = gcs.Object(path), what, 0
        self._record = {key: str(value) for key, value in _holder().items()}
        while not self._take():
            _wait_until_free(self._object, what, patient)
        self._renewal = Renewal(self.refresh)

    def _take(self) -> bool:
        """Whether it is ours now. A reply may be lost, so what is there decides and not the reply."""
        if self._object.find() is None:
            with contextlib.suppress(FileExistsError):
                self._object.create(self._record)
        found = self._object.find()
        if found is None or found.record.get('token') != self._record['token']:
            return False
        self._mine = found
        return True

    def refresh(self) -> None:
        self._changes += 1
        try:
            self._object.touch(self._mine, self._record | {'changes': str(self._changes)})
        except (FileExistsError, FileNotFoundError) as error:
            found = self._object.find()
            raise _busy(self._what, found.record if found else {}) from error

    def release(self) -> None:
        self._renewal.close()
        with contextlib.suppress(OSError):  # not ours any more, or soon abandoned
            self._object.delete(self._mine)


def _wait_until_free(lease: gcs.Object, what: str, patient: bool = False) -> None:
    """Returns when there is no lease or an abandoned one is deleted; raises WorkdirError when a holder refreshes it.

    patient: waits for the holder to release it as well.
    """
    first = None
    while (found := lease.find()) is not None:
        if found.age > LEASE_SECONDS or _is_gone(found.record):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # refreshed or taken just now
                lease.delete(found, unchanged=True)
            continue
        if first is None:
            first = found
            if not patient:
                logging.warning('%s is held: seeing for up to %.0f s if its holder lives', what, LEASE_SECONDS)
        elif (found.generation, found.changes) != (first.generation, first.changes) and not patient:
            raise _busy(what, found.record)
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.0))


class WeakLease:
    """A held lease on an object store without preconditions; see the module's text."""

    def __init__(self, path: epath.Path, what: str):
        _check_weak(path, what)
        self._path, self._what = path, what
        self._record = _holder()
        self._write()
        self._check_mine()
        self._renewal = Renewal(self.refresh)

    def refresh(self) -> None:
        self._check_mine()
        self._write()

    def release(self) -> None:
        self._renewal.close()
        if _read(self._path).get('token') == self._record['token']:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        files.upload(self._path, to_json(self._record | {'time': time.time()}).encode())

    def _check_mine(self) -> None:
        holder = _read(self._path)
        if holder.get('token') != self._record['token']:
            raise _busy(self._what, holder)


def _check_weak(path: epath.Path, what: str) -> None:
    holder = _read(path)
    # A time far ahead is of a clock that was set back since.
    left = WEAK_LEASE_SECONDS - abs(time.time() - holder.get('time', 0.0))
    if left > 0 and not _is_gone(holder):
        raise _busy(what, holder, f' (if it is dead, its lease ends in {left:.0f} s)')


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process that would be seen here, and is no more."""
    if not holder.get('space') or holder['space'] != _holder()['space']:
        return False
    try:
        os.kill(int(holder['pid']), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
