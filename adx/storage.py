"""The workdir of a run: who may write it, what is finished in it, and how the run is doing.

    private/   mode 0700
      experiment.json   the experiment this workdir belongs to
      journal/          finished traces: <shard>-of-<shards>.<opening>.jsonl
      rejected/         rows that could not be decoded, and why
      policies/         <hash>.json, every policy that rows were served under
      scores/ selections/   see selecting.py
      rewrites/ evolved/    see rewriting.py and instructions.py
      holdout/ directions/  see directions.py
      environments/     what tokens depend on beside the experiment, see environments.py
      forgotten.json    hashes of prompts that were removed, see forgetting.py; expired.json, see retention.py
      heartbeat/        <shard>-of-<shards>.json, the last one of each process
      locks/
    release/   what may leave: see export.py

Any number of processes write one workdir, each its own shard; every process reads all journals, so a run may
be continued by another number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from adx import files, locks
from adx.errors import StorageError, WorkdirError
from adx.journal import (
    FORMAT_VERSION,
    Journal,
    cut_torn_tails,
    diff,
    from_json,
    read_object,
    read_records,
    to_json,
    trace_from_record,
    trace_to_json,
    upgrade,
)
from adx.types import Trace

SHOWN_DIFFERENCES = 5
EXPIRED, FORGOTTEN = 'expired.json', 'forgotten.json'  # written by retention.py and forgetting.py
PRIVATE_DIRS = ('journal', 'rejected', 'policies', 'heartbeat', 'locks')


class Workdir:
    """A workdir as any machine may read it, also while it is written; `Workdir.open` gives the writer."""

    def __init__(self, path: epath.PathLike):
        self.path = files.path_of(path)
        self.private = self.path / 'private'
        self.release = self.path / 'release'

    @staticmethod
    def open(
        path: epath.PathLike,
        experiment: dict[str, Any],
        experiment_hash: str,
        shard: int = 0,
        num_shards: int = 1,
    ) -> contextlib.AbstractContextManager[WorkdirWriter]:
        """Takes shard `shard` of `num_shards` of a workdir, which is created on first use.

        experiment: the resolved experiment, JSON-able; experiment_hash: what must agree to continue.
        Raises WorkdirError if the shard is held by a process, if a live process divides the work into another
        number of shards, if the workdir is of another experiment or format, or cannot be written.
        """
        return _open(Workdir(path), json.loads(to_json(experiment)), experiment_hash, (shard, num_shards))

    @functools.cached_property
    def experiment(self) -> dict[str, Any]:
        """experiment.json: experiment, experiment_hash, created. Raises WorkdirError if there is none."""
        path, fix = self.private / 'experiment.json', 'restore it, or give another workdir'
        with files.os_errors(WorkdirError, f'{path} cannot be read'):
            if not files.exists(path):
                raise WorkdirError(
                    f'{self.path} is no workdir: it has no private/experiment.json; give the --workdir of a run'
                )
        record = read_object(path, ('experiment', 'experiment_hash', 'created'), WorkdirError, fix)
        try:
            record = upgrade(record)
        except ValueError as error:
            raise WorkdirError(f'{path} cannot be read: {error}; {fix}') from error
        if [type(record[name]) for name in ('experiment', 'experiment_hash', 'created')] != [dict, str, str]:
            raise WorkdirError(f'{path} is damaged (it has no experiment with its hash and its date); {fix}')
        return record

    def finished(self) -> set[str]:
        """The request ids of all finished traces."""
        return set(self.licences())

    def licences(self) -> dict[str, str]:
        """Request id of every finished trace -> the licence whose terms it had, '' without a policy."""
        return {record['request_id']: record.get('terms', '') for _, record in self._traces()}

    def traces(self) -> Iterator[Trace]:
        """Every finished trace once, by request id; the first one in the order of file names."""
        seen = set()
        for where, record in self._traces():
            if record['request_id'] not in seen:
                seen.add(record['request_id'])
                try:
                    yield trace_from_record(record)
                except ValueError as error:
                    raise StorageError(f'{where}: {error}; restore the file or delete that line') from error

    def rejected(self) -> dict[str, str]:
        """Request id -> the latest reason of its rejection. A later run may have finished the row."""
        records = read_records(self.private / 'rejected')
        return {record['request_id']: str(record.get('reason', 'unknown')) for _, record in records}

    def selections(self) -> list[str]:
        """The names of the selections that were made."""
        return [path.stem for path in files.list_files(self.private / 'selections', '.jsonl')]

    def selection(self, name: str) -> list[dict[str, Any]]:
        """The records of one of them, one per prompt. Raises StorageError if it cannot be read."""
        path = self.private / 'selections' / f'{name}.jsonl'
        try:
            return [from_json(line) for line in files.read(path).splitlines()]
        except (OSError, ValueError) as error:
            raise StorageError(f'{path} cannot be read: {error}; run --stages=select again') from error

    def heartbeats(self) -> list[dict[str, Any]]:
        """The last heartbeat of every process that ever sent one, with its `age_seconds`."""
        paths = files.list_files(self.private / 'heartbeat', '.json')
        with files.os_errors(StorageError, f'{self.private / "heartbeat"} cannot be read'):
            beats = [_read_beat(data) for data in files.read_all(paths)]
        return [beat | {'age_seconds': max(0.0, time.time() - beat['time'])} for beat in beats if beat]

    def totals(self) -> dict[str, int] | None:
        """Setting -> number of requests of the whole run, from the latest heartbeat that says; else None.

        Those of forgotten prompts are not counted.
        """
        beats = [beat for beat in self.heartbeats() if 'totals' in beat]
        if not beats:
            return None
        samples = self.experiment['experiment'].get('samples', 1)
        gone = len(self.forgotten()) * (samples if isinstance(samples, int) else 1)
        return {name: total - gone for name, total in max(beats, key=lambda beat: beat['time'])['totals'].items()}

    def forgotten(self) -> set[str]:
        """Which prompts were removed for good, by hash: see forgetting.py. Raises StorageError."""
        path, fix = self.private / FORGOTTEN, 'restore it, or forget the requests again'
        with files.os_errors(StorageError, f'{path} cannot be read'):
            if not files.exists(path):
                return set()
        prompts = read_object(path, ('prompts',), StorageError, fix)['prompts']
        if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
            raise StorageError(f'{path} is damaged (its prompts are no list of hashes); {fix}')
        return set(prompts)

    def _traces(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return read_records(self.private / 'journal')


def of_experiment(path: epath.PathLike, experiment_hash: str) -> Workdir:
    """The workdir of an experiment. Raises WorkdirError where it is another's."""
    workdir = Workdir(path)
    if workdir.experiment['experiment_hash'] != experiment_hash:
        raise WorkdirError(f'workdir {path} belongs to another experiment; give the config that it was made with')
    return workdir


