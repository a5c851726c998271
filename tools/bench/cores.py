"""Processes that have cores of their own and work whenever they are told to.

A bench starts itself again as the other side: the flag --worker says which of the processes it is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from absl import flags

from adx.errors import ConfigError

WORKER = flags.DEFINE_integer('worker', None, 'Which of its processes this one is; given by the program itself.')


def available() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


class Replica:
    """A process on one core, with `environ` beside this one's; its first line says that it is warm."""

    def __init__(self, core: int, command: Sequence[str], environ: Mapping[str, str]):
        pinned, pipe = ['taskset', '-c', str(core), sys.executable, *command], subprocess.PIPE
        self._process = subprocess.Popen(pinned, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **environ})

    def tell(self) -> None:
        assert self._process.stdin
        self._process.stdin.write('\n')
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """What the last time came to. Raises ConfigError where the process died."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(f'a replica ended with {self._process.wait()}; its own message stands above')
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def at_once(replicas: Sequence[Replica]) -> list[dict[str, Any]]:
    """What each comes to while all of them work."""
    for replica in replicas:
        replica.tell()
    return [replica.read() for replica in replicas]


@contextlib.contextmanager
def started(
    commands: Sequence[Sequence[str]], environ: Mapping[str, str] = MappingProxyType({})
) -> Iterator[list[Replica]]:
    """A replica for each command, which is told its number, with a core each. Raises ConfigError for too few cores."""
    cores = available()
    if len(cores) < len(commands):
        raise ConfigError(f'{len(commands)} replicas want a core each and there are {len(cores)}')
    replicas: list[Replica] = []
    try:
        for number, command in enumerate(commands):
            replicas.append(Replica(cores[number], [*command, f'--worker={number}'], environ))
        for replica in replicas:
            replica.read()
        yield replicas
    finally:
        for replica in replicas:
            replica.end()


def serve(work: Callable[[], dict[str, Any]]) -> None:
    """The other side: a line once it is warm, and one for every line it reads."""
    print(json.dumps({'warm': True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)
