"""The workload of adx against Hugging Face's generate: GSM8K prompts, one rule, in turn.

SmolLM2-135M-Instruct with its early exit at layer 10 as proxy, the models of configs/smollm2_poe.py, float32, sampling
at temperature 0.7 without truncation. Both sides get the same prompts and end-of-sequence ids.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from adx.datasets import Gsm8k
from adx.datasets.splits import SPLITS
from adx.decoding.engine import Engine, Occupancy
from adx.errors import ConfigError
from adx.experiment import Arm, Derivative, Experiment
from adx.generation import Models, make_engines, make_requests
from adx.loading import blueprint, cache_directory, load_models, resolve, resolve_translator
from adx.types import Defence, Request, Sampling
from configs import smollm2_poe
from tools.bench import figures
from tools.bench.timers import BATCH, CONTEXT, STEPS, ChunkTimer, median_ms, rate

TEMPERATURE = 0.7
TIMED = 8  # prompts that the slots are dealt over when steps are timed

FIGURES = flags.DEFINE_list('figures', None, 'Which measurements to run; all if absent.')
PROMPTS = flags.DEFINE_integer('prompts', 128, 'GSM8K prompts of the throughput comparison.', lower_bound=1)
MAX_NEW = flags.DEFINE_integer('max_new', 256, 'New tokens per prompt at most.', lower_bound=8)
HF_BATCHES = flags.DEFINE_list('hf_batches', ['16', '32', '64', '128'], 'Batch sizes of the baseline.')
ADX_SLOTS = flags.DEFINE_list('adx_slots', ['32', '64'], 'Slots of the engine, as the batch sizes of the baseline.')
REPEATS = flags.DEFINE_integer('repeats', 3, 'Samples per figure.', lower_bound=1)
DATA = flags.DEFINE_string('data', '', 'GSM8K directory or file; the shipped sample if empty.')


class Bench:
    """One rule on the workload; what measurements share is made when first used.

    hf_rule: the same rule for the baseline, made from this object.
    """

    def __init__(self, defence: Defence, hf_rule: Callable[[Bench], Any]):
        self.arm, self.hf_rule = Arm('defended', defence, Sampling(temperature=TEMPERATURE)), hf_rule
        self._engines: dict[tuple[str, int], Engine] = {}

    @functools.cached_property
    def experiment(self) -> Experiment:
        base, new = smollm2_poe.experiment(), MAX_NEW.value
        buckets = tuple(range(96, base.decode.buckets[-1] + 1, 32))  # a prompt is padded by 31 tokens at most
        shorter = tuple(range(CONTEXT + 32, buckets[-1] + new, 64))
        decode = dataclasses.replace(
            base.decode, slots=BATCH, buckets=buckets, cache_length=buckets[-1] + new, short_caches=shorter,
            record='none',
        )  # fmt: skip
        data = Gsm8k(path=DATA.value)
        derivative = Derivative(prompts=16, max_new_tokens=64)
        return dataclasses.replace(
            base, dataset=data, arms=(self.arm,), max_new_tokens=new, decode=decode, derivative=derivative
        )

    @functools.cached_property
    def models(self) -> Models:
        return load_models(self.experiment, blueprint(self.experiment))

    @functools.cached_property
    def pool(self) -> list[Request]:
        """One per prompt that fits; all splits of the data together."""
        experiment = self.experiment
        prompts = [prompt for split in SPLITS for prompt in experiment.dataset.prompts(split)]
        requests = list(make_requests(experiment, prompts, self.models.tokenizer).requests.values())
        if len(requests) < PROMPTS.value:
            raise ConfigError(f'--prompts={PROMPTS.value} but there are {len(requests)} that fit; give --data')
        return requests

    @property
    def requests(self) -> list[Request]:
        """--prompts of them: what programs are warmed up and batch sizes tried on."""
        return self.pool[: PROMPTS.value]

    @property
    def engine(self) -> Engine:
        return self.engine_of(self.arm)

    def engine_of(self, arm: Arm, slots: int = BATCH) -> Engine:
        """An arm's engine, made once. Warm: every program is compiled."""
        if (arm.name, slots) not in self._engines:
            decode = dataclasses.replace(self.experiment.decode, slots=slots)
            ((engine, _),) = make_engines(self.models, (arm,), decode, self.experiment.seed)
            engine.warm_up(arm.defence)
            self._engines[arm.name, slots] = engine
        return self._engines[arm.name, slots]

    def timer(self, arm: Arm | None = None, engine: Engine | None = None) -> ChunkTimer:
        """Of a step under the rule, or under another one's engine."""
        return ChunkTimer(engine or self.engine, arm or self.arm, self.contexts[:TIMED])

    @functools.cached_property
    def baseline(self) -> Callable[..., Any]:
        from tools.bench import hf_baseline

        experiment, tokenizer = self.experiment, self.models.tokenizer
        (proxy,) = experiment.proxies
        directory = hf_baseline.export(
            resolve(experiment.teacher.source), cache_directory() / f'{experiment.teacher.source}-hf'
        )
        ids = tuple(sorted(tokenizer.control_ids)), tuple(sorted(tokenizer.eos_ids))
        serving = hf_baseline.Serving(self.hf_rule(self), TEMPERATURE, *ids)
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


