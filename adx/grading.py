r"""Answer extraction and graders. One frozen extractor serves every arm of a comparison.

A *final-answer form* is `\boxed{x}`, `#### x` or a phrase such as `final answer is x`. Strict extraction
takes the last complete one: a box that never closes, or a phrase that a truncated text breaks off, states
nothing. Lenient extraction takes the last number. Numbers are compared as exact fractions.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction

from adx.errors import ConfigError, extra

LETTERS = tuple('ABCDEFGHIJ')  # of a multiple choice

# 1,000 and LaTeX's 1{,}000 are grouped; 1,5 is no number of this grammar.
_GROUP = r'(?:,|\{,\})[0-9]{3}'
_PLAIN = rf'(?:[0-9]{{1,3}}(?:{_GROUP})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)'
_CURRENCY = r'(?:\\?[$€£¥]\s*)?'
_FRAC = r'\\[dt]?frac\s*(?:\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])([0-9])(?![0-9]))'
_ANY_FRAC = re.sub(r'\((?!\?)', '(?:', _FRAC)
# In order: 2\frac{1}{3}; 2 1/3; 1/3; \frac{1}{3}; 1,234.5. A sign is attached, so '16 - 5' holds 16 and 5.
_NUMBER = re.compile(
    rf'(?<![\w/^.])[-+−]?{_CURRENCY}[-+−]?'
    rf'(?:[0-9]+\s*{_ANY_FRAC}|[0-9]+\s+[0-9]+\s*/\s*[0-9]+|{_PLAIN}\s*/\s*{_PLAIN}|{_ANY_FRAC}|{_PLAIN})'
)
# After a number these make it a term of something longer: 3 + 4, 2^5, 8\pi, 3x, 2:30, 5 or 6, 1,5.
_CONTINUES = re.compile(
    r'\s*[-+−–*×·/^:<>]\s*(?:[0-9(${\\]|[a-z](?![a-z]))|\s*\\(?!text|mathrm|mbox)[a-z]|[,.][0-9]|\s+[0-9]'
    r'|[abeijknpqrtuvwxyzπ](?![a-z])|[_0-9]|\s*(?:,|;|or\b|and\b|to\b)\s*[-$\\]*[0-9]'
)
_WORDS = re.compile(r'[A-Za-z\s,:\'’~≈*]*')
_MAX_DIGITS = 300  # a model stuck on one digit states no number, and int() refuses 4300

_BRACE = re.compile(r'\\\\|\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]')
_HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*([^\n]+)')
_HEADING = re.compile(r'\W*(?:[0-9]+|[A-J])\s*[.):]\s+\w')  # '#### 1. Find the eggs' is markdown, no answer
# A colon states an answer after 'final answer' or at the start of a line: 'check our answer: ...' does not.
# What follows is looked at and not consumed, so that a second phrase on the line is found too.
_PHRASE = re.compile(
    r'(?:\banswer\b\**\s+is\b(?:\s+then\b)?\s*:?|(?:^[ \t*]*|\bfinal )answer\b\**\s*[:=])'
    r'\**\s*(?=([^\n]{1,300}))',
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r'[.?](?=[*"”’]*(?:\s|$))')
_REMARK = re.compile(r'(?:in)?correct\b|right\b|wrong\b|not\b|clear\b|reasonable\b', re.IGNORECASE)

_LETTER = re.compile(r'(?:\\[a-z]+\{|[^\w\\])*+(?:[Oo]ption|[Cc]hoice)?\W*+([A-J])(?![\w\'’])')
_LONE_LETTER = re.compile(r'^[^\w\n]*([A-J])[^\w\n]*$', re.MULTILINE)


# ------------------------------------------------------------------------------------------- extraction


def _boxes(text: str) -> list[tuple[int, str]]:
    """(start, content) of every closed box, in one pass whatever the nesting; escaped braces do not nest."""
    opened: list[tuple[bool, int, int]] = []
    found = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == '}':
            if opened:
                is_box, start, inside = opened.pop()
                if is_box:
                    found.append((start, text[inside : match.start()]))
        elif token.endswith('{') and token != '\\{':
            opened.append((token != '{', match.start(), match.end()))
    return found


def _hashes(text: str) -> list[tuple[int, str]]:
    """`#### x` where x starts with a number or is one letter: other uses of four hashes are headings."""
    found = []
    for match in _HASHES.finditer(text):
        content = _clean(match.group(1))
        is_number = _NUMBER.match(content) and to_number(content) is not None
        if (is_number or re.fullmatch(r'\(?[A-J]\)?', content)) and not _HEADING.match(match.group(1)):
            found.append((match.start(), content))
    return found


def _phrases(text: str) -> list[tuple[int, str]]:
    """`answer is x` up to the end of the sentence; a box inside is a form of its own and left to `_boxes`."""
    found = []
    for match in _PHRASE.finditer(text):
        content = _clean(_SENTENCE_END.split(match.group(1), maxsplit=1)[0])
        complete = '\\boxed' not in content and content.count('{') == content.count('}')
        if complete and _is_stated(content):
            found.append((match.start(), content))
    return found


def _is_stated(content: str) -> bool:
    """Tells 'the answer is 5', '(B) because ...' and 'Evelyn' from remarks like 'the answer is correct'."""
    if _REMARK.match(content):
        return False
    has_value = re.search(r'[0-9$\\]', content) or _LETTER.match(content)
    return bool(has_value) or 1 <= len(content.split()) <= 3


def _clean(content: str) -> str:
    """Takes markdown and the math mode off: '**$5$.**' -> '5', but '$5' stays a price."""
    content = content.strip().strip('*`').strip().rstrip('.').strip('*').strip()
    for left, right in (('\\(', '\\)'), ('\\[', '\\]'), ('$$', '$$'), ('$', '$')):
        if content.startswith(left) and content.endswith(right) and len(content) > len(left + right):
            content = content[len(left) : -len(right)].strip()
    return content


def final_forms(text: str) -> list[str]:
    """The content of every complete final-answer form, in order of appearance."""
    found = _boxes(text) + _hashes(text) + _phrases(text)
    return [_clean(content) for _, content in sorted(found, key=lambda form: form[0]) if _clean(content)]


def extract(text: str, strict: bool = True) -> str | None:
    """The answer as written, or None: the last complete form if strict, the last number otherwise."""
    found = final_forms(text) if strict else [match.group() for match in _NUMBER.finditer(text)]
    return found[-1] if found else None


def extract_choice(text: str) -> str | None:
    """The letter A to J of a multiple-choice answer: of the last form with one, else alone on a line."""
    for content in reversed(final_forms(text)):
        if letter := _LETTER.match(content):
            return letter.group(1)
    alone = _LONE_LETTER.findall(text)
    return alone[-1] if alone else None


def stated_answer(text: str, gold: str | None) -> str | None:
    """The final answer of a text, a letter where `gold` is one; None where it states none."""
    return extract_choice(text) if gold in LETTERS else extract(text)


# ---------------------------------------------------------------------------------------------- numbers


def _value(number: str) -> Fraction | None:
    """The exact value of a match of `_NUMBER`; None for a zero denominator or a run of digits."""
    if len(number) > _MAX_DIGITS:
        return None
    plain = re.sub(_FRAC, r' \1\3/\2\4', number)
    sign = -1 if (plain.count('-') + plain.count('−')) % 2 else 1
    plain = re.sub(r'\s*/\s*', '/', re.sub(r'\{,\}|[-−+,\\$€£¥]', '', plain))
    value = Fraction(0)
    for term in plain.split():
        top, _, bottom = term.partition('/')
        if bottom and not Fraction(bottom):
            return None
        value += Fraction(top) / Fraction(bottom or 1)
    return sign * value


def _leading_number(text: str) -> Fraction | None:
    """The number that `text` starts with, unless it is a term of a longer expression."""
    match = _NUMBER.match(text)
    return None if match is None or _CONTINUES.match(text, match.end()) else _value(match.group())


def _only_number(text: str) -> Fraction | None:
    """The one number of `text`, with nothing but words before it."""
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or not _WORDS.fullmatch(text, 0, numbers[0].start()):
        return None
    return _leading_number(text[numbers[0].start() :])


def to_number(answer: str) -> Fraction | None:
    """The number that an extracted answer states, units and a percent sign ignored ('50%' is 50).

    What follows the last '=' counts where it is one number ('3 * 4 = 12'); then the number the answer starts
    with ('18 dollars for 3 days'); then its only number ('about 18'). None for an expression, list or range.
    """
    answer = re.sub(r'\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}', r' \1 ', answer)
    answer = re.sub(r'\\!|(?<=[0-9])\\[,; ](?=[0-9]{3})|\^\s*\{?\\circ\}?', '', answer)
    answer = _clean(re.sub(r'\\[,; ]', ' ', answer))
    head, equals, tail = answer.rpartition('=')
    result = _only_number(tail) if equals and not re.search(r',(?![0-9]{3})', head) else None
    for read in (_leading_number, _only_number):
        result = read(answer) if result is None else result
    return result


def same_number(a: str, b: str) -> bool:
    """Whether two answers state the same number exactly: '1,000' and '1000.0' do, '0.33' and '1/3' do not."""
    left, right = to_number(a), to_number(b)
    return left is not None and left == right


def numeric_grade(text: str, gold: str, strict: bool = True) -> bool:
    """Whether the answer extracted from `text` equals the number `gold`."""
    answer = extract(text, strict)
    return answer is not None and same_number(answer, gold)


# --------------------------------------------------------------------------------- words and mathematics


def _plain(answer: str) -> str:
    r"""One spelling for what LaTeX writes in several ways: `\dfrac12`, `\left(`, `\text{ cm}`, spaces."""
    answer = re.sub(r'\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}', r'\1', _clean(answer))
    answer = re.sub(r'\\(?:left|right|displaystyle)(?![a-z])|\\[!,;: ]|\^\s*\{?\\circ\}?|\\?[%$]', '', answer)
    answer = re.sub(r'\\[dt]frac', r'\\frac', answer)
    answer = re.sub(r'\\(frac|sqrt)\s*([0-9A-Za-z])', r'\\\1{\2}', answer)
    answer = re.sub(r'(\\frac\{[^{}]*\})\s*([0-9A-Za-z])', r'\1{\2}', answer)
    return re.sub(r'\s+', '', answer).rstrip('.').casefold()


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number, or the same text up to spacing, case and LaTeX spelling."""
    return _plain(a) == _plain(b) or (_is_bare(b) and same_number(a, b))


