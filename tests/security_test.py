"""adx reads nothing that runs when it is read, and never shows a key."""

from __future__ import annotations

import ast
import os
import pathlib
import pickle
import subprocess
import sys
import traceback

import numpy as np
import pytest

from adx import checkpoints, generation, keys
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import AdxError, InputError
from tests import tiny
from tests.layers_test import imports

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for folder in ('adx', 'launch', 'tools', 'configs') for path in (ROOT / folder).rglob('*.py'))
RUN_WHAT_THEY_READ = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'torch'}
ORACLES = {'tools/bench/hf_baseline.py', 'tools/make_goldens.py'}  # transformers itself, with weights made here


def calls(path: pathlib.Path) -> list[str]:
    """The functions that a file calls, as it spells them, and its keyword arguments that are True."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append(ast.unparse(node.func))
            found += [f'{one.arg}=True' for one in node.keywords if getattr(one.value, 'value', None) is True]
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_read_by_what_runs_it(path):
    if str(path.relative_to(ROOT)) not in ORACLES:
        assert not {name.split('.')[0] for name in imports(path)} & RUN_WHAT_THEY_READ
    called, refused = calls(path), {'eval', 'exec', 'torch.load', 'yaml.load', 'os.system'}
    if ROOT / 'tools' not in path.parents:  # tools read tensors of goldens, which np.load takes no pickle for
        refused |= {'np.load', 'numpy.load', 'jnp.load', 'np.fromfile'}
    assert not refused & set(called)
    assert not {'allow_pickle=True', 'trust_remote_code=True', 'shell=True'} & set(called)


class Bomb:
    def __init__(self, place: pathlib.Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


NAMES = ('model.safetensors', 'model.gguf', 'pytorch_model.bin', 'model.pt', 'weights.npz', 'weights.npy', 'adx.json')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['pickle', 'npz'])
def test_a_checkpoint_that_would_run_is_refused_in_one_line(tmp_path, name, kind):
    ran, model = tmp_path / 'ran', tmp_path / 'model'
    tiny.write_teacher(model)
    (model / 'model.safetensors').unlink()
    if kind == 'pickle':
        (model / name).write_bytes(pickle.dumps(Bomb(ran)))
    else:
        with (model / name).open('wb') as file:
            np.savez(file, w=np.array([Bomb(ran)], object))
    for source in (model, model / name):
        with pytest.raises(InputError) as error:
            checkpoints.load(str(source))
        assert '\n' not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json', 'tokenizer.model'])
def test_a_tokenizer_that_would_run_is_refused(tmp_path, name):
    tiny.write_teacher(tmp_path / 'model')
    ran = tmp_path / 'ran'
    if name == 'tokenizer.model':
        (tmp_path / 'model' / 'tokenizer.json').unlink()
    (tmp_path / 'model' / name).write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(AdxError) as error:
        load_tokenizer(str(tmp_path / 'model'))
    assert '\n' not in str(error.value)
    assert not ran.exists()


def test_a_key_is_shown_nowhere(tmp_path, monkeypatch, capsys):
    """Neither by errors and their tracebacks, nor by the record of a trace, nor by its name alone."""
    held = tmp_path / 'keys'
    keys.new(tmp_path / 'master.key')
    path = keys.derive(tmp_path / 'master.key', held, 'acme', 1)
    key = keys.read(path).hex()
    os.chmod(path, 0o644)
    monkeypatch.setenv(keys.DIRECTORY, str(held))
    with pytest.raises(InputError) as error:
        keys.served('acme', 1)
    shown = ''.join(traceback.format_exception(error.value))
    path.write_text(f'{key}x')
    os.chmod(path, 0o600)
    with pytest.raises(InputError) as error:
        keys.served('acme', 1)
    shown += ''.join(traceback.format_exception(error.value))
    assert 'chmod 600' in shown
    assert key not in shown
    assert key[:16] not in shown
    assert key not in keys.fingerprint(bytes.fromhex(key))
    assert 'key' not in generation.Trace.__dataclass_fields__


def test_an_error_shows_no_key_of_an_endpoint(tmp_path):
    """The bearer token is read from a variable; neither --help nor an error repeats it."""
    code = (
        'from adx.suspects import Endpoint, Question; '
        "e = Endpoint('http://127.0.0.1:1/v1', 'm', 'TOKEN', lambda s: None); "
        "print(repr(vars(e)), e.ask([Question(({'role': 'user', 'content': 'a'},), 'b')]))"
    )
    given = os.environ | {'TOKEN': 'hush-hush', 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', code], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'TOKEN' in done.stdout
    assert 'hush-hush' not in done.stdout + done.stderr
