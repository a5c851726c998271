"""Verdicts: signed, kept, counted, and what they say of each other."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time

import pytest
from detecting_test import CASE, KEY, SIGNER, Parrot, run

from adx import detecting, keys, verdicts
from adx.errors import InputError
from adx.verdicts import is_signed


def test_verdicts_are_signed_counted_and_kept(tmp_path):
    first = run(tmp_path, Parrot(KEY))
    second = detecting.verdict(tmp_path, KEY, SIGNER)
    assert (first['verdict']['issued_before'], second['verdict']['issued_before']) == (0, 1)
    kept = [json.loads(line) for line in (tmp_path / 'verdicts.jsonl').read_text().splitlines()]
    assert kept == [first, second]
    public = first['public_key']
    assert is_signed(first, public)
    assert not is_signed(first, '00' * 32)
    assert not is_signed(first | {'verdict': first['verdict'] | {'detected': False}}, public)
    assert not is_signed({}, public)


def test_verdicts_issued_at_once_are_all_kept_and_count_each_other(tmp_path, monkeypatch):
    run(tmp_path, Parrot(KEY))
    sign = verdicts.sign

    def slow(content, signer):
        time.sleep(0.02)  # the others get here meanwhile
        return sign(content, signer)

    monkeypatch.setattr(verdicts, 'sign', slow)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        issued = list(pool.map(lambda _: detecting.verdict(tmp_path, KEY, SIGNER), range(4)))
    assert sorted(one['verdict']['issued_before'] for one in issued) == [1, 2, 3, 4]
    assert len(verdicts.read(tmp_path)) == 5


def test_a_verdict_file_with_another_line_is_an_error(tmp_path):
    run(tmp_path, Parrot(KEY))
    with open(tmp_path / 'verdicts.jsonl', 'a') as file:
        file.write('{"signature": "x"}\n')
    with pytest.raises(InputError, match='holds what is no verdict'):
        detecting.verdict(tmp_path, KEY, SIGNER)


def test_a_verdict_says_what_it_is_held_against_and_how_many_there_were(tmp_path):
    run(tmp_path / 'a', Parrot(KEY))
    other = Parrot(KEY)
    other.identity = 'another'
    run(tmp_path / 'b', other, dataclasses.replace(CASE, suspect='model-y'))
    run(tmp_path / 'c', Parrot(KEY))
    found = detecting.verdict(tmp_path / 'c', KEY, SIGNER)['verdict']
    assert (found['issued_before'], found['issued_beside']) == (1, 1)
    assert 'Verdicts issued before: 1 of this case, 1 on this suspect in cases beside it' in found['summary']
    assert [(one['customer'], one['detected']) for one in found['others']] == [('acme', True)] * 2
    assert '(acme (epoch 1) found; acme (epoch 1) found)' in found['summary']
    renamed = run(tmp_path / 'd', Parrot(KEY), dataclasses.replace(CASE, suspect='model-z'))['verdict']
    assert renamed['issued_beside'] == 3  # the model is the same, whatever the suspect is called
    assert detecting.NULL in found['summary']


def test_a_key_of_a_file_signs(tmp_path):
    keys.new(tmp_path / 'signer.key')
    detecting.commit(CASE, tmp_path / 'case', KEY)
    detecting.ask(tmp_path / 'case', Parrot(KEY))
    signed = detecting.verdict(tmp_path / 'case', KEY, keys.read(tmp_path / 'signer.key'))
    assert is_signed(signed, signed['public_key'])
