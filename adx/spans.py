"""Token ids as spans of text that are safe to show, with what is recorded of each."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from adx.types import Trace

# Ids -> the text each token adds, '' for one whose character a later token completes.
Pieces = Callable[[tuple[int, ...]], list[str]]

# Lower ends of the KL shades in nats, about half a decade each: most tokens hardly move and a few move far.
SHADES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MAX_PARTS = 4  # a UTF-8 character has at most four bytes, hence at most four tokens


@dataclasses.dataclass(frozen=True)
class Span:
    """One token as it is shown, or the few tokens that spell one character between them.

    lead, text, tail: what is shown; white space at the ends stands outside the mark. plain: the same without
    signs for marked white space, which would give the mark away where marks are left out.
    kl: nats, the largest of its tokens; None where unrecorded. note: one line a token, for a tooltip.
    """

    text: str
    plain: str
    lead: str = ''
    tail: str = ''
    intervened: bool = False
    kl: float | None = None
    note: str = ''

    @property
    def shade(self) -> int:
        """0 (below SHADES[0], or not recorded) to len(SHADES)."""
        return sum(self.kl >= low for low in SHADES) if self.kl is not None else 0


def visible(text: str) -> str:
    """`text` with control, direction and surrogate characters spelt out, so that showing it has no effect.

    Newlines stay, tabs become four spaces, and the two joiners that Indic and Persian script need stay.
    """
    return ''.join(map(_visible, text.replace('\r\n', '\n')))


def _visible(char: str) -> str:
    if char in '\n\u200c\u200d' or unicodedata.category(char) not in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp'):
        return char
    if char == '\t':
        return '    '
    return chr(0x2400 + ord(char)) if ord(char) < 0x20 else f'<U+{ord(char):04X}>'


def token_pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """The text each token adds, from a tokenizer's `decode`; joined, the pieces are the decoded text.

    A token that ends inside a UTF-8 character adds '' and the one that completes it adds the character.
    Decoding starts one piece back: tokenizers that mark words drop the space of whatever stands first.
    """
    pieces, start, done = [], 0, 0
    for end in range(1, len(tokens) + 1):
        before, after = decode(tokens[start:done]), decode(tokens[start:end])
        unfinished = after.endswith('\ufffd') and end - done < MAX_PARTS and end < len(tokens)
        pieces.append('' if unfinished else after[len(before) :])
        if not unfinished:
            start, done = done, end
    return pieces


def make_spans(trace: Trace, pieces: Pieces) -> Iterator[Span]:
    """The spans of a trace, in order; tokens without text join the next one that has some.

    Raises ValueError unless `pieces` gives one text a token.
    """
    texts = pieces(trace.tokens)
    if len(texts) != len(trace.tokens):
        given = f'{len(texts)} text pieces for {len(trace.tokens)} tokens'
        raise ValueError(f'{trace.request_id}: {given}; give one a token')
    kls = trace.statistics.get('kl')
    marks = trace.statistics.get('intervened', [0] * len(texts))
    first = 0
    for i, text in enumerate(texts):
        if text or i + 1 == len(texts):
            run = range(first, i + 1)
            kl = None if kls is None else max(kls[at] for at in run)
            note = '\n'.join(_note(trace, at, pieces) for at in run) if trace.statistics else ''
            yield _span(text, any(marks[at] for at in run), kl, note)
            first = i + 1


def _span(piece: str, intervened: bool, kl: float | None, note: str) -> Span:
    piece = visible(piece)
    text = piece.strip(' \n')
    if text or not intervened:
        lead, _, tail = piece.partition(text) if text else ('', '', '')
        return Span(text or piece, piece, lead, tail, intervened, kl, note)
    # White space alone would carry an invisible mark.
    signs = piece.replace(' ', '␣').replace('\n', '↵') or '∅'
    return Span(signs, piece, '', '\n' * piece.count('\n'), intervened, kl, note)


def _note(trace: Trace, at: int, pieces: Pieces) -> str:
    """What the record knows about token `at`, in one line."""
    known = {name: values[at] for name, values in trace.statistics.items()}
    parts = [f'token {at}, id {trace.tokens[at]}']
    if 'teacher_log_prob' in known:
        log_prob = known['teacher_log_prob']
        parts.append(f'teacher log-prob {log_prob:.2f} (p = {math.exp(log_prob):.2g})')
    if 'teacher_rank' in known:
        parts.append(f'teacher rank {known["teacher_rank"]}')
    if 'kl' in known:
        parts.append(f'KL {known["kl"]:.3f} nats')
    if 'intervened' in known:
        parts.append('intervened' if known['intervened'] else 'as the teacher')
    if 'top_ids' in known and 'top_log_probs' in known:
        top = list(zip(known['top_ids'], known['top_log_probs'], strict=True))[:5]
        served = (f'{visible(pieces((token,))[0])!r} {math.exp(log_prob):.2f}' for token, log_prob in top)
        parts.append(f'served {", ".join(served)}')
    return ' · '.join(parts)
