"""launch.run as its user starts it: real processes on a tiny teacher, which share their compiled programs."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import types

from adx.storage import Workdir
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 240  # seconds, of a program that takes 5 to 30
# The program, which kills itself without notice once it has saved its fourth trace.
KILLED = """
import os, signal
from absl import app
from adx import pipeline
from launch import run

add = pipeline._Saver.add

def add_and_die(self, trace):
    add(self, trace)
    if self.report.done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.FLUSH_SECONDS = 0.0
pipeline._Saver.add = add_and_die
app.run(run.main, flags_parser=run.program.parse)
"""


def make_place(root: pathlib.Path) -> types.SimpleNamespace:
    """A teacher, a config and what processes find in their environment."""
    teacher = tiny.write_teacher(root / 'teacher')
    config = tiny.write_config(root / 'config.py', teacher)
    return types.SimpleNamespace(root=root, teacher=teacher, config=config, environment=environment())


def environment() -> dict[str, str]:
    """Compile time is most of a run: programs are left unoptimised, and shared (conftest.py)."""
    return os.environ | {
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
        'PYTHONFAULTHANDLER': '1',
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }


def start(place, *arguments: str, program=('-m', 'launch.run'), **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, *program, *arguments]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=place.root, env=place.environment | variables, **pipes)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # shows where it hangs
        out, err = process.communicate()
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def start_together(
    place, *given: str, count=2, ours=(), theirs=(), program=('-m', 'launch.run')
) -> list[subprocess.Popen[str]]:
    """One program of `count` processes; `ours` and `program` are for process 0 alone, `theirs` for the others."""
    given = (*given, '--distributed', f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={count}')
    first = start(place, *given, '--process_id=0', *ours, program=program)
    return [first, *(start(place, *given, f'--process_id={i}', *theirs) for i in range(1, count))]


def arguments(place, workdir: str, *more: str) -> tuple[str, ...]:
    return (f'--config={place.config}', f'--workdir={place.root / workdir}', *more)


def run(place, workdir: str, *more: str) -> tuple[int, str, str]:
    return end(start(place, *arguments(place, workdir, *more)))


def finished(place, workdir: str) -> int:
    return len(Workdir(place.root / workdir).finished())
