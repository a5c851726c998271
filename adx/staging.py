"""Copies on a local disk: what has to be a file there (safetensors, GGUF, tokenizers) of what is kept on a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from adx import files
from adx.errors import InputError, StorageError
from adx.files import cache_directory
from adx.orbax_io import ARRAYS

BLOCK_BYTES = 2**23


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
        names = '\n'.join(f'{name} {version}' for name, version in found.items())
        place = cache_directory() / 'staged' / hashlib.sha256(f'{source}\n{names}'.encode()).hexdigest()[:16]
        if not place.exists():
            _copy(epath.Path(source), list(found), place)
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


def _find(source: epath.Path) -> dict[str, str]:
    """Name below `source` -> version of every object, '' for `source` itself."""
    fs, root = files.client(source)
    objects = files.retried(lambda: fs.find(root, detail=True))
    about = {os.path.relpath(name, root): info for name, info in sorted(objects.items())}
    return {
        '' if name == '.' else name: str([info.get(key) for key in ('size', 'generation', 'ETag', 'mtime')])
        for name, info in about.items()
        if not name.startswith(f'{ARRAYS}/')
    }


def _copy(source: epath.Path, names: list[str], place: pathlib.Path) -> None:
    """Copies the objects; `place` appears whole. Another process may do the same meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        whole = pathlib.Path(folder) / place.name
        for name in names:
            target = whole / source.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.retried(lambda name=name, target=target: _download(source / name, target))  # type: ignore[misc]
        try:
            os.rename(whole, place)
        except OSError:
            if not place.exists():  # else another's, which is as good
                raise


def _download(source: epath.Path, target: pathlib.Path) -> None:
    """Block by block, each a request of its own: so a time limit on requests does not limit a file's size."""
    with source.open('rb') as remote, open(target, 'wb') as local:
        shutil.copyfileobj(remote, local, BLOCK_BYTES)
