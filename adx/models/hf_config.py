"""config.json in both of its dialects: what all families read and write alike.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`. Both are read; the
first is written, because both versions read it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.errors import InputError
from adx.models.rope import Rope
from adx.models.transformer import TransformerConfig

Json = dict[str, Any]

ACTIVATIONS = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}
ROPE_TYPES = {'default': 'none', 'linear': 'linear', 'llama3': 'llama3'}
LOCAL, GLOBAL = 'sliding_attention', 'full_attention'
# A checkpoint with one of these set is another function of its weights than this decoder's.
UNSUPPORTED = ('attention_bias', 'mlp_bias', 'use_bidirectional_attention', 'quantization_config')


def need(config: Json, key: str) -> Any:
    """config[key], or an InputError that names it."""
    if config.get(key) is None:
        raise InputError(f'config.json has no {key!r}, which this architecture needs; download it again')
    return config[key]


def read_common(config: Json) -> dict[str, Any]:
    """The fields of TransformerConfig that every family states alike.

    Raises InputError when a size is missing or when the file asks for something the decoder does not do.
    """
    for key in UNSUPPORTED:
        if config.get(key):
            raise InputError(f'config.json sets {key!r}, which is not supported; use a checkpoint without it')
    activation = config.get('hidden_activation') or need(config, 'hidden_act')
    if activation not in ACTIVATIONS:
        raise InputError(f'config.json has activation {activation!r}; supported are {sorted(ACTIVATIONS)}')
    embed_dim, heads = need(config, 'hidden_size'), need(config, 'num_attention_heads')
    return {
        'vocab_size': need(config, 'vocab_size'),
        'num_layers': need(config, 'num_hidden_layers'),
        'embed_dim': embed_dim,
        'mlp_dim': need(config, 'intermediate_size'),
        'num_heads': heads,
        'num_kv_heads': config.get('num_key_value_heads') or heads,
        'head_dim': config.get('head_dim') or embed_dim // heads,
        'max_length': need(config, 'max_position_embeddings'),
        'norm_eps': need(config, 'rms_norm_eps'),
        'activation': ACTIVATIONS[activation],
        'tied': bool(config.get('tie_word_embeddings')),
        'rope': read_rope(config),
    }


def read_rope(config: Json, kind: str = GLOBAL, theta: float = 10000.0) -> Rope:
    """The rotary embedding of the layers of `kind`; `theta` where the file is silent."""
    scaling = dict(config.get('rope_parameters') or config.get('rope_scaling') or {})
    scaling = scaling.get(kind, scaling)
    theta = scaling.get('rope_theta') or config.get('rope_theta') or theta
    name = scaling.get('rope_type') or scaling.get('type') or 'default'
    if name not in ROPE_TYPES or scaling.get('partial_rotary_factor', 1.0) != 1.0:
        raise InputError(
            f'config.json has rotary embedding {scaling}; supported are {sorted(ROPE_TYPES)}, on whole heads'
        )
    if name == 'default':
        return Rope(float(theta))
    factor = float(need(scaling, 'factor'))
    if name == 'linear':
        return Rope(float(theta), 'linear', factor)
    return Rope(
        float(theta), 'llama3', factor, float(need(scaling, 'low_freq_factor')),
        float(need(scaling, 'high_freq_factor')), int(need(scaling, 'original_max_position_embeddings')),
    )  # fmt: skip


def write_rope(rope: Rope) -> dict[str, Any]:
    """The inverse of `read_rope`, in the dialect that transformers 4 and 5 read."""
    if rope.scaling == 'none':
        return {'rope_theta': rope.theta, 'rope_scaling': None}
    scaling: Json = {'rope_type': rope.scaling, 'factor': rope.factor}
    if rope.scaling == 'llama3':
        scaling |= {
            'low_freq_factor': rope.low_freq,
            'high_freq_factor': rope.high_freq,
            'original_max_position_embeddings': rope.original_length,
        }
    return {'rope_theta': rope.theta, 'rope_scaling': scaling}


def write_common(model_type: str, architecture: str, config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_common`."""
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation]
    return {
        'architectures': [architecture],
        'model_type': model_type,
        'vocab_size': config.vocab_size,
        'num_hidden_layers': config.num_layers,
        'hidden_size': config.embed_dim,
        'intermediate_size': config.mlp_dim,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_dim,
        'max_position_embeddings': config.max_length,
        'rms_norm_eps': config.norm_eps,
        'hidden_act': activation,
        'tie_word_embeddings': config.tied,
        **write_rope(config.rope),
    }


def shortest_period(pattern: tuple[bool, ...]) -> tuple[bool, ...]:
    """The shortest tuple that gives `pattern` when cycled, e.g. (T, F, T, F, T) -> (T, F)."""
    for period in range(1, len(pattern)):
        if all(pattern[i] == pattern[i % period] for i in range(len(pattern))):
            return pattern[:period]
    return pattern


def local_layers(config: TransformerConfig) -> tuple[bool, ...]:
    return tuple(config.is_local(i) for i in range(config.num_layers))


def read_pattern(config: Json, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which layers are local, from `layer_types`; the cycled `default` where the file is silent."""
    kinds = config.get('layer_types')
    if kinds is None:
        return default
    if unknown := set(kinds) - {LOCAL, GLOBAL}:
        raise InputError(f'config.json has layer types {sorted(unknown)}; supported are {[LOCAL, GLOBAL]}')
    return shortest_period(tuple(kind == LOCAL for kind in kinds))


def write_pattern(config: TransformerConfig) -> list[str]:
    return [LOCAL if local else GLOBAL for local in local_layers(config)]


def normalise(config: TransformerConfig) -> TransformerConfig:
    """`config` without what no file states: padding, compute dtype, and a pattern longer than its period."""
    pattern = shortest_period(local_layers(config))
    return dataclasses.replace(config, vocab_rows=0, dtype='float32', local_pattern=pattern)
