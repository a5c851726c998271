"""A run goes on in another environment only when told that it may, and says so afterwards."""

from __future__ import annotations

import json
import os

import pytest

from adx import environments
from adx.errors import StorageError, WorkdirError
from adx.settings import MeshShape
from adx.storage import Workdir
from tests.storage_test import open_workdir

OURS = {'jax': '0.10.2', 'device': 'TPU v5e', 'mesh': '1x1x1'}
OTHER = OURS | {'jax': '0.11.0', 'mesh': '2x1x1'}


@pytest.fixture
def workdir(tmp_path):
    with open_workdir(tmp_path):
        pass
    return Workdir(tmp_path)


def test_it_names_versions_device_and_mesh():
    found = environments.current(MeshShape(data=2))
    assert (found['mesh'], set(found)) == ('2x1x1', {*environments.PACKAGES, 'device', 'mesh'})
    assert all(isinstance(value, str) and value for value in found.values())


def test_a_change_is_refused_by_name_unless_it_is_allowed_and_then_reported(workdir):
    assert environments.enter(workdir, '0-of-1', OURS, allowed=False) == []
    assert environments.enter(workdir, '0-of-1', OURS, allowed=False) == []
    with pytest.MonkeyPatch.context() as patch:  # a shard that goes on as it was waits for no other
        patch.setattr(environments.locks, 'exclusive', None)
        assert environments.enter(workdir, '0-of-1', OURS, allowed=False) == []
    assert environments.changes(workdir) == []
    with pytest.raises(WorkdirError, match=r'jax: 0.10.2 -> 0.11.0; mesh: 1x1x1 -> 2x1x1.*--allow_env') as error:
        environments.enter(workdir, '0-of-1', OTHER, allowed=False)
    assert error.value.exit_code == 4
    assert 'device' not in str(error.value)
    assert [one['environment'] for one in environments.read(workdir)['0-of-1']] == [OURS]
    expected = ['jax: 0.10.2 -> 0.11.0', 'mesh: 1x1x1 -> 2x1x1']
    assert environments.enter(workdir, '0-of-1', OTHER, allowed=True) == expected
    assert [one['environment'] for one in environments.read(workdir)['0-of-1']] == [OURS, OTHER]
    (line,) = environments.changes(workdir)
    assert line.startswith('shard 0-of-1 from 20')
    assert line.endswith('jax: 0.10.2 -> 0.11.0; mesh: 1x1x1 -> 2x1x1')


def test_shards_are_held_to_each_other_and_a_known_environment_needs_no_leave(workdir):
    environments.enter(workdir, '0-of-2', OURS, allowed=False)
    with pytest.raises(WorkdirError, match='another environment'):
        environments.enter(workdir, '1-of-2', OTHER, allowed=False)
    environments.enter(workdir, '1-of-2', OURS, allowed=False)
    environments.enter(workdir, '0-of-1', OURS, allowed=False)  # other shards of the same run
    environments.enter(workdir, '1-of-2', OTHER, allowed=True)
    environments.enter(workdir, '1-of-2', OURS, allowed=False)  # back again
    assert len(environments.changes(workdir)) == 2


def test_records_are_private_and_a_damaged_one_is_not_taken_for_none(workdir):
    environments.enter(workdir, '0-of-1', OURS, allowed=False)
    path = workdir.private / 'environments' / '0-of-1.jsonl'
    assert os.stat(path).st_mode & 0o777 == 0o600
    part = json.dumps({'environment': OURS})
    for damage in ('', '{"environment": 1}\n', f'{part}\n', '[]\n', '\xff\n', 'nonsense\n'):
        path.write_text(damage)
        with pytest.raises(StorageError, match='restore it'):
            environments.enter(workdir, '0-of-1', OTHER, allowed=False)
