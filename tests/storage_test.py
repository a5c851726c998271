"""A workdir keeps what it said it saved: kills, full disks, second owners and object stores."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from adx import storage, watch
from adx.errors import StorageError, WorkdirError
from adx.journal import diff
from adx.storage import Workdir
from adx.types import Trace

EXPERIMENT = {'decoding': {'temperature': 0.7, 'slots': [4, 8]}, 'seed': 1}


def make_trace(row: int, setting: str = 'plain', **changes) -> Trace:
    trace = Trace(
        request_id=f'gsm8k/test/{row}/0/{setting}',
        messages=({'role': 'user', 'content': f'Question {row}?'},),
        text=f'Because. {row}',
        reasoning='Because.',
        answer=str(row),
        tokens=(row, 2, 3),
        stop='eos',
        prompt_tokens=7,
        defence={'type': 'undefended'},
        sampling={'temperature': 0.7},
        seed=1,
    )
    return dataclasses.replace(trace, **changes)


def open_workdir(path, experiment=EXPERIMENT, experiment_hash='hash', shard=0, num_shards=1):
    return Workdir.open(path, experiment, experiment_hash, shard, num_shards)


def journals(path) -> list[pathlib.Path]:
    return sorted((pathlib.Path(path) / 'private' / 'journal').iterdir())


class TestWorkdir:
    def test_continues_with_another_number_of_processes(self, tmp_path):
        for shard in range(2):
            with open_workdir(tmp_path, shard=shard, num_shards=2) as workdir:
                workdir.append([make_trace(shard), make_trace(shard + 10)])
        with open_workdir(tmp_path) as workdir:
            assert workdir.finished() == {make_trace(row).request_id for row in (0, 1, 10, 11)}
            workdir.append([make_trace(1), make_trace(2)])
        traces = list(Workdir(tmp_path).traces())
        assert sorted(traces, key=lambda t: t.tokens) == [make_trace(row) for row in (0, 1, 2, 10, 11)]

    def test_private_side_is_private(self, tmp_path):
        (tmp_path / 'private').mkdir(mode=0o755)
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(1)])
            workdir.reject('gsm8k/test/2/0/plain', 'too long')
            workdir.heartbeat({})
        for folder, _, names in os.walk(tmp_path / 'private'):
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
            for name in names:
                assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600

    def test_refuses_another_experiment_and_says_what_differs(self, tmp_path):
        with open_workdir(tmp_path):
            pass
        ours = {'decoding': {'temperature': 1.0, 'slots': [4, 16]}, 'seed': 1, 'new': True}
        with pytest.raises(WorkdirError) as error, open_workdir(tmp_path, ours, 'other'):
            pass
        assert error.value.exit_code == 4
        for part in ('temperature: 0.7 != 1.0', 'decoding.slots[1]: 8 != 16', 'new: (absent) != true'):
            assert part in str(error.value)
        assert 'seed' not in str(error.value)

    def test_refuses_another_format(self, tmp_path):
        with open_workdir(tmp_path):
            pass
        path = tmp_path / 'private' / 'experiment.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | {'format_version': 9}))
        with pytest.raises(WorkdirError, match='format_version is 9'), open_workdir(tmp_path):
            pass

    def test_refuses_what_is_no_workdir(self, tmp_path):
        with pytest.raises(WorkdirError, match='is no workdir'):
            watch.status(tmp_path)

    def test_refuses_an_unwritable_place(self, tmp_path):
        (tmp_path / 'file').write_text('')
        message = r'cannot be written: .*; give a directory$'
        with pytest.raises(WorkdirError, match=message), open_workdir(tmp_path / 'file'):
            pass

    def test_diff_knows_types_and_lengths(self):
        theirs, ours = {'a': 1, 'b': [1]}, {'a': 1.0, 'b': [1, 2]}
        assert diff(theirs, ours) == ['a: 1 != 1.0', 'b: [1] != [1, 2]']
        assert diff(EXPERIMENT, EXPERIMENT) == []

    def test_digest_ignores_order_files_and_times(self, tmp_path):
        traces = [make_trace(row) for row in range(4)]
        with open_workdir(tmp_path / 'a') as workdir:
            workdir.append(traces)
        for shard in range(2):
            with open_workdir(tmp_path / 'b', shard=shard, num_shards=2) as workdir:
                later = [dataclasses.replace(trace, versions={'jax': 'x'}) for trace in traces]
                workdir.append(later[shard::2][::-1])
        one, two = (storage.hashes(tmp_path / name) for name in 'ab')
        assert one == two
        assert storage.digest(one) == storage.digest(two)
        with open_workdir(tmp_path / 'c') as workdir:
            workdir.append([*traces[:3], dataclasses.replace(traces[3], stop='length')])
        assert storage.digest(storage.hashes(tmp_path / 'c')) != storage.digest(one)


class TestStatus:
    def test_counts_rows_and_running_processes(self, tmp_path, monkeypatch):
        beat = {'totals': {'plain': 10}, 'tokens_per_second': 5.0, 'seconds_left': 9.0, 'occupancy': 0.5}
        with (
            open_workdir(tmp_path, shard=0, num_shards=2) as one,
            open_workdir(tmp_path, shard=1, num_shards=2) as two,
        ):
            one.append([make_trace(0)])
            two.append([make_trace(1)])
            one.reject(make_trace(1).request_id, 'finished by the other all the same')
            one.reject(make_trace(2).request_id, 'prompt too long')
            one.heartbeat(beat)
            two.heartbeat(beat | {'tokens_per_second': 7.0, 'seconds_left': 30.0, 'occupancy': 1.0})
            status = watch.status(tmp_path)
            later = time.time() + watch.LIVE_SECONDS + 1
            monkeypatch.setattr(time, 'time', lambda: later)
            silent = watch.status(tmp_path)
            monkeypatch.undo()
        keys = ('done', 'rejected', 'total', 'running', 'tokens_per_second', 'seconds_left', 'occupancy')
        assert [status[key] for key in keys] == [2, 1, 10, 2, 12.0, 30.0, 0.75]
        assert [beat['process'] for beat in status['processes']] == ['0-of-2', '1-of-2']
        assert [silent[key] for key in keys] == [2, 1, 10, 0, None, None, None]
        stopped = watch.status(tmp_path)
        assert stopped['running'] == 0
        assert {beat['state'] for beat in stopped['processes']} == {'stopped'}


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_with_room_for(room: int, write=os.write, full=refuse):
    """os.write on a disk with `room` bytes left: it takes a part, and then calls `full`."""

    def limited(fd, data):
        nonlocal room
        if not room:
            return full()
        written = write(fd, data[:room])
        room -= written
        return written

    return limited


class TestFullDisk:
    @pytest.mark.parametrize('call', ['write', 'fsync'])
    def test_keeps_what_was_saved_and_nothing_else(self, tmp_path, monkeypatch, call):
        full = {'write': write_with_room_for(10), 'fsync': refuse}[call]
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(0)])
            before = journals(tmp_path)[0].read_bytes()
            monkeypatch.setattr(os, call, full)
            with pytest.raises(StorageError, match=r'before are safe: No space .*; free some space') as error:
                workdir.append([make_trace(1)])
            assert error.value.exit_code == 74
            monkeypatch.undo()
            assert journals(tmp_path)[0].read_bytes() == before
            workdir.append([make_trace(2)])
        assert Workdir(tmp_path).finished() == {make_trace(0).request_id, make_trace(2).request_id}

    def test_the_last_heartbeat_hides_no_lost_record(self, tmp_path, monkeypatch):
        def run():
            with open_workdir(tmp_path) as workdir:
                workdir.heartbeat({})
                monkeypatch.setattr(os, 'write', refuse)
                workdir.append([make_trace(1)])

        with pytest.raises(StorageError, match=r'1 record\(s\) not saved'):
            run()

    def test_opening_on_a_full_disk_is_a_storage_error(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, 'fsync', refuse)
        with pytest.raises(StorageError, match='free some space'), open_workdir(tmp_path):
            pass
        assert not (tmp_path / 'private' / 'experiment.json').exists()
        assert not list((tmp_path / 'private').glob('*.tmp'))


CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from storage_test import make_trace, open_workdir, write_with_room_for
start, room = int(sys.argv[2]), int(sys.argv[3])
with open_workdir(sys.argv[1]) as workdir:
    if room:
        os.write = write_with_room_for(room, full=lambda: os.kill(os.getpid(), signal.SIGKILL))
    for row in range(start, start + 10**9):
        workdir.append([make_trace(row, text='x' * 20000)])
        print(row, flush=True)
"""


