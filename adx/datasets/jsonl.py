"""Any JSONL file of questions or chats."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.datasets.prompting import Questions
from adx.datasets.rows import Messages, Row, Source, customer, read_source, row_id, shown, string
from adx.datasets.splits import Splits, split_source
from adx.errors import ConfigError, InputError
from adx.grading import LETTERS, extract_choice, text_grade
from adx.types import NAMING, is_name


@dataclasses.dataclass(frozen=True)
class Jsonl(Questions):
    """Rows are {'question', optional 'answer', 'id', 'customer'} or {'messages': [{'role', 'content'}, ...], ...}.

    'customer' stands beside 'messages' as it does beside 'question': a policy serves each customer by its licence.

    path: a JSONL file, a directory with train.jsonl and test.jsonl, or what `builder.build` made.
    name: what request ids call the dataset, as `types.NAMING` says.
    instruction: follows every question, never a chat.
    skip_bad: goes on at a bad line and counts it in `source()`.
    Splits are the five of splits.py, and 'all': every row in the order of the file, near-duplicates included.
    Without a test.jsonl a tenth of the rows is `test` by hash.
    """

    path: str = ''
    name: str = 'jsonl'
    instruction: str = ''
    skip_bad: bool = False

    def source(self) -> Source:
        if not is_name(self.name):
            raise ConfigError(f'dataset.name is {self.name!r}; it must be text {NAMING}')
        return read_source(self.name, self.path, parse, self.skip_bad)

    def splits(self) -> Splits:
        source = self.source()
        return split_source(source, hashed_test=not source.test.rows)

    def rows(self, split: str) -> tuple[Row, ...]:
        if split != 'all':
            return super().rows(split)
        source = self.source()
        rows = source.pool.rows + source.test.rows
        if len({row.id for row in rows}) < len(rows):
            raise InputError(f"{self.path}: train and test share ids; make them unique for split 'all'")
        return rows

    def grade(self, text: str, gold: str) -> bool:
        """A gold letter is compared with the stated choice, anything else as number or text."""
        return extract_choice(text) == gold if gold in LETTERS else text_grade(text, gold)


def parse(record: Any) -> Row:
    chat = isinstance(record, dict) and 'messages' in record
    messages = _messages(record['messages']) if chat else ()
    question = '' if chat else string(record, 'question')
    answer = record.get('answer')
    if answer is not None and not isinstance(answer, str | int | float):
        raise ValueError(f"'answer' is {shown(answer)}; it must be a string or a number")
    return Row(question, None if answer in (None, '') else str(answer), messages, row_id(record), customer(record))


def _messages(value: Any) -> Messages:
    """Checks a chat and passes it on as it is. It must end with a turn that the model is to answer."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"'messages' is {shown(value)}; it must be a list of {{'role', 'content'}}")
    for message in value:
        texts = isinstance(message, dict) and all(isinstance(text, str) for text in message.values())
        if not texts or not message.get('role') or 'content' not in message:
            raise ValueError(f"the message {shown(message)} must have 'role' and 'content', strings only")
    if value[-1]['role'] == 'assistant':
        raise ValueError("the last message is the assistant's; end with the turn that is to be answered")
    if not value[-1]['content'].strip():
        raise ValueError('the last message is empty; it must ask something')
    return tuple(value)
