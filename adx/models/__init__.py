"""Model families by what checkpoints call them: `model_type`, or GGUF's architecture."""

from __future__ import annotations

from collections.abc import Mapping

from adx.errors import InputError
from adx.fields import hint
from adx.models.gemma import GEMMA2, GEMMA3
from adx.models.hf_config import normalise
from adx.models.llama import LLAMA, MISTRAL
from adx.models.names import Family
from adx.models.qwen import QWEN2, QWEN3
from adx.models.transformer import TransformerConfig

MENU: dict[str, Family] = {
    'llama': LLAMA,
    'mistral': MISTRAL,
    'qwen2': QWEN2,
    'qwen3': QWEN3,
    'gemma2': GEMMA2,
    'gemma3_text': GEMMA3,
    'gemma3': GEMMA3,  # the text part of a multimodal checkpoint
}
GGUF_MENU: dict[str, Family] = {  # files of Mistral call themselves llama
    'llama': LLAMA,
    'qwen2': QWEN2,
    'qwen3': QWEN3,
    'gemma2': GEMMA2,
    'gemma3': GEMMA3,
}
PRESETS: dict[str, TransformerConfig] = {
    name: config for family in MENU.values() for name, config in family.presets.items()
}


def find_family(name: str, menu: Mapping[str, Family] = MENU) -> Family:
    """The family of an architecture; InputError lists those there are."""
    if name not in menu:
        raise InputError(f'architecture {name!r} is not supported; supported are {sorted(menu)}{hint(name, menu)}')
    return menu[name]


def family_of(config: TransformerConfig) -> Family:
    """The first family whose config.json can say all of `config`; padding and compute dtype are left out.

    Raises InputError if there is none, e.g. for an early exit with a translator.
    """
    config = normalise(config)
    for family in MENU.values():
        if family.from_hf(family.to_hf(config)) == config:
            return family
    extra = ' with a translator' if config.translator else ''
    raise InputError(
        f'no Hugging Face architecture of {sorted(MENU)} computes this model{extra}; save it with Orbax'
    )
