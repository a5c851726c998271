"""Spans: characters stay whole, marks stay visible, and nothing in a text acts on what shows it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adx.spans import SHADES, Span, make_spans, token_pieces, visible
from adx.types import Trace

# Bytes as tokens: the hardest case, where every character beyond ASCII is split.
to_ids = lambda text: tuple(text.encode())  # noqa: E731
from_ids = lambda ids: bytes(ids).decode(errors='replace')  # noqa: E731


def make_trace(tokens: tuple[int, ...], **statistics: list) -> Trace:
    return Trace(
        request_id='d/test/0/0/s', messages=(), text='', reasoning='', answer='', tokens=tokens, stop='eos',
        prompt_tokens=1, defence={'type': 'x'}, sampling={}, seed=0, statistics=statistics,
    )  # fmt: skip


def spans_of(texts: list[str], **statistics: list) -> list[Span]:
    trace = make_trace(tuple(range(len(texts))), **statistics)
    return list(make_spans(trace, lambda ids: [texts[i] for i in ids]))


@given(st.text(alphabet=st.characters(exclude_categories=['Cs']), max_size=20))
def test_pieces_join_to_the_text_and_never_split_a_character(text):
    pieces = token_pieces(from_ids, to_ids(text))
    assert len(pieces) == len(text.encode())
    assert ''.join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


@given(st.binary(max_size=20))
def test_pieces_of_broken_bytes_are_one_a_token(data):
    assert len(token_pieces(from_ids, tuple(data))) == len(data)


def test_pieces_keep_the_space_that_a_decoder_strips_at_the_start():
    words = ['▁one', '▁two', '▁three']
    decode = lambda ids: ''.join(words[i] for i in ids).replace('▁', ' ').removeprefix(' ')  # noqa: E731
    assert token_pieces(decode, (0, 1, 2)) == ['one', ' two', ' three']


@given(st.text())
def test_visible_text_cannot_act(text):
    shown = visible(text)
    kinds = {unicodedata.category(char) for char in shown if char not in '\n\u200c\u200d'}
    assert kinds.isdisjoint({'Cc', 'Cf', 'Cs', 'Zl', 'Zp'})
    shown.encode()  # a lone surrogate could not be written


def test_visible_spells_out_what_it_takes_away():
    assert visible('\x1b[31m\x9b\u202e\ta\r\nb\r') == '␛[31m<U+009B><U+202E>    a\nb␍'


def test_tokens_of_one_character_become_one_span_with_the_strongest_record():
    tokens = to_ids('a😀b')
    pieces = lambda ids: token_pieces(from_ids, ids)  # noqa: E731
    trace = make_trace(tokens, intervened=[0, 0, 1, 0, 0, 0], kl=[0.0, 0.5, 2.0, 0.1, 0.2, 0.0])
    spans = list(make_spans(trace, pieces))
    assert [(span.text, span.intervened, span.kl) for span in spans] == [
        ('a', False, 0.0), ('😀', True, 2.0), ('b', False, 0.0),
    ]  # fmt: skip
    assert len(spans[1].note.split('\n')) == 4


def test_white_space_stands_outside_a_mark_but_is_shown_when_it_is_the_token():
    marked = spans_of([' the', '\n\n', ' ', ''], intervened=[1, 1, 1, 1])
    assert [(span.lead, span.text, span.tail) for span in marked] == [
        (' ', 'the', ''), ('', '↵↵', '\n\n'), ('', '␣', ''), ('', '∅', ''),
    ]  # fmt: skip
    assert [span.plain for span in marked] == [' the', '\n\n', ' ', '']
    assert [span.text for span in spans_of(['\n\n'], intervened=[0])] == ['\n\n']


def test_a_note_holds_the_record_of_its_token():
    (span,) = spans_of(
        [' x'], intervened=[1], teacher_log_prob=[-0.693147], teacher_rank=[3], kl=[0.25],
        top_ids=[[0]], top_log_probs=[[0.0]],
    )  # fmt: skip
    assert span.note == (
        'token 0, id 0 · teacher log-prob -0.69 (p = 0.5) · teacher rank 3 · KL 0.250 nats · intervened · '
        "served ' x' 1.00"
    )


def test_without_a_record_there_is_neither_mark_nor_note():
    assert spans_of(['x']) == [Span('x', 'x')]


@pytest.mark.parametrize(
    ('kl', 'shade'), [(None, 0), (0.0, 0), (0.0099, 0), (0.01, 1), (0.5, 4), (1e9, len(SHADES))]
)
def test_shades_are_the_thresholds_passed(kl, shade):
    assert Span('x', 'x', kl=kl).shade == shade


def test_a_wrong_number_of_pieces_is_refused():
    with pytest.raises(ValueError, match='2 text pieces for 1 tokens'):
        list(make_spans(make_trace((7,)), lambda ids: ['a', 'b']))
