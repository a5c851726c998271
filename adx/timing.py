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

PASSES = 3  # over all arms, one after the other; the median counts


class Stopwatch:
    """Keeps an engine an arm, so that programs are compiled once for all seeds of a study."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def seconds_per_token(
        self, experiment: Experiment, models: Models, made: Requests, names: Sequence[str]
    ) -> dict[str, float]:
        """Arm -> seconds of the machine a token, decoding once what fills its slots."""
        decode = dataclasses.replace(experiment.decode, record='none')  # what is served, not what is studied
        asked = {}
        for arm in experiment.arms:
            if arm.name in names:
                [(engine, _)] = generation.make_engines(
                    models, [arm], decode, experiment.seed, experiment.protected_spans
                )
                self._engines.setdefault(arm.name, engine).weights = engine.weights
                mine = [request for request in made.requests.values() if request.id.setting == arm.name]
                asked[arm.name] = mine[: decode.slots]
                list(self._engines[arm.name].generate(asked[arm.name]))
        took: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(PASSES):
            for name, requests in asked.items():
                began = time.perf_counter()
                tokens = sum(len(done.tokens) for done in self._engines[name].generate(requests))
                took[name].append((time.perf_counter() - began) / tokens)
        return {name: statistics.median(each) for name, each in took.items()}
