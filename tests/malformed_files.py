"""Files with faults: what Hypothesis makes of a sound one, and how reading them may end."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adx.errors import AdxError

SECONDS = 20  # that reading may take
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-1, 0, 2**31, 2**63, 10**400, 1e308]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(['\ud800', '../../etc/passwd'])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
PATIENT = {'deadline': None, 'suppress_health_check': list(HealthCheck), 'derandomize': True, 'database': None}


def counted(few: int, many: int) -> Any:
    """How many examples a test has, as its argument `examples`: few, and many in the slow suite."""
    more = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize('examples', [few, more], ids=['few', 'many'])


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """A file's bytes, cut, changed in a few places, or with something else inside."""
    how = draw(st.sampled_from(['cut', 'change', 'insert', 'nothing', 'other']))
    at = draw(st.integers(0, len(data)))
    if how == 'cut':
        return data[:at]
    if how == 'insert':
        return data[:at] + draw(st.binary(max_size=12)) + data[at:]
    if how == 'other':
        return draw(st.one_of(st.binary(max_size=64), st.just(b'[' * 100_000), st.just(b'{"a":' * 50_000)))
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4)) if how == 'change' else 0):
        changed[draw(st.integers(0, max(0, min(len(data) - 1, 400))))] = draw(st.integers(0, 255))
    return bytes(changed)


@st.composite
def disturbed(draw: Any, value: Any) -> Any:
    """A JSON value with another value somewhere in it, or a key less or more."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(['inside', 'inside', 'inside', 'without', 'more']))
        if how == 'without':
            return {name: one for name, one in value.items() if name != key}
        if how == 'more':
            return value | {draw(st.text(max_size=6)): draw(VALUES)}
        return value | {key: draw(disturbed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(disturbed(value[at])), *value[at + 1 :]]
    return draw(VALUES)


def as_text(value: Any) -> bytes:
    return json.dumps(value).encode('utf-8', 'surrogatepass')


def malformed(path: pathlib.Path) -> st.SearchStrategy[bytes]:
    """What may stand in a file instead: the same with faults."""
    data = path.read_bytes()
    found = [damaged(data)]
    with contextlib.suppress(ValueError):
        lines = [json.loads(line) for line in data.splitlines()] if path.suffix == '.jsonl' else json.loads(data)
        if path.suffix == '.jsonl':
            found.append(disturbed(lines).map(lambda rows: b'\n'.join(map(as_text, as_list(rows))) + b'\n'))
        elif len(data) < 50_000:
            found.append(disturbed(lines).map(as_text))
    if path.suffix == '.safetensors':
        found.append(disturbed(header(data)).map(lambda changed: with_header(data, changed)))
    return st.one_of(found)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def header(data: bytes) -> Any:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])


def with_header(data: bytes, changed: Any) -> bytes:
    """safetensors: eight bytes of length, JSON, data."""
    text = as_text(changed)
    return len(text).to_bytes(8, 'little') + text + data[8 + int.from_bytes(data[:8], 'little') :]


@contextlib.contextmanager
def refused_or_read(kind: type[Exception] = AdxError) -> Iterator[None]:
    """Any other error is a bug, and so is one without words or of several lines, or a reader that hangs."""

    def late(*_: Any) -> None:
        raise AssertionError(f'not read in {SECONDS} s')

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except kind as error:
        message = str(error)
    else:
        message = 'read'
    finally:
        signal.alarm(0)
    assert message
    assert len(message.splitlines()) == 1, message


def tolerates(path: pathlib.Path, read: Callable[[], Any], examples: int) -> None:
    """Reads the file with many faults in it, and then as it was."""
    sound = path.read_bytes()

    @settings(max_examples=examples, **PATIENT)
    @given(malformed(path))
    def check_one(data: bytes) -> None:
        path.write_bytes(data)
        with refused_or_read():
            read()

    try:
        check_one()
    finally:
        path.write_bytes(sound)
    read()
