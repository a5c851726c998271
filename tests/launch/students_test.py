"""Students by the program as its user starts it: stopped, killed, and by one program of two processes.

Between one process and two the bound is for sums of float32 in another order over 24 steps of Adam: of a tensor's norm
two processes over `data` differed most by 1.2e-5, over `model` by 1.4e-5.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import signal
import time
import types

import jax
import numpy as np
import pytest
from etils import epath
from studies import make_study, write_holdout, write_traces

from adx import keeping, orbax_io, outcomes_io
from tests import programs
from tests.programs import end, start, start_together

WEIGHTS = 1e-4
CONFIG = '''
from adx.attacks import Attack
from studies import make_study


def study():
    return make_study({students!r}, {fields})
'''
FIELDS = "attacks=(Attack('sft'),), seeds=(0,), budgets=(24,), learning_rates=(1e-2,), curve=1, controls=('poe',)"
# Steps take their time, and what was in training stays when it is done; or process 0 kills itself at a step.
PROGRAM = """
import os, signal, time
from absl import app
from adx import keeping, training_io
from launch import run

add, at = training_io._Log.add, {at}

def slowly(log, step, metrics):
    add(log, step, metrics)
    time.sleep({pace})
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)

training_io._Log.add = slowly
keeping.Shelf._remove = lambda shelf: None
app.run(run.main, flags_parser=run.program.parse)
"""
KEEPING = PROGRAM.format(at=0, pace=0.0)


@pytest.fixture(scope='module')
def place(students, tmp_path_factory) -> types.SimpleNamespace:
    """A config, traces that nobody changes, and what a run that is left alone makes of them."""
    root = tmp_path_factory.mktemp('students')
    config = root / 'config.py'
    config.write_text(CONFIG.format(students=students[:1], fields=FIELDS))
    study = make_study(students[:1], seeds=(0,))
    write_traces(study, str(root / 'traces'))
    write_holdout(study, str(root / 'traces'))
    found = types.SimpleNamespace(root=root, config=config, environment=programs.environment())
    code, out, err = end(start(found, *flags(found, 'alone'), program=('-c', KEEPING)))
    assert code == 0, err
    assert '4 students graded on tune, 2 on attack_val' in out
    return found


def flags(place, name: str, *more: str) -> tuple[str, ...]:
    workdir = place.root / name
    if not workdir.exists():
        shutil.copytree(place.root / 'traces', workdir)
    return (f'--config={place.config}', f'--workdir={workdir}', '--stages=distil', '--checkpoint_every=8', *more)


def outcomes(place, name: str) -> dict[str, dict]:
    """Without the time that they took."""
    found = outcomes_io.read(str(place.root / name))
    return {name: dataclasses.asdict(dataclasses.replace(one, seconds=0.0)) for name, one in found.items()}


def weights(place, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Of the students of each run as they ended: {students as JSON: {path: array}}."""
    found = {}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for path in (place.root / name / 'private' / keeping.TRAINING).glob('*/*/00000024/training.json'):
        manifest = json.loads(path.read_text())
        shapes = {one: shape for one, shape in manifest['shapes'].items() if one.startswith('weights.')}
        abstract = {one: jax.ShapeDtypeStruct(shape, np.float32, sharding=here) for one, shape in shapes.items()}
        arrays = orbax_io.restore(epath.Path(path.parent), abstract)
        found[json.dumps(manifest['identity']['students'])] = jax.device_get(arrays)
    return found


def wait_for_a_checkpoint(process, workdir: pathlib.Path) -> None:
    while process.poll() is None and not list((workdir / 'private').glob('training/*/*/*/training.json')):
        time.sleep(0.05)


@pytest.mark.slow  # half a minute; keeping_test stops students in its own process
def test_a_student_that_is_stopped_is_saved_and_the_same_command_goes_on(place):
    """By SIGTERM in the middle; what it passed before, a mark of its curve, is read again."""
    slow = ('-c', PROGRAM.format(at=0, pace=0.3))
    process = start(place, *flags(place, 'stopped'), program=slow)
    wait_for_a_checkpoint(process, place.root / 'stopped')
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert code == 75, err
    assert 'stopped by SIGTERM' in err
    assert not any(one['setting'] for one in outcomes(place, 'stopped').values())
    code, _, err = end(start(place, *flags(place, 'stopped')))
    assert code == 0, err
    assert outcomes(place, 'stopped') == outcomes(place, 'alone')
    training = place.root / 'stopped' / 'private' / keeping.TRAINING
    assert not list(training.iterdir())


