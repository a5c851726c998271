"""What every program does first: private files, nothing fetched unasked, compiled programs where only we write."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

import jax
import pytest

from adx.errors import ConfigError
from launch import environment

ROOT = pathlib.Path(__file__).parents[2]
BEGUN = """
import os, sys
from launch import program
program.parse(['x', *sys.argv[1:]])
import jax
assert not jax._src.xla_bridge._backends
os.makedirs('made/inside')
open('made/file', 'w').close()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)
print(*(os.environ[name] for name in ('HF_HUB_OFFLINE', 'WANDB_MODE')))
"""


def begin(directory, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    given = without | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'ADX_CACHE': str(directory / 'cache')}
    command = [sys.executable, '-c', BEGUN, *flags]
    return subprocess.run(command, cwd=directory, env=given | variables, capture_output=True, text=True, umask=0)


def test_files_are_private_and_services_are_off_and_programs_are_kept(tmp_path):
    done = begin(tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    place = pathlib.Path(first.split()[0])
    assert (place.parent, first.split()[1]) == (tmp_path / 'cache' / 'programs', 'True')
    assert second == '1 disabled'
    for path, mode in ((place, 0o700), (tmp_path / 'made' / 'inside', 0o700), (tmp_path / 'made' / 'file', 0o600)):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode, path


def test_flags_and_variables_say_otherwise(tmp_path):
    named = begin(tmp_path, f'--compile_cache={tmp_path}/mine', HF_HUB_OFFLINE='0', WANDB_MODE='online')
    assert named.stdout.splitlines() == [f'{tmp_path}/mine True', '0 online'], named.stderr
    (tmp_path / 'second').mkdir()
    none = begin(tmp_path / 'second', '--compile_cache=none')
    assert none.stdout.splitlines()[0].endswith('False'), none.stderr
    assert not (tmp_path / 'second' / 'cache').exists()


def test_a_cache_that_others_could_write_is_refused_in_one_line(tmp_path):
    shared = tmp_path / 'shared'
    shared.mkdir()
    shared.chmod(0o777)
    done = begin(tmp_path, f'--compile_cache={shared}')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert 'chmod 700' in done.stderr


@pytest.mark.parametrize('place', ['/proc/none/x', '/dev/null/x'])
def test_a_cache_that_cannot_be_made_is_refused(place):
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(ConfigError, match='cannot be made'):
        environment.keep_programs(place)
    assert jax.config.jax_compilation_cache_dir == before


def test_a_program_that_was_half_written_is_compiled_again(tmp_path):
    code = (
        'import sys; from launch import program; program.parse(sys.argv); import jax, jax.numpy as jnp; '
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); print(jax.jit(jnp.sin)(0.5))"
    )
    given = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', code, f'--compile_cache={tmp_path}/kept']
    first = subprocess.run(command, env=given, capture_output=True, text=True)
    (kept,) = [path for path in (tmp_path / 'kept').iterdir() if path.name.startswith('jit_sin')]
    kept.write_bytes(kept.read_bytes()[:100])
    second = subprocess.run(command, env=given, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
    assert first.stdout.startswith('0.479')
