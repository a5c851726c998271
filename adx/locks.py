"""Who may write: one process per (workdir, shard).

Local: flock on a file. The kernel drops it when its process dies, however it dies, so a stale lock is free
at once and no pid is guessed at; the file stays and says who held it last. Across hosts it is as good as
the file system's flock (NFSv4 and Lustre mounted with flock have it).

Object stores: a lease, an object that its holder refreshes with every heartbeat and that counts as
abandoned after LEASE_SECONDS, or at once when its process was on this host and is gone. Stores offer no
lock through epath, so two processes that start in the same second can both see it free; the one that wrote
last keeps it and the other is told at its first refresh. Nothing is corrupted meanwhile: journals never
share objects and readers drop duplicates.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

from etils import epath

from adx import files
from adx.errors import StorageError, WorkdirError
from adx.journal import from_json, to_json

LEASE_SECONDS = 300.0


class Lock(Protocol):
    """A lock that is held."""

    def refresh(self) -> None:
        """Says that the holder lives. Raises WorkdirError if another process took the lock."""
        ...

    def release(self) -> None: ...


def acquire(path: epath.Path, what: str) -> Lock:
    """Takes the lock, or raises WorkdirError that names its holder. `what` says what is locked."""
    if files.is_object_store(path):
        return Lease(path, what)
    lock = FileLock(path, what)
    try:
        lock.write_holder()
    except OSError:
        lock.release()
        raise
    return lock


def check_free(path: epath.Path, what: str) -> None:
    """Raises WorkdirError naming the holder if the lock is held."""
    if files.is_object_store(path):
        _check_lease(path, what)
    else:
        FileLock(path, what).release()


@contextlib.contextmanager
def exclusive(path: epath.Path) -> Iterator[None]:
    """Waits for a short critical section. On an object store it excludes nobody: see the module's text."""
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


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _read(path: epath.Path) -> dict[str, Any]:
    """What the holder wrote; empty if there is none or it has not written yet."""
    try:
        return from_json(path.read_bytes())
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


class Lease:
    """A held lease. Constructing it takes the lease or raises WorkdirError."""

    def __init__(self, path: epath.Path, what: str):
        _check_lease(path, what)
        self._path, self._what = path, what
        self._record = identity() | {'since': utc_now(), 'token': secrets.token_hex(8)}
        self._write()
        self._check_mine()

    def refresh(self) -> None:
        self._check_mine()
        self._write()

    def release(self) -> None:
        if _read(self._path).get('token') == self._record['token']:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        files.upload(self._path, to_json(self._record | {'time': time.time()}).encode())

    def _check_mine(self) -> None:
        holder = _read(self._path)
        if holder.get('token') != self._record['token']:
            raise _busy(self._what, holder)


def _check_lease(path: epath.Path, what: str) -> None:
    holder = _read(path)
    left = holder.get('time', 0.0) + LEASE_SECONDS - time.time()
    if left > 0 and not _is_gone(holder):
        raise _busy(what, holder, f' (if it is dead, its lease ends in {left:.0f} s)')


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this host and is no more. Our own pid means a restarted container."""
    if holder.get('host') != socket.gethostname():
        return False
    if holder['pid'] == os.getpid():
        return True
    try:
        os.kill(holder['pid'], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
