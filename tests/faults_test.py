"""What a fault ends in: a run that goes on, a row that is rejected, or one line that says what is safe and the fix."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import threading
import time

import fakes
import jax
import jax.numpy as jnp
import pytest
from etils import epath
from storage_test import EXPERIMENT, make_trace, open_workdir, refuse

from adx import (
    files,
    generation,
    journal,
    orbax_io,
    outcomes_io,
    rewrites_io,
    storage,
    training_io,
    watch,
)
from adx.errors import InputError, StorageError, WorkdirError
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.storage import Workdir
from adx.training import Trainer
from adx.training_io import Run
from adx.types import POISONED
from tests import tiny


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return tiny.one_arm(tmp_path_factory.mktemp('faults'))


@contextlib.contextmanager
def one_line(kind, *parts):
    with pytest.raises(kind) as error:
        yield
    text = str(error.value)
    assert '\n' not in text
    for part in parts:
        assert part in text


class TestRows:
    def test_a_poisoned_row_is_rejected_and_the_others_are_kept(self, experiment, tmp_path, monkeypatch):
        def poisoned(*given, decode=generation.decode):
            for i, (engine, trace) in enumerate(decode(*given)):
                yield engine, dataclasses.replace(trace, stop=POISONED, tokens=trace.tokens[:2]) if i == 1 else trace

        monkeypatch.setattr(generation, 'decode', poisoned)
        report = tiny.generate(experiment, tmp_path)
        assert (report.done, report.rejected, report.exit_code) == (2, 1, 5)
        (reason,) = Workdir(tmp_path).rejected().values()
        assert reason.startswith('the teacher gave nan or inf after 2 tokens; ')
        assert len(Workdir(tmp_path).finished()) == 2
        monkeypatch.undo()
        report = tiny.generate(experiment, tmp_path)  # the same command, with a checkpoint that was mended
        assert (report.done, report.done_before, report.exit_code) == (1, 2, 0)
        assert watch.status(tmp_path)['rejected'] == 0


class TestHolders:
    def test_a_second_launcher_is_told_who_holds_the_shard(self, experiment, tmp_path):
        tiny.generate(experiment, tmp_path)
        digest = Workdir(tmp_path).experiment['experiment_hash']
        with (
            Workdir.open(tmp_path, Workdir(tmp_path).experiment['experiment'], digest),
            one_line(WorkdirError, 'shard 0-of-1', f'pid {os.getpid()} on host', 'wait for it or stop it'),
        ):
            tiny.generate(experiment, tmp_path)

    def test_so_are_those_of_other_stages(self, tmp_path):
        with (
            storage.held(Workdir(tmp_path), 'rewrite', ['rewrites', 'locks']),
            one_line(WorkdirError, 'stage rewrite', f'pid {os.getpid()}'),
            storage.held(Workdir(tmp_path), 'rewrite', ['rewrites', 'locks']),
        ):
            pass
        log = outcomes_io.open_log(str(tmp_path), 'wide', ['sft'], contextlib.nullcontext)
        again = outcomes_io.open_log(str(tmp_path), 'wide', ['other', 'sft'], contextlib.nullcontext)
        with log, one_line(WorkdirError, 'student wide, attack sft', f'pid {os.getpid()}'), again:
            pass


    def test_of_two_studies_in_one_instant_the_first_has_the_workdir(self, tmp_path, monkeypatch):
        told: list[str] = []

        def claim(name):
            try:
                outcomes_io.claim(str(tmp_path), {'study': name})
                told.append(name)
            except WorkdirError:
                pass

        other = threading.Thread(target=claim, args=['second'])

        def write(path, data, write=files.write_private):
            if not other.ident:  # the first has seen that there is none
                other.start()
                other.join(0.3)
            write(path, data)

        monkeypatch.setattr(files, 'write_private', write)
        claim('first')
        other.join(30)
        assert told == ['first']


class TestReadOnly:
    def test_a_workdir_that_cannot_be_written_is_one_line(self, experiment, tmp_path, monkeypatch):
        def refused(path, flags, *more, opened=os.open, **named):
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return opened(path, flags, *more, **named)

        tiny.generate(experiment, tmp_path)
        monkeypatch.setattr(os, 'open', refused)
        with one_line(WorkdirError, 'cannot be written: Read-only file system; make it writable'):
            tiny.generate(experiment, tmp_path)
        with one_line(WorkdirError, 'cannot be written'):
            outcomes_io.claim(str(tmp_path), {})


class TestClock:
    def test_a_clock_that_jumps_changes_no_trace_and_loses_none(self, tmp_path, monkeypatch):
        now = time.time()
        for jump, row in ((0, 0), (-(10**9), 1), (10**9, 2), (-3600, 3)):

            class Jumped(datetime.datetime):
                @classmethod
                def now(cls, tz=None, jump=jump):
                    return datetime.datetime.fromtimestamp(now + jump, tz)

            monkeypatch.setattr(datetime, 'datetime', Jumped)
            monkeypatch.setattr(time, 'time', lambda jump=jump: now + jump)
            with open_workdir(tmp_path) as workdir:
                assert len(workdir.finished()) == row
                workdir.append([make_trace(row)])
                workdir.heartbeat({'totals': {'plain': 4}})
        monkeypatch.undo()
        traces = [make_trace(row) for row in range(4)]
        assert storage.hashes(tmp_path) == {one.request_id: storage.trace_hash(one) for one in traces}
        assert watch.status(tmp_path)['done'] == 4
        assert watch.status(tmp_path)['running'] == 0


DAMAGES = {'empty': b'', 'torn': b'{"format_version": 1, "exp', 'list': b'[]', 'object': b'{}', 'binary': b'\x00\xff'}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
class TestManifests:
    def test_experiment(self, tmp_path, damage):
        with open_workdir(tmp_path):
            pass
        (tmp_path / 'private' / 'experiment.json').write_bytes(damage)
        with one_line(WorkdirError, 'experiment.json'), open_workdir(tmp_path):
            pass

    def test_study(self, tmp_path, damage):
        outcomes_io.claim(str(tmp_path), {'a': 1})
        (tmp_path / 'private' / 'study.json').write_bytes(damage)
        with one_line(WorkdirError, str(tmp_path)):
            outcomes_io.claim(str(tmp_path), {'a': 1})

    def test_rewrite(self, tmp_path, damage):
        place = tmp_path / 'private' / 'rewrites' / 'said'
        place.mkdir(parents=True)
        (place / 'identity.json').write_bytes(damage)
        with one_line(StorageError, 'identity.json is damaged'):
            list(rewrites_io.rewritten(Workdir(tmp_path), 'said'))

    def test_a_heartbeat_is_news_and_passed_over(self, tmp_path, damage):
        with open_workdir(tmp_path) as workdir:
            workdir.heartbeat({'totals': {'plain': 1}})
        (tmp_path / 'private' / 'heartbeat' / '1-of-2.json').write_bytes(damage)
        status = watch.status(tmp_path)
        assert (status['total'], len(status['processes'])) == (1, 1)

    def test_training(self, tmp_path, damage):
        run, state = Run(epath.Path(tmp_path), {}), start()
        (tmp_path / '00000002').mkdir()
        (tmp_path / '00000002' / training_io.MANIFEST).write_bytes(damage)
        with one_line(InputError, 'training.json is damaged', 'remove'):
            training_io.restore(run, state)
        (tmp_path / 'metrics').mkdir()
        (tmp_path / 'metrics' / '00000002.jsonl').write_bytes(damage)
        if damage:
            with one_line(StorageError, '00000002.jsonl is damaged', 'delete it'):
                training_io.metrics(run)

    def test_model(self, tmp_path, damage):
        (tmp_path / orbax_io.MANIFEST).write_bytes(damage)
        with one_line(InputError, 'adx.json is damaged'):
            orbax_io.read_config(epath.Path(tmp_path))


def start():
    trainer = Trainer(make_model(fakes.PROXY), make_mesh(), Recipe(rows=4, steps=5, length=64), 1)
    params = make_model(fakes.PROXY).init(0)
    return trainer.start({path: x[None] for path, x in params.items()})


class TestCheckpoints:
    def test_arrays_of_which_a_part_is_gone_are_refused_and_never_half_read(self, tmp_path):
        directory = epath.Path(tmp_path)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {'x': jax.ShapeDtypeStruct((5000,), jnp.float32, sharding=sharding)}
        x = jax.random.normal(jax.random.key(0), (5000,))
        orbax_io.write_arrays(directory, {'x': x})
        refused = 0
        for path in list(orbax_io._walk(directory / 'params')):
            whole = path.read_bytes()
            for part in (whole[: len(whole) // 2], b''):
                path.write_bytes(part)
                try:
                    read = orbax_io.restore(directory, abstract)['x']
                except InputError as error:
                    read, reason = None, str(error)
                if read is None:
                    refused += 1
                    assert 'is damaged (' in reason.splitlines()[0]
                else:
                    assert (read == x).all()  # nothing depends on the file
            path.write_bytes(whole)
        assert refused >= 4

    def test_a_disk_that_is_full_leaves_the_last_checkpoint(self, tmp_path, monkeypatch):
        run, state = Run(epath.Path(tmp_path), {'run': 1}), start()
        training_io.save(run, state)
        later = dataclasses.replace(state, step=state.step + 2)

        def full(*given):
            raise ValueError('RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code=28]\nmore')

        import orbax.checkpoint as ocp

        monkeypatch.setattr(ocp.StandardCheckpointer, 'save', lambda *given, **named: full())
        with one_line(StorageError, 'No space left', 'what was finished is safe'):
            training_io.save(run, later)
        monkeypatch.undo()
        monkeypatch.setattr(os, 'fsync', refuse)
        with one_line(StorageError, 'the last checkpoint is safe', 'free some space'):
            training_io.save(run, later)
        monkeypatch.undo()
        assert training_io.last_step(run) == 0
        assert int(training_io.restore(run, state).step) == 0


class TestShards:
    def test_a_truncated_one_costs_what_was_cut_off(self, tmp_path):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(row) for row in range(3)])
        (path,) = (tmp_path / 'private' / 'journal').iterdir()
        whole = path.read_bytes()
        for end in range(0, len(whole), 97):
            path.write_bytes(whole[:end])
            lines = whole[:end].count(b'\n')
            assert Workdir(tmp_path).finished() == {make_trace(row).request_id for row in range(lines)}
            with open_workdir(tmp_path) as workdir:
                assert len(workdir.finished()) == lines
                assert path.read_bytes() == whole[: whole[:end].rfind(b'\n') + 1]

    def test_one_that_is_damaged_within_is_refused_by_file_and_line(self, tmp_path):
        with open_workdir(tmp_path) as workdir:
            workdir.append([make_trace(row) for row in range(3)])
        (path,) = (tmp_path / 'private' / 'journal').iterdir()
        path.write_bytes(path.read_bytes().replace(b'"gsm8k/test/1/0/plain"', b'"gsm8k/te\x00t/1/0/plain"', 1))
        with one_line(StorageError, f'{path.name}:2 is not a JSON object', 'delete that line'), open_workdir(tmp_path):
            pass

    def test_a_full_disk_stops_a_run_and_the_same_command_goes_on(self, experiment, tmp_path, monkeypatch):
        with open_workdir(tmp_path / 'other', EXPERIMENT):
            pass
        monkeypatch.setattr(journal.Journal, '_append', lambda *given: refuse())
        with one_line(StorageError, 'not saved, all appended before are safe', 'free some space'):
            tiny.generate(experiment, tmp_path)
        monkeypatch.undo()
        report = tiny.generate(experiment, tmp_path)
        assert (report.done, report.exit_code) == (3, 0)
