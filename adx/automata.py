"""Recognising spans of a text as it is drawn: byte automata, lifted to tokens.

The device holds one int of state per row and a table [states, V]; the host sees a token a chunk too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from adx import struct

DEPTH = 8  # braces that may nest in a box; deeper ones count as this deep, and the box ends early
BRACES = b'}'  # the closer that counts

# What opens a span, up to the end of the opener, and what closes it. 'Final answer' and 'The answer is' begin words
# in either case.
SPANS: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    'final_answer': ((b'####', b'inal answer', b'inal Answer', b'he answer is'), b'\n'),
    'boxed': ((b'\\boxed{', b'\\fbox{'), BRACES),
    'code_fence': ((b'```',), b'```'),
    # The last two, of Llama 3 and Mistral, are not closed before the row's end.
    'tool_call': ((b'<tool_call>', b'<|python_tag|>', b'[TOOL_CALLS]'), b'</tool_call>'),
}


@struct.dataclass
class Spans:
    """table_V [states, V]: the state after a token; protected [states]: bool, inside a span. State 0 is the start."""

    table_V: Any
    protected: Any


class _State(NamedTuple):
    """span: the one we are in, '' outside. seen: the start of an opener or closer read so far. depth: open braces."""

    span: str = ''
    seen: bytes = b''
    depth: int = 0


def _longest_start(text: bytes, words: Sequence[bytes]) -> bytes:
    """The longest end of `text` that begins one of the words without completing it."""
    ends = (text[i:] for i in range(len(text) + 1))
    return next(end for end in ends if any(end != word and word.startswith(end) for word in words))


def _step(state: _State, byte: bytes, names: Sequence[str]) -> _State:
    text = state.seen + byte
    if not state.span:
        for name in names:
            if text.endswith(SPANS[name][0]):
                return _State(name, b'', 1)
        return _State('', _longest_start(text, [opener for name in names for opener in SPANS[name][0]]))
    closer = SPANS[state.span][1]
    if closer != BRACES:
        return _State() if text.endswith(closer) else _State(state.span, _longest_start(text, [closer]), 1)
    if state.seen or byte not in (b'\\', b'{', b'}'):  # an escaped brace does not nest
        return _State(state.span, b'', state.depth)
    if byte == b'\\':
        return _State(state.span, byte, state.depth)
    depth = min(state.depth + 1, DEPTH) if byte == b'{' else state.depth - 1
    return _State(state.span, b'', depth) if depth else _State()


def byte_automaton(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(table [states, 256], protected [states]) of the spans of these names, numbered from the start on."""
    states = [_State()]
    rows = []
    for state in states:  # grows as states are reached
        after = [_step(state, bytes([byte]), names) for byte in range(256)]
        states += [new for new in dict.fromkeys(after) if new not in states]
        rows.append([states.index(new) for new in after])
    return np.array(rows), np.array([bool(state.span) for state in states])


def lift(names: Sequence[str], token_bytes: Sequence[bytes], size: int) -> Spans:
    """The automaton of these spans over a vocabulary padded to `size` ids; a token without bytes changes no state.

    A token that completes an opener was drawn outside the span, whatever else it spells; one that ends a span and
    goes on was drawn inside.
    """
    table, protected = byte_automaton(names)
    state_V = np.repeat(np.arange(len(table))[:, None], size, axis=1)
    lengths = np.array([len(spelt) for spelt in token_bytes], np.int64)
    for at in range(lengths.max(initial=0)):
        ids = np.flatnonzero(lengths > at)
        read = np.array([token_bytes[i][at] for i in ids.tolist()])
        state_V[:, ids] = table[state_V[:, ids], read]
    return Spans(state_V.astype(np.uint8 if len(table) <= 256 else np.uint16), protected)
