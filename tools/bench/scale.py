"""Compiles adx's programs for TPUs that are not there, and holds them to the memory plan.

    python -m tools.bench.scale --topologies=v5e-8 --programs=chunk    # appends to results/scale.json

The models of configs/literature_trio.py with a second proxy, in bfloat16, at full depth, from shapes alone. A compiler
for TPUs is all that is wanted: `pip install -e '.[tpu-aot]'`, one process at a time. Nothing runs: what is said of
memory and collectives is what the compiler says, and nothing is said of speed.

plan_error: peak bytes of a device (arguments, temporaries and outputs that reuse no argument) over the plan, less 1.
temp_over_arguments: a copy of a cache or a weight that nobody asked for shows here.
collectives_per_step: sums of hidden states over the model axis, in a step of the program, against their formula.
The program ends with 3 where one of these misses its goal, a donated byte is not reused or logits are gathered over
the vocabulary. With --layers the plan's error does not count: a prefill of two layers reads hardly more than one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from adx import loading, needs, planning
from adx.ahead import abstract_weights
from adx.batching import Rows
from adx.decoding.engine import Engine
from adx.decoding.ensemble import Ensemble
from adx.defences import Antidistillation, ProductOfExperts
from adx.errors import ConfigError, InputError
from adx.experiment import Experiment, MeshShape
from adx.fields import hint
from adx.mesh import make_mesh
from adx.models import PRESETS
from adx.models.transformer import TransformerConfig, make_model
from adx.scaling import model_sums
from adx.training import Trainer
from adx.types import Defence
from configs import literature_trio
from launch import program
from tools.bench import figures
from tools.bench.memory import compile_chunk, peak_bytes

TABLE = 'scale'
GOALS = {'plan_error': ('of the plan', '-0.1 to 0.1'), 'temp_over_arguments': ('of the arguments', '<= 0.1')}


class Place(NamedTuple):
    """topology: as libtpu names it; slots: so many that the plan of the neediest program fits the chips' memory."""

    topology: str
    mesh: MeshShape
    slots: int


PLACES = {
    'v5e-8': Place('v5e:2x4', MeshShape(data=2, model=4), 32),
    'v6e-8': Place('v6e:2x4', MeshShape(data=2, model=4), 64),
    'v5p-8': Place('v5p:2x2x2', MeshShape(data=2, model=4), 64),
    'v5e-64': Place('v5e:8x8', MeshShape(data=8, proxy=2, model=4), 256),
}


_TOPOLOGIES = flags.DEFINE_list('topologies', list(PLACES), 'Which of them, each of so many chips.')
_PROGRAMS = flags.DEFINE_list('programs', ['prefill', 'chunk', 'tangent', 'train'], 'Which of them.')
_LAYERS = flags.DEFINE_integer('layers', 0, 'Of every model, to try it out: nothing is kept.', lower_bound=0)


class Compiled(NamedTuple):
    """A program beside what is expected of it. planned: bytes of a device; donated: bytes that outputs are to reuse;
    sums: of hidden states in a step; is_hidden: whether an array of this shape is one; gathered: elements that logits
    of all rows of a device over the whole vocabulary have. learns: whether its temporaries are gradients and
    activations, which the plan counts, so that nothing is asked of their size alone.
    """

    executable: Any
    planned: int
    donated: int
    sums: int
    is_hidden: Callable[[tuple[int, ...]], bool]
    gathered: int
    learns: bool = False


def devices_of(topology: str) -> Any:
    """Raises ConfigError where there is no compiler for TPUs."""
    from jax.experimental import topologies

    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # the compiler would ask a TPU's host where it is
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f'programs for TPUs cannot be compiled here: {said}; install the extra tpu-aot, and let one process compile'
        ) from error


def experiment_of(place: Place) -> Experiment:
    """The trio's, with a second proxy like the first."""
    trio = literature_trio.study().experiment
    rows = place.mesh.data * place.mesh.proxy
    decode = dataclasses.replace(trio.decode, slots=place.slots, prefill_rows=max(2, rows))
    return dataclasses.replace(trio, proxies=trio.proxies * 2, mesh=place.mesh, decode=decode)


def stored(name: str, layers: int) -> TransformerConfig:
    """Of a preset, cut to the first `layers`; 0 for all."""
    config = PRESETS[name]
    return dataclasses.replace(config, num_layers=layers or config.num_layers)


def ensemble_of(experiment: Experiment, devices: Any, layers: int) -> Ensemble:
    configs = [stored(one.source, layers) for one in (experiment.teacher, *experiment.proxies)]
    mesh = loading.make_mesh_of(experiment, devices)
    return loading.lay_out(experiment, configs, max(config.vocab_size for config in configs), mesh).ensemble


