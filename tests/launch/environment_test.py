"""What every program does first: private files, nothing fetched unasked, compiled programs where only we write."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from gcs_fake import serve

from adx.errors import ConfigError
from launch import environment, run
from tests.programs import free_port

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

# Compiles one program and says how often one was found in the cache: as the only process, a replica, or one of two.
COMPILES = """
import os, sys
from launch import environment, program
kind, *given = sys.argv[1:]
program.parse(['x', *given])
if kind == 'replica':
    environment.only_read_programs()
import jax, jax.numpy as jnp
if kind.isdigit():
    jax.distributed.initialize(os.environ['AT'], 2, int(kind))
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name) if name.endswith('cache_hits') else None)
x = jnp.ones(8)
print(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(x), len(found), flush=True)
"""


def compiling(kind: str, place: str, **variables: str) -> subprocess.Popen[str]:
    given = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    given |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    command = [sys.executable, '-c', COMPILES, kind, f'--compile_cache={place}']
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=given | variables, **pipes)


def compiled(*processes: subprocess.Popen[str]) -> list[int]:
    """How often each found a program."""
    ends = [(one.communicate(timeout=120), one.returncode) for one in processes]
    assert [code for _, code in ends] == [0] * len(ends), ends
    assert not any('persistent compilation cache' in err for (_, err), _ in ends), ends  # what jax warns of
    return [int(out.split()[-1]) for (out, _), _ in ends]


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


def test_a_bucket_is_read_by_all_and_written_by_the_first():
    with serve() as fake:
        store, place = {'STORAGE_EMULATOR_HOST': fake.url}, 'gs://bucket/programs'
        assert compiled(compiling('replica', place, **store)) == [0]
        assert not fake.names('-cache')
        assert compiled(compiling('first', place, **store)) == [0]
        written = fake.names('-cache')
        assert written
        assert all(name.startswith('programs/jit_') for name in written)
        (found,) = compiled(compiling('replica', place, **store))
        assert found == len(written)
        assert fake.names('-cache') == written


def test_of_one_program_only_process_0_writes(tmp_path):
    at = f'127.0.0.1:{free_port()}'
    compiled(*(compiling(str(process), str(tmp_path / str(process)), AT=at) for process in range(2)))
    first, second = (len(list((tmp_path / str(process)).glob('*-cache'))) for process in range(2))
    assert first > second == 0


def test_a_replica_reads_what_is_named_and_the_first_that_is_there_stays(tmp_path):
    assert compiled(compiling('first', str(tmp_path / 'one'))) == [0]
    files = {path: path.read_bytes() for path in (tmp_path / 'one').glob('*-cache')}
    assert files
    found = compiled(*(compiling(kind, str(tmp_path / 'one')) for kind in ('replica', 'first')))
    assert found == [len(files)] * 2
    assert {path: path.read_bytes() for path in (tmp_path / 'one').glob('*-cache')} == files


def test_replicas_but_the_first_are_told_to_read_only(monkeypatch):
    told = []
    monkeypatch.setattr(run, 'resolve', lambda: None)
    monkeypatch.setattr(run, 'experiment_stages', lambda *_: {'generate': lambda: 0})
    monkeypatch.setattr(environment, 'only_read_programs', lambda: told.append(run.SHARD.value))
    flags.FLAGS.mark_as_parsed()
    for shard in (0, 1):
        with flagsaver.flagsaver(shard=shard, num_shards=2):
            assert run.run(None) == 0
    assert told == [1]


def test_a_store_without_a_client_is_refused_in_one_line(tmp_path):
    done = begin(tmp_path, '--compile_cache=nowhere://bucket/programs')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert 'no client of that store is here' in done.stderr
