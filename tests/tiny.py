"""A tiny Hugging Face directory and a config that runs on it: what the program is tested with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator

import tokenizers
from etils import epath

from adx import pipeline
from adx.checkpoints import save_hf
from adx.datasets.gsm8k import SAMPLE
from adx.datasets.tokenizing import Tokenizer, save_tokenizer
from adx.experiment import Experiment
from adx.models.transformer import Model, Params, TransformerConfig, make_model
from adx.processes import Place
from launch.config import load_config

VOCAB = 400
START, END = '<|im_start|>', '<|im_end|>'
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = '''
from adx.datasets import Gsm8k, Jsonl
from adx.decoding.engine import DecodeConfig
from adx.defences import CrossModelSoft, ProductOfExperts
from adx.experiment import Arm, Experiment, ModelSource


def experiment() -> Experiment:
    return Experiment(
        dataset={dataset},
        split={split!r},
        limit=3,
        teacher=ModelSource({teacher!r}),
        proxies=(ModelSource({teacher!r}, exit_layer=1),),
        arms=(
            Arm('plain'),
            Arm('product_of_experts', ProductOfExperts(gamma=0.3)),
            Arm('cross_model_soft', CrossModelSoft(weight=0.3)),
        ),
        max_new_tokens=12,
        decode=DecodeConfig(
            slots=4, chunk=4, buckets=(320,), prefill_rows=2, cache_length=336, record='scalars'
        ),
        disclosure='public',
        licence='Apache-2.0',
    )
'''


def make_tokenizer(vocab: int = VOCAB) -> Tokenizer:
    """Byte-level BPE of `vocab` tokens, trained on the shipped GSM8K sample, with a ChatML template."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(), trainer)
    end = backend.token_to_id(END)
    return Tokenizer(backend, frozenset({end}), None, {'eos_token': END}, TEMPLATE, '')


def make_params() -> tuple[Model, Params]:
    """A random llama-like model over that vocabulary."""
    config = TransformerConfig(
        vocab_size=VOCAB, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8,
        max_length=512,
    )  # fmt: skip
    model = make_model(config)
    return model, model.init(0)


def write_teacher(directory: pathlib.Path) -> str:
    """Saves model and tokenizer as a Hugging Face directory; its path."""
    tokenizer = make_tokenizer()
    save_hf(str(directory), *make_params(), write_tokenizer=functools.partial(save_tokenizer, tokenizer))
    return str(directory)


def write_smollm2(cache: pathlib.Path) -> None:
    """Puts a random model into a cache under the name of SmolLM2, so that what is written for it runs as it stands.

    As wide as SmolLM2, for the translator that ships; deep enough for the early exit; everything else is small. The
    vocabulary holds whole words, so that prompts have about SmolLM2's length.
    """
    tokenizer = make_tokenizer(4000)
    config = TransformerConfig(
        vocab_size=tokenizer.size, num_layers=10, embed_dim=576, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8,
        max_length=512,
    )  # fmt: skip
    model = make_model(config)
    write_tokenizer = functools.partial(save_tokenizer, tokenizer)
    save_hf(str(cache / 'smollm2-135m-instruct'), model, model.init(0), write_tokenizer=write_tokenizer)


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Variables of a process that finds its models in `cache`. Compile time is most of a tiny run: programs are
    shared there, and hardly optimised.
    """
    return {
        'ADX_CACHE': str(cache),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=1',
        'JAX_COMPILATION_CACHE_DIR': str(cache / 'programs'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }


def write_config(path: pathlib.Path, teacher: str, dataset: str = 'Gsm8k()', split: str = 'train') -> str:
    """Saves a config: three arms, three prompts, on the model at `teacher` and its early exit; its path."""
    path.write_text(CONFIG.format(teacher=teacher, dataset=dataset, split=split))
    return str(path)


def one_arm(root: pathlib.Path) -> Experiment:
    """Three prompts of one arm on a tiny teacher, without a proxy."""
    run = load_config(write_config(root / 'config.py', write_teacher(root / 'teacher')))
    return dataclasses.replace(run, arms=run.arms[:1], proxies=())


def generate(experiment: Experiment, path: epath.PathLike) -> pipeline.Report:
    return pipeline.generate(experiment, str(path), Place(), lambda report, trace: None, contextlib.nullcontext)


def _texts() -> Iterator[str]:
    for path in sorted(SAMPLE.glob('*.jsonl')):
        for line in path.read_text().splitlines():
            yield from json.loads(line).values()
