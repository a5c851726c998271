"""The one decoder: Llama, SmolLM2, Mistral, Qwen and Gemma are settings of it, never copies.

A weight is declared with its axis letters (`weight('HKD')`), which give its shape, its einsum and its place on
the mesh: outputs first and inputs last, because a decode step then reads every weight front to back.
Modules are split once at the border into (graphdef, params); `apply` is then a pure function.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from adx.models.cache import Cache, LayerCache, Past, empty_cache, positions_of_keys, write
from adx.models.products import Linear, linear, lookup
from adx.models.rope import Rope, rotate
from adx.numerics import MASKED

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and mechanisms of a decoder. Lengths are in tokens.

    vocab_size: ids the tokenizer can emit; vocab_rows: rows allocated, the rest is padding and is masked.
    window: how many tokens a local layer sees; local_pattern: which layers are local, cycled over the depth.
    query_scale: multiplies queries, head_dim ** -0.5 in most families.
    translator: an affine map before the final norm, for an early exit (Belrose et al., arXiv 2303.08112).
    dtype: of the activations and matmuls; 'float32' means Precision.HIGHEST on every platform.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_rows: int = 0
    max_length: int = 8192
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    local_rope: Rope | None = None
    window: int | None = None
    local_pattern: tuple[bool, ...] = (False,)
    query_scale: float | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    scale_embeddings: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    activation: str = 'silu'
    tied: bool = True
    translator: bool = False
    dtype: str = 'float32'

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every axis letter that a weight uses."""
        return {
            'V': max(self.vocab_rows, self.vocab_size), 'D': self.embed_dim, 'F': self.mlp_dim,
            'H': self.num_heads, 'G': self.num_kv_heads, 'K': self.head_dim, 'E': self.embed_dim,
        }  # fmt: skip

    def is_local(self, layer: int) -> bool:
        return self.window is not None and self.local_pattern[layer % len(self.local_pattern)]


def weight(rngs: nnx.Rngs, axes: str, config: TransformerConfig, scale: float | None = None) -> nnx.Param:
    """A normal-initialised parameter; `scale` None takes fan_in ** -0.5 with the last axis as fan-in."""
    shape = tuple(config.sizes[letter] for letter in axes)
    deviation = shape[-1] ** -0.5 if scale is None else scale
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * deviation, axes=axes)


def constant(value: float, axes: str, config: TransformerConfig) -> nnx.Param:
    return nnx.Param(jnp.full(tuple(config.sizes[letter] for letter in axes), value, jnp.float32), axes=axes)


class Norm(nnx.Module):
    """Root-mean-square norm in float32. `scale` is the whole factor: Gemma's 1 + w is added when it is loaded."""

    def __init__(self, axes: str, config: TransformerConfig):
        self.scale = constant(1.0, axes, config)
        self.eps = config.norm_eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * self.scale[...]).astype(x.dtype)


def softcap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(q_BLHK: Array, layer: LayerCache, mask_BLS: Array, cap: float | None, linear: Linear = linear) -> Array:
    """Grouped-query attention over a cache, softmax in float32; queries come scaled. Returns [B, L, H, K].

    The R query heads of a key/value head and the L positions are the rows of one matrix per (B, G).
    """
    groups, length = layer.v_BGSK.shape[1], q_BLHK.shape[1]
    q_BGMK = rearrange(q_BLHK, 'B L (G R) K -> B G (R L) K', G=groups)
    scores_BGMS = linear('BGMK,BGKS->BGMS', q_BGMK, layer.k_BGKS, jnp.float32)
    scores_BGRLS = rearrange(softcap(scores_BGMS, cap), 'B G (R L) S -> B G R L S', L=length)
    weights_BGRLS = jax.nn.softmax(jnp.where(mask_BLS[:, None, None], scores_BGRLS, MASKED), axis=-1)
    weights_BGMS = rearrange(weights_BGRLS.astype(q_BLHK.dtype), 'B G R L S -> B G (R L) S')
    out_BGMK = linear('BGMS,BGSK->BGMK', weights_BGMS, layer.v_BGSK)
    return rearrange(out_BGMK, 'B G (R L) K -> B L (G R) K', L=length)


def project(x_BLD: Array, w_HKD: Array, linear: Linear) -> Array:
    """x_BLHK. As one matrix: XLA's CPU compiler would transpose a weight of three axes in every step."""
    y_BLM = linear('BLD,MD->BLM', x_BLD, rearrange(w_HKD, 'H K D -> (H K) D'))
    return rearrange(y_BLM, 'B L (H K) -> B L H K', H=w_HKD.shape[0])


