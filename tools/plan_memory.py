"""Checks the shapes of an experiment's models and prints what decoding takes per chip, without weights or a chip.

    python -m tools.plan_memory --config=configs/literature_trio.py --machines=v5e-8,v6e-8,8xh100

Sources may be the names of presets (adx.models.PRESETS) or checkpoints. The mesh is the config's, of eight devices
that this program pretends to have. Exit codes: 0 done, 2 flags, 3 input.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import flags

from adx import checkpoints, loading, needs, planning, training
from adx.decoding.ensemble import Ensemble
from adx.errors import ConfigError
from adx.experiment import Experiment, ModelSource
from adx.fields import hint
from adx.mesh import make_mesh
from adx.models import PRESETS
from adx.models.transformer import Model, TransformerConfig, make_model
from launch import program
from launch.config import load_config

GIGABYTE = 10**9
CHIPS, MEMORY = 8, {'v5e-8': 16 * GIGABYTE, 'v6e-8': 32 * GIGABYTE, '8xh100': 80 * GIGABYTE}  # of a chip, as sold

_CONFIG = flags.DEFINE_string(
    'config', None, 'A file that defines experiment() or study().', required=True, allow_override=True
)
_MACHINES = flags.DEFINE_list('machines', list(MEMORY), 'Which of them, each of eight chips.')


def config_of(source: ModelSource) -> TransformerConfig:
    """Of a preset by its name, else of a checkpoint."""
    stored = PRESETS.get(source.source) or checkpoints.read_config(loading.resolve(source.source))
    return checkpoints.early_exit(stored, source.exit_layer or None, source.source)


def plan(experiment: Experiment) -> tuple[Ensemble, planning.MemoryPlan]:
    """What the neediest arm runs, and its memory per chip."""
    stored = [config_of(source) for source in (experiment.teacher, *experiment.proxies)]
    mesh = loading.make_mesh_of(experiment)
    laid_out = loading.lay_out(experiment, stored, max(config.vocab_size for config in stored), mesh)
    ensemble = needs.planned(laid_out.ensemble, experiment)
    return ensemble, planning.plan_memory(ensemble, experiment.decode, upcast=False)


def check_shapes(model: Model, experiment: Experiment) -> None:
    """One decode step of all slots, traced and not run."""
    config, slots = model.config, experiment.decode.slots
    dtype = jnp.dtype(config.dtype)
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in model.shapes.items()}
    tokens = jax.ShapeDtypeStruct((slots, 1), jnp.int32)
    logits, _ = jax.eval_shape(lambda p, t: model.apply(p, t, jnp.zeros_like(t)), params, tokens)
    assert logits.shape == (slots, 1, config.sizes['V']), logits.shape


def main() -> None:
    for name in _MACHINES.value:
        if name not in MEMORY:
            raise ConfigError(f'--machines has {name!r}; there are {list(MEMORY)}{hint(name, MEMORY)}')
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', CHIPS)
    found = load_config(_CONFIG.value)
    experiment = getattr(found, 'experiment', found)
    ensemble, memory = plan(experiment)
    roles = {'teacher': ensemble.teacher} | {f'proxies {i}': group.model for i, group in enumerate(ensemble.groups)}
    roles |= {f'student {one.name}': make_model(config_of(one.source)) for one in getattr(found, 'students', ())}
    for role, model in roles.items():
        check_shapes(model, experiment)
        print(f'{role}: {model.num_params / GIGABYTE:.3f} billion weights, a decode step of every slot has its shape')
    mesh = experiment.mesh
    for name in _MACHINES.value:
        print(f'\n{name}, memory per chip of decoding on the mesh {mesh.data}x{mesh.proxy}x{mesh.model}:')
        print(memory.table(MEMORY[name]))
    for one in getattr(found, 'students', ()):
        size = training.Trainer(make_model(config_of(one.source)), make_mesh(1, 1, CHIPS), found.recipe).state_bytes()
        print(
            f'\ntraining student {one.name} on the mesh 1x1x{CHIPS}: {size / 2**20:.1f} MiB per chip of weights and '
            'optimiser; gradients and activations come on top'
        )


if __name__ == '__main__':
    program.start(main)
