"""From the rows of a split to prompts."""

from __future__ import annotations

import functools

from adx.datasets.rows import Messages, Row, Source
from adx.datasets.splits import SPLITS, Splits, split_source
from adx.grading import extract
from adx.types import Prompt


def chat(row: Row, instruction: str) -> Messages:
    """A row's own messages as they are; otherwise its question and then the instruction as one turn."""
    if row.messages:
        return row.messages
    content = f'{row.question}\n\n{instruction}' if instruction else row.question
    return ({'role': 'user', 'content': content},)


@functools.cache
def categories(dataset: Questions) -> dict[str, str]:
    """Every question as it is asked -> its category; of one that two rows ask, the first by name."""
    source = dataset.source()
    rows = sorted((*source.pool.rows, *source.test.rows), key=lambda row: row.category, reverse=True)
    return {chat(row, dataset.instruction)[-1]['content']: row.category for row in rows}


def gold_answer(reference: str) -> str:
    """The final answer of a worked reference answer, or the reference itself where it is a bare answer."""
    return extract(reference) or reference.strip()


class Questions:
    """What follows from a dataset's `name`, `instruction` and `source`: its splits and prompts."""

    name: str
    instruction: str
    split_names = SPLITS

    def source(self) -> Source:
        """Everything that the dataset's files hold. Raises InputError."""
        raise NotImplementedError

    def splits(self) -> Splits:
        return split_source(self.source())

    def rows(self, split: str) -> tuple[Row, ...]:
        return self.splits().pick(split, self.name)

    def prompts(self, split: str) -> list[Prompt]:
        """One prompt a row, in the order of the rows."""
        golds = ((row, None if row.answer is None else gold_answer(row.answer)) for row in self.rows(split))
        return [
            Prompt(self.name, split, row.id, chat(row, self.instruction), gold, row.customer) for row, gold in golds
        ]
