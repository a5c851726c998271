"""A process without a backend of JAX, whose forks train with real checkpoints and are killed (kill_points_orbax_test).

    python -m tests.orbax_kills local|gs DIRECTORY
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import sys
from typing import Any

import gcs_fake
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint  # noqa: F401
from kill_points import AFTER, BEFORE, HALF, everywhere, killed, killed_at_requests

from adx import files, training_io
from adx.training import Metrics, TrainState
from adx.training_io import Run

STEPS, SIZE = 2, 5


class Learner:
    """A trainer that adds one to all weights."""

    def step(self, state: TrainState, rows: Any) -> tuple[TrainState, Metrics]:
        weights, one = {name: x + 1 for name, x in state.weights.items()}, jnp.ones(1)
        return dataclasses.replace(state, weights=weights, step=state.step + 1), Metrics(one, one, one, one, one)


def start() -> TrainState:
    steps = jnp.full(1, STEPS, jnp.int32)
    weights = {'a': jnp.zeros(SIZE), 'b': jnp.zeros((2, SIZE))}
    return TrainState(weights, {}, {}, jnp.int32(0), jnp.ones(1), steps, steps, steps)


def run(directory: str) -> None:
    """Trains to the end, from whole checkpoints whose weights are those of their step."""
    kept = Run(files.path_of(directory), {'run': 1}, every=1, keep=1)
    before, found = training_io.last_step(kept) or 0, training_io.restore(kept, start())
    assert int(found.step) == before
    assert all(np.all(np.asarray(x) == before) for x in found.weights.values())
    state = training_io.train(Learner(), start(), lambda step: None, kept)  # type: ignore[arg-type]
    assert all(np.all(np.asarray(x) == STEPS) for x in state.weights.values())
    assert training_io.last_step(kept) == STEPS
    assert [record['step'] for record in training_io.metrics(kept)] == list(range(1, STEPS + 1))


def main(where: str, root: str) -> None:
    """Prints how many points there were."""
    jax.config.update('jax_platforms', 'cpu')
    place, nothing = pathlib.Path(root), lambda place: None
    if where == 'local':
        print(everywhere(place, lambda at: run(f'{at}/run'), nothing, (BEFORE, HALF, AFTER), kill=killed))
        return
    files.configure_stores()
    importlib.import_module('gcsfs')  # once, and not in every fork
    with gcs_fake.serve() as fake:
        os.environ |= {'STORAGE_EMULATOR_HOST': fake.url, 'TENSORSTORE_GCS_HTTP_URL': fake.url}
        os.environ['GOOGLE_AUTH_TOKEN_FOR_TESTING'] = 'x'
        name = lambda at: f'gs://bucket/{at.parent.name}/{at.name}'  # noqa: E731
        print(everywhere(place, lambda at: run(name(at)), nothing, kill=killed_at_requests(fake)))


if __name__ == '__main__':
    main(*sys.argv[1:])
