"""Memory of a run before it runs: bytes per device, from shapes and layouts alone."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble
from adx.mesh import Layout
from adx.models.transformer import Model

LOGIT_BYTES = 4
# Float32 arrays of [B, V] that are alive at once, as XLA allocates them on CPU (tests/planning_test.py):
# while log-probs are combined, beside one for each proxy; and while a token is drawn, however many proxies.
COMBINE_COPIES = 6
SAMPLING_COPIES = 20


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device. `workspace` is the larger of a decode step's and a prefill's temporaries."""

    teacher_weights: int
    proxy_weights: int
    caches: int
    prefix: int
    workspace: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.teacher_weights + self.proxy_weights + self.caches + self.prefix + self.workspace

    def table(self, available: int | None) -> str:
        """The plan as lines of text; `available`: bytes that the device has, None if it does not say."""
        names = [field.name for field in dataclasses.fields(self) if field.name != 'notes']
        rows = [(name.replace('_', ' '), getattr(self, name)) for name in names]
        lines = [f'  {name:<16}{size / 2**20:>10.1f} MiB' for name, size in (*rows, ('total', self.total))]
        if available is not None:
            fit = 'fits' if self.total <= available else 'DOES NOT FIT'
            lines.append(f'  {"available":<16}{available / 2**20:>10.1f} MiB per device: {fit}')
        return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def plan_memory(ensemble: Ensemble, config: DecodeConfig) -> MemoryPlan:
    """The memory plan of a decoding run. Prompts are prefilled in the longest bucket."""
    longest = config.buckets[-1]
    models = [(ensemble.teacher, ensemble.teacher_layout, 1)]
    models += [(group.model, group.layout, group.count) for group in ensemble.groups]
    weights = [weight_bytes(*model) for model in models]
    rows = [_local(layout, 'B', config.slots) for _, layout, _ in models]
    return MemoryPlan(
        teacher_weights=weights[0],
        proxy_weights=sum(weights[1:]),
        caches=sum(cache_bytes(*m, b, config.cache_length) for m, b in zip(models, rows, strict=True)),
        prefix=sum(cache_bytes(*m, _local(m[1], 'B', config.prefill_rows), longest) for m in models),
        workspace=max(_step_bytes(ensemble, config), max(_prefill_bytes(m, config) for m in models)),
        notes=tuple(note for _, layout, _ in models for note in layout.notes),
    )


def weight_bytes(model: Model, layout: Layout, count: int) -> int:
    """Bytes of `count` stacked models on one device. Norm scales are float32."""
    local = _local(layout, 'N', count)
    item = jnp.dtype(model.config.dtype).itemsize

    def one(path: str) -> int:
        pieces = math.prod(layout.ways(letter) for letter in model.axes[path])
        return math.prod(model.shapes[path]) // pieces * (4 if path.endswith('.scale') else item)

    return local * sum(one(path) for path in model.shapes)


def cache_bytes(model: Model, layout: Layout, count: int, rows: int, length: int) -> int:
    """Bytes of the keys and values of `rows` rows on one device."""
    c = model.config
    heads = _local(layout, 'G', c.num_kv_heads)
    per_row = 2 * c.num_layers * heads * c.head_dim * length * jnp.dtype(c.dtype).itemsize
    return _local(layout, 'N', count) * rows * per_row


def _step_bytes(ensemble: Ensemble, config: DecodeConfig) -> int:
    """Temporaries of one decode step: the larger of combining the models' log-probs and drawing a token."""
    layout, vocab = ensemble.teacher_layout, ensemble.teacher.config.sizes['V']
    per_copy = _local(layout, 'B', config.slots) * _local(layout, 'V', vocab) * LOGIT_BYTES
    proxies = sum(group.count for group in ensemble.groups)
    return per_copy * max(SAMPLING_COPIES, proxies + COMBINE_COPIES)


def _prefill_bytes(member: tuple[Model, Layout, int], config: DecodeConfig) -> int:
    """Temporaries of a prefill: attention scores of one layer, and the activations around one MLP."""
    model, layout, count = member
    c, length = model.config, config.buckets[-1]
    tokens = _local(layout, 'B', config.prefill_rows) * length
    scores = 2 * tokens * _local(layout, 'H', c.num_heads) * length * 4
    item = jnp.dtype(c.dtype).itemsize
    mlp = tokens * (3 * _local(layout, 'F', c.mlp_dim) + 4 * c.embed_dim) * item
    return _local(layout, 'N', count) * (scores + mlp)


def _local(layout: Layout, axis: str, size: int) -> int:
    return -(-size // layout.ways(axis))
