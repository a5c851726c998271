"""Files of the private side: mode 0600, whole or not there, local or on an object store.

Paths are `etils.epath` paths. Object stores (gs://, s3://) have no modes, no append and no rename: an object
appears whole when its upload ends, and who may read it is the bucket's business.

gcsfs repeats a request that may pass (408, 429, 5xx, a broken connection, silence) up to six times, in about half a
minute; `retried` goes on after that, for about two minutes in all.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from adx.errors import StorageError
from adx.retries import reason, retried

TEMPORARY = '.tmp'  # ends the name of a file that is being written
CACHE = 'ADX_CACHE'  # environment variable that names another directory than ~/.cache/adx
REQUEST_SECONDS = 60.0  # without a byte of an answer; what is read or written in one request is a few MB
READERS, READ_AHEAD = 32, 256  # objects that are read at a time, and held in memory
# No listing is kept: other processes write as well.
GCS_CLIENT = {'use_listings_cache': False}
CLIENTS = ('fsspec', 'gcsfs', 'google', 'aiohttp', 's3fs', 'botocore', 'adlfs', 'azure')  # packages, with own errors
FIXES = {
    errno.ENOSPC: 'free some space',
    errno.EDQUOT: 'raise the quota or free some space',
    errno.EFBIG: 'raise the limit on the size of files',
    errno.EROFS: 'make it writable',
    errno.EACCES: 'make it writable',
}
# No retry mends these either: another place has to be named.
ELSEWHERE = {errno.ENOTDIR: 'give a directory', errno.EEXIST: 'a file is there: give a directory'}


def cache_directory() -> pathlib.Path:
    """Where downloaded and converted models are, and compiled programs."""
    return pathlib.Path(os.environ.get(CACHE) or '~/.cache/adx').expanduser()


def is_object_store(path: epath.PathLike) -> bool:
    return '://' in os.fspath(path)


def is_gcs(path: epath.PathLike) -> bool:
    return os.fspath(path).startswith('gs://')


def configure_stores() -> None:
    """Tells gcsfs how adx uses it, before its first use; what the user configured stands."""
    import fsspec

    # Else it asks a second service for the kind of every bucket, which few roles may.
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    # An emulator wants no credentials, and looking for them would ask the network.
    emulated = {'token': 'anon'} if os.environ.get('STORAGE_EMULATOR_HOST') else {}
    fsspec.config.conf['gs'] = GCS_CLIENT | patience() | emulated | fsspec.config.conf.get('gs', {})
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # it logs tracebacks of errors that it raises as well


def patience(seconds: float = REQUEST_SECONDS) -> dict[str, Any]:
    """How long gcsfs waits: it repeats a request after silence, but not one that took too long in all."""
    try:
        import aiohttp
    except ImportError:  # of another store's client, or none
        return {}
    return {'requests_timeout': aiohttp.ClientTimeout(total=5 * seconds, sock_connect=seconds, sock_read=seconds)}


def client(path: epath.PathLike) -> tuple[Any, str]:
    """The file system of a store and the name of an object in it."""
    from fsspec.core import url_to_fs

    configure_stores()
    return url_to_fs(os.fspath(path))


def path_of(path: epath.PathLike) -> epath.Path:
    """The path, of a store whose client is ready."""
    path = epath.Path(path)
    if is_object_store(path):
        configure_stores()
    return path


def absolute(path: epath.PathLike) -> epath.Path:
    """The path in full, as Orbax wants it."""
    path = path_of(path)
    return path if is_object_store(path) else epath.Path(path.expanduser().resolve())


def make_private_dir(path: epath.Path) -> None:
    """Creates `path` and its parents; `path` itself gets mode 0700, also if it was there with a wider one."""
    if not is_object_store(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)


def write_private(path: epath.Path, data: bytes) -> None:
    """Writes a file of mode 0600, whole."""
    write_whole(path, data, 0o600)


def write_whole(path: epath.Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a file; a reader, or a restart after a crash, sees the old one or the new one."""
    if is_object_store(path):
        upload(path, data)
        return
    # No name by pid: containers that share a disk have the same ones.
    temporary = f'{os.fspath(path)}.{secrets.token_hex(4)}{TEMPORARY}'
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
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


