"""Measures decoding along derivatives: against two copies, its bound, and a budget.

    python -m tools.bench.derivative --figures=steps,passes,bound,budget
    python -m tools.bench.derivative --figures=useful             # an hour on a small CPU

`useful` is a command of its own: behind the others XLA's CPU compiler crashed, with some hundred programs compiled.

The workload of workload.py under antidistillation sampling, along the gradient on a few holdout traces, which are
decoded first. Results: results/derivative.json, see figures.py; its precision table is tools/precision.py's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from adx import numerics
from adx.decoding import derivative, sampling
from adx.decoding.ensemble import Group
from adx.defences import Antidistillation, Budget, Undefended
from adx.experiment import COPY_DTYPES, Arm
from adx.generation import Models
from adx.loading import blueprint, load_proxy
from adx.models.transformer import Params
from adx.scaling import Machine
from adx.session import prepare
from tools.bench import figures, workload
from tools.bench.bound import read_bandwidth
from tools.bench.timers import BATCH, CONTEXT, STEPS, ChunkTimer, matmul_timer
from tools.bench.workload import REPEATS, Bench

TABLE = 'derivative'
LAM, EPS = 0.5, 1e-2
NATS = 0.05  # per token, of the budget
FORCED = 64  # positions of each context at which the budget is checked

append = functools.partial(workload.append, TABLE)


class AdsBench(Bench):
    """Antidistillation on the workload."""

    @functools.cached_property
    def models(self) -> Models:
        return prepare(self.experiment, super().models)

    @functools.cached_property
    def budgeted(self) -> Arm:
        return Arm('budget', Budget(self.arm.defence, NATS), self.arm.sampling)

    @functools.cached_property
    def proxy(self) -> tuple[Group, Params, Params]:
        """The one proxy: its group, its weights, all of them, and its direction."""
        (group,), (directions,) = self.models.ensemble.groups, self.models.weights.directions
        loaded = load_proxy(self.experiment, blueprint(self.experiment), 0, group.layout)
        return group, loaded.params, jax.tree.map(lambda x: x[0, 0], directions)


def hf_rule(bench: Any) -> Any:
    from tools.bench import hf_baseline

    group, _, directions = bench.proxy
    path = f'{tempfile.mkdtemp()}/direction.safetensors'
    hf_baseline.write_direction(path, group.model, directions)
    return hf_baseline.Antidistillation(LAM, EPS, path)


def steps(bench: Any) -> None:
    """The baseline's decode step over the engine's."""
    ours, theirs = workload.compare_steps(bench)
    append('ads_step_ms_cpu', ours, 'ms')
    append('hf_difference_step_ms_cpu', theirs, 'ms')
    append('ads_ratio_vs_hf_cpu', np.divide(theirs, ours), 'x', '>= 1.2')


def useful(bench: Any) -> None:
    """Useful tokens per second over the baseline's."""
    slots, batches, pairs, _ = workload.compare_useful(bench)
    workload.append_tried(TABLE, 'ads_tokens_per_second_slots_{}_cpu', slots)
    workload.append_tried(TABLE, 'hf_difference_tokens_per_second_batch_{}_cpu', batches)
    append('ads_useful_tokens_per_second_cpu', pairs[:, 0], 'tokens/s')
    append('hf_difference_useful_tokens_per_second_cpu', pairs[:, 1], 'tokens/s')
    append('ads_useful_tokens_ratio_vs_hf_cpu', pairs[:, 0] / pairs[:, 1], 'x', '>= 1.6')


