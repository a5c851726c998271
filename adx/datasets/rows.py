"""Rows and how they are read: JSONL files, directories with train and test, built datasets.

A row is checked when it is read. A bad line is an InputError that names file and line, and nothing is
returned; with `skip_bad` reading goes on and the bad lines are counted.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from adx.errors import InputError, StorageError
from adx.retries import retried

T = TypeVar('T')
Messages = tuple[dict[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One question as a file states it.

    question: the text that is asked, '' where `messages` carry a whole chat instead.
    answer: the reference answer, worked or bare, None if the file has none.
    id: names the row within its file and holds no '/', so it can be part of a request id.
    customer: who asks, '' if the file does not say. category: what it is about, likewise.
    """

    question: str = ''
    answer: str | None = None
    messages: Messages = ()
    id: str = ''
    customer: str = ''
    category: str = ''

    @property
    def text(self) -> str:
        """What splits and near-duplicates are decided on: no system messages, which all rows of a file may share."""
        own = '\n'.join(message['content'] for message in self.messages if message['role'] != 'system')
        return self.question or (own if own.strip() else '\n'.join(message['content'] for message in self.messages))


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one file in its order, and how many bad lines were skipped."""

    rows: tuple[Row, ...] = ()
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """What a path holds: the pool that is split by hash, and the official test rows, if it has any."""

    pool: Rows = Rows()
    test: Rows = Rows()


Parse = Callable[[Any], Row]  # one decoded record to a row; raises ValueError with the reason
Record = tuple[str, Any]  # where it is ('file, line 7'), and what it holds


def string(record: Any, key: str) -> str:
    """`record[key]`, a string that is not blank."""
    if not isinstance(record, dict):
        raise ValueError(f'the record is a {type(record).__name__}; it must be an object')
    if key not in record:
        raise ValueError(f'the record has no {key!r}; it has {sorted(record)}')
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{key!r} is {shown(value)}; it must be a string that is not empty')
    return value


def shown(value: Any) -> str:
    """A value as a one-line message can carry it."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def row_id(record: dict[str, Any], key: str = 'id') -> str:
    """The id that a record gives itself, or ''. '/' separates the parts of a request id, so it is escaped."""
    value = record.get(key, '')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'{key!r} is {shown(value)}; it must be a string or an integer')
    return str(value).replace('%', '%25').replace('/', '%2F')


def customer(record: dict[str, Any]) -> str:
    """The customer that a record names, or ''."""
    value = record.get('customer', '')
    if not isinstance(value, str):
        raise ValueError(f"'customer' is {shown(value)}; it must be a string")
    return value


def read_source(name: str, path: str, parse: Parse, skip_bad: bool = False) -> Source:
    """Reads a file or directory; a file named test.jsonl is an official test set, any other file is pool."""
    fix = 'set it to a JSONL file or a directory with train.jsonl and test.jsonl'
    if not path:
        raise InputError(f'{name}: dataset.path is empty and no sample is shipped; {fix}')
    place = epath.Path(path)
    if not asked(place, place.exists):
        raise InputError(f'{name}: dataset.path {path} does not exist; {fix}')
    if not asked(place, place.is_dir):
        rows = read_jsonl(place, parse, skip_bad)
        return Source(test=rows) if place.name == 'test.jsonl' else Source(pool=rows)
    if asked(place, (place / 'dataset_info.json').exists):
        from adx.datasets import builder

        return builder.read_source(path)
    files = {split: place / f'{split}.jsonl' for split in ('train', 'test')}
    found = {split: read_jsonl(file, parse, skip_bad) for split, file in files.items() if asked(file, file.exists)}
    if not found:
        raise InputError(f'{name}: dataset.path {path} holds no train.jsonl or test.jsonl; {fix}')
    return Source(found.get('train', Rows()), found.get('test', Rows()))


def read_jsonl(path: epath.Path, parse: Parse, skip_bad: bool = False) -> Rows:
    """The rows of a JSONL file, one object a line; blank lines are passed over."""
    # Lines end at \n only: JSON strings may hold the other characters at which str.splitlines cuts.
    lines = enumerate(read_bytes(path).split(b'\n'), start=1)
    records = ((f'{path}, line {number}', line) for number, line in lines if line.strip())
    return collect(str(path), records, lambda line: parse(_decode(line)), skip_bad)


def read_bytes(path: epath.Path) -> bytes:
    return asked(path, path.read_bytes)


def asked(path: epath.Path, call: Callable[[], T]) -> T:
    """What `call` says of the file or directory, with retries on an object store.

    Raises InputError where it cannot be read, StorageError where the store or the disk fails.
    """
    try:
        return retried(call) if '://' in os.fspath(path) else call()
    except (OSError, ImportError) as error:
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
        if getattr(error, 'errno', None) == errno.EIO:
            raise StorageError(f'{path} cannot be read ({reason}); run the same command again') from error
        raise InputError(f'{path} cannot be read ({reason}); check the path and its permissions') from error


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'this is no JSON object ({error})') from error


def collect(name: str, records: Iterable[Record], parse: Parse, skip_bad: bool) -> Rows:
    """Checks and names the rows of `name`. Raises InputError at a bad record unless it is to be skipped."""
    rows: list[Row] = []
    places: dict[str, str] = {}
    skipped = 0
    for place, record in records:
        try:
            row = parse(record)
            f'{row.id}{row.text}{row.answer}{row.customer}'.encode()  # JSON can spell half a character: refused here
            if row.id in places:
                raise ValueError(f'id {row.id!r} was used in {places[row.id]}; ids must be unique')
        except ValueError as error:
            if not skip_bad:
                raise InputError(f'{place}: {error}; mend it, or set skip_bad to go on without it') from error
            skipped += 1
            continue
        if row.id:
            places[row.id] = place
        rows.append(row)
    if not rows:
        raise InputError(f'{name} holds no rows ({skipped} bad ones were skipped); it needs at least one')
    return Rows(tuple(_named(rows, set(places))), skipped)


def _named(rows: list[Row], used: set[str]) -> Iterator[Row]:
    """Gives rows without an id one from their content, so that it does not depend on the order of the file.

    Equal rows are interchangeable: the second is called `<id>-1`, and so on.
    """
    for row in rows:
        name = row.id
        if not name:
            parts = [row.question, row.answer, row.messages, *([row.customer] if row.customer else [])]
            content = json.dumps(parts, sort_keys=True)
            stem = name = hashlib.sha256(content.encode()).hexdigest()[:12]
            copies = 0
            while name in used:
                copies += 1
                name = f'{stem}-{copies}'
            used.add(name)
        yield dataclasses.replace(row, id=name)
