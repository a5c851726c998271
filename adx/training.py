"""Training a stack of students in one program, whatever their seeds, data and rates.

All arrays have a leading axis N, also with one student. Students are split over the mesh's `proxy` axis, their rows
over `data` and their weights over `model` (mesh.proxy_layout). Students never meet: each is what it would be alone, up
to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import AbstractMesh, Mesh

from adx import struct
from adx.batching import Rows
from adx.mesh import proxy_layout, shard_bytes
from adx.models import lora
from adx.models.transformer import Model, Params, make_model
from adx.objectives import Hard, Objective
from adx.optimising import Recipe, choose, optimiser, rate
from adx.types import Array


@struct.dataclass
class TrainState:
    """A stack of students on their way.

    weights: what is trained, params or adapters. base: the frozen params under adapters, else {}.
    step: steps taken by the stack; learning_rate_N, steps_N: each student's own.
    diverged_N: steps that a student sat out because its loss or its gradient was not finite.
    tokens_N: targets that it has learned from.
    """

    weights: Params
    base: Params
    optimiser: Any
    step: Array
    learning_rate_N: Array
    steps_N: Array
    diverged_N: Array
    tokens_N: Array


@struct.dataclass
class Metrics:
    """Of one step, per student: the mean loss over its targets, the gradient's norm before clipping, the learning
    rate, how many targets, and whether it moved.
    """

    loss_N: Array
    norm_N: Array
    rate_N: Array
    targets_N: Array
    moved_N: Array


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """'cpu', 'gpu' or 'tpu'; '' of a mesh without devices, for which nothing is compiled."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else ''


@functools.cache
def compiler_options(platform: str) -> dict[str, str] | None:
    """Of a step. On CPUs XLA joins products with what stands around them, which makes a step of a small student slower
    (decoding gains by it); None where this XLA cannot be told not to.
    """
    if platform != 'cpu':
        return None
    options = {'xla_cpu_experimental_ynn_fusion_type': ''}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


