"""Which half of the stage prepare a study runs."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import pytest
from absl.testing import flagsaver

from adx import preparation
from configs import testbed_attacks, testbed_screen
from launch import run


@pytest.mark.parametrize(
    ('study', 'ran'),
    [
        (testbed_attacks.study(), 'decode_holdout'),
        (testbed_screen.study(), 'prepare'),
        (dataclasses.replace(testbed_attacks.study(), attacks=testbed_attacks.ATTACKS[:1], curve=2), 'decode_holdout'),
        (dataclasses.replace(testbed_attacks.study(), attacks=testbed_attacks.ATTACKS[:1]), 'prepare'),  # refuses it
    ],
    ids=['attackers', 'rules', 'curves', 'nobody'],
)
def test_a_study_that_only_reads_holdout_traces_takes_no_directions(study, ran, tmp_path, monkeypatch, capsys):
    run.flags.FLAGS.mark_as_parsed()
    counted = {'done': 0, 'done_before': 0, 'rejected': 0, 'tokens': 0, 'seconds': 1.0, 'tokens_per_second': 0.0}
    report = types.SimpleNamespace(stops={}, terms={}, occupancy=0.0, fallbacks=0, exit_code=0, **counted)
    called = []
    for name in ('prepare', 'decode_holdout'):
        monkeypatch.setattr(preparation, name, lambda *at, name=name: called.append(name) or report)
    interrupts = types.SimpleNamespace(guard=contextlib.nullcontext)
    with flagsaver.flagsaver(workdir=str(tmp_path)):
        assert run.study_stages(study, interrupts)['prepare']() == 0
    assert called == [ran] * len(study.seeds)
    assert ('directions' in capsys.readouterr().out) == (ran == 'prepare')