def passes(bench: Any) -> None:
    """The proxy's pass with its exact derivative over the two passes of a finite difference, in turn."""
    group, params, directions = bench.proxy
    copies = derivative.difference_weights(
        {path: x[None] for path, x in params.items()}, {path: g[None, None] for path, g in directions.items()}, EPS
    )
    plus, minus = (jax.tree.map(lambda x, theta: x.reshape(theta.shape), copy, params) for copy in copies)
    exact = pass_timer(group, derivative.exact, params, directions)
    two = pass_timer(group, derivative.two_passes, plus, minus)
    exact(), two()
    pairs = np.array([(exact(), two()) for _ in range(REPEATS.value * STEPS // 8)])
    append('tangent_pass_ms_cpu', 1e3 * pairs[:, 0], 'ms')
    append('tangent_over_two_passes', pairs[:, 0] / pairs[:, 1], 'x', '<= 1.6 on a CPU')


def pass_timer(
    group: Group, method: Callable[..., Any], params: Params, others: Params, batch: int = BATCH
) -> Callable[[], float]:
    """Seconds of one decode step of a proxy alone, over caches that hold CONTEXT tokens."""
    tokens_BL, positions_BL = jnp.zeros((batch, 1), jnp.int32), jnp.full((batch, 1), CONTEXT, jnp.int32)

    def step(params: Params, others: Params, cache: Any, second: Any) -> tuple[Any, Any, Any]:
        run = lambda product, p, c: group.model.apply(p, tokens_BL, positions_BL, c, product)  # noqa: E731
        (z, cache), (dz, second) = method(run, (params, cache), (others, second))
        return (z, dz), cache, second

    program = jax.jit(step, donate_argnums=(2, 3))
    cache = group.model.empty_cache(batch, CONTEXT + 32)
    state = [cache, jax.tree.map(lambda x: jnp.array(x, copy=True), cache)]

    def seconds() -> float:
        jax.block_until_ready(state)
        begin = time.perf_counter()
        logits, *state[:] = program(params, others, *state)
        jax.block_until_ready(logits)
        return time.perf_counter() - begin

    return seconds


def bound(bench: Any) -> None:
    """Defended over teacher-only speed, as a share of what bytes and operations allow; all timed in turn."""
    undefended = Arm('plain', Undefended(), bench.arm.sampling)
    plain = bench.engine_of(undefended)
    teacher, ads = bench.timer(undefended, plain), bench.timer()
    alone = dataclasses.replace(bench.models, ensemble=plain.ensemble, weights=plain.weights)
    products, bandwidth, length = matmul_timer(alone), read_bandwidth(), ads.caches.teacher.length
    weights = plain.ensemble.teacher.num_params
    teacher(), ads(), products()
    measured, bounds = [], []
    for _ in range(REPEATS.value * STEPS // bench.engine.config.chunk):
        machine = Machine(2 * BATCH * weights / products(), bandwidth)
        measured.append((teacher(), ads()))
        bounds.append([machine.step_seconds(x.ensemble, BATCH, length) for x in (plain, bench.engine)])
    (teacher_s, ads_s), (teacher_bound_s, ads_bound_s) = np.transpose(measured), np.transpose(bounds)
    ratios, limits = teacher_s / ads_s, teacher_bound_s / ads_bound_s
    append('ads_over_teacher_only_cpu', ratios, 'x')
    append('ads_bound_cpu', limits, 'x')
    append('ads_share_of_bound', ratios / limits, 'of the bound R', '>= 0.8')
    # A ratio of ratios says nothing of either step: here is what each reaches of its own bound.
    append('teacher_bound_over_step_cpu', teacher_bound_s / teacher_s, 'of the step')
    append('ads_bound_over_step_cpu', ads_bound_s / ads_s, 'of the step')


def budget(bench: Any) -> None:
    """What a budget costs in time, and how near it is met where it binds."""
    limited = bench.engine_of(bench.budgeted)
    free, spending = bench.timer(), bench.timer(bench.budgeted, limited)
    free(), spending()
    pairs = np.array([(spending(), free()) for _ in range(REPEATS.value * STEPS // limited.config.chunk)])
    append('budget_overhead', pairs[:, 0] / pairs[:, 1] - 1, 'of a step', '<= 0.05')
    spent, wanted = (forced_kl(bench, timer) for timer in (spending, free))
    binds = wanted > NATS
    append('budget_binds', [float(np.mean(binds))], 'of tokens')
    append('budget_max_error', [float(np.max(np.abs(spent[binds] / NATS - 1)))], 'of the budget', '<= 0.01')


def forced_kl(bench: Any, timer: ChunkTimer) -> np.ndarray:
    """KL(served || teacher) in nats of the timer's rule after each of the first FORCED tokens of every context."""
    engine, models = timer.engine, bench.models

    @jax.jit
    def step(weights: Any, caches: Any, rows: Any, tokens_B: jax.Array, position: jax.Array) -> Any:
        positions_B = jnp.full(BATCH, position)
        logits_BV, logits_NBV, tangents_MBV, caches = engine.ensemble.step(weights, caches, tokens_B, positions_B)
        keys = jax.random.split(jax.random.key(0), BATCH)
        protected_V = engine.constants.protected_V
        served = sampling.serve(logits_BV, logits_NBV, rows, keys, protected_V, tangents_MBV)
        return numerics.kl(served.served_V, served.teacher_V), caches

    caches, found = engine.ensemble.empty_caches(BATCH, FORCED), []
    tokens_BL = np.array(bench.contexts, np.int32)
    for position in range(FORCED):
        kl_B, caches = step(models.weights, caches, timer.fresh, tokens_BL[:, position], position)
        found.append(np.asarray(kl_B))
    return np.stack(found)


def missing(bench: Any) -> None:
    """Rows of the table that wait for a GPU: see accelerator.py."""
    del bench
    add = functools.partial(figures.not_run, TABLE, command='', machine='GPU', unit='x')
    add('ads_ratio_vs_hf_gpu', goal='>= 3')
    add('tangent_over_two_passes_gpu', goal='<= 1')
    add('ads_share_of_bound_gpu', goal='>= 0.8')
    figures_of = (f'precision_{x}_smollm2_135m_instruct_exit10' for x in ('sin', 'step', 'changed'))
    for figure, dtype, eps in itertools.product(figures_of, COPY_DTYPES, ('1em01', '1em02', '1em03', '1em04')):
        name = f'{figure}_{dtype}_{eps}'  # by tools.precision
        figures.not_run(TABLE, name, unit='', goal='', command='', machine='CPU')


MEASUREMENTS = {f.__name__: f for f in (steps, useful, passes, bound, budget, missing)}


def main(argv: Sequence[str]) -> None:
    del argv
    workload.run(MEASUREMENTS, AdsBench(Antidistillation(LAM), hf_rule))


if __name__ == '__main__':
    app.run(main)
