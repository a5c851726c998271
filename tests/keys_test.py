"""Key files and the program that makes them: what is written, what is refused, and that no key is ever shown."""

from __future__ import annotations

import os

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from adx import keys, marks
from adx.errors import ConfigError, InputError
from tools import keys as program


@pytest.fixture
def master(tmp_path):
    path = tmp_path / 'private' / 'master.key'
    keys.new(path)
    return path


def test_a_new_key_is_private_and_never_overwritten(master):
    assert os.stat(master).st_mode & 0o777 == 0o600
    assert os.stat(master.parent).st_mode & 0o777 == 0o700
    assert len(keys.read(master)) == marks.KEY_BYTES
    with pytest.raises(ConfigError, match='never overwritten'):
        keys.new(master)


def test_a_directory_that_others_use_keeps_its_mode(tmp_path):
    shared = tmp_path / 'shared'
    shared.mkdir()
    os.chmod(shared, 0o777)
    keys.new(shared / 'master.key')
    assert os.stat(shared).st_mode & 0o777 == 0o777
    assert os.stat(shared / 'master.key').st_mode & 0o777 == 0o600


def test_epochs_follow_each_other_and_old_ones_stay(master, tmp_path):
    held = tmp_path / 'keys'
    assert keys.rotate(master, held, 'acme') == keys.place(held, 'acme', 1)
    first = keys.read(keys.place(held, 'acme', 1))
    assert keys.rotate(master, held, 'acme') == keys.place(held, 'acme', 2)
    assert keys.epochs(held, 'acme') == [1, 2]
    assert keys.epochs(held, 'acm') == []
    assert keys.read(keys.place(held, 'acme', 1)) == first == marks.subkey(keys.read(master), 'acme', 1)


@pytest.mark.parametrize('name', ['', 'a/b', '../acme', 'a.b'])
def test_names_that_would_be_other_files_are_refused(master, tmp_path, name):
    with pytest.raises(ConfigError, match='is not allowed'):
        keys.derive(master, tmp_path, name, 1)


@pytest.mark.parametrize('mode', [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(master, mode):
    os.chmod(master, mode)
    with pytest.raises(InputError, match='run: chmod 600'):
        keys.read(master)


@pytest.mark.parametrize('content', [b'', b'abc', b'\xff' * 64, b'g' * 64, b'A' * 64])
def test_what_is_no_key_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / 'some.key'
    path.write_bytes(content)
    os.chmod(path, 0o600)
    with pytest.raises(InputError) as error:
        keys.read(path)
    assert 'g' * 64 not in str(error.value)
    assert 'A' * 64 not in str(error.value)


def test_a_missing_key_names_the_program_that_makes_one(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'tools\.keys'):
        keys.read(tmp_path / 'none.key')
    monkeypatch.delenv(keys.DIRECTORY, raising=False)
    with pytest.raises(ConfigError, match='set ADX_KEYS'):
        keys.served('acme', 1)
    monkeypatch.setenv(keys.DIRECTORY, str(tmp_path))
    with pytest.raises(InputError, match=r'acme\.1\.key'):
        keys.served('acme', 1)


def test_a_key_is_kept_on_no_store():
    for path in ('gs://bucket/master.key', 's3://bucket/master.key'):
        with pytest.raises(ConfigError, match='keep keys on a disk'):
            keys.new(path)


def run(capsys, **flags):
    absl_flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**flags):
        program.main()
    return capsys.readouterr().out


def test_the_program_shows_fingerprints_only(tmp_path, capsys):
    master, held = str(tmp_path / 'master.key'), str(tmp_path / 'keys')
    of = {'master': master, 'directory': held, 'customer': 'acme'}
    shown = run(capsys, do='new', master=master)
    shown += run(capsys, do='derive', epoch=3, **of)
    shown += run(capsys, do='rotate', **of)
    shown += run(capsys, do='check', **of)
    assert shown.count('acme.4.key') == 2
    assert keys.fingerprint(keys.read(keys.place(held, 'acme', 3))) in shown
    for path in (master, keys.place(held, 'acme', 3), keys.place(held, 'acme', 4)):
        assert keys.read(path).hex() not in shown


@pytest.mark.parametrize(
    ('flags', 'message'),
    [({}, '--do=None is not allowed'), ({'do': 'derive', 'master': 'x'}, 'needs --directory'),
     ({'do': 'check', 'directory': '/none', 'customer': 'acme'}, "no key of 'acme'")],
)  # fmt: skip
def test_the_program_says_what_it_lacks(flags, message, capsys):
    with pytest.raises(ConfigError, match=message):
        run(capsys, **flags)
