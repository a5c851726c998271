"""What many chips could do at best: the least time of a decode step, and what tokens cost.

On one device, which holds a part of every model, of the rows and of the vocabulary:

    step >= sum over models of max(bytes / bandwidth, operations / rate) + bytes of the logits / bandwidth
    bytes      = weights + caches as allocated, once, and once more per direction or for a second copy
    operations = 2 x rows x weights, three times as many with a tangent (x W, dx W and x dW), twice for two copies

An early exit without blocks of its own (Group.has_blocks) has neither bytes nor x W of them.

What the model axis adds up between devices is said beside it (`exchange`): a layer waits for it, another model may not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax.numpy as jnp

from adx import planning
from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble
from adx.mesh import MODEL
from adx.planning import FLOAT32, Member, MemoryPlan

SECONDS_PER_HOUR = 3600
MeshSizes = tuple[int, int, int]  # of the axes data, proxy and model


@dataclasses.dataclass(frozen=True)
class Machine:
    """One chip. rate: operations a second of matrix products (a multiplication and an addition are two); bandwidth:
    of its memory, bytes a second; memory: bytes; link: to its neighbours and back together, bytes a second, 0 unknown.
    """

    rate: float
    bandwidth: float
    memory: float = 0.0
    link: float = 0.0

    def step_seconds(self, ensemble: Ensemble, rows: int, length: int) -> float:
        """The least time of one decode step of `rows` slots over caches of `length`, without the exchange."""
        teacher, layout = ensemble.teacher, ensemble.teacher_layout
        members = planning.members(ensemble)
        tensors = sum(member.stacked * (1 + member.directions) for member in members)
        local = planning.local_size(layout, 'B', rows) * planning.local_size(layout, 'V', teacher.config.sizes['V'])
        seconds = tensors * local * FLOAT32 / self.bandwidth
        differences = [0.0, *(group.difference for group in ensemble.groups)]
        for member, difference in zip(members, differences, strict=True):
            weights = planning.weight_bytes(*member[:3], member.paths) + planning.direction_bytes(member)
            moved = (weights + planning.member_cache_bytes(member, rows, length)) / self.bandwidth
            passes = member.directions * (1 if difference else 2)
            products = _local_weights(member) + passes * _local_weights(member, derived=True)
            here = planning.local_size(member.layout, 'B', rows)
            seconds += max(moved, 2 * here * products / self.rate)
        return seconds

    def exchange_seconds(self, ensemble: Ensemble, rows: int) -> float:
        """The least time in which the sums of a step cross the links, 0 where they or the model axis are not there."""
        moved = sum(_exchanged(member, rows) for member in planning.members(ensemble))
        return moved / (self.link / 2) if self.link else 0.0


# Dense bfloat16 operations, memory, its bandwidth and the links, as the vendors publish them:
# cloud.google.com/tpu/docs/v5e, /v6e and /v5p, "System architecture" (links: bidirectional ICI bandwidth per chip);
# NVIDIA H100 and H200 Tensor Core GPU data sheets, SXM, without sparsity (links: NVLink, both directions).
MACHINES = {
    'v5e': Machine(197e12, 819e9, 16e9, 400e9),
    'v6e': Machine(918e12, 1638e9, 32e9, 800e9),
    'v5p': Machine(459e12, 2765e9, 95e9, 1200e9),
    'h100': Machine(989e12, 3.35e12, 80e9, 900e9),
    'h200': Machine(989e12, 4.8e12, 141e9, 900e9),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of decoding on one mesh. Seconds are of a step, see the module; problem: why it cannot run, '' if it can."""

    mesh: MeshSizes
    slots: int
    memory: MemoryPlan | None = None
    step: float = math.inf
    exchange: float = 0.0
    problem: str = ''

    @property
    def tokens_per_second(self) -> float:
        """Of all slots, at best: every slot full and the exchange not hidden behind anything."""
        return self.slots / (self.step + self.exchange)

    def dollars_per_million(self, price: float) -> float:
        """Of tokens. price: of one chip for one hour."""
        return math.prod(self.mesh) * price / SECONDS_PER_HOUR / self.tokens_per_second * 1e6


def estimate(mesh: MeshSizes, ensemble: Ensemble, config: DecodeConfig, machine: Machine) -> Estimate:
    """Decoding with models that are laid out on a mesh of these sizes."""
    plan = planning.plan_memory(ensemble, config, upcast=False)
    problem = ''
    if plan.total > machine.memory:
        problem = f'needs {plan.total / 1e9:.1f} GB a chip and it has {machine.memory / 1e9:.0f}'
    step = machine.step_seconds(ensemble, config.slots, config.cache_length)
    return Estimate(mesh, config.slots, plan, step, machine.exchange_seconds(ensemble, config.slots), problem)


def meshes(chips: int) -> Iterator[MeshSizes]:
    """Every data x proxy x model that uses all chips."""
    for data in range(1, chips + 1):
        for proxy in range(1, chips // data + 1):
            if chips % (data * proxy) == 0:
                yield data, proxy, chips // (data * proxy)


def rank(one: Estimate) -> tuple[bool, float, MeshSizes]:
    """Sorts those that can run before those that cannot, more tokens a second first; equal ones by the most data."""
    data, proxy, model = one.mesh
    return bool(one.problem), -one.tokens_per_second, (-data, model, proxy)


def model_sums(num_layers: int) -> int:
    """How often a pass adds up rows of hidden states over the model axis: twice a layer, and once for embeddings."""
    return 2 * num_layers + 1


def _exchanged(member: Member, rows: int) -> float:
    """Bytes that a device sends in a step: a sum over m devices moves at least 2 (m - 1) / m of it."""
    model, layout, stacked, directions, has_blocks, _ = member
    ways = layout.mesh.shape[MODEL]
    c, passes = model.config, has_blocks + directions
    here = planning.local_size(layout, 'B', rows) * planning.local_size(layout, 'N', stacked) * passes
    size = here * c.embed_dim * jnp.dtype(c.dtype).itemsize
    return model_sums(c.num_layers) * size * 2 * (ways - 1) / ways


def _local_weights(member: Member, derived: bool = False) -> int:
    """How many weights of a member a device multiplies with, once, or `derived` along a direction, which is of all. One
    without blocks has its head too, whose bytes are the teacher's.
    """
    model, layout, stacked, *_ = member
    pieces = {path: math.prod(layout.ways(letter) for letter in axes) for path, axes in model.axes.items()}
    head = ['embed' if model.config.tied else 'head']
    paths = model.shapes if member.has_blocks or derived else [*(member.paths or ()), *head]
    return planning.local_size(layout, 'N', stacked) * sum(
        math.prod(model.shapes[path]) // pieces[path] for path in paths
    )
