"""Students that are stopped in the middle of their training and go on are those that never were, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os

import fakes
import numpy as np
import pytest

from adx import forgetting, keeping, retention, teaching
from adx.batching import Corpus, Example
from adx.errors import Interrupted, WorkdirError
from adx.keeping import Keeping, make_shelf
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.objectives import Hard
from adx.optimising import Recipe
from adx.storage import Workdir
from adx.teaching import Classroom, Job

pytestmark = pytest.mark.usefixtures('shared_trainers')

MODEL = make_model(fakes.PROXY)
STEPS, EVERY = 12, 4


def corpus(seed: int, longer: int = 0) -> Corpus:
    """Others for other seeds."""
    examples = [Example(str(i), (i + 1, seed % 7 + 1), (3, i + 1, seed % 5 + 2, *(7,) * longer)) for i in range(6)]
    return Corpus(examples, seed)


def own_answers(params, turn) -> Corpus:
    """What a student "answers" depends on its weights, to the last bit, and on the turn; once long, once short."""
    bits = int(np.asarray(params['embed'], np.float32).view(np.uint32).sum())
    return corpus(bits + turn, longer=0 if turn % 2 else 70)


def plain(i: int, steps: int = STEPS, marks: tuple[int, ...] = ()) -> Job:
    return Job({'learning_rate': 1e-2, 'steps': steps}, steps, corpus(i), marks, arm=f'arm-{i}')


KINDS = {
    'plain': [plain(0)],
    'marks': [plain(0, marks=(3, 4, 9)), plain(1, 7, (2, 5))],
    # The first ends before the last but one of the second's corpora, and is padded by its own to the end.
    'fresh': [
        dataclasses.replace(plain(i, steps, marks), fresh=own_answers, every=5)
        for i, steps, marks in ((0, 4, ()), (1, STEPS, (5, 7)))
    ],
}


@functools.cache
def room(rank: int = 0) -> Classroom:
    return Classroom(MODEL, MODEL.init(3), make_mesh(), Recipe(rows=4, length=128, lora_rank=rank))


def teach(kind: str, shelf=None, tell=lambda done, total: None, rank: int = 0):
    return room(rank).teach(KINDS[kind], Hard(), 5, tell, shelf)


@functools.cache
def uninterrupted(kind: str, rank: int = 0):
    return teach(kind, rank=rank)


def shelf_in(path, every: int = EVERY, guard=contextlib.nullcontext, identity: str = 'a'):
    return make_shelf(str(path), '0-first-sft', {'study': identity}, Keeping(guard, every))


class Stops:
    """A guard that raises an interruption when it is left for the n-th time, as launch.interrupts does."""

    def __init__(self, at: int):
        self.left = at

    @contextlib.contextmanager
    def __call__(self):
        yield
        self.left -= 1
        if not self.left:
            raise Interrupted('stopped')


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.setting, one.diverged) == (other.setting, other.diverged)
        assert [(m.step, m.tokens) for m in one.marks] == [(m.step, m.tokens) for m in other.marks]
        for mark, same in zip(one.marks, other.marks, strict=True):
            for path, x in same.params.items():
                np.testing.assert_array_equal(mark.params[path], x, err_msg=f'{mark.step} {path}')


@pytest.fixture(autouse=True)
def together(monkeypatch):
    monkeypatch.setattr(teaching, 'stack_size', lambda: 2)


@pytest.mark.parametrize(('kind', 'stops'), [
    ('plain', (6,)), ('marks', (1, 3, 2, 4)), ('fresh', (2, 4, 3, 5)),
    *(pytest.param(kind, (at,), marks=pytest.mark.slow) for kind in KINDS for at in range(1, 18)),
])  # fmt: skip
def test_stopped_students_go_on_bit_for_bit(tmp_path, kind, stops):
    """Once, or several times: each time so many writes after it began again."""
    for at in stops:
        with contextlib.suppress(Interrupted):
            teach(kind, shelf_in(tmp_path, guard=Stops(at)))
    told = []
    found = teach(kind, shelf_in(tmp_path), lambda done, total: told.append((done, total)))
    assert told[-1:] in ([(STEPS, STEPS)], [])
    if stops != (1,):  # what was written first may be a corpus, with the students at their start
        assert len(told) < STEPS
    if len(stops) > 1 or 1 < stops[0] < 12:  # later writes may be those of the end
        assert told
    assert_same(found, uninterrupted(kind))
    again = teach(kind, shelf_in(tmp_path))
    assert_same(again, uninterrupted(kind))  # also when it is asked once more
    assert {one.seconds for one in again} == {0.0}  # those of the training are not known
    assert all(one.seconds > 0 for one in uninterrupted(kind))


@pytest.mark.parametrize(('kind', 'at'), [('marks', 11), ('fresh', 11), ('fresh', 6)])
def test_killed_students_go_on_from_a_checkpoint(tmp_path, monkeypatch, kind, at):
    """Nothing is saved when they die."""
    rows = teaching._Way.rows

    def dying(way, step):
        if step == at:
            raise RuntimeError('killed')
        return rows(way, step)

    with monkeypatch.context() as patch:
        patch.setattr(teaching._Way, 'rows', dying)
        with pytest.raises(RuntimeError):
            teach(kind, shelf_in(tmp_path))
    told = []
    assert_same(teach(kind, shelf_in(tmp_path), lambda done, total: told.append(done)), uninterrupted(kind))
    assert told[0] > 4


def test_answers_that_were_being_asked_for_are_asked_for_again(tmp_path, monkeypatch):
    def stopped(params, turn):
        if turn == 2:
            raise Interrupted('stopped')
        return own_answers(params, turn)

    with monkeypatch.context() as patch:
        patch.setitem(KINDS, 'fresh', [dataclasses.replace(job, fresh=stopped) for job in KINDS['fresh']])
        with pytest.raises(Interrupted):
            teach('fresh', shelf_in(tmp_path))
    assert_same(teach('fresh', shelf_in(tmp_path)), uninterrupted('fresh'))


def test_adapters_go_on_too(tmp_path):
    with pytest.raises(Interrupted):
        teach('marks', shelf_in(tmp_path, guard=Stops(8)), rank=2)
    assert_same(teach('marks', shelf_in(tmp_path), rank=2), uninterrupted('marks', 2))


def test_short_training_keeps_nothing_and_long_training_little(tmp_path):
    for every in (0, STEPS):
        teach('marks', shelf_in(tmp_path / str(every), every))
        assert not (tmp_path / str(every)).exists()
    shelf = shelf_in(tmp_path)
    teach('fresh', shelf)
    (run,) = shelf.directory.iterdir()
    # Marks stay; of the corpora the weights of the last are there, and no longer those of the one before.
    assert sorted(path.name for path in run.iterdir()) == ['00000005', '00000007', '00000010', '00000012', 'metrics']
    shelf.clear()
    assert not shelf.directory.exists()


def test_others_are_not_gone_on_with(tmp_path):
    with pytest.raises(Interrupted):
        teach('plain', shelf_in(tmp_path, guard=Stops(8)))
    shelf = shelf_in(tmp_path)
    (run,) = shelf.directory.iterdir()
    manifest = next(run.glob('*/training.json'))
    manifest.write_text(manifest.read_text().replace('"arm-0"', '"arm-1"'))
    with pytest.raises(WorkdirError, match=r"another run \(it differs in \['students'\]\)"):
        teach('plain', shelf)
    assert shelf_in(tmp_path, identity='b').directory != shelf.directory


def write_training(path):
    """A study's workdir with one seed and a student in training."""
    from tests.forgetting_test import make

    seed = make(path / 'private' / 'seeds' / '0')
    place = path / 'private' / keeping.TRAINING / '0-first-sft-0' / '1' / '00000004'
    place.mkdir(parents=True)
    (place / 'training.json').write_text('{}')
    return seed, path / 'private' / keeping.TRAINING


def test_forgetting_and_retention_take_students_in_training_along(tmp_path, monkeypatch):
    _, training = write_training(tmp_path / 'a')
    found = forgetting.forget(tmp_path / 'a', 'gsm8k/test/1')
    assert not training.exists()
    assert any('students in training' in line for line in found.removed)
    seed, training = write_training(tmp_path / 'b')
    now = retention.time.time()
    monkeypatch.setattr(retention.time, 'time', lambda: now + 31 * retention.DAY)
    later = training / '0-first-sft-0' / '1' / '00000004' / 'training.json'
    os.utime(later, (now + 30 * retention.DAY,) * 2)
    (line,) = retention.expire(tmp_path / 'b', 30)
    assert 'stays, it is 1.0 days old' in line
    assert training.exists()
    os.utime(later, (now,) * 2)
    retention.expire(tmp_path / 'b', 30)
    assert not training.exists()
    assert not Workdir(seed.path).finished()
