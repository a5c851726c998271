"""The bench of cold and warm starts: what it runs, and that a failure is no figure."""

from __future__ import annotations

import pathlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from adx.errors import InputError
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
        return cold_start.Taken(2.0, 4.0) if any(p.endswith('/cold') for p in command) else cold_start.Taken(0.5, 3.0)

    monkeypatch.setattr(cold_start, 'seconds', seconds)
    kept = []
    monkeypatch.setattr(figures, 'append', lambda *given, **named: kept.append(given))
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='configs/demo.py', tries=2):
        cold_start.main()
    runs = [command for command in started if command[1] == '-m']
    caches = [next(part for part in command if part.startswith('--compile_cache=')) for command in runs]
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert all('--set=max_new_tokens=1' in command for command in runs)
    assert not pathlib.Path(caches[0].split('=')[1]).exists()
    name = 'first_token_warm_over_cold'
    assert [given[1] for given in kept] == ['import_seconds', f'{name}_wall', f'{name}_cpu']
    assert [given[2] for given in kept[1:]] == [[0.25, 0.25], [0.75, 0.75]]
    assert 'cold 2.00 s, 4.00 s of CPU time' in capsys.readouterr().out
