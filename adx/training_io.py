"""Training with checkpoints: a run that was stopped goes on from its last one, bit for bit.

    directory/<step>/training.json   written last: a directory without it is not a checkpoint
    directory/<step>/params/         Orbax; what is trained, the optimiser and the counts
    directory/metrics/<step>.jsonl   one line a step, up to that checkpoint
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from adx import files, journal, orbax_io, processes
from adx.batching import Rows
from adx.errors import InputError, Interrupted, StorageError, WorkdirError, malformed
from adx.training import Metrics, Trainer, TrainState

MANIFEST, METRICS = 'training.json', 'metrics'
BEHIND = 4  # steps: metrics are read this late, so that the host does not wait for the devices

Progress = Callable[[int, int, dict[str, Any]], None]  # step, of how many, the metrics of a step
Guard = Callable[[], Any]  # a context manager inside which no interruption is raised


@dataclasses.dataclass(frozen=True)
class Visits:
    """States that are looked at on the way, whether or not the run is stopped meanwhile.

    needed: step -> the steps up to it whose states a run that goes on from there must have seen; they are saved when
    they are passed, and stay as long as they are needed. see: given such a step and its state, in order, before the
    next step is taken; the state is given up then. Step 0 is the state that a run is started with.
    """

    needed: Callable[[int], Collection[int]] = lambda step: ()
    see: Callable[[int, TrainState], None] = lambda step, state: None


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run is kept. identity: what it depends on, as JSON: another run's checkpoints are refused.

    every: steps between checkpoints. keep: how many of the last ones stay, beside those that `visits` need.
    """

    directory: epath.Path
    identity: dict[str, Any]
    every: int = 100
    keep: int = 2
    visits: Visits = Visits()


def train(
    trainer: Trainer,
    state: TrainState,
    stream: Callable[[int], Rows],
    run: Run,
    progress: Progress = lambda step, total, metrics: None,
    guard: Guard = contextlib.nullcontext,
) -> TrainState:
    """Trains until every student has taken its steps, from the last checkpoint of `run` if there is one.

    state: from Trainer.start; given up. stream: the same rows for a step whenever it is asked.
    Interruptions may be raised anywhere outside `guard`: what is done is saved. Of several processes one that is
    interrupted goes on for `processes.LATE` steps, until all of them save the same step and raise Interrupted.
    Raises WorkdirError where the directory holds another run.
    """
    total = int(jnp.max(state.steps_N))
    with processes.ending_together():
        state = _resumed(run, state)  # one that was read takes the place of that which was given
        course = _Course(trainer, state, run, _Log(run, total, progress))
        del state
        with contextlib.closing(course):
            goes_on = True
            while goes_on:
                try:
                    goes_on = course.advance(stream, total, guard)
                except (KeyboardInterrupt, Interrupted) as error:
                    course.interrupt(error)
            if course.stops:
                with contextlib.suppress(Interrupted), guard():
                    course.save()
                    course.close()
                raise course.reason or Interrupted('another process was stopped; what is done is saved')
    return course.state


class _Course:
    """A run on its way: whole wherever an interruption may be raised."""

    def __init__(self, trainer: Trainer, state: TrainState, run: Run, log: _Log):
        self.trainer, self.state, self.run, self.log = trainer, state, run, log
        self.step = self.saved = int(state.step)
        self.seen = -1
        self.stops, self.reason = False, None  # type: bool, BaseException | None
        self._saver = orbax_io.Saver()
        self._vote = processes.Vote() if jax.process_count() > 1 else None

    def advance(self, stream: Callable[[int], Rows], total: int, guard: Guard) -> bool:
        """One step, and its checkpoint where one is due, all of it or nothing; False where nothing is left to do."""
        if self.stops or self.step >= total:
            return False
        if self.step != self.seen and self._is_needed():
            with guard():
                self.run.visits.see(self.step, self.state)
                self.seen = self.step
        rows = stream(self.step)
        with guard():
            self.state, metrics = self.trainer.step(self.state, rows)
            self.step += 1
            self.log.add(self.step, metrics)
            if self._vote:
                self.stops = self._vote(self.reason is not None)
            if self.step % self.run.every == 0 or self.step == total or self._is_needed():
                self.save()
        return True

    def _is_needed(self) -> bool:
        return self.step in self.run.visits.needed(self.step)

    def interrupt(self, reason: BaseException) -> None:
        """Stops the run; the runs of all processes where there are several, once they have agreed."""
        self.reason = reason
        self.stops = self.stops or self._vote is None

    def save(self) -> None:
        if self.step != self.saved:
            self.log.write(self.step)
            begin_save(self._saver, self.run, self.state)
            self.saved = self.step

    def close(self) -> None:
        """Returns when the last checkpoint is finished."""
        self._saver.close()


class _Log:
    """Metrics of steps that no checkpoint covers yet."""

    def __init__(self, run: Run, total: int, progress: Progress):
        self.run, self.total, self.progress = run, total, progress
        self.waiting: list[tuple[int, Metrics]] = []
        self.lines: list[str] = []

    def add(self, step: int, metrics: Metrics) -> None:
        self.waiting.append((step, metrics))
        if len(self.waiting) > BEHIND:
            self._read()

    def _read(self) -> None:
        step, metrics = self.waiting.pop(0)
        values = {field.name[:-2]: _plain(getattr(metrics, field.name)) for field in dataclasses.fields(metrics)}
        self.lines.append(journal.to_json({'step': step, **values}))
        self.progress(step, self.total, values)

    def write(self, step: int) -> None:
        while self.waiting:
            self._read()
        if self.lines and jax.process_index() == 0:
            files.make_private_dir(self.run.directory / METRICS)
            path = self.run.directory / METRICS / f'{step:08d}{journal.SUFFIX}'
            files.write_private(path, ''.join(f'{line}\n' for line in self.lines).encode())
        self.lines = []


