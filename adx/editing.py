"""Rewriting by gradient: the exchanges of words that harm the proxies most, in batches.

A round ranks exchanges by one pass of slopes, evaluates the best of them exactly, one by one and then the helpful ones
together, and accepts only what raised the objective. It evaluates no text twice, and a trace that gained nothing has no
further round: its proposals would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adx import influence
from adx.batching import Batch, bucket, positions
from adx.influence import Bilevel, Chance, Difference, Harm, Loss, Objective
from adx.mesh import Layout
from adx.models.transformer import Model, Params
from adx.numerics import MASKED, log_softmax
from adx.rewriters.gradient import Gradient, best_flips, nearest_words, nested_edits, single_edits
from adx.tails import Heads, Pass, behind, passes
from adx.types import Array

OBJECTIVES: dict[str, Callable[[Gradient], Objective]] = {
    'bilevel': lambda settings: Bilevel(settings.eta),
    'harm': lambda settings: Harm(),
    'difference': lambda settings: Difference(settings.eps),
    'loss': lambda settings: Loss(),
    'random': lambda settings: Chance(),
}


ELEMENTS = 2**26  # of one array [B, L, V]; how many of them a search holds is in planning.search_bytes
MOST_ROWS = 64  # of one pass, or as many as rows are split into
_Weights = tuple[Params, Any]  # of a proxy, and what its objective reads beside them


class Proxy(NamedTuple):
    """A model that may learn from the traces. given: what the objective reads beside it, see influence.Objective."""

    model: Model
    params: Params
    given: Params | Batch | None


class Found(NamedTuple):
    """A batch on its way through the rounds. tokens: [R+1, B, L], the traces themselves first; values: [R+1, B], J."""

    tokens: np.ndarray
    values: np.ndarray


def rows_at_once(longest: int, vocab: int, ways: int) -> int:
    """How many rows each of `ways` pieces of a mesh has in one pass, none longer than `longest` tokens."""
    return max(1, min(-(-MOST_ROWS // ways), ELEMENTS // (bucket(longest) * vocab)))


class Editor:
    """The compiled search. teacher: the model that says which words fit.

    words_V: bool, the words that may be exchanged for one another. layout: by which rows are split over the devices
    that hold the weights; absent for one device.
    """

    def __init__(
        self, settings: Gradient, proxies: Sequence[Proxy], teacher: tuple[Model, Params], words_V: np.ndarray,
        layout: Layout | None = None,
    ):  # fmt: skip
        self.settings, self.words_V, self._layout = settings, words_V, layout
        self._ways = layout.ways('B') if layout else 1
        self._objective = OBJECTIVES[settings.objective](settings)
        self._whole = settings.objective == 'bilevel'  # a step on a trace of its own changes what is read of its head
        self._models = [proxy.model for proxy in proxies]
        self._teacher = teacher[0]
        self._weights = ([(proxy.params, proxy.given) for proxy in proxies], teacher[1])
        self._propose = jax.jit(self._proposed)
        self._values = jax.jit(self._valued)

    def __call__(self, batch: Batch, editable_BL: np.ndarray) -> Found:
        """Rounds until the last, or until none of the rows gains. editable_BL: the places that may change."""
        tokens_BL = np.asarray(batch.tokens_BL)
        values_B = self._value(batch, np.arange(len(tokens_BL)))
        states, values = [tokens_BL], [values_B]
        open_R = np.flatnonzero(editable_BL.any(axis=1))  # rows that may gain yet
        while len(open_R) and len(states) <= self.settings.rounds:
            tokens_BL, values_B = tokens_BL.copy(), values_B.copy()
            mine = Batch(tokens_BL[open_R], batch.targets_BL[open_R])
            tokens_BL[open_R], values_B[open_R] = self._round(mine, editable_BL[open_R], values_B[open_R])
            open_R = open_R[(tokens_BL[open_R] != mine.tokens_BL).any(axis=1)]
            if len(open_R):
                states.append(tokens_BL)
                values.append(values_B)
        return Found(np.stack(states), np.stack(values))

    def _round(self, batch: Batch, editable_BL: np.ndarray, best_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def propose(one: Pass) -> tuple[np.ndarray, Array]:
            places_BM, words_BM = self._propose(*self._weights, *self._placed(one), one.cut(editable_BL))
            return np.asarray(places_BM)[: len(one.rows)] + one.starts_B[:, None], words_BM

        places_BM, words_BM = self._in_passes(propose, batch, np.arange(len(best_B)))
        single_BML = single_edits(batch.tokens_BL, places_BM, words_BM)
        single_BM = self._tried(batch, single_BML, best_B)
        nested_BKL = nested_edits(batch.tokens_BL, places_BM, words_BM, single_BM - best_B[:, None])
        tried_BCL = np.concatenate([batch.tokens_BL[:, None], single_BML, nested_BKL], axis=1)
        tried_BC = np.concatenate([best_B[:, None], single_BM, self._tried(batch, nested_BKL, best_B)], axis=1)
        # What is not finite is no gain; the trace itself comes first among equals.
        chosen_B = np.argmax(np.where(np.isfinite(tried_BC), tried_BC, -np.inf), axis=1)
        chosen_B = np.where(np.isfinite(best_B), chosen_B, 0)  # nothing is known to be more than nan
        rows = np.arange(len(chosen_B))
        return tried_BCL[rows, chosen_B], tried_BC[rows, chosen_B]

    def _tried(self, batch: Batch, tokens_BCL: np.ndarray, best_B: np.ndarray) -> np.ndarray:
        """J of every candidate [B, C]. best_B: of the batch's own texts, which some candidates are."""
        values_BC = np.repeat(best_B[:, None], tokens_BCL.shape[1], axis=1)
        new_BC = (tokens_BCL != batch.tokens_BL[:, None]).any(axis=-1)
        named_RL = np.column_stack([np.nonzero(new_BC)[0], tokens_BCL[new_BC]])
        once_RL, back_R = np.unique(named_RL, axis=0, return_inverse=True)
        traces_R, texts_RL = once_RL[:, 0], once_RL[:, 1:]
        values_R = self._value(Batch(texts_RL, batch.targets_BL[traces_R]), traces_R)
        values_BC[new_BC] = values_R[back_R.reshape(-1)]
        return values_BC

    def _value(self, batch: Batch, traces_B: np.ndarray) -> np.ndarray:
        """J of every row. traces_B: which is a text of which trace."""
        value = lambda one: (self._values(self._weights[0], *self._placed(one)),)  # noqa: E731
        return self._in_passes(value, batch, traces_B)[0] if len(traces_B) else np.zeros(0, np.float32)

    def _in_passes(
        self, call: Callable[[Pass], Sequence[Any]], batch: Batch, traces_B: np.ndarray
    ) -> list[np.ndarray]:
        """What a compiled function gives for all rows."""
        most = rows_at_once(batch.tokens_BL.shape[1], len(self.words_V), self._ways)
        made = list(passes(batch, traces_B, most, self._ways, self._whole, self.settings.edits))
        found = [[np.asarray(x)[: len(one.rows)] for x in call(one)] for one in made]
        back_B = np.argsort(np.concatenate([one.rows for one in made]))
        return [np.concatenate(each)[back_B] for each in zip(*found, strict=True)]

    def _placed(self, one: Pass) -> tuple[Batch, Heads]:
        return one.tails.on(self._layout), one.heads.on(self._layout)

    def _valued(self, weights: Sequence[_Weights], batch: Batch, heads: Heads) -> Array:
        pairs = self._read(weights, heads)
        each = [self._objective.values(model, *w, batch) for model, w in pairs]
        return self.settings.join(jnp.stack(each))

    def _proposed(
        self, weights: Sequence[_Weights], teacher: Params, batch: Batch, heads: Heads, editable_BL: Array
    ) -> tuple[Array, Array]:
        """(places_BM, words_BM) in the order of their first-order gains; for what gains nothing the first word, which
        stays."""
        tokens_BL = jnp.asarray(batch.tokens_BL)
        open_BLV = self._fitting(teacher, batch, heads) & jnp.asarray(self.words_V) & editable_BL[..., None]
        slopes_BLV = self._slopes(weights, batch, heads)
        if self.settings.step == 'embedding':
            words_BL = self._ascended(weights, batch, heads, open_BLV)
            open_BLV &= jax.nn.one_hot(words_BL, open_BLV.shape[-1], dtype=bool)
        open_BLV &= ~jax.nn.one_hot(tokens_BL, open_BLV.shape[-1], dtype=bool)
        places_BM, words_BM, gains_BM = best_flips(slopes_BLV, tokens_BL, open_BLV, self.settings.edits)
        # What an ascent of many steps found is for the exact values to judge, not for a slope at its start.
        least = MASKED if self.settings.step == 'embedding' else 0.0
        some_BM = gains_BM > least
        return jnp.where(some_BM, places_BM, 0), jnp.where(some_BM, words_BM, tokens_BL[:, :1])

    def _slopes(self, weights: Sequence[_Weights], batch: Batch, heads: Heads) -> Array:
        """Of the joined J: those of each proxy times how much the join moves with its J."""
        pairs = self._read(weights, heads)
        each_NBLV = jnp.stack(
            [self._objective.slopes(influence.token_gradients, model, *w, batch) for model, w in pairs]
        )
        join = self.settings.join
        if join.how == 'mean':  # the same everywhere
            return join(each_NBLV)
        values_NB = jnp.stack([self._objective.values(model, *w, batch) for model, w in pairs])
        share_NB = jax.grad(lambda values_NB: jnp.sum(join(values_NB)))(values_NB)
        return jnp.einsum('NB,NBLV->BLV', share_NB, each_NBLV, precision='highest')

    def _read(self, weights: Sequence[_Weights], heads: Heads) -> list[tuple[Any, _Weights]]:
        """The proxies, each with its weights, as they read tails."""
        return [(behind(model, heads), own) for model, own in zip(self._models, weights, strict=True)]

    def _fitting(self, teacher: Params, batch: Batch, heads: Heads) -> Array:
        """bool [B, L, V]: the words that the teacher finds likely enough at a place, given what stands before it."""
        tokens_BL = jnp.asarray(batch.tokens_BL)
        positions_BL = positions(tokens_BL)
        log_p_BLV = log_softmax(behind(self._teacher, heads).apply(teacher, tokens_BL, positions_BL)[0])
        likely_BLV = log_p_BLV >= jnp.max(log_p_BLV, axis=-1, keepdims=True) + jnp.log(self.settings.floor)
        return jnp.roll(likely_BLV, 1, axis=1).at[:, 0].set(False)

    def _ascended(self, weights: Sequence[_Weights], batch: Batch, heads: Heads, open_BLV: Array) -> Array:
        """words_BL: the nearest open words, or the trace's own, after projected ascent in a ball around each place.

        Each proxy reads words in a space of its own; the ascent is in that of the first.
        """
        settings, (model, (params, given)) = self.settings, self._read(weights, heads)[0]
        tokens_BL, embedding_VD = jnp.asarray(batch.tokens_BL), influence.embedding(model, params)
        radius = settings.radius * jnp.mean(jnp.linalg.norm(embedding_VD, axis=-1))
        moved_BLD = jnp.zeros((*tokens_BL.shape, embedding_VD.shape[-1]))
        for _ in range(settings.ascents):
            slope_BLD = self._objective.slopes(influence.input_gradients, model, params, given, batch, moved_BLD)
            moved_BLD += 2 * radius / settings.ascents * slope_BLD / _length(slope_BLD)
            moved_BLD *= jnp.minimum(1.0, radius / _length(moved_BLD))
        own_BLV = jax.nn.one_hot(tokens_BL, embedding_VD.shape[0], dtype=bool)
        return nearest_words(embedding_VD[tokens_BL] + moved_BLD, embedding_VD, open_BLV | own_BLV)


def _length(x_BLD: Array) -> Array:
    """[B, L, 1], never 0."""
    return jnp.maximum(jnp.linalg.norm(x_BLD, axis=-1, keepdims=True), 1e-30)
