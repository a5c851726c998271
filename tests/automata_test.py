"""Spans recognised token by token, against regular expressions over the whole text."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest
import tokenizers

from adx import automata
from adx.automata import SPANS
from tests import tiny
from tests.generation_test import byte_fallback

CLOSED = {'final_answer': rb'\n', 'code_fence': rb'```', 'tool_call': rb'</tool_call>'}
FRAGMENTS = [
    '####', '#', '#####', '\n', '72', ' The answer is', ' final answer', 'Final Answer', '\\boxed{', '\\fbox{', '{',
    '}', '\\', '\\}', '\\\\', '```', '``', '`', '<tool_call>', '</tool_call>', '<tool_', 'call>', '<<', ' x', 'é',
    '\\box',
]  # fmt: skip


def inside(text: bytes, names) -> list[bool]:
    """Whether the text stands inside a span after each of its bytes."""
    result, at, name = [], 0, ''
    while at < len(text):
        if not name:
            openers = re.compile(b'|'.join(b'(' + b'|'.join(map(re.escape, SPANS[n][0])) + b')' for n in names))
            # The opener that is complete first; of overlapping ones no two end at the same byte.
            ends = [(m.end(), names[m.lastindex - 1]) for i in range(at, len(text)) if (m := openers.match(text, i))]
            end, name = min(ends, default=(len(text) + 1, ''))
            result += [False] * (min(end - 1, len(text)) - at) + [True] * (end <= len(text))
        elif name == 'boxed':
            depth, end = 1, at
            for match in re.finditer(rb'\\[\s\S]|[{}]', text[at:]):
                depth += {b'{': 1, b'}': -1}.get(match.group(), 0)
                depth, end = min(depth, automata.DEPTH), at + match.end()
                if not depth:
                    break
            end, name = (end, '') if not depth else (len(text) + 1, name)
            result += [True] * (min(end - 1, len(text)) - at) + [False] * (end <= len(text))
        else:
            match = re.compile(CLOSED[name]).search(text, at)
            end, name = (match.end(), '') if match else (len(text) + 1, name)
            result += [True] * (min(end - 1, len(text)) - at) + [False] * (end <= len(text))
        at = end
    return result


@pytest.mark.parametrize('names', [tuple(SPANS), *((name,) for name in SPANS)], ids='+'.join)
@pytest.mark.parametrize('tokenizer', [tiny.make_tokenizer(), byte_fallback()], ids=['byte_level', 'byte_fallback'])
def test_the_lifted_table_reads_as_regular_expressions_do(names, tokenizer):
    draw = random.Random(0)
    spans = automata.lift(names, tokenizer.token_bytes, tokenizer.size + 3)
    assert spans.table_V.dtype == np.uint8
    special = next(i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special)
    seen = set()
    for _ in range(300):
        text = ''.join(draw.choices(FRAGMENTS, k=draw.randrange(1, 14)))
        tokens = tokenizer.encode(text if tokenizer.template else text.replace(' ', '\u2581'))
        assert b''.join(tokenizer.token_bytes[i] for i in tokens) == text.encode()
        expected, state, length = inside(text.encode(), names), 0, 0
        for token in tokens:
            state = spans.table_V[spans.table_V[state, token], special]  # special tokens spell nothing
            length += len(tokenizer.token_bytes[token])
            assert spans.protected[state] == expected[length - 1], (text, length)
            seen.add((len(tokenizer.token_bytes[token]) > 1, bool(spans.protected[state])))
    assert {(False, True), (False, False)} <= seen
    assert np.all(spans.table_V[:, tokenizer.size :] == np.arange(len(spans.protected))[:, None])


def test_special_tokens_open_spans_by_their_names():
    tokenizer = tiny.make_tokenizer()
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(['<|python_tag|>'])
    tokenizer = dataclasses.replace(tokenizer, backend=backend)
    tag, (word, *_) = backend.token_to_id('<|python_tag|>'), tokenizer.encode('word')
    assert tokenizer.token_bytes[tag] == b''
    assert tokenizer.named_bytes[tag] == b'<|python_tag|>'
    assert tokenizer.named_bytes[word] == tokenizer.token_bytes[word]
    spans = automata.lift(('tool_call',), tokenizer.named_bytes, tokenizer.size)
    states = [0]
    for token in (word, tag, word):
        states.append(spans.table_V[states[-1], token])
    assert [bool(spans.protected[state]) for state in states] == [False, False, True, True]


def test_tokens_may_straddle_an_opener_and_open_in_their_middle():
    tokens = [b'so \\bo', b'xed{4', b'2} an', b'd #### 7\nno', b' `', b'``', b'a```', b'\\boxed{{}', b'}', b'']
    spans = automata.lift(tuple(SPANS), tokens, len(tokens))
    state, protected = 0, []
    for token in range(len(tokens)):
        state = spans.table_V[state, token]
        protected.append(bool(spans.protected[state]))
    assert protected == [False, True, False, False, False, True, False, True, False, False]


def test_braces_nest_to_their_depth():
    table, protected = automata.byte_automaton(('boxed',))
    for depth in range(1, automata.DEPTH + 3):
        state = 0
        for byte in b'\\boxed{' + b'{' * (depth - 1) + b'}' * (min(depth, automata.DEPTH) - 1):
            state = table[state, byte]
        assert protected[state]
        assert not protected[table[state, ord('}')]]