def compare_steps(bench: Bench) -> tuple[list[float], list[float]]:
    """Milliseconds of the engine's and of the baseline's decode step: BATCH rows after CONTEXT tokens, in turn.

    One sample a repeat, each the median of STEPS.
    """
    step = bench.timer()
    ours, theirs = [], []
    step()
    for _ in range(REPEATS.value):
        theirs.append(median_ms(bench.baseline('step_seconds', bench.threads, bench.contexts, STEPS)))
        ours.append(median_ms([step() for _ in range(STEPS // bench.engine.config.chunk)]))
    return ours, theirs


def draw_anew(pool: Sequence[Request], count: int, repeat: int) -> list[Request]:
    """`count` requests of the pool for a repeat, the first is 0: others than the pool's first, which warm up.

    Those of the repeat before are drawn again where the pool has fewer than three times `count`, and where it has
    fewer than twice, as the shipped sample has for 128, the first are: the same prompts under other noise.
    """
    others = len(pool) // count - 1
    start = (1 + repeat % others) * count if others > 0 else 0
    return [
        dataclasses.replace(request, id=request.id._replace(sample=repeat)) for request in pool[start : start + count]
    ]


class Useful(NamedTuple):
    """Useful tokens per second.

    slots, batches: of the engine by its slots and of the baseline by its batch size, each tried once.
    pairs: [repeats, (ours, theirs)], each side at its best. occupancy: of the engine's slots in those repeats.
    """

    slots: dict[int, float]
    batches: dict[int, float]
    pairs: np.ndarray
    occupancy: Occupancy


def compare_useful(bench: Bench) -> Useful:
    """Refilled slots and the baseline in turn, on the same prompts, drawn anew by `draw_anew`.

    What each side does best at is tried before on the pool's first prompts.
    """

    def theirs(batch: int, requests: Sequence[Request]) -> float:
        prompts = [request.tokens for request in requests]
        return rate(lambda: bench.baseline('useful_tokens', bench.threads, prompts, MAX_NEW.value, batch))

    def ours(engine: Engine, requests: Sequence[Request]) -> float:
        return rate(lambda: sum(len(done.tokens) for done in engine.generate(requests)))

    engines = {slots: bench.engine_of(bench.arm, slots) for slots in map(int, ADX_SLOTS.value)}
    slots = {count: ours(engine, bench.requests) for count, engine in engines.items()}
    batches = {batch: theirs(batch, bench.requests) for batch in map(int, HF_BATCHES.value)}
    engine, batch = engines[max(slots, key=lambda n: slots[n])], max(batches, key=lambda n: batches[n])
    engine.occupancy = Occupancy()
    drawn = [draw_anew(bench.pool, PROMPTS.value, repeat) for repeat in range(REPEATS.value)]
    pairs = np.array([(ours(engine, requests), theirs(batch, requests)) for requests in drawn])
    return Useful(slots, batches, pairs, engine.occupancy)


def append(table: str, figure: str, samples: Iterable[float], unit: str, goal: str = '') -> None:
    """Records a figure of tools/bench/<table>.py and prints it."""
    command = ' '.join([f'python -m tools.bench.{table}', *sys.argv[1:]])
    row = figures.append(table, figure, samples, unit=unit, goal=goal, command=command)
    print(f'{figure}: {row["value"]:.4g} {unit} ({row["low"]:.4g} to {row["high"]:.4g}, n = {row["n"]})', flush=True)


def append_tried(table: str, figure: str, tried: Mapping[int, float]) -> None:
    """Records the tokens per second of each size that was tried. figure: a name with {} for the size."""
    for size, value in tried.items():
        append(table, figure.format(size), [value], 'tokens/s')


def run(measurements: Mapping[str, Callable[[Any], None]], bench: Bench) -> None:
    """Runs those that --figures names, or all."""
    chosen = FIGURES.value or list(measurements)
    for name in chosen:
        if name not in measurements:
            raise ConfigError(f'--figures={name} is unknown; it must be of {list(measurements)}')
    for name in chosen:
        measurements[name](bench)
