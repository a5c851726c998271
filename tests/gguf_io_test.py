"""GGUF files: the same weights as the Hugging Face directory, the published log-probs, and torn files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import weakref

import jax
import numpy as np
import pytest

from adx import gguf_io
from adx.checkpoints import Loaded, load
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import InputError
from adx.models import GGUF_MENU, PRESETS
from adx.models.names import gguf_tensors
from adx.models.rope import Rope
from adx.models.transformer import make_model
from adx.safetensors_io import Weights
from tools.convert_checkpoint import convert

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
REFERENCE = {' Paris': -0.258, ' the': -2.741, ' London': -4.384, ' Le': -4.620, ' New': -4.678}


def write_gguf(path: pathlib.Path, architecture: str, golden: str, rope: Rope | None = None, **tokenizer) -> Loaded:
    """Writes a golden checkpoint as a GGUF file by the format's own rules; returns what is in it.

    rope: in place of the golden's. tokenizer: fields of the writer.
    """
    import gguf

    loaded = load(str(GOLDENS / golden))
    if rope is not None:
        model = make_model(dataclasses.replace(loaded.model.config, rope=rope))
        loaded = dataclasses.replace(loaded, model=model)
    writer = gguf.GGUFWriter(path, architecture)
    hf = GGUF_MENU[architecture].to_hf(loaded.model.config)
    for name, key in gguf_io.KEYS.items():
        value = hf.get(name)
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f'{architecture}.{key}', value)
    add_rope(writer, loaded.model.config)
    for name, value in tokenizer.items():
        getattr(writer, f'add_{name}')(value)
    for name, tensor in gguf_tensors(GGUF_MENU[architecture], loaded.model).items():
        value = tensor.to_file(np.asarray(loaded.params[name]))
        if tensor.interleaved:
            # As the converter of llama.cpp does it: the two halves of each head take turns.
            heads = tensor.our_shape[0]
            halves = value.reshape(heads, 2, -1, value.shape[1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(tensor.name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return loaded


def add_rope(writer, config) -> None:
    """Linear scaling by name, that of Llama 3 as the divisor of each plane."""
    import gguf

    rope = config.rope
    if rope.scaling == 'linear':
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    if rope.scaling == 'llama3':
        divisors = Rope(rope.theta).frequencies(config.head_dim) / rope.frequencies(config.head_dim)
        writer.add_tensor(gguf_io.ROPE_FACTORS, divisors.astype(np.float32))


@pytest.mark.parametrize(
    ('architecture', 'golden', 'unsaid'),
    [
        ('llama', 'smollm2', {}),
        ('llama', 'mistral', {'window': None, 'local_pattern': (False,)}),
        ('qwen2', 'qwen2', {}),
        ('qwen3', 'qwen3', {}),
        # GGUF does not say the query scale, and the goldens of Gemma have one that no published model has.
        ('gemma2', 'gemma2', {'query_scale': None}),
        ('gemma3', 'gemma3_text', {'query_scale': None}),
    ],
)
def test_gguf_gives_the_same_weights(architecture, golden, unsaid, tmp_path):
    """unsaid: what a file of the architecture does not tell. Those of Mistral are of `llama`, without a window."""
    pytest.importorskip('gguf')
    expected = write_gguf(tmp_path / 'model.gguf', architecture, golden)
    loaded = load(str(tmp_path / 'model.gguf'))
    check_same_params(loaded, expected)
    assert loaded.model.config == dataclasses.replace(expected.model.config, **unsaid)


def check_same_params(loaded, expected):
    assert loaded.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        np.testing.assert_array_equal(loaded.params[name], value, err_msg=name)


LLAMA3 = Rope(500000.0, 'llama3', 8.0)
# As many as the goldens have weights for.
WORDS = ['<|begin|>', '<|end|>', *map(chr, range(33, 126)), 'ab']
TOKENIZER = {
    'tokenizer_model': 'gpt2', 'tokenizer_pre': 'gpt-2', 'token_list': WORDS,
    'token_types': [3, 3] + [1] * (len(WORDS) - 2), 'token_merges': ['a b'], 'bos_token_id': 0, 'eos_token_id': 1,
}  # fmt: skip


def test_llama3_of_gguf_becomes_a_hugging_face_directory(tmp_path):
    """Of its scaling the file has a divisor for each plane alone: the model says the same, and so does its copy."""
    pytest.importorskip('gguf')
    expected = write_gguf(tmp_path / 'model.gguf', 'llama', 'llama3', LLAMA3, **TOKENIZER)
    assert not np.array_equal(LLAMA3.frequencies(8), Rope(LLAMA3.theta).frequencies(8))
    convert(str(tmp_path / 'model.gguf'), str(tmp_path / 'hf'), 'hf', 'float32')
    assert json.loads((tmp_path / 'hf' / 'config.json').read_text())['rope_scaling']['rope_type'] == 'llama3'
    for source in ('model.gguf', 'hf'):
        loaded = load(str(tmp_path / source))
        check_same_params(loaded, expected)
        assert loaded.model.config == expected.model.config
        tokenizer = load_tokenizer(str(tmp_path / source))
        assert (tokenizer.tokens, tokenizer.eos_ids) == (tuple(WORDS), {1})
        assert tokenizer.encode('cab') == [WORDS.index('c'), WORDS.index('ab')]


def test_host_memory_holds_one_tensor(tmp_path, monkeypatch):
    """As of safetensors: what was read is freed before the next but one is read."""
    pytest.importorskip('gguf')
    write_gguf(tmp_path / 'model.gguf', 'llama', 'llama3', LLAMA3)
    alive, opened = [], gguf_io._open_tensors

    def watched(path):
        weights = opened(path)

        def watch(name):
            assert sum(reference() is not None for reference in alive) <= 1
            value = weights.read(name)
            alive.append(weakref.ref(value))
            return value

        return Weights(weights.shapes, watch, weights.files)

    monkeypatch.setattr(gguf_io, '_open_tensors', watched)
    loaded = load(str(tmp_path / 'model.gguf'), param_dtype='bfloat16')
    assert len(alive) == len(loaded.params) + 1  # and the divisors


def test_llama3_scaling_of_gguf_is_recognised():
    config = {'head_dim': 64, 'rope_theta': 500000.0}
    rope = PRESETS['llama-3.2-1b'].rope
    plain = 500000.0 ** (-np.arange(32) / 32.0)
    factors = (plain / rope.frequencies(64)).astype(np.float32)
    assert gguf_io._llama3_scaling(config, factors)['factor'] == 32.0
    with pytest.raises(InputError, match='not the scaling of Llama 3'):
        gguf_io._llama3_scaling(config, factors[::-1])


def test_torn_and_foreign_gguf_are_refused(tmp_path):
    pytest.importorskip('gguf')
    write_gguf(tmp_path / 'model.gguf', 'llama', 'smollm2')
    data = (tmp_path / 'model.gguf').read_bytes()
    for cut in (100, len(data) // 2, len(data) - 4000):
        (tmp_path / 'torn.gguf').write_bytes(data[:cut])
        with pytest.raises(InputError, match=r'torn.gguf .*download it again') as error:
            load(str(tmp_path / 'torn.gguf'))
        assert '\n' not in str(error.value)
    (tmp_path / 'torn.gguf').write_bytes(b'PK\x03\x04' + data)
    with pytest.raises(InputError, match='is not a GGUF file'):
        load(str(tmp_path / 'torn.gguf'))


@pytest.mark.slow
def test_real_smollm2_knows_paris():
    """Next-token log-probs on which numpy and transformers agree to three decimals."""
    cache = pathlib.Path(os.environ.get('ADX_CACHE', '~/.cache/adx')).expanduser()
    file = cache / 'smollm2-135m-instruct.gguf'
    if not file.exists():
        pytest.skip(f'{file} is not there')
    loaded, tokenizer = load(str(file)), load_tokenizer(str(file))
    assert loaded.model.config == PRESETS['smollm2-135m']
    ids = np.array([tokenizer.encode('The capital of France is')])
    logits, _ = loaded.model.apply(loaded.params, ids, np.arange(ids.shape[1])[None])
    log_probs = jax.nn.log_softmax(logits[0, -1])
    for text, expected in REFERENCE.items():
        (token,) = tokenizer.encode(text)
        assert float(log_probs[token]) == pytest.approx(expected, abs=6e-4), text
