"""The memory plan against what XLA says it allocates for the compiled decode chunk and prefill."""

from __future__ import annotations

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import planning
from adx.ahead import abstract_weights
from adx.batching import Batch
from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble, Group
from adx.defences import ProductOfExperts, Undefended
from adx.editing import Editor, Proxy
from adx.mesh import abstract_mesh, make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import TransformerConfig, make_model
from adx.needs import differentiated
from adx.optimising import Recipe
from adx.planning import UPCAST_NOTE, plan_memory, training_bytes
from adx.rewriters.gradient import Gradient
from adx.settings import Derivative
from adx.tails import Heads
from adx.training import Trainer
from tools.bench.memory import chunk_over_plan, peak_over_total

MODEL = TransformerConfig(
    vocab_size=8192, num_layers=3, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8
)
DECODE = DecodeConfig(slots=16, chunk=2, buckets=(16,), prefill_rows=8, cache_length=32, record='scalars')
# XLA reports sizes of buffers that it may lay out with gaps; a fifth is what the plan promises.
LOW, HIGH = 0.8, 1.2

# What most of the memory is: the choice of tokens over the whole vocabulary, keys and values, or weights.
CHOICE = MODEL
CACHES = (dataclasses.replace(MODEL, vocab_size=512), dataclasses.replace(DECODE, cache_length=1024))
WEIGHTS = (dataclasses.replace(MODEL, vocab_size=512, embed_dim=256, mlp_dim=1024), DECODE)
BRIEF = dataclasses.replace(DECODE, buckets=(4,))  # else a prefill, which is no part of a chunk, plans the workspace
WORDY = dataclasses.replace(MODEL, vocab_size=16384, embed_dim=64, mlp_dim=1536, head_dim=64)


def make_ensemble(model: TransformerConfig, mesh: tuple[int, int, int], proxies: int, directions: int = 0) -> Ensemble:
    mesh = make_mesh(*mesh)
    early = dataclasses.replace(model, num_layers=2)
    layout = proxy_layout(mesh, model.sizes, proxies) if proxies else None
    groups = (Group(make_model(early), layout, proxies, directions),) if layout else ()
    return Ensemble(make_model(model), teacher_layout(mesh, model.sizes), groups)


SLOW = pytest.mark.slow  # more of the same shapes: compiling takes seconds each


@pytest.mark.parametrize(
    ('model', 'config', 'mesh', 'proxies'),
    [
        (CHOICE, DECODE, (1, 1, 1), 1),
        (CHOICE, DECODE, (2, 2, 2), 2),
        (dataclasses.replace(CHOICE, tied=False), DECODE, (2, 1, 4), 0),
        (*CACHES, (1, 1, 8), 1),  # four heads do not divide by 8: attention is replicated
        (dataclasses.replace(WEIGHTS[0], dtype='bfloat16'), DECODE, (2, 1, 4), 1),
        pytest.param(CHOICE, DECODE, (1, 1, 1), 0, marks=SLOW),
        pytest.param(CHOICE, DECODE, (2, 1, 1), 2, marks=SLOW),
        pytest.param(CHOICE, DECODE, (2, 1, 4), 1, marks=SLOW),
        pytest.param(CHOICE, DECODE, (1, 1, 1), 4, marks=SLOW),
        pytest.param(CHOICE, DECODE, (1, 1, 8), 4, marks=SLOW),
        pytest.param(dataclasses.replace(CHOICE, tied=False), DECODE, (2, 1, 4), 1, marks=SLOW),
        pytest.param(*CACHES, (1, 1, 1), 1, marks=SLOW),
        pytest.param(*WEIGHTS, (1, 1, 1), 1, marks=SLOW),
        pytest.param(dataclasses.replace(CACHES[0], dtype='bfloat16'), CACHES[1], (1, 1, 1), 1, marks=SLOW),
    ],
)
def test_the_plan_is_what_a_chunk_takes(model, config, mesh, proxies):
    defence = ProductOfExperts(0.5) if proxies else Undefended()
    assert LOW < chunk_over_plan(make_ensemble(model, mesh, proxies), config, defence) < HIGH


