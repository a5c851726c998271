"""Starts one program across hosts and ends it as one: the parent of a host's processes.

    python -m launch.parent --processes=2 -- --config=configs/<name>.py --workdir=<directory>   all on this host
    python -m launch.parent -- --config=... --workdir=... --coordinator=host:port ...           one on each host

What follows `--` goes to launch.run, with --distributed. Signals go on to the processes. When one of them dies, the
others have 10 seconds to end by themselves, then 10 seconds after SIGTERM; the last line says which one died, also
where another host's did, as far as JAX's log names it. Ends with 75 where the same command resumes, also where JAX
aborted the survivors (exit status 134), with 70 where a process crashed, else with what launch.run ended with.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, NoReturn

from absl import app, flags

from adx.errors import BUG, COMPLETE, REJECTED_ROWS, ConfigError, Interrupted
from launch import environment, joining, program

PROCESSES = flags.DEFINE_integer('processes', 1, 'How many processes on this host; more than 1 are all there are.', 1)
GRACE_SECONDS = flags.DEFINE_integer('grace_seconds', 30, 'Between a signal from outside and SIGKILL.', 1)

OWN_SECONDS = 10.0  # for the others to end by themselves once one has died
STOP_SECONDS = 10.0  # from their SIGTERM to SIGKILL
POLL_SECONDS = 0.1
THEIRS = joining.__name__, environment.__name__  # modules whose flags this program has, and no use for
KEPT_LINES = 200  # of what a process said last
SAVED = COMPLETE, REJECTED_ROWS
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
AGAIN = '; what is finished is saved, the same command continues'
# What JAX says in every process that it aborts, and what launch.run says in one that ends because of another.
ABORTED = 'JAX distributed service detected fatal errors'
FOLLOWED = re.compile(
    r'^error: (another process|process \d+ failed|process(es)? \S.* (did not start|made no progress))', re.MULTILINE
)
# Process 0 binds the port seconds after this parent has found it free.
TAKEN = re.compile(r'^error: --coordinator: port \d+ is not free here', re.MULTILINE)
PORTS = 3  # that are tried
# What in the log of a survivor names the process that it missed; the first that is found counts.
NAMING = (
    (re.compile(r'^error: (process \d+ failed.*)', re.MULTILINE), '{}'),
    (re.compile(r'^error: (process(?:es)? \S.* did not start within \d+ s)', re.MULTILINE), '{}'),
    (re.compile(r'^error: (process(?:es)? \S.* made no progress for \d+ s)', re.MULTILINE), '{}'),
    (
        re.compile(r'Failed to send RPC to coordination service|RPC: \S+/Heartbeat'),
        'process 0 died or was silent for too long',
    ),
    (re.compile(r'RPC: \S+/RegisterTask'), 'some process did not start in time: look for the host that has no log'),
)
SILENT = re.compile(r'stopped sending heartbeats\):\s*(\d+(?:\s+\d+)*)\s')
UNNAMED = 'a process of another host ended; its log says why'


@dataclasses.dataclass
class Child:
    """One process of this host and the end of what it said. rank is None where only JAX knows it."""

    rank: int | None
    process: subprocess.Popen[str]
    lines: collections.deque[str]
    reader: threading.Thread
    told: bool = False  # whether this parent killed it

    @property
    def name(self) -> str:
        return 'the process on this host' if self.rank is None else f'process {self.rank}'

    @property
    def status(self) -> int | None:
        return self.process.poll()

    @property
    def text(self) -> str:
        return '\n'.join(self.lines)

    @property
    def survived(self) -> bool:
        """Whether it ended because another one had."""
        return ABORTED in self.text if self.status == -signal.SIGABRT else FOLLOWED.search(self.text) is not None


def commands(given: Sequence[str], count: int) -> list[list[str]]:
    """The command of each process of this host."""
    run = [sys.executable, '-m', 'launch.run', *given, '--distributed']
    if count == 1:
        return [run]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        at = f'--coordinator=127.0.0.1:{free.getsockname()[1]}'
    return [[*run, at, f'--num_processes={count}', f'--process_id={rank}'] for rank in range(count)]


def start(command: Sequence[str], rank: int | None) -> Child:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors='replace', bufsize=1,
        env=os.environ | {joining.PARENT: str(os.getpid())},
    )  # fmt: skip
    assert process.stderr is not None
    lines = collections.deque[str](maxlen=KEPT_LINES)
    reader = threading.Thread(target=_pass_on, args=(process.stderr, lines), daemon=True)
    reader.start()
    return Child(rank, process, lines, reader)


def _pass_on(said: IO[str], lines: collections.deque[str]) -> None:
    for line in said:
        lines.append(line.rstrip('\n'))
        sys.stderr.write(line)
        sys.stderr.flush()


class Parent:
    """Waits for its children; ends all once one has failed or a signal came."""

    def __init__(self, children: Sequence[Child], grace: float):
        self.children, self.grace = children, grace
        self.reason = ''  # the signal that came
        self.ended: list[Child] = []  # in the order of their ends
        self._plan: list[tuple[float, int]] = []  # when to send which signal

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)

    def begin(self, children: Sequence[Child]) -> None:
        self.children, self.ended = children, []
        if self.reason:  # came while they were started
            self.send(signal.SIGTERM)
        else:
            self._plan = []

    def _forward(self, number: int, _: FrameType | None) -> None:
        if not self.reason:
            self.reason = signal.Signals(number).name
            self.send(number)
            self._plan = [(time.monotonic() + self.grace, signal.SIGKILL)]

    def send(self, number: int) -> None:
        """To all that are left."""
        for child in self.children:
            if child.status is None:
                child.told = True
                child.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """(exit code, why) once all have ended."""
        while self.turn():
            time.sleep(POLL_SECONDS)
        for child in self.children:
            child.reader.join(timeout=1)
        return verdict(self.ended, self.reason)

    def turn(self) -> bool:
        """Looks once, sends what is due; whether any child is left."""
        new = [child for child in self.children if child.status is not None and child not in self.ended]
        self.ended += new
        if not self._plan and any(child.status not in SAVED for child in new):
            due = time.monotonic() + OWN_SECONDS
            self._plan = [(due, signal.SIGTERM), (due + STOP_SECONDS, signal.SIGKILL)]
        while self._plan and self._plan[0][0] <= time.monotonic():
            self.send(self._plan.pop(0)[1])
        return len(self.ended) < len(self.children)


def verdict(ended: Sequence[Child], reason: str) -> tuple[int, str]:
    """(exit code, one line) of processes in the order of their ends; reason: the signal that the parent got, or ''."""
    failed = [child for child in ended if child.status not in SAVED]
    if not failed:
        return max((child.status or COMPLETE for child in ended), default=COMPLETE), ''
    culprits = [child for child in failed if not child.told and not child.survived]
    if reason:  # whoever had failed for good by then would do so again
        culprits = [child for child in culprits if _how(child)[0] != Interrupted.exit_code]
        if not culprits:
            return Interrupted.exit_code, f'stopped by {reason}{AGAIN}'
    if not culprits:
        code = next((child.status for child in failed if (child.status or 0) > 0), None) or Interrupted.exit_code
        return code, _end(missed(failed), code)
    # Who was killed did not follow anybody; who failed otherwise may have, in a way that nobody thought of.
    first = min(culprits, key=lambda child: (child.status or 0) >= 0)
    code, how = _how(first)
    return code, _end(f'{first.name} {how}{", the others were ended" if len(ended) > 1 else ""}', code)


def _end(why: str, code: int) -> str:
    return f'{why}{AGAIN}' if code == Interrupted.exit_code else why


def _how(child: Child) -> tuple[int, str]:
    """(exit code, what became of it)"""
    status = child.status or 0
    if status >= 0:
        return status, f'ended with exit status {status}'
    number = signal.Signals(-status)
    return (BUG if number in CRASHES else Interrupted.exit_code), f'was killed by {number.name}'


def missed(survivors: Sequence[Child]) -> str:
    """Which process the survivors missed, as their logs name it."""
    text = '\n'.join(child.text for child in survivors) + '\n'
    if found := SILENT.search(text):  # before all others: process 0 aborts too, and is then missed itself
        return f'{joining.names([int(rank) for rank in found[1].split()])} died or was silent for too long'
    for pattern, message in NAMING:
        if found := pattern.search(text):
            return message.format(*found.groups())
    return UNNAMED


def main(given: Sequence[str]) -> NoReturn:
    if not given:
        raise ConfigError('nothing to run; give the flags of launch.run after --')
    by_module = flags.FLAGS.flags_by_module_dict()
    if theirs := [one.name for name in THEIRS for one in by_module[name] if one.present]:
        raise ConfigError(f'--{theirs[0]} is of launch.run; give it after --')
    ranks = range(PROCESSES.value) if PROCESSES.value > 1 else (None,)
    parent = Parent([], GRACE_SECONDS.value)
    parent.listen()
    for _ in range(PORTS):
        parent.begin([start(*each) for each in zip(commands(given, PROCESSES.value), ranks, strict=True)])
        code, why = parent.wait()
        if parent.reason or PROCESSES.value == 1 or not any(TAKEN.search(one.text) for one in parent.children):
            break
    if why:
        print(f'error: {why}', file=sys.stderr)
    sys.exit(code)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the parent's own arguments, those of launch.run)"""
    at = argv.index('--') if '--' in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


if __name__ == '__main__':
    OWN, GIVEN = split(sys.argv)
    PARSE = functools.partial(program.parse, compiles=False)
    app.run(lambda _: program.call(lambda: main(GIVEN)), argv=OWN, flags_parser=PARSE)
