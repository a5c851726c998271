"""What a stage without traces of its own shows."""

from __future__ import annotations

import json

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
