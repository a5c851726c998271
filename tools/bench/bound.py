"""The bandwidth of this machine's memory: the physical limit of a decode step."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

COPY_BYTES = 2**28
SAMPLES = 5


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