def share_name(shard: int, num_shards: int) -> str:
    return f'{shard}-of-{num_shards}'


def setup(workdir: Workdir) -> contextlib.AbstractContextManager[None]:
    """Waits until nobody else begins to write the workdir."""
    return locks.exclusive(workdir.private / 'locks' / 'setup')


@contextlib.contextmanager
def held(
    workdir: Workdir, stage: str, directories: Sequence[str], place: tuple[int, int] = (0, 1)
) -> Iterator[str]:
    """Nobody else runs this share of the stage in the workdir meanwhile; the name of its holder, of its journals too.

    directories: under private/, made where they are missing. place: (shard, num_shards).
    """
    share = share_name(*place)
    owner, what = f'{stage}-{share}', f'workdir {workdir.path}, stage {stage}, shard {share},'
    with files.os_errors(WorkdirError, f'workdir {workdir.path} cannot be written'):
        for name in directories:
            files.make_private_dir(workdir.private / name)
        with setup(workdir):
            _check_layout(workdir, place[1], f'{stage}-')
            lock = locks.acquire(workdir.private / 'locks' / f'{owner}.lock', what)
    try:
        yield owner
    finally:
        lock.release()


class WorkdirWriter(Workdir):
    """One shard of a workdir, held by this process. Made by `Workdir.open`."""

    def __init__(self, path: epath.PathLike, owner: str, lock: locks.Lock):
        super().__init__(path)
        self.owner = owner
        self._lock = lock
        self._journal = Journal(self.private / 'journal', owner)
        self._rejected = Journal(self.private / 'rejected', owner)
        self._beat: dict[str, Any] | None = None

    def append(self, traces: Sequence[Trace]) -> None:
        """Saves finished traces; they are durable when this returns.

        Raises StorageError if they are not, ValueError on a NaN; nothing of the batch is kept then.
        """
        self._journal.append([trace_to_json(trace) for trace in traces])

    def reject(self, request_id: str, reason: str, policy: str = '') -> None:
        """Records that a row cannot be decoded. policy: the hash of the one that it was to be served under."""
        record = {'format_version': FORMAT_VERSION, 'request_id': request_id, 'reason': reason, 'policy': policy}
        self._rejected.append([to_json(record)])

    def keep_policy(self, policy_hash: str, policy: dict[str, Any]) -> None:
        """Saves the policy that traces with this hash are served under."""
        path = self.private / 'policies' / f'{policy_hash}.json'
        if not path.exists():
            with files.os_errors(StorageError, f'{path} was not written'):
                files.write_private(path, to_json({'format_version': FORMAT_VERSION, 'policy': policy}).encode())

    def heartbeat(self, beat: dict[str, Any]) -> None:
        """Says that this process lives and how it does.

        beat: JSON-able. `status` reads the keys totals (setting -> requests of the whole run, all shards),
        tokens_per_second, seconds_left and occupancy (0..1), all of this process.
        """
        with files.os_errors(StorageError, f'{self.path}: the lock was not refreshed, finished traces are safe'):
            self._lock.refresh()
        self._beat = beat
        self._write_beat('running')

    def close(self) -> None:
        """Marks the process as stopped and lets go of the shard."""
        try:
            self._journal.close()
            self._rejected.close()
            if self._beat is not None:
                with contextlib.suppress(StorageError):  # news, which hides no error of the traces
                    self._write_beat('stopped')
        finally:
            self._lock.release()

    def _write_beat(self, state: str) -> None:
        record = dict(self._beat or {}) | locks.identity()
        record |= {'process': self.owner, 'state': state, 'time': time.time()}
        path = self.private / 'heartbeat' / f'{self.owner}.json'
        with files.os_errors(StorageError, f'{path} was not written, finished traces are safe'):
            files.write_private(path, to_json(record).encode())