class Trainer:
    """Trains `count` students of one architecture by one recipe; holds the compiled program.

    Raises ValueError for a recipe that cannot be run.
    """

    def __init__(self, model: Model, mesh: Mesh, recipe: Recipe, count: int = 1, loss: Objective = Hard()):  # noqa: B008
        recipe.check()
        config = dataclasses.replace(model.config, dtype=recipe.dtype)
        self.model = dataclasses.replace(make_model(config), remat=recipe.remat)
        self.recipe, self.count, self.loss = recipe, count, loss
        self.layout = proxy_layout(mesh, config.sizes, count)
        if (recipe.rows // recipe.accumulate) % self.layout.ways('B'):
            raise ValueError(
                f'Recipe.rows / accumulate = {recipe.rows // recipe.accumulate} rows do not divide among the '
                f"{self.layout.ways('B')} devices that split them; they must"
            )
        self.optimiser = optimiser(recipe)
        self.heads = dict(loss.heads(self.model))
        replicated = {path: '.' * len(shape) for path, shape in self.heads.items()}
        self._axes = self.model.axes | lora.axes(self.model, recipe.lora_on) | replicated
        options = compiler_options(platform_of(mesh))
        self._step = jax.jit(self._advance, donate_argnums=0, compiler_options=options)
        self._params = jax.jit(jax.vmap(self._merged))
        everywhere = self.layout.sharding('')  # also for hosts that do not have the student
        self._counts = jax.jit(lambda state: (state.tokens_N, state.diverged_N), out_shardings=everywhere)

    def start(
        self,
        params: Params,
        learning_rates: Sequence[float] | None = None,
        steps: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> TrainState:
        """Students before their first step. params: float32 stacks [N, ...], copied; None takes the recipe's numbers.

        seeds: of fresh adapters, one a student, 0, 1, ... if None.
        """
        rates = self._each('learning_rates', learning_rates, self.recipe.learning_rate)
        budgets = self._each('steps', steps, self.recipe.steps)
        keys = jnp.stack([jax.random.key(seed) for seed in (range(self.count) if seeds is None else seeds)])
        for path, x in params.items():
            if x.shape != (self.count, *self.model.shapes[path]):
                raise ValueError(f'{path} has shape {x.shape}; it must be {(self.count, *self.model.shapes[path])}')
        numbers = keys, jnp.asarray(rates, jnp.float32), jnp.asarray(budgets, jnp.int32)
        make = lambda params: self._fresh(params, *numbers)  # noqa: E731
        shardings = jax.tree_util.tree_map_with_path(self._sharding, jax.eval_shape(make, params))
        return jax.jit(make, out_shardings=shardings)(params)

    def abstract_state(self) -> TrainState:
        """Shapes and places of the state."""
        params = {path: jax.ShapeDtypeStruct((self.count, *s), jnp.float32) for path, s in self.model.shapes.items()}
        numbers = jnp.stack([jax.random.key(0)] * self.count), jnp.zeros(self.count), jnp.zeros(self.count, jnp.int32)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding(path, x)),
            jax.eval_shape(self._fresh, params, *numbers),
        )

    def state_bytes(self) -> int:
        """Per device, of weights, a frozen base and moments; gradients and activations come on top of them."""
        return sum(map(shard_bytes, jax.tree.leaves(self.abstract_state())))

    def step(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """One step of all students on rows [N, B, ...] that lie on the host or the devices. Gives up `state`."""
        return self._step(state, self.place(rows))

    def place(self, rows: Rows) -> Rows:
        """The rows on the devices, split over students and rows; each process has all of them."""
        return jax.tree.map(lambda x: self.layout.place(x, 'NB' + '.' * (x.ndim - 2)), rows)

    def params(self, state: TrainState) -> Params:
        """The students' float32 params [N, ...], adapters merged, without the heads of the loss."""
        return self._params(_without(state.weights, self.heads), state.base)

    def counts(self, state: TrainState) -> tuple[list[int], list[int]]:
        """Per student: the targets that it has learned from, and the steps that it sat out."""
        tokens_N, diverged_N = self._counts(state)
        return tokens_N.tolist(), diverged_N.tolist()

    def _each(self, name: str, values: Sequence[Any] | None, default: Any) -> list[Any]:
        if values is not None and len(values) != self.count:
            raise ValueError(f'{name} has {len(values)} entries and there are {self.count} students; give one each')
        return [default] * self.count if values is None else list(values)

    def _fresh(self, params: Params, keys: Array, rates_N: Array, steps_N: Array) -> TrainState:
        recipe, weights, base = self.recipe, {path: x.astype(jnp.float32) for path, x in params.items()}, {}
        if recipe.lora_rank:
            base = weights
            weights = jax.vmap(lambda key: lora.init(self.model, recipe.lora_rank, recipe.lora_on, key))(keys)
        weights = weights | jax.vmap(self._fresh_heads)(keys)
        moments = jax.vmap(self.optimiser.init)(weights)
        none_N = jnp.zeros(self.count, jnp.int32)
        return TrainState(weights, base, moments, jnp.int32(0), rates_N, steps_N, none_N, none_N)

    def _fresh_heads(self, key: Array) -> Params:
        """Normal, with deviation fan_in ** -0.5."""
        keys = jax.random.split(key, max(1, len(self.heads)))
        return {
            path: jax.random.normal(one, shape) * shape[-1] ** -0.5
            for one, (path, shape) in zip(keys, self.heads.items(), strict=False)
        }

    def _sharding(self, path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
        """A leaf that is named as a weight, also one of the optimiser's, lies where the weight does."""
        axes = self._axes.get(str(getattr(path[-1], 'key', '')))
        if axes is None:
            return self.layout.sharding('N' if leaf.ndim else '')
        return self.layout.sharding('N' + axes)

    def _advance(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        fields: dict[str, Any] = dict.fromkeys(vars(state), 0) | {'step': None}
        axes = TrainState(**fields)
        after, metrics = jax.vmap(self._student, in_axes=(axes, 0), out_axes=(axes, 0))(state, rows)
        # Said again: the next step's program is then this one.
        place = lambda path, x: jax.lax.with_sharding_constraint(x, self._sharding(path, x))  # noqa: E731
        everywhere = jax.tree.map(lambda x: self.layout.shard(x, '.'), metrics)  # for the hosts of all processes
        return jax.tree_util.tree_map_with_path(place, after), everywhere

    def _student(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """One student's step. It stays as it was past its steps, without targets, or where a number is not finite."""
        total, count, g = self._gradient(state.weights, state.base, rows)
        norm = optax.global_norm(g)
        now = rate(self.recipe, state.learning_rate_N, state.steps_N, state.step)
        updates, moments = self.optimiser.update(g, state.optimiser, state.weights)
        moved = jax.tree.map(lambda w, u: w + now * u, state.weights, updates)
        awake = (state.step < state.steps_N) & (count > 0)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        weights, moments = choose(awake & finite, (moved, moments), (state.weights, state.optimiser))
        after = dataclasses.replace(
            state, weights=weights, optimiser=moments, step=state.step + 1,
            diverged_N=state.diverged_N + (awake & ~finite),
            tokens_N=state.tokens_N + jnp.where(awake & finite, count, 0),
        )  # fmt: skip
        return after, Metrics(total / jnp.maximum(count, 1), norm, now, count, awake & finite)

    def _gradient(self, weights: Params, base: Params, rows: Rows) -> tuple[Array, Array, Params]:
        """(loss summed over targets, their number, gradient of the mean), piece by piece over the rows."""

        def total(weights: Params, piece: Rows) -> tuple[Array, Array]:
            heads = {path: weights[path] for path in self.heads}
            return self.loss(self.model, self._merged(_without(weights, self.heads), base) | heads, piece)

        def add(sums, piece: Rows):
            (loss, count), g = jax.value_and_grad(total, has_aux=True)(weights, piece)
            return jax.tree.map(jnp.add, sums, (loss, count, g)), None

        zeros = (jnp.float32(0), jnp.int32(0), jax.tree.map(jnp.zeros_like, weights))
        # Neighbouring rows go to different pieces: those of one device stay on it.
        pieces = jax.tree.map(lambda x: rearrange(x, '(b a) ... -> a b ...', a=self.recipe.accumulate), rows)
        if self.recipe.accumulate == 1:
            (loss, count, g), _ = add(zeros, jax.tree.map(lambda x: x[0], pieces))
        else:
            (loss, count, g), _ = jax.lax.scan(add, zeros, pieces)
        return loss, count, jax.tree.map(lambda x: x / jnp.maximum(count, 1), g)

    def _merged(self, weights: Params, base: Params) -> Params:
        return lora.merge(self.model, base, weights, self.recipe.lora_scale) if self.recipe.lora_rank else weights


def _without(weights: Params, names: Iterable[str]) -> Params:
    return {path: x for path, x in weights.items() if path not in names}
