"""MATH: answers from solutions, and MATH-500 taken out of the pool."""

from __future__ import annotations

import json
import os

import pytest

from adx.datasets import CompetitionMath
from adx.datasets.splits import SPLITS, normalise
from adx.errors import InputError

DATA = os.environ.get('ADX_DATA', '')
PROBLEMS = [
    {'problem': f'What is ${n}/7$ plus one?', 'solution': f'It is $\\boxed{{\\frac{{{n + 7}}}{{7}}}}$.'}
    for n in range(40)
]


@pytest.fixture
def folders(tmp_path):
    """A pool of 40 problems, and a test set of the first 10 that states bare answers."""
    official = [{'problem': row['problem'], 'answer': f'{n + 7}/7'} for n, row in enumerate(PROBLEMS[:10])]
    for name, rows in (('math', PROBLEMS), ('math500', official)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'test.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return str(tmp_path / 'math500'), str(tmp_path / 'math')


def test_the_official_test_problems_leave_the_pool(folders):
    splits = CompetitionMath(*folders).splits()
    kept = {split: {row.question for row in splits.rows[split]} for split in SPLITS}
    assert kept.pop('test') == {row['problem'] for row in PROBLEMS[:10]}
    assert set().union(*kept.values()) == {row['problem'] for row in PROBLEMS[10:]}
    assert sum(splits.dropped.values()) == 10


def test_gold_answers_and_grading(folders):
    dataset = CompetitionMath(*folders)
    for split in ('train', 'test'):
        for prompt in dataset.prompts(split):
            assert dataset.grade(f'So $\\boxed{{{prompt.answer}}}$.', prompt.answer)
            assert not dataset.grade(f'So {prompt.answer}.', prompt.answer)
            assert prompt.messages[0]['content'].endswith(dataset.instruction)


def test_slices_are_the_subject_and_the_level_however_files_name_them(tmp_path):
    rows = [
        {'problem': 'What is $1$?', 'answer': '1', 'subject': 'Algebra', 'level': 2},
        {'problem': 'What is $2$?', 'answer': '2', 'type': 'Algebra', 'level': 'Level 5'},
        {'problem': 'What is $3$?', 'answer': '3'},
    ]
    (tmp_path / 'test.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    dataset = CompetitionMath(str(tmp_path))
    found = {one.answer: tuple(dataset.slices(one.messages[-1]['content']).values()) for one in dataset.prompts('test')}
    assert found == {'1': ('Algebra', '2'), '2': ('Algebra', '5'), '3': ('', '')}


def test_without_a_pool_there_is_test_only(folders):
    assert len(CompetitionMath(folders[0]).prompts('test')) == 10
    with pytest.raises(InputError, match="math: split 'train' has no rows"):
        CompetitionMath(folders[0]).prompts('train')


@pytest.mark.parametrize('record', [{'problem': 'x'}, {'problem': 'x', 'solution': 'It is 5.'}])
def test_a_problem_needs_an_answer(tmp_path, record):
    path = tmp_path / 'rows.jsonl'
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="line 1: the record has no 'answer' and no 'solution' with a"):
        CompetitionMath(str(path)).source()


@pytest.mark.skipif(not DATA, reason='ADX_DATA names no folder with math500/ and math_test/')
def test_math_500_leaves_the_pool_of_the_real_data():
    dataset = CompetitionMath(os.path.join(DATA, 'math500'), os.path.join(DATA, 'math_test'))
    splits = dataset.splits()
    test = {normalise(row.text) for row in splits.rows['test']}
    assert (len(test), len(dataset.prompts('test'))) == (500, 500)
    pool = [normalise(row.text) for split in SPLITS[:4] for row in splits.rows[split]]
    assert test.isdisjoint(pool)
    assert len(pool) + sum(splits.dropped.values()) == 5000


def test_two_problems_of_one_id_in_the_pool_are_refused(tmp_path):
    same, other = {**PROBLEMS[0], 'id': 'a'}, {**PROBLEMS[1], 'id': 'b'}
    for split, rows in (('train', [same, other]), ('test', [same, PROBLEMS[2]])):
        (tmp_path / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    dataset = CompetitionMath(str(tmp_path), str(tmp_path))
    assert len(dataset.source().pool.rows) == 3  # the same one stands in both
    (tmp_path / 'test.jsonl').write_text(json.dumps({**PROBLEMS[2], 'id': 'b'}))
    with pytest.raises(InputError, match="two problems of its files have the id 'b'"):
        dataset.source()
