"""Measures decoding: adx's engine against Hugging Face transformers, and against its own matmuls.

    python -m tools.bench.decoding                                      # everything, hours on a small CPU
    python -m tools.bench.decoding --figures=logits,recompiles,matmuls  # minutes

SmolLM2-135M-Instruct with its early exit at layer 10 as proxy, the models of configs/smollm2_poe.py, float32,
product of experts, sampling at temperature 0.7 without truncation. Both sides get the same GSM8K prompts and
same end-of-sequence ids, and take turns in one process. Results: results/decoding.json, see figures.py.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from adx import checkpoints
from adx.datasets import Gsm8k
from adx.datasets.splits import SPLITS
from adx.decoding.engine import Engine, Occupancy
from adx.decoding.ensemble import Ensemble, Weights
from adx.defences import ProductOfExperts
from adx.errors import ConfigError
from adx.experiment import Arm, Experiment
from adx.generation import Models, make_engines, make_requests
from adx.loading import blueprint, cache_directory, load_models, resolve, resolve_translator
from adx.models.transformer import Model, Params, linear
from adx.types import Request, Sampling
from configs import smollm2_poe
from tools.bench import figures

TABLE = 'decoding'
GOLDENS = pathlib.Path(__file__).parents[2] / 'tests' / 'goldens'
GAMMA, TEMPERATURE = 0.3, 0.7
BATCH = 32  # at which steps are compared, and the engine's slots
CONTEXT = 224  # tokens before the steps that are compared: about a GSM8K prompt and half of its trace
STEPS = 24  # decode steps of each side in one repeat of the step comparison

_FIGURES = flags.DEFINE_list('figures', None, 'Which measurements to run; all if absent.')
_PROMPTS = flags.DEFINE_integer('prompts', 128, 'GSM8K prompts of the throughput comparison.', lower_bound=1)
_MAX_NEW = flags.DEFINE_integer('max_new', 256, 'New tokens per prompt at most.', lower_bound=8)
_HF_BATCHES = flags.DEFINE_list('hf_batches', ['16', '32', '64', '128'], 'Batch sizes of the baseline.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Samples per figure.', lower_bound=1)
_DATA = flags.DEFINE_string('data', '', 'GSM8K directory or file; the shipped sample if empty.')


def append(figure: str, samples: Sequence[float], unit: str, goal: str = '') -> None:
    command = ' '.join(['python -m tools.bench.decoding', *sys.argv[1:]])
    row = figures.append(TABLE, figure, samples, unit=unit, goal=goal, command=command)
    print(
        f'{figure}: {row["value"]:.4g} {unit} ({row["low"]:.4g} to {row["high"]:.4g}, n = {row["n"]})',
        flush=True,
    )


class Bench:
    """What the measurements share, each made when first used."""

    @functools.cached_property
    def experiment(self) -> Experiment:
        base, new = smollm2_poe.experiment(), _MAX_NEW.value
        arm = Arm('product_of_experts', ProductOfExperts(gamma=GAMMA), Sampling(temperature=TEMPERATURE))
        buckets = base.decode.buckets
        shorter = tuple(range(CONTEXT + 32, buckets[-1] + new, 64))
        decode = dataclasses.replace(
            base.decode, slots=BATCH, cache_length=buckets[-1] + new, short_caches=shorter, record='none'
        )
        data = Gsm8k(path=_DATA.value)
        return dataclasses.replace(base, dataset=data, arms=(arm,), max_new_tokens=new, decode=decode)

    @functools.cached_property
    def models(self) -> Models:
        return load_models(self.experiment, blueprint(self.experiment))

    @functools.cached_property
    def requests(self) -> list[Request]:
        """One per prompt, --prompts in all; all splits of the data together."""
        experiment = self.experiment
        prompts = [prompt for split in SPLITS for prompt in experiment.dataset.prompts(split)]
        requests = list(make_requests(experiment, prompts, self.models.tokenizer).requests.values())
        if len(requests) < _PROMPTS.value:
            raise ConfigError(
                f'--prompts={_PROMPTS.value} but there are {len(requests)} that fit; give --data'
            )
        return requests[: _PROMPTS.value]

    @functools.cached_property
    def engine(self) -> Engine:
        """Warm: every program is compiled."""
        experiment = self.experiment
        ((engine, _),) = make_engines(self.models, experiment.arms, experiment.decode, experiment.seed)
        engine.warm_up(experiment.arms[0].defence)
        return engine

    @functools.cached_property
    def baseline(self) -> Callable[..., Any]:
        from tools.bench import hf_baseline

        experiment, tokenizer = self.experiment, self.models.tokenizer
        (proxy,) = experiment.proxies
        directory = hf_baseline.export(
            resolve(experiment.teacher.source), cache_directory() / f'{experiment.teacher.source}-hf'
        )
        ids = tuple(sorted(tokenizer.control_ids)), tuple(sorted(tokenizer.eos_ids))
        serving = hf_baseline.Serving(hf_baseline.ProductOfExperts(GAMMA), TEMPERATURE, *ids)
        return hf_baseline.Apart(directory, proxy.exit_layer, resolve_translator(proxy.translator), serving)

    @functools.cached_property
    def threads(self) -> int:
        """The baseline's best number of threads, by its decode step."""
        cores = len(os.sched_getaffinity(0))
        timed = {n: median_ms(self.baseline('step_seconds', n, self.contexts, 8)) for n in {1, cores // 2 or 1, cores}}
        return min(timed, key=lambda n: timed[n])

    @functools.cached_property
    def contexts(self) -> list[list[int]]:
        """BATCH prompts of CONTEXT tokens of GSM8K."""
        text = np.concatenate([request.tokens for request in self.requests])
        return [np.roll(text, -b * CONTEXT)[:CONTEXT].tolist() for b in range(BATCH)]


def logits(bench: Bench) -> None:
    """The largest difference from transformers' logits, for a tiny checkpoint of each family."""
    del bench
    for path in sorted(GOLDENS.glob('*/logits.npz')):
        golden, loaded = np.load(path), checkpoints.load(str(path.parent))
        positions = np.broadcast_to(np.arange(golden['tokens'].shape[1]), golden['tokens'].shape)
        ours = np.asarray(loaded.model.apply(loaded.params, golden['tokens'], positions)[0])
        difference = float(np.abs(ours - golden['logits']).max())
        goal = f'<= {4 * float(golden["rounding"]):.1e}'
        append(f'max_abs_logit_difference_{path.parent.name}', [difference], 'logits', goal)


def recompiles(bench: Bench) -> None:
    """Programs compiled by a mix of prompts after the warm-up."""
    before = bench.engine.compiled_programs()
    short = [dataclasses.replace(request, max_new_tokens=16) for request in bench.requests[: 2 * BATCH]]
    list(bench.engine.generate(short))
    append('recompiles_after_warmup', [bench.engine.compiled_programs() - before], 'programs', '0')


def matmuls(bench: Bench) -> None:
    """A decode step of the engine over the matmuls in it, in turn: a slow spell of the machine slows both."""
    step, products = ChunkTimer(bench.engine, bench.requests[0]), matmul_timer(bench.models)
    step(), products()
    count = _REPEATS.value * STEPS // bench.engine.config.chunk
    pairs = np.array([(step(), products()) for _ in range(count)])
    append('adx_matmuls_ms_cpu', 1e3 * pairs[:, 1], 'ms')
    append('step_over_matmuls_cpu', pairs[:, 0] / pairs[:, 1], 'x', '<= 1.3')


def steps(bench: Bench) -> None:
    """The baseline's decode step over the engine's, BATCH rows after CONTEXT tokens, in turn; medians of STEPS."""
    step = ChunkTimer(bench.engine, bench.requests[0])
    ours, theirs = [], []
    step()
    for _ in range(_REPEATS.value):
        theirs.append(median_ms(bench.baseline('step_seconds', bench.threads, bench.contexts, STEPS)))
        ours.append(median_ms([step() for _ in range(STEPS // bench.engine.config.chunk)]))
    append('adx_step_ms_cpu', ours, 'ms')
    append('hf_step_ms_cpu', theirs, 'ms')
    append('step_ratio_vs_hf_cpu', np.divide(theirs, ours), 'x', '>= 1.5')


def useful(bench: Bench) -> None:
    """Useful tokens per second: refilled slots, and in turn with them the baseline at the best of its batch sizes.

    The batch sizes are tried once each before, on the same prompts.
    """
    batches = [int(batch) for batch in _HF_BATCHES.value]
    prompts = [request.tokens for request in bench.requests]

    def theirs(batch: int) -> float:
        return rate(lambda: bench.baseline('useful_tokens', bench.threads, prompts, _MAX_NEW.value, batch))

    def ours(repeat: int) -> float:
        ids = [request.id._replace(sample=repeat) for request in bench.requests]
        drawn = [dataclasses.replace(r, id=id_) for r, id_ in zip(bench.requests, ids, strict=True)]
        return rate(lambda: sum(len(done.tokens) for done in bench.engine.generate(drawn)))

    bench.engine.occupancy = Occupancy()
    tried = {batch: theirs(batch) for batch in batches}
    for batch, value in tried.items():
        append(f'hf_useful_tokens_per_second_batch_{batch}_cpu', [value], 'tokens/s')
    best = max(tried, key=lambda batch: tried[batch])
    pairs = np.array([(ours(repeat), theirs(best)) for repeat in range(_REPEATS.value)])
    append('adx_useful_tokens_per_second_cpu', pairs[:, 0], 'tokens/s')
    append('hf_useful_tokens_per_second_cpu', pairs[:, 1], 'tokens/s')
    append('useful_tokens_ratio_vs_hf_cpu', pairs[:, 0] / pairs[:, 1], 'x', '>= 2')
    if bench.engine.occupancy.busy_slot_steps:  # else every prompt had a slot from the start
        append('occupancy', [bench.engine.occupancy.share], 'tokens per slot-step')


def missing(bench: Bench) -> None:
    """Rows of the table that wait for a measurement: on an idle CPU by this program, on a GPU by none yet."""
    del bench
    add = functools.partial(figures.not_run, TABLE, command='')
    for figure, goal in (
        ('useful_tokens_ratio_vs_hf_cpu', '>= 2'),
        ('step_ratio_vs_hf_cpu', '>= 1.5'),
        ('step_over_matmuls_cpu', '<= 1.3'),
    ):
        add(figure, unit='x', goal=goal, machine='CPU')
    add('peak_memory_over_plan', unit='x', goal='0.8 to 1.2', machine='CPU')
    for figure, goal in (('step_ratio_vs_hf_gpu', '>= 3'), ('useful_tokens_ratio_vs_hf_gpu', '>= 3')):
        add(figure, unit='x', goal=goal, machine='GPU')
    add('roofline_share_gpu', unit='of the memory bound', goal='', machine='GPU')
    add('defended_over_teacher_only_gpu', unit='x', goal='its bound R', machine='GPU')


MEASUREMENTS = {f.__name__: f for f in (logits, recompiles, matmuls, steps, useful, missing)}


class ChunkTimer:
    """Seconds per decode step of the engine's own chunk program, every slot live and CONTEXT tokens long.

    The program's shapes are fixed by the cache length, so its time does not depend on the rows' tokens.
    """

    def __init__(self, engine: Engine, request: Request):
        self.engine = engine
        rows, caches = engine.start(request.defence)
        self.caches = engine.resize(caches, next(n for n in engine.config.cache_lengths if n >= CONTEXT + STEPS))
        shape, sampling = rows.done_B.shape, request.sampling
        self.rows = rows.replace(
            done_B=jnp.zeros(shape, bool),
            sampling=jax.tree.map(lambda x: jnp.full(shape, x, jnp.float32), sampling),
            defence=jax.tree.map(lambda x: jnp.full(shape, x, jnp.float32), request.defence),
        )

    def __call__(self) -> float:
        shape = self.rows.done_B.shape
        self.rows = self.rows.replace(
            position_B=jnp.full(shape, CONTEXT, jnp.int32),
            end_B=jnp.full(shape, CONTEXT + STEPS, jnp.int32),
            done_B=jnp.zeros(shape, bool),
        )
        jax.block_until_ready((self.rows, self.caches))
        begin = time.perf_counter()
        engine = self.engine
        self.rows, self.caches, tokens_TB, _ = engine._chunk(
            engine.weights, self.rows, self.caches, engine.constants
        )
        tokens_TB.block_until_ready()
        return (time.perf_counter() - begin) / engine.config.chunk


def matmul_timer(models: Models) -> Callable[[], float]:
    """Seconds of all products with weights in one decode step of teacher and proxies, and of nothing else."""
    ensemble: Ensemble = models.ensemble
    weights: Weights = models.weights
    pairs = [(ensemble.teacher, weights.teacher)]
    for group, stacked in zip(ensemble.groups, weights.groups, strict=True):
        pairs += [(group.model, jax.tree.map(lambda x, n=n: x[n], stacked)) for n in range(group.count)]
    programs = [
        (jax.jit(functools.partial(_products, model)), params, _inputs(model, params))
        for model, params in pairs
    ]

    def seconds() -> float:
        begin = time.perf_counter()
        jax.block_until_ready([program(params, inputs) for program, params, inputs in programs])
        return time.perf_counter() - begin

    return seconds


def _inputs(model: Model, params: Params) -> dict[str, jax.Array]:
    """One activation of each shape that a product reads, by its shape."""
    shapes: set[tuple[int, ...]] = set()

    def record(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
        shapes.add(x.shape)
        return linear(equation, x, w)

    jax.eval_shape(functools.partial(_step, model, record), params)
    return {str(shape): jax.random.normal(jax.random.key(0), shape) for shape in shapes}


def _products(model: Model, params: Params, inputs: dict[str, jax.Array]) -> list[jax.Array]:
    """Every product of a step. Each reads an input instead of what came before it, the rest is dead code."""
    products: list[jax.Array] = []

    def record(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
        products.append(linear(equation, inputs[str(x.shape)], w))
        return products[-1]

    _step(model, record, params)
    return products


def _step(model: Model, linear_fn: Callable[..., jax.Array], params: Params) -> Any:
    tokens_BL = jnp.zeros((BATCH, 1), jnp.int32)
    return model.apply(params, tokens_BL, tokens_BL, model.empty_cache(BATCH, 8), linear=linear_fn)


def median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds))


def rate(count_tokens: Callable[[], int]) -> float:
    """Tokens per second of a call that returns how many tokens it made."""
    begin = time.perf_counter()
    return count_tokens() / (time.perf_counter() - begin)


def main(argv: Sequence[str]) -> None:
    del argv
    chosen = _FIGURES.value or list(MEASUREMENTS)
    for name in chosen:
        if name not in MEASUREMENTS:
            raise ConfigError(f'--figures={name} is unknown; it must be of {list(MEASUREMENTS)}')
    bench = Bench()
    for name in chosen:
        MEASUREMENTS[name](bench)


if __name__ == '__main__':
    app.run(main)
