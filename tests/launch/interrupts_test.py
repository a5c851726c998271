"""A run ends soon after a signal, between two writes, even where the exception is lost on its way."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import interrupts

ROOT = pathlib.Path(__file__).parents[2]
# Writes for longer than the grace, and swallows interruptions as a callback of a library does.
STUBBORN = """
import contextlib, sys, time
from adx.errors import Interrupted
from launch import interrupts

interrupts.GRACE_SECONDS = 0.3
stop = interrupts.Interrupts()
stop.install(float(sys.argv[1]) / 3600)
while True:
    with contextlib.suppress(Interrupted), stop.guard():
        print('begun', flush=True)
        time.sleep(1)
        print('written', flush=True)
    with contextlib.suppress(Interrupted):
        time.sleep(1)
"""


@pytest.mark.parametrize(
    ('seconds', 'signals', 'reason'),
    [
        (0, [signal.SIGTERM], 'SIGTERM'),
        (0, [signal.SIGINT, signal.SIGTERM], 'SIGINT'),
        (0.1, [], '--max_hours reached'),
    ],
)
def test_ends_with_75_but_never_inside_a_write(seconds, signals, reason):
    command = [sys.executable, '-c', STUBBORN, str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        begun = process.stdout.readline()
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert (begun + out).splitlines() == ['begun', 'written']
    assert err == f'error: stopped by {reason}; finished traces are saved, the same command continues\n'


# As an upload that is tried again and again, which takes up to two minutes.
BLOCKED = """
import time
from adx import files
from launch import interrupts

interrupts.GRACE_SECONDS = interrupts.WRITE_SECONDS = 0.3
stop = interrupts.Interrupts()
stop.install()
with stop.guard():
    print('begun', flush=True)
    files.retried(lambda: time.sleep(120))
"""


def test_a_write_that_does_not_end_holds_nobody_up():
    command = [sys.executable, '-c', BLOCKED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert time.monotonic() - began < 8
    assert process.returncode == 75, err
    assert err.startswith('error: stopped by SIGTERM; finished traces are saved, the same command continues (a write')
    assert interrupts.GRACE_SECONDS + interrupts.WRITE_SECONDS <= 8  # of the ten seconds of a scheduler
