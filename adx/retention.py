"""Removes the private traces of runs that nobody went on with for some days.

    private/expired.json   when and by which rule, written first: the workdir is not continued, and what was stopped
                           halfway goes on when it is run again

What holds words of requests goes: traces, rejected rows, scores, selections, rewrites, holdout traces, directions and
reports; and students that were in training on them. The experiment, policies, environments and figures stay, and so
does release/, which left by decision.
"""

from __future__ import annotations

import datetime
import time

from etils import epath

from adx import files, locks
from adx.errors import ConfigError, StorageError, WorkdirError, malformed
from adx.forgetting import alone, check_idle, inside
from adx.journal import FORMAT_VERSION, to_json
from adx.keeping import TRAINING
from adx.storage import EXPIRED, Workdir

DAY = 86400.0  # seconds
LATER = ('scores', 'selections', 'rewrites')  # written after the last heartbeat, by stages that send none
GOES = (
    'journal', 'rejected', 'scores', 'selections', 'rewrites', 'directions', 'report', 'evolved', 'export.new',
    'export.old',
)  # fmt: skip


def age(workdir: Workdir, study: Workdir) -> float:
    """Days since anybody went on with a workdir, or with the study that it may belong to."""
    with malformed(f'{workdir.path} does not say when it was made', 'restore private/experiment.json', WorkdirError):
        made = datetime.datetime.fromisoformat(workdir.experiment['created']).timestamp()
    last = max([made, *(beat['time'] for beat in workdir.heartbeats())])
    of_study = (study.private / name for name in ('outcomes', TRAINING))
    for place in [*(workdir.private / name for name in LATER), *of_study]:
        last = max(last, files.last_change(place))
    return (time.time() - last) / DAY


def expire(path: epath.PathLike, days: float) -> list[str]:
    """Removes what is older than so many days, of the workdir and those inside it; a line for each workdir.

    Raises ConfigError for a number of days that is none, WorkdirError while a process works in the workdir.
    """
    if not 0 < days < 36500:
        raise ConfigError(f'--retention_days={days:g} is not allowed; it must be more than 0 and less than 36500')
    places, lines = list(inside(Workdir(path))), []
    if not places:
        _ = Workdir(path).experiment  # says that it is no workdir
    with files.os_errors(StorageError, f'{path} was not cleaned'), alone([Workdir(path), *places]):
        ages = {place.path: age(place, Workdir(path)) for place in places}
        for place in places:
            if ages[place.path] <= days:
                lines.append(f'{place.path}: stays, it is {ages[place.path]:.1f} days old')
            else:
                lines.append(f'{place.path}: {_expire(place, days)}, it was {ages[place.path]:.1f} days old')
        if max(ages.values()) > days:  # without its traces no student is trained on
            _remove(Workdir(path), (TRAINING,))
        if min(ages.values()) > days:  # a study's own pages show traces of all its seeds
            _remove(Workdir(path), ('report',))
    return lines


def _expire(workdir: Workdir, days: float) -> str:
    count, place = len(workdir.finished()), workdir.private / EXPIRED
    if not place.exists():
        record = {'format_version': FORMAT_VERSION, 'retention_days': days, 'traces': count, 'removed': locks.utc_now()}
        files.write_private(place, to_json(record).encode())
    check_idle(workdir)
    _remove(workdir, GOES)
    return f'{count} traces and what was made of them were removed'


def _remove(workdir: Workdir, names: tuple[str, ...]) -> None:
    for name in names:
        files.remove_directory(workdir.private / name)
