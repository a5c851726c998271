"""How a study keeps what is done, and its students while they are in training.

    private/training/<seed>-<student>-<attack>-<hash>/<hash>/   the checkpoints of one stack, see adx/training_io.py

They hold weights, no text, and go once the outcomes of their students are journaled.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from adx import files, processes
from adx.errors import StorageError
from adx.hashing import content_hash
from adx.storage import Workdir
from adx.training_io import Run, Visits

TRAINING = 'training'  # in private/


@dataclasses.dataclass(frozen=True)
class Keeping:
    """guard: a context inside which no interruption is raised. every: steps between two checkpoints of students in
    training, 0 for none. writes: False on all but one process of one program.
    """

    guard: Callable[[], Any] = contextlib.nullcontext
    every: int = 250
    writes: bool = True


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The place of the students of one seed, family and attack. identity: what all of them depend on, as JSON."""

    directory: epath.Path
    identity: dict[str, Any]
    keeping: Keeping

    def run(self, students: Sequence[Any], steps: int, visits: Visits) -> Run | None:
        """Of the students, as JSON, that train together for so many steps; None where they are too few to be kept."""
        if not 0 < self.keeping.every < steps:
            return None
        identity = self.identity | {'students': students}
        return Run(self.directory / content_hash(identity), identity, self.keeping.every, keep=1, visits=visits)

    def clear(self) -> None:
        """Removes what is there, once all processes are here."""
        processes.together(self._remove if self.keeping.writes else lambda: None)

    def _remove(self) -> None:
        with files.os_errors(StorageError, f'{self.directory} was not removed'):
            if self.directory.exists():
                self.directory.rmtree()


def make_shelf(path: str, name: str, identity: dict[str, Any], keeping: Keeping) -> Shelf:
    """name: as it is read in a listing; the hash tells apart what it leaves out."""
    return Shelf(Workdir(path).private / TRAINING / f'{name}-{content_hash(identity)[:8]}', identity, keeping)
