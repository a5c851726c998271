"""Journals: append-only files of one JSON object a line, and the JSON of a trace.

A record is finished exactly when its line is flushed and fsynced (on an object store: when its object is
uploaded). No file is ever appended to by two openings: each opening of a journal starts a new file, named
by a token that sorts by time. So a line torn by a crash stays the last of its file, readers skip it and the
next opening cuts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import io
import json
import os
import secrets
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeVar

from etils import epath

from adx import files
from adx.errors import AdxError, StorageError, WorkdirError
from adx.types import Trace

T = TypeVar('T')
FORMAT_VERSION = 1
SUFFIX = '.jsonl'
ABSENT = '(absent)'
# Format of a record -> what makes a record of this version of it; the one before this, at least, stays here.
READERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda record: record}


def to_json(record: dict[str, Any]) -> str:
    """One line of strict JSON in ASCII. Raises ValueError on NaN and infinities."""
    return json.dumps(record, allow_nan=False, separators=(',', ':'))


def from_json(text: str | bytes) -> dict[str, Any]:
    """Inverse of to_json. Raises ValueError if `text` is not one strict JSON object."""
    record = _value(text, _refuse_constant)
    if not isinstance(record, dict):
        raise ValueError(f'expected a JSON object, got {type(record).__name__}')
    return record


def _value(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error


def read_object(path: epath.Path, wanted: Sequence[str], error: type[AdxError], fix: str) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` where it cannot be read or lacks a key of `wanted`."""
    with files.os_errors(error, f'{path} cannot be read'):
        data = files.read(path)
    try:
        record = from_json(data)
    except ValueError as reason:
        raise error(f'{path} is damaged ({reason}); {fix}') from reason
    if lacking := sorted(set(wanted) - set(record)):
        raise error(f'{path} is damaged (it has no {lacking}); {fix}')
    return record


def content_to_json(name: str, content: Any) -> bytes:
    """A file that holds one thing, called `name`, and says its format."""
    return json.dumps({'format_version': FORMAT_VERSION, name: content}, indent=1).encode()


def read_content(path: epath.Path, name: str, kind: type, error: type[AdxError], fix: str) -> Any:
    """Inverse of content_to_json, where the content is a `kind`; a file that says no format is the content alone, in
    version 1. Raises `error` where it cannot be read, or is of another format or kind.
    """
    with files.os_errors(error, f'{path} cannot be read'):
        data = files.read(path)
    try:
        value = _value(data)
    except ValueError as reason:
        raise error(f'{path} is damaged ({reason}); {fix}') from reason
    if isinstance(value, dict) and 'format_version' in value:
        try:
            value = upgrade(value).get(name)
        except ValueError as reason:
            raise error(f'{path}: {reason}') from reason
    if not isinstance(value, kind):
        raise error(f'{path} is damaged (it holds no {kind.__name__}); {fix}')
    return value


def diff(theirs: Any, ours: Any, path: str = '') -> list[str]:
    """What differs between two JSON values, as 'path: theirs != ours', in the order of `theirs`.

    >>> diff({'decoding': {'temperature': 0.7}, 'seed': 1}, {'decoding': {'temperature': 1.0}, 'seed': 1})
    ['decoding.temperature: 0.7 != 1.0']
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs = [(f'.{k}' if path else k, theirs.get(k, ABSENT), ours.get(k, ABSENT)) for k in theirs | ours]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = [(f'[{i}]', a, b) for i, (a, b) in enumerate(zip(theirs, ours, strict=True))]
    else:
        same = type(theirs) is type(ours) and theirs == ours
        where = path if path.isprintable() else repr(path)  # keys of a damaged file may be of several lines
        return [] if same else [f'{where or "experiment"}: {_brief(theirs)} != {_brief(ours)}']
    return [line for key, a, b in pairs for line in diff(a, b, path + key)]


def _brief(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def trace_to_json(trace: Trace) -> str:
    """The journal's line of a trace. Raises ValueError naming the trace if a number is NaN or infinite."""
    record = {field.name: getattr(trace, field.name) for field in dataclasses.fields(Trace)}
    try:
        return to_json(record)
    except ValueError as error:
        raise ValueError(f'trace {trace.request_id!r} cannot be written as JSON: {error}') from error