@pytest.mark.parametrize(
    ('model', 'config', 'mesh', 'proxies', 'directions'),
    [
        (*CACHES, (1, 1, 1), 2, 1),  # a copy of the tangents would be a third more
        (CHOICE, DECODE, (2, 2, 2), 2, 1),
        (*WEIGHTS, (1, 1, 1), 1, 2),
        pytest.param(CHOICE, DECODE, (1, 1, 1), 1, 1, marks=SLOW),
        pytest.param(CHOICE, DECODE, (1, 1, 1), 2, 2, marks=SLOW),
        pytest.param(CHOICE, DECODE, (2, 1, 4), 1, 1, marks=SLOW),
        pytest.param(CHOICE, DECODE, (2, 2, 2), 2, 2, marks=SLOW),
        pytest.param(*CACHES, (1, 1, 1), 1, 2, marks=SLOW),
        pytest.param(*CACHES, (1, 1, 8), 1, 1, marks=SLOW),
        pytest.param(*WEIGHTS, (2, 1, 4), 1, 1, marks=SLOW),
    ],
)
def test_the_plan_holds_directions_and_tangents(model, config, mesh, proxies, directions):
    ensemble = make_ensemble(model, mesh, proxies, directions)
    assert LOW < chunk_over_plan(ensemble, config, fakes.Sloped()) < HIGH


@pytest.mark.parametrize(
    ('model', 'config', 'mesh', 'directions'),
    [
        (WEIGHTS[0], BRIEF, (1, 1, 1), 1),
        (*CACHES, (1, 1, 1), 2),
        pytest.param(CHOICE, DECODE, (2, 1, 4), 1, marks=SLOW),
        pytest.param(WEIGHTS[0], BRIEF, (2, 1, 4), 2, marks=SLOW),
    ],
)
def test_the_plan_of_derivatives_along_the_teachers_pass(model, config, mesh, directions):
    ensemble = make_ensemble(model, mesh, 1)
    groups = tuple(dataclasses.replace(group, exit=2) for group in ensemble.groups)
    ensemble = differentiated(dataclasses.replace(ensemble, groups=groups), Derivative(directions=directions))
    assert ensemble.groups[0].shared
    assert LOW < chunk_over_plan(ensemble, config, fakes.Sloped()) < HIGH


@pytest.mark.parametrize(
    ('model', 'mesh', 'length', 'directions'),
    [
        (CACHES[0], (2, 1, 4), 256, 0),  # attention scores are most of it
        (WEIGHTS[0], (1, 1, 1), 64, 0),  # the activations of an MLP are
        (WEIGHTS[0], (1, 1, 1), 64, 1),
        pytest.param(CACHES[0], (2, 2, 2), 256, 0, marks=SLOW),
        pytest.param(CACHES[0], (2, 1, 4), 256, 1, marks=SLOW),
    ],
)
def test_the_planned_workspace_is_what_a_long_prefill_takes(model, mesh, length, directions):
    ensemble = make_ensemble(model, mesh, 2, directions)
    config = dataclasses.replace(DECODE, buckets=(length,), cache_length=length)
    tokens = jax.ShapeDtypeStruct((config.prefill_rows, length), jnp.int32)
    compiled = jax.jit(ensemble.prefill).lower(abstract_weights(ensemble), tokens).compile()
    assert LOW < compiled.memory_analysis().temp_size_in_bytes / plan_memory(ensemble, config).workspace < HIGH


def test_a_plan_says_what_is_special_about_bfloat16_on_a_cpu():
    plan = plan_memory(make_ensemble(dataclasses.replace(MODEL, dtype='bfloat16'), (1, 1, 1), 1), DECODE)
    assert plan.float32_copies == 2 * (plan.teacher_weights + plan.proxy_weights + plan.caches)
    assert f'note: {UPCAST_NOTE}' in plan.table(None)
    assert plan_memory(make_ensemble(MODEL, (1, 1, 1), 1), DECODE).float32_copies == 0


def test_the_table_says_whether_it_fits():
    plan = plan_memory(make_ensemble(MODEL, (1, 1, 1), 1), DECODE)
    assert plan.table(plan.total).endswith('fits')
    assert plan.table(plan.total - 1).endswith('DOES NOT FIT')


