"""Any user's JSONL: questions, chats, splits and grading."""

from __future__ import annotations

import json

import pytest

from adx.datasets import Jsonl
from adx.datasets.splits import SPLITS
from adx.errors import ConfigError, InputError

CHAT = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Hello'},
    {'role': 'assistant', 'content': 'Hi'},
    {'role': 'user', 'content': 'What is 2 + 2?', 'name': 'Ann'},
]


def save(tmp_path, *records, name='rows.jsonl'):
    (tmp_path / name).write_text('\n'.join(map(json.dumps, records)))
    return str(tmp_path / name)


def test_chats_pass_through_and_questions_become_one_turn(tmp_path):
    path = save(tmp_path, {'messages': CHAT, 'answer': 4}, {'question': 'Why?', 'id': 'q1', 'answer': ''})
    chat, question = Jsonl(path, name='mine', instruction='Think.').prompts('all')
    assert (chat.messages, chat.answer) == (tuple(CHAT), '4')
    assert question.messages == ({'role': 'user', 'content': 'Why?\n\nThink.'},)
    assert (question.dataset, question.split, question.row, question.answer) == ('mine', 'all', 'q1', None)
    assert Jsonl(path).prompts('all')[1].messages[0]['content'] == 'Why?'


def test_questions_and_chats_name_their_customer(tmp_path):
    rows = [{'question': 'Why?'}, {'question': 'Why?', 'customer': 'acme'}, {'messages': CHAT, 'customer': 'labs'}]
    prompts = Jsonl(save(tmp_path, *rows)).prompts('all')
    assert [prompt.customer for prompt in prompts] == ['', 'acme', 'labs']
    back = Jsonl(save(tmp_path, *rows[::-1])).prompts('all')
    assert {prompt.row: prompt.customer for prompt in back} == {prompt.row: prompt.customer for prompt in prompts}
    with pytest.raises(InputError, match=r"line 1: 'customer' is 3; it must be a string"):
        Jsonl(save(tmp_path, {'question': 'Why?', 'customer': 3})).source()


@pytest.mark.parametrize(
    ('messages', 'reason'),
    [
        ([], r"'messages' is \[\]; it must be a list"),
        ('hello', "'messages' is 'hello'"),
        ([{'role': 'user'}], "must have 'role' and 'content'"),
        ([{'role': '', 'content': 'x'}], "must have 'role' and 'content'"),
        ([{'role': 'user', 'content': 5}], 'strings only'),
        (['hello'], "must have 'role' and 'content'"),
        (CHAT[:3], "the last message is the assistant's"),
        ([{'role': 'user', 'content': ' '}], 'the last message is empty'),
    ],
)
def test_a_bad_chat_is_named(tmp_path, messages, reason):
    with pytest.raises(InputError, match=f'rows.jsonl, line 2: .*{reason}'):
        Jsonl(save(tmp_path, {'question': 'x'}, {'messages': messages})).source()


def test_all_keeps_the_order_and_the_five_splits_share_the_rows(tmp_path):
    path = save(tmp_path, *({'question': f'What is {n} + {n}?', 'id': n} for n in range(200)))
    dataset = Jsonl(path)
    assert [prompt.row for prompt in dataset.prompts('all')] == [str(n) for n in range(200)]
    split = {name: {prompt.row for prompt in dataset.prompts(name)} for name in SPLITS}
    assert sum(map(len, split.values())) == len(set().union(*split.values())) == 200


def test_an_official_test_file_stays_test(tmp_path):
    save(tmp_path, *({'question': f'Pool {n}', 'id': n} for n in range(50)), name='train.jsonl')
    save(tmp_path, *({'question': f'Test {n}', 'id': n} for n in range(5)), name='test.jsonl')
    dataset = Jsonl(str(tmp_path))
    assert {prompt.row for prompt in dataset.prompts('test')} == set('01234')
    with pytest.raises(InputError, match='train and test share ids'):
        dataset.prompts('all')


def test_near_duplicates_stay_in_all(tmp_path):
    long = ' '.join(f'w{n}' for n in range(20))
    path = save(tmp_path, *({'question': f'{n} {long}'} for n in range(30)))
    splits = Jsonl(path).splits()
    assert sum(splits.dropped.values()) > 0
    assert len(Jsonl(path).prompts('all')) == 30


@pytest.mark.parametrize('name', ['', 'a/b'])
def test_a_name_that_cannot_be_part_of_an_id(tmp_path, name):
    with pytest.raises(ConfigError, match=r'dataset\.name is '):
        Jsonl(save(tmp_path, {'question': 'x'}), name=name).prompts('all')


def test_grades_numbers_letters_and_words():
    dataset = Jsonl()
    assert dataset.grade('#### 1,000', '1000.0')
    assert dataset.grade('The answer is (B) because 2 is even.', 'B')
    assert dataset.grade('The final answer is Paris.', 'paris')
    assert not dataset.grade('The final answer is Rome.', 'Paris')
    assert not dataset.grade('Paris', 'Paris')
