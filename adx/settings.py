"""The parts that an experiment is composed of, beside the options of the menus."""

from __future__ import annotations

import dataclasses

import jax

from adx.defences import Undefended
from adx.defences.cross_model import CrossModel
from adx.types import Defence, Sampling

SCALES, METHODS = ('deviation', 'raw'), ('exact', 'difference')
COPY_DTYPES = ('float32', 'bfloat16', 'float16')  # of the two copies of method 'difference'


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    source: a Hugging Face directory, a .gguf file, an Orbax directory or a name in the cache (loading.resolve).
    exit_layer: keeps the first layers only, 0 keeps all. A proxy of the teacher's own source then decodes from the
    teacher's hidden state there (decoding.ensemble.Group.exit). translator: the affine map that such an early exit
    needs, a safetensors file or the name of a shipped one.
    """

    source: str
    exit_layer: int = 0
    translator: str = ''


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting of a comparison; `name` becomes RequestId.setting. Arms share each row's noise.

    sampling: where none is given temperature 0.7 and top-p 0.95, for a cross-model rule, alone or inside another, with
      its top-k of 20.
    """

    name: str
    defence: Defence = Undefended()
    sampling: Sampling = None  # type: ignore[assignment]  # what stands for it depends on the rule

    def __post_init__(self) -> None:
        if self.sampling is None:
            object.__setattr__(self, 'sampling', _default_sampling(self.defence))


def _default_sampling(defence: Defence) -> Sampling:
    parts = jax.tree.leaves(defence, is_leaf=lambda part: isinstance(part, CrossModel))
    top_k = CrossModel.top_k if any(isinstance(part, CrossModel) for part in parts) else 0
    return Sampling(temperature=0.7, top_k=top_k, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Device mesh data x proxy x model; shard_teacher_weights splits the teacher's weights over proxy as well."""

    data: int = 1
    proxy: int = 1
    model: int = 1
    shard_teacher_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Derivative:
    """How rules with a derivative get it: along which direction g of each proxy's weights, and by which method.

    g is the gradient of the proxy's mean completion-token loss over holdout traces of the undefended teacher, which
    `--stages=prepare` decodes and keeps: `prompts` of the holdout split in its order (0 takes all), each `samples`
    times, at most `max_new_tokens` long, drawn by `sampling`.
    directions: per proxy; the traces are dealt into as many parts and g is taken on each.
    scale: 'deviation' divides g by the standard deviation of its derivative of the next token's log-prob under the
      proxy, over the same traces: strengths then mean the same for every proxy; 'raw' leaves it.
    method: 'exact' is forward-mode differentiation; 'difference' the central difference of two copies of the proxy,
      theta +- eps g, held and run in `dtype`. The mean of the copies then stands for the proxy, in every arm.
    """

    prompts: int = 64
    samples: int = 1
    max_new_tokens: int = 256
    sampling: Sampling = Sampling(temperature=1.0)
    directions: int = 1
    scale: str = 'deviation'
    method: str = 'exact'
    eps: float = 1e-2
    dtype: str = 'float32'
