"""Measures training on an accelerator: models of 135M and of 1B, and stacks of students.

    python -m tools.bench.accelerator_training --machine=h200     # appends to results/training.json
    python -m tools.bench.accelerator_training --trial            # tiny models, prints and keeps nothing

`model_flops_utilisation` is of bfloat16 over float32 weights and Adam, every token of a row a target: operations of a
step over its time and what the vendor says of the machine (adx.scaling.MACHINES). Operations are those of Chowdhery et
al. (arXiv 2204.02311, appendix B), 6 a weight and 12 a layer, embedded number and token of the row, for each token;
what is computed again (remat) does not count. `stack_speedup`: as training.py has it, of float32.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
from absl import flags

from adx.models import PRESETS
from adx.models.tiny import PRESETS as TINY
from adx.models.transformer import TransformerConfig, make_model
from adx.optimising import Recipe
from adx.scaling import MACHINES
from launch import program
from tools.bench import accelerator, figures
from tools.bench.training import ON_GPU, PROMPT, RECIPE, STACK, STUDENT, TABLE, step_timer

MACHINE = flags.DEFINE_enum('machine', 'h200', sorted(MACHINES), 'Whose peak counts.', allow_override=True)
REPEATS = 7
LARGE = Recipe(rows=32, accumulate=2, length=1024, steps=10**6, dtype='bfloat16', remat=True)
UTILISATION = 'model_flops_utilisation_gpu'


def operations(config: TransformerConfig, weights: int, length: int) -> int:
    """Of a step, for one token of a row of `length`. weights: without an embedding that no product reads."""
    return 6 * weights + 12 * config.num_layers * config.num_heads * config.head_dim * length


def utilisation(config: TransformerConfig, recipe: Recipe, peak: float) -> list[float]:
    """Shares of `peak`, in operations a second, one of each repeat."""
    model = make_model(dataclasses.replace(config, dtype=recipe.dtype))
    weights = model.num_params - (0 if config.tied else int(np.prod(model.shapes['embed'])))
    step = step_timer(model, 1, recipe, recipe.length - PROMPT)
    wanted = operations(config, weights, recipe.length) * recipe.rows * recipe.length
    return [wanted / step() / peak for _ in range(REPEATS)]


def stack_speedup(config: TransformerConfig) -> list[float]:
    """How much sooner STACK students are trained together than one after the other, in turn."""
    one, stack = (step_timer(make_model(config), count) for count in (1, STACK))
    return [STACK * one() / stack() for _ in range(REPEATS)]


def main() -> None:
    trial = accelerator.is_trial()
    small = dataclasses.replace(TINY[STUDENT], num_layers=1, embed_dim=32, mlp_dim=64, num_heads=2, num_kv_heads=1)
    models = {UTILISATION: PRESETS['smollm2-135m'], f'{UTILISATION}_1b': PRESETS['llama-3.2-1b']}
    recipe, student = (dataclasses.replace(RECIPE, dtype='bfloat16'), small) if trial else (LARGE, TINY[STUDENT])
    found = {
        name: utilisation(small if trial else config, recipe, MACHINES[MACHINE.value].rate)
        for name, config in models.items()
    }
    found['stack_speedup_gpu'] = stack_speedup(student)
    command = ' '.join(['python -m tools.bench.accelerator_training', *sys.argv[1:]])
    for name, samples in found.items():
        unit, goal = ON_GPU[name]
        accelerator.show(TABLE, name, samples, unit)
        if not trial:
            figures.append(TABLE, name, samples, unit=unit, goal=goal, command=command)


if __name__ == '__main__':
    program.start(main)
