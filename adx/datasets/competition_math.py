"""MATH: competition mathematics with LaTeX answers (Hendrycks et al., arXiv 2103.03874)."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.answers import Reader
from adx.datasets.prompting import Questions, categories
from adx.datasets.rows import Row, Rows, Source, read_source, row_id, string
from adx.errors import InputError
from adx.grading import extract, math_grade


@dataclasses.dataclass(frozen=True)
class CompetitionMath(Questions):
    r"""Rows are {problem, solution with a \boxed answer} or {problem, answer}.

    path: a JSONL file, a directory with train.jsonl and test.jsonl (MATH-500), or what `builder.build` made.
    pool: where further problems lie, whatever their file is called: they replace train.jsonl. Problems of
    MATH-500 among them are near-duplicates of `test` and so leave the pool (see splits.py).
    instruction: follows every problem. skip_bad: goes on at a bad line and counts it in `source()`.
    """

    path: str = ''
    pool: str = ''
    instruction: str = 'Reason step by step. Put the final answer in \\boxed{}.'
    skip_bad: bool = False

    name = 'math'

    def source(self) -> Source:
        source = read_source(self.name, self.path, parse, self.skip_bad)
        if not self.pool:
            return source
        more = read_source(self.name, self.pool, parse, self.skip_bad)
        rows: dict[str, Row] = {}
        for row in more.pool.rows + more.test.rows:
            if rows.setdefault(row.id, row) != row:  # equal ones are one problem
                raise InputError(f'{self.pool}: two problems of its files have the id {row.id!r}; make ids unique')
        return Source(Rows(tuple(rows.values()), more.pool.skipped + more.test.skipped), source.test)

    def slices(self, question: str) -> dict[str, str]:
        """'subject' and 'level' of the problem as it is asked; '' where the files do not say."""
        subject, _, level = categories(self).get(question, '').rpartition('/')
        return {'subject': subject, 'level': level}

    def grade(self, text: str, gold: str) -> bool:
        """What runs out of time is wrong."""
        try:
            return math_grade(text, gold)
        except TimeoutError:
            return False

    def reader(self) -> Reader:
        return Reader(math_grade)


def parse(record: Any) -> Row:
    """Keeps the worked solution where it states the answer; otherwise the bare answer."""
    problem = string(record, 'problem')
    solution = record.get('solution')
    worked = isinstance(solution, str) and extract(solution) is not None
    if not worked and 'answer' not in record:
        raise ValueError("the record has no 'answer' and no 'solution' with a \\boxed answer; it needs one")
    answer = string(record, 'solution' if worked else 'answer')
    return Row(problem, answer, id=row_id(record), category=_category(record))


def _category(record: Any) -> str:
    """'subject/level', as 'Algebra/3': files say 'type' for the subject too, and 'Level 3'."""
    subject, level = record.get('subject', record.get('type', '')), str(record.get('level', ''))
    return f'{subject}/{level.removeprefix("Level ")}' if subject or level else ''
