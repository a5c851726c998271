"""Qwen2 and Qwen2.5 (biases on q, k, v), their R1 distillations, Qwen3 (norms on q, k)."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.models.hf_config import Json, read_common, read_pattern, write_common, write_pattern
from adx.models.names import Family
from adx.models.rope import Rope
from adx.models.transformer import TransformerConfig

DEFAULTS: Json = {
    'hidden_act': 'silu',
    'max_position_embeddings': 32768,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
    'use_sliding_window': False,
    'sliding_window': 4096,
    'max_window_layers': 28,
}
QWEN3_DEFAULTS = DEFAULTS | {'head_dim': 128}


def _read(config: Json) -> dict[str, Any]:
    """Fields of both generations. A window is used only if the file says so, and then by the upper layers."""
    fields = read_common(config)
    if not config['use_sliding_window']:
        return fields
    first = config['max_window_layers']
    default = tuple(layer >= first for layer in range(fields['num_layers']))
    return fields | {'window': config['sliding_window'], 'local_pattern': read_pattern(config, default)}


def _write(model_type: str, architecture: str, config: TransformerConfig) -> dict[str, Any]:
    fields = write_common(model_type, architecture, config)
    if config.window is None:
        return fields | {'use_sliding_window': False}
    layers = write_pattern(config)
    window = {'use_sliding_window': True, 'sliding_window': config.window, 'layer_types': layers}
    # transformers 4 knows no layer_types: the count of leading global layers says the same.
    return fields | window | {'max_window_layers': layers.count('full_attention')}


def _from_hf(config: Json) -> TransformerConfig:
    return TransformerConfig(**_read(DEFAULTS | config), qkv_bias=True)


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return _write('qwen2', 'Qwen2ForCausalLM', config)


def _qwen3_from_hf(config: Json) -> TransformerConfig:
    return TransformerConfig(**_read(QWEN3_DEFAULTS | config), qk_norm=True)


def _qwen3_to_hf(config: TransformerConfig) -> dict[str, Any]:
    return _write('qwen3', 'Qwen3ForCausalLM', config)


QWEN2_5_7B = TransformerConfig(
    vocab_size=152064, num_layers=28, embed_dim=3584, mlp_dim=18944, num_heads=28, num_kv_heads=4,
    head_dim=128, max_length=131072, norm_eps=1e-6, rope=Rope(1000000.0), qkv_bias=True, tied=False,
)  # fmt: skip
QWEN2_5_3B = TransformerConfig(
    vocab_size=151936, num_layers=36, embed_dim=2048, mlp_dim=11008, num_heads=16, num_kv_heads=2,
    head_dim=128, max_length=32768, norm_eps=1e-6, rope=Rope(1000000.0), qkv_bias=True,
)  # fmt: skip
QWEN3_8B = TransformerConfig(
    vocab_size=151936, num_layers=36, embed_dim=4096, mlp_dim=12288, num_heads=32, num_kv_heads=8,
    head_dim=128, max_length=40960, norm_eps=1e-6, rope=Rope(1000000.0), qk_norm=True, tied=False,
)  # fmt: skip

QWEN2 = Family(
    model_type='qwen2',
    presets={
        'qwen2.5-0.5b': dataclasses.replace(
            QWEN2_5_3B, num_layers=24, embed_dim=896, mlp_dim=4864, num_heads=14, head_dim=64
        ),
        'qwen2.5-3b': QWEN2_5_3B,
        'qwen2.5-7b': QWEN2_5_7B,
        'r1-distill-qwen-7b': dataclasses.replace(QWEN2_5_7B, rope=Rope(10000.0)),
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
)
QWEN3 = Family(
    model_type='qwen3',
    presets={
        'qwen3-0.6b': dataclasses.replace(
            QWEN3_8B, num_layers=28, embed_dim=1024, mlp_dim=3072, num_heads=16, tied=True
        ),
        'qwen3-8b': QWEN3_8B,
    },
    from_hf=_qwen3_from_hf,
    to_hf=_qwen3_to_hf,
)
