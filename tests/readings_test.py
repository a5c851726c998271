from __future__ import annotations

import pytest

from adx import readings
from adx.errors import ConfigError, WorkdirError


def test_only_a_frozen_experiment_reads_and_each_reading_is_logged(tmp_path):
    with pytest.raises(ConfigError, match='experiment abc may not read the split test: frozen are none'):
        readings.read_test(tmp_path, 'abc', 'ads')
    assert readings.readings(tmp_path) == []
    readings.freeze(tmp_path, 'abc')
    first = (tmp_path / 'private/frozen.json').read_text()
    readings.freeze(tmp_path, 'abc')
    assert (tmp_path / 'private/frozen.json').read_text() == first
    assert [readings.read_test(tmp_path, 'abc', arm) for arm in ('ads', 'poe')] == [1, 2]
    assert [(r['experiment'], r['arm']) for r in readings.readings(tmp_path)] == [('abc', 'ads'), ('abc', 'poe')]
    with pytest.raises(ConfigError, match='experiment other'):
        readings.read_test(tmp_path, 'other', 'ads')
    assert (tmp_path / 'private/readings.json').stat().st_mode & 0o777 == 0o600


def test_a_damaged_log_is_no_empty_one(tmp_path):
    readings.freeze(tmp_path, 'abc')
    (tmp_path / 'private/readings.json').write_text('[')
    with pytest.raises(WorkdirError, match=r'is damaged.*its entries are evidence'):
        readings.read_test(tmp_path, 'abc', 'ads')
    (tmp_path / 'private/readings.json').write_text('{}')
    with pytest.raises(WorkdirError, match='holds no list'):
        readings.readings(tmp_path)
