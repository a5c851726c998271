"""The five splits: fixed by text alone, disjoint up to 13-grams, in the stated proportions."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from adx.datasets.rows import Row
from adx.datasets.splits import SPLITS, assign, normalise, split_rows
from adx.errors import ConfigError, InputError

GOLDEN = 'ttttthtttauthaaatttttttaatthuathttttthta'


def texts(count: int, words: int = 30) -> list[str]:
    draw = random.Random(0)
    return [' '.join(f'w{draw.randrange(10**6)}' for _ in range(words)) for _ in range(count)]


def rows(questions: list[str]) -> list[Row]:
    return [Row(question, id=str(index)) for index, question in enumerate(questions)]


def in_split(split: str, template: str) -> str:
    """A text of the template ('{}' becomes a number) that hashes to `split`."""
    candidates = (template.format(index) for index in range(1000))
    return next(text for text in candidates if assign(text, hashed_test=True) == split)


def test_normalise_ignores_case_space_punctuation_and_width():
    assert normalise('  The “COST” is\t$1,000.\n') == 'the cost is 1 000'
    assert normalise('１２ Straße') == '12 strasse'


def test_assignment_is_frozen():
    """Goldens of version 1 of the assignment: changing any of them moves every experiment's data."""
    letters = {'holdout': 'h', 'train': 't', 'tune': 'u', 'attack_val': 'a'}
    assert ''.join(letters[assign(f'What is {n} plus {n}?')] for n in range(40)) == GOLDEN
    assert assign('WHAT is 3,  plus 3') == assign('What is 3 plus 3?')


def test_assignment_does_not_depend_on_the_process():
    program = "from adx.datasets.splits import assign\nprint(*(assign(f'q {n}') for n in range(20)))"
    environment = {**os.environ, 'PYTHONHASHSEED': '7', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', program]
    other = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert other.stdout.split() == [assign(f'q {n}') for n in range(20)]


@pytest.mark.parametrize('hashed_test', [False, True])
def test_proportions(hashed_test):
    count = 20_000
    found = [assign(f'question {n}', hashed_test) for n in range(count)]
    shares = {'holdout': 0.1, 'tune': 0.1, 'attack_val': 0.1, 'test': 0.1 * hashed_test}
    shares['train'] = 1 - sum(shares.values())
    for split, share in shares.items():
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(found.count(split) / count - share) <= 4 * deviation, split


def test_a_hashed_test_split_takes_from_train_only():
    for n in range(500):
        before, after = assign(f'question {n}'), assign(f'question {n}', hashed_test=True)
        assert before == after or (before, after) == ('train', 'test')


def test_file_order_changes_nothing():
    questions = rows(texts(200))
    shuffled = random.Random(1).sample(questions, len(questions))
    assert split_rows(questions[:150], questions[150:]) == split_rows(
        [row for row in shuffled if int(row.id) < 150], [row for row in shuffled if int(row.id) >= 150]
    )


def test_rows_are_kept_dropped_or_tested_and_nothing_else():
    pool, test = rows(texts(300)), [Row(text, id=f't{n}') for n, text in enumerate(texts(330)[300:])]
    splits = split_rows(pool, test)
    assert tuple(splits.rows) == SPLITS
    assert sum(splits.dropped.values()) == 0
    kept = [row.id for split in SPLITS for row in splits.rows[split]]
    assert sorted(kept) == sorted(row.id for row in pool + test)
    assert {row.id for row in splits.rows['test']} == {row.id for row in test}


def test_one_shared_13_gram_drops_the_pool_row_and_12_words_do_not():
    shared = ' '.join(f's{n}' for n in range(13))
    official = Row(f'Official {shared} tail', id='official')
    copied = Row(f'Copied, {shared.upper()}!', id='copied')
    shorter = Row(f'Other {shared[3:]} end', id='shorter')
    splits = split_rows([copied, shorter], [official])
    assert splits.rows['test'] == (official,)
    assert [row.id for split in SPLITS[:4] for row in splits.rows[split]] == ['shorter']
    assert splits.dropped[assign(copied.text)] == 1


def test_what_measures_outranks_what_is_trained_on():
    shared = ' '.join(f's{n}' for n in range(13))
    by_split = {split: Row(in_split(split, 'row {} ' + shared), id=split) for split in SPLITS}
    rank = ['test', 'attack_val', 'tune', 'holdout', 'train']
    for first in range(len(rank) - 1):
        splits = split_rows([by_split[split] for split in rank[first:]], hashed_test=True)
        assert [split for split in SPLITS if splits.rows[split]] == [rank[first]]
        assert splits.dropped == {split: int(split in rank[first + 1 :]) for split in SPLITS}


def test_a_row_that_was_dropped_drops_no_other():
    """A chain: tune shares with test, train shares with tune alone. tune goes, so train may stay."""
    left, right = (' '.join(f'{side}{n}' for n in range(13)) for side in 'lr')
    test = Row(f'official {left}', id='test')
    tune = Row(in_split('tune', f'{{}} {left} {right}'), id='tune')
    train = Row(in_split('train', f'{{}} {right}'), id='train')
    splits = split_rows([tune, train], [test])
    assert [splits.rows[split] for split in ('test', 'tune', 'train')] == [(test,), (), (train,)]


def test_duplicates_within_a_split_stay_and_short_texts_match_whole():
    splits = split_rows(rows(['Two plus two?', 'two plus two', 'two plus two, so']))
    assert sum(map(len, splits.rows.values())) == 3
    splits = split_rows([Row('Two plus two?', id='a'), Row('?!', id='b')], [Row('TWO plus two', id='t')])
    assert [row.id for split in SPLITS for row in splits.rows[split]] == ['b', 't']


def test_pick_says_what_there_is():
    splits = split_rows([], [Row('one', id='1')])
    assert [row.id for row in splits.pick('test', 'sums')] == ['1']
    with pytest.raises(ConfigError, match=r"sums has no split 'dev'; it has \['holdout', 'train'"):
        splits.pick('dev', 'sums')
    with pytest.raises(InputError, match=r"sums: split 'train' has no rows; use one of \['test'\]"):
        splits.pick('train', 'sums')


def test_a_system_message_that_all_share_makes_no_near_duplicates():
    shared = {'role': 'system', 'content': ' '.join(f'rule {i}' for i in range(20))}
    chats = [Row(messages=(shared, {'role': 'user', 'content': text}), id=text) for text in texts(60)]
    plain = [Row(messages=chat.messages[1:], id=chat.id) for chat in chats]
    splits = split_rows(chats, hashed_test=True)
    assert sum(splits.dropped.values()) == 0
    ids = {split: [row.id for row in found] for split, found in splits.rows.items()}
    assert ids == {split: [row.id for row in found] for split, found in split_rows(plain, (), True).rows.items()}
    assert Row(messages=(shared,)).text == shared['content']  # nothing else is there to tell rows apart by
