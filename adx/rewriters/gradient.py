"""Tokens exchanged where that harms proxies that learn them (arXiv 2602.15143, section 3).

The paper published no hyperparameters of its gradient variants: these are ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import jax.numpy as jnp
import numpy as np
from jax import lax

from adx.aggregation import Aggregation
from adx.drafts import Draft, Tools
from adx.numerics import MASKED
from adx.types import Array, Trace, check_choice, check_count, check_range

OPERATORS = frozenset('+-*/=<>^%$\\{}#×÷−')
COMPUTING = """
    plus minus times over divided multiplied multiply divide add added subtract subtracted equals equal sum difference
    product quotient half halves twice thrice double doubled doubles triple tripled triples third thirds quarter
    quarters percent dozen dozens pair pairs more less fewer zero one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy
    eighty ninety hundred thousand million billion
"""
COUNTED = frozenset(COMPUTING.split())  # words that compute, or say how many
# Letters that compute: an x between numbers, names of LaTeX commands, and symbols of one letter.
SYMBOLS = re.compile(r'(?<=[\d)$%])\s*[xX](?=\s*[\d($])|\\[A-Za-z]+|(?<!\w)(?![aAI]\b)[A-Za-z](?!\w)')
OBJECTIVES = ('bilevel', 'harm', 'difference', 'loss', 'random')
STEPS = ('flip', 'embedding')


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A search for the words that harm most, round after round; each round accepts what exact evaluation confirms.

    objective: see influence.py; 'bilevel' takes a step of size eta on each trace and reads the loss of `holdout` traces
      after it, 'harm' its first order, 'difference' the same by copies eps apart, 'loss' the trace's own loss, and
      'random', the control, a number drawn for every text.
    step: 'flip' ranks all exchanges by their slope. 'embedding' moves what is read up the slope in `ascents` steps
      within `radius` (in mean lengths of an embedding) and takes the nearest words, targets held fixed meanwhile.
    rounds: >= 1, of the search; edits: >= 1, exchanges that are evaluated exactly in each. holdout, ascents: >= 1; eta,
      eps, radius: > 0.
    floor: (0, 1], of the teacher's likeliest word at a place: words below that share of it are no candidates.
    protected: words that stay, beside all that holds a digit or an operator, letters and words that stand for one,
      marks, and the final answer.
    join: of the proxies.
    """

    objective: str = 'harm'
    step: str = 'flip'
    rounds: int = 4
    edits: int = 8
    floor: float = 0.01
    eta: float = 0.1
    eps: float = 1e-2
    holdout: int = 8
    radius: float = 1.0
    ascents: int = 4
    protected: tuple[str, ...] = ()
    join: Aggregation = Aggregation()

    needs = ('edit',)

    def check(self) -> None:
        check_choice('Gradient.objective', self.objective, OBJECTIVES)
        check_choice('Gradient.step', self.step, STEPS)
        for name in ('rounds', 'edits', 'holdout', 'ascents'):
            check_count(f'Gradient.{name}', getattr(self, name))
        check_range('Gradient.floor', self.floor, 0.0, 1.0, open_low=True)
        for name in ('eta', 'eps', 'radius'):
            check_range(f'Gradient.{name}', getattr(self, name), 0.0, open_low=True)
        self.join.check()

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        """Every text on the way of the search, the last first: what the gates refuse falls back to fewer edits."""
        return tools.need('edit', 'gradient')(traces, self)


def word_mask(token_bytes: Sequence[bytes], control_ids: AbstractSet[int], size: int) -> np.ndarray:
    """bool [size]: the ids of words and parts of them, without digits, operators, line ends, what has no letter, and
    the words that compute: neither may be exchanged, nor come in exchange.
    """
    words = np.zeros(size, bool)
    for i, spelt in enumerate(token_bytes):
        text = spelt.decode(errors='replace')
        fixed = any(char.isdigit() or char in OPERATORS or char in '\n\ufffd' for char in text)
        words[i] = any(map(str.isalpha, text)) and not fixed and i not in control_ids
        words[i] &= text.strip().lower() not in COUNTED
    return words


