"""A run that is stopped anywhere and resumed is the run that never stopped, bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import threading

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from adx import files, training_io
from adx.batching import Corpus, Example, Stream
from adx.errors import Interrupted, StorageError, WorkdirError
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.training import Trainer
from adx.training_io import Run

MODEL = make_model(fakes.PROXY)
EXAMPLES = [Example(str(i), (i + 1, 2), (3, i + 1, 5)) for i in range(12)]
STREAM = Stream([Corpus(EXAMPLES, seed) for seed in range(2)], 4, 64)
STEPS = 5


@functools.cache
def trainer(rank=0):
    return Trainer(MODEL, make_mesh(), Recipe(rows=4, steps=STEPS, length=64, lora_rank=rank), 2)


def start(rank=0):
    members = [MODEL.init(i) for i in range(2)]
    return trainer(rank).start({path: jnp.stack([m[path] for m in members]) for path in MODEL.shapes})


def run_in(directory, **more):
    return Run(epath.Path(directory), {'experiment': 'a'}, **({'every': 2} | more))


@functools.cache
def uninterrupted(rank=0):
    state = start(rank)
    for i in range(STEPS):
        state, _ = trainer(rank).step(state, STREAM(i))
    return jax.device_get(state)


def assert_same(state, expected):
    for a, b in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(('stop', 'rank'), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (3, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop, rank):
    def stopping(step):
        if step == stop:
            raise Interrupted('stopped')
        return STREAM(step)

    run = run_in(tmp_path)
    with pytest.raises(Interrupted):
        training_io.train(trainer(rank), start(rank), stopping, run)
    assert training_io.last_step(run) == (stop or None)
    read = []
    state = training_io.train(trainer(rank), start(rank), lambda i: read.append(i) or STREAM(i), run)
    assert read == list(range(stop, STEPS))
    assert_same(state, uninterrupted(rank))
    assert [record['step'] for record in training_io.metrics(run)] == [1, 2, 3, 4, 5]


def test_a_killed_run_goes_on_from_the_last_finished_checkpoint(tmp_path):
    def killed(step):
        if step == 3:
            raise RuntimeError('killed')
        return STREAM(step)

    run = run_in(tmp_path, every=1, keep=2)
    with pytest.raises(RuntimeError):
        training_io.train(trainer(), start(), killed, run)
    assert training_io.steps(run) == [2, 3]
    (tmp_path / '00000003' / training_io.MANIFEST).unlink()
    assert training_io.last_step(run) == 2
    assert len(training_io.metrics(run)) == 2
    told = []
    state = training_io.train(trainer(), start(), STREAM, run, lambda step, total, _: told.append((step, total)))
    assert told == [(3, 5), (4, 5), (5, 5)]
    assert_same(state, uninterrupted())


def on_manifest(monkeypatch, do) -> None:
    """Calls do(path) before a manifest is written."""
    write = files.write_private

    def writing(path, data):
        if path.name == training_io.MANIFEST:
            do(path)
        write(path, data)

    monkeypatch.setattr(files, 'write_private', writing)


def test_steps_go_on_while_a_checkpoint_is_saved(tmp_path, monkeypatch):
    later, waited = threading.Event(), []
    on_manifest(monkeypatch, lambda path: waited.append(later.wait(30)))

    def stream(step):
        if step == 3:
            later.set()
        return STREAM(step)

    run = run_in(tmp_path)
    state = training_io.train(trainer(), start(), stream, run)
    assert waited == [True] * 3
    assert training_io.steps(run) == [4, 5]
    assert_same(state, uninterrupted())


def test_a_checkpoint_that_cannot_be_finished_is_never_used(tmp_path, monkeypatch):
    def full(path):
        if path.parent.name == '00000004':
            raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        on_manifest(patch, full)
        with pytest.raises(StorageError, match='00000004 was not written, the last checkpoint is safe: No space'):
            training_io.train(trainer(), start(), STREAM, run_in(tmp_path))
    assert (tmp_path / '00000004' / 'params').exists()
    assert training_io.steps(run_in(tmp_path)) == [2]
    read = []
    state = training_io.train(trainer(), start(), lambda i: read.append(i) or STREAM(i), run_in(tmp_path, every=3))
    assert read == [2, 3, 4]
    assert_same(state, uninterrupted())
    assert not (tmp_path / '00000004').exists()  # it lay before the last one, and was never finished


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """To rounding: see training_test.assert_close for the bound."""

    def stopping(step):
        if step == 3:
            raise Interrupted('stopped')
        return STREAM(step)

    with pytest.raises(Interrupted):
        training_io.train(trainer(), start(), stopping, run_in(tmp_path))
    other = Trainer(MODEL, make_mesh(2, 2, 2), trainer().recipe, 2)
    members = [MODEL.init(i) for i in range(2)]
    fresh = other.start({path: jnp.stack([m[path] for m in members]) for path in MODEL.shapes})
    state = training_io.train(other, fresh, STREAM, run_in(tmp_path))
    for path, x in uninterrupted().weights.items():
        assert np.linalg.norm(state.weights[path] - x) < 1e-4 * np.linalg.norm(x), path


def test_a_finished_run_is_not_trained_again(tmp_path):
    training_io.train(trainer(), start(), STREAM, run_in(tmp_path))
    assert_same(training_io.train(trainer(), start(), None, run_in(tmp_path)), uninterrupted())


def test_another_runs_checkpoint_is_refused(tmp_path):
    run = run_in(tmp_path)
    training_io.save(run, start())
    with pytest.raises(WorkdirError, match=r"another run \(it differs in \['experiment'\]\)"):
        training_io.restore(dataclasses.replace(run, identity={'experiment': 'b'}), start())
    with pytest.raises(WorkdirError, match='shapes'):
        training_io.restore(run, start(2))


def test_what_is_not_finite_is_null_in_the_metrics(tmp_path):
    def poisoned(step):
        rows = STREAM(step)
        if step == 1:
            rows.weights_BL[1] = np.nan
        return rows

    run = run_in(tmp_path)
    training_io.train(trainer(), start(), poisoned, run)
    second = training_io.metrics(run)[1]
    assert second['loss'][1] is None
    assert second['moved'] == [True, False]
    assert json.dumps(second, allow_nan=False)
