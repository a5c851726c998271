"""Trains one family's students on prepared lessons, in stacks as large as is fast."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from adx.batching import Corpus, Rows, Stream
from adx.models.transformer import Model, Params
from adx.objectives import Hard, Objective
from adx.optimising import Recipe
from adx.training import Trainer

TIMED = 3  # steps, by which all are estimated
STACK = 24  # students; on a CPU a stack is slower than one by one: tools/bench/results/training.json
Setting = dict[str, Any]  # learning_rate and steps


@dataclasses.dataclass(frozen=True)
class Job:
    """One student to be. setting: what names it; steps: optimiser steps, after what the attack makes of them.

    marks: the steps after which its weights are kept. fresh: (its weights, 0, 1, ...) -> the corpus that it goes on
    with, every `every` steps; None where it stays with the one it has.
    """

    setting: Setting
    steps: int
    corpus: Corpus
    marks: tuple[int, ...] = ()
    fresh: Callable[[Params, int], Corpus] | None = None
    every: int = 0

    def is_due(self, done: int) -> bool:
        """Whether it needs another corpus after so many steps."""
        return self.fresh is not None and done < self.steps and done % self.every == 0


@dataclasses.dataclass(frozen=True)
class Mark:
    """A student on its way: its weights after so many steps, and the tokens that it had learned from."""

    step: int
    tokens: int
    params: Params


@dataclasses.dataclass(frozen=True)
class Taught:
    """One distilled student, as its optimiser setting made it. marks: the last is what it ended as.

    seconds: its share of the stack's.
    """

    setting: Setting
    marks: tuple[Mark, ...]
    diverged: bool
    seconds: float

    @property
    def params(self) -> Params:
        return self.marks[-1].params


def stack_size() -> int:
    """How many students train together."""
    return 1 if jax.default_backend() == 'cpu' else STACK


class Classroom:
    """Students that start from one family's weights; keeps the compiled programs."""

    def __init__(self, model: Model, params: Params, mesh: Mesh, recipe: Recipe):
        self.params, self.recipe = params, recipe
        self._trainer = functools.cache(functools.partial(Trainer, model, mesh, recipe))

    def seconds_per_step(self) -> float:
        """Of one student in a full stack, by hard labels, on the longest rows: measured over a few steps."""
        recipe, count = self.recipe, stack_size()
        trainer, shape = self._trainer(count, Hard()), (count, recipe.rows, recipe.length)
        state = trainer.start(self._stacked(count))
        ints = np.zeros(shape, np.int32)
        rows, took = Rows(ints, ints > 0, ints.astype(np.float32), ints, ints if recipe.pack else None), []
        for _ in range(TIMED + 1):  # the first compiles
            began = time.monotonic()
            state, metrics = trainer.step(state, rows)
            jax.block_until_ready(metrics)
            took.append(time.monotonic() - began)
        return statistics.median(took[1:]) / count

    def teach(self, jobs: Sequence[Job], loss: Objective, seed: int, tell: Callable[[int, int], None]) -> list[Taught]:
        """The students of the jobs, in their order. tell: called with the steps that were taken and all of them."""
        stacks = [jobs[start : start + stack_size()] for start in range(0, len(jobs), stack_size())]
        total, taught, done = sum(map(_longest, stacks)), list[Taught](), 0
        for stack in stacks:
            taught += self._teach(stack, loss, seed, functools.partial(_tell_on, tell, done, total))
            done += _longest(stack)
        return taught

    def _teach(self, jobs: Sequence[Job], loss: Objective, seed: int, tell: Callable[[int], None]) -> list[Taught]:
        recipe, count, began = self.recipe, len(jobs), time.monotonic()
        trainer = self._trainer(count, loss)
        corpora = [job.corpus for job in jobs]
        rates, steps = [job.setting['learning_rate'] for job in jobs], [job.steps for job in jobs]
        state, tokens_N = trainer.start(self._stacked(count), rates, steps, [seed] * count), jnp.zeros(count, jnp.int32)
        marks: list[list[Mark]] = [[] for _ in jobs]
        for step in range(1, _longest(jobs) + 1):
            due = [i for i, job in enumerate(jobs) if job.is_due(step - 1)]
            if due:
                corpora = _refreshed(jobs, due, corpora, trainer.params(state), step - 1)
            if due or step == 1:
                stream, first = Stream(corpora, recipe.rows, recipe.length, recipe.pack), step - 1
            state, metrics = trainer.step(state, stream(step - 1 - first))
            tokens_N += jnp.where(metrics.moved_N, metrics.targets_N, 0)
            wanted = [i for i, job in enumerate(jobs) if step in (*job.marks, job.steps)]
            params = trainer.params(state) if wanted else {}
            for i in wanted:
                marks[i].append(Mark(step, int(tokens_N[i]), {path: x[i] for path, x in params.items()}))
            tell(step)
        seconds, diverged_N = (time.monotonic() - began) / count, state.diverged_N.tolist()
        return [Taught(job.setting, tuple(marks[i]), diverged_N[i] > 0, seconds) for i, job in enumerate(jobs)]


    def _stacked(self, count: int) -> Params:
        """The family's weights, once for each student."""
        return {path: jnp.stack([x.astype(jnp.float32)] * count) for path, x in self.params.items()}


def _refreshed(
    jobs: Sequence[Job], due: Sequence[int], corpora: Sequence[Corpus], params: Params, done: int
) -> list[Corpus]:
    """The corpora behind so many steps, those that are due made anew. params: of all students."""
    after = list(corpora)
    for i in due:
        fresh = jobs[i].fresh
        assert fresh is not None
        after[i] = fresh({path: x[i] for path, x in params.items()}, done // jobs[i].every)
    return after


def _longest(jobs: Sequence[Job]) -> int:
    return max(job.steps for job in jobs)


def _tell_on(tell: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    tell(before + step, total)
