"""GSM8K: the shipped sample, and the whole of it where ADX_DATA names a folder that holds gsm8k/."""

from __future__ import annotations

import os

import pytest

from adx.datasets import Gsm8k
from adx.datasets.gsm8k import SAMPLE
from adx.datasets.splits import SPLITS, ngrams

DATA = os.environ.get('ADX_DATA', '')


def test_the_sample_has_every_split_and_a_licence():
    dataset = Gsm8k()
    sizes = {split: len(dataset.prompts(split)) for split in SPLITS}
    assert sizes['test'] == 64
    assert sum(sizes.values()) == 128
    assert min(sizes.values()) >= 1
    licence = (SAMPLE.parent / 'LICENSE-gsm8k').read_text()
    assert 'Copyright (c) 2021 OpenAI' in licence
    assert 'The above copyright notice and this permission notice shall be included' in licence


def test_a_prompt_is_the_question_and_the_instruction():
    prompt = Gsm8k(instruction='Answer with ####.').prompts('test')[0]
    (message,) = prompt.messages
    question = next(row for row in Gsm8k().source().test.rows if row.id == prompt.row).question
    assert message == {'role': 'user', 'content': question + '\n\nAnswer with ####.'}
    assert (prompt.dataset, prompt.split) == ('gsm8k', 'test')
    assert Gsm8k(instruction='').prompts('test')[0].messages[0]['content'] == question


def test_a_form_that_the_instruction_asks_for_is_graded():
    dataset = Gsm8k()
    form = dataset.instruction.split(': ')[1]
    for split in SPLITS:
        for prompt in dataset.prompts(split):
            answer = form.replace('<number>', prompt.answer)
            assert dataset.grade(f'1 + 1 = 2\n{answer}', prompt.answer)
            assert not dataset.grade(f'{answer}\n{form.replace("<number>", "-1")}', prompt.answer)


def test_prompts_are_the_same_twice():
    assert Gsm8k().prompts('train') == Gsm8k().prompts('train')


@pytest.mark.skipif(not DATA, reason='ADX_DATA names no folder with gsm8k/')
def test_the_whole_of_gsm8k_splits_without_near_duplicates():
    dataset = Gsm8k(os.path.join(DATA, 'gsm8k'))
    splits = dataset.splits()
    assert sum(map(len, splits.rows.values())) + sum(splits.dropped.values()) == 7473 + 1319
    assert len(splits.rows['test']) == 1319
    grams = {split: set().union(*(ngrams(row.text) for row in rows)) for split, rows in splits.rows.items()}
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or grams[first].isdisjoint(grams[second])
    assert splits.dropped == {'holdout': 3, 'train': 13, 'tune': 2, 'attack_val': 1, 'test': 0}
