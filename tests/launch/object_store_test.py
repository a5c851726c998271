"""A whole run on gs://, models and workdir, over loopback: killed, resumed, watched, released, and under faults."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import types

import pytest
from gcp_storage_emulator.server import create_server
from gcs_fake import LOST, Fault, serve

from adx import checkpoints, files
from adx.datasets.tokenizing import save_tokenizer
from adx.export import export
from adx.storage import Workdir, digest, hashes
from adx.watch import status
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
TRACES, LIMIT = 9, 240
# The program, which is killed without notice after its fourth trace, or whose client waits for nothing.
PROGRAM = """
import asyncio, os, signal, types
from absl import app
from adx import files, pipeline
from launch import run

add = pipeline._Saver.add

def add_and_die(self, trace):
    add(self, trace)
    if self.report.done == {die_after}:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.STORE_FLUSH_SECONDS = 0.0
pipeline._Saver.add = add_and_die
files.configure_stores()
from gcsfs import retry
retry.asyncio = types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
app.run(run.main, flags_parser=run.program.parse)
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """An emulator that holds a teacher, a config that names it, and what a run on a disk makes of it."""
    root = tmp_path_factory.mktemp('store')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    server = create_server('127.0.0.1', port, in_memory=True, default_bucket='adx-test')
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny.environment(root / 'cache').items():
            patch.setenv(name, value)
        patch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{port}')
        teacher = tiny.write_teacher(root / 'teacher')
        files.upload_directory(files.path_of(teacher), files.path_of('gs://adx-test/teacher'), last='config.json')
        place = types.SimpleNamespace(root=root, teacher=teacher)
        place.config = tiny.write_config(root / 'config.py', 'gs://adx-test/teacher')
        place.local = tiny.write_config(root / 'local.py', teacher)
        run(f'--config={place.local}', f'--workdir={root / "run"}')
        place.digest = digest(hashes(root / 'run'))
        yield place
    server.stop()


def run(*arguments, program=('-m', 'launch.run'), code=0):
    """stdout and stderr."""
    command, environment = [sys.executable, *program, *arguments], os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow  # kill_points_test kills a run on a store at every call
def test_a_run_on_a_store_is_killed_goes_on_and_is_released(place):
    given = (f'--config={place.config}', '--workdir=gs://adx-test/run')
    run(*given, program=('-c', PROGRAM.format(die_after=4)), code=-signal.SIGKILL)
    assert len(Workdir('gs://adx-test/run').finished()) == 4
    out, err = run(*given, '--stages=generate,export', '--setting=plain', '--format=tfds')
    assert f'{TRACES - 4} traces decoded' in out
    assert all(json.loads(line) for line in err.splitlines())  # clients say nothing
    assert digest(hashes('gs://adx-test/run')) == place.digest
    shown = status('gs://adx-test/run')
    assert (shown['done'], shown['total'], shown['running']) == (TRACES, TRACES, 0)
    release = Workdir('gs://adx-test/run').release
    assert (release / 'traces' / '1.0.0' / 'dataset_info.json').exists()
    export('gs://adx-test/run', 'chat', 'plain', 'Apache-2.0')
    assert len((release / 'traces.jsonl').read_text().splitlines()) == 3
    assert not (release / 'traces').exists()  # a release is replaced
    assert not files.list_files(Workdir('gs://adx-test/run').private / 'locks', '')


@pytest.mark.slow
def test_a_run_under_faults_ends_with_74_and_the_same_command_makes_the_same_traces(place, monkeypatch):
    given = (f'--config={place.local}', '--workdir=gs://bucket/run')
    program = ('-c', PROGRAM.format(die_after=0))
    with serve() as fake:
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', fake.url)
        fake.faults = [Fault('POST', '.000002.jsonl', 503, times=10**6)]
        _, err = run(*given, program=program, code=74)
        assert err.splitlines()[-1].startswith('error: ')
        assert 'not saved, all appended before are safe' in err
        assert 'Traceback' not in err
        parts = {'/journal/': 'POST', '/heartbeat/': 'POST', '.lock': 'PATCH', 'prefix=': 'GET', 'experiment': 'GET'}
        fake.faults = [Fault(method, part, what) for part, method in parts.items() for what in (429, 503, LOST)]
        run(*given, program=program)
        assert not any(fault.times for fault in fake.faults)
        assert digest(hashes('gs://bucket/run')) == place.digest
        records = [record['request_id'] for _, record in Workdir('gs://bucket/run')._traces()]
        assert len(records) == len(set(records)) == TRACES


@pytest.mark.slow
def test_directions_and_their_proxies_are_kept_on_a_store(place, monkeypatch):
    """Orbax, as training keeps its checkpoints, beside a teacher that is read where it is."""
    monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', os.environ['STORAGE_EMULATOR_HOST'])
    monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'x')
    write = functools.partial(save_tokenizer, tiny.make_tokenizer())
    checkpoints.save_orbax('gs://adx-test/orbax', *tiny.make_params(), lambda path: write(str(path)))
    config = place.root / 'slope.py'
    text = pathlib.Path(tiny.write_config(config, 'gs://adx-test/orbax')).read_text()
    still = "Arm('plain', Antidistillation(lam=0.0))"
    config.write_text('from adx.defences import Antidistillation\n' + text.replace("Arm('plain')", still))
    given = (f'--config={config}', '--set=derivative.prompts=2', '--set=derivative.max_new_tokens=8')
    out, _ = run(*given, '--workdir=gs://adx-test/slope', '--stages=prepare,generate')
    assert 'directions of 1 proxies are saved' in out
    assert digest(hashes('gs://adx-test/slope')) == place.digest
