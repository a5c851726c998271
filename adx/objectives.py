"""What students are trained to do with rows of text: one hashable object a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp

from adx import losses
from adx.batching import Rows
from adx.models.transformer import Model, Params
from adx.types import Array

PROJECTION = 'projection'


class Objective(Protocol):
    """A loss of one student's rows, differentiable in its params.

    heads: shapes of weights beside the model's that only the loss reads; they are trained with it, are among its
    params by these names, and are gone when the student is.
    """

    def heads(self, model: Model) -> Mapping[str, tuple[int, ...]]: ...

    def __hash__(self) -> int: ...

    def __call__(self, model: Model, params: Params, rows: Rows) -> tuple[Array, Array]:
        """(sum over targets, how many)."""
        ...


class Headless:
    """Of a loss without weights of its own, to inherit from."""

    def heads(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        return {}


@dataclasses.dataclass(frozen=True)
class Hard(Headless):
    """The weighted next-token loss of the completions, the end of sequence in it; the count leaves weights out."""

    def __call__(self, model: Model, params: Params, rows: Rows) -> tuple[Array, Array]:
        losses_BL = losses.token_losses(logits(model, params, rows), rows.tokens_BL, rows.targets_BL)
        return weighted(losses_BL, rows)


@dataclasses.dataclass(frozen=True)
class Soft(Headless):
    """Against the distribution that was served: rows.extras 'ids' and 'log_probs', see losses.soft_losses.

    temperature: of both, other than 1 only where labels name the whole vocabulary.
    """

    temperature: float = 1.0

    def __call__(self, model: Model, params: Params, rows: Rows) -> tuple[Array, Array]:
        ids_BLC, log_probs_BLC = rows.extras['ids'], rows.extras['log_probs']
        if self.temperature != 1.0:
            log_probs_BLC = losses.tempered(log_probs_BLC, self.temperature)
        logits_BLV = logits(model, params, rows)
        return weighted(losses.soft_losses(logits_BLV, ids_BLC, log_probs_BLC, rows.targets_BL, self.temperature), rows)


@dataclasses.dataclass(frozen=True)
class Features:
    """The hard loss, and `weight` times the squared distance of projected hidden states from the teacher's.

    rows.extras 'features': the teacher's last hidden state [E] at the position that predicts the target, at the
    target's column. size: E. The projection [E, D] is learned (Romero et al., arXiv 1412.6550, section 2.2).
    """

    weight: float
    size: int

    def heads(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        return {PROJECTION: (self.size, model.config.sizes['D'])}

    def __call__(self, model: Model, params: Params, rows: Rows) -> tuple[Array, Array]:
        own = {path: x for path, x in params.items() if path != PROJECTION}
        x_BLD = model.apply(own, rows.tokens_BL, rows.positions_BL, segments_BL=rows.segments_BL, method='hidden')[0]
        hard_BL = losses.token_losses(model.apply(own, x_BLD, method='unembed'), rows.tokens_BL, rows.targets_BL)
        teacher_BLE = losses.ahead(rows.extras['features'])
        near_BL = losses.feature_losses(x_BLD, params[PROJECTION], teacher_BLE, rows.targets_BL)
        return weighted(hard_BL + self.weight * near_BL, rows)


def weighted(losses_BL: Array, rows: Rows) -> tuple[Array, Array]:
    """(the sum of losses that stand where their targets are predicted, each times its weight, how many targets)."""
    return jnp.sum(losses_BL * losses.ahead(rows.weights_BL)), jnp.sum(losses.predicting(rows.targets_BL))


def logits(model: Model, params: Params, rows: Rows) -> Array:
    """logits_BLV of rows, packed or not."""
    return model.apply(params, rows.tokens_BL, rows.positions_BL, segments_BL=rows.segments_BL)[0]
