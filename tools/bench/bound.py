"""The bandwidth of this machine's memory: the physical limit of a decode step."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

READ_BYTES = 2**28
SAMPLES = 9


def read_bandwidth() -> float:
    """Bytes a second of a large read, the median of SAMPLES: a decode step reads weights and caches, and writes little.

    A copy would do for a GPU; on a CPU it measures how fast the system hands out pages for what is written.
    """
    x = jnp.ones((READ_BYTES // 2**14, 2**12), jnp.float32)
    read = jax.jit(lambda x: jnp.max(x, axis=1))
    jax.block_until_ready(read(x))
    seconds = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        jax.block_until_ready(read(x))
        seconds.append(time.perf_counter() - begin)
    return READ_BYTES / float(np.median(seconds))