@pytest.mark.slow  # a minute; together_test kills programs across hosts too
@pytest.mark.parametrize('axis', ['data', 'model'])
def test_one_program_of_two_processes_is_killed_and_goes_on_to_the_students_of_one(place, axis):
    given = flags(place, axis, f'--set=experiment.mesh.{axis}=2')
    killed = ('-c', PROGRAM.format(at=14, pace=0.0))
    ends = list(map(end, start_together(place, *given, program=killed)))
    assert ends[0][0] == -signal.SIGKILL, ends
    assert ends[1][0] in (75, -signal.SIGABRT), ends
    assert not any(one['setting'] for one in outcomes(place, axis).values())
    ends = list(map(end, start_together(place, *given, program=('-c', KEEPING))))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert '4 students graded on tune' in ends[0][1]
    assert 'students' not in ends[1][1]
    ours, theirs = outcomes(place, axis), outcomes(place, 'alone')
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        other = theirs[name]
        assert all(one[field] == other[field] for field in ('prompts', 'threat', 'setting', 'identity', 'lessons'))
        for point, same in zip(one['curve'], other['curve'], strict=True):
            assert point == pytest.approx(same, rel=1e-3, abs=0.1)
            assert (point['step'], point['tokens']) == (same['step'], same['tokens'])
    ours, theirs = weights(place, axis), weights(place, 'alone')
    assert len(ours) == 2
    assert ours.keys() == theirs.keys()
    far = 0.0
    for students, arrays in theirs.items():
        for path, x in arrays.items():
            far = max(far, float(np.linalg.norm(ours[students][path] - x) / np.linalg.norm(x)))
    assert far < WEIGHTS


@pytest.mark.slow
def test_when_one_of_two_processes_is_stopped_both_save_one_step_and_one_process_goes_on(place):
    given = flags(place, 'voted', '--set=experiment.mesh.data=2')
    both = start_together(place, *given, program=('-c', PROGRAM.format(at=0, pace=0.3)))
    wait_for_a_checkpoint(both[0], place.root / 'voted')
    both[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, _, why) = map(end, both)
    assert (first, second) == (75, 75), said + why
    assert 'another process was stopped; what is done is saved' in said
    assert 'stopped by SIGTERM' in why
    code, _, err = end(start(place, *flags(place, 'voted'), program=('-c', KEEPING)))
    assert code == 0, err
    for students, arrays in weights(place, 'alone').items():
        for path, x in arrays.items():
            other = weights(place, 'voted')[students][path]
            assert np.linalg.norm(other - x) < WEIGHTS * np.linalg.norm(x), path


def test_what_one_program_does_not_do_is_named(place, students):
    config = place.root / 'asking.py'
    fields = FIELDS.replace("Attack('sft')", "Attack('sft'), Attack('gkd', loss='on_policy')")
    config.write_text(CONFIG.format(students=students[:1], fields=fields))
    given = flags(place, 'refused', '--set=experiment.mesh.data=2', f'--config={config}')
    for code, _, err in map(end, start_together(place, *given)):
        assert code == 2, err
        assert "attack 'gkd' asks a model beside its students (labels for the loss 'on_policy')" in err
        assert err.count('\n') == 1, err
    given = flags(place, 'refused', '--stages=assess')
    for code, _, err in map(end, start_together(place, *given)):
        assert (code, '--stages=assess is not done by one program across hosts' in err) == (2, True), err


def test_what_another_process_does_not_see_ends_both_in_one_line(place):
    given = flags(place, 'unseen', '--set=experiment.mesh.data=2')
    for code, _, err in map(end, start_together(place, *given, theirs=(f'--workdir={place.root / "none"}',))):
        assert code in (3, 4), err
        assert err.count('\n') == 1, err
