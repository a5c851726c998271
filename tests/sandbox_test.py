"""Programs that try to do harm: each fails or runs out of time, and nothing is left behind."""

from __future__ import annotations

import os
import time

import pytest

from adx import sandbox
from adx.sandbox import FAILED, PASSED, TIMED_OUT, Limits

try:
    ISOLATION = sandbox.isolation()
except sandbox.ConfigError:
    ISOLATION = ''
needs_filter = pytest.mark.skipif(not ISOLATION, reason='this machine cannot confine a program')
QUICK = Limits(seconds=1, wall=3.0, memory=256)


@needs_filter
class TestVerdict:
    def test_passes_only_where_all_tests_do(self):
        code = 'def add(a, b):\n    return a + b'
        assert sandbox.run(code, 'assert add(1, 2) == 3\nassert add(0, 0) == 0') == PASSED
        assert sandbox.run(code, 'assert add(1, 2) == 3\nassert add(0, 0) == 1') == FAILED
        assert sandbox.run('def add(:', '') == FAILED
        assert sandbox.run('', 'add(1, 2)') == FAILED
        assert sandbox.run('x = "é\\ud800"', 'assert len(x) == 2') == PASSED

    def test_a_program_may_import_and_read(self):
        code = 'import math, re, heapq, itertools, collections, functools, random, datetime, decimal, json, statistics'
        assert sandbox.run(code, 'assert math.comb(5, 2) == 10\nassert open(re.__file__).read(1)') == PASSED

    @pytest.mark.parametrize(
        'code',
        [
            'raise SystemExit(0)', 'import os; os._exit(0)', 'import os; os.abort()', 'print("passed")',
            'import os\nfor fd in range(40):\n    try: os.write(fd, b"passed")\n    except OSError: pass',
            'import os; os.closerange(0, 99)',
            'def f(): return f()\nf()',
        ],
    )  # fmt: skip
    def test_ending_early_or_printing_is_no_pass(self, code):
        assert sandbox.run(code, 'assert False') == FAILED

    @pytest.mark.parametrize(
        'code',
        [
            'while True: pass', 'import time; time.sleep(99)', 'while True: print("x" * 9999)',
            'import os, sys\nwhile True: os.write(2, b"x" * 9999)',
            'while True:\n    try:\n        while True: pass\n    except BaseException: pass',
            'import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass',
            'import os, time\nos.closerange(0, 99)\ntime.sleep(99)',
        ],
    )  # fmt: skip
    def test_endless_programs_end(self, code):
        start = time.monotonic()
        assert sandbox.run(code, '', QUICK) == TIMED_OUT
        assert time.monotonic() - start < 8


@needs_filter
class TestHarm:
    """Each program does the harm and catches nothing: it passes if it was let."""

    @pytest.mark.parametrize(
        'code',
        [
            'import os\nwhile True: os.fork()',
            'import subprocess; subprocess.run(["true"])',
            'import threading\nthreading.Thread(target=print).start()',
            'import os; os.execv("/bin/true", ["true"])',
            'import os; os.posix_spawn("/bin/true", ["true"], {})',
            'x = bytearray(1 << 33)',
            'x = []\nwhile True: x.append(bytearray(1 << 20))',
            'open("file", "w")',
            'open("/tmp/adx-sandbox-file", "w")',
            'import os; os.open("/tmp", os.O_TMPFILE | os.O_RDWR)',
            'import socket; socket.socket()',
            'import socket; socket.create_connection(("127.0.0.1", 80), 1)',
            'import os; os.kill(os.getppid(), 9)',
            'import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))',
            'import ctypes\nassert ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0',
        ],
    )
    def test_is_refused(self, code):
        assert sandbox.run(code, '', QUICK) == FAILED
        assert not os.path.exists('/tmp/adx-sandbox-file')

    def test_what_is_there_cannot_be_changed(self, tmp_path):
        path = tmp_path / 'kept'
        path.write_text('kept')
        for change in ('os.remove', 'os.unlink', 'lambda p: os.rename(p, p + "x")', 'lambda p: os.chmod(p, 0)',
                       'lambda p: os.truncate(p, 0)', 'lambda p: os.symlink(p, p + "x")', 'lambda p: os.mkdir(p + "x")',
                       'lambda p: open(p, "a")', 'lambda p: open(p, "r+")', 'lambda p: os.utime(p)'):  # fmt: skip
            assert sandbox.run(f'import os\n({change})({str(path)!r})', '', QUICK) == FAILED, change
        assert (path.read_text(), [*tmp_path.iterdir()]) == ('kept', [path])

    def test_nothing_of_the_environment_is_seen(self, monkeypatch):
        monkeypatch.setenv('ADX_SECRET', 'x')
        tests = 'import os\nassert "ADX_SECRET" not in os.environ\nassert os.listdir(".") == []'
        assert sandbox.run('', tests) == PASSED

    @pytest.mark.skipif(ISOLATION != 'no network', reason='this kernel gives a process no network of its own')
    def test_there_is_no_network_even_to_look_at(self):
        tests = 'assert [line.split(":")[0].strip() for line in open("/proc/self/net/dev")][2:] in ([], ["lo"])'
        assert sandbox.run('', tests) == PASSED


def test_a_machine_without_a_filter_runs_nothing(monkeypatch):
    monkeypatch.setattr(sandbox, '_machine', lambda: 'riscv64')
    sandbox.isolation.cache_clear()
    try:
        with pytest.raises(sandbox.ConfigError, match='cannot confine a program, so code cannot be graded here'):
            sandbox.run('', '')
    finally:
        sandbox.isolation.cache_clear()
