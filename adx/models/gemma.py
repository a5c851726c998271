"""Gemma 2 (soft caps), Gemma 3 text (qk-norm, two rotary bases); local and global layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.models.hf_config import (
    LOCAL,
    Json,
    read_common,
    read_pattern,
    read_rope,
    write_common,
    write_pattern,
)  # fmt: skip
from adx.models.names import SANDWICH_NORMS, Family
from adx.models.rope import Rope
from adx.models.transformer import TransformerConfig

DEFAULTS: Json = {
    'hidden_activation': 'gelu_pytorch_tanh',
    'max_position_embeddings': 8192,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': True,
    'head_dim': 256,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
}
# The published Gemma 3 files leave out what equals these.
GEMMA3_DEFAULTS = DEFAULTS | {
    'vocab_size': 262208,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'max_position_embeddings': 131072,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'rope_local_base_freq': 10000.0,
    'sliding_window_pattern': 6,
}


def _read(config: Json, default_pattern: tuple[bool, ...]) -> dict[str, Any]:
    """Fields of both generations."""
    fields = read_common(config)
    scalar = config['query_pre_attn_scalar']
    return fields | {
        'query_scale': None if scalar == fields['head_dim'] else scalar**-0.5,
        'window': config['sliding_window'],
        'local_pattern': read_pattern(config, default_pattern),
        'attention_softcap': config['attn_logit_softcapping'],
        'final_softcap': config['final_logit_softcapping'],
        'post_norms': True,
        'scale_embeddings': True,
    }


def _write(model_type: str, architecture: str, config: TransformerConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
    fields = write_common(model_type, architecture, config)
    return fields | {
        'hidden_activation': fields['hidden_act'],
        'query_pre_attn_scalar': round(scalar),
        'sliding_window': config.window,
        'layer_types': write_pattern(config),
        'attn_logit_softcapping': config.attention_softcap,
        'final_logit_softcapping': config.final_softcap,
    }


def _gemma2_from_hf(config: Json) -> TransformerConfig:
    return TransformerConfig(**_read(DEFAULTS | config, (True, False)))


def _gemma2_to_hf(config: TransformerConfig) -> dict[str, Any]:
    return _write('gemma2', 'Gemma2ForCausalLM', config)


def _gemma3_from_hf(config: Json) -> TransformerConfig:
    """Reads a text model's config, or the text part of a multimodal one."""
    config = GEMMA3_DEFAULTS | config.get('text_config', config)
    period = config['sliding_window_pattern']
    fields = _read(config, (True,) * (period - 1) + (False,))
    # Scaling applies to global layers only, so the local base is never scaled.
    local = read_rope({'rope_theta': config['rope_local_base_freq'], 'rope_parameters': _local_rope(config)})
    return TransformerConfig(
        **fields | {'rope': read_rope(config, theta=1000000.0), 'local_rope': local, 'qk_norm': True}
    )


def _local_rope(config: Json) -> Json:
    return (config.get('rope_parameters') or {}).get(LOCAL) or {}


def _gemma3_to_hf(config: TransformerConfig) -> dict[str, Any]:
    local = config.local_rope or config.rope
    return _write('gemma3_text', 'Gemma3ForCausalLM', config) | {'rope_local_base_freq': local.theta}


GEMMA_2_2B = TransformerConfig(
    vocab_size=256000, num_layers=26, embed_dim=2304, mlp_dim=9216, num_heads=8, num_kv_heads=4, head_dim=256,
    norm_eps=1e-6, window=4096, local_pattern=(True, False), post_norms=True, scale_embeddings=True,
    attention_softcap=50.0, final_softcap=30.0, activation='gelu_tanh',
)  # fmt: skip
GEMMA_3_1B = TransformerConfig(
    vocab_size=262144, num_layers=26, embed_dim=1152, mlp_dim=6912, num_heads=4, num_kv_heads=1, head_dim=256,
    max_length=32768, norm_eps=1e-6, rope=Rope(1000000.0), local_rope=Rope(10000.0), window=512,
    local_pattern=(True,) * 5 + (False,), qk_norm=True, post_norms=True, scale_embeddings=True,
    activation='gelu_tanh',
)  # fmt: skip

GEMMA2 = Family(
    model_type='gemma2',
    presets={
        'gemma-2-2b': GEMMA_2_2B,
        'gemma-2-9b': dataclasses.replace(
            GEMMA_2_2B, num_layers=42, embed_dim=3584, mlp_dim=14336, num_heads=16, num_kv_heads=8
        ),
    },
    from_hf=_gemma2_from_hf,
    to_hf=_gemma2_to_hf,
    table=SANDWICH_NORMS,
    norm_offset=1.0,
)
GEMMA3 = Family(
    model_type='gemma3_text',
    presets={
        'gemma-3-270m': dataclasses.replace(GEMMA_3_1B, num_layers=18, embed_dim=640, mlp_dim=2048),
        'gemma-3-1b': GEMMA_3_1B,
        'gemma-3-4b-text': dataclasses.replace(
            GEMMA_3_1B, vocab_size=262208, num_layers=34, embed_dim=2560, mlp_dim=10240, num_heads=8,
            num_kv_heads=4, max_length=131072, rope=Rope(1000000.0, 'linear', factor=8.0), window=1024,
        ),
    },
    from_hf=_gemma3_from_hf,
    to_hf=_gemma3_to_hf,
    table=SANDWICH_NORMS,
    norm_offset=1.0,
    prefixes=(('model.language_model.', 'model.'), ('language_model.', '')),
    ignored=r'(model\.)?(vision_tower|multi_modal_projector)\..*',
)  # fmt: skip
