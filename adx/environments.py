"""What tokens depend on beside the experiment: versions, device and mesh, kept for each shard of a workdir.

    private/environments/<shard>-of-<shards>.jsonl   one line for each change, the first run's among them

Equal environments give equal tokens, bit for bit; others may differ at near ties (ARCHITECTURE.md, Determinism). So a
run goes on in an environment that its workdir does not know only when told that it may.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import jax

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
    found = {}
    for path in files.list_files(workdir.private / DIRECTORY, '.jsonl'):
        try:
            records = [from_json(line) for line in path.read_bytes().splitlines() or ['']]
            found[path.name.removesuffix('.jsonl')] = [_checked(record) for record in records]
        except (OSError, ValueError) as error:
            raise StorageError(f'{path} cannot be read: {error}; restore it, it says where tokens come from') from error
    return found


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    environment, changed = record.get('environment'), record.get('changed')
    if not isinstance(environment, dict) or not isinstance(changed, list) or not isinstance(record.get('since'), str):
        raise ValueError('a line lacks environment, since or changed')
    return record


def enter(workdir: Workdir, owner: str, ours: dict[str, str], allowed: bool) -> list[str]:
    """Records that a shard is decoded in the environment `ours` from now on; what changed, as 'name: old -> new'.

    Raises WorkdirError naming it where the workdir knows other environments only and `allowed` is False.
    """
    directory = workdir.private / DIRECTORY
    with files.os_errors(WorkdirError, f'workdir {workdir.path} cannot be written'):
        files.make_private_dir(directory)
        with locks.exclusive(workdir.private / 'locks' / DIRECTORY):
            known = read(workdir)
            every = sorted((record for records in known.values() for record in records), key=lambda one: one['since'])
            mine = known.get(owner, [])
            if mine and mine[-1]['environment'] == ours:
                return []
            changed = _changed((mine or every)[-1]['environment'], ours) if every else []
            if changed and not allowed and ours not in [record['environment'] for record in every]:
                raise WorkdirError(
                    f'workdir {workdir.path} was decoded in another environment ({"; ".join(changed)}), where tokens '
                    f'may differ at near ties; go back to it, or give {FLAG}, which is recorded and reported'
                )
            record = {'format_version': FORMAT_VERSION, 'environment': ours, 'since': locks.utc_now()}
            lines = [*mine, record | {'changed': changed}]
            data = ''.join(f'{to_json(line)}\n' for line in lines).encode()
            files.write_private(directory / f'{owner}.jsonl', data)
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
