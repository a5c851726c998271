"""Measures what a second replica adds on this machine: each with a core and a shard.

    python -m tools.bench.replicas               # appends efficiency_2 to results/scale.json
    python -m tools.bench.replicas --trial       # little work, prints and keeps nothing: whether it runs at all

Two processes hold the testbed's teacher, warm, and decode the same share of prompts every time: each alone while the
other waits, then both at once. efficiency_2 is tokens a second of both at once, until the slower ends, over what the
two reach alone. Nothing else may run on the two cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from adx.errors import ConfigError
from adx.generation import make_engines, make_requests, read_prompts
from adx.loading import blueprint, load_models
from adx.types import Request
from configs import testbed_small
from launch import program
from tools.bench import figures

TABLE, REPLICAS, REPEATS = 'scale', 2, 5
PROMPTS = 256  # of each replica

_TRIAL = flags.DEFINE_bool('trial', False, 'Little work; nothing is kept.', allow_override=True)
_WORKER = flags.DEFINE_integer('worker', None, 'The shard that this process is; given by the program itself.')


class Replica:
    """A process on one core that decodes its shard whenever it is told to."""

    def __init__(self, shard: int, core: int, trial: bool):
        command = [sys.executable, '-m', 'tools.bench.replicas', f'--worker={shard}', f'--trial={trial}']
        self.process = subprocess.Popen(
            ['taskset', '-c', str(core), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.read()

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write('\n')
        self.process.stdin.flush()

    def read(self) -> dict[str, float]:
        """tokens and seconds of the last time. Raises ConfigError where the process died."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ConfigError(f'a replica ended with {self.process.wait()}; its own message stands above')
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def efficiency(alone: Sequence[dict[str, float]], together: Sequence[dict[str, float]]) -> float:
    """Tokens a second of all at once over the sum of what each reaches alone."""
    at_once = sum(done['tokens'] for done in together) / max(done['seconds'] for done in together)
    return at_once / sum(done['tokens'] / done['seconds'] for done in alone)


def measure(replicas: Sequence[Replica], repeats: int) -> list[float]:
    samples = []
    for _ in range(repeats):
        alone = []
        for replica in replicas:
            replica.tell()
            alone.append(replica.read())
        for replica in replicas:
            replica.tell()
        samples.append(efficiency(alone, [replica.read() for replica in replicas]))
    return samples


def work(shard: int, trial: bool) -> None:
    """The other side of a Replica: a line once it is warm, and one for every line it reads."""
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
    print(json.dumps({'warm': True}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        tokens = sum(len(done.tokens) for done in engine.generate(requests))
        print(json.dumps({'tokens': tokens, 'seconds': time.perf_counter() - begin}), flush=True)


def main() -> None:
    trial = _TRIAL.value
    if _WORKER.value is not None:
        return work(_WORKER.value, trial)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < REPLICAS:
        raise ConfigError(f'{REPLICAS} replicas want a core each and there are {len(cores)}')
    replicas: list[Replica] = []
    try:
        for shard in range(REPLICAS):
            replicas.append(Replica(shard, cores[shard], trial))
        samples = measure(replicas, 1 if trial else REPEATS)
    finally:
        for replica in replicas:
            replica.end()
    print(f'efficiency_2: {samples}')
    if not trial:
        command = 'python -m tools.bench.replicas'
        figures.append(TABLE, 'efficiency_2', samples, unit='of two alone', goal='>= 0.9', command=command)


if __name__ == '__main__':
    program.start(main)
