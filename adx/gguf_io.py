"""GGUF files: metadata in the words of config.json, and tensors, dequantised one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from adx.datasets.gguf_metadata import read_metadata
from adx.errors import InputError, extra
from adx.models.rope import Rope
from adx.safetensors_io import Weights

# config.json's key -> GGUF's, after '<architecture>.'.
KEYS = {
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_hidden_layers': 'block_count',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length',
    'max_position_embeddings': 'context_length',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
    'rope_theta': 'rope.freq_base',
    'rope_local_base_freq': 'rope.freq_base_swa',
    'sliding_window': 'attention.sliding_window',
    'attn_logit_softcapping': 'attn_logit_softcapping',
    'final_logit_softcapping': 'final_logit_softcapping',
}
EMBEDDING, ROPE_FACTORS = 'token_embd.weight', 'rope_freqs.weight'
# The 27B models alone scale queries by the width per head and not by the head size; GGUF does not say so.
WIDTH_SCALED = {('gemma2', 46), ('gemma3', 62)}


def open_gguf(path: epath.Path) -> tuple[str, dict[str, Any], Weights]:
    """The architecture, the config in Hugging Face's words, and the tensors under their GGUF names.

    Raises InputError if the file is torn, is one of several, or has a tensor type that cannot be dequantised.
    """
    metadata = read_metadata(path, '')
    if metadata.get('split.count', 0) > 1:
        count = metadata['split.count']
        raise InputError(f'{path} is one of {count} files; merge them with llama-gguf-split --merge')
    weights = _open_tensors(path)
    architecture = str(metadata.get('general.architecture'))
    return architecture, _hf_config(architecture, metadata, weights), weights


def _open_tensors(path: epath.Path) -> Weights:
    try:
        import gguf
    except ImportError as error:
        raise InputError(f'{path} needs the gguf package; {extra("gguf")}') from error
    try:
        # A torn file fails in whichever array is cut, as one of these.
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise InputError(f'{path} is a torn GGUF file ({error}); download it again') from error

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise InputError(f'{path}: {name} is {kind}, which gguf cannot dequantise; convert it') from error
        return values.reshape(shapes[name])

    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    return Weights(shapes, read, (path,))


def _hf_config(architecture: str, metadata: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """config.json as its publisher would have written it, from the metadata and the tensors there are."""

    def field(key: str) -> Any:
        value = metadata.get(f'{architecture}.{key}')
        # The shortest decimal of a float32: 1e-05 and not 9.999999747378752e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    config = {name: field(key) for name, key in KEYS.items() if field(key) is not None}
    for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers'):
        if name not in config:
            raise InputError(f'GGUF metadata has no {architecture}.{KEYS[name]}; download the file again')
    head_width = config['hidden_size'] // config['num_attention_heads']
    head_dim = config.get('head_dim', head_width)
    width_scaled = (architecture, config['num_hidden_layers']) in WIDTH_SCALED
    config |= {
        'model_type': architecture,
        'vocab_size': weights.shapes.get(EMBEDDING, (None,))[0],
        'tie_word_embeddings': 'output.weight' not in weights.shapes,
        'head_dim': head_dim,
        'query_pre_attn_scalar': head_width if width_scaled else head_dim,
    }
    scaling = field('rope.scaling.type')
    if scaling not in (None, 'none'):
        config['rope_scaling'] = {'rope_type': scaling, 'factor': field('rope.scaling.factor')}
    if ROPE_FACTORS in weights.shapes:
        config['rope_scaling'] = _llama3_scaling(config, weights.read(ROPE_FACTORS))
    return config


def _llama3_scaling(config: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Llama 3's scaling from the divisor of each plane, which is all that GGUF keeps of it.

    The published models differ in `factor` alone, the largest divisor; that the others follow is checked.
    """
    factor, head_dim, theta = float(factors.max()), config['head_dim'], config['rope_theta']
    rope = Rope(theta, 'llama3', factor)
    expected = Rope(theta).frequencies(head_dim) / rope.frequencies(head_dim)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise InputError(f'{ROPE_FACTORS} is not the scaling of Llama 3; no other one is supported in GGUF')
    return {
        'rope_type': 'llama3',
        'factor': factor,
        'low_freq_factor': rope.low_freq,
        'high_freq_factor': rope.high_freq,
        'original_max_position_embeddings': rope.original_length,
    }