def spawn(path, start=0, room=0) -> subprocess.Popen:
    """A process that appends rows from `start` on, prints each once saved and dies after `room` bytes."""
    code = CHILD.format(tests=os.path.dirname(__file__))
    command = [sys.executable, '-c', code, path, str(start), str(room)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class TestKills:
    def test_a_killed_process_loses_nothing_it_said_it_saved(self, tmp_path):
        said: set[str] = set()
        for kill in range(3):
            child = spawn(tmp_path, start=kill * 10**6)
            said |= {make_trace(int(child.stdout.readline())).request_id for _ in range(5 + kill)}
            time.sleep(0.003 * kill)
            child.send_signal(signal.SIGKILL)
            rest = child.communicate()[0].split('\n')[:-1]
            said |= {make_trace(int(row)).request_id for row in rest}
            saved = Workdir(tmp_path).finished()
            assert said <= saved
            assert len(saved - said) <= kill + 1  # each kill may hit between the fsync and the saying
        with open_workdir(tmp_path) as workdir:
            assert all(file.read_bytes()[-1:] == b'\n' for file in journals(tmp_path))
            assert len(list(workdir.traces())) == len(saved)

    def test_killed_in_the_middle_of_a_write(self, tmp_path):
        child = spawn(tmp_path, room=50_000)  # two lines of 20 kB and a half
        assert child.communicate()[0].split() == ['0', '1']
        assert child.returncode == -signal.SIGKILL
        (journal,) = journals(tmp_path)
        assert journal.stat().st_size == 50_000
        with open_workdir(tmp_path) as workdir:
            assert journal.read_bytes().count(b'\n') == 2
            assert journal.stat().st_size < 50_000
            assert workdir.finished() == {make_trace(0).request_id, make_trace(1).request_id}

    def test_the_lock_names_its_holder_and_dies_with_it(self, tmp_path):
        child = spawn(tmp_path)
        child.stdout.readline()
        try:
            for layout in ({}, {'shard': 1, 'num_shards': 2}):
                busy = pytest.raises(WorkdirError, match=f'pid {child.pid} on host')
                with busy as error, open_workdir(tmp_path, **layout):
                    pass
                assert error.value.exit_code == 4
        finally:
            child.kill()
            child.communicate()
        with open_workdir(tmp_path, shard=1, num_shards=2):
            pass

    def test_shards_of_one_layout_run_side_by_side(self, tmp_path):
        with (
            open_workdir(tmp_path, shard=0, num_shards=2),
            open_workdir(tmp_path, shard=1, num_shards=2),
            pytest.raises(WorkdirError, match='shard 1-of-2'),
            open_workdir(tmp_path, shard=1, num_shards=2),
        ):
            pass


@pytest.mark.parametrize(('name', 'change'), [
    ('experiment.json', {'experiment': None}), ('experiment.json', {'created': 7}),
    ('heartbeat/0-of-1.json', {'totals': {'plain': None}}),
])  # fmt: skip
def test_values_of_the_wrong_kind_in_a_workdir_are_no_traceback(tmp_path, name, change):
    with open_workdir(tmp_path) as workdir:
        workdir.heartbeat({'totals': {'plain': 3}})
    path = tmp_path / 'private' / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if name == 'experiment.json':
        with pytest.raises(WorkdirError, match='is damaged'):
            watch.status(tmp_path)
    else:
        assert watch.status(tmp_path)['total'] is None


def test_differences_are_told_in_one_line():
    assert diff({'a\r\nb': 1}, {}) == [r"'a\r\nb': 1 != (absent)"]