def test_the_table_says_what_of_the_workspace_are_logits():
    """Of a teacher and two proxies, 16 slots in two pieces of rows and of vocabulary: [8, 4096] each."""
    plan = plan_memory(make_ensemble(MODEL, (2, 1, 2), 2), DECODE)
    assert plan.logits == 3 * 8 * 4096 * 4 < plan.workspace
    lines = plan.table(None).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.split()[:3] == ['of', 'it', 'logits'])
    assert lines[at].endswith(' 0.4 MiB')
    assert lines[at - 1].split()[0] == 'workspace'
    assert plan.total == sum(getattr(plan, name) for name in (
        'teacher_weights', 'proxy_weights', 'directions', 'caches', 'prefix', 'workspace', 'float32_copies'
    ))  # fmt: skip


@pytest.mark.parametrize('model', [CHOICE, pytest.param(CACHES[0], marks=SLOW)])
def test_the_printed_total_is_the_most_that_a_run_holds(model):
    """Chunk and prefill, each beside what the other leaves."""
    assert LOW < peak_over_total(make_ensemble(model, (1, 1, 1), 1), DECODE, ProductOfExperts(0.5)) < HIGH


def test_training_with_adapters_by_hand():
    """Two ways of rows and of weights, in bfloat16: a row of each device at a time."""
    config = TransformerConfig(
        vocab_size=64, num_layers=2, embed_dim=8, mlp_dim=16, num_heads=2, num_kv_heads=2, head_dim=4
    )
    recipe = Recipe(lora_rank=2, lora_on=('up',), rows=4, accumulate=2, length=10, dtype='bfloat16', remat=True)
    trainer = Trainer(make_model(config), abstract_mesh(2, 1, 2), recipe)
    split = 64 * 8 + 2 * (4 * 8 * 8 + 3 * 16 * 8)  # embeddings, and of two layers attention and MLP
    norms = 5 * 8
    adapters = 2 * (2 * 8 + 2 * 16 // 2)  # [2, 8] whole, and [16, 2] split
    state = 4 * (split // 2 + norms + 3 * adapters) + 5 * 4  # two counts of Adam, three numbers of the student
    compute = 2 * (split // 2 + norms) + 2 * (2 * 16 * 8 // 2)  # with the gradient of what adapters are merged into
    between, logits = 2 * 10 * 8 * 2, 10 * 32 * (4 + 4 + 2)
    assert trainer.state_bytes() == pytest.approx(state, abs=8)
    assert training_bytes(trainer) == trainer.state_bytes() + 4 * adapters + compute + between + logits


@pytest.mark.parametrize(
    ('objective', 'config', 'proxies'),
    [
        ('harm', WORDY, 1),
        ('loss', WEIGHTS[0], 1),  # activations are most of it
        ('bilevel', WEIGHTS[0], 1),
        pytest.param('bilevel', MODEL, 1, marks=SLOW),
        pytest.param('harm', WEIGHTS[0], 1, marks=SLOW),
        pytest.param('harm', WORDY, 2, marks=SLOW),
        pytest.param('harm', MODEL, 1, marks=SLOW),
        pytest.param('random', MODEL, 1, marks=SLOW),
    ],
)
def test_the_plan_of_a_search_by_gradient_is_what_a_round_takes(objective, config, proxies):
    models = planning.members(make_ensemble(config, (1, 1, 1), proxies))
    teacher, proxy, shape = models[0].model, models[1].model, (4, 64)
    params, own = (
        {path: jax.ShapeDtypeStruct(size, jnp.float32) for path, size in model.shapes.items()}
        for model in (proxy, teacher)
    )
    batch, held = (
        Batch(jax.ShapeDtypeStruct((rows, shape[1]), jnp.int32), jax.ShapeDtypeStruct((rows, shape[1]), bool))
        for rows in (shape[0], 8)
    )
    given = {'harm': params, 'bilevel': held}.get(objective)
    words_V = np.ones(teacher.config.sizes['V'], bool)
    editor = Editor(Gradient(objective), [Proxy(proxy, params, given)] * proxies, (teacher, own), words_V)
    whole = Heads(*(jax.ShapeDtypeStruct(size, jnp.int32) for size in ((shape[0], 0), shape[:1], shape[:1])))
    lowered = editor._propose.lower(*editor._weights, batch, whole, jax.ShapeDtypeStruct(shape, bool))
    taken = lowered.compile().memory_analysis()
    planned = planning.search_bytes(models, objective, shape, 8)
    assert LOW < (taken.argument_size_in_bytes + taken.temp_size_in_bytes) / planned < HIGH
