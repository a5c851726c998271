"""A process that lives and does not go on ends the program of all, in a stated time and by its number."""

from __future__ import annotations

import pathlib
import time
import types

import pytest

from adx import pace
from adx.pace import Pace
from launch import stragglers
from tests import programs
from tests.programs import end, free_port, start

# Two processes gather once and vote six times; then process 1 sleeps before the next gathering or vote.
ASLEEP = """
import sys, time
import jax
from adx import processes
from launch import interrupts, stragglers

where, coordinator, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
stop = interrupts.Interrupts()
jax.config.update('jax_enable_preemption_service', False)
jax.distributed.initialize(coordinator, 2, process, heartbeat_timeout_seconds=60)
processes.wait()
vote = processes.Vote()
for _ in range(6):
    vote(False)
processes.wait()
stragglers.watch(2.0, stop.end)
if process:
    print('sleeps', flush=True)
    time.sleep(120)
while True:
    vote(False) if where == 'vote' else processes.wait()
"""
# launch.run, of which one process sleeps at its third chunk of steps.
SLOW = """
import time
from absl import app
from adx.decoding import slots
from launch import run

dispatch, chunks = slots.Slots.dispatch, []

def late(self):
    chunks.append(1)
    if len(chunks) == 3:
        time.sleep(200)
    return dispatch(self)

slots.Slots.dispatch = late
app.run(run.main, flags_parser=run.program.parse)
"""
SAID = 'error: process 1 of 2 made no progress for {} s and the others wait'


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> types.SimpleNamespace:
    return types.SimpleNamespace(root=tmp_path_factory.mktemp('late'), environment=programs.environment())


@pytest.mark.parametrize('where', ['gather', pytest.param('vote', marks=pytest.mark.slow)])
def test_two_processes_of_which_one_sleeps_end_with_its_number(place, where):
    at = f'127.0.0.1:{free_port()}'
    both = [start(place, where, at, str(process), program=('-c', ASLEEP)) for process in range(2)]
    while (line := both[1].stdout.readline()) and line != 'sleeps\n':  # Gloo talks before that
        pass
    began = time.monotonic()
    ends = list(map(end, both))
    assert time.monotonic() - began < 20  # 2, and some on a busy machine
    for code, _, err in ends:
        assert code == 75, err
        assert err.splitlines()[-1].startswith(SAID.format(2)), err


@pytest.mark.slow
def test_a_run_in_which_one_sleeps_ends_and_the_same_command_continues(tmp_path):
    place = programs.make_place(tmp_path)
    config = pathlib.Path(place.config)
    config.write_text(''.join(line for line in config.read_text().splitlines(True) if 'weight=0.3' not in line))
    given = programs.arguments(place, 'both', '--set=mesh.data=2', '--distributed', '--num_processes=2')
    at = f'--coordinator=127.0.0.1:{free_port()}'
    first = start(place, *given, at, '--straggler_seconds=20', '--process_id=0')
    second = start(place, *given, at, '--straggler_seconds=20', '--process_id=1', program=('-c', SLOW))
    for code, _, err in map(end, (first, second)):
        assert code == 75, err
        assert err.splitlines()[-1].startswith(SAID.format(20)), err
    at = f'--coordinator=127.0.0.1:{free_port()}'
    both = [start(place, *given, at, f'--process_id={process}') for process in range(2)]
    assert [code for code, *_ in map(end, both)] == [0, 0]
    assert programs.finished(place, 'both') == 6


def test_late_is_who_is_behind_all_others_once_nobody_goes_on():
    watch = stragglers.Watch(3, 10.0, 0.0)
    ahead, behind = Pace(2, 5), Pace(2, 4)
    assert watch.late({0: ahead, 1: ahead, 2: behind}, 1.0) == []
    assert watch.late({0: ahead, 1: ahead, 2: behind}, 10.5) == []  # 9.5 s
    assert watch.late({0: Pace(2, 6), 1: ahead, 2: behind}, 10.9) == []  # one goes on
    assert watch.late({0: Pace(2, 6), 1: ahead, 2: behind}, 20.8) == []
    assert watch.late({0: Pace(2, 6), 1: ahead, 2: behind}, 21.0) == [2]


def test_nobody_is_late_where_all_are_equally_far_and_meetings_count_before_steps():
    watch = stragglers.Watch(2, 10.0, 0.0)
    assert watch.late({0: Pace(1, 7), 1: Pace(1, 7)}, 0.0) == []
    assert watch.late({0: Pace(1, 7), 1: Pace(1, 7)}, 1000.0) == []  # both compile
    # Process 1 had less to do and waits in the next meeting for process 0.
    assert watch.late({0: Pace(1, 900), 1: Pace(2, 0)}, 1001.0) == []
    assert watch.late({0: Pace(1, 900), 1: Pace(2, 0)}, 1012.0) == [0]
    # Two that did not begin.
    assert stragglers.Watch(3, 10.0, 0.0).late({0: Pace(1, 0)}, 0.0) == []
    fresh = stragglers.Watch(3, 10.0, 0.0)
    fresh.late({0: Pace(1, 0)}, 0.0)
    assert fresh.late({0: Pace(1, 0)}, 10.0) == [1, 2]


class Shared:
    """A board of one interpreter."""

    count = 2

    def __init__(self, process, kept):
        self.process, self.kept = process, kept

    def write(self, key, value):
        self.kept[key] = value

    def read(self, directory):
        return {key.split('/')[-1]: value for key, value in self.kept.items() if key.startswith(directory)}


def test_what_one_finds_out_all_say(monkeypatch):
    monkeypatch.setattr(stragglers, 'MOST_POLL', 0.1)
    monkeypatch.setattr(pace, 'OURS', Pace(3, 1))
    kept: dict[str, list[int]] = {f'{stragglers.BOARD}/1': [3, 0]}
    told = []
    stragglers._watch(Shared(0, kept), 0.2, lambda *given: told.append(given))
    assert kept[f'{stragglers.VERDICT}/0'] == [1]
    monkeypatch.setattr(pace, 'OURS', Pace(3, 0))
    stragglers._watch(Shared(1, kept), 1000.0, lambda *given: told.append(given))
    assert [text[: text.index(' made')] for text, _ in told] == ['process 1 of 2'] * 2
    assert told[0][1] > stragglers.LEAST_POLL  # process 0 waits for the others to have read it
