r"""Answer extraction and graders. One frozen extractor serves every arm of a comparison.

A *final-answer form* is `\boxed{x}`, `#### x` or a phrase such as `final answer is x`. Strict extraction takes the
last complete form: a box that never closes or a phrase at the end of a truncated text states nothing. Lenient
extraction takes the last number. Numbers are compared as exact fractions.
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

# 1,000 and LaTeX's 1{,}000 are grouped; 1,5 is not a number of this grammar.
_COMMA = r'(?:,|\{,\})'
_UNSIGNED = rf'(?:[0-9]{{1,3}}(?:{_COMMA}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)'
_CURRENCY = r'(?:\\?[$€£¥]\s*)?'
_LATEX_FRACTION = r'\\[dt]?frac\s*(?:\{\s*-?[0-9]+\s*\}\s*\{\s*[0-9]+\s*\}|[0-9]{2}(?![0-9]))'
_SIGN = r'(?:[-+−]\s*)?'
# In order: 2 1/3 or 2\frac{1}{3}; 1/3; \frac{1}{3}; 1,234.5.
_NUMBER = re.compile(
    rf'(?<![\w.,/^]){_CURRENCY}{_SIGN}{_CURRENCY}'
    rf'(?:[0-9]+\s*{_LATEX_FRACTION}|[0-9]+\s+[0-9]+\s*/\s*[0-9]+|{_UNSIGNED}\s*/\s*{_UNSIGNED}'
    rf'|{_LATEX_FRACTION}|{_UNSIGNED})'
)
# After a number these make it a term of something longer: 3 + 4, 2^5, 1,5, 2:30, 3x.
_CONTINUES = re.compile(r'\s*(?:[-+−*×·/^=:<>]\s*[\w\\({$]|[,.][0-9]|\\times|\\cdot|\\div)|[A-Za-z_0-9](?![a-z])')

_BRACE = re.compile(r'\\\\|\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]')
_HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*([^\n]+)')
_PHRASE = re.compile(r'\banswer\b\**\s*(?:\bis\b\s*:?|[:=])\s*([^\n]+)', re.IGNORECASE)
_SENTENCE_END = re.compile(r'[.!?](?=\s|$)|[.!?](?=[*"”’]+(?:\s|$))')
_HEADING = re.compile(r'\W*(?:[0-9]+|[A-J])\s*[.):]\s+\w')  # '#### 1. Find the eggs' is markdown, no answer

_LETTER = re.compile(r'(?:\\[a-z]+\{|[^\w\\])*(?:(?:[Oo]ption|[Cc]hoice)\s*)?\W*([A-J])(?![\w\'’])')
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
        stated = _leading_number(content) is not None or re.fullmatch(r'\(?[A-J]\)?', content)
        if stated and not _HEADING.match(match.group(1)):
            found.append((match.start(), content))
    return found


def _phrases(text: str) -> list[tuple[int, str]]:
    """`answer is x` up to the end of the sentence. A box inside is a form of its own, so it is left to `_boxes`."""
    found = []
    for match in _PHRASE.finditer(text):
        content = _clean(_SENTENCE_END.split(match.group(1), maxsplit=1)[0])
        if content and '\\boxed' not in content and content.count('{') == content.count('}'):
            found.append((match.start(), content))
    return found


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
    """The stated answer as written. strict: the last complete form; otherwise the last number. None if there is none."""
    found = final_forms(text) if strict else [match.group() for match in _NUMBER.finditer(text)]
    return found[-1] if found else None


def extract_choice(text: str) -> str | None:
    """The letter A to J of a multiple-choice answer: in the last form that states one, else alone on a line."""
    for content in reversed(final_forms(text)):
        if letter := _LETTER.match(content):
            return letter.group(1)
    alone = _LONE_LETTER.findall(text)
    return alone[-1] if alone else None


# ---------------------------------------------------------------------------------------------- numbers


def _value(number: str) -> Fraction | None:
    """The exact value of a match of `_NUMBER`; None for a zero denominator."""
    negative = '-' in number or '−' in number
    plain = re.sub(r'\{,\}|[,$€£¥+−-]', '', number)
    plain = re.sub(r'\\[dt]?frac\s*(?:\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])([0-9]))', r' \1\3/\2\4', plain)
    plain = re.sub(r'\s*/\s*', '/', plain.replace('\\', ''))
    whole = Fraction(0)
    for term in plain.split():
        top, _, bottom = term.partition('/')
        if bottom and Fraction(bottom) == 0:
            return None
        whole += Fraction(top) / Fraction(bottom or '1')
    return -whole if negative else whole


def _leading_number(text: str) -> Fraction | None:
    """The number that `text` starts with, unless it is a term of a longer expression."""
    match = _NUMBER.match(text)
    return None if match is None or _CONTINUES.match(text, match.end()) else _value(match.group())


def to_number(answer: str) -> Fraction | None:
    """The number that an extracted answer states, units and a percent sign ignored (50% is 50).

    What follows the last '=' counts where it is one number ('3 * 4 = 12'); then the number the answer starts with
    ('18 dollars a day'); then its only number ('about 18'). None for an expression or several numbers.
    """
    answer = _clean(answer.replace('\\!', '').replace('\\,', ' ').replace('\\$', '$'))
    for text in (answer.rsplit('=', 1)[-1].strip(), answer):
        numbers = list(_NUMBER.finditer(text))
        if len(numbers) == 1 and not _CONTINUES.match(text, numbers[0].end()):
            return _value(numbers[0].group())
    return _leading_number(answer)


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
    r"""One spelling for what LaTeX writes in several ways: `\dfrac12`, `\left(`, `\text{ cm}`, spaces, case."""
    answer = re.sub(r'\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}', r'\1', _clean(answer))
    answer = re.sub(r'\\(?:left|right|!|,|;|:|displaystyle)(?![a-z])|\^\{?\\circ\}?|\\?[%$]|\\ ', '', answer)
    answer = re.sub(r'\\[dt]frac', r'\\frac', answer)
    answer = re.sub(r'\\(frac|sqrt)\s*([0-9a-z])', r'\\\1{\2}', answer)
    answer = re.sub(r'(\\frac\{[^{}]*\})\s*([0-9a-z])', r'\1{\2}', answer)
    return re.sub(r'\s+', '', answer).rstrip('.').casefold()


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number, or the same text up to spacing, case and LaTeX spelling."""
    return same_number(a, b) if to_number(b) is not None and _is_bare(b) else _plain(a) == _plain(b)


