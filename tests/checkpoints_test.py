"""Checkpoints in and out: round trips, meshes, streaming, and every way a file can be wrong."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import weakref

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from storage_test import refuse

from adx import checkpoints, files, safetensors_io
from adx.checkpoints import hash_files, load, save_hf, save_orbax
from adx.errors import InputError, StorageError
from adx.mesh import make_mesh, teacher_layout
from tools.convert_checkpoint import convert

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
FAMILIES = ('gemma2', 'gemma3_text', 'llama3', 'mistral', 'qwen2', 'qwen3', 'smollm2')


def over(data: int, proxy: int, model: int):
    """A layout over the first data * proxy * model of the eight devices."""
    return lambda config: teacher_layout(make_mesh(data, proxy, model), config.sizes, shard_weights=True)


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[path], theirs[path]) for path in ours)


def copy_of(name: str, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(GOLDENS / name, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize('family', FAMILIES)
def test_there_and_back_is_bit_for_bit(family, tmp_path):
    first = load(str(GOLDENS / family))
    save_hf(str(tmp_path / 'hf'), first.model, first.params)
    again = load(str(tmp_path / 'hf'))
    assert again.model.config == first.model.config
    assert same(again.params, first.params)
    written = load_file(tmp_path / 'hf' / 'model.safetensors')
    original = load_file(GOLDENS / family / 'model.safetensors')
    assert written.keys() == original.keys()
    for name, value in original.items():  # (1 + w) - 1 loses what is below the last bit of 1 + w < 4
        lost = 2**-23 if 'norm' in name else 0
        np.testing.assert_allclose(written[name], value, rtol=0, atol=lost, err_msg=name)


def test_shards_read_and_written_are_the_whole(tmp_path):
    first = load(str(GOLDENS / 'llama3'))
    save_hf(str(tmp_path / 'hf'), first.model, first.params, shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / 'hf').glob('*.safetensors'))
    assert len(files) >= 3
    assert files[0] == f'model-00001-of-{len(files):05d}.safetensors'
    assert all((tmp_path / 'hf' / name).stat().st_size < 45_000 for name in files)
    assert same(load(str(tmp_path / 'hf')).params, first.params)
    os.remove(tmp_path / 'hf' / files[1])
    with pytest.raises(InputError, match=f'{files[1]} is missing'):
        load(str(tmp_path / 'hf'))


@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_weights_land_on_their_shards(mesh):
    whole = load(str(GOLDENS / 'qwen2'))
    spread = load(str(GOLDENS / 'qwen2'), layout=over(*mesh))
    assert same(spread.params, whole.params)
    ways = mesh[1] * mesh[2]
    gate = spread.params['blocks.0.mlp.gate']
    assert gate.addressable_shards[0].data.shape == (32 // ways, 24)
    assert len(gate.addressable_shards) == mesh[0] * ways


def test_orbax_restores_on_another_mesh(tmp_path):
    saved = load(str(GOLDENS / 'gemma3_text'), layout=over(2, 2, 2))
    save_orbax(str(tmp_path / 'orbax'), saved.model, saved.params)
    restored = load(str(tmp_path / 'orbax'), layout=over(4, 1, 2))
    assert restored.model.config == saved.model.config
    assert same(restored.params, saved.params)
    assert restored.params['embed'].sharding.mesh.shape == {'data': 4, 'proxy': 1, 'model': 2}
    how = {'num_layers': 2, 'vocab_rows': 128, 'param_dtype': 'bfloat16'}
    early = load(str(tmp_path / 'orbax'), **how)
    assert same(early.params, load(str(GOLDENS / 'gemma3_text'), **how).params)
    with pytest.raises(InputError, match='not empty'):
        save_orbax(str(tmp_path / 'orbax'), saved.model, saved.params)


def test_an_orbax_directory_is_a_checkpoint_once_all_of_it_is_there(tmp_path, monkeypatch):
    saved, out = load(str(GOLDENS / 'smollm2')), tmp_path / 'orbax'

    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_orbax(str(out), saved.model, saved.params, interrupted)
    assert not (out / 'adx.json').exists()
    shutil.rmtree(out)
    monkeypatch.setattr(files, 'write_all', refuse)
    with pytest.raises(StorageError, match='was not written: No space'):
        save_orbax(str(out), saved.model, saved.params)
    assert [path.name for path in out.iterdir()] == ['params']


def test_padding_early_exit_translator_and_dtypes(tmp_path):
    rows = np.random.default_rng(0).normal(size=(25, 24)).astype(np.float32)
    translator = {'translator': rows[:24], 'translator_bias': rows[24]}
    save_file(translator, tmp_path / 'translator.safetensors')
    loaded = load(
        str(GOLDENS / 'smollm2'), num_layers=2, vocab_rows=104, param_dtype='bfloat16',
        translator=str(tmp_path / 'translator.safetensors'),
    )  # fmt: skip
    assert loaded.model.config.num_layers == 2
    assert loaded.model.config.translator
    assert loaded.params.keys() == loaded.model.shapes.keys()
    assert loaded.params['embed'].shape == (104, 24)
    assert not np.any(loaded.params['embed'][96:])
    assert loaded.params['embed'].dtype == 'bfloat16'
    assert loaded.params['blocks.0.attention_norm.scale'].dtype == 'float32'
    np.testing.assert_array_equal(loaded.params['translator'], rows[:24].astype('bfloat16'))
    with pytest.raises(InputError, match=r'no Hugging Face architecture .* with a translator'):
        save_hf(str(tmp_path / 'hf'), loaded.model, loaded.params)
    with pytest.raises(InputError, match=r'num_layers = 5 .* 1 to 4'):
        load(str(GOLDENS / 'smollm2'), num_layers=5)
    with pytest.raises(InputError, match="param_dtype = 'int8'"):
        load(str(GOLDENS / 'smollm2'), param_dtype='int8')


def test_padded_vocabulary_is_left_out_of_an_export(tmp_path):
    padded = load(str(GOLDENS / 'qwen3'), vocab_rows=128)
    save_hf(str(tmp_path / 'hf'), padded.model, padded.params)
    assert same(load(str(tmp_path / 'hf')).params, load(str(GOLDENS / 'qwen3')).params)


def test_host_memory_holds_one_tensor(monkeypatch):
    """What was read is freed before the next but one is read, whatever the number of tensors."""
    alive, read = [], safetensors_io.open_files

    def watched(*args):
        weights = read(*args)

        def watch(name):
            assert sum(reference() is not None for reference in alive) <= 1
            value = weights.read(name)
            alive.append(weakref.ref(value))
            return value

        return safetensors_io.Weights(weights.shapes, watch, weights.files)

    monkeypatch.setattr(safetensors_io, 'open_files', watched)
    loaded = load(str(GOLDENS / 'llama3'), param_dtype='bfloat16', layout=over(1, 1, 8))
    assert len(alive) == len(loaded.params)


def test_identity_is_of_the_content(tmp_path):
    directory = copy_of('smollm2', tmp_path)
    identity = load(str(directory)).identity
    assert identity == load(str(GOLDENS / 'smollm2')).identity
    assert identity != load(str(directory), num_layers=3).identity
    tensors = load_file(directory / 'model.safetensors')
    tensors['model.norm.weight'][3] += 1e-3
    save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})
    assert identity != load(str(directory)).identity


def test_sampled_hash_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, 'HASHED_WHOLE', 0)
    monkeypatch.setattr(checkpoints, 'SAMPLE_BYTES', 16)
    data = bytearray(os.urandom(100_000))
    file = epath.Path(tmp_path / 'model')
    hashes = set()
    for changed in (None, 0, 99_999):
        if changed is not None:
            data[changed] ^= 1
        file.write_bytes(bytes(data))
        hashes.add(hash_files([file]))
    assert len(hashes) == 3


def damage(directory: pathlib.Path, how: str) -> None:
    """Breaks a checkpoint in one way."""
    weights, config = directory / 'model.safetensors', directory / 'config.json'
    tensors = load_file(weights)
    if how == 'torn':
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == 'no weights':
        weights.unlink()
    elif how == 'no config':
        config.unlink()
    elif how == 'config is no JSON':
        config.write_text('{"model_type"')
    elif how == 'unknown':
        config.write_text(json.dumps(json.loads(config.read_text()) | {'model_type': 'mamba'}))
    else:
        if how == 'lacks':
            del tensors['model.layers.2.mlp.up_proj.weight']
        elif how == 'unexpected':
            tensors['model.layers.9.mlp.up_proj.weight'] = np.zeros(3, np.float32)
        elif how == 'shape':
            tensors['model.layers.1.self_attn.k_proj.weight'] = np.zeros((8, 24), np.float32)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ('how', 'said'),
    [
        ('torn', r'model.safetensors is not a whole safetensors file .*; download it again'),
        ('no weights', r'has neither model.safetensors nor model.safetensors.index.json'),
        ('no config', r'config.json is missing'),
        ('config is no JSON', r'config.json is not readable as JSON'),
        ('unknown', r"architecture 'mamba' is not supported; supported are .*'qwen3'"),
        ('lacks', r"lacks tensors \['model.layers.2.mlp.up_proj.weight'\]"),
        ('unexpected', r"has unexpected tensors \['model.layers.9.mlp.up_proj.weight'\]"),
        ('shape', r'1.self_attn.k_proj.weight has shape \(8, 24\) and its config says \(16, 24\)'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(how, said, tmp_path):
    directory = copy_of('qwen3', tmp_path)
    damage(directory, how)
    with pytest.raises(InputError, match=said) as error:
        load(str(directory))
    assert '\n' not in str(error.value)


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r'nowhere does not exist; give a Hugging Face directory .* \.gguf'):
        load(str(tmp_path / 'nowhere'))
    (tmp_path / 'model.bin').write_bytes(b'0')
    with pytest.raises(InputError, match=r'model.bin is no checkpoint; give'):
        load(str(tmp_path / 'model.bin'))


def test_damaged_orbax_is_refused(tmp_path):
    loaded = load(str(GOLDENS / 'smollm2'))
    save_orbax(str(tmp_path / 'orbax'), loaded.model, loaded.params)
    manifest = json.loads((tmp_path / 'orbax' / 'adx.json').read_text())
    (tmp_path / 'orbax' / 'adx.json').write_text(json.dumps(manifest | {'format_version': 99}))
    with pytest.raises(InputError, match='format_version is 99 and this adx reads 1'):
        load(str(tmp_path / 'orbax'))
    wrong = manifest['config'] | {'num_layers': 3}
    (tmp_path / 'orbax' / 'adx.json').write_text(json.dumps(manifest | {'config': wrong}))
    with pytest.raises(InputError, match='has unexpected tensors'):
        load(str(tmp_path / 'orbax'))
    (tmp_path / 'orbax' / 'adx.json').write_text(json.dumps(manifest))
    shutil.rmtree(tmp_path / 'orbax' / 'params')
    with pytest.raises(InputError, match='damaged'):
        load(str(tmp_path / 'orbax'))


def test_an_interrupted_export_leaves_nothing_that_looks_whole(tmp_path):
    loaded = load(str(GOLDENS / 'smollm2'))

    def full(target):
        raise OSError(28, 'No space left on device')

    with pytest.raises(StorageError, match='No space left'):
        save_hf(str(tmp_path / 'hf'), loaded.model, loaded.params, full)
    assert list(tmp_path.iterdir()) == []


def test_converting_keeps_the_tokenizer_and_the_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative names are what people type
    source = copy_of('smollm2', tmp_path)
    (source / 'tokenizer.json').write_text('{}')
    convert('smollm2', 'orbax', 'orbax', 'float32')
    convert('orbax', 'hf', 'hf', 'bfloat16')
    assert (tmp_path / 'hf' / 'tokenizer.json').read_text() == '{}'
    ids = json.loads((tmp_path / 'hf' / 'generation_config.json').read_text())
    assert ids['eos_token_id'] == json.loads((source / 'config.json').read_text())['eos_token_id']
    assert load_file(tmp_path / 'hf' / 'model.safetensors')['model.embed_tokens.weight'].dtype == 'bfloat16'


@pytest.mark.oracle
@pytest.mark.parametrize('family', FAMILIES)
def test_transformers_reads_what_we_write(family, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    loaded, golden = load(str(GOLDENS / family)), np.load(GOLDENS / family / 'logits.npz')
    save_hf(str(tmp_path / 'hf'), loaded.model, loaded.params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', attn_implementation='eager')
    with torch.no_grad():
        logits = model.float()(torch.from_numpy(golden['tokens']).long()).logits.numpy()
    assert np.abs(logits - golden['logits']).max() <= 2 * golden['rounding']
