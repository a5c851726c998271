"""Stable hashes: of names into randomness, and of content into identities."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def row_key(seed: int, name: str) -> np.ndarray:
    """The threefry key data (uint32 [2]) of a row: 64 bits of SHA-256 over the seed and the row's name.

    It is the same on every platform and mesh; positions are folded in on the device.
    """
    digest = hashlib.sha256(f'{seed}\0{name}'.encode()).digest()
    return np.frombuffer(digest[:8], '>u4').astype(np.uint32)


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order; the first 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
