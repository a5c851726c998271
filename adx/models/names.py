"""Checkpoint names: a path of the decoder, and its name and layout in others' files.

A `Row` says where a weight is found. `file` is its layout there in einops notation, with the axis letters of
adx/types.py: Hugging Face linears are [out, in], so q is '(H K) D' and becomes our 'H K D'.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from einops import rearrange

from adx.models.transformer import Model, TransformerConfig

# GGUF `llama` files interleave the two halves of every rotated head; this puts them back into halves.
UNPERMUTE = '(H half two) D -> (H two half) D'
TRANSLATOR = ('translator', 'translator_bias')


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a name table; '{i}' stands for the layer.

    rotary: q or k, whose rows GGUF `llama` files permute. norm: a norm's scale.
    """

    path: str
    hf: str
    gguf: str
    file: str
    rotary: bool = False

    @property
    def norm(self) -> bool:
        return self.path.endswith('.scale')


def _attention(name: str, file: str, rotary: bool = False) -> Row:
    gguf = 'attn_output' if name == 'o' else f'attn_{name}'
    return Row(
        f'blocks.{{i}}.attention.{name}', f'model.layers.{{i}}.self_attn.{name}_proj.weight',
        f'blk.{{i}}.{gguf}.weight', file, rotary,
    )  # fmt: skip


def _bias(name: str, file: str) -> Row:
    return Row(
        f'blocks.{{i}}.attention.{name}_bias', f'model.layers.{{i}}.self_attn.{name}_proj.bias',
        f'blk.{{i}}.attn_{name}.bias', file,
    )  # fmt: skip


def _mlp(name: str, file: str) -> Row:
    return Row(
        f'blocks.{{i}}.mlp.{name}', f'model.layers.{{i}}.mlp.{name}_proj.weight',
        f'blk.{{i}}.ffn_{name}.weight', file,
    )  # fmt: skip


def _head_norm(name: str) -> Row:
    return Row(
        f'blocks.{{i}}.attention.{name}_norm.scale', f'model.layers.{{i}}.self_attn.{name}_norm.weight',
        f'blk.{{i}}.attn_{name}_norm.weight', 'K',
    )  # fmt: skip


def _block_norm(path: str, hf: str, gguf: str) -> Row:
    return Row(
        f'blocks.{{i}}.{path}.scale', f'model.layers.{{i}}.{hf}.weight', f'blk.{{i}}.{gguf}.weight', 'D'
    )  # fmt: skip


