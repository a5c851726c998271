"""Measures decoding on an accelerator: 1B teacher, 0.3B proxy, random weights, bfloat16.

    python -m tools.bench.accelerator               # appends to results/decoding.json and results/derivative.json
    python -m tools.bench.accelerator --trial       # tiny models, prints and keeps nothing: whether it runs at all

Steps of the teacher alone, of product of experts and of antidistillation in turn, at batches of 64 and 256, against
what bytes and operations allow (adx.scaling) with the bandwidth of a large read and the rate of a matrix product of the
same run. Speed does not depend on what the weights say.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from adx.decoding import derivative
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.defences import Antidistillation, ProductOfExperts, Undefended
from adx.directions import cast
from adx.errors import ConfigError
from adx.experiment import Arm
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import Params, TransformerConfig, make_model
from adx.needs import needed
from adx.scaling import Machine
from adx.types import Defence
from launch import program
from tools.bench import figures
from tools.bench.bound import read_bandwidth
from tools.bench.derivative import EPS, pass_timer
from tools.bench.timers import CONTEXT, STEPS, ChunkTimer, timer

_TRIAL = flags.DEFINE_bool('trial', False, 'Tiny models on any device; nothing is kept.')
_BATCHES = flags.DEFINE_list('batches', ['64', '256'], 'Rows decoded together.')

TEACHER = TransformerConfig(
    vocab_size=128256, num_layers=16, embed_dim=2048, mlp_dim=8192, num_heads=32, num_kv_heads=8, head_dim=64,
    max_length=1024, dtype='bfloat16',
)  # fmt: skip
PROXY = dataclasses.replace(TEACHER, num_layers=12, embed_dim=896, mlp_dim=3072, num_heads=14, num_kv_heads=2)
REPEATS, FIRST = 9, 64
RULES: dict[str, Defence] = {'plain': Undefended(), 'poe': ProductOfExperts(0.3), 'ads': Antidistillation(0.5)}


def models(teacher: TransformerConfig, proxy: TransformerConfig) -> tuple[Ensemble, Weights]:
    """Random weights, and a random direction of the proxy."""
    mesh = make_mesh()
    large, small = make_model(teacher), make_model(proxy)
    stacked = {path: x[None] for path, x in cast(small.init(1), 'bfloat16').items()}
    along = {path: g[None, None] for path, g in cast(small.init(2), 'bfloat16').items()}
    group = Group(small, proxy_layout(mesh, proxy.sizes, 1), 1, directions=1)
    ensemble = Ensemble(large, teacher_layout(mesh, teacher.sizes), (group,))
    return ensemble, Weights(cast(large.init(0), 'bfloat16'), (stacked,), (along,))


def matrix_rate(size: int) -> float:
    """Operations a second of a square product in bfloat16."""
    x = jnp.ones((size, size), jnp.bfloat16)
    seconds = timer(jnp.matmul, x, x)
    return 2 * size**3 / float(np.median([seconds() for _ in range(REPEATS)]))


def steps(ensemble: Ensemble, weights: Weights, batch: int, machine: Machine, append: Callable[..., None]) -> None:
    """Decode steps under every rule, in turn."""
    config = DecodeConfig(
        slots=batch, chunk=8, buckets=(CONTEXT,), prefill_rows=8, cache_length=CONTEXT + STEPS, record='none'
    )
    draw = np.random.default_rng(0)
    prompts = draw.integers(1, ensemble.teacher.config.vocab_size, (config.prefill_rows, CONTEXT)).tolist()
    timers, bounds = {}, {}
    for name, rule in RULES.items():
        engine = Engine(*needed(ensemble, weights, rule), config)
        timers[name] = ChunkTimer(engine, Arm(name, rule), prompts)
        bounds[name] = machine.step_seconds(engine.ensemble, batch, config.cache_length)
        timers[name]()
    took = {name: np.empty(REPEATS) for name in RULES}
    for i in range(REPEATS):
        for name, seconds in timers.items():
            took[name][i] = seconds()
    for name, measured in took.items():
        append('decoding', figure(f'{name}_step_ms_gpu', batch), 1e3 * measured, 'ms')
    append('decoding', figure('roofline_share_gpu', batch), bounds['plain'] / took['plain'], 'of the memory bound')
    ratios = {name: took['plain'] / took[name] for name in ('poe', 'ads')}
    best = {name: bounds['plain'] / bounds[name] for name in ratios}
    goal = f'its bound R, {best["poe"]:.2f}'
    append('decoding', figure('defended_over_teacher_only_gpu', batch), ratios['poe'], 'x', goal)
    share = ratios['ads'] / best['ads']
    append('derivative', figure('ads_share_of_bound_gpu', batch), share, 'of the bound R', '>= 0.8')


def passes(ensemble: Ensemble, weights: Weights, batch: int, append: Callable[..., None]) -> None:
    """A proxy's pass with its exact derivative over the two passes of a finite difference, in turn."""
    group, (stacked,), (along,) = ensemble.groups[0], weights.groups, weights.directions
    plus, minus = derivative.difference_weights(stacked, along, EPS)
    one = {path: x[0] for path, x in stacked.items()}

    def alone(params: Params) -> Params:
        return {path: x.reshape(one[path].shape) for path, x in params.items()}

    exact = pass_timer(group, derivative.exact, one, alone(along), batch)
    two = pass_timer(group, derivative.two_passes, alone(plus), alone(minus), batch)
    exact(), two()
    pairs = np.array([(exact(), two()) for _ in range(REPEATS)])
    append('derivative', figure('tangent_over_two_passes_gpu', batch), pairs[:, 0] / pairs[:, 1], 'x', '<= 1')


def figure(name: str, batch: int) -> str:
    """Of the first batch by its plain name."""
    return name if batch == FIRST else f'{name}_batch_{batch}'


def keep(table: str, name: str, samples: Any, unit: str, goal: str = '') -> None:
    command = ' '.join(['python -m tools.bench.accelerator', *sys.argv[1:]])
    show(table, name, samples, unit)
    figures.append(table, name, list(map(float, samples)), unit=unit, goal=goal, command=command)


def show(table: str, name: str, samples: Any, unit: str, goal: str = '') -> None:
    print(f'{table} {name}: {np.median(samples):.4g} {unit}', flush=True)


def is_trial() -> bool:
    """Raises ConfigError where it is none and there is no accelerator."""
    if jax.default_backend() == 'cpu' and not _TRIAL.value:
        raise ConfigError('there is no accelerator here; --trial shows on a CPU whether the program runs')
    return _TRIAL.value


def main() -> None:
    trial = is_trial()
    small = functools.partial(
        dataclasses.replace, vocab_size=256, num_layers=1, embed_dim=32, mlp_dim=64, num_heads=2, num_kv_heads=1
    )
    teacher, proxy = (small(TEACHER), small(PROXY)) if trial else (TEACHER, PROXY)
    ensemble, weights = models(teacher, proxy)
    machine = Machine(matrix_rate(256 if trial else 8192), read_bandwidth())
    for batch in map(int, _BATCHES.value):
        append = show if trial else keep
        steps(ensemble, weights, batch, machine, append)
        passes(ensemble, weights, batch, append)


if __name__ == '__main__':
    program.start(main)
