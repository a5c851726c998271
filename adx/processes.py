"""Processes that share work or are one program across hosts: what they tell each other.

Those of one program (jax.distributed) also end together.

A process that runs alone talks to nobody and starts no backend here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from adx import pace
from adx.errors import BUG, COMPLETE, AdxError, ConfigError, Interrupted
from adx.mesh import DATA, Layout, make_mesh

LATE = 4  # steps that a vote is read behind

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Place:
    """Which share of the work this process takes; `writes` is False on all but one process of one program.

    may_change: go on in an environment that the workdir does not know, see environments.py.
    """

    shard: int = 0
    num_shards: int = 1
    writes: bool = True
    may_change: bool = False


ALONE = Place()


class PeerError(AdxError):
    """What another process failed with."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def gather(text: str) -> list[str]:
    """The text of every process, by process index. All processes call it."""
    if not jax.distributed.is_initialized():
        return [text]
    from jax.experimental import multihost_utils

    pace.meet()
    data = np.frombuffer(text.encode(), np.uint8)
    with ending_together():
        sizes = multihost_utils.process_allgather(np.int32(data.size))
        padded = np.zeros(max(1, sizes.max()), np.uint8)
        padded[: data.size] = data
        rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def together(work: Callable[[], T]) -> T:
    """Runs `work`, which does not communicate, on every process. If it fails on one, all raise and none hangs."""
    failure: Exception | None = None
    result: list[T] = []
    try:
        result.append(work())
    except Exception as error:
        failure = error
    told = (getattr(failure, 'exit_code', BUG), str(failure)) if failure else (COMPLETE, '')
    everyone = gather(json.dumps(told))
    if failure:
        raise failure
    for process, (code, message) in enumerate(map(json.loads, everyone)):
        if code != COMPLETE:
            raise PeerError(f'process {process} failed: {message}', code)
    return result[0]


def wait() -> None:
    """Until all processes are here: what one of them wrote before, all can read after."""
    gather('')


def check_same(what: str, digest: Callable[[], str]) -> None:
    """Raises ConfigError on every process unless all have the same digest of `what`."""
    if not jax.distributed.is_initialized():
        return
    digests = gather(digest())
    other = [process for process, theirs in enumerate(digests) if theirs != digests[0]]
    if other:
        raise ConfigError(f'processes {other} have other {what} than process 0; give all the same config and files')


class Vote:
    """Whether any process wants to stop: asked at every step, known LATE steps after it, to all at the same step.

    So the devices never wait for the hosts, and nobody stops at a step that others go on from.
    """

    def __init__(self) -> None:
        layout = Layout(make_mesh(jax.device_count()), {'B': (DATA,)})
        self._split, self._cast = layout.sharding('B'), collections.deque[jax.Array]()
        self._any = jax.jit(jnp.any, out_shardings=layout.sharding(''))

    def __call__(self, wanted: bool) -> bool:
        """Whether any process wanted it LATE calls ago. All processes call it at the same step."""
        pace.step()
        ours_B = np.full(jax.local_device_count(), wanted)
        self._cast.append(self._any(jax.make_array_from_process_local_data(self._split, ours_B)))
        return len(self._cast) > LATE and bool(self._cast.popleft())


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Raises Interrupted where a computation failed because another process had ended."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, TimeoutError) as error:
        # jaxlib raises a ValueError for what Gloo met, Orbax a TimeoutError where a process did not write its part.
        foreign = isinstance(error, ValueError) and 'Gloo' not in str(error)
        if foreign or not jax.distributed.is_initialized() or 'RESOURCE_EXHAUSTED' in str(error):
            raise
        reason = (str(error).splitlines() or [''])[0]
        raise Interrupted(
            f'another process of this program ended ({reason}); finished traces are saved, the same commands continue'
        ) from error
