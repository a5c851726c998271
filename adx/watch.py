"""How a run is doing, seen from any machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from etils import epath

from adx.storage import Workdir
from adx.types import RequestId

LIVE_SECONDS = 120.0  # a process whose last heartbeat is older is not counted as running


def tally(workdir: Workdir, setting: str, done: Collection[str]) -> tuple[bool, str]:
    """Whether the traces of an arm, of which those of the request ids `done` are there, are all that there will be; and
    how many there are, as '3 of 5 traces (1 rejected)'. A row that was rejected once and is there counts as there.
    """
    rejected = sum(RequestId.parse(id_).setting == setting for id_ in set(workdir.rejected()) - set(done))
    total = (workdir.totals() or {}).get(setting, len(done))
    whole = bool(done) and len(done) + rejected >= total
    return whole, f'{len(done)} of {total} traces ({rejected} rejected)'


def status(path: epath.PathLike) -> dict[str, Any]:
    """How the run in a workdir is doing, from any machine; needs no lock.

    done, rejected: rows (a row finished later is not counted as rejected); total: of all settings, None
    before the first heartbeat that says. tokens_per_second is the sum, occupancy the mean and seconds_left
    the largest over the running processes; None where none says. processes: the last heartbeat of each.
    """
    workdir = Workdir(path)
    finished, totals, beats = workdir.finished(), workdir.totals(), workdir.heartbeats()
    live = [beat for beat in beats if beat['state'] == 'running' and beat['age_seconds'] < LIVE_SECONDS]

    def said(key: str) -> list[float]:
        return [beat[key] for beat in live if isinstance(beat.get(key), int | float)]

    return {
        'experiment_hash': workdir.experiment['experiment_hash'],
        'done': len(finished),
        'rejected': len(set(workdir.rejected()) - finished),
        'total': None if totals is None else sum(totals.values()),
        'running': len(live),
        'tokens_per_second': sum(said('tokens_per_second')) if said('tokens_per_second') else None,
        'seconds_left': max(said('seconds_left'), default=None),
        'occupancy': sum(said('occupancy')) / len(said('occupancy')) if said('occupancy') else None,
        'processes': beats,
    }
