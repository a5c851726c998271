"""MMLU: multiple-choice questions from 57 subjects (Hendrycks et al., arXiv 2009.03300)."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

from etils import epath

from adx.datasets.prompting import Questions, categories
from adx.datasets.rows import (
    Record,
    Row,
    Rows,
    Source,
    asked,
    collect,
    read_bytes,
    read_source,
    row_id,
    shown,
    string,
)
from adx.errors import InputError
from adx.grading import LETTERS, extract_choice

HEADER = ['question', 'choice0', 'choice1', 'choice2', 'choice3', 'answer']


@dataclasses.dataclass(frozen=True)
class Mmlu(Questions):
    """Rows are {question, choices, answer, optional subject}; the answer is a letter or an index that starts at 0.

    path: a directory with test/*.csv and a pool of dev/*.csv or val/*.csv (columns question, choices, answer;
    the header is optional; <subject>_test.csv), or a JSONL file, a directory of them, or what `builder.build` made.
    instruction: follows every question. skip_bad: goes on at a bad line and counts it in `source()`.
    """

    path: str = ''
    instruction: str = 'Reason step by step. End with: The answer is <letter>.'
    skip_bad: bool = False

    name = 'mmlu'

    def source(self) -> Source:
        place = epath.Path(self.path)
        if not self.path or not asked(place, (place / 'test').is_dir):
            return read_source(self.name, self.path, parse, self.skip_bad)
        pool = read_csv(place, ('dev', 'val'), self.skip_bad) if has_csv(place, ('dev', 'val')) else Rows()
        return Source(pool, read_csv(place, ('test',), self.skip_bad))

    def slices(self, question: str) -> dict[str, str]:
        """'subject': of the question as it is asked; '' where the files do not say."""
        return {'subject': categories(self).get(question, '')}

    def grade(self, text: str, gold: str) -> bool:
        return extract_choice(text) == gold


def has_csv(place: epath.Path, folders: tuple[str, ...]) -> bool:
    return any(csv_files(place / folder) for folder in folders)


def csv_files(folder: epath.Path) -> list[epath.Path]:
    return sorted(asked(folder, lambda: list(folder.glob('*.csv'))))


def read_csv(place: epath.Path, folders: tuple[str, ...], skip_bad: bool) -> Rows:
    """The rows of every subject in `folders`, taken together so that ids are unique over subjects."""
    files = [file for folder in folders for file in csv_files(place / folder)]
    records = (record for file in files for record in _records(file))
    return collect(f'{place} ({", ".join(folders)})', records, parse, skip_bad)


def _records(file: epath.Path) -> Iterator[Record]:
    try:
        text = read_bytes(file).decode('utf-8-sig')
        lines, subject = csv.reader(io.StringIO(text, newline=''), strict=True), file.stem.rpartition('_')[0]
        start = 1  # a quoted question may span lines; its first one is named
        for columns in lines:
            if columns and columns != HEADER:
                record = {'question': columns[0], 'choices': columns[1:-1], 'answer': columns[-1]}
                yield f'{file}, line {start}', record | {'subject': subject}
            start = lines.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{file} is no UTF-8 CSV file ({error}); write it anew') from error


def parse(record: Any) -> Row:
    """The question with its lettered choices; the answer becomes a letter."""
    question = string(record, 'question')
    choices = record.get('choices')
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"'choices' is {shown(choices)}; it must be a list of 2 to {len(LETTERS)} texts")
    letters = LETTERS[: len(choices)]
    answers = {str(index): letter for index, letter in enumerate(letters)} | {each: each for each in letters}
    answer = answers.get(str(record.get('answer')).strip())
    if answer is None:
        raise ValueError(f"'answer' is {shown(record.get('answer'))}; it must be one of {list(answers)}")
    lines = [f'{letter}. {choice}' for letter, choice in zip(letters, choices, strict=True)]
    subject = record.get('subject', '')
    if not isinstance(subject, str):
        raise ValueError(f"'subject' is {shown(subject)}; it must be a string")
    return Row('\n'.join([question, *lines]), answer, id=row_id(record), category=subject)