class Attention(nnx.Module):
    def __init__(self, config: TransformerConfig, layer: int, rngs: nnx.Rngs):
        self.q = weight(rngs, 'HKD', config)
        self.k = weight(rngs, 'GKD', config)
        self.v = weight(rngs, 'GKD', config)
        self.o = weight(rngs, 'DHK', config, (config.num_heads * config.head_dim) ** -0.5)
        if config.qkv_bias:
            self.q_bias = constant(0.0, 'HK', config)
            self.k_bias = constant(0.0, 'GK', config)
            self.v_bias = constant(0.0, 'GK', config)
        if config.qk_norm:
            self.q_norm = Norm('K', config)
            self.k_norm = Norm('K', config)
        self.config = config
        local = config.is_local(layer)
        self.window = config.window if local else None
        self.rope = config.local_rope if local and config.local_rope else config.rope

    def __call__(
        self, x_BLD: Array, positions_BL: Array, past: Past, linear: Linear, segments_BL: Array | None
    ):
        config = self.config
        q_BLHK, k_BLGK, v_BLGK = (project(x_BLD, w[...], linear) for w in (self.q, self.k, self.v))
        if config.qkv_bias:
            q_BLHK += self.q_bias[...].astype(q_BLHK.dtype)
            k_BLGK += self.k_bias[...].astype(k_BLGK.dtype)
            v_BLGK += self.v_bias[...].astype(v_BLGK.dtype)
        if config.qk_norm:
            q_BLHK, k_BLGK = self.q_norm(q_BLHK), self.k_norm(k_BLGK)
        q_BLHK = rotate(q_BLHK, positions_BL, self.rope)
        k_BLGK = rotate(k_BLGK, positions_BL, self.rope)
        scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
        layer = write(past, k_BLGK, v_BLGK, positions_BL)
        key_positions = positions_of_keys(past, layer)
        # Packed positions restart within a row: there the columns say what comes before what.
        columns_BL = positions_BL if segments_BL is None else jnp.arange(x_BLD.shape[1])[None]
        mask_BLS = key_positions <= columns_BL[..., None]
        if self.window is not None:
            mask_BLS &= key_positions > columns_BL[..., None] - self.window
        if segments_BL is not None:
            mask_BLS &= segments_BL[:, :, None] == segments_BL[:, None, :]
        out_BLHK = attend(q_BLHK * scale, layer, mask_BLS, config.attention_softcap, linear)
        out_BLM, o_DM = rearrange(out_BLHK, 'B L H K -> B L (H K)'), rearrange(self.o[...], 'D H K -> D (H K)')
        return linear('BLM,DM->BLD', out_BLM, o_DM), layer


class Mlp(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.gate = weight(rngs, 'FD', config)
        self.up = weight(rngs, 'FD', config)
        self.down = weight(rngs, 'DF', config)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x_BLD: Array, linear: Linear) -> Array:
        gate_BLF = self.activation(linear('BLD,FD->BLF', x_BLD, self.gate[...]))
        up_BLF = linear('BLD,FD->BLF', x_BLD, self.up[...])
        return linear('BLF,DF->BLD', gate_BLF * up_BLF, self.down[...])


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'silu': jax.nn.silu,
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
}


class Block(nnx.Module):
    def __init__(self, config: TransformerConfig, layer: int, rngs: nnx.Rngs):
        self.attention_norm = Norm('D', config)
        self.attention = Attention(config, layer, rngs)
        self.mlp_norm = Norm('D', config)
        self.mlp = Mlp(config, rngs)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.post_attention_norm = Norm('D', config)
            self.post_mlp_norm = Norm('D', config)

    def __call__(
        self, x_BLD: Array, positions_BL: Array, past: Past, linear: Linear, segments_BL: Array | None
    ):
        y_BLD, layer = self.attention(self.attention_norm(x_BLD), positions_BL, past, linear, segments_BL)
        x_BLD += self.post_attention_norm(y_BLD) if self.post_norms else y_BLD
        y_BLD = self.mlp(self.mlp_norm(x_BLD), linear)
        return x_BLD + (self.post_mlp_norm(y_BLD) if self.post_norms else y_BLD), layer


def translate(x_BLD: Array, w_DE: Array, bias_D: Array, linear: Linear = linear) -> Array:
    """An early exit's hidden states as the final norm wants them."""
    return linear('BLD,DE->BLE', x_BLD, w_DE) + bias_D.astype(x_BLD.dtype)


