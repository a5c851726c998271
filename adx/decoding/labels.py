"""Soft labels: the distribution that is served at every token of any given text.

All tokens of a text are read in one pass, without caches; rule, automaton of protected spans and noise then follow its
tokens as they would have followed those that were drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adx.batching import Batch, Example, batches
from adx.decoding import loop
from adx.decoding.engine import Engine
from adx.decoding.ensemble import Weights
from adx.decoding.slots import request_rows
from adx.types import Array, Request

ROWS = 8  # texts of one pass


class Labeller:
    """The compiled labels of an engine's models and rules, `count` candidates a token or all of the vocabulary."""

    def __init__(self, engine: Engine, count: int = 0):
        self.engine = engine
        vocab = engine.ensemble.teacher.config.vocab_size
        self.count = min(count or vocab, vocab)
        self._labels = jax.jit(self._read)

    def __call__(
        self, requests: Mapping[str, Request], examples: Sequence[Example]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yields (id, int32 ids_LC, float32 log_probs_LC), likeliest first, L the length of an example's completion.

        requests: by the examples' ids; rule, sampling numbers and noise are theirs. Log-probs are MASKED outside the
        truncation set.
        """
        for inside, batch in batches(examples, ROWS):
            asked = [requests[example.id] for example in inside]
            asked = [dataclasses.replace(r, tokens=e.prompt) for r, e in zip(asked, inside, strict=True)]
            rows = request_rows(asked + asked[-1:] * (ROWS - len(asked)), self.engine.seed)
            ids_BLC, log_probs_BLC = map(np.asarray, self._labels(self.engine.weights, batch, rows))
            for b, example in enumerate(inside):
                length = len(example.completion)
                yield example.id, ids_BLC[b, :length], log_probs_BLC[b, :length]

    def _read(self, weights: Weights, batch: Batch, rows: loop.Rows) -> tuple[Array, Array]:
        ensemble, constants = self.engine.ensemble, self.engine.constants
        tokens_BL = jnp.asarray(batch.tokens_BL)
        logits_BLV, logits_NBLV, tangents_MBLV = ensemble.whole(weights, tokens_BL)
        rows_B, last = jnp.arange(ROWS), tokens_BL.shape[1] - 1

        def step(rows: loop.Rows, _: None) -> tuple[loop.Rows, tuple[Array, Array]]:
            column_B = jnp.minimum(rows.position_B, last)  # past its end a row goes on, and nobody looks
            token_B = tokens_BL[rows_B, jnp.minimum(column_B + 1, last)]
            tangents_MBV = None if tangents_MBLV is None else tangents_MBLV[:, rows_B, column_B]
            said = logits_BLV[rows_B, column_B], logits_NBLV[:, rows_B, column_B], tangents_MBV
            served = loop.serve(rows, constants, *said)
            rows = loop.advance(rows, constants, token_B, served.state)
            log_probs_BC, ids_BC = lax.top_k(served.served_V, self.count)
            return rows, (ids_BC, log_probs_BC)

        _, (ids_LBC, log_probs_LBC) = lax.scan(step, rows, None, length=last)
        return jnp.swapaxes(ids_LBC, 0, 1), jnp.swapaxes(log_probs_LBC, 0, 1)
