"""The physical limit of a decode step: every model's bytes over the bandwidth or operations over the matrix rate.

    t >= sum over models of max(bytes / bandwidth, operations / rate) + bytes of the logits / bandwidth
    bytes      = weights + rows x (keys and values of the allocated cache), once, and once more per tangent
    operations = 2 x rows x weights, three times as many with a tangent (x W, dx W and x dW), twice for two copies
"""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from adx.decoding.ensemble import Ensemble
from adx.models.transformer import Model

COPY_BYTES = 2**28
SAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Machine:
    """operations a second (a multiplication and an addition are two) and bytes a second."""

    rate: float
    bandwidth: float

    def step_seconds(self, ensemble: Ensemble, rows: int, length: int) -> float:
        """The least time of one decode step over caches of `length`."""
        models = [(ensemble.teacher, 1, 0, 0.0)]
        models += [(group.model, group.count, group.directions, group.difference) for group in ensemble.groups]
        logits = sum(count * (1 + directions) for _, count, directions, _ in models)
        seconds = logits * rows * ensemble.teacher.config.sizes['V'] * 4 / self.bandwidth
        for model, count, directions, difference in models:
            moved = (1 + directions) * _bytes(model, rows, length) / self.bandwidth
            passes = 1 + (directions if difference else 2 * directions)
            computed = passes * 2 * rows * model.num_params / self.rate
            seconds += count * max(moved, computed)
        return seconds


def _bytes(model: Model, rows: int, length: int) -> float:
    c = model.config
    keys_and_values = 2 * c.num_layers * c.num_kv_heads * c.head_dim * rows * length
    return jnp.dtype(c.dtype).itemsize * (model.num_params + keys_and_values)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy; the median of SAMPLES."""
    x = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(x))
    seconds = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        jax.block_until_ready(copy(x))
        seconds.append(time.perf_counter() - begin)
    return 2 * COPY_BYTES / float(np.median(seconds))
