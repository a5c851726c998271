"""How a student is trained: settings, the learning rate over time, the optimiser."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from adx.models.lora import PROJECTIONS
from adx.models.transformer import Params
from adx.types import Array, check_choice, check_range


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train.

    learning_rate, steps: of a student that is given none of its own. warmup: share of the steps over which the rate
    rises; after it 'cosine' falls to 0 at the end and 'constant' stays.
    weight_decay: not on norms and biases. beta2: of Adam's second moment, lower for runs of few steps.
    clip: the largest norm of a gradient, 0 for none.
    rows: of one step and one student, in `accumulate` pieces one after the other.
    lora_rank: 0 trains every weight; else adapters on the projections `lora_on`, scaled by lora_alpha / lora_rank.
    dtype: of activations and products; weights and the optimiser are float32.
    remat: a backward pass computes each block again. length: tokens of the longest row; pack: see Stream.
    """

    learning_rate: float = 5e-4
    schedule: str = 'cosine'
    warmup: float = 0.1
    weight_decay: float = 0.1
    beta2: float = 0.999
    clip: float = 1.0
    rows: int = 32
    accumulate: int = 1
    steps: int = 100
    lora_rank: int = 0
    lora_alpha: float = 128.0
    lora_on: tuple[str, ...] = PROJECTIONS
    dtype: str = 'float32'
    remat: bool = False
    pack: bool = False
    length: int = 1024

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the allowed range."""
        check_range('Recipe.learning_rate', self.learning_rate, 0.0, open_low=True)
        check_choice('Recipe.schedule', self.schedule, ('cosine', 'constant'))
        check_range('Recipe.warmup', self.warmup, 0.0, 1.0)
        check_range('Recipe.beta2', self.beta2, 0.0, 1.0)
        for name in ('weight_decay', 'clip', 'lora_rank'):
            check_range(f'Recipe.{name}', getattr(self, name), 0)
        for name in ('rows', 'accumulate', 'steps'):
            check_range(f'Recipe.{name}', getattr(self, name), 1)
        check_range('Recipe.length', self.length, 2)
        check_range('Recipe.lora_alpha', self.lora_alpha, 0.0, open_low=True)
        check_choice('Recipe.dtype', self.dtype, ('float32', 'bfloat16'))
        for name in self.lora_on:
            check_choice('Recipe.lora_on', name, PROJECTIONS)
        if self.rows % self.accumulate:
            raise ValueError(
                f'Recipe.accumulate = {self.accumulate} does not divide Recipe.rows = {self.rows}; it must'
            )
        if self.lora_rank and not self.lora_on:
            raise ValueError(f'Recipe.lora_on is empty and lora_rank = {self.lora_rank}; name some of {PROJECTIONS}')

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_rank


def rate(recipe: Recipe, learning_rate: Array, steps: Array, step: Array) -> Array:
    """The learning rate of step 0, 1, ..., steps - 1: the first is above 0, and 'cosine' would reach 0 at `steps`."""
    rising = recipe.warmup * steps
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(rising, 1.0))
    if recipe.schedule == 'constant':
        return learning_rate * warm
    done = jnp.clip((step - rising) / jnp.maximum(steps - rising, 1.0), 0.0, 1.0)
    return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * done))


def optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW of one student at a rate of 1 (Loshchilov and Hutter, arXiv 1711.05101): the caller scales its updates."""
    clip = optax.clip_by_global_norm(recipe.clip) if recipe.clip else optax.identity()
    decay = optax.add_decayed_weights(recipe.weight_decay, mask=decayed)
    return optax.chain(clip, optax.scale_by_adam(b1=0.9, b2=recipe.beta2, eps=1e-8), decay, optax.scale(-1.0))


def decayed(params: Params) -> dict[str, bool]:
    """Which weights decay: neither norms nor biases."""
    return {path: not ('norm' in path or 'bias' in path) for path in params}


def choose(flag: Array, new: optax.Params, old: optax.Params) -> optax.Params:
    """`new` where the flag of one student is True, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)
