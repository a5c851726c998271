"""How programs start and end: what a user can mend is one line and an exit code."""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from adx.errors import BUG, COMPLETE, AdxError, ConfigError, StorageError
from launch import environment


def start(main: Callable[[], None], compiles: bool = True) -> None:
    """Parses the flags, calls main and exits: 0, 2 for flags, the code of an AdxError, or 70 for anything else."""
    app.run(lambda _: call(main), flags_parser=functools.partial(parse, compiles=compiles))


def call(main: Callable[[], None]) -> None:
    try:
        main()
    except AdxError as error:
        _end(error)
    except Exception as error:
        sys.exit(unforeseen(error))


def parse(argv: list[str], compiles: bool = True) -> list[str]:
    """As absl does, but a wrong flag or anything that is no flag exits with 2, without a traceback, and --help with 0.

    compiles: False where only other processes need the compile cache, which is then theirs to make and to refuse.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        _end(ConfigError(f'{error}; see --help'))
    except SystemExit:  # absl's flags for help have printed it and end with 1, as if that were an error
        sys.exit(COMPLETE)
    if rest:
        _end(ConfigError(f'{rest} are no flags; every value is given as --flag=value, see --help'))
    # JAX narrates which backends are not there, Orbax what it reads and writes; log lines of a run are JSON.
    logging.getLogger('jax').setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        environment.begin(compiles)
    except ConfigError as error:
        _end(error)
    return argv


def unforeseen(error: Exception) -> int:
    """Says what ended a program that no AdxError did; its exit code."""
    from adx.files import is_of_client, reason
    from adx.fitting import is_exhausted

    if is_of_client(error):
        print(f'error: storage failed ({reason(error)}); what was saved is safe: run it again', file=sys.stderr)
        return StorageError.exit_code
    if is_exhausted(error):
        fix = 'lower decode.slots or recipe.rows, or split the models with mesh.model'
        print(f'error: the devices have no memory left; {fix}, what is finished is saved', file=sys.stderr)
        return ConfigError.exit_code
    traceback.print_exc()
    print('error: this is a bug in adx; please report the lines above', file=sys.stderr)
    return BUG


def _end(error: AdxError) -> NoReturn:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
