"""What a text states: the one reading by which every arm and student is graded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from adx import grading
from adx.errors import InputError
from adx.types import Prompt

Grade = Callable[[str, str], bool]  # (text, gold) -> whether it is right
Forms = Callable[[str], Sequence[str]]  # text -> every complete final-answer form, in order


class Verdict(NamedTuple):
    """One text. strict: right by its last complete form; lenient: by its last number, where gold is one.

    forms: how many final-answer forms it has, 0 is unparsed; first_differs: the first states another answer than the
    last. timed_out: a grader ran out of time, which counts as wrong.
    """

    strict: bool
    lenient: bool
    forms: int
    first_differs: bool
    timed_out: bool


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the answers of one dataset are read. A grade raises TimeoutError where it ran out of time.

    grade: strict. lenient: None takes `lenient_grade`. forms: None takes letters where gold is one (A to J), else
    grading.final_forms. same: of two final answers as they are written.
    """

    grade: Grade
    lenient: Grade | None = None
    forms: Forms | None = None
    same: Callable[[str, str], bool] = lambda a, b: grading.same_answer(a, b) or grading.same_number(a, b)

    def read(self, text: str, gold: str) -> Verdict:
        strict, late = _within_time(self.grade, text, gold)
        lenient, later = _within_time(self.lenient or functools.partial(lenient_grade, self.grade), text, gold)
        forms = self.stated(text, gold)
        differs = len(forms) > 1 and not self.same(forms[0], forms[-1])
        return Verdict(strict, lenient, len(forms), differs, late or later)

    def stated(self, text: str, gold: str) -> Sequence[str]:
        """Every complete final-answer form, in order."""
        return (self.forms or (letters if gold in grading.LETTERS else grading.final_forms))(text)


def _within_time(grade: Grade, text: str, gold: str) -> tuple[bool, bool]:
    """(right, timed out)."""
    try:
        return grade(text, gold), False
    except TimeoutError:
        return False, True


def lenient_grade(grade: Grade, text: str, gold: str) -> bool:
    """Whether the last number of a text is `gold`; where gold is no number, what `grade` says."""
    if grading.to_number(gold) is None:
        return grade(text, gold)
    return grading.numeric_grade(text, gold, strict=False)


def letters(text: str) -> list[str]:
    """The letter of every final-answer form of a multiple-choice answer; without any, the one alone on a line."""
    found = [grading.extract_choice(f'\\boxed{{{form}}}') for form in grading.final_forms(text)]
    return [letter for letter in found if letter] or [letter for letter in [grading.extract_choice(text)] if letter]


def reader_of(dataset: Any) -> Reader:
    """The reader of a dataset: the one that it brings as `reader()`, else final-answer forms and its own grade."""
    return dataset.reader() if hasattr(dataset, 'reader') else Reader(dataset.grade)


def golds(prompts: Sequence[Prompt]) -> list[str]:
    """The gold answers. Raises InputError when there is no prompt, and for one without a gold answer."""
    if not prompts:
        raise InputError('there are no prompts to grade; give at least one with a gold answer')
    for prompt in prompts:
        if prompt.answer is None:
            raise InputError(f'{prompt.id} has no gold answer, so it cannot be graded; grade rows that have one')
    return [prompt.answer or '' for prompt in prompts]
