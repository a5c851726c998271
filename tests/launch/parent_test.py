"""The parent of one program: what it makes of the ends of its processes, and that it always ends itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from adx.errors import ConfigError, Interrupted
from launch import joining, parent
from tests.programs import ROOT, free_port

FOREVER = 'import time; time.sleep(600)'
STUBBORN = f'import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)]; {FOREVER}'
# As jaxlib 0.10 says it.
SILENT = (
    'F1128 16:56:29.9 32472 client.h:80] Terminating process because the JAX distributed service detected fatal '
    'errors. absl::Status: UNAVAILABLE: '
    'The following tasks are unhealthy (stopped sending heartbeats):\n2\n3\nThe tasks have'
)
LEADERLESS = (
    'JAX distributed service detected fatal errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination '
    'service. Either the leader task was preempted'
)
LATE = 'JAX distributed service detected fatal errors. DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/'
MISSED = 'processes [2, 3] died or was silent for too long'
AGAIN = '; what is finished is saved, the same command continues'


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(parent, 'OWN_SECONDS', 0.3)
    monkeypatch.setattr(parent, 'STOP_SECONDS', 0.3)
    monkeypatch.setattr(parent, 'POLL_SECONDS', 0.02)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(*programs: str) -> parent.Parent:
    ranks = range(len(programs)) if len(programs) > 1 else [None]
    children = [parent.start([sys.executable, '-c', text], rank) for text, rank in zip(programs, ranks, strict=True)]
    return parent.Parent(children, 0.5)


def says(text: str, then: str) -> str:
    return f'import os, signal, sys; print({text!r}, file=sys.stderr, flush=True); {then}'


ABORTS, KILLED, CRASHED = 'os.abort()', 'import os; os.kill(os.getpid(), 9)', 'import os; os.kill(os.getpid(), 11)'


@pytest.mark.parametrize(
    ('programs', 'expected'),
    [
        (['pass', 'pass'], (0, '')),
        (['pass', 'raise SystemExit(5)'], (5, '')),
        ([FOREVER, KILLED], (75, f'process 1 was killed by SIGKILL, the others were ended{AGAIN}')),
        ([STUBBORN, KILLED], (75, f'process 1 was killed by SIGKILL, the others were ended{AGAIN}')),
        ([FOREVER, CRASHED], (70, 'process 1 was killed by SIGSEGV, the others were ended')),
        (['raise SystemExit(3)', FOREVER], (3, 'process 0 ended with exit status 3, the others were ended')),
        ([says(LEADERLESS, ABORTS), says(SILENT, ABORTS), KILLED, FOREVER], (75, 'process 2 was killed by SIGKILL')),
        ([says(SILENT, ABORTS)], (75, f'{MISSED}{AGAIN}')),
        ([says(LEADERLESS, ABORTS), says(SILENT, ABORTS), FOREVER], (75, f'{MISSED}{AGAIN}')),
        ([says('Check failed: x', ABORTS)], (70, 'the process on this host was killed by SIGABRT')),
        ([says('error: process 1 failed: no such file', 'sys.exit(3)')], (3, 'process 1 failed: no such file')),
    ],
)
def test_it_ends_with_one_code_and_names_who_began(programs, expected):
    code, why = start(*programs).wait()
    assert (code, why[: len(expected[1])] or why) == expected


@pytest.mark.parametrize(
    ('first', 'expected'),
    [
        ('raise SystemExit(3)', (3, 'process 0 ended with exit status 3, the others were ended')),
        ('raise SystemExit(75)', (75, f'stopped by SIGTERM{AGAIN}')),
        (KILLED, (75, f'stopped by SIGTERM{AGAIN}')),
    ],
)
def test_a_signal_does_not_hide_who_had_failed_for_good(monkeypatch, first, expected):
    monkeypatch.setattr(parent, 'OWN_SECONDS', 60.0)
    both = start(first, FOREVER)
    both.listen()
    while not both.ended:
        assert both.turn()
    os.kill(os.getpid(), signal.SIGTERM)
    assert both.wait() == expected


@pytest.mark.parametrize(('count', 'expected'), [(2, 0), (1, 2)])
def test_a_port_that_was_taken_meanwhile_is_not_the_last(monkeypatch, tmp_path, count, expected):
    """Where the parent chose it."""
    taken = says('error: --coordinator: port 7 is not free here (x); give another', 'sys.exit(2)')
    first = f'import pathlib\nif not pathlib.Path({str(tmp_path / "again")!r}).exists():\n  {taken}'
    tries = []

    def commands(*_) -> list[list[str]]:
        if tries:
            (tmp_path / 'again').touch()
        tries.append(count)
        return [[sys.executable, '-c', text] for text in (first, 'pass')[:count]]

    monkeypatch.setattr(parent, 'commands', commands)
    for name, value in (('PROCESSES', count), ('GRACE_SECONDS', 1)):
        monkeypatch.setattr(parent, name, types.SimpleNamespace(value=value))
    with pytest.raises(SystemExit) as ended:
        parent.main(['--config=a'])
    assert (ended.value.code, len(tries)) == (expected, count)


def test_flags_of_the_run_are_for_the_run(tmp_path):
    """A cache that the parent has no use for does not keep it from starting, and what it would drop it refuses."""
    given = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    given |= {'PYTHONPATH': str(ROOT), 'ADX_CACHE': '/proc/none'}

    def run(*flags: str) -> tuple[int, str]:
        command = [sys.executable, '-m', 'launch.parent', *flags]
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, said = run('--', '--compile_cache=none', '--no_such_flag')
    assert (code, said.splitlines()[0]) == (2, "error: Unknown command line flag 'no_such_flag'; see --help")
    for flag in ('--compile_cache=none', '--start_seconds=3'):
        refused = f'error: {flag.partition("=")[0]} is of launch.run; give it after --\n'
        assert run(flag, '--', '--config=a') == (2, refused)


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        (LEADERLESS, 'process 0 died'),
        (f'{LATE}Heartbeat', 'process 0 died'),
        (f'{LATE}RegisterTask', 'some process did not start in time'),
        ('error: process 1 of 2 did not start within 3 s; see why', 'process 1 of 2 did not start within 3 s'),
        ('error: processes [1, 3] of 4 did not start within 3 s; see', 'processes [1, 3] of 4 did not start'),
        ('error: process 1 of 2 made no progress for 9 s and', 'process 1 of 2 made no progress for 9 s'),
        ('error: another process of this program ended (UNKNOWN: Gloo', 'a process of another host ended'),
    ],
)
def test_a_survivors_log_names_whom_it_missed(text, named):
    how = 'sys.exit(75)' if text.startswith('error') else ABORTS
    code, why = start(says(text, how)).wait()
    assert (code, why[: len(named)]) == (75, named)


def test_signals_go_on_to_all_and_what_does_not_end_is_killed(tmp_path):
    ready = [tmp_path / 'gentle', tmp_path / 'stubborn']
    # A shell that starts tests in the background has them ignore SIGINT, and so their children.
    heed = 'import pathlib, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)'
    gentle = f'{heed}\ntry: pathlib.Path({str(ready[0])!r}).touch(); time.sleep(600)'
    stubborn = STUBBORN.replace(FOREVER, f'open({str(ready[1])!r}, "w"); {FOREVER}')
    stopped = start(f'{gentle}\nexcept KeyboardInterrupt: raise SystemExit(75)', stubborn)
    stopped.grace = 3.0  # enough for the gentle one on a busy machine
    stopped.listen()
    while not all(path.exists() for path in ready):
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
    assert stopped.wait() == (75, f'stopped by SIGINT{AGAIN}')
    assert [child.status for child in stopped.children] == [75, -signal.SIGKILL]
    assert time.monotonic() - began < 8


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a process that its parent has died')
def test_children_end_when_their_parent_is_killed():
    child = f'from launch import joining; joining.end_with_parent(); print("here", flush=True); {FOREVER}'
    text = f'import sys, time; from launch import parent; parent.start([sys.executable, "-c", {child!r}], 0); {FOREVER}'
    with subprocess.Popen([sys.executable, '-c', text], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'here\n'
        process.kill()
        assert process.stdout.read() == ''  # nobody holds the pipe any more


def call(processes, count, seconds=20.0) -> dict[int, str]:
    """Process -> what the roll call told it."""
    at, told = f'127.0.0.1:{free_port()}', {}

    def answer(process):
        try:
            joining.roll_call(at, count, process, seconds)
            told[process] = ''
        except Interrupted as error:
            told[process] = str(error)

    threads = [threading.Thread(target=answer, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with socket.create_server(('127.0.0.1', int(at.split(':')[1]))):  # the port is free for JAX
        return told


def test_a_roll_call_ends_when_all_are_there():
    assert call(range(4), 4) == dict.fromkeys(range(4), '')


@pytest.mark.parametrize(
    ('there', 'count', 'missing'),
    [
        ((0, 1), 3, 'process 2 of 3 did not start within 1 s'),
        ((0, 2), 4, 'processes [1, 3] of 4'),
        ((1,), 2, 'process 0 of 2'),
    ],
)
def test_a_roll_call_names_who_is_missing_to_all(there, count, missing):
    began = time.monotonic()
    told = call(there, count, 1.0)
    assert set(told) == set(there)
    assert all(message.startswith(missing) for message in told.values()), told
    assert time.monotonic() - began < 8


def test_a_port_that_is_taken_is_said():
    with socket.create_server(('', free_port())) as taken, pytest.raises(ConfigError, match='is not free here'):
        joining.roll_call(f'127.0.0.1:{taken.getsockname()[1]}', 2, 0, 1)
    with pytest.raises(ConfigError, match='must be host:port'):
        joining.roll_call('somewhere', 2, 0, 1)


def test_the_runs_flags_stand_behind_two_dashes():
    assert parent.split(['x', '--processes=2', '--', '--config=a', '--', 'b']) == (
        ['x', '--processes=2'],
        ['--config=a', '--', 'b'],
    )
    alone, *_ = parent.commands(['--config=a'], 1)
    assert alone[-3:] == ['launch.run', '--config=a', '--distributed']
    first, second = parent.commands(['--config=a'], 2)
    assert (first[:-1], first[-1], second[-1]) == (second[:-1], '--process_id=0', '--process_id=1')
