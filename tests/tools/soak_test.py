"""The soak finds what it looks for: a run that loses, repeats or changes results does not pass it."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import time

import pytest
from etils import epath
from faults_test import start

from adx import journal, outcomes_io, rewriting, training_io
from adx.decoding.slots import Slots
from adx.errors import ConfigError
from adx.training_io import Run
from tools import soak
from tools.soaking import witness
from tools.soaking.stages import Stage

COUNT = 8


def fake(says_first=False, forgets=False, drifts=False) -> Stage:
    """Writes numbers, one a line, with some work between them. Its faults: says that a number is saved before it is;
    does not look what is there; writes another number after a restart.
    """

    def run(place: pathlib.Path, seer: witness.Witness) -> int:
        place.mkdir(exist_ok=True)
        there = stored(place)
        start = 0 if forgets else len(there)
        for i in range(start, COUNT):
            if says_first:
                seer.saved([str(i)])
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
            value = i + 1000 * (drifts and bool(there))
            seer.seen(str(i), str(value))
            with (place / 'numbers').open('a') as file:
                file.write(f'{i} {value}\n')
            seer.saved([str(i)])
        return 0

    def lines(place: pathlib.Path) -> list[list[str]]:
        path = place / 'numbers'
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def stored(place: pathlib.Path) -> list[str]:
        return [line[0] for line in lines(place)]

    return Stage(run, lambda place: dict(lines(place)), stored, 1)


def trials(stage: Stage, root: pathlib.Path, kills: int = 4) -> list[soak.Trial]:
    one, found = soak.Soak(stage, root, random.Random(0)), []
    while sum(trial.kills for trial in found) < kills:
        found.append(one.trial())
    return found


def test_a_sound_run_passes(tmp_path):
    found = trials(fake(), tmp_path)
    assert not any(trial.failed for trial in found)
    assert all(share <= 2 / COUNT for trial in found for share in trial.unsaved)
    assert not any(share for trial in found for share in trial.beyond[1:])


@pytest.mark.parametrize(('fault', 'is_seen'), [
    ('says_first', lambda trial: trial.lost), ('forgets', lambda trial: trial.duplicated),
    ('drifts', lambda trial: not trial.identical),
])  # fmt: skip
def test_a_faulty_one_does_not(tmp_path, fault, is_seen):
    found = trials(fake(**{fault: True}), tmp_path)
    assert any(is_seen(trial) and trial.failed for trial in found)


def test_a_moment_is_one_of_work_and_not_of_time(tmp_path):
    def idle() -> int:
        time.sleep(0.3)
        return 7

    pid = soak.start(idle, tmp_path / 'log')
    assert soak.worked(pid) < 0.2
    assert soak.wait(pid, 60, lambda: soak.worked(pid) > 0.25) == 7
    pid = soak.start(lambda: time.sleep(60) or 0, tmp_path / 'log')
    assert soak.wait(pid, 0.05) is None
    soak.kill(pid)


def test_figures_say_how_many_and_the_bound(monkeypatch):
    rows = []
    monkeypatch.setattr(soak.figures, 'read', lambda table: rows)
    monkeypatch.setattr(soak.figures, 'append', lambda table, figure, samples, **about: rows.append(
        {'figure': figure, 'value': samples[0]}))  # fmt: skip
    sound = [soak.Trial(identical=True, unsaved=[0.1, 0.0], beyond=[0.02, 0.0]) for _ in range(50)]
    soak.record('generate', sound, 'command')
    soak.record('rewrite', [soak.Trial(lost=2, unsaved=[0.0], beyond=[0.0])], 'command')
    values = {row['figure']: row['value'] for row in rows}
    assert values['kills_generate'] == 100
    assert values['failure_rate_upper_generate'] == pytest.approx(1 - 0.05 ** (1 / 100))
    assert values['failure_rate_upper_rewrite'] == 1.0
    assert (values['kills'], values['lost'], values['byte_identical']) == (101, 2, False)


def test_the_witness_hears_of_a_checkpoint_once_it_is_whole(tmp_path, monkeypatch):
    for owner, name in (
        (Slots, 'read'), (rewriting, '_records'), (outcomes_io.Log, 'add'), (journal.Journal, 'append'),
        (training_io, '_prune'),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be as it was afterwards
    witness.Witness(tmp_path / 'seen').watch(decoding=False)
    run, state = Run(epath.Path(tmp_path / 'run'), {'run': 1}), start()
    assert not witness.what_was_told(tmp_path / 'seen').saved
    training_io.save(run, dataclasses.replace(state, step=state.step + 2))
    assert witness.what_was_told(tmp_path / 'seen').saved == {witness.step(1), witness.step(2)}


def test_a_run_that_hangs_is_told(tmp_path, monkeypatch):
    for name in ('whole', 'killed'):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(soak, 'LIMIT', 0.3)
    hanging = dataclasses.replace(fake(), run=lambda place, seer: time.sleep(60) or 0)
    with pytest.raises(ConfigError, match='first ended with None'):
        soak.Soak(hanging, tmp_path / 'whole', random.Random(0))
    monkeypatch.setattr(soak, 'LIMIT', 600.0)
    one = soak.Soak(fake(), tmp_path / 'killed', random.Random(0))
    one.stage = hanging
    monkeypatch.setattr(soak, 'LIMIT', 0.3)
    with pytest.raises(ConfigError, match='a restarted run hangs'):
        one.trial()
