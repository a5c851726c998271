"""The memory plan against what XLA says it allocates for the compiled decode chunk."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from adx.decoding.engine import DecodeConfig, Engine
from adx.decoding.ensemble import Ensemble, Group, Weights
from adx.defences import ProductOfExperts
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import TransformerConfig, make_model
from adx.planning import plan_memory


def make_ensemble(vocab: int, mesh: tuple[int, int, int], proxies: int) -> Ensemble:
    mesh = make_mesh(*mesh)
    config = TransformerConfig(
        vocab_size=vocab, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8
    )
    exit_config = dataclasses.replace(config, num_layers=1)
    group = Group(make_model(exit_config), proxy_layout(mesh, config.sizes, proxies), proxies)
    return Ensemble(make_model(config), teacher_layout(mesh, config.sizes), (group,))


def abstract_weights(ensemble: Ensemble) -> Weights:
    """Shapes and places of the float32 weights: compiling reads no values."""

    def one(model, layout, stack=(), letter=''):
        return {
            path: jax.ShapeDtypeStruct(
                (*stack, *shape), jnp.float32, sharding=layout.sharding(letter + model.axes[path])
            )
            for path, shape in model.shapes.items()
        }

    groups = tuple(one(group.model, group.layout, (group.count,), 'N') for group in ensemble.groups)
    return Weights(one(ensemble.teacher, ensemble.teacher_layout), groups)


def compiled_bytes(ensemble: Ensemble, config: DecodeConfig) -> int:
    """Bytes per device while a chunk runs: arguments, temporaries, and outputs that reuse no argument."""
    weights = abstract_weights(ensemble)
    engine = Engine(ensemble, weights, config, eos=[1])
    defence = ProductOfExperts(0.5)
    places = engine._start.lower(defence).compile().output_shardings
    rows, caches = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(engine._start, defence),
        places,
    )
    memory = engine._chunk.lower(weights, rows, caches, engine.constants).compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


@pytest.mark.parametrize(
    ('vocab', 'length', 'mesh', 'proxies'),
    [
        (1024, 512, (1, 1, 1), 1),  # caches are most of it
        (8192, 32, (2, 1, 1), 2),  # the choice of tokens is
    ],
)
def test_the_plan_is_what_a_chunk_takes(vocab, length, mesh, proxies):
    ensemble = make_ensemble(vocab, mesh, proxies)
    config = DecodeConfig(
        slots=16, chunk=2, buckets=(16,), prefill_rows=2, cache_length=length, record='scalars'
    )
    plan = plan_memory(ensemble, config)
    # XLA reports sizes of buffers that it may lay out with gaps; a fifth is what the plan promises.
    assert 0.8 < (plan.total - plan.prefix) / compiled_bytes(ensemble, config) < 1.2
