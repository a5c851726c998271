"""The bench of the trigger test: who is asked, and what is published of what students answered."""

from __future__ import annotations

import dataclasses
import json
import types

import pytest
from absl import flags
from absl.testing import flagsaver
from storage_test import make_trace
from studies import make_study

from adx.datasets import Gsm8k
from adx.errors import InputError
from tools.bench import figures, trigger


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(name='testbed', mark_pairs=10, siblings=list(trigger.SIBLINGS)):
        yield


def student(place, kind, own=(), others=(), **about):
    verdict = lambda alarm: {'customer': 'c', 'detected': alarm, 'keyed_hits': 5 * alarm, 'keyed': 20}  # noqa: E731
    record = {'kind': kind, 'others': [verdict(alarm) for alarm in others]} | about
    place.write_text(json.dumps(record | ({'own': [verdict(alarm) for alarm in own]} if own else {})))


def test_students_of_another_run_are_not_taken_for_this_ones(tmp_path):
    study = make_study(('x', 'y'))
    trigger._claim(tmp_path, study)
    trigger._claim(tmp_path, study)
    with flagsaver.flagsaver(mark_pairs=20), pytest.raises(InputError, match=r'another run .*test.pairs: 10 != 20'):
        trigger._claim(tmp_path, study)
    with pytest.raises(InputError, match=r'another run .*study'):
        trigger._claim(tmp_path, dataclasses.replace(study, exam=7))


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
    student(tmp_path / 'mix_clean_half_0.json', 'mix_clean_half', [False] * 63, [True] * 63)  # another bench's
    trigger.record(tmp_path)
    found = dict(rows)
    assert found['power_at_20_queries'] == [125 / 126]
    assert found['power_by_student'] == [1.0, 62 / 63]
    assert found['false_alarm_rate'] == [3 / 189]
    assert found['false_alarms_by_student'] == [3 / 63, 0.0, 0.0]  # by file name: clean before marked
    assert found['false_alarm_worst_student'] == [3 / 63]
    assert found['null_verdicts'] == [189]
    assert found['null_students'] == [3]
    assert found['marked_traces'] == [198, 200]
    assert found['keyed_hits_own'] == [0.25] * 125 + [0.0]
    assert sorted(found['keyed_hits_others']) == [0.0] * 186 + [0.25] * 3
    assert 0.93 < found['power_low'][0] < 0.95  # 125 of 126 alone would bound it by 0.96
    assert 0.06 < found['false_alarm_upper'][0] < 0.07  # 3 of 189 by 0.04


def test_what_marks_cost_a_reader_is_of_the_traces_that_carry_one(tmp_path, monkeypatch):
    """Of 50 prompts 40 carry a mark, under each of ten customers; one of them is wrong with it and right without."""
    texts = ['So it is so.\n#### 7'] * 50
    traces = [make_trace(row, text=text, gold='7') for row, text in enumerate(texts)]

    def mark(traces, seed, customer):
        said = [f'{one.text[:-1]}{8 if i == 3 else 7}' for i, one in enumerate(traces)]
        return [dataclasses.replace(one, text=said[i]) if i < 40 else one for i, one in enumerate(traces)], 40

    trainer = types.SimpleNamespace(traces=lambda i: (0, traces), mark=mark)
    rows: dict[str, list[float]] = {}
    monkeypatch.setattr(trigger, 'Trainer', lambda *given: trainer)
    monkeypatch.setattr(trigger.figures, 'append', lambda *a, **k: rows.update({a[1]: list(a[2])}))
    study = types.SimpleNamespace(experiment=types.SimpleNamespace(dataset=Gsm8k()))
    trigger.honest(study, '', tmp_path)
    assert rows['honest_accuracy_lost'] == [pytest.approx(2.5)]
    assert 2.5 < rows['honest_accuracy_lost_upper'][0] < 8.0


def test_bounds_are_of_verdicts_or_of_students_whichever_claim_less():
    alike, each = trigger.rates([[1.0] * 63] * 10)
    assert each == [1.0] * 10
    assert alike.low == pytest.approx(0.05 ** (1 / 630))  # no spread over students
    one_blind = trigger.rates([[1.0] * 63] * 9 + [[0.0] * 63])[0]
    assert one_blind.value == pytest.approx(0.9)
    assert one_blind.low < 0.75
    assert one_blind.high == 1.0
    assert trigger.rates([[0.0, 1.0]])[0][:3] == (0.5, 0.0, 1.0)  # one student bounds nothing


def test_nothing_is_published_of_nothing(tmp_path):
    with pytest.raises((InputError, ValueError)):
        trigger.record(tmp_path)
