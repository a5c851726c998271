"""Measures what a second replica adds on this machine: each with a core and a shard.

    python -m tools.bench.replicas               # appends efficiency_2 to results/scale.json
    python -m tools.bench.replicas --trial       # little work, prints and keeps nothing: whether it runs at all

Two processes hold the testbed's teacher, warm, and decode the same share of prompts every time: each alone while the
other waits, then both at once. efficiency_2 is tokens a second of both at once, until the slower ends, over what the
two reach alone. Nothing else may run on the two cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from absl import flags

from adx.generation import make_engines, make_requests, read_prompts
from adx.loading import blueprint, load_models
from adx.types import Request
from configs import testbed_small
from launch import program
from tools.bench import cores, figures
from tools.bench.cores import Replica

TABLE, REPLICAS, REPEATS = 'scale', 2, 5
PROMPTS = 256  # of each replica

_TRIAL = flags.DEFINE_bool('trial', False, 'Little work; nothing is kept.', allow_override=True)


def efficiency(alone: Sequence[dict[str, float]], together: Sequence[dict[str, float]]) -> float:
    """Tokens a second of all at once over the sum of what each reaches alone."""
    at_once = sum(done['tokens'] for done in together) / max(done['seconds'] for done in together)
    return at_once / sum(done['tokens'] / done['seconds'] for done in alone)


def measure(replicas: Sequence[Replica], repeats: int) -> list[float]:
    samples = []
    for _ in range(repeats):
        alone = [done for replica in replicas for done in cores.at_once([replica])]
        samples.append(efficiency(alone, cores.at_once(replicas)))
    return samples


def work(shard: int, trial: bool) -> None:
    """The other side of a replica."""
    experiment = testbed_small.study().experiment
    size = 4 if trial else PROMPTS
    decode = dataclasses.replace(experiment.decode, slots=size) if trial else experiment.decode
    plain = tuple(arm for arm in experiment.arms if arm.name == 'plain')
    experiment = dataclasses.replace(experiment, arms=plain, proxies=(), decode=decode, limit=REPLICAS * size)
    models = load_models(experiment, blueprint(experiment))
    prompts = read_prompts(experiment)[shard::REPLICAS]
    requests: list[Request] = list(make_requests(experiment, prompts, models.tokenizer).requests.values())
    ((engine, _),) = make_engines(models, plain, experiment.decode, experiment.seed)
    engine.warm_up(plain[0].defence)

    def take() -> dict[str, float]:
        begin = time.perf_counter()
        tokens = sum(len(done.tokens) for done in engine.generate(requests))
        return {'tokens': tokens, 'seconds': time.perf_counter() - begin}

    cores.serve(take)


def main() -> None:
    trial = _TRIAL.value
    if cores.WORKER.value is not None:
        return work(cores.WORKER.value, trial)
    with cores.started([('-m', 'tools.bench.replicas', f'--trial={trial}')] * REPLICAS) as replicas:
        samples = measure(replicas, 1 if trial else REPEATS)
    print(f'efficiency_2: {samples}')
    if not trial:
        command = 'python -m tools.bench.replicas'
        figures.append(TABLE, 'efficiency_2', samples, unit='of two alone', goal='>= 0.9', command=command)


if __name__ == '__main__':
    program.start(main)
