"""Measures the memory that decoding takes against the plan that --dry_run prints.

    python -m tools.bench.memory

The models and shapes of configs/smollm2_poe.py and configs/smollm2_ads.py, float32, on one CPU device; compiling needs
no weights. Appends `peak_memory_over_plan` to results/decoding.json and derivative.json, see figures.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

from adx.ahead import abstract_weights
from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble
from adx.loading import blueprint
from adx.needs import planned
from adx.planning import plan_memory
from adx.types import Defence
from configs import smollm2_ads, smollm2_poe
from tools.bench import figures

# table -> (config, the arm that needs most)
MEASURED = {'decoding': (smollm2_poe, 'product_of_experts'), 'derivative': (smollm2_ads, 'antidistillation')}


def compile_chunk(engine: Engine, defence: Defence) -> Any:
    """The engine's decode chunk for this defence, compiled ahead of time. Its weights may be abstract."""
    places = engine.programs.start.lower(defence).compile().output_formats
    rows, caches = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(engine.programs.start, defence),
        places,
    )
    return engine.programs.chunk.lower(engine.weights, rows, caches, engine.constants).compile()


def peak_bytes(compiled: Any) -> int:
    """Bytes per device while a program runs: arguments, temporaries, and outputs that reuse no argument."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return held + memory.output_size_in_bytes - memory.alias_size_in_bytes


def chunk_over_plan(ensemble: Ensemble, config: DecodeConfig, defence: Defence) -> float:
    """What the chunk takes over what is planned for it: prompts that wait prefilled are no part of the program."""
    config = dataclasses.replace(config, short_caches=())  # the plan is about the longest caches
    plan = plan_memory(ensemble, config)
    engine = Engine(ensemble, abstract_weights(ensemble), config, eos=[1])
    return peak_bytes(compile_chunk(engine, defence)) / (plan.total - plan.prefix)


def peak_over_total(ensemble: Ensemble, config: DecodeConfig, defence: Defence) -> float:
    """The most that a run holds over the total that --dry_run prints.

    That is while a chunk runs beside prompts that wait prefilled, or while prompts are prefilled beside the slots.
    """
    config = dataclasses.replace(config, short_caches=())  # the plan is about the longest caches
    engine = Engine(ensemble, abstract_weights(ensemble), config, eos=[1])
    chunk = compile_chunk(engine, defence)
    tokens = jax.ShapeDtypeStruct((config.prefill_rows, config.buckets[-1]), jnp.int32)
    prefill: Any = engine.programs.prefill.lower(engine.weights, tokens).compile()
    waiting = prefill.memory_analysis().output_size_in_bytes
    slots = chunk.memory_analysis().alias_size_in_bytes  # which a chunk writes in place
    return max(peak_bytes(chunk) + waiting, peak_bytes(prefill) + slots) / plan_memory(ensemble, config).total


def main(argv: Sequence[str]) -> None:
    del argv
    command = ' '.join(['python -m tools.bench.memory', *sys.argv[1:]])
    for table, (config, name) in MEASURED.items():
        experiment = config.experiment()
        (defence,) = (arm.defence for arm in experiment.arms if arm.name == name)
        ensemble = planned(blueprint(experiment).ensemble, experiment)
        ratio = peak_over_total(ensemble, experiment.decode, defence)
        figures.append(table, 'peak_memory_over_plan', [ratio], unit='x', goal='0.8 to 1.2', command=command)
        print(f'{table}: peak_memory_over_plan: {ratio:.3f} x')


if __name__ == '__main__':
    app.run(main)