_COMMON = (
    Row('embed', 'model.embed_tokens.weight', 'token_embd.weight', 'V D'),
    Row('head', 'lm_head.weight', 'output.weight', 'V D'),
    Row('final_norm.scale', 'model.norm.weight', 'output_norm.weight', 'D'),
    _attention('q', '(H K) D', rotary=True),
    _attention('k', '(G K) D', rotary=True),
    _attention('v', '(G K) D'),
    _attention('o', 'D (H K)'),
    _bias('q', '(H K)'),
    _bias('k', '(G K)'),
    _bias('v', '(G K)'),
    _head_norm('q'),
    _head_norm('k'),
    _mlp('gate', 'F D'),
    _mlp('up', 'F D'),
    _mlp('down', 'D F'),
    _block_norm('attention_norm', 'input_layernorm', 'attn_norm'),
)  # fmt: skip
PRE_NORMS = (*_COMMON, _block_norm('mlp_norm', 'post_attention_layernorm', 'ffn_norm'))
# 'post_attention_layernorm' is the norm before the MLP in Llama and the norm after attention in Gemma.
SANDWICH_NORMS = (
    *_COMMON,
    _block_norm('mlp_norm', 'pre_feedforward_layernorm', 'ffn_norm'),
    _block_norm('post_attention_norm', 'post_attention_layernorm', 'post_attention_norm'),
    _block_norm('post_mlp_norm', 'post_feedforward_layernorm', 'post_ffw_norm'),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: presets of published models, its config in Hugging Face's words, and its name table.

    model_type: as in config.json. from_hf (raises InputError), to_hf: config.json <-> TransformerConfig.
    norm_offset: added to the norm weights of a Hugging Face file: Gemma's factor is 1 + w. GGUF has the sum.
    interleaved: whether its GGUF files permute q and k for interleaved rotary embedding.
    prefixes: (in the file, in the table) beginnings of names, for a text model inside a multimodal file.
    ignored: regular expression of the Hugging Face names that hold nothing the decoder uses.
    """

    model_type: str
    presets: Mapping[str, TransformerConfig]
    from_hf: Callable[[dict[str, Any]], TransformerConfig]
    to_hf: Callable[[TransformerConfig], dict[str, Any]]
    table: tuple[Row, ...] = PRE_NORMS
    norm_offset: float = 0.0
    interleaved: bool = False
    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: str = r'.*\.rotary_emb\.inv_freq'

    def hf_name(self, name: str) -> str | None:
        """The table's name of a tensor in a Hugging Face file; None for one that is ignored."""
        if re.fullmatch(self.ignored, name):
            return None
        for prefix, replacement in self.prefixes:
            if name.startswith(prefix):
                return replacement + name.removeprefix(prefix)
        return name


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one weight of a model is in a file, and how its values there become ours.

    file, axes: its layout there and ours. sizes: of our axes, the vocabulary without padding.
    offset: added to the file's values. interleaved: its rows are permuted as in GGUF `llama` files.
    """

    name: str
    file: str
    axes: str
    sizes: Mapping[str, int]
    offset: float = 0.0
    interleaved: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file."""
        groups = (many or one for many, one in re.findall(r'\(([^)]*)\)|(\w)', self.file))
        return tuple(math.prod(self.sizes[letter] for letter in group.split()) for group in groups)

    @property
    def our_shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    def from_file(self, x: np.ndarray) -> np.ndarray:
        """The file's values in our layout: a view of `x` where no arithmetic is needed."""
        if self.interleaved:
            x = rearrange(x, UNPERMUTE, two=2, H=self.our_shape[0])
        x = rearrange(x, f'{self.file} -> {" ".join(self.axes)}', **self.sizes)
        return x.astype(np.float32) + np.float32(self.offset) if self.offset else x

    def to_file(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `from_file` for a Hugging Face file."""
        x = rearrange(x, f'{" ".join(self.axes)} -> {self.file}', **self.sizes)
        return x - np.float32(self.offset) if self.offset else x


def hf_tensors(family: Family, model: Model) -> dict[str, Tensor]:
    """Path -> tensor of a Hugging Face file, for every weight but an early exit's translator."""
    return {
        path: _tensor(model, path, row.hf, row.file, offset=family.norm_offset if row.norm else 0.0)
        for path, row in _match(family.table, model).items()
    }


def gguf_tensors(family: Family, model: Model) -> dict[str, Tensor]:
    """Path -> tensor of a GGUF file. Its norms hold the whole factor."""
    return {
        path: _tensor(model, path, row.gguf, row.file, interleaved=row.rotary and family.interleaved)
        for path, row in _match(family.table, model).items()
    }


def translator_tensors(model: Model) -> dict[str, Tensor]:
    """Path -> tensor of a file that holds an early exit's translator, under our names in our layout."""
    return {path: _tensor(model, path, path, ' '.join(model.axes[path])) for path in TRANSLATOR}


def _match(table: tuple[Row, ...], model: Model) -> dict[str, Row]:
    """Path -> row of every weight. KeyError if the table lacks one: a family that is not complete."""
    rows = {row.path: row for row in table}
    return {path: rows[re.sub(r'\d+', '{i}', path)] for path in model.shapes if path not in TRANSLATOR}


def _tensor(model: Model, path: str, name: str, file: str, **how: Any) -> Tensor:
    layer = re.search(r'\d+', path)
    sizes = model.config.sizes | {'V': model.config.vocab_size}
    axes = model.axes[path]
    name = name.format(i=layer.group() if layer else '')
    return Tensor(name, file, axes, {letter: sizes[letter] for letter in axes}, **how)