def write_first(path: epath.Path, data: bytes) -> None:
    """Writes a file unless there is one; of several processes on gs:// only the first one writes."""
    if is_gcs(path):
        with contextlib.suppress(FileExistsError):  # another's, or ours and the reply was lost
            retried(lambda: _pipe(path, data, 'create'))
    elif not exists(path):
        write_private(path, data)


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
    """Writes one object, with retries: the same one again where a reply was lost. Raises OSError."""
    if is_gcs(path):
        retried(lambda: _pipe(path, data), sleep)
    else:
        retried(lambda: path.write_bytes(data), sleep)


def _pipe(path: epath.Path, data: bytes, mode: str = 'overwrite') -> None:
    """In one request, where an open file takes two."""
    fs, name = client(path)
    fs.pipe_file(name, data, mode=mode)


def read(path: epath.Path) -> bytes:
    """The content of a file, with retries on an object store. Raises OSError."""
    if is_gcs(path):
        fs, name = client(path)
        return retried(lambda: fs.cat_file(name))  # one request, where an open file takes three
    return retried(path.read_bytes) if is_object_store(path) else path.read_bytes()


def exists(path: epath.Path) -> bool:
    """Whether a file is there, with retries on an object store. Raises OSError."""
    return retried(path.exists) if is_object_store(path) else path.exists()


def remove(path: epath.Path) -> None:
    """Deletes a file. Raises OSError; on an object store not where it is gone already: a reply may have been lost."""
    if not is_object_store(path):
        path.unlink()
        return
    with contextlib.suppress(FileNotFoundError):
        retried(path.unlink)


def remove_directory(path: epath.Path) -> None:
    """Deletes a directory, if there is one, with all that is in it. Raises OSError."""
    if not is_object_store(path):
        if path.exists():
            path.rmtree()
        return
    with contextlib.suppress(FileNotFoundError):
        retried(path.rmtree)


def read_all(paths: Sequence[epath.Path]) -> Iterator[bytes]:
    """The contents of small objects, in order, some ahead: each takes a store tens of milliseconds."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), READ_AHEAD):
            yield from pool.map(read, paths[start : start + READ_AHEAD])


def list_files(directory: epath.Path, suffix: str) -> list[epath.Path]:
    """The files of a directory whose name ends in `suffix`, sorted by name; none when it does not exist."""
    try:
        return sorted(path for path in retried(lambda: list(directory.iterdir())) if path.name.endswith(suffix))
    except FileNotFoundError:
        return []


def last_change(directory: epath.Path) -> float:
    """When a file in it, or in a folder of it, was written last, in seconds since 1970; 0.0 where there is none."""
    fs, name = client(directory)
    return max((fs.modified(path).timestamp() for path in retried(lambda: fs.find(name))), default=0.0)


def is_of_client(error: Exception) -> bool:
    """Whether the client of an object store raised it, after its own retries."""
    return type(error).__module__.partition('.')[0] in CLIENTS


def upload_directory(source: epath.Path, target: epath.Path, last: str) -> None:
    """Uploads all files of a local directory; the one named `last` at the end: it says that the others are there."""
    paths = [epath.Path(folder) / name for folder, _, names in os.walk(source) for name in names]
    for path in sorted(paths, key=lambda path: path.name == last):
        place = target / os.path.relpath(path, source)
        if is_gcs(place):
            fs, name = client(place)
            retried(lambda fs=fs, path=path, name=name: fs.put_file(os.fspath(path), name))  # type: ignore[misc]
        else:
            upload(place, path.read_bytes())


@contextlib.contextmanager
def os_errors(error: type[Exception], what: str) -> Iterator[None]:
    """Turns an OSError into `error`, a full or failing disk or store always into StorageError; ends in the fix.

    An ImportError too: the client of an object store is not installed.
    """
    try:
        yield
    except Exception as caught:
        if not isinstance(caught, OSError | ImportError) and not is_of_client(caught):
            raise
        number, text = getattr(caught, 'errno', None), getattr(caught, 'strerror', None) or reason(caught)
        again = f'{FIXES.get(number or 0, "check the storage")} and run the same command again'
        failing = number in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or is_of_client(caught)
        fix = ELSEWHERE.get(number or 0, again)
        raise (StorageError if failing else error)(f'{what}: {text}; {fix}') from caught
