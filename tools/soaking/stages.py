"""The stages that tools/soak.py kills: how each is run on a workdir, and what is then in it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from adx import checkpoints, files, journal, outcomes_io, training_io
from adx.batching import Corpus, Example, Stream
from adx.loading import resolve
from adx.mesh import make_mesh
from adx.optimising import Recipe
from adx.storage import Workdir
from adx.training import Trainer
from launch import program, run
from tools.soaking import study as soaked
from tools.soaking import witness
from tools.soaking.witness import Witness

FLUSH_SECONDS = 0.1  # put in place of pipeline's 2.0: a run of seconds saves as often as one of minutes, and not once
BATCH = 8  # traces of a rewrite, for the same reason
STEPS, EVERY = 64, 2  # of training, and between checkpoints: one interval is 3 % of a run
OF_AN_ARM = 2  # graded students, which are saved together
Run = Callable[[pathlib.Path, Witness], int]


@dataclasses.dataclass(frozen=True)
class Stage:
    """run: on a workdir, in a process of its own; its exit code. before: what must have been run in the workdir.

    final: id -> hash of everything finished in a workdir, also one that is not complete. stored: the ids as often as
    they are stored. batch: how many results are in flight together.
    """

    run: Run
    final: Callable[[pathlib.Path], dict[str, str]]
    stored: Callable[[pathlib.Path], list[str]]
    batch: int
    before: Mapping[str, Run] = dataclasses.field(default_factory=dict)


def set_up(root: pathlib.Path) -> None:
    """Before any backend starts: programs are kept in `root` and hardly optimised, compile time is most of a run."""
    os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=1'
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_compilation_cache_dir', str(root / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    import orbax.checkpoint  # noqa: F401  # seconds, which no fork should spend


def launched(stage: str) -> Run:
    """The program as its user starts it."""

    def launch(place: pathlib.Path, _: Witness) -> int:
        flags.FLAGS.unparse_flags()
        argv = ['launch.run', f'--config={soaked.__file__}', f'--workdir={place}', f'--stages={stage}']
        sys.argv = argv
        program.parse(argv)
        run.main(argv)
        raise AssertionError  # it exits

    return launch


def seed(place: pathlib.Path) -> Workdir:
    return Workdir(place / 'private' / 'seeds' / '0')


def traces(place: pathlib.Path) -> dict[str, str]:
    found = seed(place)
    return {one.request_id: witness.trace(one) for one in found.traces()} if found.private.exists() else {}


def rewrites(place: pathlib.Path) -> dict[str, str]:
    records = journal.read_records(seed(place).private / 'rewrites' / 'told')
    return {record['request_id']: witness.content(record) for _, record in records}


def outcomes(place: pathlib.Path) -> dict[str, str]:
    return {name: witness.outcome(one) for name, one in outcomes_io.read(str(place)).items()}


def ids(directory: epath.Path) -> list[str]:
    return [record['request_id'] for _, record in journal.read_records(directory)]


def train(place: pathlib.Path, seer: Witness) -> int:
    """A student with a checkpoint every few steps."""
    loaded = checkpoints.load(resolve('testbed-student-wide'))
    recipe = Recipe(rows=4, steps=STEPS, length=64)
    trainer = Trainer(loaded.model, make_mesh(), recipe, 1)
    examples = [Example(str(i), (i + 1, 2), (3, i + 1, 5)) for i in range(24)]
    state = trainer.start({path: x[None] for path, x in loaded.params.items()})
    stream = Stream([Corpus(examples, 0)], recipe.rows, recipe.length)

    def progress(step: int, total: int, metrics: dict[str, Any]) -> None:
        seer.seen(witness.step(step), witness.content(metrics))

    state = training_io.train(trainer, state, stream, checkpoints_of(place), progress)
    digest = hashlib.sha256()
    for x in jax.tree.leaves(jax.device_get(trainer.params(state))):
        digest.update(np.ascontiguousarray(x).tobytes())
    (place / 'weights').write_text(digest.hexdigest())
    return 0


def checkpoints_of(place: pathlib.Path) -> training_io.Run:
    return training_io.Run(epath.Path(place), {'run': 'soak'}, every=EVERY)


def steps(place: pathlib.Path) -> dict[str, str]:
    """The metrics of the steps that a finished checkpoint covers, and the weights at the end."""
    found = training_io.metrics(checkpoints_of(place)) if place.exists() else []
    of = {witness.step(one.pop('step')): witness.content(one) for one in found}
    weights = place / 'weights'
    return of | ({'weights': weights.read_text()} if weights.exists() else {})


def logged(place: pathlib.Path) -> list[str]:
    """The step of every line of metrics up to the last finished checkpoint: readers take one of each, files may not."""
    run = checkpoints_of(place)
    last, paths = training_io.last_step(run) or 0, files.list_files(run.directory / training_io.METRICS, journal.SUFFIX)
    found = [journal.from_json(line)['step'] for path in paths for line in path.read_bytes().splitlines()]
    return [witness.step(step) for step in found if step <= last]


STAGES = {
    'generate': Stage(launched('generate'), traces, lambda at: ids(seed(at).private / 'journal'), soaked.SLOTS),
    'rewrite': Stage(
        launched('rewrite'), rewrites, lambda at: ids(seed(at).private / 'rewrites' / 'told'), BATCH,
        {'generate': launched('generate')},
    ),
    'distil': Stage(
        launched('distil'), outcomes, lambda at: ids(Workdir(at).private / 'outcomes'), OF_AN_ARM,
        {'generate': launched('generate'), 'rewrite': launched('rewrite')},
    ),
    'train': Stage(train, steps, logged, EVERY),
}  # fmt: skip
