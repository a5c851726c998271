"""Lessons to rows of token ids, for a student with a tokenizer and a template of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from adx.batching import Example
from adx.datasets.chat import Prompting, encode_conversation, encode_prompt
from adx.datasets.tokenizing import Tokenizer
from adx.errors import InputError
from adx.lessons import EMPTY, TRUNCATED, Lesson, Tally, sort_out

TOO_LONG, NOT_SPELT = 'too long', 'the student cannot write it'
SHOWN = 40  # characters of a text in a message


@dataclasses.dataclass(frozen=True)
class Encoded:
    """examples: what the student reads, in the order of `lessons`, those that it can be taught.

    own_tokens: how many completions are the teacher's ids as they were served; retokenised: how many were made ids
    anew through their text, because the student has another vocabulary; written: because an attacker changed them.
    """

    examples: list[Example]
    lessons: list[Lesson]
    tally: Tally
    own_tokens: int
    retokenised: int
    written: int

    @property
    def tokens(self) -> int:
        """Of all completions."""
        return sum(len(example.completion) for example in self.examples)

    @property
    def weights(self) -> dict[str, float]:
        """Example id -> factor of its loss."""
        return {lesson.id: lesson.weight for lesson in self.lessons}

    def soft_labels(self) -> dict[str, dict[str, np.ndarray]]:
        """Per example the served log-probs: {'ids': {id: int32 [L, C]}, 'log_probs': {id: float32 [L, C]}}.

        Position l is about token l of the completion. Raises InputError where a completion is not the teacher's ids
        as they were served, or was recorded without log-probs: soft labels would be about other tokens.
        """
        ids, log_probs = {}, {}
        for example, lesson in zip(self.examples, self.lessons, strict=True):
            names = ('top_ids', 'top_log_probs')
            told = [lesson.statistics.get(name, []) for name in names]
            if example.completion != lesson.tokens or any(len(x) != len(lesson.tokens) for x in told):
                raise InputError(
                    f'{lesson.id}: its completion has no served log-probs that fit; soft labels take lessons of the '
                    "student's own vocabulary, decoded with record='top' and not changed since"
                )
            ids[lesson.id], log_probs[lesson.id] = np.array(told[0], np.int32), np.array(told[1], np.float32)
        return {'ids': ids, 'log_probs': log_probs}


def encode(
    lessons: Sequence[Lesson], student: Tokenizer, prompting: Prompting, limit: int, teacher: Tokenizer | None = None
) -> Encoded:
    """The lessons in the student's tokens; a completion ends in an end of sequence.

    teacher: the tokenizer of lessons' `tokens`, which are taken as they are where the student has the same
    vocabulary. limit: tokens of a lesson with its prompt; longer ones are dropped, and so are truncated and empty ones
    and those whose text holds the student's control tokens; all are counted.
    Raises InputError where the student's vocabulary has no token for what lessons hold that are spelt anew, and where
    none is left.
    """
    same = teacher is not None and teacher.tokens == student.tokens
    found: dict[str, Example] = {}
    unknown = [lesson for lesson in lessons if not (same and lesson.tokens) and _unknown(lesson, student)]
    if unknown:
        raise InputError(
            f'{len(unknown)} of {len(lessons)} lessons hold what the vocabulary of student {student.source!r} has no '
            f'token for, first {unknown[0].id} with {_unknown(unknown[0], student)!r}; take another student or traces'
        )

    def judge(lesson: Lesson) -> Lesson | str:
        if lesson.stop != 'eos' or not lesson.text.strip():
            return TRUNCATED if lesson.stop != 'eos' else EMPTY
        if same and lesson.tokens:
            example = Example(lesson.id, encode_prompt(lesson.messages, student, prompting), lesson.tokens)
        else:
            example = Example(lesson.id, *encode_conversation(lesson.messages, lesson.text, student, prompting))
            if student.decode(example.completion) != lesson.text or not _comes_back(lesson.question, student):
                return NOT_SPELT
        if len(example.prompt) + len(example.completion) > limit:
            return TOO_LONG
        found[lesson.id] = example
        return lesson

    kept, tally = sort_out('encode', lessons, judge)
    if not kept:
        raise InputError(f'of {len(lessons)} lessons none can be taught: {tally.dropped or "there was none"}')
    served = sum(bool(lesson.tokens) for lesson in kept)
    own = served if same else 0
    return Encoded([found[x.id] for x in kept], kept, tally, own, served - own, len(kept) - served)


def _unknown(lesson: Lesson, student: Tokenizer) -> str:
    """The first piece of a lesson's question and text for which the student has no token; '' where it has all."""
    name = getattr(student.backend.model, 'unk_token', None)
    unknown = None if name is None else student.backend.token_to_id(name)
    for text in (lesson.question, lesson.text):
        try:
            encoding = student.backend.encode(text, add_special_tokens=False)
        except Exception:  # what a vocabulary of words does that has no token for others; it has no type of its own
            return text[:SHOWN]
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i == unknown:
                return text[start:end]
    return ''


def _comes_back(text: str, student: Tokenizer) -> bool:
    return student.decode(student.encode(text)) == text
