"""A run that is stopped anywhere and resumed is the run that never stopped, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
import json

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from adx import training_io
from adx.batching import Corpus, Example, Stream
from adx.errors import Interrupted, WorkdirError
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