def compile_prefill(experiment: Experiment, devices: Any, layers: int) -> Compiled:
    ensemble, config = ensemble_of(experiment, devices, layers), experiment.decode
    members, plan = planning.members(ensemble), planning.plan_memory(ensemble, config)
    tokens = jax.ShapeDtypeStruct((config.prefill_rows, config.buckets[-1]), jnp.int32)
    executable = jax.jit(ensemble.prefill).lower(abstract_weights(ensemble), tokens).compile()
    workspace = max(planning.prefill_bytes(member, config) for member in members)
    # Nobody reads what comes after the last layer's keys and values.
    sums = sum(model_sums(member.model.config.num_layers - 1) for member in members)
    held = plan.teacher_weights + plan.proxy_weights + plan.prefix
    rows = config.prefill_rows
    return Compiled(executable, held + workspace, 0, sums, hidden_states(ensemble), vocabulary(ensemble, rows))


def compile_step(rule: Defence, experiment: Experiment, devices: Any, layers: int) -> Compiled:
    """The decode chunk under a rule."""
    ensemble, config = ensemble_of(experiment, devices, layers), experiment.decode
    if rule.wants_tangents:
        ensemble = needs.planned(ensemble, experiment)
    members, plan = planning.members(ensemble), planning.plan_memory(ensemble, config)
    executable = compile_chunk(Engine(ensemble, abstract_weights(ensemble), config, eos=[1]), rule)
    held = plan.total - plan.prefix - plan.workspace
    # Of a derivative as well, all directions at once.
    sums = sum(model_sums(m.model.config.num_layers) * (2 if m.directions else 1) for m in members)
    planned = held + planning.step_bytes(members, config)
    logits = vocabulary(ensemble, config.slots)
    return Compiled(executable, planned, plan.caches, sums, hidden_states(ensemble), logits)


def hidden_states(ensemble: Ensemble) -> Callable[[tuple[int, ...]], bool]:
    widths = {member.model.config.embed_dim for member in planning.members(ensemble)}
    return lambda shape: shape[-1] in widths


def vocabulary(ensemble: Ensemble, rows: int) -> int:
    """Elements of the logits of a device's rows, were their vocabulary whole."""
    return planning.local_size(ensemble.teacher_layout, 'B', rows) * ensemble.teacher.config.sizes['V']


