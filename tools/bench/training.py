"""Measures training on the testbed: against its products, and stacked against in turn.

    python -m tools.bench.training

`products_share_of_step` is the time of all products with weights, forward and backward, over the time of a step, of one
student. `stack_speedup` is how much sooner STACK students are trained as one stack than one after the other, and
`replicas_speedup` how much sooner by processes with a core each than by one with all cores. `student_seconds` is what
the longer of a study's budgets takes one student.
Appends to results/training.json, see figures.py; accelerator_training.py does for GPUs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from adx.batching import Corpus, Example, Stream
from adx.mesh import make_mesh
from adx.models.products import linear
from adx.models.tiny import PRESETS
from adx.models.transformer import Model, Params, make_model
from adx.optimising import Recipe
from adx.training import Trainer, compiler_options
from configs import testbed_screen
from tools.bench import cores, figures
from tools.bench.timers import reads_a_weight, timer

TABLE, MODULE = 'training', 'tools.bench.training'
COMMAND = f'python -m {MODULE}'
STUDENT, STACK, REPEATS, STEPS = 'testbed-student-wide', 8, 7, 6
RECIPE = dataclasses.replace(testbed_screen.study().recipe, steps=10**6)
ON_GPU = {  # figure -> unit and goal
    'model_flops_utilisation_gpu': ('of peak', '>= 0.45'),
    'model_flops_utilisation_gpu_1b': ('of peak', '>= 0.45'),
    'stack_speedup_gpu': ('x', '> 1'),
}
PROMPT, COMPLETION = 39, 55  # tokens of a lesson of three steps, in the mean


def corpus(seed: int, vocab: int, completion: int) -> Corpus:
    ids = np.random.default_rng(seed).integers(5, vocab, (256, PROMPT + completion)).tolist()
    return Corpus([Example(f'{i:03}', tuple(row[:PROMPT]), tuple(row[PROMPT:])) for i, row in enumerate(ids)], seed)


def step_timer(
    model: Model, count: int, recipe: Recipe = RECIPE, completion: int = COMPLETION
) -> Callable[[], float]:
    """Seconds of a step of a stack of `count` students, as a run takes them: rows are made and placed meanwhile.

    completion: tokens of a lesson beside PROMPT.
    """
    trainer = Trainer(model, make_mesh(), recipe, count)
    corpora = [corpus(i, model.config.vocab_size, completion) for i in range(count)]
    stream = Stream(corpora, recipe.rows, recipe.length, recipe.pack)
    params = [model.init(i) for i in range(count)]
    held = [trainer.start({path: jnp.stack([one[path] for one in params]) for path in model.shapes})]

    def seconds() -> float:
        begin = time.perf_counter()
        for step in range(STEPS):
            held[0], _ = trainer.step(held[0], stream(step))
        jax.block_until_ready(held[0])
        return (time.perf_counter() - begin) / STEPS

    seconds()
    return seconds


def products_timer(model: Model) -> Callable[[], float]:
    """Seconds of the products with weights in a step, and of their two backward products each."""
    params = model.init(0)
    tokens_BL = jnp.zeros((RECIPE.rows, RECIPE.length), jnp.int32)
    shapes: set[tuple[int, ...]] = set()

    def visit(product: Callable[..., jax.Array], params: Params) -> Any:
        return model.apply(params, tokens_BL, jnp.zeros_like(tokens_BL), linear=product)

    def record(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
        if reads_a_weight(equation):
            shapes.add(x.shape)
        return linear(equation, x, w, dtype)

    jax.eval_shape(lambda params: visit(record, params), params)
    inputs = {str(shape): jax.random.normal(jax.random.key(0), shape) for shape in shapes}

    def total(params: Params, inputs: dict[str, jax.Array]) -> jax.Array:
        sums: list[jax.Array] = []

        def alone(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
            if not reads_a_weight(equation):
                return linear(equation, x, w, dtype)
            y = linear(equation, inputs[str(x.shape)], w)
            sums.append(jnp.sum(y * y))  # so that both backward products read an array
            return y

        visit(alone, params)
        return sum(sums, jnp.float32(0))

    options = compiler_options(jax.default_backend())  # as a step is compiled: with them products are faster too
    return timer(jax.grad(total, argnums=(0, 1)), params, inputs, options=options)


def main(argv: Sequence[str]) -> None:
    del argv
    model = make_model(PRESETS[STUDENT])
    if cores.WORKER.value is not None:
        seconds = step_timer(model, 1)
        return cores.serve(lambda: {'seconds': seconds()})
    one, stack, products = step_timer(model, 1), step_timer(model, STACK), products_timer(model)
    taken: dict[str, list[float]] = {'one': [], 'stack': [], 'products': [], 'replicas': []}
    with cores.started([('-m', MODULE)] * len(cores.available())) as replicas:

        def at_once() -> float:
            return max(done['seconds'] for done in cores.at_once(replicas)) / len(replicas)

        for _ in range(REPEATS):
            for name, seconds in (('one', one), ('stack', stack), ('products', products), ('replicas', at_once)):
                taken[name].append(seconds())
    ones = np.array(taken['one'])
    lesson = PROMPT + COMPLETION
    tokens = RECIPE.rows * (RECIPE.length // lesson) * lesson
    rows = [
        ('products_share_of_step_cpu', np.array(taken['products']) / ones, 'of a step', '>= 0.6'),
        ('stack_speedup_cpu', STACK * ones / np.array(taken['stack']), 'x', '> 1'),
        ('replicas_speedup_cpu', ones / np.array(taken['replicas']), 'x', '> 1'),
        ('student_seconds_cpu', max(testbed_screen.study().budgets) * ones, 's', '15 to 30'),
        ('train_tokens_per_second_cpu', tokens / ones, 'tokens/s', ''),
    ]
    for figure, samples, unit, goal in rows:
        row = figures.append(TABLE, figure, samples.tolist(), unit=unit, goal=goal, command=COMMAND)
        print(f'{figure}: {row["value"]:.3g} {unit} ({row["low"]:.3g} to {row["high"]:.3g}, n = {row["n"]})')
    for figure, (unit, goal) in ON_GPU.items():
        figures.not_run(TABLE, figure, unit=unit, goal=goal, command='', machine='GPU')


if __name__ == '__main__':
    app.run(main)
