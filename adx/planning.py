"""Memory of a run before it runs: bytes per device, from shapes and layouts alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble
from adx.mesh import Layout, shard_bytes
from adx.models.transformer import Model
from adx.training import Trainer

FLOAT32 = 4
# Float32 arrays that are alive at once, as XLA allocates them on CPU (tests/planning_test.py). Of [B, V]: while a
# token is drawn; and beside one for each of several proxies, whose log-probs change shards and are combined.
SAMPLING_COPIES = 7
COMBINE_COPIES = 9
TANGENT_COPIES = 3  # of each proxy's and each derivative's: as it is made, on the teacher's shards, and centred
SPLIT_TANGENT_COPIES = 5  # where the vocabulary is split, and means over it are not fused
# Of a layer's attention scores: in a decode step, where masks and exponentials are not fused, and in a prefill.
STEP_SCORES = 4
TANGENT_SCORES = 5  # more of them for each direction
PREFILL_SCORES = 2
UPCAST_NOTE = 'a CPU computes bfloat16 in float32 and keeps float32 copies of weights and caches'


class Member(NamedTuple):
    """A model, or so many stacked ones, each with directions that are as large as it and have caches of their own.

    has_blocks: else the teacher's serve for it (Group.has_blocks), and of caches it has tangents only. paths: the
    weights that it holds, beside its directions.
    """

    model: Model
    layout: Layout
    stacked: int
    directions: int = 0
    has_blocks: bool = True
    paths: Sequence[str] | None = None

    @property
    def runs_blocks(self) -> bool:
        """Also where those are the teacher's, along directions."""
        return self.has_blocks or self.directions > 0


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device. `workspace` is the larger of a decode step's and a prefill's temporaries.

    float32_copies: of bfloat16 weights and caches, where the device's compiler makes them.
    logits: of teacher and proxies in a decode step, float32; a part of the workspace.
    """

    teacher_weights: int
    proxy_weights: int
    directions: int
    caches: int
    prefix: int
    workspace: int
    float32_copies: int = 0
    logits: int = 0
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, int]:
        """By name, what the total is the sum of."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ('logits', 'notes')]
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def table(self, available: int | None) -> str:
        """The plan as lines of text; `available`: bytes that the device has, None if it does not say."""
        rows = [*self.parts.items(), ('total', self.total)]
        rows.insert(1 + list(self.parts).index('workspace'), ('  of it logits', self.logits))
        lines = [f'  {name.replace("_", " "):<16}{size / 2**20:>10.1f} MiB' for name, size in rows]
        if available is not None:
            fit = 'fits' if self.total <= available else 'DOES NOT FIT'
            lines.append(f'  {"available":<16}{available / 2**20:>10.1f} MiB per device: {fit}')
        return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def plan_memory(ensemble: Ensemble, config: DecodeConfig, upcast: bool | None = None) -> MemoryPlan:
    """The memory plan of a decoding run. Prompts are prefilled in the longest bucket.

    upcast: whether the devices compute bfloat16 in float32; None asks those of the mesh.
    """
    longest = config.buckets[-1]
    models = members(ensemble)
    weights = [weight_bytes(*member[:3], member.paths) for member in models]
    directions = sum(direction_bytes(member) for member in models)
    caches = sum(member_cache_bytes(member, config.slots, config.cache_length) for member in models)
    upcast = _upcasts(ensemble) if upcast is None else upcast
    return MemoryPlan(
        teacher_weights=weights[0],
        proxy_weights=sum(weights[1:]),
        directions=directions,
        caches=caches,
        prefix=sum(member_cache_bytes(member, config.prefill_rows, longest) for member in models),
        workspace=max(step_bytes(models, config), max(prefill_bytes(m, config) for m in models if m.runs_blocks)),
        float32_copies=2 * (sum(weights) + directions + caches) if upcast else 0,
        logits=sum(member.stacked for member in models) * _logits_bytes(models[0], config),
        notes=tuple(note for member in models for note in member.layout.notes) + (UPCAST_NOTE,) * upcast,
    )


def members(ensemble: Ensemble) -> list[Member]:
    """The teacher and every group of proxies."""
    groups = [
        Member(one.model, one.layout, one.count, one.directions, one.has_blocks, one.paths) for one in ensemble.groups
    ]
    return [Member(ensemble.teacher, ensemble.teacher_layout, 1), *groups]


