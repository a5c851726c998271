"""Files of the private side of a workdir: mode 0600, whole or not there, local or on an object store.

Paths are `etils.epath` paths. Object stores (gs://, s3://) have no modes, no append and no rename: an object
appears whole when its upload ends, and who may read it is the bucket's business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

from etils import epath

from adx.errors import StorageError

ATTEMPTS = 4  # of one upload, 1, 2 and 4 seconds apart
FIXES = {
    errno.ENOSPC: 'free some space',
    errno.EDQUOT: 'raise the quota or free some space',
    errno.EFBIG: 'raise the limit on the size of files',
    errno.EROFS: 'make it writable',
    errno.EACCES: 'make it writable',
}


def is_object_store(path: epath.Path) -> bool:
    return '://' in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path in full, as Orbax wants it."""
    path = epath.Path(path)
    return path if is_object_store(path) else epath.Path(path.expanduser().resolve())


def make_private_dir(path: epath.Path) -> None:
    """Creates `path` and its parents; `path` itself gets mode 0700, also if it was there with a wider one."""
    if not is_object_store(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)


def write_private(path: epath.Path, data: bytes) -> None:
    """Writes a file of mode 0600; a reader, or a restart after a crash, sees the old one or the new one."""
    if is_object_store(path):
        upload(path, data)
        return
    temporary = f'{os.fspath(path)}.{os.getpid()}.tmp'
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    fsync_path(path.parent)


def write_all(fd: int, data: bytes) -> None:
    """os.write until everything is written: one call may write less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fsync_path(path: epath.Path) -> None:
    """Makes a local file, or the names in a local directory, durable: a file's fsync leaves out its name."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def upload(path: epath.Path, data: bytes, sleep: Callable[[float], None] = time.sleep) -> None:
    """Writes one object, with retries. Writing it twice is harmless, so a lost reply is simply retried.

    Raises OSError when the last attempt failed, whatever the client library raised.
    """
    for attempt in range(ATTEMPTS):
        try:
            path.write_bytes(data)
            return
        except Exception as error:  # each store's client has its own exceptions
            if attempt == ATTEMPTS - 1 or isinstance(error, FileNotFoundError | PermissionError):
                raise OSError(errno.EIO, f'{error} (after {attempt + 1} attempts)') from error
        sleep(2.0**attempt)


def list_files(directory: epath.Path, suffix: str) -> list[epath.Path]:
    """The files of a directory whose name ends in `suffix`, sorted by name; none when it does not exist."""
    try:
        return sorted(path for path in directory.iterdir() if path.name.endswith(suffix))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def os_errors(error: type[Exception], what: str) -> Iterator[None]:
    """Turns an OSError into `error`, a full disk always into StorageError; the message ends in the fix.

    An ImportError too: the client of an object store is not installed.
    """
    try:
        yield
    except (OSError, ImportError) as reason:
        number, text = getattr(reason, 'errno', None), getattr(reason, 'strerror', None) or reason
        fix = FIXES.get(number or 0, 'check the storage')
        full = number in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageError if full else error)(
            f'{what}: {text}; {fix} and run the same command again'
        ) from reason
