"""A process of one program, which takes a gradient and trains two students over the devices of all processes:

    python -m tests.learners <directory> <data>x<proxy>x<model> <seconds a step> [<coordinator> <processes> <process>]
"""

from __future__ import annotations

import os
import sys
import time

import fakes
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from adx import gradients, processes, training_io
from adx.batching import Corpus, Example, Stream
from adx.errors import AdxError
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.training import Trainer
from launch.interrupts import Interrupts

MODEL = make_model(fakes.PROXY)
EXAMPLES = [Example(str(i), (i + 1, 2, 3), tuple((i * j) % 50 + 1 for j in range(3, 8 + i % 4))) for i in range(24)]
STEPS, STUDENTS, ROWS = 12, 2, 8
RESULT = 'result.npz'


def recipe() -> Recipe:
    return Recipe(learning_rate=1e-2, rows=ROWS, steps=STEPS, length=64)


def run_in(directory) -> training_io.Run:
    return training_io.Run(epath.Path(directory) / 'checkpoints', {'experiment': 'learners'}, every=4, keep=2)


def main(directory: str, shape: str, pace: str, *place: str) -> None:
    interrupts = Interrupts()
    interrupts.install()
    if place:
        jax.config.update('jax_enable_preemption_service', False)
        jax.distributed.initialize(place[0], int(place[1]), int(place[2]), heartbeat_timeout_seconds=20)
        interrupts.listen()
    mesh, stream = make_mesh(*map(int, shape.split('x'))), Stream([Corpus(EXAMPLES, i) for i in range(2)], ROWS, 64)

    def slow(step):
        time.sleep(float(pace))
        return stream(step)

    def tell(step, total, metrics):
        print(step, *metrics['loss'], flush=True)

    differentiator = Differentiator(MODEL, mesh)
    g, _, _ = differentiator.mean_gradient(MODEL.init(1), gradients.batches(EXAMPLES, differentiator.rows))
    members = [MODEL.init(i) for i in range(STUDENTS)]
    stacked = {path: jnp.stack([member[path] for member in members]) for path in MODEL.shapes}
    trainer = Trainer(MODEL, mesh, recipe(), STUDENTS)
    state = training_io.train(trainer, trainer.start(stacked), slow, run_in(directory), tell, interrupts.guard)
    arrays = {f'student/{path}': x for path, x in trainer.params(state).items()}
    arrays |= {f'gradient/{path}': x for path, x in g.items()}
    whole = multihost_utils.process_allgather(arrays, tiled=True) if place else jax.device_get(arrays)
    processes.wait()
    if jax.process_index() == 0:
        np.savez(epath.Path(directory) / RESULT, **whole)


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except AdxError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        time.sleep(1)
        os._exit(error.exit_code)
