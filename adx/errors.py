"""Errors that a user can act on: one line with the thing, what was given, allowed, the fix.

Each carries the exit code of the process. Anything else that escapes is a bug and exits with 70.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

COMPLETE, REJECTED_ROWS, BUG = 0, 5, 70


class AdxError(Exception):
    """Base of the errors below; `exit_code` is what launch.run returns."""

    exit_code = BUG


class ConfigError(AdxError):
    """Flags or a config that cannot be run."""

    exit_code = 2


class InputError(AdxError):
    """A checkpoint, data file or prompt that cannot be used."""

    exit_code = 3


class WorkdirError(AdxError):
    """A workdir that is busy, foreign or of another format."""

    exit_code = 4


class StorageError(AdxError):
    """Storage that failed after retries; says what is safe."""

    exit_code = 74


class Interrupted(AdxError):
    """A run that was stopped and can be resumed by the same command."""

    exit_code = 75


def extra(name: str) -> str:
    """How packages that adx can do without are installed: its name on package indices is somebody else's."""
    return f"run in the directory of adx: pip install -e '.[{name}]'"


@contextlib.contextmanager
def malformed(what: str, fix: str, kind: type[AdxError] = InputError) -> Iterator[None]:
    """Turns what a file with values of the wrong kind makes code raise into an error of `kind`. For borders only."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise kind(f'{what} ({type(error).__name__}: {reason}); {fix}') from error
