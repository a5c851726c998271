"""What a trace does to a proxy that learns from it, and how that depends on each token.

A trace is written as one-hot rows X [L, V] that are both what the proxy reads (X E) and what it is to predict. With
L(theta; X) the mean loss of its targets, H(theta) the holdout loss and one step theta' = theta - eta grad L(theta; X):

    bilevel      J(X) = H(theta'),                    dJ/dX = -eta <g', grad> dL/dX,  g' = grad H(theta')
    harm         J(X) = -<g, grad L(theta; X)>,       the same at g = grad H(theta), and eta = 1
    loss         J(X) = L(theta; X)                   hard to learn, whatever it does to H

(arXiv 2602.15143 and its appendix; the hyperparameters are ours). The derivatives along g are forward mode over the
gradient with respect to X: no Hessian is formed. All are exact for the first order in a changed token, which is a large
step: `values` computes J itself for whatever is to be accepted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from adx import losses
from adx.batching import Batch, positions
from adx.models.transformer import Model, Params
from adx.types import Array

Gradients = Callable[..., Array]  # (model, params, batch, *at) -> dL of every row


def token_gradients(model: Model, params: Params, batch: Batch) -> Array:
    """dL/dX of every row, float32 [B, L, V]: X as what is read, through the embedding, and as what is to be predicted.

    L is the mean over the row's targets, whose number does not change with X.
    """
    x_BLD = model.apply(params, jnp.asarray(batch.tokens_BL), method='inputs')
    slope_BLD, logits_BLV = _read(model, params, batch, x_BLD)
    read_BLV = jnp.einsum('BLD,VD->BLV', slope_BLD, embedding(model, params), precision='highest')
    # Target l is predicted at l - 1.
    predicted_BLV = -jnp.roll(jax.nn.log_softmax(logits_BLV), 1, axis=1) * _shares(batch)[..., None]
    return read_BLV + predicted_BLV


def input_gradients(model: Model, params: Params, batch: Batch, moved_BLD: Array) -> Array:
    """dL/dx [B, L, D] of what is read, `moved_BLD` away from the tokens' embeddings, targets held fixed."""
    x_BLD = model.apply(params, jnp.asarray(batch.tokens_BL), method='inputs')
    return _read(model, params, batch, x_BLD + moved_BLD)[0]


def embedding(model: Model, params: Params) -> Array:
    """Every word as the model reads it, [V, D]."""
    return model.apply(params, jnp.arange(model.config.sizes['V']), method='inputs')


def _read(model: Model, params: Params, batch: Batch, x_BLD: Array) -> tuple[Array, Array]:
    """(dL/dx [B, L, D], logits_BLV) at x, of all rows."""
    tokens_BL, targets_BL = jnp.asarray(batch.tokens_BL), jnp.asarray(batch.targets_BL)
    positions_BL = positions(tokens_BL)

    def loss(x_BLD: Array) -> tuple[Array, Array]:
        states, _ = model.apply(params, x_BLD, positions_BL, method='states')
        logits_BLV = model.apply(params, states[-1], method='unembed')
        losses_BL = losses.token_losses(logits_BLV, tokens_BL, targets_BL)
        return jnp.sum(losses_BL * losses.ahead(_shares(batch))), logits_BLV

    return jax.grad(loss, has_aux=True)(x_BLD)


def _shares(batch: Batch) -> Array:
    """[B, L]: each target's share of its row's mean."""
    targets_BL = jnp.asarray(batch.targets_BL)
    return targets_BL / jnp.maximum(jnp.sum(targets_BL, axis=-1, keepdims=True), 1)


def row_loss(model: Model, params: Params, batch: Batch) -> Array:
    """L of every row [B], in nats a target; 0 for a row without any."""
    tokens_BL = jnp.asarray(batch.tokens_BL)
    positions_BL = positions(tokens_BL)
    logits_BLV, _ = model.apply(params, tokens_BL, positions_BL)
    sums_B, counts_B = losses.row_losses(logits_BLV, tokens_BL, jnp.asarray(batch.targets_BL))
    return sums_B / jnp.maximum(counts_B, 1)


class Objective(Protocol):
    """What is to grow. A frozen dataclass. given: what it reads beside the proxy, a direction or a holdout batch."""

    def values(self, model: Model, params: Params, given: Any, batch: Batch) -> Array:
        """J of every row [B], float32."""
        ...

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Any, batch: Batch, *at: Array
    ) -> Array:
        """dJ of every row by what `gradients` gives dL by: `token_gradients`, or `input_gradients` at a place."""
        ...


