"""Checks an experiment's shapes, and what decoding takes and gives at best, without a chip.

    python -m tools.plan_memory --config=configs/literature_trio.py --machines=v5e-8,h100-8 --price=v5e=1.2

For every machine each mesh of all its chips: bytes of a chip, or why it cannot run; the least time of a step, tokens a
second and dollars for a million of them (adx.scaling says by which formula: what a real run gives is less). The best is
shown with its memory. Sources may be the names of presets (adx.models.PRESETS) or checkpoints. Exit codes: 0 done,
2 flags, 3 input.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from adx import checkpoints, loading, needs, planning, scaling, training
from adx.decoding.ensemble import Ensemble
from adx.errors import ConfigError
from adx.experiment import Experiment, MeshShape, ModelSource
from adx.fields import hint
from adx.mesh import abstract_mesh
from adx.models import PRESETS
from adx.models.transformer import Model, TransformerConfig, make_model
from adx.scaling import MACHINES, Estimate, Machine
from launch import program
from launch.config import load_config

GIGABYTE = 10**9
CHIPS = 8

_CONFIG = flags.DEFINE_string(
    'config', None, 'A file that defines experiment() or study().', required=True, allow_override=True
)
_MACHINES = flags.DEFINE_list(
    'machines', [f'{name}-{CHIPS}' for name in MACHINES], f'Each a kind of chip of {list(MACHINES)} and how many.'
)
_SLOTS = flags.DEFINE_list('slots', None, 'Rows decoded together, each to be tried; those of the config if absent.')
_PRICE = flags.DEFINE_list('price', [], 'Dollars of one chip for one hour, as kind=dollars; unknown if absent.')


def config_of(source: ModelSource) -> TransformerConfig:
    """Of a preset by its name, else of a checkpoint."""
    stored = PRESETS.get(source.source) or checkpoints.read_config(loading.resolve(source.source))
    return checkpoints.early_exit(stored, source.exit_layer or None, source.source)


def plan(experiment: Experiment) -> tuple[Ensemble, planning.MemoryPlan]:
    """What the neediest arm runs on the experiment's mesh, and its memory per chip. Raises ConfigError."""
    stored = [config_of(source) for source in (experiment.teacher, *experiment.proxies)]
    shape = experiment.mesh
    mesh: Any = abstract_mesh(shape.data, shape.proxy, shape.model)
    laid_out = loading.lay_out(experiment, stored, max(config.vocab_size for config in stored), mesh)
    ensemble = needs.planned(laid_out.ensemble, experiment)
    return ensemble, planning.plan_memory(ensemble, experiment.decode, upcast=False)


