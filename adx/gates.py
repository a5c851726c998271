"""Gates: what a rewritten trace must have kept before it may leave in its original's place.

No reference enforces them; of one released set of rewrites most were bare answers and a quarter of those wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from adx import equations
from adx.answers import Reader
from adx.types import Trace, check_range

NO_ANSWER = 'the original states no answer'
NO_REASONING = 'the original has no reasoning'
UNFINISHED = 'the original is not finished'
EMPTY, CHANGED, SHORT, FALSE, LOST = (
    'nothing is written', 'another answer', 'too little reasoning', 'a false statement', 'statements are lost',
)  # fmt: skip
LANGUAGE, FORMAT, UNLIKELY = 'another language', 'another format', 'not fluent'
_NUMBER = re.compile(r'[0-9]+(?:\.[0-9]+)?')
# What is said all the time in languages that share a script; what two of them have tells nothing and does not count.
_COMMON = {
    'English': 'the of and to that for with was we so are have this then on as it there they each which how what has',
    'Spanish': 'el la los las de que en un una por con para es son se del cada hay entonces como más pero',
    'French': 'le la les des de et est un une que dans pour sur du nous il donc chaque sont avec qui pas',
    'German': 'der das und ist ein eine zu den mit von wir für sind auf jede nicht dann noch',
    'Italian': 'il la di che un una con sono gli del della è si quindi ogni nel più ha',
    'Portuguese': 'os de que em um uma para com são da não cada então se por mais',
    'Dutch': 'de het een en dat op te zijn voor met wij elke dus niet heeft er ook naar',
}
_SHARED = collections.Counter(word for words in _COMMON.values() for word in set(words.split()))
_OWN = {name: [word for word in set(words.split()) if _SHARED[word] == 1] for name, words in _COMMON.items()}
_WORD = re.compile(r'(?<![\w\\])[^\W\d_]{2,}(?!\w)')  # no variable, no command of LaTeX
LEAST_WORDS = 3  # of a language, and twice as many as of any other, before a text is taken to be in it


@dataclasses.dataclass(frozen=True)
class Senses:
    """What gates perceive with; the same for every rewriter of a comparison.

    reasoning: of a text, without thinking tags. count_tokens: of a text, by the teacher's tokenizer. statements: see
    equations.py; a testbed hands in its own grammar. tags: around what is thought.
    """

    reader: Reader
    reasoning: Callable[[str], str]
    count_tokens: Callable[[str], int]
    statements: equations.Statements = equations.statements
    tags: tuple[str, ...] = ('<think>', '</think>')


@dataclasses.dataclass(frozen=True)
class Gates:
    """retention: (0, 1], the least share of the original's reasoning tokens, and of its true statements, that stay.
    Above 0: a bare answer is no rewrite. No false statement may be new. fluency: >= 0, by how many nats a token a draft
    may be less likely than the original under the teacher that is shown the prompt.
    """

    retention: float = 0.8
    fluency: float = 0.5

    def check(self) -> None:
        """Raises ValueError naming the field, its value and the allowed range."""
        check_range('Gates.retention', self.retention, 0.0, 1.0, open_low=True)
        check_range('Gates.fluency', self.fluency, 0.0)

    def closed(self, trace: Trace, senses: Senses) -> str:
        """Why no draft of a trace can pass, '' where one may."""
        if trace.stop == 'length':
            return UNFINISHED
        if not senses.reader.stated(trace.text, trace.gold or ''):
            return NO_ANSWER
        return '' if senses.count_tokens(senses.reasoning(trace.text)) else NO_REASONING

    def refusal(self, trace: Trace, text: str, senses: Senses) -> str:
        """The first gate that a draft does not pass, but for fluency; '' where it passes all."""
        if not text.strip():
            return EMPTY
        if self._answer(text, trace, senses):
            return CHANGED
        kept, had = (senses.count_tokens(senses.reasoning(one)) for one in (text, trace.text))
        if kept < self.retention * had:
            return SHORT
        (true, false), (had_true, had_false) = (_stated(senses.statements(one)) for one in (text, trace.text))
        if false - had_false:
            return FALSE
        if (true & had_true).total() < self.retention * had_true.total():
            return LOST
        languages = {language(text), language(trace.text)} - {''}
        if script(text) != script(trace.text) or len(languages) > 1:
            return LANGUAGE
        return FORMAT if layout(text, senses.tags) != layout(trace.text, senses.tags) else ''

    def _answer(self, text: str, trace: Trace, senses: Senses) -> bool:
        """Whether any final form states another answer than the original's last, or the verdict on it changed."""
        reader, gold = senses.reader, trace.gold or ''
        original, forms = reader.stated(trace.text, gold)[-1], reader.stated(text, gold)
        if not forms or not all(reader.same(form, original) for form in forms):
            return True
        return trace.gold is not None and reader.read(text, gold).strict != reader.read(trace.text, gold).strict

    def is_fluent(self, original: float, draft: float) -> bool:
        """By the teacher's NLL of both in nats a token; nan is not fluent."""
        return draft <= original + self.fluency


def _stated(statements: Sequence[tuple[str, bool]]) -> tuple[collections.Counter[Any], collections.Counter[Any]]:
    """How often each statement is made, of the true ones and of the false ones. A true one is the same with its terms
    in another order and in other words: it has the same numbers.
    """
    true = [tuple(sorted(_NUMBER.findall(text.replace(',', '')))) for text, holds in statements if holds]
    false = [''.join(text.split()) for text, holds in statements if not holds]
    return collections.Counter(true), collections.Counter(false)


def script(text: str) -> str:
    """The script of most of a text's letters, as Unicode names it: 'LATIN', 'CJK', ...; '' without letters."""
    letters = (unicodedata.name(char, '').partition(' ')[0] for char in text if char.isalpha())
    counts = collections.Counter(letters)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else ''


def language(text: str) -> str:
    """The language that most of a text's commonest words are of, where it is one of _COMMON and plain; '' else."""
    said = collections.Counter(_WORD.findall(text.lower()))
    hits = {name: sum(said[word] for word in words) for name, words in _OWN.items()}
    first, second = sorted(hits, key=lambda name: -hits[name])[:2]
    return first if hits[first] >= max(LEAST_WORDS, 2 * hits[second]) else ''


def layout(text: str, tags: Sequence[str]) -> dict[str, Any]:
    """What a reader's program relies on: thinking tags, code fences, and the kinds of final-answer forms."""
    marks = (*tags, '```')
    return {mark: text.count(mark) for mark in marks} | {form: form in text for form in ('\\boxed', '####')}
