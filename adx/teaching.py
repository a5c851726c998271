"""Trains students of one family on prepared lessons, in stacks as large as is fast on the devices at hand."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from adx import losses
from adx.attacks import Attack
from adx.batching import Corpus, Rows, Stream
from adx.hashing import content_hash
from adx.lesson_encoding import Encoded
from adx.models.transformer import Model, Params
from adx.optimising import Recipe
from adx.training import Loss, Trainer, hard_loss, logits

STACK = 24  # students; on a CPU a stack is slower than one by one: tools/bench/results/training.json
Setting = dict[str, Any]  # learning_rate and steps


@dataclasses.dataclass(frozen=True)
class Job:
    """One student to be. setting: what names it; steps: optimiser steps, after what the attack makes of them.

    marks: the steps after which its weights are kept.
    """

    setting: Setting
    steps: int
    corpus: Corpus
    marks: tuple[int, ...] = ()


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

    def teach(self, jobs: Sequence[Job], loss: Loss, seed: int, tell: Callable[[int, int], None]) -> list[Taught]:
        """The students of the jobs, in their order. tell: called with the steps that were taken and all of them."""
        stacks = [jobs[start : start + stack_size()] for start in range(0, len(jobs), stack_size())]
        total, taught, done = sum(map(_longest, stacks)), list[Taught](), 0
        for stack in stacks:
            taught += self._teach(stack, loss, seed, functools.partial(_tell_on, tell, done, total))
            done += _longest(stack)
        return taught

    def _teach(self, jobs: Sequence[Job], loss: Loss, seed: int, tell: Callable[[int], None]) -> list[Taught]:
        recipe, count, began = self.recipe, len(jobs), time.monotonic()
        trainer = self._trainer(count, loss)
        stream = Stream([job.corpus for job in jobs], recipe.rows, recipe.length, recipe.pack)
        stacked = {path: jnp.stack([x.astype(jnp.float32)] * count) for path, x in self.params.items()}
        rates, steps = [job.setting['learning_rate'] for job in jobs], [job.steps for job in jobs]
        state, tokens_N = trainer.start(stacked, rates, steps, [seed] * count), jnp.zeros(count, jnp.int32)
        marks: list[list[Mark]] = [[] for _ in jobs]
        for step in range(1, _longest(jobs) + 1):
            state, metrics = trainer.step(state, stream(step - 1))
            tokens_N += jnp.where(metrics.moved_N, metrics.targets_N, 0)
            wanted = [i for i, job in enumerate(jobs) if step in (*job.marks, job.steps)]
            params = trainer.params(state) if wanted else {}
            for i in wanted:
                marks[i].append(Mark(step, int(tokens_N[i]), {path: x[i] for path, x in params.items()}))
            tell(step)
        seconds, diverged_N = (time.monotonic() - began) / count, state.diverged_N.tolist()
        return [Taught(job.setting, tuple(marks[i]), diverged_N[i] > 0, seconds) for i, job in enumerate(jobs)]


def _longest(jobs: Sequence[Job]) -> int:
    return max(job.steps for job in jobs)


def _tell_on(tell: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    tell(before + step, total)


def make_corpus(attack: Attack, encoded: Encoded, seed: int) -> Corpus:
    """What an attack's students read, in an order of the seed's."""
    extras = encoded.soft_labels() if attack.loss == 'soft' else {}
    order = int(content_hash(['order', seed])[:8], 16)
    return Corpus(encoded.examples, order, encoded.weights, extras)


def make_loss(attack: Attack) -> Loss:
    """One object for all attacks of a loss: programs are kept by it."""
    return hard_loss if attack.loss == 'hard' else _soft_loss(dict(attack.arguments).get('temperature', 1.0))


@functools.cache
def _soft_loss(temperature: float) -> Loss:
    def soft(model: Model, params: Params, rows: Rows) -> tuple[Any, Any]:
        labels = rows.extras['ids'], rows.extras['log_probs']
        losses_BL = losses.soft_losses(logits(model, params, rows), *labels, rows.targets_BL, temperature)
        return jnp.sum(losses_BL * losses.ahead(rows.weights_BL)), jnp.sum(losses.predicting(rows.targets_BL))

    return soft
