"""A gradient and students by several real processes are those of one, also where some are stopped or killed.

The bounds are for sums of float32 in another order: some 200 terms of a gradient, and 12 steps of Adam, which divides
by the root of a squared gradient and so carries rounding on. Of a tensor's norm, 1x1x2 of 2 processes differed most
from one process in the gradient, by 4.8e-7, and 2x2x1 of 4 in the students, by 1.0e-7.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
import types

import learners
import numpy as np
import pytest

from adx import training_io
from tests import programs
from tests.programs import end, free_port, start

GRADIENT, STUDENTS = 1e-5, 1e-5  # of a tensor's norm


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> types.SimpleNamespace:
    """What one process makes, and what others are started with."""
    root = tmp_path_factory.mktemp('learners')
    (root / 'alone').mkdir()
    learners.learn(root / 'alone', '1x1x1')
    return types.SimpleNamespace(root=root, environment=programs.environment())


def start_all(place, directory, shape: str, count: int, pace: float = 0.0) -> list[subprocess.Popen[str]]:
    given = (str(directory), shape, str(pace), f'127.0.0.1:{free_port()}', str(count))
    directory.mkdir(exist_ok=True)
    return [start(place, *given, str(process), program=('-m', 'tests.learners')) for process in range(count)]


def wait_for_a_step(process: subprocess.Popen[str]) -> None:
    """Until it has read the metrics of its first step; Gloo talks before that."""
    while (line := process.stdout.readline()) and not line.strip().isdigit():
        pass


def assert_close(place, directory, name: str, tolerance: float) -> None:
    ours, theirs = (dict(np.load(path / name)) for path in (directory, place.root / 'alone'))
    for path, x in theirs.items():
        assert np.linalg.norm(ours[path] - x) < tolerance * np.linalg.norm(x), path


def test_two_processes_of_which_one_is_stopped_save_one_step_and_one_process_goes_on(place):
    directory = place.root / 'stopped'
    both = start_all(place, directory, '2x1x1', 2, 0.3)
    wait_for_a_step(both[0])
    both[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, _, why) = map(end, both)
    assert (first, second) == (75, 75), said + why
    assert 'another process was stopped; what is done is saved' in said
    assert 'stopped by SIGTERM' in why
    step = training_io.last_step(learners.run_in(directory))
    assert 1 < step < learners.STEPS
    assert_close(place, directory, learners.GRADIENT, GRADIENT)
    read = []
    learners.learn(directory, '1x1x1', lambda step: read.append(step) or learners.STREAM(step))
    assert read == list(range(step, learners.STEPS))
    assert_close(place, directory, learners.STUDENTS, STUDENTS)


@pytest.mark.slow
@pytest.mark.parametrize(('shape', 'count'), [('1x2x1', 2), ('1x1x2', 2), ('4x1x1', 4), ('2x2x1', 4)])
def test_students_are_those_of_one_process(place, shape, count):
    directory = place.root / shape
    ends = list(map(end, start_all(place, directory, shape, count)))
    assert [code for code, _, _ in ends] == [0] * count, ends
    assert_close(place, directory, learners.GRADIENT, GRADIENT)
    assert_close(place, directory, learners.STUDENTS, STUDENTS)


@pytest.mark.slow
def test_killed_anywhere_another_number_goes_on_from_a_whole_checkpoint(place):
    """A process of two, then of four, then of two is killed within two seconds of the first step it has read."""
    directory, moments = place.root / 'killed', random.Random(1)
    for count, shape in ((2, '2x1x1'), (4, '2x2x1'), (2, '1x2x1')):
        several = start_all(place, directory, shape, count, 0.1)
        wait_for_a_step(several[0])
        time.sleep(moments.uniform(0, 2))
        moments.choice(several).kill()
        ends = [end(one)[0] for one in several]
        # Who misses it notices at once, or is aborted by JAX's service; whoever was done with its work ends well.
        assert set(ends) <= {0, 75, -signal.SIGKILL, -signal.SIGABRT}, ends
    learners.learn(directory, '1x1x1')
    assert_close(place, directory, learners.STUDENTS, STUDENTS)
    kept = [path for path in (directory / 'checkpoints').iterdir() if path.name.isdigit()]
    assert all((path / training_io.MANIFEST).exists() for path in kept)
    assert len(kept) == 2
