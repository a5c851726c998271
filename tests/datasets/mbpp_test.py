"""MBPP: rows with tests, code out of fences, grading by running."""

from __future__ import annotations

import json
import os

import pytest

from adx import sandbox
from adx.answers import reader_of
from adx.datasets import Mbpp
from adx.datasets.mbpp import blocks, extract_code
from adx.errors import InputError

DATA = os.environ.get('ADX_DATA', '')
TESTS = ['assert add(1, 2) == 3', 'assert add(0, 0) == 0\n']
CODE = 'def add(a, b):\n    return a + b\n'

try:
    sandbox.isolation()
    CONFINES = True
except sandbox.ConfigError:
    CONFINES = False
needs_filter = pytest.mark.skipif(not CONFINES, reason='this machine cannot confine a program')


def fenced(code, language='python'):
    return f'First think.\n```{language}\n{code}```\nDone.\n'


def write(path, *records):
    path.write_text('\n'.join(map(json.dumps, records)))
    return str(path)


def row(task, **more):
    return {'text': f'Write a function, number {task}.', 'task_id': task, 'test_list': TESTS} | more


def test_official_test_tasks_stay_test(tmp_path):
    dataset = Mbpp(write(tmp_path / 'mbpp.jsonl', *map(row, [1, 10, 11, 510, 511, *range(601, 640)])))
    source = dataset.source()
    assert [r.id for r in source.test.rows] == ['11', '510']
    assert [r.id for r in source.pool.rows][:4] == ['1', '10', '511', '601']
    [first, _] = sorted(dataset.prompts('test'), key=lambda prompt: prompt.row)
    assert first.answer == 'assert add(1, 2) == 3\nassert add(0, 0) == 0'
    content = first.messages[0]['content']
    question, shown = content.split('\nThe solution must pass these tests:\n')
    assert question == 'Write a function, number 11.'
    assert shown.startswith('assert add(1, 2) == 3\nassert add(0, 0) == 0\n')
    assert content.endswith(dataset.instruction)


def test_set_up_code_comes_after_the_answer_and_before_the_tests(tmp_path):
    given = row(11, test_setup_code='root = Node(1)\r\nother = root')
    [prompt] = Mbpp(write(tmp_path / 'test.jsonl', given)).prompts('test')
    assert prompt.answer.startswith('root = Node(1)\nother = root\nassert add')


@pytest.mark.parametrize(
    ('record', 'reason'),
    [
        (row(1, test_list=[]), r"'test_list' is \[\]"),
        (row(1, test_list='x'), "'test_list' is 'x'"),
        (row(1, test_setup_code=3), "'test_setup_code' is 3"),
        (row(True), "'task_id' is True"),
        ({'task_id': 1}, "no 'text'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, record, reason):
    path = write(tmp_path / 'rows.jsonl', record)
    with pytest.raises(InputError, match=f'line 1: .*{reason}'):
        Mbpp(path).source()


def test_code_is_taken_out_of_fences():
    assert blocks(fenced(CODE)) == [CODE]
    assert extract_code(fenced('x\n') + fenced(CODE)) == CODE
    assert extract_code(fenced(CODE, 'py3k')) is None
    assert extract_code(fenced(CODE, ''), strict=False) == CODE
    assert extract_code(f'```python\n{CODE}', strict=False) == CODE
    assert extract_code(f'```python\n{CODE}') is None
    assert extract_code('none', strict=False) is None
    assert extract_code(f'  ```Python title\n{CODE}  ```') == CODE


@needs_filter
def test_grades_by_running_all_tests():
    dataset, gold = Mbpp(), '\n'.join(TESTS)
    assert dataset.grade(fenced(CODE), gold)
    assert not dataset.grade(fenced(CODE.replace('+', '-')), gold)
    assert not dataset.grade(CODE, gold)
    reader = reader_of(dataset)
    verdict = reader.read(fenced('wrong\n') + fenced(CODE), gold)
    assert verdict == (True, True, 2, True, False)
    assert reader.read(fenced(CODE, ''), gold) == (False, True, 0, False, False)


def test_a_program_that_runs_out_of_time_is_wrong_and_counted(monkeypatch):
    monkeypatch.setattr(sandbox, 'run', lambda code, tests: sandbox.TIMED_OUT)
    assert not Mbpp().grade(fenced(CODE), '')
    assert reader_of(Mbpp()).read(fenced(CODE), '') == (False, False, 1, False, True)


@needs_filter
@pytest.mark.skipif(not DATA, reason='ADX_DATA names no folder with mbpp/')
def test_reference_solutions_pass_their_tests():
    """Every 20th of the official tasks."""
    path = os.path.join(DATA, 'mbpp', 'mbpp.jsonl')
    source = Mbpp(path).source()
    assert (len(source.pool.rows), len(source.test.rows)) == (474, 500)
    with open(path) as file:
        solutions = {str(record['task_id']): record['code'] for record in map(json.loads, file)}
    rows = [*source.pool.rows, *source.test.rows][::20]
    assert all(Mbpp().grade(fenced(solutions[r.id] + '\n'), r.answer) for r in rows)
