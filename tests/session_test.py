"""The notebook API on a tiny model: decode, interrupt, continue, show."""

from __future__ import annotations

import adx
from launch.config import load_config
from tests import tiny


def test_an_interrupted_run_keeps_what_is_finished_and_continues(tmp_path, monkeypatch, capsys):
    config = tmp_path / 'config.py'
    tiny.write_config(config, tiny.write_teacher(tmp_path / 'teacher'))
    experiment = load_config(str(config))
    models = adx.load(experiment)
    decode = adx.session.generation.decode

    def interrupted(*args):
        for i, item in enumerate(decode(*args)):
            if i == 2:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(adx.session.generation, 'decode', interrupted)
    run = adx.decode(experiment, models, arms=[adx.Arm('plain'), adx.Arm('poe', adx.ProductOfExperts(0.3))])
    assert len(run.traces) == 2
    assert 'stopped with 2 of 6 traces' in capsys.readouterr().out
    monkeypatch.undo()
    first = dict(run.traces)
    assert len(run().traces) == 6
    assert first.items() <= run.traces.items()
    page = run._repr_html_()
    assert 'poe' in page
    assert 'plain' in str(run)
