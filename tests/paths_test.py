"""Names from configs, data and checkpoints never lead out of the directory that they belong to."""

from __future__ import annotations

import dataclasses
import json

import pytest
from etils import epath

from adx import experiment as experiments
from adx import keys, policy, safetensors_io, types
from adx.attacks import Attack
from adx.datasets import Gsm8k, Jsonl
from adx.datasets.rows import row_id
from adx.drafting import Rewrite
from adx.errors import AdxError, ConfigError, InputError
from adx.experiment import Arm, Experiment, ModelSource
from adx.rewriters import Rendered
from adx.selection import Selection
from adx.storage import Workdir
from adx.types import RequestId
from tests.storage_test import make_trace, open_workdir

HOSTILE = ('', '.', '..', '../up', '/etc/passwd', 'a/b', 'a\\b', '.hidden', 'nul\0', 'line\n', '\x1b[2J', 'n' * 101)
GOOD = ('plain', 'poe.gamma=0.3,temperature=1', 'naïve', 'a b', '-x', 'n' * 100)
BASE = Experiment(Gsm8k(), ModelSource('teacher'), disclosure='public')


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_name_is_refused_wherever_one_is_given(name):
    assert not types.is_name(name)
    for changes in (
        {'arms': (Arm(name),)},
        {'selections': (Selection(name, 'plain', 'first'),)},
        {'rewrites': (Rewrite(name, 'plain', Rendered()),)},
    ):
        with pytest.raises(ConfigError, match='without "/"') as error:
            experiments.check(dataclasses.replace(BASE, **changes))
        assert '\n' not in str(error.value)
        assert '\x1b' not in str(error.value)
    with pytest.raises(ValueError, match=r'Attack\.name'):
        Attack(name).check()
    with pytest.raises(ConfigError, match=r'dataset\.name'):
        Jsonl(path='x.jsonl', name=name).source()


@pytest.mark.parametrize('name', GOOD)
def test_names_that_people_give_are_allowed(name):
    assert types.is_name(name)
    experiments.check(dataclasses.replace(BASE, arms=(Arm(name),)))


@pytest.mark.parametrize('customer', ['../../etc', '/etc/passwd', 'a\0b', '..'])
def test_a_customer_is_no_path(customer, tmp_path, monkeypatch):
    """Policies are kept by hash; a customer's key is looked for by a name of letters only."""
    monkeypatch.setenv(keys.DIRECTORY, str(tmp_path))
    with pytest.raises(ConfigError, match='is not allowed'):
        keys.served(customer, 1)
    terms = policy.Terms('distillation', None)
    served = policy.Policy((policy.Customer(customer, 'distillation'),), (terms,))
    assert '/' not in experiments.policy_hash(dataclasses.replace(BASE, policy=served))


@pytest.mark.parametrize('row', ['../../../etc/passwd', '/abs', 'nul\0', 'a/b/c/d/e'])
def test_a_row_names_no_file(row, tmp_path):
    """Journals are named by shards; an id with its row is a value in them, and parses back."""
    escaped = row_id({'id': row})
    assert '/' not in escaped
    trace = dataclasses.replace(make_trace(1), request_id=str(RequestId('d', 'test', escaped, 0, 'plain')))
    with open_workdir(tmp_path / 'run') as workdir:
        workdir.append([trace])
        workdir.reject(trace.request_id, 'x')
    assert RequestId.parse(next(iter(Workdir(tmp_path / 'run').finished()))).row == escaped
    assert {path.name for path in tmp_path.iterdir()} == {'run'}


@pytest.mark.parametrize(
    'weight_map',
    [{'w': '../secret.safetensors'}, {'w': '/etc/passwd'}, {'w': 7}, {'w': None}, {'w': ['x']}, [], 'x', {}, None],
)
def test_an_index_names_files_beside_it_only(tmp_path, weight_map):
    (tmp_path / 'secret.safetensors').write_bytes(b'')
    directory = tmp_path / 'model'
    directory.mkdir()
    (directory / safetensors_io.INDEX).write_text(json.dumps({'weight_map': weight_map}))
    with pytest.raises(InputError, match='must give a file beside it'):
        safetensors_io.open_directory(epath.Path(directory), lambda name: name)


@pytest.mark.parametrize('setting', ['../../etc/passwd', '/etc/passwd', 'a\0b', ''])
def test_a_release_is_of_a_setting_that_is_there(tmp_path, setting):
    from adx import export

    with open_workdir(tmp_path) as workdir:
        workdir.append([make_trace(1)])
    with pytest.raises(AdxError) as error:
        export.export(tmp_path, 'chat', setting, 'cc0')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'release').exists()
