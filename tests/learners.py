"""A process of one program, which takes a gradient and trains two students over the devices of all processes:

    python -m tests.learners <directory> <data>x<proxy>x<model> <seconds a step> [<coordinator> <processes> <process>]

It prints the number of every step whose metrics it has read.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import fakes
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from adx import gradients, processes, training_io
from adx.batching import Corpus, Example, Rows, Stream
from adx.errors import AdxError
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.training import Trainer
from launch import interrupts

MODEL = make_model(fakes.PROXY)
EXAMPLES = [Example(str(i), (i + 1, 2, 3), tuple((i * j) % 50 + 1 for j in range(3, 8 + i % 4))) for i in range(24)]
STEPS, ROWS = 12, 8
STREAM = Stream([Corpus(EXAMPLES, seed) for seed in range(2)], ROWS, 64)
GRADIENT, STUDENTS = 'gradient.npz', 'students.npz'


def run_in(directory) -> training_io.Run:
    return training_io.Run(epath.Path(directory) / 'checkpoints', {'experiment': 'learners'}, every=4, keep=2)


def learn(directory, shape: str, stream: Callable[[int], Rows] = STREAM, guard: Any = contextlib.nullcontext) -> None:
    """Saves the gradient at once and the students at the end; of one program, process 0 does."""
    mesh = make_mesh(*map(int, shape.split('x')))
    differentiator = Differentiator(MODEL, mesh)
    g, _, _ = differentiator.mean_gradient(MODEL.init(1), gradients.batches(EXAMPLES, differentiator.rows))
    save(directory, GRADIENT, g)
    trainer = Trainer(MODEL, mesh, Recipe(learning_rate=1e-2, rows=ROWS, steps=STEPS, length=64), 2)
    members = [MODEL.init(i) for i in range(2)]
    state = trainer.start({path: jnp.stack([member[path] for member in members]) for path in MODEL.shapes})
    told = lambda step, total, metrics: print(step, flush=True)  # noqa: E731
    state = training_io.train(trainer, state, stream, run_in(directory), told, guard)
    save(directory, STUDENTS, trainer.params(state))


def save(directory, name: str, arrays: dict[str, jax.Array]) -> None:
    together = jax.distributed.is_initialized()
    whole = multihost_utils.process_allgather(arrays, tiled=True) if together else jax.device_get(arrays)
    if jax.process_index() == 0:
        np.savez(epath.Path(directory) / name, **whole)
    processes.wait()


def main(directory: str, shape: str, pace: str, *place: str) -> None:
    interrupts.GRACE_SECONDS = 120.0  # the machine of a test may be busy
    stop = interrupts.Interrupts()
    stop.install()
    if place:
        jax.config.update('jax_enable_preemption_service', False)
        jax.distributed.initialize(place[0], int(place[1]), int(place[2]), heartbeat_timeout_seconds=60)
        stop.listen()

    def slow(step):
        time.sleep(float(pace))
        return STREAM(step)

    learn(directory, shape, slow, stop.guard)


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except AdxError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        time.sleep(1)  # for the others to have heard it
        os._exit(error.exit_code)