def estimates(experiment: Experiment, machine: Machine, chips: int, slots: list[int]) -> list[Estimate]:
    """Of every mesh and number of slots, the best first. Prompts are prefilled as many at a time as divide."""
    found = []
    for mesh in scaling.meshes(chips):
        ways = mesh[0] * mesh[1]
        for rows in slots:
            together = -(-experiment.decode.prefill_rows // ways) * ways
            config = dataclasses.replace(experiment.decode, slots=rows, prefill_rows=together)
            on_mesh = dataclasses.replace(experiment, mesh=MeshShape(*mesh), decode=config)
            try:
                ensemble, _ = plan(on_mesh)
                found.append(scaling.estimate(mesh, ensemble, config, machine))
            except ConfigError as error:
                found.append(Estimate(mesh, rows, problem=str(error)))
    return sorted(found, key=scaling.rank)


def line(one: Estimate, price: float | None) -> str:
    shape = 'x'.join(map(str, one.mesh))
    if one.problem:
        return f'  {shape:<9}{one.slots:>6}  cannot: {one.problem}'
    cost = 'unknown' if price is None else f'{one.dollars_per_million(price):.2f}'
    size = one.memory.total / GIGABYTE if one.memory else 0.0
    took = f'{1e3 * one.step:>9.2f}{1e3 * one.exchange:>11.2f}'
    return f'  {shape:<9}{one.slots:>6}{size:>11.1f}{took}{one.tokens_per_second:>10.0f}  {cost}'


def prices(given: list[str]) -> dict[str, float]:
    """Raises ConfigError for anything but kind=dollars."""
    found = {}
    for entry in given:
        kind, _, dollars = entry.partition('=')
        if kind not in MACHINES:
            raise ConfigError(f'--price has {entry!r}; kinds of chips are {list(MACHINES)}{hint(kind, MACHINES)}')
        try:
            found[kind] = float(dollars)
        except ValueError as error:
            raise ConfigError(f'--price has {entry!r}; it must be like {kind}=1.2, in dollars') from error
    return found


def machine_of(name: str) -> tuple[str, int]:
    """(kind, number of chips) of a name like v5e-8. Raises ConfigError."""
    kind, _, chips = name.rpartition('-')
    if kind not in MACHINES or not chips.isdigit() or not int(chips):
        raise ConfigError(
            f'--machines has {name!r}; there are {list(MACHINES)}, each with a number of chips: '
            f'v5e-8{hint(kind or name, MACHINES)}'
        )
    return kind, int(chips)


def check_shapes(model: Model, experiment: Experiment) -> None:
    """One decode step of all slots, traced and not run."""
    config, slots = model.config, experiment.decode.slots
    dtype = jnp.dtype(config.dtype)
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in model.shapes.items()}
    tokens = jax.ShapeDtypeStruct((slots, 1), jnp.int32)
    logits, _ = jax.eval_shape(lambda p, t: model.apply(p, t, jnp.zeros_like(t)), params, tokens)
    assert logits.shape == (slots, 1, config.sizes['V']), logits.shape


def show(experiment: Experiment, kind: str, chips: int, price: float | None) -> None:
    """The table of a machine, and the memory of its best mesh."""
    machine, slots = MACHINES[kind], [int(n) for n in _SLOTS.value or ()] or [experiment.decode.slots]
    print(
        f'\n{kind}-{chips}, decoding at best (caches of {experiment.decode.cache_length} tokens):\n'
        '  mesh      slots  GB a chip  step ms  +exchange  tokens/s  dollars per million'
    )
    found = estimates(experiment, machine, chips, slots)
    for one in found:
        print(line(one, price))
    best = found[0]
    if best.problem or best.memory is None:
        print('no mesh can run; take more chips, fewer slots or a shorter cache')
        return
    data, proxy, model = best.mesh
    print(f'best: mesh {data}x{proxy}x{model} with {best.slots} slots, memory per chip:')
    print(best.memory.table(int(machine.memory)))


def main() -> None:
    machines, price = [machine_of(name) for name in _MACHINES.value], prices(_PRICE.value)
    jax.config.update('jax_platforms', 'cpu')
    found = load_config(_CONFIG.value)
    experiment = getattr(found, 'experiment', found)
    ensemble, _ = plan(experiment)
    roles = {'teacher': ensemble.teacher} | {f'proxies {i}': group.model for i, group in enumerate(ensemble.groups)}
    roles |= {f'student {one.name}': make_model(config_of(one.source)) for one in getattr(found, 'students', ())}
    for role, model in roles.items():
        check_shapes(model, experiment)
        print(f'{role}: {model.num_params / GIGABYTE:.3f} billion weights, a decode step of every slot has its shape')
    for kind, chips in machines:
        show(experiment, kind, chips, price.get(kind))
    for one in getattr(found, 'students', ()):
        mesh: Any = abstract_mesh(model=CHIPS)
        size = training.Trainer(make_model(config_of(one.source)), mesh, found.recipe).state_bytes()
        print(
            f'\ntraining student {one.name} on the mesh 1x1x{CHIPS}: {size / 2**20:.1f} MiB per chip of weights and '
            'optimiser; gradients and activations come on top'
        )


if __name__ == '__main__':
    program.start(main)