@dataclasses.dataclass(frozen=True)
class Harm:
    """To first order what a step on the trace adds to the holdout loss, per unit of its size. given: g."""

    def values(self, model: Model, params: Params, given: Params, batch: Batch) -> Array:
        return -jax.jvp(lambda params: row_loss(model, params, batch), (params,), (_as(given, params),))[1]

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Params, batch: Batch, *at: Array
    ) -> Array:
        return -jax.jvp(lambda params: gradients(model, params, batch, *at), (params,), (_as(given, params),))[1]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Harm by the central difference of two copies of the proxy, theta +- eps g, for programs without forward mode."""

    eps: float = 1e-2

    def values(self, model: Model, params: Params, given: Params, batch: Batch) -> Array:
        plus, minus = (row_loss(model, moved(params, given, eps), batch) for eps in (self.eps, -self.eps))
        return (minus - plus) / (2 * self.eps)

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Params, batch: Batch, *at: Array
    ) -> Array:
        plus, minus = (gradients(model, moved(params, given, eps), batch, *at) for eps in (self.eps, -self.eps))
        return (minus - plus) / (2 * self.eps)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The trace's own loss: hard, which is not yet harmful. given: unread."""

    def values(self, model: Model, params: Params, given: Params | Batch, batch: Batch) -> Array:
        return row_loss(model, params, batch)

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Params | Batch, batch: Batch, *at: Array
    ) -> Array:
        return gradients(model, params, batch, *at)


@dataclasses.dataclass(frozen=True)
class Bilevel:
    """The holdout loss after one step of size eta on this trace alone. given: the holdout batch.

    Row by row: each trace has lookahead weights of its own.
    """

    eta: float = 0.1

    def values(self, model: Model, params: Params, given: Batch, batch: Batch) -> Array:
        rows = Batch(*_rows(*batch))
        return lax.map(lambda row: holdout_loss(model, self._ahead(model, params, row), given), rows)

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Batch, batch: Batch, *at: Array
    ) -> Array:
        def slope(one: tuple[Array, ...]) -> Array:
            row = Batch(*one[:2])
            g = jax.grad(lambda params: holdout_loss(model, params, given))(self._ahead(model, params, row))
            return self.eta * Harm().slopes(gradients, model, params, g, row, *one[2:])[0]

        return lax.map(slope, _rows(*batch, *at))

    def _ahead(self, model: Model, params: Params, row: Batch) -> Params:
        step = jax.grad(lambda params: jnp.sum(row_loss(model, params, row)))(params)
        return moved(params, step, -self.eta)


@dataclasses.dataclass(frozen=True)
class Chance:
    """The control: numbers drawn by the tokens of a row, so that exchanges are as good as each other. given: unread."""

    def values(self, model: Model, params: Params, given: Any, batch: Batch) -> Array:
        return jax.vmap(jax.random.uniform)(_keys(batch))

    def slopes(
        self, gradients: Gradients, model: Model, params: Params, given: Any, batch: Batch, *at: Array
    ) -> Array:
        shape = jax.eval_shape(lambda: gradients(model, params, batch, *at)).shape
        draw = lambda key, place: jax.random.normal(jax.random.fold_in(key, place), shape[2:])  # noqa: E731
        return jax.vmap(lambda key: jax.vmap(lambda place: draw(key, place))(jnp.arange(shape[1])))(_keys(batch))


def _keys(batch: Batch) -> Array:
    """A key a row, by its tokens up to the last target, however it is padded."""

    def fold(key: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        token, inside = one
        return jnp.where(inside, jax.random.fold_in(key, token), key), None

    inside_BL = lax.cummax(jnp.asarray(batch.targets_BL).astype(jnp.int32), axis=1, reverse=True) > 0
    rows = jnp.asarray(batch.tokens_BL), inside_BL
    return jax.vmap(lambda *row: lax.scan(fold, jax.random.key(0), row)[0])(*rows)


def holdout_loss(model: Model, params: Params, batch: Batch) -> Array:
    """H: the mean over all targets of the batch."""
    count_B = jnp.sum(losses.predicting(jnp.asarray(batch.targets_BL)), axis=-1)
    return jnp.sum(row_loss(model, params, batch) * count_B) / jnp.maximum(jnp.sum(count_B), 1)


def moved(params: Params, direction: Params, size: float) -> Params:
    return {path: x + size * direction[path].astype(x.dtype) for path, x in params.items()}


def _as(direction: Params, params: Params) -> Params:
    return {path: x.astype(params[path].dtype) for path, x in direction.items()}


def _rows(*arrays: Array) -> tuple[Array, ...]:
    """Each row as a batch of its own, on a leading axis."""
    return tuple(jnp.asarray(x)[:, None] for x in arrays)
