"""A journal line is a trace and nothing else, and a torn or damaged file costs what was torn and no more."""

from __future__ import annotations

import json
import math
import os

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_test import journals, make_trace, open_workdir, refuse

from adx import files, retention
from adx.errors import StorageError, WorkdirError
from adx.journal import Journal, cut_torn_tails, drop_records, read_records, trace_from_json, trace_to_json
from adx.storage import Workdir
from adx.types import Trace

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
numbers = st.dictionaries(st.text(), json_values, max_size=3)
any_trace = st.builds(
    Trace,
    request_id=st.text(), text=st.text(), reasoning=st.text(), answer=st.text(), stop=st.text(),
    messages=st.lists(st.dictionaries(st.text(), st.text(), max_size=2), max_size=3).map(tuple),
    tokens=st.lists(st.integers()).map(tuple), prompt_tokens=st.integers(), seed=st.integers(),
    defence=numbers, sampling=numbers, gold=st.none() | st.text(),
    statistics=st.dictionaries(st.text(), st.lists(json_values, max_size=3), max_size=2),
    models=st.dictionaries(st.text(), st.text(), max_size=2), experiment=st.text(),
    versions=st.dictionaries(st.text(), st.text(), max_size=2),
)  # fmt: skip


class TestTraceJson:
    @settings(max_examples=100, deadline=None)
    @given(any_trace)
    def test_round_trip_in_one_line(self, trace):
        line = trace_to_json(trace)
        assert trace_from_json(line) == trace
        assert line.isascii()
        assert line.splitlines() == [line]

    @pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
    def test_refuses_numbers_that_are_no_json(self, number):
        with pytest.raises(ValueError, match='gsm8k/test/3/0/plain'):
            trace_to_json(make_trace(3, statistics={'kl': [0.0, number]}))
        text = trace_to_json(make_trace(3, statistics={'kl': [0.25]})).replace('0.25', json.dumps(number))
        with pytest.raises(ValueError, match='is not JSON'):
            trace_from_json(text)

    @pytest.mark.parametrize(
        ('changes', 'message'),
        [
            ({'surprise': 1}, 'surprise'),
            ({'tokens': [1, 'two']}, r'tokens\[1\]'),
            ({'tokens': [True]}, r'tokens\[0\]'),
            ({'seed': 1.5}, 'seed'),
            ({'messages': [{'role': None}]}, r'messages\[0\].role'),
            ({'format_version': 2}, 'format_version is 2 and this adx reads 1'),
        ],
    )
    def test_refuses_another_shape(self, changes, message):
        with pytest.raises(ValueError, match=message):
            trace_from_json(json.dumps(json.loads(trace_to_json(make_trace(1))) | changes))

    def test_refuses_a_missing_field(self):
        record = json.loads(trace_to_json(make_trace(1)))
        del record['stop']
        with pytest.raises(ValueError, match='stop'):
            trace_from_json(json.dumps(record))


TORN = [b'{"format_version":1,"requ', b'\x00\x00\x00', b'\x00\n', b'{}', b'oops\n[1]\n']


