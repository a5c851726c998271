"""Trains one family's students on prepared lessons, in stacks as large as is fast.

A stack that is kept (keeping.Shelf) and was stopped goes on from its last checkpoint: it has the marks that it passed
from theirs, and makes a corpus of students' own answers again from the weights that these were of.
"""

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

from adx import training_io
from adx.batching import Corpus, Rows, Stream
from adx.keeping import Shelf
from adx.models.transformer import Model, Params
from adx.objectives import Hard, Objective
from adx.optimising import Recipe
from adx.training import Trainer, TrainState
from adx.training_io import Visits

TIMED = 3  # steps, by which all are estimated
STACK = 24  # students; on a CPU a stack is slower than one by one: tools/bench/results/training.json
Setting = dict[str, Any]  # learning_rate and steps


@dataclasses.dataclass(frozen=True)
class Job:
    """One student to be. setting, arm: what name it; steps: optimiser steps, after what the attack makes of them.

    marks: the steps before the last after which its weights are kept. fresh: (its weights, 0, 1, ...) -> the corpus
    that it goes on with, every `every` steps; None where it stays with the one it has.
    """

    setting: Setting
    steps: int
    corpus: Corpus
    marks: tuple[int, ...] = ()
    fresh: Callable[[Params, int], Corpus] | None = None
    every: int = 0
    arm: str = ''

    def due(self, done: int) -> int:
        """The step, of those up to `done`, after which it was to get the corpus that it learns from then."""
        return min(done, self.steps - 1) // self.every * self.every if self.fresh is not None else 0


@dataclasses.dataclass(frozen=True)
class Mark:
    """A student on its way: its weights after so many steps, and the tokens that it had learned from."""

    step: int
    tokens: int
    params: Params


@dataclasses.dataclass(frozen=True)
class Taught:
    """One distilled student, as its optimiser setting made it. marks: the last is what it ended as.

    seconds: its share of the stack's; 0, not known, where that was gone on with.
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

    def teach(
        self, jobs: Sequence[Job], loss: Objective, seed: int, tell: Callable[[int, int], None],
        shelf: Shelf | None = None,
    ) -> list[Taught]:  # fmt: skip
        """The students of the jobs, in their order. tell: called with the steps that were taken and all of them.

        shelf: where those in training are kept, None for nowhere.
        """
        stacks = [jobs[start : start + stack_size()] for start in range(0, len(jobs), stack_size())]
        total, taught, done = sum(map(_longest, stacks)), list[Taught](), 0
        for stack in stacks:
            taught += self._teach(stack, loss, seed, functools.partial(_tell_on, tell, done, total), shelf)
            done += _longest(stack)
        return taught

    def _teach(
        self, jobs: Sequence[Job], loss: Objective, seed: int, tell: Callable[[int], None], shelf: Shelf | None
    ) -> list[Taught]:
        count, began, longest = len(jobs), time.monotonic(), _longest(jobs)
        trainer = self._trainer(count, loss)
        way = _Way(jobs, trainer)
        rates, steps = [job.setting['learning_rate'] for job in jobs], [job.steps for job in jobs]
        start = lambda: trainer.start(self._stacked(count), rates, steps, [seed] * count)  # noqa: E731
        names = [[job.arm, job.setting] for job in jobs]
        run = shelf.run(names, longest, Visits(way.needed, way.see)) if shelf else None
        whole = True
        if shelf and run:
            told = list[int]()

            def hear(step: int, total: int, metrics: dict[str, Any]) -> None:
                told.append(step)
                tell(step)

            state = training_io.train(trainer, start(), way.rows, run, hear, shelf.keeping.guard)
            whole = told[:1] == [1]
        else:
            state = start()
            for step in range(longest):
                if step in way.needed(step):
                    way.see(step, state)
                state, _ = trainer.step(state, way.rows(step))
                tell(step + 1)
        taught = way.ended(state)
        seconds = (time.monotonic() - began) / count if whole else 0.0
        return [dataclasses.replace(one, seconds=seconds) for one in taught]

    def _stacked(self, count: int) -> Params:
        """The family's weights, once for each student."""
        return {path: jnp.stack([x.astype(jnp.float32)] * count) for path, x in self.params.items()}


class _Way:
    """The students of a stack on their way: what they learn from at every step, and what is kept of them."""

    def __init__(self, jobs: Sequence[Job], trainer: Trainer):
        self.jobs, self.trainer = jobs, trainer
        self._marks: list[list[Mark]] = [[] for _ in jobs]
        self._corpora = [job.corpus for job in jobs]
        self._dues: list[int] = []  # of the corpora; none before the first step
        self._writers: dict[int, Params] = {}  # job -> the weights that its next corpus is made with
        self._stream: Stream | None = None

    def needed(self, step: int) -> set[int]:
        """The steps up to this one whose states are wanted after it: marks, and those of the corpora now."""
        marks = {mark for job in self.jobs for mark in job.marks if mark <= step}
        return marks | {job.due(step) for job in self.jobs if job.fresh is not None}

    def see(self, step: int, state: TrainState) -> None:
        """Keeps what is wanted of the state of such a step."""
        params, (tokens_N, _) = self.trainer.params(state), self.trainer.counts(state)
        for i, job in enumerate(self.jobs):
            own = {path: x[i] for path, x in params.items()}
            if step in job.marks:
                self._marks[i].append(Mark(step, tokens_N[i], own))
            if job.fresh is not None and job.due(step) == step:
                self._writers[i] = own

    def rows(self, step: int) -> Rows:
        """What the next step reads after so many."""
        dues = [job.due(step) for job in self.jobs]
        if self._stream is None or dues != self._dues:
            for i, job in enumerate(self.jobs):
                if job.fresh is not None and i in self._writers:
                    self._corpora[i] = job.fresh(self._writers[i], dues[i] // job.every)
            recipe = self.trainer.recipe
            self._stream = Stream(self._corpora, recipe.rows, recipe.length, recipe.pack)
            self._dues = dues
            self._writers.clear()
        return self._stream(step - max(dues))

    def ended(self, state: TrainState) -> list[Taught]:
        """The students. A job that ended before the others is what it was then."""
        params, (tokens_N, diverged_N) = self.trainer.params(state), self.trainer.counts(state)
        ends = [Mark(job.steps, tokens_N[i], {p: x[i] for p, x in params.items()}) for i, job in enumerate(self.jobs)]
        return [
            Taught(job.setting, (*self._marks[i], ends[i]), diverged_N[i] > 0, 0.0) for i, job in enumerate(self.jobs)
        ]


def _longest(jobs: Sequence[Job]) -> int:
    return max(job.steps for job in jobs)


def _tell_on(tell: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    tell(before + step, total)
