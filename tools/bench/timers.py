"""Seconds of a decode step, of the products in it, and of any compiled call."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adx.decoding.engine import Engine
from adx.decoding.ensemble import Ensemble, Weights
from adx.decoding.slots import request_rows
from adx.experiment import Arm
from adx.generation import Models
from adx.models.products import Linear, linear
from adx.models.transformer import Model, Params, translate
from adx.types import Request, RequestId

BATCH = 32  # at which steps are compared, and the engine's slots
CONTEXT = 224  # tokens before the steps that are compared: about a GSM8K prompt and half of its trace
STEPS = 24  # decode steps of each side in one repeat of the step comparison
Pass = Callable[[Linear, Params], Any]


def timer(
    function: Callable[..., Any], *arguments: Any, options: dict[str, str] | None = None
) -> Callable[[], float]:
    """Seconds of a call, compiled with XLA's `options`."""
    program = jax.jit(function, compiler_options=options)
    jax.block_until_ready(program(*arguments))

    def seconds() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return time.perf_counter() - begin

    return seconds


class ChunkTimer:
    """Seconds per decode step of the engine's own chunk program, every slot live after a prompt of CONTEXT tokens.

    prompts: a few, of CONTEXT tokens each, over which the slots are dealt; every slot draws with a key of its own. Each
    call decodes the tokens after them anew.
    """

    def __init__(self, engine: Engine, arm: Arm, prompts: Sequence[Sequence[int]]):
        self.engine, slots = engine, engine.config.slots
        sources = np.arange(slots) % len(prompts)
        requests = [
            Request(RequestId('bench', '', str(b), 0, arm.name), tuple(prompts[i]), STEPS, arm.sampling, arm.defence)
            for b, i in enumerate(sources.tolist())
        ]
        rows, caches = engine.start(arm.defence)
        caches = engine.resize(caches, next(n for n in engine.config.cache_lengths if n >= CONTEXT + STEPS))
        prefix = engine.programs.prefill(engine.weights, np.array(prompts, np.int32))
        new = request_rows(requests, engine.seed)
        self.rows, self.caches = engine.programs.insert(rows, caches, new, prefix, sources, np.arange(slots))
        self.fresh = jax.tree.map(lambda x: jnp.array(x, copy=True), self.rows)

    def __call__(self) -> float:
        engine, rows = self.engine, jax.tree.map(lambda x: jnp.array(x, copy=True), self.fresh)
        jax.block_until_ready((rows, self.caches))
        begin = time.perf_counter()
        chunk = engine.programs.chunk
        self.rows, self.caches, tokens_TB, _ = chunk(engine.weights, rows, self.caches, engine.constants)
        tokens_TB.block_until_ready()
        return (time.perf_counter() - begin) / engine.config.chunk


def matmul_timer(models: Models) -> Callable[[], float]:
    """Seconds of all products with weights in one decode step of teacher and proxies, and of nothing else."""
    ensemble: Ensemble = models.ensemble
    weights: Weights = models.weights
    reading = sum(group.count for group in ensemble.groups if group.reads)
    passes: list[tuple[Pass, Params]] = [(functools.partial(_step, ensemble.teacher, 1 + reading), weights.teacher)]
    for group, stacked in zip(ensemble.groups, weights.groups, strict=True):
        one = _exit if group.reads else functools.partial(_step, group.model, 1)
        passes += [(one, jax.tree.map(lambda x, n=n: x[n], stacked)) for n in range(group.count)]
    programs = [
        (jax.jit(functools.partial(_products, one)), params, _inputs(one, params)) for one, params in passes
    ]

    def seconds() -> float:
        begin = time.perf_counter()
        jax.block_until_ready([program(params, inputs) for program, params, inputs in programs])
        return time.perf_counter() - begin

    return seconds


def _inputs(one: Pass, params: Params) -> dict[str, jax.Array]:
    """One activation of each shape that a product reads, by its shape."""
    shapes: set[tuple[int, ...]] = set()

    def record(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
        if reads_a_weight(equation):
            shapes.add(x.shape)
        return linear(equation, x, w, dtype)

    jax.eval_shape(functools.partial(one, record), params)
    return {str(shape): jax.random.normal(jax.random.key(0), shape) for shape in shapes}


def _products(one: Pass, params: Params, inputs: dict[str, jax.Array]) -> list[jax.Array]:
    """Every product of a step. Each reads an input instead of what came before it, the rest is dead code."""
    products: list[jax.Array] = []

    def record(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
        if not reads_a_weight(equation):
            return linear(equation, x, w, dtype)
        products.append(linear(equation, inputs[str(x.shape)], w))
        return products[-1]

    one(record, params)
    return products


def reads_a_weight(equation: str) -> bool:
    """Else it is one of attention's, over the cache."""
    return equation.startswith('BL')


def _step(model: Model, read: int, linear_fn: Linear, params: Params) -> Any:
    """read: for how many hidden states of a row the head gives logits."""
    tokens_BL = jnp.zeros((BATCH, 1), jnp.int32)
    x_BLD, _ = model.apply(params, tokens_BL, tokens_BL, model.empty_cache(BATCH, 8), linear_fn, method='hidden')
    return model.apply(params, jnp.repeat(x_BLD, read, axis=1), linear_fn, method='unembed')


def _exit(linear_fn: Linear, params: Params) -> Any:
    """What an early exit adds to a step that reads the teacher's hidden states."""
    if 'translator' not in params:
        return None
    x_BLD = jnp.zeros((BATCH, 1, len(params['translator'])), params['translator'].dtype)
    return translate(x_BLD, params['translator'], params['translator_bias'], linear_fn)


def median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds))


def rate(count_tokens: Callable[[], int]) -> float:
    """Tokens per second of a call that returns how many tokens it made."""
    begin = time.perf_counter()
    return count_tokens() / (time.perf_counter() - begin)