def _plain(x_N: Any) -> list[Any]:
    """JSON has no nan: what is not finite becomes null."""
    values = np.asarray(jax.device_get(x_N))
    return [x if np.isfinite(x) else None for x in values.tolist()]


def save(run: Run, state: TrainState) -> None:
    """Saves a checkpoint from all processes; it is finished when this returns."""
    with contextlib.closing(orbax_io.Saver()) as saver:
        begin_save(saver, run, state)


def begin_save(saver: orbax_io.Saver, run: Run, state: TrainState) -> None:
    """Begins to save from all processes. Frozen weights stay out.

    Once all arrays are durable the manifest is written, and those checkpoints are removed that `run` does not keep.
    """
    step, arrays = int(state.step), _flat(state)
    directory = files.absolute(run.directory) / f'{step:08d}'
    if jax.process_index() == 0:
        files.make_private_dir(directory)
    shapes = {name: list(x.shape) for name, x in arrays.items()}
    manifest = {'format_version': journal.FORMAT_VERSION, 'step': step, 'identity': run.identity, 'shapes': shapes}

    def finish() -> None:
        with files.os_errors(StorageError, f'{directory} was not written, the last checkpoint is safe'):
            files.write_private(directory / MANIFEST, json.dumps(manifest, indent=1).encode())
            _prune(run, step)

    with files.os_errors(StorageError, f'{directory} was not written, the last checkpoint is safe'):
        saver.begin(directory, arrays, finish)


def _prune(run: Run, step: int) -> None:
    """Removes what lies before `step` but for what the run keeps; what was never finished too."""
    kept = {*steps(run)[-run.keep :], *run.visits.needed(step)}
    for path in list(run.directory.iterdir()):
        if path.name.isdecimal() and int(path.name) < step and int(path.name) not in kept:
            # The manifest first: what is half removed is no checkpoint either.
            with contextlib.suppress(FileNotFoundError):
                files.remove(path / MANIFEST)
            files.remove_directory(path)


def steps(run: Run) -> list[int]:
    """The steps of the finished checkpoints, ascending."""
    if not run.directory.exists():
        return []
    found = [path for path in run.directory.iterdir() if path.name.isdecimal() and (path / MANIFEST).exists()]
    return sorted(int(path.name) for path in found)


def last_step(run: Run) -> int | None:
    """The step of the last finished checkpoint, None without one."""
    return max(steps(run), default=None)


def restore(run: Run, state: TrainState) -> TrainState:
    """`state` with what the last finished checkpoint holds, on its devices; as it is where there is none."""
    step = _agreed_step(run)
    return state if step is None else _read(run, step, state)


def _agreed_step(run: Run) -> int | None:
    """The last step, of which all processes have the same."""
    processes.wait()  # for process 0, which finishes checkpoints
    step = last_step(run)
    processes.check_same('checkpoints', lambda: str(step))
    return step


def _resumed(run: Run, state: TrainState) -> TrainState:
    """What `restore` gives, once all that is needed there has been seen."""
    last = _agreed_step(run)
    if last is None:
        return state
    for step in sorted(run.visits.needed(last)):
        if step < last:
            run.visits.see(step, _read(run, step, state) if step else state)
    return _read(run, last, state)


def _read(run: Run, step: int, state: TrainState) -> TrainState:
    """`state` with what the checkpoint of a step holds."""
    directory, arrays = files.absolute(run.directory) / f'{step:08d}', _flat(state)
    fix = f'remove {directory}'
    manifest = journal.read_object(directory / MANIFEST, ('identity', 'shapes'), InputError, fix)
    try:
        manifest = journal.upgrade(manifest)
    except ValueError as error:
        raise WorkdirError(f'{directory}: {error}') from error
    with malformed(f'{directory / MANIFEST} is damaged', fix):
        given, found = json.loads(json.dumps(run.identity)), dict(manifest['identity'])
        shapes = {name: tuple(shape) for name, shape in manifest['shapes'].items()}
    if given != found or shapes != {name: x.shape for name, x in arrays.items()}:
        differing = sorted(name for name in {*given, *found} if given.get(name) != found.get(name)) or ['shapes']
        raise WorkdirError(
            f'{directory} is a checkpoint of another run (it differs in {differing}); name a new directory'
        )
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in arrays.items()}
    restored = orbax_io.restore(directory, abstract)
    leaves = [restored[name] for name in arrays]
    kept = jax.tree.unflatten(jax.tree.structure(dataclasses.replace(state, base={})), leaves)
    return dataclasses.replace(kept, base=state.base)


def metrics(run: Run) -> list[dict[str, Any]]:
    """One record a step that finished checkpoints cover, ascending."""
    last, by_step = last_step(run) or 0, dict[int, dict[str, Any]]()
    for path in files.list_files(run.directory / METRICS, journal.SUFFIX):
        try:
            found = {record['step']: record for record in map(journal.from_json, path.read_bytes().splitlines())}
            by_step |= {step: record for step, record in found.items() if step <= last}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f'{path} is damaged ({error!r}); delete it, the weights do not need it') from error
    return [by_step[step] for step in sorted(by_step)]


def _flat(state: TrainState) -> dict[str, jax.Array]:
    """Name -> array of all that changes, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(dataclasses.replace(state, base={}))
    return {'.'.join(_name(key) for key in path): x for path, x in leaves}


def _name(key: Any) -> str:
    return next(str(getattr(key, kind)) for kind in ('name', 'key', 'idx') if hasattr(key, kind))
