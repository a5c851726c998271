"""The bench of attacks on marks: what the attacker's detector is worth, and what is published."""

from __future__ import annotations

import json
import random

import pytest
from absl import flags
from lessons_fakes import lesson, resources

from adx import marks
from adx.errors import InputError
from tools.bench import unmark


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def made(lines):
    """A bench of lessons, every other one with such a line before its text."""
    bench = object.__new__(unmark.Bench)
    bench.resources = resources()
    bench.is_marked = [row % 2 == 0 for row in range(60)]
    text = 'A plain line without much in it\n#### 1'
    bench.lessons = [
        lesson(row, text=f'{lines(row)}\n{text}' if is_marked else text)
        for row, is_marked in enumerate(bench.is_marked)
    ]
    return bench


def test_the_detector_knows_marks_of_a_key_that_it_has_not():
    draw = random.Random(9)
    assert made(lambda row: marks.symbols(draw).line).auc == 1.0


def test_lines_that_look_like_all_others_are_not_told_apart():
    assert made(lambda row: 'A plain line without much in it').auc == pytest.approx(0.5)


def test_where_nothing_was_marked_there_is_nothing_to_tell_apart():
    bench = made(lambda row: 'x')
    bench.is_marked = [False] * 60
    with pytest.raises(InputError, match='0 of 60 traces are marked'):
        _ = bench.auc


def test_every_attack_is_published_in_samples_of_one_student(tmp_path, monkeypatch):
    rows: dict[str, list[float]] = {}
    monkeypatch.setattr(unmark.figures, 'append', lambda table, name, samples, **about: rows.update({name: samples}))
    for kind in unmark.TRANSFORMS:
        for i, alarms in enumerate(([True, True], [True, False])):
            own = [{'detected': alarm} for alarm in alarms]
            (tmp_path / f'{kind}_{i}.json').write_text(json.dumps({'kind': kind, 'auc': 0.9 + i / 100, 'own': own}))
    (tmp_path / 'marked_0.json').write_text(json.dumps({'kind': 'marked', 'own': []}))  # another bench's
    unmark.record(tmp_path)
    assert rows['filter_auc'] == [0.9, 0.91]
    assert rows['power_after_filter_lines'] == [1.0, 0.5]
    assert len(rows) == 1 + len(unmark.TRANSFORMS)
