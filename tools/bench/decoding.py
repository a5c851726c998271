"""Measures decoding: against Hugging Face transformers, and against its own matmuls.

    python -m tools.bench.decoding                                      # everything, hours on a small CPU
    python -m tools.bench.decoding --figures=logits,recompiles,matmuls  # minutes

The workload of workload.py under product of experts. Results: results/decoding.json, see figures.py.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app

from adx import checkpoints
from adx.defences import ProductOfExperts
from tools.bench import figures, workload
from tools.bench.timers import BATCH, STEPS, matmul_timer
from tools.bench.workload import REPEATS, Bench

TABLE = 'decoding'
GOLDENS = pathlib.Path(__file__).parents[2] / 'tests' / 'goldens'
GAMMA = 0.3

append = functools.partial(workload.append, TABLE)


def bench() -> Bench:
    """Product of experts on the workload."""
    return Bench(ProductOfExperts(gamma=GAMMA), hf_rule)


def hf_rule(bench: Bench) -> Any:
    from tools.bench import hf_baseline

    del bench
    return hf_baseline.ProductOfExperts(GAMMA)


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
    step, products = bench.timer(), matmul_timer(bench.models)
    step(), products()
    count = REPEATS.value * STEPS // bench.engine.config.chunk
    pairs = np.array([(step(), products()) for _ in range(count)])
    append('adx_matmuls_ms_cpu', 1e3 * pairs[:, 1], 'ms')
    append('step_over_matmuls_cpu', pairs[:, 0] / pairs[:, 1], 'x', '<= 1.3')


def steps(bench: Bench) -> None:
    """The baseline's decode step over the engine's."""
    ours, theirs = workload.compare_steps(bench)
    append('adx_step_ms_cpu', ours, 'ms')
    append('hf_step_ms_cpu', theirs, 'ms')
    append('step_ratio_vs_hf_cpu', np.divide(theirs, ours), 'x', '>= 1.5')


def useful(bench: Bench) -> None:
    """Useful tokens per second over the baseline's."""
    slots, batches, pairs, occupancy = workload.compare_useful(bench)
    workload.append_tried(TABLE, 'adx_useful_tokens_per_second_slots_{}_cpu', slots)
    workload.append_tried(TABLE, 'hf_useful_tokens_per_second_batch_{}_cpu', batches)
    append('adx_useful_tokens_per_second_cpu', pairs[:, 0], 'tokens/s')
    append('hf_useful_tokens_per_second_cpu', pairs[:, 1], 'tokens/s')
    append('useful_tokens_ratio_vs_hf_cpu', pairs[:, 0] / pairs[:, 1], 'x', '>= 2')
    if occupancy.busy_slot_steps:  # else every prompt had a slot from the start
        append('occupancy', [occupancy.share], 'tokens per slot-step')


def missing(bench: Bench) -> None:
    """Rows of the table that wait for a measurement: on an idle CPU by this program, on a GPU by accelerator.py."""
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


def main(argv: Sequence[str]) -> None:
    del argv
    workload.run(MEASUREMENTS, bench())


if __name__ == '__main__':
    app.run(main)
