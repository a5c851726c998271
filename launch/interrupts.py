"""Stops a run between two writes: by signal, or after a time limit."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from adx.errors import Interrupted

# Together 8: schedulers kill ten seconds after SIGTERM.
GRACE_SECONDS = 5.5  # for the main thread to end by itself
WRITE_SECONDS = 2.5  # more, for a write that is under way then


class Interrupts:
    """Turns SIGTERM, SIGINT and a time limit into `Interrupted`, raised once in the main thread, never inside `guard`.

    Python runs no handler while the main thread is inside a compilation or waits for another process: a thread then
    ends the process after GRACE_SECONDS, with the same message and exit code, and inside `guard` only where that takes
    WRITE_SECONDS more: an upload is retried for minutes.
    """

    def __init__(self) -> None:
        self._writing = threading.RLock()
        self._guarded = False
        self._reason = ''

    def install(self, max_hours: float = 0.0) -> None:
        """max_hours: stop after so long; 0 never does."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        self.listen()
        if max_hours:
            signal.setitimer(signal.ITIMER_REAL, max_hours * 3600)

    def listen(self) -> None:
        """Takes the signals, also back from a library that took them; jax.distributed.initialize may."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Holds an interruption back until the block is left."""
        with self._writing:
            self._guarded = True
            try:
                yield
            finally:
                self._guarded = False
        # Raised again at every guard: a library may have swallowed the first.
        if self._reason:
            raise self._interrupted()

    def _handle(self, number: int, _: FrameType | None) -> None:
        first, self._reason = not self._reason, self._reason or _name(number)
        if first and not self._guarded:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f'stopped by {self._reason}; finished traces are saved, the same command continues')

    def _watch(self, reader: int) -> None:
        """Ends the process some time after the first signal, which the C-level handler writes to a pipe at once."""
        number = os.read(reader, 1)[0]
        time.sleep(GRACE_SECONDS)
        self._reason = self._reason or _name(number)
        self.end(str(self._interrupted()))

    def end(self, message: str, pause: float = 0.0) -> NoReturn:
        """Ends the process with 75 from another thread than the main one, between two writes if there is time.

        A write that is cut off does no harm, as a kill does none: the torn tail of a journal is cut off when it is
        opened again, a file and a checkpoint get their names when they are whole, an object is there when its upload
        has ended. What it was to save is made anew.
        pause: seconds between the message and the end.
        """
        if not self._writing.acquire(timeout=WRITE_SECONDS):
            message = f'{message} (a write that took too long was cut off, what it was to save is made anew)'
        print(f'error: {message}', file=sys.stderr, flush=True)
        sys.stderr = io.StringIO()  # what the main thread fails with meanwhile follows from the same
        time.sleep(pause)
        os._exit(Interrupted.exit_code)


def _name(number: int) -> str:
    names = {signal.SIGALRM: '--max_hours reached', signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'SIGINT'}
    return names[signal.Signals(number)]
