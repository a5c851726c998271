"""Copies on a local disk of what has to be a file there, and is kept on a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from adx import files
from adx.errors import InputError, StorageError
from adx.files import cache_directory
from adx.orbax_io import ARRAYS

BLOCK_BYTES = 2**23
LEFT_SECONDS = 86400.0  # a folder of a copy that is older is of a process that was killed


def stage(source: epath.PathLike) -> epath.Path:
    """A local copy of a file or directory on an object store, made once for each content; `source` if it is local.

    Orbax arrays are left out: they are read where they are, each host its part. Raises InputError where nothing is
    there, StorageError if it cannot be copied.
    """
    if not files.is_object_store(source):
        return epath.Path(source)
    with files.os_errors(StorageError, f'{source} was not copied to {cache_directory()}'):
        found = _find(files.path_of(source))
        if not found:
            raise InputError(f'{source} does not exist; check the bucket and the path')
        names = '\n'.join(f'{name} {about}' for name, about in found.items())
        place = cache_directory() / 'staged' / hashlib.sha256(f'{source}\n{names}'.encode()).hexdigest()[:16]
        if not place.exists():
            _copy(files.path_of(source), found, place)
    return epath.Path(place / epath.Path(source).name)


@contextlib.contextmanager
def building(target: epath.Path, last: str = '') -> Iterator[epath.Path]:
    """Where to write files of `target`: there, or on a disk that they are uploaded from, the one named `last` last."""
    if not files.is_object_store(target):
        yield target
        return
    with tempfile.TemporaryDirectory() as folder:
        yield epath.Path(folder)
        files.upload_directory(epath.Path(folder), target, last)


def _find(source: epath.Path) -> dict[str, list[Any]]:
    """Name below `source` -> size and version of every object, '' for `source` itself; but for folder placeholders.

    Raises InputError for a name that leads out of it: on a store '..' is a name like any other.
    """
    fs, root = files.client(source)
    objects = files.retried(lambda: fs.find(root, detail=True))
    found = {}
    for path, info in sorted(objects.items()):
        name = os.path.relpath(path, root)
        if '..' in path.removeprefix(root).split('/'):
            raise InputError(f'{source} has an object {path!r}, whose name leads out of it; rename or delete it')
        if not path.endswith('/') and not name.startswith(f'{ARRAYS}/'):
            found['' if name == '.' else name] = [info.get(key) for key in ('size', 'generation', 'ETag', 'mtime')]
    return found


def _copy(source: epath.Path, found: dict[str, list[Any]], place: pathlib.Path) -> None:
    """Copies the objects; `place` appears whole. Another process may do the same meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f'{tempfile.gettempprefix()}*'):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        whole = pathlib.Path(folder) / place.name
        for name, (size, *_) in found.items():
            target = whole / source.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(source / name, size, target)
        try:
            os.rename(whole, place)
        except OSError:
            if not place.exists():  # else another's, which is as good
                raise


def _download(source: epath.Path, size: int, target: pathlib.Path) -> None:
    """Block by block, each a request with retries of its own: so no time limit is one on a file's size."""
    fs, name = files.client(source)
    with open(target, 'wb') as local:
        for start in range(0, size, BLOCK_BYTES):
            end = min(start + BLOCK_BYTES, size)
            local.write(files.retried(lambda start=start, end=end: fs.cat_file(name, start=start, end=end)))  # type: ignore[misc]
