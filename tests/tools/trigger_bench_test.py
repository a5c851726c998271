"""The bench of the trigger test: who is asked, and what is published of what students answered."""

from __future__ import annotations

import json

import pytest
from absl import flags

from adx.errors import InputError
from tools.bench import figures, trigger


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def student(place, kind, own=(), others=(), **about):
    verdict = lambda alarm: {'customer': 'c', 'detected': alarm}  # noqa: E731
    record = {'kind': kind, 'others': [verdict(alarm) for alarm in others]} | about
    place.write_text(json.dumps(record | ({'own': [verdict(alarm) for alarm in own]} if own else {})))


def test_every_kind_of_student_is_there():
    kinds = [kind for kind, _ in trigger.jobs(10, 7)]
    assert {kind: kinds.count(kind) for kind in kinds} == {'marked': 10, 'clean': 7, 'sibling': 5}


def test_bounds_are_over_all_verdicts_and_samples_are_students(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(trigger.figures, 'append', lambda *a, **k: rows.append((a[1], list(a[2]))))
    rows: list[tuple[str, list[float]]] = []
    student(tmp_path / 'marked_0.json', 'marked', [True] * 63, [False] * 63, marked=198)
    student(tmp_path / 'marked_1.json', 'marked', [True] * 62 + [False], [False] * 63, marked=200)
    student(tmp_path / 'clean_0.json', 'clean', (), [False] * 60 + [True] * 3)
    trigger.record(tmp_path)
    found = dict(rows)
    assert found['power_at_20_queries'] == [1.0, 62 / 63]
    assert found['false_alarm_rate'] == [3 / 63, 0.0, 0.0]  # by file name: clean before marked
    assert found['null_verdicts'] == [189]
    assert found['null_students'] == [3]
    assert found['marked_traces'] == [198, 200]
    assert 0.95 < found['power_low'][0] < 125 / 126
    assert 3 / 189 < found['false_alarm_upper'][0] < 0.05


def test_nothing_is_published_of_nothing(tmp_path):
    with pytest.raises((InputError, ValueError)):
        trigger.record(tmp_path)
