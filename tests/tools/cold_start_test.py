"""The bench of cold and warm starts: what it runs, and that a failure is no figure."""

from __future__ import annotations

import math
import pathlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from adx.errors import InputError
from tests import tiny
from tools.bench import cold_start, figures


def test_a_start_that_fails_is_an_error_with_its_last_line():
    taken = cold_start.seconds([sys.executable, '-c', 'sum(range(10 ** 6))'])
    assert taken.cpu > 0
    assert 0 < taken.wall < 60
    with pytest.raises(InputError, match='ended with 3: no such thing'):
        cold_start.seconds([sys.executable, '-c', "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


def test_pairs_share_a_cache_and_others_do_not(monkeypatch, tmp_path, capsys):
    started = []

    def seconds(command):
        started.append(command)
        if command[1] == '-c':
            return cold_start.Taken(0.25, 0.1)
        cold = any(part.endswith('/cold') for part in command)
        return cold_start.Taken(2.0, 4.0, 1.5) if cold else cold_start.Taken(0.5, 3.0, 0.25)

    monkeypatch.setattr(cold_start, 'seconds', seconds)
    kept = []
    monkeypatch.setattr(figures, 'append', lambda *given, **named: kept.append(given))
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='configs/demo.py', tries=2):
        cold_start.main()
    runs = [command for command in started if command[1] == '-m']
    caches = [next(part for part in command if part.startswith('--compile_cache=')) for command in runs]
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert all({'--set=max_new_tokens=1', '--log_text'} <= set(command) for command in runs)
    assert not pathlib.Path(caches[0].split('=')[1]).exists()
    name = 'first_token_warm_over_cold'
    seconds = [f'first_token_seconds_{kind}' for kind in ('cold', 'warm')]
    assert [given[1] for given in kept] == ['import_seconds', *seconds, f'{name}_wall', f'{name}_cpu']
    assert [given[2] for given in kept[1:]] == [[1.5, 1.5], [0.25, 0.25], [0.25, 0.25], [0.75, 0.75]]
    assert 'cold 2.00 s, 4.00 s of CPU time, first token after 1.50 s' in capsys.readouterr().out


# Says a line that is no trace, a trace, and ends later.
SAYS = """
import json, sys, time
print('no JSON', json.dumps({'event': 'progress'}), sep='\\n', file=sys.stderr, flush=True)
time.sleep(0.3)
print(json.dumps({'event': 'trace', 'text': 'a'}), file=sys.stderr, flush=True)
time.sleep(0.5)
print(json.dumps({'event': 'trace', 'text': 'b'}), file=sys.stderr, flush=True)
"""


def test_the_first_token_is_where_the_first_trace_is_said():
    taken = cold_start.seconds([sys.executable, '-c', SAYS])
    assert 0.3 < taken.first < taken.wall - 0.5
    assert math.isnan(cold_start.seconds([sys.executable, '-c', 'pass']).first)


@pytest.mark.slow
def test_a_run_says_its_first_token_before_it_ends(tmp_path, monkeypatch):
    config = tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher'))
    monkeypatch.setattr(cold_start, 'OVERRIDES', (*cold_start.OVERRIDES, 'arms.plain.sampling.temperature=1.0'))
    cold = cold_start.start(config, tmp_path, 'cold')
    assert 1 < cold.first < cold.wall