def _is_bare(answer: str) -> bool:
    """Whether the answer is a number and nothing else, so that comparing the number loses nothing."""
    match = _NUMBER.fullmatch(_plain(answer))
    return match is not None


def text_grade(text: str, gold: str) -> bool:
    """Whether the last complete form of `text` is the same answer as `gold`."""
    answer = extract(text)
    return answer is not None and same_answer(answer, gold)


def math_grade(text: str, gold: str) -> bool:
    """`text_grade`, and where that says no and math-verify is installed, equality by its symbolic comparison."""
    answer = extract(text)
    if answer is None:
        return False
    return same_answer(answer, gold) or (_math_verify() and _verifier().equal(answer, gold))


@functools.cache
def _math_verify() -> bool:
    return importlib.util.find_spec('math_verify') is not None


class _Verifier:
    """math-verify in a process of its own: it needs a main thread, and a hopeless comparison can be killed."""

    SECONDS = 10.0  # above its own two limits of 5 s, which a long C call can outlive
    PROGRAM = """
import json, sys
from math_verify import parse, verify
for line in sys.stdin:
    try:
        answer, gold = [parse('\\\\boxed{' + text + '}') for text in json.loads(line)]
        print(int(bool(verify(gold, answer))), flush=True)
    except Exception:
        print(0, flush=True)
"""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def equal(self, answer: str, gold: str) -> bool:
        """Whether the two are equal; no where the comparison fails or runs out of time."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps([answer, gold]) + '\n')
            self.process.stdin.flush()
            # One reply a question, so nothing is ever left in the buffer that select cannot see.
            if not select.select([self.process.stdout], [], [], self.SECONDS)[0]:
                self.process.kill()
                return False
            return self.process.stdout.readline().strip() == '1'

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-c', self.PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        atexit.register(process.kill)
        return process


@functools.cache
def _verifier() -> _Verifier:
    return _Verifier()
