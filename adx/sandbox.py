"""Runs a program nobody has read, in a process that can compute, read files, nothing else.

Linux: resource limits, and a filter of system calls (seccomp, prctl(2)) that lets through what an interpreter needs to
compute and refuses the rest: files for writing, other processes, signals, sockets. Where the kernel allows, the
process also leaves the network (unshare(2)). It guards the machine, and the verdict against a program that ends early
or prints; not the verdict against a program that searches its own interpreter for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile

from adx.errors import ConfigError

PASSED, FAILED, TIMED_OUT = 'passed', 'failed', 'timed out'


@dataclasses.dataclass(frozen=True)
class Limits:
    """seconds: of CPU time; wall: seconds until it is killed anyway; memory: MB of address space."""

    seconds: int = 5
    wall: float = 10.0
    memory: int = 512


# Per machine: its AUDIT_ARCH, the calls that are let through, and those that open files with where their flags stand.
_CALLS: dict[str, tuple[int, list[int], dict[int, int]]] = {
    'x86_64': (
        0xC000003E,
        [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 63, 72, 79,
         89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 131, 158, 186, 201, 202, 204, 217, 218, 228, 229, 230, 231, 262,
         267, 269, 270, 271, 273, 318, 332, 334, 439],
        {2: 1, 257: 2},
    ),
    'aarch64': (
        0xC00000B7,
        [17, 23, 25, 48, 57, 61, 62, 63, 64, 66, 67, 72, 73, 78, 79, 80, 93, 94, 96, 98, 99, 101, 113, 114, 115,
         123, 124, 132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216,
         222, 226, 233, 278, 291, 293, 439],
        {56: 2},
    ),
}  # fmt: skip
_PROGRAM = r"""
import builtins, ctypes, json, os, resource, struct, sys
job = json.loads(sys.stdin.readline())
verdict = os.dup(1)
null = os.open('/dev/null', os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
os.close(null)
libc = ctypes.CDLL(None, use_errno=True)
network = libc.unshare(0x10000000 | 0x40000000) == 0 or libc.unshare(0x40000000) == 0
for name, limit in (('CPU', job['seconds']), ('AS', job['memory'] << 20), ('FSIZE', 0), ('CORE', 0), ('NPROC', 0)):
    resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (limit, limit + (name == 'CPU')))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
machine, calls, opens = job['filter']
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
rows = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (6, 0, 0, KILL), (0x20, 0, 0, 0)]
for call in calls:
    rows += [(0x15, 0, 1, call), (6, 0, 0, ALLOW)]
for call, argument in opens.items():  # for reading only: none of O_ACCMODE, O_CREAT, O_TRUNC, O_TMPFILE's own bit
    rows += [(0x15, 0, 4, int(call)), (0x20, 0, 0, 16 + 8 * argument), (0x45, 1, 0, 0o20001103), (6, 0, 0, ALLOW),
             (6, 0, 0, REFUSE)]
rows.append((6, 0, 0, REFUSE))
program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *row) for row in rows))
pointer = ctypes.create_string_buffer(struct.pack('@HP', len(rows), ctypes.addressof(program)))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, pointer, 0, 0):
    os.write(verdict, (job['token'] + 'unconfined').encode())
    os._exit(0)
if job['probe']:
    os.write(verdict, (job['token'] + ('no network' if network else 'network')).encode())
    os._exit(0)
write, leave, token, code, tests = os.write, os._exit, job['token'], job['code'], job['tests']
del job
space, outcome = {'__name__': '__main__'}, 'failed'
try:
    exec(compile(code, 'answer', 'exec'), space)
    exec(compile(tests, 'tests', 'exec'), space)
    outcome = 'passed'
except BaseException:
    pass
write(verdict, (token + outcome).encode())
leave(0)
"""
_READ = 1000  # bytes: a verdict is shorter


def run(code: str, tests: str, limits: Limits = Limits()) -> str:
    """PASSED where `tests` run to their end after `code`, in one namespace; TIMED_OUT at a limit of time, else FAILED.

    What the program prints is thrown away. Raises ConfigError where this machine cannot confine a program.
    """
    isolation()
    return _start(code, tests, limits, probe=False)


@functools.cache
def isolation() -> str:
    """'no network' where the process leaves the network as well, 'network' where only the filter keeps it from there.

    Raises ConfigError where there is no filter: nothing is run then.
    """
    said = _start('', '', Limits(), probe=True) if _machine() in _CALLS else ''
    if said not in ('no network', 'network'):
        raise ConfigError(
            f'this machine ({sys.platform}, {_machine()}) cannot confine a program, so code cannot be graded here; use '
            f'Linux with seccomp on one of {sorted(_CALLS)}'
        )
    return said


def _machine() -> str:
    return os.uname().machine if sys.platform == 'linux' else ''


def _start(code: str, tests: str, limits: Limits, probe: bool) -> str:
    token = secrets.token_hex(16)
    job = {
        'code': code, 'tests': tests, 'token': token, 'probe': probe, 'seconds': limits.seconds,
        'memory': limits.memory, 'filter': _CALLS[_machine()],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps(job).encode() + b'\n')
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, '-I', '-S', '-c', _PROGRAM], stdin=given, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            return _verdict(process, token, limits)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()


def _verdict(process: subprocess.Popen[bytes], token: str, limits: Limits) -> str:
    """The one word that an honest run writes; anything else, or nothing, is a failure."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], limits.wall)[0]:
        return TIMED_OUT
    said = os.read(process.stdout.fileno(), _READ).decode('ascii', 'replace')
    if said:
        return said.removeprefix(token) if said.startswith(token) else FAILED
    try:
        return TIMED_OUT if process.wait(limits.wall) in (-signal.SIGXCPU, -signal.SIGKILL) else FAILED
    except subprocess.TimeoutExpired:  # it closed what it was to write to and lives on
        return TIMED_OUT
