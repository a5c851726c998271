"""What programs do first: private files, compiled programs kept, nothing fetched unasked."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import stat
import sys
from typing import Any

from absl import flags

from adx.errors import ConfigError, extra
from adx.files import cache_directory, configure_stores

COMPILE_CACHE = flags.DEFINE_string(
    'compile_cache', '', 'Where compiled programs are kept, local or gs://, for all shards; "none" keeps none. '
    'Else JAX_COMPILATION_CACHE_DIR, else programs/ in the cache of models.',
)  # fmt: skip
MAY_CHANGE = flags.DEFINE_bool(
    'allow_environment_change', False,
    'Generate or rewrite on in a workdir under another jax, adx, device or mesh: tokens may differ at near ties. It is '
    'reported. Students are not held to it.',
)  # fmt: skip
SECONDS = 0.2  # of compilation, from which a program is kept
NEVER = 1e9  # seconds that no compilation takes
# Libraries beside adx that would ask a service by themselves; who wants that says so in the environment.
OFFLINE = {
    'HF_HUB_OFFLINE': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'TRANSFORMERS_OFFLINE': '1', 'HF_DATASETS_OFFLINE': '1',
    'WANDB_MODE': 'disabled',
}  # fmt: skip


def begin(compiles: bool = True) -> None:
    """Called once, after flags are parsed. Raises ConfigError for a compile cache that others could have written."""
    os.umask(0o077)
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    if compiles:
        keep_programs(COMPILE_CACHE.value)


def keep_programs(place: str) -> None:
    """Makes jax keep compiled programs in a directory, `place` or a default; 'none' keeps none. Starts no backend.

    A program is found by its code, its flags and the versions and devices that it is for, so any number of runs share a
    directory; the first that is there stays. Under --distributed process 0 alone writes, of replicas see
    `only_read_programs`. A file that a killed process left half written is not taken: that program is compiled again,
    with a warning of jax.
    """
    if place == 'none':
        _tell_jax('jax_enable_compilation_cache', False)
        return
    if not place and os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    place = os.path.expanduser(place or str(cache_directory() / 'programs' / _processor()))
    if '://' in place:
        _open_store(place)
    else:
        _make_private(place)
    _tell_jax('jax_compilation_cache_dir', place)
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        _tell_jax('jax_persistent_cache_min_compile_time_secs', SECONDS)


def only_read_programs() -> None:
    """Called by all replicas but the first. A cache that --compile_cache names is taken for one that all of them share,
    and the first writes it; any other may be this host's alone."""
    if COMPILE_CACHE.value not in ('', 'none'):
        _tell_jax('jax_persistent_cache_min_compile_time_secs', NEVER)


def _tell_jax(name: str, value: Any) -> None:
    """As a variable, for processes that start later and where jax is not loaded yet."""
    os.environ[name.upper()] = str(value)
    if 'jax' in sys.modules:
        sys.modules['jax'].config.update(name, value)


def _processor() -> str:
    """Names what the host can compute: jax finds programs for its CPU by the name 'cpu' alone."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    able = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return hashlib.sha256(f'{platform.machine()} {able}'.encode()).hexdigest()[:12]


def _open_store(place: str) -> None:
    """jax reads and writes it through etils, which takes fsspec's client of the store as adx configures it."""
    try:
        configure_stores()
        import fsspec

        fsspec.get_filesystem_class(place.partition('://')[0])
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f'--compile_cache={place}: no client of that store is here ({error}); {extra("gcp")}'
        ) from error


def _make_private(place: str) -> None:
    """What is in there is run: nobody else may have put it there."""
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        about: Any = os.stat(place)
    except OSError as error:
        raise ConfigError(f'--compile_cache={place} cannot be made: {error.strerror}; name another, or none') from error
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f'--compile_cache={place} may be written by others, and what is in it is run; run: chmod 700 {place}, or '
            'name a directory of your own, or none'
        )
