"""Objects of gs:// that change under a precondition, which epath does not offer.

gcsfs does, since 2024.12.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import json
from typing import Any

from etils import epath

from adx import files


@dataclasses.dataclass(frozen=True)
class Found:
    """An object as it was read. age: seconds since its last change, both times by the server's clock."""

    record: dict[str, str]
    generation: str
    changes: str
    age: float


class Object:
    """A small object whose record is its metadata: read at once with its generation, and kept by no cache."""

    def __init__(self, path: epath.Path):
        self._fs, self._name = files.client(path)
        self._place = self._name.split('/', 1)

    def find(self) -> Found | None:
        try:
            headers, content = files.retried(lambda: self._call('GET'))
        except FileNotFoundError:
            return None
        about = json.loads(content)
        changed = datetime.datetime.fromisoformat(about['updated'])
        now = email.utils.parsedate_to_datetime(headers['Date'])
        return Found(
            about.get('metadata', {}), about['generation'], about['metageneration'], (now - changed).total_seconds()
        )

    def create(self, record: dict[str, str]) -> None:
        """Writes it where nothing is. Raises FileExistsError, also where a reply was lost and it is ours."""
        files.retried(lambda: self._fs.pipe_file(self._name, b'', metadata=record, mode='create'))

    def touch(self, found: Found, record: dict[str, str]) -> None:
        """Changes its record. Raises FileExistsError or FileNotFoundError unless it is the one that was found."""
        files.retried(lambda: self._call('PATCH', ifGenerationMatch=found.generation, json={'metadata': record}))

    def delete(self, found: Found, unchanged: bool = False) -> None:
        """Deletes the one that was found; only if `unchanged` since. Raises as `touch` does."""
        also = {'ifMetagenerationMatch': found.changes} if unchanged else {}
        files.retried(lambda: self._call('DELETE', ifGenerationMatch=found.generation, **also))

    def _call(self, method: str, **params: Any) -> Any:
        return self._fs.call(method, 'b/{}/o/{}', *self._place, **params)