class TestTornFiles:
    @pytest.mark.parametrize('tail', TORN)
    def test_a_torn_end_is_skipped_then_cut(self, tmp_path, tail):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(0), make_trace(1)])
        (journal,) = journals(tmp_path)
        good = journal.read_bytes()
        journal.write_bytes(good + tail)
        assert len(Workdir(tmp_path).finished()) == 2
        with open_workdir(tmp_path) as workdir:
            assert journal.read_bytes() == good
            workdir.append([make_trace(2)])
        assert len(Workdir(tmp_path).finished()) == 3

    def test_every_cut_keeps_the_lines_before_it(self, tmp_path):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(0), make_trace(1)])
        (journal,) = journals(tmp_path)
        data = journal.read_bytes()
        for size in range(0, len(data) + 1, 7):
            journal.write_bytes(data[:size])
            assert len(Workdir(tmp_path).finished()) == data[:size].count(b'\n')

    def test_damage_in_the_middle_is_named(self, tmp_path):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(row) for row in range(3)])
        (journal,) = journals(tmp_path)
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0] + lines[1][:20] + b'\n' + lines[2])
        with pytest.raises(StorageError, match=f'{journal.name}:2 '):
            Workdir(tmp_path).finished()
        with pytest.raises(StorageError, match=f'{journal.name}:2 '), open_workdir(tmp_path):
            pass
        assert journal.read_bytes().endswith(lines[2])

    def test_a_trace_of_another_shape_is_named(self, tmp_path):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(0)])
        (journal,) = journals(tmp_path)
        journal.write_text(journal.read_text().replace('"seed":1', '"seed":"1"'))
        with pytest.raises(StorageError, match=f"{journal.name}:1: field 'seed'"):
            list(Workdir(tmp_path).traces())


def test_a_failed_journal_starts_a_new_file(tmp_path, monkeypatch):
    journal = Journal(epath.Path(tmp_path), '0-of-1')
    line = json.dumps({'format_version': 1, 'request_id': 'a'})
    journal.append([line])
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        journal.append([line])
    monkeypatch.undo()
    journal.append([line])
    journal.close()
    assert [where.rsplit(':')[-1] for where, _ in read_records(epath.Path(tmp_path))] == ['1', '1']


def test_a_file_whose_name_may_be_lost_is_not_appended_to(tmp_path, monkeypatch):
    journal = Journal(epath.Path(tmp_path), '0-of-1')
    line = json.dumps({'format_version': 1, 'request_id': 'a'})
    with monkeypatch.context() as patch:
        patch.setattr(files, 'fsync_path', refuse)
        with pytest.raises(StorageError, match='not saved'):
            journal.append([line])
    journal.append([line])
    journal.close()
    assert sorted(path.stat().st_size for path in tmp_path.iterdir()) == [0, len(line) + 1]


def test_what_is_dropped_stays_gone_after_a_crash(tmp_path, monkeypatch):
    journal = Journal(epath.Path(tmp_path), '0-of-1')
    journal.append([json.dumps({'format_version': 1, 'request_id': 'a'})])
    journal.close()
    durable = []
    monkeypatch.setattr(files, 'fsync_path', lambda path: durable.append((path, list(tmp_path.iterdir()))))
    assert drop_records(epath.Path(tmp_path), lambda record: True) == 1
    assert durable == [(tmp_path, [])]


def test_an_end_that_cannot_be_cut_is_one_line(tmp_path, monkeypatch):
    (tmp_path / '0-of-1.x.jsonl').write_text('{')
    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(StorageError, match=r'unfinished ends were not cut.*; free some space'):
        cut_torn_tails(epath.Path(tmp_path), '0-of-1')


def test_an_experiment_that_lacks_a_part_is_damaged(tmp_path):
    with open_workdir(tmp_path):
        pass
    place = tmp_path / 'private' / 'experiment.json'
    for part in ('created', 'experiment', 'experiment_hash'):
        whole = json.loads(place.read_text())
        place.write_text(json.dumps({key: value for key, value in whole.items() if key != part}))
        with pytest.raises(WorkdirError, match=rf'experiment\.json is damaged.*{part}'):
            retention.expire(tmp_path, 30)
        place.write_text(json.dumps(whole))


def test_damaged_hashes_of_what_is_forgotten_are_not_taken_for_none(tmp_path):
    with open_workdir(tmp_path):
        pass
    for content in (b'', b'[]', b'{}', b'{"prompts": 1}', b'{"prompts": [[]]}'):
        (tmp_path / 'private' / 'forgotten.json').write_bytes(content)
        with pytest.raises(StorageError, match=r'forgotten\.json is damaged.*forget the requests again'):
            Workdir(tmp_path).forgotten()
