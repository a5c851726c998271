"""The soak finds what it looks for: a run that loses, repeats or changes results does not pass it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
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
from tools.soaking import stages, witness
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


def trials(root: pathlib.Path, faults: dict[str, bool], kills: int = 4) -> list[soak.Trial]:
    one, found = soak.Soak(fake(**faults), root, random.Random(0)), []
    while sum(trial.kills for trial in found) < kills:
        found.append(one.trial())
    return found


@pytest.fixture(scope='module')
def small():
    """Runs a function in a small process, as the soak's own is: forks of one that has run many tests spend more on
    their memory than a fake run has work, so that every kill comes when it is over.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def test_a_sound_run_passes(tmp_path, small):
    found = small(trials, tmp_path, {})
    assert not any(trial.failed for trial in found)
    assert all(share <= 2 / COUNT for trial in found for share in trial.unsaved)
    assert not any(share for trial in found for share in trial.beyond[1:])


@pytest.mark.parametrize(('fault', 'is_seen'), [
    ('says_first', lambda trial: trial.lost), ('forgets', lambda trial: trial.duplicated),
    ('drifts', lambda trial: not trial.identical),
])  # fmt: skip
def test_a_faulty_one_does_not(tmp_path, small, fault, is_seen):
    found = small(trials, tmp_path, {fault: True})
    assert any(is_seen(trial) and trial.failed for trial in found)


def sleeper(log: pathlib.Path) -> tuple[int | None, bool]:
    """What an idle process ends with before it has worked for long, and whether one is told to run still."""
    pid = soak.start(lambda: time.sleep(0.3) or 7, log)
    ended = soak.wait(pid, 60, lambda: soak.worked(pid) > 0.25)
    pid = soak.start(lambda: time.sleep(60) or 0, log)
    runs = soak.wait(pid, 0.05) is None
    soak.kill(pid)
    return ended, runs


def test_a_moment_is_one_of_work_and_not_of_time(tmp_path, small):
    assert small(sleeper, tmp_path / 'log') == (7, True)


def test_a_step_that_is_logged_twice_is_seen(tmp_path):
    """Readers of metrics take one record a step: what is looked at are the lines of the files."""
    for name, content in (
        ('00000002/training.json', '{}'), ('00000004/training.json', '{}'), ('metrics/00000002.jsonl', '1 2'),
        ('metrics/00000004.jsonl', '3 4'), ('metrics/00000006.jsonl', '5 6'),
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = ''.join(f'{{"step": {step}}}\n' for step in content.split())
        path.write_text(lines if path.suffix == '.jsonl' else content)
    train = stages.STAGES['train']
    assert train.stored(tmp_path) == [witness.step(step) for step in (1, 2, 3, 4)]
    (tmp_path / 'metrics' / '00000003.jsonl').write_text('{"step": 3}\n')
    ids = train.stored(tmp_path)
    assert len(ids) - len(set(ids)) == 1


def test_a_checkpoint_of_the_soaked_training_is_a_twentieth_of_it_at_most():
    assert stages.EVERY / stages.STEPS <= 0.05


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


def hanging(root: pathlib.Path) -> list[str]:
    """What is said of an uninterrupted run that hangs, and of a restarted one."""
    for name in ('whole', 'killed'):
        (root / name).mkdir()
    stage = dataclasses.replace(fake(), run=lambda place, seer: time.sleep(60) or 0)
    one = soak.Soak(fake(), root / 'killed', random.Random(0))
    one.stage = stage
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soak, 'LIMIT', 0.3)
        for run in (lambda: soak.Soak(stage, root / 'whole', random.Random(0)), one.trial):
            with pytest.raises(ConfigError) as found:
                run()
            said.append(str(found.value))
    return said


def test_a_run_that_hangs_is_told(tmp_path, small):
    first, restarted = small(hanging, tmp_path)
    assert 'first ended with None' in first
    assert 'a restarted run hangs' in restarted
