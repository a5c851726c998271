"""Llama 2 and 3, SmolLM2, and Mistral, which adds a sliding window to every layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.models.hf_config import Json, read_common, write_common
from adx.models.names import Family
from adx.models.rope import Rope
from adx.models.transformer import TransformerConfig

DEFAULTS: Json = {
    'hidden_act': 'silu',
    'max_position_embeddings': 2048,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
}
MISTRAL_DEFAULTS = DEFAULTS | {
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
}


def _from_hf(config: Json) -> TransformerConfig:
    return TransformerConfig(**read_common(DEFAULTS | config))


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return write_common('llama', 'LlamaForCausalLM', config)


def _mistral_from_hf(config: Json) -> TransformerConfig:
    config = MISTRAL_DEFAULTS | config
    window = config['sliding_window']
    return TransformerConfig(**read_common(config), window=window, local_pattern=(window is not None,))


def _mistral_to_hf(config: TransformerConfig) -> dict[str, Any]:
    return write_common('mistral', 'MistralForCausalLM', config) | {'sliding_window': config.window}


SMOLLM2_135M = TransformerConfig(
    vocab_size=49152, num_layers=30, embed_dim=576, mlp_dim=1536, num_heads=9, num_kv_heads=3, head_dim=64,
    max_length=8192, rope=Rope(100000.0),
)  # fmt: skip
LLAMA_2_7B = TransformerConfig(
    vocab_size=32000, num_layers=32, embed_dim=4096, mlp_dim=11008, num_heads=32, num_kv_heads=32,
    head_dim=128, max_length=4096, tied=False,
)  # fmt: skip
LLAMA_3_1_8B = TransformerConfig(
    vocab_size=128256, num_layers=32, embed_dim=4096, mlp_dim=14336, num_heads=32, num_kv_heads=8,
    head_dim=128, max_length=131072, rope=Rope(500000.0, 'llama3', factor=8.0), tied=False,
)  # fmt: skip
LLAMA_3_2_3B = TransformerConfig(
    vocab_size=128256, num_layers=28, embed_dim=3072, mlp_dim=8192, num_heads=24, num_kv_heads=8,
    head_dim=128, max_length=131072, rope=Rope(500000.0, 'llama3', factor=32.0),
)  # fmt: skip
MISTRAL_7B = TransformerConfig(
    vocab_size=32000, num_layers=32, embed_dim=4096, mlp_dim=14336, num_heads=32, num_kv_heads=8,
    head_dim=128, max_length=32768, window=4096, local_pattern=(True,), tied=False,
)  # fmt: skip

LLAMA = Family(
    model_type='llama',
    presets={
        'llama-2-7b': LLAMA_2_7B,
        'llama-3.1-8b': LLAMA_3_1_8B,
        'llama-3.2-1b': dataclasses.replace(
            LLAMA_3_2_3B, num_layers=16, embed_dim=2048, num_heads=32, head_dim=64
        ),
        'llama-3.2-3b': LLAMA_3_2_3B,
        'smollm2-135m': SMOLLM2_135M,
        'smollm2-360m': dataclasses.replace(
            SMOLLM2_135M, num_layers=32, embed_dim=960, mlp_dim=2560, num_heads=15, num_kv_heads=5
        ),
        'smollm2-1.7b': dataclasses.replace(
            SMOLLM2_135M, num_layers=24, embed_dim=2048, mlp_dim=8192, num_heads=32, num_kv_heads=32,
            rope=Rope(130000.0),
        ),
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    interleaved=True,
)  # fmt: skip
MISTRAL = Family(
    model_type='mistral',
    presets={'mistral-7b-v0.1': MISTRAL_7B},
    from_hf=_mistral_from_hf,
    to_hf=_mistral_to_hf,
)
