"""How the processes of one program across hosts find each other, and the flags for it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time

from absl import flags

from adx.errors import ConfigError, Interrupted

DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One program across hosts, for models larger than one.')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0, where JAX cannot detect it.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: this process.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes.')
START_SECONDS = flags.DEFINE_integer('start_seconds', 300, 'How long all wait for one that does not start.', 1)
SILENT_SECONDS = flags.DEFINE_integer('silent_seconds', 100, 'After so long one that says nothing is dead.', 1)
STRAGGLER_SECONDS = flags.DEFINE_integer(
    'straggler_seconds', 600, 'How long all wait for one that lives and does not go on. Compiling may take minutes.', 1
)

PARENT = 'ADX_PARENT'  # the process id of launch.parent
PR_SET_PDEATHSIG = 1  # of Linux
AGAIN_SECONDS = 0.2  # between attempts to reach process 0
LINE = 4096  # bytes that an answer of the roll call is shorter than


def join() -> None:
    """Joins the other processes of one program.

    Raises ConfigError where JAX cannot tell which they are, and Interrupted naming those that did not start where
    --coordinator says who is who.
    """
    import jax

    end_with_parent()
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from `Interrupts`
    at, count, process = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if at and count is not None and process is not None and 0 <= process < count:
        roll_call(at, count, process, START_SECONDS.value)
    try:
        jax.distributed.initialize(
            at, count, process,
            initialization_timeout=START_SECONDS.value, heartbeat_timeout_seconds=SILENT_SECONDS.value,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f'--distributed: {str(error).splitlines()[0]}; give --coordinator, --process_id and --num_processes'
        ) from error


def end_with_parent() -> None:
    """Has the kernel send SIGTERM when launch.parent dies, however it does: nobody else would end this process."""
    parent = os.environ.get(PARENT)
    if parent and sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            signal.raise_signal(signal.SIGTERM)


def roll_call(coordinator: str, count: int, process: int, seconds: float) -> None:
    """Returns once all processes are there; after `seconds` raises Interrupted on each that is, naming the others.

    JAX's own wait for them ends in an abort that names nobody. It is held on the coordinator's port, which is free
    until JAX starts.
    """
    host, _, port = coordinator.rpartition(':')
    if not port.isdecimal():
        raise ConfigError(f'--coordinator={coordinator!r} is not allowed; it must be host:port')
    ends = time.monotonic() + seconds
    missing = _hold(int(port), count, ends) if process == 0 else _answer((host, int(port)), process, ends)
    if missing:
        raise Interrupted(
            f'{names(missing)} of {count} did not start within {seconds:.0f} s; see why there, '
            'or give more --start_seconds; the same commands continue'
        )


def names(processes: list[int]) -> str:
    """In a message."""
    return f'process {processes[0]}' if len(processes) == 1 else f'processes {processes}'


def _hold(port: int, count: int, ends: float) -> list[int]:
    """Process 0's part: tells everyone who is missing, which it returns."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            raise ConfigError(f'--coordinator: port {port} is not free here ({error}); give another') from error
        found: dict[int, socket.socket] = {}
        while len(found) < count - 1 and (left := ends - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                one = stack.enter_context(server.accept()[0])
                one.settimeout(5)  # whoever says nothing holds nobody up for long
                process = int(one.recv(LINE))
                if 0 < process < count:
                    found[process] = one
        missing = [process for process in range(1, count) if process not in found]
        for one in found.values():
            with contextlib.suppress(OSError):
                one.sendall(json.dumps(missing).encode())
        for one in found.values():
            with contextlib.suppress(OSError):
                one.recv(1)  # until it has hung up: who closes first would keep the port from JAX
        return missing


def _listen(port: int) -> socket.socket:
    """On every interface, as JAX's own service does."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=1024)


def _answer(address: tuple[str, int], process: int, ends: float) -> list[int]:
    """What process 0 says is missing; [0] where it is not there."""
    while (left := ends - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as one:
                one.sendall(str(process).encode())
                one.settimeout(left + 5)  # process 0 may have begun to wait later
                if said := one.recv(LINE):
                    return json.loads(said)
        except (OSError, ValueError):
            pass
        time.sleep(AGAIN_SECONDS)
    return [0]
