"""Stops a run between two writes: by signal, or after a time limit."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from adx.errors import Interrupted


class Interrupts:
    """Turns SIGTERM, SIGINT and a time limit into `Interrupted`, raised in the main thread but never inside `guard`.

    Install after jax.distributed.initialize, which takes SIGTERM for itself when it comes later.
    """

    def __init__(self) -> None:
        self._guarded = False
        self._reason = ''

    def install(self, max_hours: float = 0.0) -> None:
        """max_hours: stop after so long; 0 never does."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._handle)
        if max_hours:
            signal.setitimer(signal.ITIMER_REAL, max_hours * 3600)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Holds an interruption back until the block is left."""
        self._guarded = True
        try:
            yield
        finally:
            self._guarded = False
        self._raise()

    def _handle(self, number: int, _: FrameType | None) -> None:
        names = {signal.SIGALRM: '--max_hours reached', signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'SIGINT'}
        self._reason = names[signal.Signals(number)]
        if not self._guarded:
            self._raise()

    def _raise(self) -> None:
        # The reason stays: where a library swallows the error, the next guard raises it again.
        if self._reason:
            raise Interrupted(f'stopped by {self._reason}; finished traces are saved, the same command continues')
