"""The device side of decoding: slots, the chunk of steps, inserting prefilled prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adx import numerics, struct
from adx.automata import Spans
from adx.decoding import sampling
from adx.decoding.ensemble import Caches, Ensemble, Weights
from adx.types import Array, Defence, Sampling, State

RECORDS = ('none', 'scalars', 'top')
IDLE, POISON = -1, -2  # what stands for a token of a row that idles, or whose teacher gave no finite numbers
TOP = 20  # how many served log-probs a record of 'top' keeps per token


@struct.dataclass
class Rows:
    """What a slot holds about its row; every leaf has a leading axis B.

    token_B: the last token, not yet read by the models, and position_B its index in the sequence.
    end_B: the position at which the row has all its new tokens. done_B: finished or empty; such a row idles.
    key_B: uint32 [B, 2], the row's PRNG key data. defended_B: bool, False serves the teacher.
    span_B: int32, the state of the run's automaton of protected spans (Constants.spans), 0 before the first token.
    """

    token_B: Array
    position_B: Array
    end_B: Array
    done_B: Array
    key_B: Array
    defended_B: Array
    span_B: Array
    sampling: Sampling
    defence: Defence
    state: State


def start(ensemble: Ensemble, defence: Defence, slots: int, cache_length: int) -> tuple[Rows, Caches]:
    """All slots idle, and none truncates. `defence` gives the structure; its numbers are zeroed."""

    def zeros(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((slots, *jnp.shape(x)), dtype or jnp.asarray(x).dtype), tree)

    rows = Rows(
        token_B=jnp.zeros(slots, jnp.int32),
        position_B=jnp.zeros(slots, jnp.int32),
        end_B=jnp.zeros(slots, jnp.int32),
        done_B=jnp.ones(slots, bool),
        key_B=jnp.zeros((slots, 2), jnp.uint32),
        defended_B=jnp.zeros(slots, bool),
        span_B=jnp.zeros(slots, jnp.int32),
        sampling=jax.tree.map(lambda x: jnp.full(slots, x, jnp.float32), Sampling()),  # zeros would ask for a top-p
        defence=zeros(defence, jnp.float32),
        state=zeros(defence.init()),
    )
    return place_rows(ensemble, rows), ensemble.empty_caches(slots, cache_length)


def place_rows(ensemble: Ensemble, rows: Rows) -> Rows:
    """Constrains every leaf to the teacher's split of rows, so that all programs agree on it."""
    return jax.tree.map(lambda x: ensemble.teacher_layout.shard(x, 'B' + '.' * (x.ndim - 1)), rows)


def insert(
    ensemble: Ensemble, rows: Rows, caches: Caches, new: Rows, prefix: Caches, sources: Array, targets: Array
) -> tuple[Rows, Caches]:
    """Puts prefilled prompts into slots: row sources[i] of `prefix` goes to slot targets[i]; targets past the last
    slot are dropped. `new` has the rows' numbers in the order of `targets`."""
    rows = jax.tree.map(lambda old, x: old.at[targets].set(x, mode='drop'), rows, new)
    return place_rows(ensemble, rows), ensemble.place(caches.insert(prefix, sources, targets))


def statistics(served: sampling.Served, record: str) -> dict[str, Array]:
    """Per-row numbers about the emitted token: see the keys below; teacher_rank 0 is the teacher's first choice.

    fallback, 1 where the row had no finite proxy, is there whatever is recorded.
    """
    fallback = {'fallback': served.fallback.astype(jnp.int32)}
    if record == 'none':
        return fallback
    own_B = jnp.take_along_axis(served.teacher_V, served.token[:, None], axis=-1)
    chosen_B = jnp.take_along_axis(served.served_V, served.token[:, None], axis=-1)
    record_of = fallback | {
        'intervened': (served.token != served.undefended).astype(jnp.int32),
        'log_prob': chosen_B[:, 0],
        'teacher_log_prob': own_B[:, 0],
        'teacher_rank': jnp.sum(served.teacher_V > own_B, axis=-1),
        'kl': numerics.kl(served.served_V, served.teacher_V),
    }
    if record == 'top':
        kept = min(TOP, served.served_V.shape[-1])
        record_of['top_log_probs'], record_of['top_ids'] = lax.top_k(served.served_V, kept)
    return record_of


def serve(
    rows: Rows, constants: Constants, logits_BV: Array, logits_NBV: Array, tangents_MBV: Array | None
) -> sampling.Served:
    """What every row is served next, from what `Ensemble.step` says."""
    key_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key_B), rows.position_B)
    spans = constants.spans
    plays_B = rows.defended_B if spans is None else rows.defended_B & ~spans.protected[rows.span_B]
    playing = dataclasses.replace(rows, defended_B=plays_B)
    return sampling.serve(logits_BV, logits_NBV, playing, key_B, constants.protected_V, tangents_MBV)


def advance(rows: Rows, constants: Constants, token_B: Array, state: State) -> Rows:
    """The rows one token further on, with the state that their rule then has."""
    spans = constants.spans
    span_B = rows.span_B if spans is None else spans.table_V[rows.span_B, token_B].astype(jnp.int32)
    return dataclasses.replace(rows, span_B=span_B, token_B=token_B, position_B=rows.position_B + 1, state=state)


def chunk(
    ensemble: Ensemble, weights: Weights, rows: Rows, caches: Caches, constants: Constants, steps: int, record: str
) -> tuple[Rows, Caches, Array, dict[str, Array]]:
    """`steps` tokens for every live row: (rows, caches, tokens_TB, statistics [T, B]); IDLE where a row does.

    A row that is poisoned ends with POISON.
    """

    def step(carry: tuple[Rows, Caches], _: None):
        rows, caches = carry
        *said, caches = ensemble.step(weights, caches, rows.token_B, rows.position_B)
        served = serve(rows, constants, *said)
        live_B = ~rows.done_B
        moved = advance(rows, constants, served.token, served.state)
        ended_B = jnp.isin(served.token, constants.eos) | (moved.position_B >= rows.end_B) | served.poisoned
        after = jax.tree.map(lambda new, old: _where(live_B, new, old), moved, rows)
        after = dataclasses.replace(after, done_B=rows.done_B | ended_B)
        tokens_B = jnp.where(live_B, jnp.where(served.poisoned, POISON, served.token), IDLE)
        return (after, caches), (tokens_B, statistics(served, record))

    (rows, caches), (tokens_TB, recorded) = lax.scan(step, (rows, caches), None, length=steps)
    # Every process reads the results whole.
    whole = ensemble.teacher_layout
    tokens_TB, recorded = jax.tree.map(lambda x: whole.shard(x, '.' * x.ndim), (tokens_TB, recorded))
    return place_rows(ensemble, rows), caches, tokens_TB, recorded


@struct.dataclass
class Constants:
    """What is the same for all rows of a run: eos [E] token ids, protected_V bool, and the spans in which the teacher
    is served, None for a program without any."""

    eos: Array
    protected_V: Array
    spans: Spans | None = None


def _where(condition_B: Array, x: Array, y: Array) -> Array:
    return jnp.where(condition_B.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
