"""Models and datasets that are kept on gs://: copied to a local cache, or read where they are."""

from __future__ import annotations

import os

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from gcs_fake import Fault, serve

from adx import checkpoints, files, loading, orbax_io, retries, staging
from adx.datasets import Gsm8k, builder
from adx.datasets.tokenizing import save_tokenizer
from adx.errors import InputError, StorageError
from tests import tiny
from tools import convert_checkpoint

MODEL = 'gs://bucket/models/teacher'


@pytest.fixture
def store(monkeypatch, tmp_path):
    with serve() as fake:
        for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
            monkeypatch.setenv(name, fake.url)
        monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'x')
        monkeypatch.setenv(files.CACHE, str(tmp_path / 'cache'))
        yield fake


def downloads(store) -> int:
    return sum('alt=media' in request for request in store.requests)


def write(tokenizer):
    return lambda path: save_tokenizer(tokenizer, str(path))


@pytest.fixture
def saved(store):
    """A tiny Hugging Face model on the store: its weights."""
    model, params = tiny.make_params()
    checkpoints.save_hf(MODEL, model, params, write(tiny.make_tokenizer()))
    return params


def test_a_hugging_face_model_is_uploaded_whole_and_loaded(store, saved):
    written = [request.split()[-1] for request in store.requests if request.startswith('POST')]
    assert written[-1] == 'models/teacher/config.json'
    assert not any('partial' in name for name in store.names())
    loaded = checkpoints.load(MODEL)
    assert all(np.array_equal(loaded.params[path], x) for path, x in saved.items())
    assert loading.read_tokenizer(MODEL).size == tiny.VOCAB
    before = downloads(store)
    assert checkpoints.load(MODEL).identity == loaded.identity
    assert downloads(store) == before
    with pytest.raises(InputError, match='is not empty'):
        checkpoints.save_hf(MODEL, *tiny.make_params())


def test_what_changed_on_the_store_is_copied_again(store, saved):
    one = staging.stage(f'{MODEL}/config.json')
    files.upload(files.path_of(f'{MODEL}/config.json'), b'{}')
    two = staging.stage(f'{MODEL}/config.json')
    assert one.read_text() != '{}' == two.read_text()
    assert one.name == two.name == 'config.json'


def test_what_is_not_there_is_named_and_half_a_copy_is_none(store, saved, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='gs://bucket/models/none does not exist'):
        checkpoints.load('gs://bucket/models/none')
    monkeypatch.setattr(retries, 'ATTEMPTS', 1)
    store.faults = [Fault('GET', 'model.safetensors?alt=media', 400, times=10**6)]
    with pytest.raises(StorageError, match='was not copied to'):
        checkpoints.load(MODEL)
    assert not list((tmp_path / 'cache' / 'staged').iterdir())


def test_orbax_is_read_where_it_is(store, tmp_path):
    model, params = tiny.make_params()
    checkpoints.save_orbax('gs://bucket/orbax', model, params, write(tiny.make_tokenizer()))
    loaded = checkpoints.load('gs://bucket/orbax')
    assert all(np.array_equal(loaded.params[path], x) for path, x in params.items())
    assert loading.read_tokenizer('gs://bucket/orbax').size == tiny.VOCAB
    assert not (staging.stage('gs://bucket/orbax') / orbax_io.ARRAYS).exists()


def test_an_outage_is_no_damage(store):
    store.faults = [Fault('POST', '/d/', 403, times=10**6)]
    with pytest.raises(StorageError, match=r'PERMISSION_DENIED.*what was finished is safe'):
        orbax_io.write_arrays(files.absolute('gs://bucket/1'), {'a': jnp.arange(1000.0)})


def test_a_built_dataset_is_read(store, tmp_path):
    built = builder.build(Gsm8k(), str(tmp_path))
    files.upload_directory(files.path_of(built), files.path_of('gs://bucket/data'), last='dataset_info.json')
    ours, theirs = (Gsm8k(path).source().pool.rows for path in (built, 'gs://bucket/data'))
    assert ours == theirs


def test_no_name_leads_out_of_the_copy_and_a_placeholder_is_no_file(store, saved, tmp_path):
    resource, data = store.objects['models/teacher/config.json']
    for name in ('models/teacher/', 'models/teacher/more/', 'models/teacher/more/x'):
        store.objects[name] = (resource | {'name': name}, data)
    copied = staging.stage(MODEL)
    assert (copied / 'more' / 'x').read_bytes() == data
    assert checkpoints.read_config(MODEL).vocab_size == tiny.VOCAB
    for name in ('models/teacher/../../../../x', 'models/teacher/more/../y'):
        store.objects[name] = (resource | {'name': name}, data)
        with pytest.raises(InputError, match='leads out of it'):
            staging.stage(MODEL)
        del store.objects[name]
    assert [epath.Path(path) for path in tmp_path.rglob('x')] == [copied / 'more' / 'x']


def test_each_block_is_retried_on_its_own_and_what_a_kill_left_goes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, 'BLOCK_BYTES', 3)
    files.upload(files.path_of('gs://bucket/a/x'), b'0123456789')
    files.upload(files.path_of('gs://bucket/a/empty'), b'')
    old, new = tmp_path / 'cache' / 'staged' / 'tmpold', tmp_path / 'cache' / 'staged' / 'tmpnew'
    for folder in (old, new):
        (folder / 'half').mkdir(parents=True)
    os.utime(old, (0, 0))
    monkeypatch.setattr(files, 'retried', lambda call: (call(), call())[1])
    copied = staging.stage('gs://bucket/a')
    assert (copied / 'x').read_bytes() == b'0123456789'
    assert (copied / 'empty').read_bytes() == b''
    assert sum('a/x?alt=media' in request for request in store.requests) == 2 * 4
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize('to', ['hf', 'orbax'])
def test_a_model_on_a_store_is_converted_with_its_tokenizer(store, saved, tmp_path, to):
    out = str(tmp_path / 'out')
    convert_checkpoint.convert(MODEL, out, to, 'float32')
    assert loading.read_tokenizer(out).size == tiny.VOCAB
    assert all(np.array_equal(checkpoints.load(out).params[path], x) for path, x in saved.items())


def test_the_files_of_an_orbax_directory_have_one_order(tmp_path, monkeypatch):
    """Two manifests have the same name: a content hash depends on which is read first."""
    checkpoints.save_orbax(str(tmp_path / 'orbax'), *tiny.make_params())
    path, listed = files.absolute(tmp_path / 'orbax'), type(files.absolute(tmp_path)).iterdir
    names = [one.name for one in orbax_io.list_files(path)]
    assert len(set(names)) < len(names)
    hashes = set()
    for backwards in (False, True):
        listing = lambda one, last=backwards: iter(sorted(listed(one), reverse=last))  # noqa: E731
        monkeypatch.setattr(type(path), 'iterdir', listing)
        hashes.add(checkpoints.hash_files(orbax_io.list_files(path)))
    assert len(hashes) == 1