def trace_from_json(text: str | bytes) -> Trace:
    """Inverse of trace_to_json. Raises ValueError naming a field that is missing, unknown or mistyped."""
    return trace_from_record(from_json(text))


def trace_from_record(record: dict[str, Any]) -> Trace:
    """A trace from its parsed JSON object. Raises ValueError as trace_from_json does."""
    return decode(Trace, upgrade(record))


def decode(kind: type[T], record: dict[str, Any]) -> T:
    """A dataclass from a JSON object. Raises ValueError naming a field that is missing, unknown or mistyped."""
    hints = _hints(kind)  # type: ignore[arg-type]
    required = {f.name for f in dataclasses.fields(kind) if _is_required(f)}  # type: ignore[arg-type]
    if problems := (required - set(record)) | (set(record) - set(hints)):
        name = kind.__name__.lower()
        raise ValueError(f'a {name} has the fields {sorted(hints)}; missing or unknown: {sorted(problems)}')
    return kind(**{name: _decode(value, hints[name], name) for name, value in record.items()})


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """The record in this adx's format. Raises ValueError for one of a format that it does not read."""
    version = record.get('format_version')
    if isinstance(version, bool) or not isinstance(version, int) or version not in READERS:
        raise ValueError(
            f'format_version is {version!r} and this adx reads {", ".join(map(str, READERS))}; '
            'use the adx that wrote it'
        )
    return READERS[version](record)


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON')


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(value: Any, hint: Any, name: str) -> Any:
    """A JSON value as the annotated type: tuples are lists in JSON. Any passes; bool is no int; an int is a float."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Any:
        return value
    if origin is types.UnionType:  # only 'X | None' occurs
        return None if value is None else _decode(value, args[0], name)
    kind = list if origin is tuple else origin
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f'field {name!r} must be {hint}, got {type(value).__name__}')
    if isinstance(value, dict):
        return {key: _decode(item, args[1], f'{name}.{key}') for key, item in value.items()}
    if isinstance(value, list):
        return origin(_decode(item, args[0], f'{name}[{i}]') for i, item in enumerate(value))
    return value


class Journal:
    """The writing end of `<directory>/<owner>.<opening>.jsonl`. One thread at a time."""

    def __init__(self, directory: epath.Path, owner: str):
        self._directory = directory
        self._owner = owner
        self._fd: int | None = None
        self._end = 0  # bytes that are durable
        self._opening = _new_opening()
        self._flushes = 0

    def append(self, lines: Sequence[str]) -> None:
        """Appends JSON lines; they are durable when this returns.

        Raises StorageError if they could not be made so. Nothing of the batch is kept then, and a next append
        starts a new file: after a failed fsync the state of the old one is unknown.
        """
        if not lines:
            return
        data = ''.join(f'{line}\n' for line in lines).encode('ascii')
        unsaved = f'{self._directory}: {len(lines)} record(s) not saved, all appended before are safe'
        with files.os_errors(StorageError, unsaved):
            if files.is_object_store(self._directory):
                name = f'{self._owner}.{self._opening}.{self._flushes:06d}{SUFFIX}'
                files.upload(self._directory / name, data)
                self._flushes += 1
            else:
                self._append(data)

    def _append(self, data: bytes) -> None:
        try:
            fd = self._open()
            files.write_all(fd, data)
            os.fsync(fd)
            self._end += len(data)
        except BaseException:  # also KeyboardInterrupt: half a line must not get a neighbour
            if self._fd is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._end)
            self.close()
            raise

    def _open(self) -> int:
        if self._fd is None:
            path = self._directory / f'{self._owner}.{self._opening}{SUFFIX}'
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._end = 0
            files.fsync_path(self._directory)
        return self._fd

    def close(self) -> None:
        """Closes the file, if one is open; a later append starts another."""
        if self._fd is not None:
            fd, self._fd, self._opening = self._fd, None, _new_opening()
            os.close(fd)


def _new_opening() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f'{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}'


def read_records(directory: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """('file:line', record) of every finished line in a directory, files by name, also while others append.

    Raises StorageError at a corrupt line that finished ones follow, at a record without a request id, or where it
    cannot be read, WorkdirError at a record of another format.
    """
    with files.os_errors(StorageError, f'{directory} cannot be read, what was saved in it is safe'):
        for path, file in _opened(directory):
            for number, _, record in _finished_lines(path, file):
                try:
                    record = upgrade(record)
                except ValueError as error:
                    raise WorkdirError(f'{path}:{number}: {error}') from error
                if not isinstance(record.get('request_id'), str):
                    raise StorageError(f'{path}:{number} has no request_id; restore the file or delete that line')
                yield f'{path}:{number}', record


def _opened(directory: epath.Path) -> Iterator[tuple[epath.Path, IO[bytes]]]:
    """The files of a directory, one open at a time."""
    paths = files.list_files(directory, SUFFIX)
    if files.is_object_store(directory):
        for path, data in zip(paths, files.read_all(paths), strict=True):
            yield path, io.BytesIO(data)
        return
    for path in paths:
        with path.open('rb') as file:
            yield path, file


def cut_torn_tails(directory: epath.Path, owner: str) -> list[str]:
    """Cuts what follows the last finished line of each journal of `owner`; returns the names of those cut.

    The caller holds the owner's lock, so nobody is appending. Objects are whole: there is nothing to cut. Raises
    StorageError.
    """
    cut: list[str] = []
    if files.is_object_store(directory):
        return cut
    with files.os_errors(StorageError, f'{directory}: unfinished ends were not cut, what was saved in it is safe'):
        for path in files.list_files(directory, SUFFIX):
            if not path.name.startswith(f'{owner}.'):
                continue
            with path.open('rb') as file:
                end = max((end for _, end, _ in _finished_lines(path, file)), default=0)
            if end < os.path.getsize(path):
                with open(path, 'rb+') as torn:
                    os.ftruncate(torn.fileno(), end)
                    os.fsync(torn.fileno())
                cut.append(path.name)
    return cut


def drop_records(directory: epath.Path, drop: Callable[[dict[str, Any]], bool]) -> int:
    """Takes the records for which `drop` holds out of the journals, and unfinished ends; how many records went.

    Each file is replaced whole, so that a restart after a crash finds it as it was or as it is to be. The caller sees
    to it that nobody appends.
    """
    dropped = 0
    for path, file in _opened(directory):
        every = [record for _, _, record in _finished_lines(path, file)]
        kept = [record for record in every if not drop(record)]
        data = ''.join(f'{to_json(record)}\n' for record in kept).encode()
        if not data:
            files.remove(path)
            if not files.is_object_store(directory):
                files.fsync_path(directory)
        elif data != path.read_bytes():
            files.write_private(path, data)
        dropped += len(every) - len(kept)
    return dropped


def _finished_lines(path: epath.Path, file: IO[bytes]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, end offset, record) of the finished lines of a file; an unreadable end is skipped."""
    offset, corrupt = 0, 0
    for number, line in enumerate(file, 1):
        offset += len(line)
        record = _parse_line(line)
        if record is None:
            corrupt = corrupt or number
            continue
        if corrupt:
            raise StorageError(
                f'{path}:{corrupt} is not a JSON object though finished lines follow it: damaged; '
                'restore it, or delete that line and run the same command again to decode its trace anew'
            )
        yield number, offset, record


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """None if the line is unfinished: no newline at its end, or not a JSON object."""
    if not line.endswith(b'\n'):
        return None
    try:
        return from_json(line)
    except ValueError:
        return None
