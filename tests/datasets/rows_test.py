"""Reading files: every bad input is named with its place, nothing is lost or renamed in silence."""

from __future__ import annotations

import json
import pathlib

import pytest

from adx.datasets import MENU, Gsm8k, Jsonl
from adx.errors import ConfigError, InputError
from adx.types import RequestId

FILES = set(MENU) - {'arithmetic'}  # what is read, not drawn

def write(path: pathlib.Path, *lines: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines), 'utf-8')
    return str(path)


GOOD = {'question': 'What is 1 + 1?', 'answer': '#### 2'}
BAD = [
    ('{"question": "cut o', 'this is no JSON object'),
    ('[' * 20_000, 'this is no JSON object'),
    ('[1]', 'the record is a list; it must be an object'),
    ({'answer': '#### 2'}, "the record has no 'question'"),
    ({'question': '  ', 'answer': '#### 2'}, "'question' is '  '; it must be a string that is not empty"),
    ({'question': 5, 'answer': '#### 2'}, "'question' is 5"),
    ('{"question": "half \\ud83d", "answer": "#### 2"}', 'surrogates not allowed'),
    ({'question': 'x', 'answer': 'y' * 9999}, "'answer' states no number: 'yyy"),
    ({'question': 'x', 'answer': 'eleven'}, "'answer' states no number"),
    ({'question': 'x', 'answer': '#### 2', 'id': ['a']}, "'id' is ['a']; it must be a string or an integer"),
]


@pytest.mark.parametrize(('line', 'reason'), BAD)
def test_a_bad_line_is_named_and_nothing_is_returned(tmp_path, line, reason):
    path = write(tmp_path / 'rows.jsonl', GOOD, '', line, {**GOOD, 'question': 'Another?'})
    with pytest.raises(InputError) as caught:
        Gsm8k(path).source()
    message = str(caught.value)
    assert f'{path}, line 3: ' in message
    assert reason in message
    assert 'skip_bad' in message
    assert '\n' not in message
    assert len(message) < 400
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(('line', 'reason'), BAD)
def test_skip_bad_counts_instead(tmp_path, line, reason):
    path = write(tmp_path / 'rows.jsonl', GOOD, line, {**GOOD, 'question': 'Another?'})
    pool = Gsm8k(path, skip_bad=True).source().pool
    assert ([row.question for row in pool.rows], pool.skipped) == ([GOOD['question'], 'Another?'], 1)


def test_text_that_is_no_utf8_is_a_bad_line(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"question": "\xff\xfe", "answer": "#### 1"}\n')
    with pytest.raises(InputError, match=r'line 2: this is no JSON object .*utf-8'):
        Gsm8k(str(path)).source()


def test_unusual_separators_inside_a_string_do_not_cut_the_line(tmp_path):
    question = 'one\u2028two\x85three'
    path = tmp_path / 'rows.jsonl'
    line = json.dumps({'question': question}, ensure_ascii=False)
    path.write_bytes(b'\xef\xbb\xbf' + line.encode() + b'\r\n')
    assert [row.question for row in Jsonl(str(path)).source().pool.rows] == [question]


@pytest.mark.parametrize('name', sorted(FILES - {'gsm8k'}))
def test_an_empty_path_says_what_to_set(name):
    with pytest.raises(InputError, match='path is empty and no sample is shipped; set it to a JSONL'):
        MENU[name]().prompts('test')


@pytest.mark.parametrize('name', sorted(FILES))
def test_a_missing_file_an_empty_file_and_an_empty_directory(tmp_path, name):
    with pytest.raises(InputError, match='nowhere does not exist; set it to a JSONL file'):
        MENU[name](path=str(tmp_path / 'nowhere')).prompts('test')
    with pytest.raises(InputError, match=r'holds no train\.jsonl or test\.jsonl'):
        MENU[name](path=str(tmp_path)).prompts('test')
    with pytest.raises(InputError, match=r'empty.jsonl holds no rows \(0 bad ones were skipped\)'):
        MENU[name](path=write(tmp_path / 'empty.jsonl')).prompts('test')


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match=r"gsm8k has no split 'validation'; it has \['holdout'"):
        Gsm8k().prompts('validation')


def test_a_file_called_test_is_an_official_test_set(tmp_path):
    lines = [{**GOOD, 'question': f'What is {n} + 1?'} for n in range(30)]
    assert len(Gsm8k(write(tmp_path / 'a' / 'test.jsonl', *lines)).prompts('test')) == 30
    with pytest.raises(InputError, match="split 'train' has no rows"):
        Gsm8k(str(tmp_path / 'a' / 'test.jsonl')).prompts('train')
    with pytest.raises(InputError, match="split 'test' has no rows"):
        Gsm8k(write(tmp_path / 'b' / 'mine.jsonl', *lines)).prompts('test')


def test_ids_do_not_depend_on_the_order_and_duplicates_stay_distinct(tmp_path):
    lines = [{**GOOD, 'question': f'What is {n} + 1?'} for n in range(5)]
    forward = Gsm8k(write(tmp_path / 'a.jsonl', *lines, lines[0], lines[0])).source().pool.rows
    backward = Gsm8k(write(tmp_path / 'b.jsonl', lines[0], *lines[::-1], lines[0])).source().pool.rows
    assert {(row.id, row.question) for row in forward} == {(row.id, row.question) for row in backward}
    assert len({row.id for row in forward}) == 7
    assert [row.id for row in forward if row.question == lines[0]['question']] == [
        forward[0].id, forward[0].id + '-1', forward[0].id + '-2',
    ]  # fmt: skip


def test_given_ids_are_kept_escaped_and_unique(tmp_path):
    lines = [{'id': name, 'question': f'Question {name}?'} for name in ('a/b', 'a%2Fb', 7)]
    path = write(tmp_path / 'rows.jsonl', *lines)
    prompts = Jsonl(path).prompts('all')
    assert [prompt.row for prompt in prompts] == ['a%2Fb', 'a%252Fb', '7']
    for prompt in prompts:
        request = RequestId(prompt.dataset, prompt.split, prompt.row, 0, 'clean')
        assert RequestId.parse(str(request)) == request
    with pytest.raises(InputError, match=r"line 4: id '7' was used in .*, line 3; ids must be unique"):
        Jsonl(write(tmp_path / 'rows.jsonl', *lines, {'id': '7', 'question': 'four'})).source()


@pytest.mark.parametrize('name', sorted(MENU))
def test_every_dataset_has_a_name_that_fits_a_request_id(name):
    assert MENU[name]().name == name
    assert '/' not in name
