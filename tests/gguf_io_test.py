"""GGUF files: the same weights as the Hugging Face directory, the published log-probs, and torn files."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest

from adx import gguf_io
from adx.checkpoints import load
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import InputError
from adx.models import GGUF_MENU, PRESETS
from adx.models.names import gguf_tensors

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
REFERENCE = {' Paris': -0.258, ' the': -2.741, ' London': -4.384, ' Le': -4.620, ' New': -4.678}


def write_gguf(path: pathlib.Path, architecture: str, golden: str) -> None:
    """Writes a golden checkpoint as a GGUF file by the format's own rules."""
    import gguf

    loaded = load(str(GOLDENS / golden))
    writer = gguf.GGUFWriter(path, architecture)
    hf = GGUF_MENU[architecture].to_hf(loaded.model.config)
    for name, key in gguf_io.KEYS.items():
        value = hf.get(name)
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f'{architecture}.{key}', value)
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


@pytest.mark.parametrize(
    ('architecture', 'golden'),
    [('llama', 'smollm2'), ('qwen2', 'qwen2'), ('qwen3', 'qwen3'), ('gemma2', 'gemma2')],
)
def test_gguf_gives_the_same_weights(architecture, golden, tmp_path):
    pytest.importorskip('gguf')
    write_gguf(tmp_path / 'model.gguf', architecture, golden)
    loaded, expected = load(str(tmp_path / 'model.gguf')), load(str(GOLDENS / golden))
    assert loaded.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        np.testing.assert_array_equal(loaded.params[name], value, err_msg=name)
    # GGUF does not say the query scale, and the golden Gemma 2 has one that no published model has.
    assert loaded.model.config == dataclasses.replace(expected.model.config, query_scale=None)


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
