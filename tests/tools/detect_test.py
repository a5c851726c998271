"""The program of a case, from commitment to a checked verdict, on a tiny suspect."""

from __future__ import annotations

import dataclasses
import json
import types

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from adx import keys
from adx.datasets.chat import Prompting
from adx.drafting import Rewrite
from adx.errors import ConfigError, InputError
from adx.rewriters import Instructed, Marked, Selected
from tests import tiny
from tools import detect


def run(**flags):
    absl_flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**{'config': None} | flags):  # other tools have another config where none is given
        detect.main()


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A customer's key where the program looks for it, and one that signs."""
    keys.new(tmp_path / 'master.key')
    keys.new(tmp_path / 'signer.key')
    keys.rotate(tmp_path / 'master.key', tmp_path / 'keys', 'acme')
    monkeypatch.setenv(keys.DIRECTORY, str(tmp_path / 'keys'))
    return tmp_path


def test_a_case_from_its_commitment_to_a_checked_verdict(held, capsys):
    teacher, case = tiny.write_teacher(held / 'teacher'), str(held / 'case')
    config = str(tiny.write_config(held / 'config.py', teacher))
    of = {'case': case, 'customer': 'acme', 'suspect': 'model-x', 'config': config}
    of |= {'keyed': 4, 'decoys': 12, 'times': 1}
    run(do='commit', **of)
    assert 'deposit this hash' in capsys.readouterr().out
    run(do='ask', case=case, model=teacher, config=config)
    with pytest.raises(InputError, match='is answered by'):
        run(do='ask', case=case, url='http://localhost/v1', api_model='m')
    run(do='verdict', case=case, signer=str(held / 'signer.key'))
    shown = capsys.readouterr().out
    signed = json.loads(shown[shown.index('{\n') : shown.rindex('}') + 1])
    assert signed['verdict']['keyed'] == 4
    assert not signed['verdict']['detected']
    assert 'is no evidence, at level 0.01' in shown
    key = keys.served('acme', 1).hex()
    assert key not in shown
    assert not any(key in path.read_text() for path in (held / 'case').rglob('*') if path.is_file())
    run(do='check', case=case, public_key=signed['public_key'])
    assert '1 verdicts' in capsys.readouterr().out
    with pytest.raises(InputError, match='are not what the holder'):
        run(do='check', case=case, public_key='00' * 32)


def test_a_model_is_spoken_to_as_the_config_says(held, monkeypatch):
    teacher = tiny.write_teacher(held / 'teacher')
    config, case, given = str(tiny.write_config(held / 'config.py', teacher)), str(held / 'case'), []
    run(do='commit', case=case, customer='acme', suspect='x', config=config, keyed=4, decoys=12)
    monkeypatch.setattr(detect.suspects.Held, 'load', lambda source, prompting: given.append(prompting))
    monkeypatch.setattr(detect.detecting, 'ask', lambda *args: None)
    loaded, spoken = detect.load_experiment(config), Prompting(system='You are terse.')
    monkeypatch.setattr(detect, 'load_experiment', lambda path: dataclasses.replace(loaded, prompting=spoken))
    run(do='ask', case=case, model=teacher, config=config)
    run(do='ask', case=case, model=teacher, config='')
    assert given == [spoken, Prompting()]


def test_several_customers_get_one_verdict(held, capsys):
    teacher = tiny.write_teacher(held / 'teacher')
    config = str(tiny.write_config(held / 'config.py', teacher))
    keys.rotate(held / 'master.key', held / 'keys', 'bolt')
    cases, signer = [str(held / customer) for customer in ('acme', 'bolt')], str(held / 'signer.key')
    of = {'suspect': 'model-x', 'config': config, 'keyed': 4, 'decoys': 12, 'times': 1}
    for case, customer in zip(cases, ('acme', 'bolt'), strict=True):
        run(do='commit', case=case, customer=customer, **of)
        run(do='ask', case=case, model=teacher)
        run(do='verdict', case=case, signer=signer)
    capsys.readouterr()
    run(do='attribute', cases=cases, signer=signer)
    assert 'asked about the marks of 2 customers. None is found' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'do': 'attribute', 'case': '', 'cases': ['one']}, 'give at least two'),
        ({'do': 'ask', 'case': ''}, 'both are needed'),
        ({'do': 'commit', 'case': 'x', 'customer': ''}, 'needs --customer and --suspect'),
        ({'do': 'commit', 'case': 'x', 'customer': 'acme', 'suspect': 's', 'config': ''}, '--config is needed'),
    ],
)
def test_what_is_missing_is_named(held, flags, message):
    with pytest.raises(ConfigError, match=message):
        run(**flags)


def test_what_was_not_committed_to_cannot_be_asked(held):
    with pytest.raises(InputError, match='commit to one first'):
        run(do='ask', case=str(held / 'none'), model='x')


def test_the_config_says_how_many_pairs_traces_carry():
    def carried(*rewriters):
        rewrites = [Rewrite(f'r{i}', 'plain', one) for i, one in enumerate(rewriters)]
        return detect.carried(types.SimpleNamespace(rewrites=rewrites), 'acme', 2)

    assert carried() == carried(Instructed()) == carried(Marked('bolt', 2, 5), Marked('acme', 1, 6)) == 10
    assert carried(Marked('acme', 2, 7)) == carried(Selected(Marked('acme', 2, 7)), Instructed()) == 7
    with pytest.raises(ConfigError, match=r'with \[7, 8\] pairs'):
        carried(Marked('acme', 2, 8), Marked('acme', 2, 7))
