"""GSM8K: grade-school problems with a whole-number answer (Cobbe et al., arXiv 2110.14168)."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from adx.datasets.prompting import Questions, gold_answer
from adx.datasets.rows import Row, Source, read_source, row_id, shown, string
from adx.grading import numeric_grade, to_number

SAMPLE = pathlib.Path(__file__).parent / 'samples' / 'gsm8k'  # 64 train and 64 test questions, MIT


@dataclasses.dataclass(frozen=True)
class Gsm8k(Questions):
    """Rows are {question, answer that ends with #### and the number}.

    path: a JSONL file, a directory with train.jsonl and test.jsonl, what `builder.build` made, or '' for the
    shipped sample. instruction: follows every question.
    skip_bad: goes on at a bad line and counts it in `source()`.
    """

    path: str = ''
    instruction: str = 'Reason step by step and end with the final answer in the form: #### <number>'
    skip_bad: bool = False

    name = 'gsm8k'

    def source(self) -> Source:
        return read_source(self.name, self.path or str(SAMPLE), parse, self.skip_bad)

    def grade(self, text: str, gold: str) -> bool:
        return numeric_grade(text, gold)


def parse(record: Any) -> Row:
    row = Row(string(record, 'question'), string(record, 'answer'), id=row_id(record))
    if to_number(gold_answer(row.answer or '')) is None:
        raise ValueError(f"'answer' states no number: {shown(row.answer)}; end it with #### <number>")
    return row
