"""Says where the time of a decode step goes: the engine's step and its parts, in turn.

    python -m tools.bench.parts

The models, shapes and context of tools/bench/decoding.py. A part alone may be faster than within a step, where others
push its data out of the processor's caches. Results: results/decoding.json, see figures.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from adx.decoding import sampling
from adx.decoding.ensemble import Caches, Ensemble
from adx.models.transformer import TransformerConfig, attend
from tools.bench import figures
from tools.bench.decoding import TABLE, bench
from tools.bench.timers import BATCH, ChunkTimer, matmul_timer, timer
from tools.bench.workload import Bench

SAMPLES = 15


def attention_timer(ensemble: Ensemble, caches: Caches) -> Callable[[], float]:
    """Seconds of all layers' attention over the allocated caches, for one new token a row."""
    models = [(ensemble.teacher.config, caches.teacher)]
    models += [
        (group.model.config, jax.tree.map(lambda x, n=n: x[n], stacked))
        for group, stacked in zip(ensemble.groups, caches.groups, strict=True)
        for n in range(group.count if stacked.layers else 0)
    ]

    def attention(caches: Sequence[Any]) -> list[jax.Array]:
        outputs = []
        for (config, _), cache in zip(models, caches, strict=True):
            q_BLHK, mask_BLS = _query(config), jnp.ones((BATCH, 1, cache.length), bool)
            outputs += [attend(q_BLHK, layer, mask_BLS, config.attention_softcap) for layer in cache.layers]
        return outputs

    return timer(attention, [cache for _, cache in models])


def _query(config: TransformerConfig) -> jax.Array:
    return jnp.ones((BATCH, 1, config.num_heads, config.head_dim), config.dtype)


def sampling_timer(bench: Bench, step: ChunkTimer) -> Callable[[], float]:
    """Seconds from the logits of teacher and proxies to the next tokens."""
    engine = bench.engine
    vocab = engine.ensemble.teacher.config.sizes['V']
    logits_NBV = jax.random.normal(jax.random.key(0), (2, BATCH, vocab))
    rows = jax.tree.map(lambda x: jnp.array(x, copy=True), step.fresh)  # the chunk gives its own away
    keys = jax.random.split(jax.random.key(1), BATCH)

    def serve(logits_NBV: jax.Array, rows: Any, keys: jax.Array, protected_V: jax.Array) -> jax.Array:
        return sampling.serve(logits_NBV[0], logits_NBV[1:], rows, keys, protected_V).token

    return timer(serve, logits_NBV, rows, keys, engine.constants.protected_V)


def main(argv: Sequence[str]) -> None:
    del argv
    defended = bench()
    step, products = defended.timer(), matmul_timer(defended.models)
    copies = jax.tree.map(lambda x: jnp.array(x, copy=True), step.caches)
    parts: dict[str, Callable[[], float]] = {
        'step': step,
        'weight_products': products,
        'attention': attention_timer(defended.engine.ensemble, copies),
        'sampling': sampling_timer(defended, step),
    }
    step()
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(SAMPLES):
        for name, seconds in parts.items():
            taken[name].append(1e3 * seconds())
    for name, samples in taken.items():
        command = 'python -m tools.bench.parts'
        row = figures.append(TABLE, f'part_{name}_ms_cpu', samples, unit='ms', goal='', command=command)
        print(f'{name}: {row["value"]:.1f} ms ({row["low"]:.1f} to {row["high"]:.1f})', flush=True)
    share = np.divide(taken['sampling'], taken['step'])
    figures.append(TABLE, 'sampling_share_of_step_cpu', share, unit='of a step', goal='<= 0.12', command=command)


if __name__ == '__main__':
    app.run(main)
