"""MMLU: CSV folders with and without a header, JSONL, lettered prompts."""

from __future__ import annotations

import csv
import json
import os
import pathlib

import pytest

from adx.datasets import Mmlu
from adx.datasets.mmlu import HEADER
from adx.errors import InputError

DATA = os.environ.get('ADX_DATA', '')
QUESTION = 'Which is a prime,\nor "prime number"?'
ROW = [QUESTION, '4', '5', '6', '', '1']


def write_csv(path: pathlib.Path, *rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def numbered(count: int, start: int = 0) -> list[list[str]]:
    return [[f'What is {n}?', f'{n}', 'b', 'c', 'd', 'A'] for n in range(start, start + count)]


def test_csv_folders(tmp_path):
    write_csv(tmp_path / 'test' / 'sums_test.csv', HEADER, ROW)
    write_csv(tmp_path / 'test' / 'more_test.csv', ROW)
    write_csv(tmp_path / 'dev' / 'sums_dev.csv', *numbered(40))
    dataset = Mmlu(str(tmp_path))
    first, second = dataset.prompts('test')
    assert first.messages[0]['content'] == f'{QUESTION}\nA. 4\nB. 5\nC. 6\nD. \n\n{dataset.instruction}'
    assert first.answer == second.answer == 'B'
    assert second.row == first.row + '-1'  # the same question in two subjects stays two
    assert sum(map(len, dataset.splits().rows.values())) == 42
    assert dataset.prompts('train')[0].answer == 'A'


def test_the_subject_is_that_of_the_file(tmp_path):
    write_csv(tmp_path / 'test' / 'high_school_sums_test.csv', HEADER, ROW, ['Only here?', 'a', 'b', 'c', 'd', 'A'])
    write_csv(tmp_path / 'test' / 'algebra_test.csv', ROW)
    dataset = Mmlu(str(tmp_path))
    asked = [prompt.messages[0]['content'] for prompt in dataset.prompts('test')]
    found = {text.split('?')[0]: dataset.slices(text) for text in asked}
    assert found['Only here'] == {'subject': 'high_school_sums'}
    assert found['Which is a prime,\nor "prime number"'] == {'subject': 'algebra'}
    assert dataset.slices('never asked') == {'subject': ''}


def test_jsonl_rows_with_letters_or_indices(tmp_path):
    rows = [{'question': 'q', 'choices': ['x', 'y', 'z'], 'answer': answer} for answer in (2, 'C', '2')]
    (tmp_path / 'test.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert [prompt.answer for prompt in Mmlu(str(tmp_path)).prompts('test')] == ['C', 'C', 'C']


@pytest.mark.parametrize(
    ('row', 'reason'),
    [
        ([*ROW[:5], '4'], "'answer' is '4'; it must be one of"),
        ([*ROW[:5], 'b'], "'answer' is 'b'; it must be one of"),
        (['alone'], "'choices' is"),
        (['', *ROW[1:]], "'question' is ''"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, reason):
    write_csv(tmp_path / 'test' / 'sums_test.csv', HEADER, numbered(1)[0], row)
    with pytest.raises(InputError, match=f'sums_test.csv, line 3: {reason}'):
        Mmlu(str(tmp_path)).source()
    assert Mmlu(str(tmp_path), skip_bad=True).source().test.skipped == 1


def test_a_file_that_is_no_csv(tmp_path):
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'sums_test.csv').write_text('a,"never closed\n')
    with pytest.raises(InputError, match=r'sums_test\.csv is no UTF-8 CSV file'):
        Mmlu(str(tmp_path)).source()


def test_grades_the_letter():
    assert Mmlu().grade('5 is prime. The answer is B.', 'B')
    assert not Mmlu().grade('The answer is B. No: the answer is C.', 'B')


@pytest.mark.skipif(not DATA, reason='ADX_DATA names no folder with mmlu/')
def test_the_whole_of_mmlu():
    dataset = Mmlu(os.path.join(DATA, 'mmlu'))
    source = dataset.source()
    assert (len(source.pool.rows), len(source.test.rows)) == (285, 14042)
    prompts = dataset.prompts('test')
    assert len({prompt.row for prompt in prompts}) == 14042
    assert all(dataset.grade(f'The answer is {prompt.answer}.', prompt.answer) for prompt in prompts)
