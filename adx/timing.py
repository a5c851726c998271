"""What a token of every arm costs: seconds of decoding, side by side on one machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

from adx import generation
from adx.decoding.engine import Engine
from adx.experiment import Experiment
from adx.generation import Models, Requests
from adx.types import Request

PASSES = 3  # over all arms, one after the other; the median counts


def seconds_per_token(
    experiment: Experiment, models: Models, made: Requests, names: Sequence[str]
) -> dict[str, float]:
    """Arm -> seconds of the machine a token, decoding once what fills its slots. Compiling is left out."""
    decode = dataclasses.replace(experiment.decode, record='none')  # what is served, not what is studied
    asked: dict[str, tuple[Engine, list[Request]]] = {}
    for arm in experiment.arms:
        if arm.name in names:
            [(engine, _)] = generation.make_engines(models, [arm], decode, experiment.seed, experiment.protected_spans)
            mine = [request for request in made.requests.values() if request.id.setting == arm.name]
            asked[arm.name] = engine, mine[: decode.slots]
            list(engine.generate(mine[: decode.slots]))
    took: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(PASSES):
        for name, (engine, requests) in asked.items():
            began = time.perf_counter()
            tokens = sum(len(done.tokens) for done in engine.generate(requests))
            took[name].append((time.perf_counter() - began) / tokens)
    return {name: statistics.median(each) for name, each in took.items()}
