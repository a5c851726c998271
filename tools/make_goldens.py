"""Writes tests/goldens/<family>: tiny checkpoints by Hugging Face transformers, and logits.

    python -m tools.make_goldens --out=tests/goldens     # needs the oracle extra: torch, transformers

Weights are drawn wide and norms and biases off their initial values, so that attention is peaked and every
mistake shows. logits.npz holds tokens [2, 24] int32, logits [2, 24, 96] float32 and `rounding`, the largest
difference between them and the same model in float64: what float32 arithmetic alone does to these logits.
Exit codes: 0 done, 2 flags.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
from absl import flags

from launch import program

_OUT = flags.DEFINE_string('out', 'tests/goldens', 'Directory that gets one folder per family.')

VOCAB, LENGTH, SEED = 96, 24, 20240607
SIZES = {
    'vocab_size': VOCAB, 'hidden_size': 24, 'intermediate_size': 32, 'num_hidden_layers': 4,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8, 'max_position_embeddings': 64,
    'rms_norm_eps': 1e-3,
}  # fmt: skip
# Every window is shorter than LENGTH, and Llama's wavelengths lie on both sides of its original length.
LLAMA3_ROPE = {
    'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 8.0, 'low_freq_factor': 1.0,
    'high_freq_factor': 4.0, 'original_max_position_embeddings': 32,
}  # fmt: skip
GEMMA3_ROPE = {
    'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1000.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
}
SMOLLM2 = {'num_attention_heads': 3, 'num_key_value_heads': 1}
GEMMA = {'query_pre_attn_scalar': 12, 'sliding_window': 7}
GEMMA3 = GEMMA | {'num_hidden_layers': 7, 'intermediate_size': 24, 'num_key_value_heads': 1}


def configs() -> dict[str, Any]:
    """Folder name -> transformers config."""
    import transformers as hf

    return {
        'llama3': hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
        'smollm2': hf.LlamaConfig(**SIZES | SMOLLM2, tie_word_embeddings=True),
        'mistral': hf.MistralConfig(**SIZES, sliding_window=7),
        'qwen2': hf.Qwen2Config(**SIZES, tie_word_embeddings=True),
        'qwen3': hf.Qwen3Config(**SIZES),
        'gemma2': hf.Gemma2Config(**SIZES | GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
        'gemma3_text': hf.Gemma3TextConfig(**SIZES | GEMMA3, rope_parameters=GEMMA3_ROPE),
    }


def randomise(model: Any) -> None:
    """Draws every parameter anew: matrices with deviation 0.35, norms and biases moved by 0.3."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(0.35 * noise)
            else:
                parameter.add_(0.3 * noise)


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


def write(directory: pathlib.Path, config: Any) -> None:
    """Writes one golden checkpoint as transformers itself saves it, and its logits."""
    import transformers as hf

    shutil.rmtree(directory, ignore_errors=True)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation='eager').float().eval()
    randomise(model)
    model.save_pretrained(directory)
    (directory / 'generation_config.json').unlink(missing_ok=True)
    tokens = np.random.default_rng(SEED).integers(0, VOCAB, (2, LENGTH), dtype=np.int32)
    single, double = logits(model, tokens), logits(model.double(), tokens)
    np.savez(directory / 'logits.npz', tokens=tokens, logits=single, rounding=np.abs(single - double).max())
    note = {'transformers': hf.__version__, 'command': 'python -m tools.make_goldens', 'seed': SEED}
    (directory / 'source.json').write_text(json.dumps(note) + '\n')


def main() -> None:
    for name, config in configs().items():
        write(pathlib.Path(_OUT.value) / name, config)


if __name__ == '__main__':
    program.start(main)
