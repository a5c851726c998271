"""What tokens depend on beside the experiment: versions, device and mesh, by shard.

    private/environments/<shard>-of-<shards>.jsonl   one line for each change, the first run's among them

Equal environments give equal tokens, bit for bit; others may differ at near ties (ARCHITECTURE.md, Determinism). So a
run goes on in an environment that its workdir does not know only when told that it may.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

import jax
from etils import epath

from adx import files, locks
from adx.errors import StorageError, WorkdirError
from adx.journal import FORMAT_VERSION, from_json, to_json
from adx.settings import MeshShape
from adx.storage import Workdir

DIRECTORY = 'environments'
PACKAGES = ('adx', 'jax', 'jaxlib', 'flax')
FLAG = '--allow_environment_change'


def current(mesh: MeshShape) -> dict[str, str]:
    """The environment of this process. Starts a backend."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return versions | {'device': jax.devices()[0].device_kind, 'mesh': f'{mesh.data}x{mesh.proxy}x{mesh.model}'}


def read(workdir: Workdir) -> dict[str, list[dict[str, Any]]]:
    """Shard -> its records in order: environment, since (UTC), changed. Raises StorageError."""
    directory = workdir.private / DIRECTORY
    with files.os_errors(StorageError, f'{directory} cannot be read'):
        paths = files.list_files(directory, '.jsonl')
        contents = zip(paths, files.read_all(paths), strict=True)
        return {path.name.removesuffix('.jsonl'): _records(path, data) for path, data in contents}


def _records(path: epath.Path, data: bytes) -> list[dict[str, Any]]:
    try:
        return [_checked(from_json(line)) for line in data.splitlines() or [b'']]
    except ValueError as error:
        raise StorageError(f'{path} cannot be read: {error}; restore it, it says where tokens come from') from error


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    environment, changed = record.get('environment'), record.get('changed')
    if not isinstance(environment, dict) or not isinstance(changed, list) or not isinstance(record.get('since'), str):
        raise ValueError('a line lacks environment, since or changed')
    if not all(isinstance(text, str) for text in (*environment.values(), *changed)):
        raise ValueError('its environment or changed holds what is no text')
    return record


def enter(workdir: Workdir, owner: str, ours: dict[str, str], allowed: bool) -> list[str]:
    """Records that a shard is decoded in the environment `ours` from now on; what changed, as 'name: old -> new'.

    Raises WorkdirError naming it where the workdir knows other environments only and `allowed` is False.
    """
    directory = workdir.private / DIRECTORY
    place = directory / f'{owner}.jsonl'
    with files.os_errors(WorkdirError, f'workdir {workdir.path} cannot be written'):
        with contextlib.suppress(FileNotFoundError):  # most restarts end here, and need not wait for each other
            if _records(place, files.read(place))[-1]['environment'] == ours:
                return []
        files.make_private_dir(directory)
        with locks.exclusive(workdir.private / 'locks' / DIRECTORY):
            known = read(workdir)
            every = sorted((record for records in known.values() for record in records), key=lambda one: one['since'])
            mine = known.get(owner, [])
            changed = _changed((mine or every)[-1]['environment'], ours) if every else []
            if changed and not allowed and ours not in [record['environment'] for record in every]:
                raise WorkdirError(
                    f'workdir {workdir.path} was decoded in another environment ({"; ".join(changed)}), where tokens '
                    f'may differ at near ties; go back to it, or give {FLAG}, which is recorded and reported'
                )
            record = {'format_version': FORMAT_VERSION, 'environment': ours, 'since': locks.utc_now()}
            lines = [*mine, record | {'changed': changed}]
            data = ''.join(f'{to_json(line)}\n' for line in lines).encode()
            files.write_private(place, data)
    return changed


def _changed(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    names = sorted({*theirs, *ours})
    return [f'{name}: {theirs.get(name)} -> {ours.get(name)}' for name in names if theirs.get(name) != ours.get(name)]


def changes(workdir: Workdir) -> list[str]:
    """Every change, a line each, for reports."""
    return [
        f'shard {owner} from {record["since"]}: {"; ".join(record["changed"])}'
        for owner, records in read(workdir).items() for record in records if record['changed']
    ]  # fmt: skip