def editable(
    tokens: Sequence[int], pieces: Sequence[str], reasoning: int, words_V: np.ndarray, protected: Sequence[str]
) -> list[bool]:
    """Which tokens of a completion may change. pieces: the text that each adds; reasoning: characters before the final
    answer. A protected word stays as a token, and as a word that several tokens spell."""
    text, ends = ''.join(pieces), np.cumsum([len(piece) for piece in pieces]).tolist()
    held = {at for match in _held(text, protected) for at in range(*match.span())}
    return [
        bool(words_V[token])
        and end <= reasoning
        and piece.strip() not in protected
        and held.isdisjoint(range(end - len(piece), end))
        for token, piece, end in zip(tokens, pieces, ends, strict=True)
    ]


def _held(text: str, protected: Sequence[str]) -> Iterator[re.Match[str]]:
    """What stays of a text, however it is cut into tokens."""
    for word in protected:
        yield from re.finditer(rf'(?<!\w){re.escape(word)}(?!\w)', text)
    yield from SYMBOLS.finditer(text)
    yield from (match for match in re.finditer(r'[A-Za-z]+', text) if match[0].lower() in COUNTED)


def best_flips(slopes_BLV: Array, tokens_BL: Array, open_BLV: Array, count: int) -> tuple[Array, Array, Array]:
    """(places_BM, words_BM, gains_BM): the M exchanges of the largest first-order gain, one a place, the best first.

    M is `count`, or L where that is less. open_BLV: which word may stand at which place. gains are MASKED where a row
    has fewer.
    """
    own_BL = jnp.take_along_axis(slopes_BLV, tokens_BL[..., None], axis=-1)
    gains_BLV = jnp.where(open_BLV, slopes_BLV - own_BL, MASKED)
    words_BL, best_BL = jnp.argmax(gains_BLV, axis=-1), jnp.max(gains_BLV, axis=-1)
    gains_BM, places_BM = lax.top_k(best_BL, min(count, best_BL.shape[1]))
    return places_BM, jnp.take_along_axis(words_BL, places_BM, axis=-1), gains_BM


def nearest_words(x_BLD: Array, embedding_VD: Array, open_BLV: Array) -> Array:
    """words_BL: the open word whose embedding lies nearest to what is read, by Euclidean distance; at a place without
    one the first of the vocabulary."""
    square_V = jnp.sum(jnp.square(embedding_VD), axis=-1)
    near_BLV = 2 * jnp.einsum('BLD,VD->BLV', x_BLD, embedding_VD, precision='highest') - square_V
    return jnp.argmax(jnp.where(open_BLV, near_BLV, -jnp.inf), axis=-1)


def single_edits(tokens_BL: np.ndarray, places_BM: np.ndarray, words_BM: np.ndarray) -> np.ndarray:
    """tokens_BML: each row with one of its exchanges."""
    rows, edits = places_BM.shape
    tokens_BML = np.repeat(tokens_BL[:, None], edits, axis=1)
    tokens_BML[np.arange(rows)[:, None], np.arange(edits), places_BM] = words_BM
    return tokens_BML


def nested_edits(
    tokens_BL: np.ndarray, places_BM: np.ndarray, words_BM: np.ndarray, gains_BM: np.ndarray
) -> np.ndarray:
    """tokens_BKL: each row with its 2, 4, ... best exchanges together, those of positive gain only; itself where it has
    not two of them. K may be 0.
    """
    order_BM = np.argsort(-gains_BM, axis=1, kind='stable')
    places_BM, words_BM, gains_BM = (np.take_along_axis(x, order_BM, axis=1) for x in (places_BM, words_BM, gains_BM))
    sizes = nested_sizes(places_BM.shape[1])
    tokens_BKL = np.repeat(tokens_BL[:, None], len(sizes), axis=1)
    for row, places in enumerate(places_BM):
        helpful = int(np.sum(gains_BM[row] > 0))
        for k, size in enumerate(sizes if helpful > 1 else ()):
            taken = slice(0, min(size, helpful))
            tokens_BKL[row, k, places[taken]] = words_BM[row, taken]
    return tokens_BKL


def nested_sizes(edits: int) -> list[int]:
    """2, 4, ... and all of them; none where there is but one, which was tried alone."""
    sizes = [1 << i for i in range(1, edits.bit_length()) if 1 << i < edits]
    return [*sizes, edits] if edits > 1 else []
