"""What a run and a stage without traces of its own show."""

from __future__ import annotations

import json
import re

from storage_test import make_trace

from adx.pipeline import Report
from launch.progress import Progress


def test_a_bar_stays_while_its_name_does(capsys):
    progress, bars = Progress(terminal=True), []
    for name in ('proxy_0', 'proxy_1'):
        for done in range(3):
            progress.steps('directions', name, done, 2)
            bars.append(progress.bar)
    assert [bar is bars[0] for bar in bars] == [True] * 3 + [False] * 3
    assert len(set(map(id, bars))) == 2
    assert 'directions proxy_1' in capsys.readouterr().err


def test_lines_say_where_a_stage_begins_and_ends(capsys):
    progress = Progress(terminal=False)
    for done in range(4):
        progress.steps('scores', 'nll', done, 3)
    lines = list(map(json.loads, capsys.readouterr().err.splitlines()))
    assert [line['done'] for line in lines] == [0, 3]
    assert lines[0] == {'event': 'scores', 'name': 'nll', 'done': 0, 'total': 3}


def test_a_bar_shows_rate_occupancy_and_time_left(capsys, monkeypatch):
    """Of ten traces one was there and one is rejected; two of the other eight take 4 s, so that six take 12 s."""
    clock = [0.0]
    monkeypatch.setattr('tqdm.std.time', lambda: clock[0])
    progress = Progress(terminal=True)
    report = Report(10, 1, 1, {'bad_lines_skipped': 2, 'near_duplicates_dropped': {}})
    report.changes, report.without_weights = ['jax changed'], ('the teacher has no weights for 1 token',)
    progress(report, None)
    assert progress.bar.n == 2
    clock[0] = report.seconds = 4.0
    for row in range(2):
        report.count(make_trace(row, tokens=(1,) * 50))
    report.occupancy = 0.875
    progress(report, make_trace(1))
    shown = capsys.readouterr().err
    first = shown[: shown.index('%|')]
    assert re.search(r'2 bad lines skipped.*\nthe teacher has no weights for 1 token\njax changed\n', first)
    last = re.split(r'[\r\n]', shown.strip())[-1]
    assert re.search(r'40%.* 4/10 \[00:04<00:12, .*25 tok/s, occupancy 88%\]', last), last
    assert report.seconds_left == 12.0
    progress.close()


def test_the_first_line_alone_says_what_has_no_weights(capsys):
    progress = Progress(terminal=False)
    report = Report(2, 0, 0, {'bad_lines_skipped': 0, 'near_duplicates_dropped': {}})
    report.without_weights = ('the teacher has no weights for 1 token',)
    progress(report, None)
    progress.log(report, 'gsm8k/test/0/0/plain')
    first, later = map(json.loads, capsys.readouterr().err.splitlines())
    assert first['without_weights'] == [*report.without_weights]
    assert 'without_weights' not in later
    assert 'environment_changes' not in first
