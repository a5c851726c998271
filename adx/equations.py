"""Arithmetic statements in text, such as '12 * 3 = 36', and whether they are true.

Exact: numbers are fractions, so '10 / 3 = 3.33' is false. What cannot be read with certainty is no statement: a side
with a unit or a variable inside, a comparison, an approximation, a term of something longer ('20% of 50 + 5 = 15').
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

Statements = Callable[[str], Sequence[tuple[str, bool]]]  # text -> every statement as written, and whether it is true

_LINE_START = re.compile(r'^\s*(?:[-*•–]\s+|\(?[0-9]{1,3}[.)]\s+)+')  # '2) 5 * 3 = 15' states nothing about 2
_BOLD = re.compile(r'(?<![0-9)\s])[^\S\n]*\*\*|\*\*(?![^\S\n]*[-0-9(])|^[^\S\n]*\*\*', re.MULTILINE)  # not '2**3'
_LATEX = (
    (re.compile(r'\\(?:times|cdot)(?![a-z])'), '*'),
    (re.compile(r'\\div(?![a-z])'), '/'),
    (re.compile(r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}'), r'((\1)/(\2))'),
    (re.compile(r'\\(?:left|right)(?![a-z])|\\[!,;: ]|\\[()\[\]]'), ' '),
    (re.compile(r'\{,\}(?=[0-9]{3})'), ','),
    (re.compile(r'\\%'), '%'),
    (re.compile(r'\\?[$€£¥]'), ''),  # money, and the borders of mathematics
)
_TOKEN = re.compile(
    r'(?P<number>[0-9]+ [0-9]+/[0-9]+(?![0-9.,/])|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?'
    r'|\.[0-9]+)'
    r'|(?P<operator>\*\*|[-+*/^−–×·÷]|(?<=[0-9)%])(?:\s*[xX]\s*(?=[0-9.])|\s+[xX]\s+(?=[-(])))|(?P<bracket>[()])|(?P<percent>%)'
    r'|(?P<other>[=<>!:~≠≤≥≈]*(?:[<>!:~≠≤≥≈]=|=[=<>~])[=<>!:~]*|[<>≠≤≥≈])|(?P<equals>=)'
    r"|(?P<word>\\?[^\W\d_][\w'’]*)|(?P<space>\s+)|(?P<mark>.)"
)
_OPERATORS = {'×': '*', '·': '*', 'x': '*', 'X': '*', '÷': '/', '−': '-', '–': '-', '**': '^'}
_MATH = {'number', 'operator', 'bracket', 'percent'}
_MARKS = frozenset(',;:.!?"\'“”‘’`[]{}|_#…→⇒—>')  # what a side may stand beside
# A number that follows belongs to them; so does one after a variable, a function or a command.
_BINDING = {
    'of', 'times', 'plus', 'minus', 'and', 'by', 'divided', 'multiplied', 'over', 'mod', 'modulo', 'from', 'than',
    'per', 'half', 'double', 'twice', 'triple', 'third', 'quarter', 'thirds', 'quarters', 'percent', 'cent', 'cents',
    'step', 'part', 'problem', 'question', 'case', 'log', 'ln', 'sqrt', 'root', 'sin', 'cos', 'tan',
}  # fmt: skip
_MAX_TOKENS, _MAX_DEPTH, _MAX_DIGITS, _MAX_POWER = 200, 40, 60, 64
_MAX_BASE, _MAX_BITS = 200, 2**14  # bits of what is raised to a power, and of any number on the way


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Side(NamedTuple):
    """One side of an equals sign. values: read with percent signs as hundredths, and as units."""

    text: str
    values: tuple[Fraction, Fraction]
    computes: bool


class _UnreadableError(Exception):
    pass


def statements(text: str) -> list[tuple[str, bool]]:
    """Every arithmetic statement of a text as it was read, in order, and whether it is true.

    A chain 'a = b = c' is 'a = b' and 'b = c'; at least one side of each must compute something. Percent signs are
    hundredths or units, whichever makes a statement true ('5% * 20 = 1', '100% - 20% = 80%').
    """
    found = []
    for line in _plain(text).split('\n'):
        sides = _sides(_LINE_START.sub('', line))
        for left, right in itertools.pairwise(sides):
            if left and right and (left.computes or right.computes):
                true = any(a == b for a, b in zip(left.values, right.values, strict=True))
                found.append((f'{left.text} = {right.text}', true))
    return found


def _plain(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _BOLD.sub('', text)


def _sides(line: str) -> list[_Side | None]:
    """What stands on both sides of each equals sign of a line, chain by chain; None between chains."""
    if '=' not in line:
        return []
    tokens = [_Token(str(m.lastgroup), m.group(), m.start(), m.end()) for m in _TOKEN.finditer(line)]
    tokens = [token for token in tokens if token.kind != 'space']
    equals = [i for i, token in enumerate(tokens) if token.kind == 'equals']
    sides: list[_Side | None] = []
    reached = -1  # where the side before ended
    for n, at in enumerate(equals):
        start = at
        while start - 1 > reached and tokens[start - 1].kind in _MATH:
            start -= 1
        if n == 0 or start - 1 != equals[n - 1]:
            sides += [None, _left(tokens, start, at)]
        end = at + 1
        while end < len(tokens) and tokens[end].kind in _MATH:
            end += 1
        closed = end < len(tokens) and tokens[end].kind == 'equals'
        sides.append(_middle(tokens[at + 1 : end]) if closed else _right(tokens, at + 1, end))
        reached = at
    return sides


def _left(tokens: Sequence[_Token], start: int, end: int) -> _Side | None:
    """The first side of a chain: what stands before it must not bind its first number."""
    if end - start > _MAX_TOKENS:
        return None
    inside = list(tokens[start:end])
    while inside and inside[0].text == '(' and _open(inside) > 0:
        inside.pop(0)  # '(3 + 4 = 7)'
    if not inside or (inside[0].kind == 'operator' and not (start == 0 and _is_sign(inside))):
        return None
    if inside[0].start == tokens[start].start and start and not _may_follow(tokens[start - 1], inside[0]):
        return None
    side = _middle(inside)
    named = start > 0 and tokens[start - 1].kind == 'word'
    return None if side and named and not side.computes else side  # 'week 2 = 35 + 35'


def _is_sign(inside: Sequence[_Token]) -> bool:
    return len(inside) > 1 and inside[0].text in '-−–' and inside[0].end == inside[1].start


def _may_follow(before: _Token, first: _Token) -> bool:
    beside = before.end == first.start
    if before.kind == 'word':
        variable = len(before.text) == 1 and before.text not in 'aAI'
        return not (beside or variable or before.text.startswith('\\') or before.text.lower() in _BINDING)
    if before.kind in ('equals', 'other'):
        return True
    return before.text in _MARKS and not (beside and before.text in ',.:\'’_')


def _right(tokens: Sequence[_Token], start: int, end: int) -> _Side | None:
    """The last side of a chain: what stands after it must not go on with it; a unit may ('7 eggs', '5 km/h')."""
    if end - start > _MAX_TOKENS:
        return None
    inside = list(tokens[start:end])
    after = tokens[end] if end < len(tokens) else None
    if after and len(inside) > 1 and inside[-1].text == '(':
        return _middle(inside[:-1])  # '= 7 (since ...'
    while len(inside) > 1 and inside[-1].text == ')' and _open(inside) < 0:
        inside.pop()
    last = inside[-1] if inside else None
    if after and last and not _may_precede(last, after, tokens[end + 1 :]):
        return None
    return _middle(inside)


def _may_precede(last: _Token, after: _Token, rest: Sequence[_Token]) -> bool:
    beside = last.end == after.start
    if after.kind != 'word':
        following = rest[0] if rest else None
        glued = beside and after.text in ',.:\'’_' and following and following.start == after.end
        if beside and after.text in '.…' and (after.text == '…' or (following and following.text == '.')):
            return False  # '3.33...' is rounded
        numbered = following is not None and glued and following.kind == 'number'
        return after.kind == 'other' or (after.text in _MARKS and not numbered)
    if after.text.startswith('\\') or after.text.lower() in _BINDING - {'and', 'from', 'per', 'than'}:
        return after.text.startswith('\\text')
    if (beside and len(after.text) == 1) or (after.text == 'and' and _is_fraction(rest)):
        return False
    words = next((i for i, token in enumerate(rest) if token.kind != 'word'), len(rest))
    going, beyond = rest[words : words + 1], rest[words + 1 : words + 2]
    if not going or going[0].kind not in ('operator', 'equals'):
        return True
    return going[0].text == '/' and bool(beyond) and beyond[0].kind == 'word'


def _is_fraction(tokens: Sequence[_Token]) -> bool:
    """Whether '2/3' or a bracket comes next: the rest of '5 and 2/3'."""
    return tokens[0].text == '(' or [token.text for token in tokens[1:2]] == ['/'] if tokens else False


def _open(tokens: Sequence[_Token]) -> int:
    """How many brackets are left open; negative where some were never opened."""
    return sum({'(': 1, ')': -1}.get(token.text, 0) for token in tokens)


def _middle(tokens: Sequence[_Token]) -> _Side | None:
    if not tokens or len(tokens) > _MAX_TOKENS:
        return None
    text = ''.join(f'{" " * (i > 0 and token.start > tokens[i - 1].end)}{token.text}' for i, token in enumerate(tokens))
    try:
        values = tuple(_Parser(tokens, percent).value() for percent in (Fraction(1, 100), Fraction(1)))
    except (_UnreadableError, ZeroDivisionError):
        return None
    signs = sum(token.kind == 'operator' for token in tokens) - (tokens[0].kind == 'operator')
    return _Side(text, (values[0], values[1]), signs > 0 or any(token.text == '(' for token in tokens[1:]))


def _bounded(value: Fraction, bits: int) -> Fraction:
    """The value, if it is small enough to go on with: who writes a text must not decide how long it is worked on."""
    if value.numerator.bit_length() + value.denominator.bit_length() > bits:
        raise _UnreadableError
    return value


class _Parser:
    """Precedence climbing: sums of products of powers of signed numbers. Raises _UnreadableError."""

    def __init__(self, tokens: Sequence[_Token], percent: Fraction):
        self.tokens, self.percent, self.at, self.depth = tokens, percent, 0, 0

    def value(self) -> Fraction:
        value = self.sum()
        if self.at < len(self.tokens):
            raise _UnreadableError
        return value

    def peek(self) -> str:
        if self.at == len(self.tokens):
            return ''
        text = self.tokens[self.at].text.strip()
        return _OPERATORS.get(text, text)

    def take(self) -> str:
        text = self.peek()
        self.at += 1
        return text

    def is_tight(self) -> bool:
        """Whether the operator that was just taken has no space around it."""
        around = self.tokens[self.at - 2 : self.at + 1]
        return len(around) == 3 and around[0].end == around[1].start and around[1].end == around[2].start

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ('+', '-'):
            value = _bounded(value + self.product() if self.take() == '+' else value - self.product(), _MAX_BITS)
        return value

    def product(self) -> Fraction:
        value, divided, loose = self.signed(), False, False
        while self.peek() in ('*', '/', '('):
            if self.peek() == '(' and divided:
                raise _UnreadableError  # 6/2(3) has two readings
            sign = self.take() if self.peek() != '(' else '*'
            if sign == '/':
                if loose and self.is_tight():
                    raise _UnreadableError  # '500 / 2/5' is meant as 500 / (2/5)
                divided, loose = True, not self.is_tight()
            other = self.signed()
            value = _bounded(value / other if sign == '/' else value * other, _MAX_BITS)
        return value

    def signed(self) -> Fraction:
        if self.peek() in ('-', '+'):
            sign = -1 if self.take() == '-' else 1
            if self.peek() in ('-', '+'):
                raise _UnreadableError
            return sign * self.power()
        return self.power()

    def power(self) -> Fraction:
        value = self.atom()
        if self.peek() != '^':
            return value
        self.take()
        negative = self.peek() == '-' and bool(self.take())
        exponent = self.atom()
        if self.peek() == '^' or exponent.denominator != 1 or abs(exponent) > _MAX_POWER or (not value and negative):
            raise _UnreadableError
        return _bounded(value, _MAX_BASE) ** (-int(exponent) if negative else int(exponent))

    def atom(self) -> Fraction:
        text = self.take()
        if text == '(':
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _UnreadableError
            value = self.sum()
            self.depth -= 1
            if self.take() != ')':
                raise _UnreadableError
        elif text and text[0] in '.0123456789' and len(text) <= _MAX_DIGITS:
            value = sum((Fraction(part) for part in text.replace(',', '').split()), Fraction(0))
        else:
            raise _UnreadableError
        if self.peek() == '%':
            self.take()
            value *= self.percent
        return value
