"""Readings of the test split: by frozen experiments only, each logged before it happens.

Both files stand under a workdir's private/: `frozen.json` (experiment hash -> when) and `readings.json`, a list.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from adx import files, locks
from adx.errors import ConfigError, WorkdirError
from adx.journal import content_to_json, read_content

FROZEN, READINGS = 'frozen.json', 'readings.json'


def freeze(workdir: epath.PathLike, experiment_hash: str) -> None:
    """Commits to an experiment: from now on it may read the test split. The first date stays."""
    path = _private(workdir)
    with locks.exclusive(path / '.readings.lock'):
        frozen = _load(path / FROZEN, dict)
        if experiment_hash not in frozen:
            _store(path / FROZEN, frozen | {experiment_hash: locks.utc_now()})


def read_test(workdir: epath.PathLike, experiment_hash: str, arm: str, former: str = '') -> int:
    """Logs one reading of the test split and returns how many there are now. Call it before reading.

    former: what an earlier version of adx froze of the experiment. Raises ConfigError unless the experiment is frozen.
    """
    path = _private(workdir)
    with locks.exclusive(path / '.readings.lock'):
        check_frozen(workdir, experiment_hash, former)
        entry = {'experiment': experiment_hash, 'arm': arm, 'time': locks.utc_now()}
        log = [*_load(path / READINGS, list), entry]
        _store(path / READINGS, log)
    return len(log)


def check_frozen(workdir: epath.PathLike, experiment_hash: str, former: str = '') -> None:
    """Raises ConfigError unless the experiment is frozen. former: as read_test has it."""
    frozen = _load(files.absolute(workdir) / 'private' / FROZEN, dict)
    if experiment_hash not in frozen and former not in frozen:
        raise ConfigError(
            f'experiment {experiment_hash} may not read the split test: frozen are {sorted(frozen) or "none"}; '
            f'choose on tune and attack_val, then freeze it (--stages=freeze)'
        )


def readings(workdir: epath.PathLike) -> list[dict[str, str]]:
    """Every reading so far, in order: experiment, arm, time (UTC)."""
    return _load(files.absolute(workdir) / 'private' / READINGS, list)


def _private(workdir: epath.PathLike) -> epath.Path:
    path = files.absolute(workdir) / 'private'
    files.make_private_dir(path)
    return path


def _load(path: epath.Path, kind: type) -> Any:
    """The file's content, empty where there is none; a damaged log is never taken for an empty one."""
    with files.os_errors(WorkdirError, f'{path} cannot be read'):
        if not files.exists(path):
            return kind()
    return read_content(path, path.stem, kind, WorkdirError, 'restore it, its entries are evidence')


def _store(path: epath.Path, value: Any) -> None:
    files.write_private(path, content_to_json(path.stem, value))