@contextlib.contextmanager
def _open(
    workdir: Workdir, experiment: dict[str, Any], experiment_hash: str, place: tuple[int, int]
) -> Iterator[WorkdirWriter]:
    owner = share_name(*place)
    # On a store each step is atomic, and what hundreds wait for would take minutes.
    alone = contextlib.nullcontext() if files.is_object_store(workdir.path) else setup(workdir)
    with contextlib.ExitStack() as undo:
        with files.os_errors(WorkdirError, f'workdir {workdir.path} cannot be written'):
            for directory in (workdir.private, *(workdir.private / name for name in PRIVATE_DIRS)):
                files.make_private_dir(directory)
            with alone:
                _claim(workdir, experiment, experiment_hash)
                lock = locks.acquire(
                    workdir.private / 'locks' / f'{owner}.lock', f'workdir {workdir.path}, shard {owner},'
                )
                undo.callback(lock.release)
                if files.exists(workdir.private / EXPIRED):  # after the lock: who removes them looks for it
                    raise WorkdirError(
                        f'the traces of workdir {workdir.path} were removed by age, see {EXPIRED}; give another'
                    )
                _check_layout(workdir, place[1])  # after its own lock: of two layouts at once one sees the other
        for name in ('journal', 'rejected'):
            cut_torn_tails(workdir.private / name, owner)
        undo.pop_all()
    with contextlib.closing(WorkdirWriter(workdir.path, owner, lock)) as writer:
        yield writer


def _claim(workdir: Workdir, experiment: dict[str, Any], experiment_hash: str) -> None:
    """Writes experiment.json, or raises WorkdirError if it is another experiment's."""
    record = {'experiment': experiment, 'experiment_hash': experiment_hash, 'created': locks.utc_now()}
    content = json.dumps({'format_version': FORMAT_VERSION} | record, indent=1).encode()
    files.write_first(workdir.private / 'experiment.json', content)
    theirs = workdir.experiment
    if theirs['experiment_hash'] != experiment_hash:
        raise foreign(workdir.path, 'experiment', diff(theirs['experiment'], experiment) or ['only the hashes differ'])


def foreign(path: epath.PathLike, kind: str, differences: Sequence[str]) -> WorkdirError:
    """The error of a workdir that belongs to another 'experiment' or 'study'."""
    more = len(differences) - SHOWN_DIFFERENCES
    return WorkdirError(
        f'workdir {path} belongs to another {kind} (theirs != ours): '
        + '; '.join(differences[:SHOWN_DIFFERENCES])
        + (f'; and {more} more' if more > 0 else '')
        + '; give another workdir or undo the change'
    )


def _check_layout(workdir: Workdir, num_shards: int, stage: str = '') -> None:
    """Raises WorkdirError if a live process divides the requests, of a stage alone, into another number of shards."""
    for path in files.list_files(workdir.private / 'locks', '.lock'):
        owner = path.name.removesuffix('.lock')
        if re.fullmatch(rf'{re.escape(stage)}\d+-of-\d+', owner) and not owner.endswith(f'-of-{num_shards}'):
            locks.check_free(path, f'workdir {workdir.path}, shard {owner} (not of {num_shards}),')


def _read_beat(data: bytes) -> dict[str, Any]:
    """Empty for one that is damaged: a heartbeat is news, and the next one replaces it."""
    try:
        beat = from_json(data)
    except ValueError:
        return {}
    totals = beat.get('totals', {})
    sound = isinstance(beat.get('time'), int | float) and isinstance(beat.get('state'), str)
    counts = isinstance(totals, dict) and all(type(total) is int for total in totals.values())
    return beat if sound and counts else {}


def trace_hash(trace: Trace) -> str:
    """Of what was decoded: token ids and stop reason, never times."""
    return hashlib.sha256(to_json({'tokens': trace.tokens, 'stop': trace.stop}).encode()).hexdigest()


def hashes(path: epath.PathLike) -> dict[str, str]:
    """Request id -> trace_hash of every finished trace: two runs are byte-identical when these are equal."""
    return {trace.request_id: trace_hash(trace) for trace in Workdir(path).traces()}


def digest(hashes: dict[str, str]) -> str:
    """One sha256 over the sorted items of `hashes`."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()
