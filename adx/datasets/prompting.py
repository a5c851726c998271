"""From the rows of a split to prompts."""

from __future__ import annotations

from collections.abc import Iterable

from adx.datasets.rows import Messages, Row
from adx.grading import extract
from adx.types import Prompt


def chat(row: Row, instruction: str) -> Messages:
    """A row's own messages as they are; otherwise its question and then the instruction as one turn."""
    if row.messages:
        return row.messages
    content = f'{row.question}\n\n{instruction}' if instruction else row.question
    return ({'role': 'user', 'content': content},)


def gold_answer(reference: str) -> str:
    """The final answer of a worked reference answer, or the reference itself where it is a bare answer."""
    return extract(reference) or reference.strip()


def make_prompts(name: str, split: str, rows: Iterable[Row], instruction: str) -> list[Prompt]:
    """One prompt a row, in the order of the rows."""
    golds = ((row, None if row.answer is None else gold_answer(row.answer)) for row in rows)
    return [Prompt(name, split, row.id, chat(row, instruction), gold) for row, gold in golds]
