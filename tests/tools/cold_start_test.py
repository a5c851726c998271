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
    assert 0 < cold_start.seconds([sys.executable, '-c', '']) < 60
    with pytest.raises(InputError, match='ended with 3: no such thing'):
        cold_start.seconds([sys.executable, '-c', "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


def test_pairs_share_a_cache_and_others_do_not(monkeypatch, tmp_path, capsys):
    started = []

    def seconds(command):
        started.append(command)
        if command[1] == '-c':
            return 0.25
        return 2.0 if any(part.endswith('/cold') for part in command) else 0.5

    monkeypatch.setattr(cold_start, 'seconds', seconds)
    kept = []
    monkeypatch.setattr(figures, 'append', lambda *given, **named: kept.append(given) or dict.fromkeys(
        ('value', 'low', 'high'), 0.25))  # fmt: skip
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='configs/demo.py', tries=2):
        cold_start.main()
    runs = [command for command in started if command[1] == '-m']
    caches = [next(part for part in command if part.startswith('--compile_cache=')) for command in runs]
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert all('--set=max_new_tokens=1' in command for command in runs)
    assert not pathlib.Path(caches[0].split('=')[1]).exists()
    assert [given[1] for given in kept] == ['import_seconds', 'first_token_warm_over_cold']
    assert kept[1][2] == [0.25, 0.25]
    assert 'cold 2.00 s, warm 0.50 s' in capsys.readouterr().out
