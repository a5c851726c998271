"""MBPP: short Python functions, graded by their tests (Austin et al., arXiv 2108.07732)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from adx import sandbox
from adx.answers import Reader
from adx.datasets.prompting import Questions, chat
from adx.datasets.rows import Row, Rows, Source, read_source, row_id, shown, string
from adx.types import Prompt

OFFICIAL_TEST = range(11, 511)  # task ids; 1-10 are for prompts, 511-600 validation, 601-974 training
_FENCE = re.compile(r'^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$', re.MULTILINE | re.DOTALL)
_OPEN = re.compile(r'^[ \t]*```[ \t]*\w*[^\n]*\n(.*)', re.MULTILINE | re.DOTALL)
_PYTHON = ('python', 'python3', 'py')


@dataclasses.dataclass(frozen=True)
class Mbpp(Questions):
    """Rows are {text, test_list, task_id, optional test_setup_code}; the gold answer is the tests as a program.

    path: mbpp.jsonl, whose official test tasks are its test split, or what other datasets take. instruction: follows
    every question. skip_bad: goes on at a bad line and counts it in `source()`.
    """

    path: str = ''
    instruction: str = 'Reason step by step. End with the whole solution in one fenced block: ```python'
    skip_bad: bool = False

    name = 'mbpp'

    def source(self) -> Source:
        source = read_source(self.name, self.path, parse, self.skip_bad)
        if source.test.rows:
            return source
        test = tuple(row for row in source.pool.rows if row.id.isdigit() and int(row.id) in OFFICIAL_TEST)
        pool = tuple(row for row in source.pool.rows if row not in test)
        return Source(Rows(pool, source.pool.skipped), Rows(test))

    def prompts(self, split: str) -> list[Prompt]:
        """One prompt a row; the answer is the program of its tests, as it is."""
        return [
            Prompt(self.name, split, row.id, chat(row, self.instruction), row.answer, row.customer)
            for row in self.rows(split)
        ]

    def grade(self, text: str, gold: str) -> bool:
        """Whether the last Python block of `text` passes all tests; a limit of time is a no."""
        return _outcome(text, gold, strict=True) == sandbox.PASSED

    def reader(self) -> Reader:
        """Strict takes the last closed block that says it is Python; lenient any block, closed or not."""
        return Reader(_grade_strict, _grade_lenient, blocks, lambda a, b: a.strip() == b.strip())


def blocks(text: str) -> list[str]:
    """Every closed fenced block that says it is Python."""
    return [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]


def extract_code(text: str, strict: bool = True) -> str | None:
    """The last Python block; lenient: else the last block of any kind, else one that never closes."""
    if found := blocks(text):
        return found[-1]
    if strict:
        return None
    if loose := [code for _, code in _FENCE.findall(text)]:
        return loose[-1]
    unclosed = _OPEN.search(text)
    return unclosed.group(1) if unclosed else None


def _outcome(text: str, gold: str, strict: bool) -> str:
    code = extract_code(text, strict)
    return sandbox.FAILED if code is None else sandbox.run(code, gold)


def _in_time(text: str, gold: str, strict: bool) -> bool:
    outcome = _outcome(text, gold, strict)
    if outcome == sandbox.TIMED_OUT:
        raise TimeoutError('the program ran out of time')
    return outcome == sandbox.PASSED


def _grade_strict(text: str, gold: str) -> bool:
    return _in_time(text, gold, strict=True)


def _grade_lenient(text: str, gold: str) -> bool:
    return _in_time(text, gold, strict=False)


def parse(record: Any) -> Row:
    """The description with its tests, which name the function; the answer is set-up code and tests, in this order."""
    question, tests = string(record, 'text'), record.get('test_list')
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise ValueError(f"'test_list' is {shown(tests)}; it must be a list of at least one test")
    setup = record.get('test_setup_code') or ''
    if not isinstance(setup, str):
        raise ValueError(f"'test_setup_code' is {shown(setup)}; it must be text")
    program = '\n'.join(line.replace('\r\n', '\n').strip() for line in (setup, *tests)).strip()
    shown_tests = '\n'.join(test.strip() for test in tests)
    asked = f'{question.strip()}\nThe solution must pass these tests:\n{shown_tests}'
    return Row(asked, program, id=row_id(record, 'task_id'))