def _upcasts(ensemble: Ensemble) -> bool:
    """Whether the devices multiply in float32 whatever the dtype."""
    on_cpu = ensemble.teacher_layout.mesh.devices.flat[0].platform == 'cpu'
    return on_cpu and jnp.dtype(ensemble.teacher.config.dtype).itemsize < FLOAT32


def weight_bytes(model: Model, layout: Layout, count: int, paths: Sequence[str] | None = None) -> int:
    """Bytes of `count` stacked models, or of some weights of each, on one device. Norm scales are float32."""
    local = local_size(layout, 'N', count)

    def pieces(path: str) -> int:
        return math.prod(layout.ways(letter) for letter in model.axes[path])

    sizes = bytes_by_weight(model)
    return local * sum(sizes[path] // pieces(path) for path in (sizes if paths is None else paths))


def direction_bytes(member: Member) -> int:
    """Of all its directions on one device."""
    return weight_bytes(*member[:3]) * member.directions


def bytes_by_weight(model: Model) -> dict[str, int]:
    """Bytes of every weight, of all devices together."""
    item = jnp.dtype(model.config.dtype).itemsize
    return {
        path: math.prod(shape) * (FLOAT32 if path.endswith('.scale') else item) for path, shape in model.shapes.items()
    }


def cache_bytes(model: Model, layout: Layout, count: int, rows: int, length: int) -> int:
    """Bytes of the keys and values of `rows` rows on one device."""
    c = model.config
    heads = local_size(layout, 'G', c.num_kv_heads)
    per_row = 2 * c.num_layers * heads * c.head_dim * length * jnp.dtype(c.dtype).itemsize
    return local_size(layout, 'N', count) * rows * per_row


def member_cache_bytes(member: Member, rows: int, length: int) -> int:
    """Of all rows that a device holds, with the tangents."""
    one = cache_bytes(*member[:3], local_size(member.layout, 'B', rows), length)
    return one * (member.has_blocks + member.directions)


def step_bytes(models: Sequence[Member], config: DecodeConfig) -> int:
    """Temporaries of one decode step: the largest of a layer's attention, combining log-probs and drawing a token."""
    layout, per_copy = models[0].layout, _logits_bytes(models[0], config)
    proxies = sum(member.stacked for member in models[1:])
    tangents = sum(member.stacked * member.directions for member in models[1:])
    copies = SAMPLING_COPIES + tangents if proxies < 2 else proxies + COMBINE_COPIES
    if tangents:
        each = TANGENT_COPIES if layout.ways('V') == 1 else SPLIT_TANGENT_COPIES
        copies = max(copies, each * (proxies + tangents) - 1)
    attention = max(_attention_bytes(member, config) for member in models if member.runs_blocks)
    return max(attention, per_copy * copies)


def _logits_bytes(member: Member, config: DecodeConfig) -> int:
    """Float32 of all slots on one device, of one model: [B, V]."""
    layout, vocab = member.layout, member.model.config.sizes['V']
    return local_size(layout, 'B', config.slots) * local_size(layout, 'V', vocab) * FLOAT32


def _attention_bytes(member: Member, config: DecodeConfig) -> int:
    """Of a layer in a decode step."""
    scores = 1 + TANGENT_SCORES * member.directions if member.directions else STEP_SCORES
    return scores * _score_bytes(member, config.slots, 1, config.cache_length)


def prefill_bytes(member: Member, config: DecodeConfig) -> int:
    """Temporaries of a prefill: the larger of a layer's attention scores and the activations around its MLP."""
    model, layout, count, directions, *_ = member
    passes = 1 + 2 * directions  # x and dx of a direction, and both as rows of one matrix
    c, length = model.config, config.buckets[-1]
    scores = PREFILL_SCORES * _score_bytes(member, config.prefill_rows, length, length)
    width = 3 * local_size(layout, 'F', c.mlp_dim) + 2 * c.embed_dim
    tokens = local_size(layout, 'N', count) * local_size(layout, 'B', config.prefill_rows) * length
    return max(scores, tokens * width * jnp.dtype(c.dtype).itemsize) * passes


def _score_bytes(member: Member, rows: int, queries: int, keys: int) -> int:
    """Bytes of one layer's float32 attention scores on one device."""
    model, layout, count, *_ = member
    heads = local_size(layout, 'H', model.config.num_heads)
    return local_size(layout, 'N', count) * local_size(layout, 'B', rows) * heads * queries * keys * FLOAT32


def local_size(layout: Layout, axis: str, size: int) -> int:
    """How much of an axis of `size` a device has."""
    return -(-size // layout.ways(axis))


def training_bytes(trainer: Trainer) -> int:
    """Peak bytes per device of a training step: the state, the gradient, and while a piece of the rows is read the
    weights in the compute dtype with the gradient of those that adapters are merged into, what passes between blocks
    (remat), and the logits with their gradient.
    """
    config, layout, recipe = trainer.model.config, trainer.layout, trainer.recipe
    item, state = jnp.dtype(config.dtype).itemsize, trainer.abstract_state()
    sizes = {path: shard_bytes(x) * item // FLOAT32 for path, x in (state.base or state.weights).items()}
    merged = sum(sizes[path] for path in sizes if f'{path}.a' in state.weights)
    gradient = sum(shard_bytes(x) for x in state.weights.values())
    tokens = recipe.length * local_size(layout, 'N', trainer.count)
    tokens *= local_size(layout, 'B', recipe.rows // recipe.accumulate)
    between = config.num_layers * tokens * config.embed_dim * item
    logits = tokens * local_size(layout, 'V', config.sizes['V']) * (2 * FLOAT32 + item)
    return trainer.state_bytes() + gradient + sum(sizes.values()) + merged + between + logits


class SearchCopies(NamedTuple):
    """Float32 arrays of a round of a search by gradient that are alive at once, as XLA allocates them on CPU.

    words: of [B, L, V]. each, mlps, scores: beside them, for each proxy, of [B, L, V], and in each of its layers of
    [B, L, F] and of [B, H, L, L].
    """

    words: float
    each: float
    mlps: float
    scores: float


SEARCH_COPIES = {
    'harm': SearchCopies(0.5, 7.5, 12.0, 4.5),
    'difference': SearchCopies(0.5, 7.5, 12.0, 4.5),
    'loss': SearchCopies(1.0, 4.4, 5.0, 1.75),
    'random': SearchCopies(6.5, 0.0, 0.0, 0.0),
}
# Of bilevel, proxy after proxy and row after row: of the rows, of each row that is held out, and of weights.
STEP_WORDS, HELD_COPIES, STEP_WEIGHTS = 5, SearchCopies(0.0, 2.0, 5.0, 4.2), 4.5


def search_bytes(models: Sequence[Member], objective: str, batch: tuple[int, int], holdout: int) -> int:
    """Peak bytes of a round of a search by gradient on one device, which holds all weights.

    objective: of rewriters.gradient. batch: (rows, tokens of each). holdout: rows that 'bilevel' reads after its step.
    """
    (teacher, *_), proxies, (rows, length) = models[0], models[1:], batch
    reads = 2 if objective in ('harm', 'difference') else 1  # the direction of each
    weights = whole_bytes(teacher) + reads * sum(one.stacked * whole_bytes(one.model) for one in proxies)
    vocab = teacher.config.sizes['V']
    if objective == 'bilevel':
        numbers = float((rows + STEP_WORDS) * vocab)
        numbers += holdout * max(_search_numbers(one.model, HELD_COPIES, length) for one in proxies)
        weights += int(STEP_WEIGHTS * max(whole_bytes(one.model) for one in proxies))
    else:
        copies = SEARCH_COPIES[objective]
        numbers = rows * copies.words * vocab
        numbers += rows * sum(one.stacked * _search_numbers(one.model, copies, length) for one in proxies)
    return weights + int(numbers * length * FLOAT32)


def _search_numbers(model: Model, copies: SearchCopies, length: int) -> float:
    """Of one proxy, for one token."""
    c = model.config
    layer = copies.mlps * c.mlp_dim + copies.scores * c.num_heads * length
    return copies.each * c.sizes['V'] + c.num_layers * layer


def whole_bytes(model: Model) -> int:
    """Of all its weights."""
    return sum(bytes_by_weight(model).values())
