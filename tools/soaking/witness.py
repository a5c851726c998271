"""What a run saw come from the device, and was told is saved: a journal beside the run's.

A run under `tools/soak.py` writes it through functions that are put around those of adx in that process only, before
the result goes anywhere else; nothing of it is in a run that nobody watches.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from adx import journal, outcomes_io, pipeline, rewriting, training_io
from adx.decoding.slots import Slots
from adx.types import Trace

SEEN, SAVED = 'seen', 'saved'


def content(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def decoded(tokens: Any, stop: str) -> str:
    """Of what a row was given: never of times."""
    return content([list(tokens), stop])


def trace(one: Trace) -> str:
    return decoded(one.tokens, one.stop)


def outcome(one: Any) -> str:
    return content({name: value for name, value in dataclasses.asdict(one).items() if name != 'seconds'})


class Witness:
    """Appends to a file that outlives the process: what was written before a SIGKILL stays."""

    def __init__(self, path: pathlib.Path):
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def seen(self, id_: str, hash_: str, size: int = 1) -> None:
        """size: what computing it again would cost, in tokens, traces, students or steps."""
        self._note([SEEN, id_, hash_, size])

    def saved(self, ids: list[str]) -> None:
        """The run was told that these are durable."""
        self._note([SAVED, ids])

    def _note(self, record: list[Any]) -> None:
        os.write(self._fd, f'{json.dumps(record)}\n'.encode())

    def watch(self, decoding: bool) -> None:
        """Puts itself around what brings results from the device in this process, and around what saves them.

        decoding: whether rows are results, and not answers in an exam.
        """
        read, records, add = Slots.read, rewriting._records, outcomes_io.Log.add
        append, prune = journal.Journal.append, training_io._prune

        def reading(slots: Slots, chunk: Any) -> Iterator[Any]:
            for one in read(slots, chunk):
                if decoding:
                    self.seen(str(one.id), decoded(one.tokens, one.stop), len(one.tokens))
                yield one

        def rewritten(*given: Any) -> list[dict[str, Any]]:
            made = records(*given)
            for one in made:
                self.seen(one['request_id'], content(one))
            return made

        def graded(log: outcomes_io.Log, found: Any) -> None:
            for one in found:
                self.seen(outcomes_io.name_of(one), outcome(one))
            add(log, found)

        def appended(kept: journal.Journal, lines: Any) -> None:
            append(kept, lines)
            self.saved([json.loads(line)['request_id'] for line in lines])

        def checkpointed(run: training_io.Run, last: int) -> None:
            """Called by whoever saves in the background, once the manifest is durable."""
            self.saved([step(i) for i in range(1, last + 1)])
            prune(run, last)

        for owner, name, mine in (
            (Slots, 'read', reading), (rewriting, '_records', rewritten), (outcomes_io.Log, 'add', graded),
            (journal.Journal, 'append', appended), (training_io, '_prune', checkpointed),
        ):  # fmt: skip
            setattr(owner, name, mine)


def step(number: int) -> str:
    return f'step {number}'


@dataclasses.dataclass(frozen=True)
class Testimony:
    """seen: id -> hashes, one each time; sizes: id -> of one; saved: ids; lines: of which this is made."""

    seen: dict[str, list[str]]
    sizes: dict[str, int]
    saved: set[str]
    lines: int


def what_was_told(path: pathlib.Path, after: int = 0) -> Testimony:
    """What a witness wrote after so many lines."""
    seen, sizes, saved = collections.defaultdict(list), {}, set()
    lines = path.read_text().splitlines()[after:] if path.exists() else []
    for line in lines:
        kind, *rest = json.loads(line)
        if kind == SEEN:
            seen[rest[0]].append(rest[1])
            sizes[rest[0]] = rest[2]
        else:
            saved |= set(rest[0])
    return Testimony(dict(seen), sizes, saved, len(lines))


def flush_often(seconds: float, batch: int) -> None:
    """Saves in this process as often as a run of hours does in proportion to its length."""
    pipeline.FLUSH_SECONDS, rewriting.BATCH = seconds, batch
