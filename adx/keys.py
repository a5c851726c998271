"""Key files: 32 bytes in hexadecimal, readable by their owner alone, printed nowhere.

Nothing of them is logged or written elsewhere.

    master.key                 only where customers' keys are made
    <customer>.<epoch>.key     a customer's key of an epoch: all that a process that marks traces holds

Such a process reads the directory that ADX_KEYS names.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets

from etils import epath

from adx import files, marks
from adx.errors import ConfigError, InputError

DIRECTORY = 'ADX_KEYS'  # environment variable
NAME = re.compile(r'[A-Za-z0-9_-]+')


def new(path: epath.PathLike) -> None:
    """Writes a fresh master key. Raises ConfigError where there is a file already."""
    _write(epath.Path(path), secrets.token_bytes(marks.KEY_BYTES))


def derive(master: epath.PathLike, directory: epath.PathLike, customer: str, epoch: int) -> epath.Path:
    """Writes the key of a customer and an epoch and returns its path."""
    key = marks.subkey(read(master), _named(customer), epoch)
    path = place(directory, customer, epoch)
    _write(path, key)
    return path


def rotate(master: epath.PathLike, directory: epath.PathLike, customer: str) -> epath.Path:
    """Derives the epoch after the last one in the directory; the old ones stay and what they mark stays detectable."""
    return derive(master, directory, customer, max(epochs(directory, customer), default=0) + 1)


def epochs(directory: epath.PathLike, customer: str) -> list[int]:
    """Those of a customer that have a key in the directory."""
    names = (path.name for path in files.list_files(epath.Path(directory), '.key'))
    found = (re.fullmatch(rf'{re.escape(customer)}\.([0-9]+)\.key', name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def place(directory: epath.PathLike, customer: str, epoch: int) -> epath.Path:
    return epath.Path(directory) / f'{_named(customer)}.{epoch}.key'


def read(path: epath.PathLike) -> bytes:
    """The key in a file. Raises InputError for one that is missing, readable by others, or no key."""
    path = epath.Path(path)
    try:
        mode = os.stat(path).st_mode & 0o777
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not text'
        raise InputError(f'key {path} cannot be read: {reason}; make one with python -m tools.keys') from error
    if mode & 0o077:
        raise InputError(f'key {path} may be read by others (mode {mode:o}); run: chmod 600 {path}')
    if not re.fullmatch(r'[0-9a-f]{64}', text):
        raise InputError(f'{path} is no key: it must hold 64 hexadecimal digits; make one with python -m tools.keys')
    return bytes.fromhex(text)


def served(customer: str, epoch: int) -> bytes:
    """The key by which this process marks a customer's traces. Raises ConfigError where ADX_KEYS names no directory."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        raise ConfigError(f'marks of {customer!r} need its key; set {DIRECTORY} to the directory that holds it')
    return read(place(directory, customer, epoch))


def fingerprint(key: bytes) -> str:
    """What may be shown of a key: the first 16 digits of its hash."""
    return hashlib.sha256(b'adx key' + key).hexdigest()[:16]


def _named(customer: str) -> str:
    if not NAME.fullmatch(customer):
        raise ConfigError(f'customer {customer!r} is not allowed; letters, digits, "_" and "-" name its key file')
    return customer


def _write(path: epath.Path, key: bytes) -> None:
    if '://' in str(path):
        raise ConfigError(f'{path} is on a store, where nobody sees who may read it; keep keys on a disk')
    if path.exists():
        raise ConfigError(f'{path} exists; a key is never overwritten, name another file')
    with files.os_errors(InputError, f'key {path} was not written'):
        if not path.parent.exists():  # one that is there keeps its mode: others may need it, as /tmp
            files.make_private_dir(path.parent)
        files.write_private(path, f'{key.hex()}\n'.encode())
