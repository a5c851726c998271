"""Calls that are made again after an error that may pass, as of a store that is busy."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')

ATTEMPTS, ATTEMPT_SECONDS = 4, 120.0  # of one upload or read; none is begun after so long
FIRST_WAIT = 1.0  # seconds after the first attempt, at most; then twice as long each time
FINAL = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, ImportError)  # no retry mends them


def retried(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """What `call` returns, called again after an error that may pass; so it must be harmless to call it twice.

    Raises OSError when the last attempt failed, whatever the client library raised.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except FINAL:
            raise
        except Exception as error:  # each store's client has its own exceptions
            if getattr(error, 'code', None) in (401, 403) or str(error).startswith('Forbidden'):
                raise PermissionError(errno.EACCES, reason(error)) from error
            if attempt == ATTEMPTS or time.monotonic() - began > ATTEMPT_SECONDS:
                raise OSError(errno.EIO, f'{reason(error)} (after {attempt} attempts)') from error
        # Jitter, so that those who failed together come back one by one.
        sleep(random.uniform(0.5, 1.0) * FIRST_WAIT * 2.0 ** (attempt - 1))
    raise AssertionError


def reason(error: Exception) -> str:
    """One line."""
    lines = str(error).splitlines()
    return f'{type(error).__name__}{f": {lines[0]}" if lines else ""}'
