"""Signed verdicts, as they are kept in the directory of a case."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from adx import files, locks
from adx.errors import ConfigError, InputError, extra
from adx.journal import from_json, to_json

ALONE, JOINT = 'verdicts.jsonl', 'joint.jsonl'  # on this case, and on several together


def locked(path: epath.PathLike) -> contextlib.AbstractContextManager[Any]:
    """While a verdict of this case is issued: each counts those before it."""
    return locks.exclusive(files.absolute(path) / 'verdicts.lock')


def keep(path: epath.PathLike, signed: Sequence[dict[str, Any]], name: str = ALONE) -> None:
    """Writes the verdicts of a case, all of them, while it is `locked`."""
    lines = ''.join(f'{to_json(one)}\n' for one in signed)
    files.write_private(files.path_of(path) / name, lines.encode())


def read(path: epath.PathLike, name: str = ALONE) -> list[dict[str, Any]]:
    """The signed verdicts of a case, the first issued first. Raises InputError where they cannot be read."""
    place = epath.Path(path) / name
    try:
        return [from_json(line) for line in place.read_bytes().splitlines()] if place.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f'{place} cannot be read: {error}; restore it') from error


def sign(content: dict[str, Any], signer: bytes) -> dict[str, Any]:
    """The content with its Ed25519 signature and the public key."""
    ed25519 = _ed25519()
    private = ed25519.Ed25519PrivateKey.from_private_bytes(signer)
    public = private.public_key().public_bytes_raw().hex()
    return {'verdict': content, 'signature': private.sign(_canonical(content)).hex(), 'public_key': public}


def is_signed(signed: dict[str, Any], public_key: str) -> bool:
    """Whether a verdict is word for word what the holder of the key signed."""
    from cryptography.exceptions import InvalidSignature

    try:
        public = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        public.verify(bytes.fromhex(signed['signature']), _canonical(signed['verdict']))
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return False
    return True


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(',', ':')).encode()


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(f'verdicts are signed by cryptography; {extra("detect")}') from error
    return ed25519