class Transformer(nnx.Module):
    """Tokens to hidden states to logits, over an explicit cache."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = weight(rngs, 'VD', config, config.embed_dim**-0.5)
        self.blocks = nnx.List([Block(config, i, rngs) for i in range(config.num_layers)])
        if config.translator:
            self.translator = nnx.Param(jnp.eye(config.embed_dim), axes='DE')
            self.translator_bias = constant(0.0, 'D', config)
        self.final_norm = Norm('D', config)
        if not config.tied:
            self.head = weight(rngs, 'VD', config, config.embed_dim**-0.5)

    def inputs(self, tokens_BL: Array, decoding: bool = False) -> Array:
        """What the first block reads, [B, L, D]. decoding: by `lookup`, which has no gradient."""
        dtype, embed_VD = jnp.dtype(self.config.dtype), self.embed[...]
        x_BLD = (lookup(embed_VD, tokens_BL) if decoding else embed_VD[tokens_BL]).astype(dtype)
        return x_BLD * jnp.asarray(self.config.embed_dim**0.5, dtype) if self.config.scale_embeddings else x_BLD

    def hidden(
        self, tokens_BL: Array, positions_BL: Array, cache: Cache | None = None, *given: Any, **options: Any
    ) -> tuple[Array, Cache]:
        """Hidden states [B, L, D] after the last block, and the cache: see `states`."""
        x_BLD = self.inputs(tokens_BL, decoding=cache is not None)
        states, cache = self.states(x_BLD, positions_BL, cache, *given, **options)
        return states[-1], cache

    def states(
        self,
        x_BLD: Array,
        positions_BL: Array,
        cache: Cache | None = None,
        linear: Linear = linear,
        remat: bool = False,
        segments_BL: Array | None = None,
        first: int = 0,
    ) -> tuple[list[Array], Cache]:
        """Hidden states [B, L, D] before the first block and after each, and the cache with what was read written.

        segments_BL: which example of a packed row a token belongs to, without a cache only: attention stays within one.
        remat: a backward pass computes each block again and keeps what passes between blocks only. first: the block at
        which to begin, and of which the cache's first layer is.
        """
        states, layers = [x_BLD], []
        for i, block in enumerate(list(self.blocks)[first:]):
            past = None if cache is None else cache.layers[i]
            run = functools.partial(block, past=past, linear=linear, segments_BL=segments_BL)
            x_BLD, layer = (jax.checkpoint(run) if remat else run)(states[-1], positions_BL)
            states.append(x_BLD)
            layers.append(layer)
        return states, Cache(tuple(layers))

    def unembed(self, x_BLD: Array, linear: Linear = linear) -> Array:
        """Float32 logits; padded vocabulary rows are MASKED."""
        config = self.config
        if config.translator:
            x_BLD = translate(x_BLD, self.translator[...], self.translator_bias[...], linear)
        head_VD = self.embed[...] if config.tied else self.head[...]
        logits_BLV = linear('BLD,VD->BLV', self.final_norm(x_BLD), head_VD).astype(jnp.float32)
        logits_BLV = softcap(logits_BLV, config.final_softcap)
        if head_VD.shape[0] > config.vocab_size:
            logits_BLV = jnp.where(jnp.arange(head_VD.shape[0]) < config.vocab_size, logits_BLV, MASKED)
        return logits_BLV

    def __call__(
        self,
        tokens_BL: Array,
        positions_BL: Array,
        cache: Cache | None = None,
        linear: Linear = linear,
        **options: Any,
    ):
        x_BLD, cache = self.hidden(tokens_BL, positions_BL, cache, linear, **options)
        return self.unembed(x_BLD, linear), cache


Params = dict[str, Array]  # 'blocks.0.attention.q' -> weight


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder split at the border: pure functions of `params`, a flat dict from path to array.

    axes, shapes: of every path; they follow from the config and are not compared. remat: see `Transformer.states`.
    """

    config: TransformerConfig
    graphdef: Any = dataclasses.field(compare=False)
    axes: dict[str, str] = dataclasses.field(compare=False)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(compare=False)
    remat: bool = False

    def apply(self, params: Params, *args: Any, method: str = '__call__', **kwargs: Any) -> Any:
        """Calls a method of Transformer: '__call__' -> (logits, cache), 'inputs', 'hidden', 'states' or 'unembed'."""
        state = nnx.from_flat_state((_keys(path), nnx.Param(value)) for path, value in params.items())
        if self.remat and method not in ('inputs', 'unembed'):
            kwargs['remat'] = True
        return getattr(nnx.merge(self.graphdef, state), method)(*args, **kwargs)

    def init(self, seed: int) -> Params:
        """Random float32 params."""
        state = nnx.split(Transformer(self.config, nnx.Rngs(seed)), nnx.Param)[1]
        return {_path(keys): leaf[...] for keys, leaf in nnx.to_flat_state(state)}

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for `rows` rows of up to `length` tokens, in the compute dtype."""
        c = self.config
        return empty_cache(c.num_layers, rows, c.num_kv_heads, length, c.head_dim, jnp.dtype(c.dtype))

    @property
    def num_params(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def _path(keys: tuple[Any, ...]) -> str:
    return '.'.join(str(key) for key in keys)


def _keys(path: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in path.split('.'))


@functools.cache
def make_model(config: TransformerConfig) -> Model:
    """The pure functions of a config. Allocates no weight."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))), nnx.Param)
    leaves = nnx.to_flat_state(state)
    return Model(
        config,
        graphdef,
        {_path(keys): leaf.get_metadata('axes') for keys, leaf in leaves},
        {_path(keys): leaf.shape for keys, leaf in leaves},
    )