def compile_training(experiment: Experiment, devices: Any, layers: int) -> Compiled:
    """A step of the trio's student under its recipe, a row of each device at a time."""
    study, shape = literature_trio.study(), experiment.mesh
    ways = shape.data * shape.proxy
    mesh = make_mesh(ways, 1, shape.model, devices)
    recipe = dataclasses.replace(study.recipe, accumulate=max(1, study.recipe.rows // ways))
    recipe = dataclasses.replace(recipe, rows=recipe.accumulate * ways)
    trainer = Trainer(make_model(stored(study.students[0].source.source, layers)), mesh, recipe)
    state = trainer.abstract_state()
    shape_NBL = (1, recipe.rows, recipe.length)
    tokens, targets, weights, positions = (
        jax.ShapeDtypeStruct(shape_NBL, dtype, sharding=trainer.layout.sharding('NBL'))
        for dtype in (jnp.int32, bool, jnp.float32, jnp.int32)
    )
    rows = Rows(tokens, targets, weights, positions, None, {})
    config, executable = trainer.model.config, trainer._step.lower(state, rows).compile()
    # Forward, as much of it again as a block's backward pass wants, and backward but for the frozen embeddings.
    sums = model_sums(config.num_layers) + config.num_layers + 2 * config.num_layers
    piece = recipe.length * config.embed_dim
    is_hidden = lambda shape: shape[0] == 1 and shape[-1] == config.embed_dim and math.prod(shape) == piece  # noqa: E731
    logits, held = recipe.length * config.sizes['V'], trainer.state_bytes()
    return Compiled(executable, planning.training_bytes(trainer), held, sums, is_hidden, logits, learns=True)


PROGRAMS: dict[str, Callable[..., Compiled]] = {
    'prefill': compile_prefill,
    'chunk': functools.partial(compile_step, ProductOfExperts(0.5)),
    'tangent': functools.partial(compile_step, Antidistillation(1.0)),
    'train': compile_training,
}


class Collective(NamedTuple):
    """An array that one instruction exchanges between devices. loop: whether it stands in a loop's body."""

    kind: str
    shape: tuple[int, ...]
    loop: bool


ARRAY = re.compile(r'\w+\[([\d,]*)\]')
COLLECTIVE = re.compile(
    r' = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\('
)


def collectives(text: str) -> Iterator[Collective]:
    """Every array that a compiled program exchanges, by its HLO. Those that XLA joins into one are told apart."""
    computation = ''
    for line in text.splitlines():
        if line.startswith(('%', 'ENTRY ')):
            computation = line.split(' ', 1)[0]
        found = COLLECTIVE.search(line)
        if found:
            for dims in ARRAY.findall(found[1]):
                shape = tuple(int(n) for n in dims.split(',') if n)
                yield Collective(found[2], shape, computation != 'ENTRY')


def measured(one: Compiled) -> dict[str, float]:
    memory = one.executable.memory_analysis()
    exchanged = list(collectives(one.executable.as_text()))
    sums = [x for x in exchanged if x.kind == 'all-reduce' and x.shape and one.is_hidden(x.shape)]
    gathers = [x for x in exchanged if x.kind == 'all-gather' and math.prod(x.shape) >= one.gathered]
    return {
        'plan_error': peak_bytes(one.executable) / one.planned - 1,
        'temp_over_arguments': memory.temp_size_in_bytes / memory.argument_size_in_bytes,
        'collectives_per_step': len(sums),
        'collectives_by_formula': one.sums,
        'vocabulary_gathers': len(gathers),
        'aliased_over_donated': memory.alias_size_in_bytes / one.donated if one.donated else 1.0,
    }


def goals(one: Compiled) -> dict[str, tuple[str, str]]:
    """Unit and goal of what is published."""
    free = {'temp_over_arguments': ('of the arguments', '')} if one.learns else {}
    return GOALS | free | {'collectives_per_step': ('sums of hidden states', f'{one.sums} by the formula')}


def publish(place: str, name: str, one: Compiled, numbers: dict[str, float]) -> None:
    command = f'python -m tools.bench.scale --topologies={place} --programs={name}'
    for figure, (unit, goal) in goals(one).items():
        figures.append(
            TABLE, f'{figure}_{name}_{place}'.replace('-', '_'), [numbers[figure]], unit=unit, goal=goal,
            command=command, machine=f'{place}, compiled for TPU, not run',
        )  # fmt: skip


def missed(one: Compiled, numbers: dict[str, float], whole: bool = True) -> list[str]:
    """What a program does not keep to, in words. whole: whether its models have all their layers."""
    asked = {figure: goal for figure, (_, goal) in goals(one).items() if whole or figure != 'plan_error'}
    asked |= {'vocabulary_gathers': '0', 'aliased_over_donated': '>= 1'}
    return [
        f'{figure} is {numbers[figure]:.4g}, not {goal}'
        for figure, goal in asked.items() if not figures.meets(goal, numbers[figure])
    ]  # fmt: skip


def total() -> None:
    """The worst of all programs and places that there are, under the plain names of the figures."""
    rows = [row for row in figures.read(TABLE) if row['status'] == figures.MEASURED]
    beyond = ('sums of hidden states that the formula does not say', '0')
    for figure, (unit, goal) in (GOALS | {'collectives_per_step': beyond}).items():
        of = [row for row in rows if row['figure'].startswith(f'{figure}_') and row['goal']]
        values = [row['value'] - (float(row['goal'].split()[0]) if goal == '0' else 0.0) for row in of]
        if values:
            figures.append(
                TABLE, figure, [max(values, key=abs)], unit=f'{unit}, the worst of {len(values)} programs', goal=goal,
                command='python -m tools.bench.scale', machine='all of them, compiled for TPU, not run',
            )  # fmt: skip


def main() -> None:
    for flag, given, allowed in (('topologies', _TOPOLOGIES, PLACES), ('programs', _PROGRAMS, PROGRAMS)):
        for name in given.value:
            if name not in allowed:
                raise ConfigError(f'--{flag} has {name!r}; there are {list(allowed)}{hint(name, allowed)}')
    jax.config.update('jax_platforms', 'cpu')
    broken = []
    for place in _TOPOLOGIES.value:
        devices, experiment = devices_of(PLACES[place].topology), experiment_of(PLACES[place])
        for name in _PROGRAMS.value:
            one = PROGRAMS[name](experiment, devices, _LAYERS.value)
            numbers = measured(one)
            print(json.dumps({'program': name, 'compiled for': place, **numbers}), flush=True)
            if not _LAYERS.value:
                publish(place, name, one, numbers)
            broken += [f'{name} on {place}: {what}' for what in missed(one, numbers, whole=not _LAYERS.value)]
    if not _LAYERS.value:
        total()
    if broken:
        raise InputError(f'programs do not keep to their goals: {"; ".join(broken)}; the lines above have all numbers')


if __name__ == '__main__':
    program.start(main)