def _is_bare(answer: str) -> bool:
    """Whether the answer is a number and nothing else, so that comparing the number loses nothing."""
    match = _NUMBER.fullmatch(_plain(answer))
    return match is not None


def text_grade(text: str, gold: str) -> bool:
    """Whether the last complete form of `text` is the same answer as `gold`."""
    answer = extract(text)
    return answer is not None and same_answer(answer, gold)


def math_grade(text: str, gold: str) -> bool:
    """`text_grade`; where that says no the symbolic comparison of math-verify decides.

    Raises ConfigError where math-verify is not installed: without it right answers would be wrong. Raises TimeoutError
    where the comparison runs out of time, or dies.
    """
    if not _math_verify():
        raise ConfigError(f'MATH is graded with math-verify, which is not installed; {extra("math")}')
    answer = extract(text)
    return answer is not None and (same_answer(answer, gold) or _verifier().equal(answer, gold))


@functools.cache
def _math_verify() -> bool:
    return importlib.util.find_spec('math_verify') is not None


class _Verifier:
    """math-verify in a process of its own: it needs a main thread, and a comparison may have to be killed or die."""

    SECONDS = 10.0  # above its own two limits of 5 s, which a long C call can outlive
    PROGRAM = r"""
import json, sys, time
from math_verify import parse, verify
print('ready', flush=True)
for line in sys.stdin:
    began = time.monotonic()
    try:
        answer, gold = [parse('\\boxed{' + text + '}') for text in json.loads(line)]
        reply = int(verify(gold, answer))
    except Exception:
        reply = 0
    late = time.monotonic() - began > 4.9
    print('late' if late and not reply else reply, flush=True)
"""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def equal(self, answer: str, gold: str) -> bool:
        """Whether the two are equal; no where the comparison raises. Raises TimeoutError where it runs out of time, or
        its process ends.
        """
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            reply = self._reply(self.process, json.dumps([answer, gold]) + '\n')
            if not reply:
                self.process.kill()
                self.process.wait()
        if reply not in ('0\n', '1\n'):
            raise TimeoutError('the comparison ran out of time or died')
        return reply == '1\n'

    def _reply(self, process: subprocess.Popen[str], question: str) -> str:
        """'' where there is none in time, or none any more."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except BrokenPipeError:
            return ''
        # One reply a question, so nothing is ever left in the buffer that select cannot see.
        some = select.select([process.stdout], [], [], self.SECONDS)[0]
        return process.stdout.readline() if some else ''

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-c', self.PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        atexit.register(process.kill)
        assert process.stdout is not None
        if process.stdout.readline() != 'ready\n':
            raise ConfigError(
                'math-verify is installed and cannot be imported, so MATH cannot be graded: '
                'see `python -c "import math_verify"`, then reinstall or uninstall it'
            )
        return process


@functools.cache
def _verifier() -> _Verifier:
    return _Verifier()
