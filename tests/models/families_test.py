"""Every family computes what Hugging Face transformers computes, and every preset is the published model."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from adx.checkpoints import load
from adx.errors import InputError
from adx.models import MENU, PRESETS, family_of, find_family
from adx.models.hf_config import shortest_period
from adx.models.transformer import Model, make_model

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FAMILIES = ('gemma2', 'gemma3_text', 'llama3', 'mistral', 'qwen2', 'qwen3', 'smollm2')
# Millions of parameters, as the model cards and reports of their publishers state them.
PUBLISHED = {
    'llama-2-7b': 6738, 'llama-3.1-8b': 8030, 'llama-3.2-1b': 1236, 'llama-3.2-3b': 3213,
    'smollm2-135m': 134.5,
    'smollm2-360m': 361.8, 'smollm2-1.7b': 1711, 'mistral-7b-v0.1': 7242, 'qwen2.5-0.5b': 494,
    'qwen2.5-3b': 3086,
    'qwen2.5-7b': 7616, 'r1-distill-qwen-7b': 7616, 'qwen3-0.6b': 596, 'qwen3-8b': 8191, 'gemma-2-2b': 2614,
    'gemma-2-9b': 9242, 'gemma-3-270m': 268.1, 'gemma-3-1b': 999.9, 'gemma-3-4b-text': 3880,
}  # fmt: skip

# What the decoder reads of config.json as it is published.
PUBLISHED_CONFIGS = {
    'llama-3.1-8b': {
        'attention_bias': False, 'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 14336,
        'max_position_embeddings': 131072, 'mlp_bias': False, 'model_type': 'llama',
        'num_attention_heads': 32, 'num_hidden_layers': 32, 'num_key_value_heads': 8,
        'rms_norm_eps': 1e-05, 'rope_theta': 500000.0,
        'rope_scaling': {
            'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
            'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
        },
        'tie_word_embeddings': False, 'vocab_size': 128256,
    },
    'mistral-7b-v0.1': {
        'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 14336,
        'max_position_embeddings': 32768, 'model_type': 'mistral', 'num_attention_heads': 32,
        'num_hidden_layers': 32, 'num_key_value_heads': 8,
        'rms_norm_eps': 1e-05, 'rope_theta': 10000.0, 'sliding_window': 4096, 'tie_word_embeddings': False,
        'vocab_size': 32000,
    },
    'qwen2.5-0.5b': {
        'hidden_act': 'silu', 'hidden_size': 896, 'intermediate_size': 4864, 'max_position_embeddings': 32768,
        'max_window_layers': 24, 'model_type': 'qwen2', 'num_attention_heads': 14, 'num_hidden_layers': 24,
        'num_key_value_heads': 2, 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0, 'sliding_window': 32768,
        'tie_word_embeddings': True, 'use_mrope': False, 'use_sliding_window': False, 'vocab_size': 151936,
    },
    'gemma-2-2b': {
        'attention_bias': False, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0,
        'head_dim': 256, 'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh',
        'hidden_size': 2304,
        'intermediate_size': 9216, 'max_position_embeddings': 8192, 'model_type': 'gemma2',
        'num_attention_heads': 8, 'num_hidden_layers': 26, 'num_key_value_heads': 4,
        'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-06, 'rope_theta': 10000.0, 'sliding_window': 4096,
        'vocab_size': 256000,
    },
}  # fmt: skip


def shallow(name: str, depth: int) -> Model:
    return make_model(dataclasses.replace(PRESETS[name], num_layers=depth))


def logits(directory: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    loaded = load(str(directory))
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(loaded.model.apply(loaded.params, tokens, positions)[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(family):
    golden = np.load(GOLDENS / family / 'logits.npz')
    ours = logits(GOLDENS / family, golden['tokens'])
    # Their float32 logits are `rounding` (0.5 to 2e-5) from float64 and ours about as much; a factor two is
    # for the order of sums on other platforms. The smallest mistake below is a hundred times larger.
    assert np.abs(ours - golden['logits']).max() <= 4 * golden['rounding']


@pytest.mark.parametrize(
    ('family', 'key', 'value'),
    [
        ('llama3', 'rms_norm_eps', 1e-4),
        ('llama3', 'rope_parameters', {'rope_theta': 500.0, 'rope_type': 'default'}),
        ('gemma3_text', 'sliding_window', 8),
        ('mistral', 'sliding_window', 8),
        ('gemma2', 'sliding_window', 6),
        ('gemma2', 'query_pre_attn_scalar', 8),
        ('gemma2', 'attn_logit_softcapping', None),
        ('gemma2', 'final_logit_softcapping', 4.0),
        ('gemma3_text', 'layer_types', ['full_attention'] + ['sliding_attention'] * 6),
        ('gemma3_text', 'hidden_activation', 'silu'),
    ],
)
def test_every_setting_of_the_config_matters(tmp_path, family, key, value):
    golden = np.load(GOLDENS / family / 'logits.npz')
    config = json.loads((GOLDENS / family / 'config.json').read_text())
    assert config[key] != value
    (tmp_path / 'config.json').write_text(json.dumps(config | {key: value}))
    os.symlink(GOLDENS / family / 'model.safetensors', tmp_path / 'model.safetensors')
    assert np.abs(logits(tmp_path, golden['tokens']) - golden['logits']).max() > 100 * golden['rounding']


def test_goldens_cover_the_menu():
    covered = {json.loads((GOLDENS / name / 'config.json').read_text())['model_type'] for name in FAMILIES}
    assert {family.model_type for family in MENU.values()} == covered


@pytest.mark.parametrize('name', PRESETS)
def test_preset_has_the_published_size(name):
    # Blocks are alike, so the count is affine in the depth: two shallow models are traced and not a deep one.
    one, two = (shallow(name, depth).num_params for depth in (1, 2))
    millions = (one + (PRESETS[name].num_layers - 1) * (two - one)) / 1e6
    assert millions == pytest.approx(PUBLISHED[name], abs=0.5 if PUBLISHED[name] >= 1000 else 0.05)


def test_count_is_affine_in_the_depth():
    assert make_model(PRESETS['gemma-3-270m']).num_params == 268098176


@pytest.mark.parametrize('name', PRESETS)
def test_preset_applies(name):
    """The forward pass of every preset traces: its sizes fit together."""
    model = shallow(name, 2)
    params = {path: jax.ShapeDtypeStruct(shape, 'float32') for path, shape in model.shapes.items()}
    tokens = jax.ShapeDtypeStruct((2, 3), 'int32')
    out, cache = jax.eval_shape(model.apply, params, tokens, tokens)
    assert out.shape == (2, 3, PRESETS[name].vocab_size)
    assert len(cache.layers) == 2


@pytest.mark.parametrize('name', PRESETS)
def test_config_round_trips(name):
    family = family_of(PRESETS[name])
    assert family.presets[name] == PRESETS[name]
    written = json.loads(json.dumps(family.to_hf(PRESETS[name])))
    assert MENU[written['model_type']].from_hf(written) == PRESETS[name]


@pytest.mark.parametrize('name', PUBLISHED_CONFIGS)
def test_published_config_is_the_preset(name):
    config = PUBLISHED_CONFIGS[name]
    assert find_family(config['model_type']).from_hf(config) == PRESETS[name]


def test_both_dialects_of_rope_are_read():
    old = MENU['llama'].to_hf(PRESETS['llama-3.1-8b'])
    new = copy.deepcopy(old)
    new['rope_parameters'] = {'rope_theta': new.pop('rope_theta'), **new.pop('rope_scaling')}
    assert MENU['llama'].from_hf(new) == MENU['llama'].from_hf(old) == PRESETS['llama-3.1-8b']


def test_sparse_config_of_a_multimodal_gemma_is_read():
    """config.json of google/gemma-3-4b-pt leaves out what equals the defaults of its class."""
    text = {
        'hidden_size': 2560, 'intermediate_size': 10240, 'model_type': 'gemma3_text', 'num_hidden_layers': 34,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window': 1024,
    }  # fmt: skip
    config = {'model_type': 'gemma3', 'text_config': text}
    assert find_family('gemma3').from_hf(config) == PRESETS['gemma-3-4b-text']


def test_multimodal_names_are_mapped_and_vision_is_dropped():
    gemma = MENU['gemma3']
    for prefix in ('language_model.model.', 'model.language_model.', 'model.'):
        assert gemma.hf_name(prefix + 'norm.weight') == 'model.norm.weight'
    assert gemma.hf_name('vision_tower.vision_model.embeddings.position_embedding.weight') is None
    assert gemma.hf_name('model.multi_modal_projector.mm_soft_emb_norm.weight') is None


def test_window_of_the_upper_layers_of_qwen():
    config = MENU['qwen2'].to_hf(PRESETS['qwen2.5-0.5b'])
    windowed = config | {'use_sliding_window': True, 'sliding_window': 512, 'max_window_layers': 20}
    read = MENU['qwen2'].from_hf(windowed)
    assert [read.is_local(i) for i in range(24)] == [False] * 20 + [True] * 4
    assert MENU['qwen2'].from_hf(MENU['qwen2'].to_hf(read)) == read


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, "supported are ['default', 'linear', 'llama3']"),
        ({'hidden_act': 'relu'}, "supported are ['gelu_pytorch_tanh', 'silu']"),
        ({'attention_bias': True}, "'attention_bias'"),
        ({'quantization_config': {'bits': 4}}, "'quantization_config'"),
        ({'hidden_size': None}, "'hidden_size'"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(change, said):
    config = MENU['llama'].to_hf(PRESETS['smollm2-135m']) | change
    with pytest.raises(InputError) as error:
        MENU['llama'].from_hf(config)
    assert said in str(error.value)
    assert '\n' not in str(error.value)


def test_unknown_architecture_lists_those_there_are():
    with pytest.raises(InputError, match=r"'qwen2_moe' is not supported; .*'gemma2'.*mean 'qwen2'"):
        find_family('qwen2_moe')


@pytest.mark.parametrize(
    ('pattern', 'period'),
    [((True,), (True,)), ((True, False, True), (True, False)), ((True, True, False), (True, True, False))],
)
def test_shortest_period(pattern, period):
    assert shortest_period(pattern) == period
