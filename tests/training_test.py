"""Students trained in a stack: what they learn, that they never meet, and AdamW against plain NumPy."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.batching import Corpus, Example, Stream
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.objectives import Hard
from adx.optimising import Recipe, decayed, rate
from adx.training import Trainer, compiler_options

MODEL = make_model(fakes.PROXY)
RECIPE = Recipe(learning_rate=1e-2, rows=8, steps=4, length=64, warmup=0.25)


def examples(count=16, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda low, high: tuple(random.integers(1, fakes.VOCAB, random.integers(low, high)).tolist())  # noqa: E731
    return [Example(f'{seed}/{i}', draw(2, 5), draw(3, 12)) for i in range(count)]


def stacked(count, model=MODEL):
    members = [model.init(i) for i in range(count)]
    return {path: jnp.stack([member[path] for member in members]) for path in model.shapes}


def stream(count, recipe=RECIPE):
    return Stream([Corpus(examples(16, i), i) for i in range(count)], recipe.rows, recipe.length, recipe.pack)


def trained(count=4, mesh=(1, 1, 1), recipe=RECIPE, feed=None, params=None, **numbers):
    trainer = Trainer(MODEL, make_mesh(*mesh), recipe, count)
    state = trainer.start(stacked(count) if params is None else params, **numbers)
    feed, seen = feed or stream(count, recipe), []
    for i in range(int(max(state.steps_N))):
        state, metrics = trainer.step(state, feed(i))
        seen.append(metrics)
    return jax.device_get(trainer.params(state)), jax.device_get(state), jax.device_get(seen)


@functools.cache
def reference():
    return trained()


def assert_close(a, b, tolerance):
    """Adam divides by the root of a squared gradient: rounding of a gradient near 0 moves a weight by far more than
    its own size, up to a share of the rate. Hence weights are compared by norm.
    """
    for path in a:
        assert np.linalg.norm(a[path] - b[path]) <= tolerance * np.linalg.norm(b[path]), path


def test_a_step_on_a_cpu_joins_no_products_and_others_are_told_nothing():
    assert compiler_options('tpu') is None
    trainer = Trainer(MODEL, make_mesh(), RECIPE, 1)
    state, rows = trainer.start(stacked(1)), trainer.place(stream(1)(0))
    assert 'ynn' not in trainer._step.lower(state, rows).compile().as_text()


@pytest.mark.parametrize('mesh', [(2, 1, 1), (2, 2, 2)], ids=str)
def test_devices_change_students_by_rounding_only(mesh):
    assert_close(trained(mesh=mesh)[0], reference()[0], 1e-4)


@pytest.mark.parametrize('recipe', [RECIPE, dataclasses.replace(RECIPE, lora_rank=2)], ids=['full', 'lora'])
def test_state_bytes_are_those_that_a_device_holds(recipe):
    trainer = Trainer(MODEL, make_mesh(2, 2, 2), recipe, 4)
    leaves = jax.tree.leaves(trainer.start(stacked(4)))
    first = jax.devices()[0]
    held = [shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device == first]
    assert trainer.state_bytes() == sum(held)


def test_a_student_is_what_it_is_alone():
    together = reference()[0]
    alone = trained(1, params={path: x[2:3] for path, x in stacked(3).items()},
                    feed=Stream([Corpus(examples(16, 2), 2)], 8, 64))[0]  # fmt: skip
    assert_close(alone, {path: x[2:3] for path, x in together.items()}, 1e-4)


def test_pieces_of_a_step_are_one_global_token_mean():
    recipe = dataclasses.replace(RECIPE, accumulate=4)
    assert_close(trained(recipe=recipe)[0], reference()[0], 1e-4)


def adamw(params, gradients, rates, clip=1.0, decay=0.1):
    """Loshchilov and Hutter, algorithm 2, in float64; (params after each step)."""
    m, v = ({path: np.zeros(x.shape) for path, x in params.items()} for _ in range(2))
    x = {path: np.asarray(w, np.float64) for path, w in params.items()}
    for t, (take, now) in enumerate(zip(gradients, rates, strict=True), 1):
        g = {path: np.asarray(dx, np.float64) for path, dx in take(x).items()}
        norm = np.sqrt(sum((dx**2).sum() for dx in g.values()))
        for path, dx in g.items():
            dx = dx * min(1.0, clip / norm)
            m[path] = 0.9 * m[path] + 0.1 * dx
            v[path] = 0.999 * v[path] + 0.001 * dx**2
            step = (m[path] / (1 - 0.9**t)) / (np.sqrt(v[path] / (1 - 0.999**t)) + 1e-8)
            shrunk = 0.0 if 'norm' in path else decay * x[path]
            x[path] = x[path] - now * (step + shrunk)
    return x


def test_steps_are_those_of_adamw_in_numpy():
    feed, start = Stream([Corpus(examples(16, 0), 0)], 8, 64), MODEL.init(0)

    @jax.jit
    def gradient(params, rows):
        def mean(params):
            total, count = Hard()(MODEL, params, rows)
            return total / count

        return jax.grad(mean)(params)

    def at(i):
        rows = jax.tree.map(lambda x: x[0], feed(i))
        return lambda x: gradient({path: jnp.asarray(w, jnp.float32) for path, w in x.items()}, rows)

    # 4 steps, 1 of them warming up: 1, then a cosine over the other 3.
    rates = 1e-2 * np.array([1.0, 1.0, 0.75, 0.25])
    expected = adamw(start, [at(i) for i in range(4)], rates)
    assert_close({path: x[0] for path, x in reference()[0].items()}, expected, 1e-4)


def test_a_rate_and_a_budget_of_its_own():
    params = {path: jnp.repeat(x[:1], 3, axis=0) for path, x in stacked(1).items()}
    feed = Stream([Corpus(examples(16, 0), 0)] * 3, 8, 64)
    found, state, seen = trained(3, params=params, feed=feed, steps=[2, 4, 4], learning_rates=[1e-2, 1e-2, 1e-3])
    assert [metrics.moved_N.tolist() for metrics in seen] == [[True] * 3] * 2 + [[False, True, True]] * 2
    assert_close({p: x[1] for p, x in found.items()}, {p: x[0] for p, x in reference()[0].items()}, 1e-4)
    moved = [np.linalg.norm(found['embed'][i] - params['embed'][i]) for i in range(3)]
    assert moved[2] < moved[0] < moved[1]
    assert state.diverged_N.tolist() == [0, 0, 0]


def test_a_student_that_diverges_stays_as_it_was_and_is_counted():
    feed = stream(4)

    def poisoned(i):
        rows = feed(i)
        if i == 1:
            rows.weights_BL[3] = np.nan
        return rows

    found, state, seen = trained(feed=poisoned)
    assert state.diverged_N.tolist() == [0, 0, 0, 1]
    assert seen[1].moved_N.tolist() == [True, True, True, False]
    assert all(np.isfinite(x).all() for x in found.values())
    for path, x in reference()[0].items():
        np.testing.assert_array_equal(found[path][:3], x[:3])


def test_a_weight_scales_the_loss_of_its_example():
    rows = jax.tree.map(lambda x: x[0], stream(1)(0))
    total, count = Hard()(MODEL, MODEL.init(0), rows)
    doubled = dataclasses.replace(rows, weights_BL=-2 * rows.weights_BL)
    np.testing.assert_allclose(Hard()(MODEL, MODEL.init(0), doubled)[0], -2 * total, rtol=1e-6)
    assert count == rows.targets_BL.sum()


def test_it_learns_a_tiny_set_by_heart_in_full_and_by_adapters():
    few = Stream([Corpus(examples(4, 0), 0)], 4, 64)
    full = dataclasses.replace(RECIPE, rows=4, steps=150, weight_decay=0.0, schedule='constant')
    assert trained(1, recipe=full, feed=few)[2][-1].loss_N < 0.05
    low = dataclasses.replace(full, learning_rate=3e-2, lora_rank=8, lora_alpha=8.0)
    _, state, seen = trained(1, recipe=low, feed=few)
    assert seen[-1].loss_N < 0.6 * seen[0].loss_N
    np.testing.assert_array_equal(state.base['embed'], stacked(1)['embed'])


def test_packed_rows_train_as_separate_ones():
    few = [Corpus(examples(8, 0), 0)]
    one = dataclasses.replace(RECIPE, steps=1)
    apart = trained(1, recipe=one, feed=Stream(few, 8, 64))
    packed = Stream(few, 8, 64, pack=True)
    assert (packed(0).segments_BL.max(axis=-1) > 1).any()
    together = trained(1, recipe=one, feed=packed)
    np.testing.assert_allclose(together[2][0].loss_N, apart[2][0].loss_N, rtol=1e-6)
    np.testing.assert_allclose(together[2][0].norm_N, apart[2][0].norm_N, rtol=1e-5)
    assert together[2][0].targets_N == apart[2][0].targets_N


def test_what_decays_and_how_the_rate_goes():
    assert {path for path, yes in decayed(dict(MODEL.shapes)).items() if not yes} == {
        path for path in MODEL.shapes if path.endswith('.scale')
    }
    rates = [float(rate(Recipe(warmup=0.5), 1.0, 8, i)) for i in range(8)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447], rtol=1e-5)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('learning_rate', 0), ('schedule', 'linear'), ('accumulate', 3), ('lora_on', ('query',)), ('dtype', 'float16')],
)
def test_a_recipe_that_cannot_be_run_is_refused(field, value):
    with pytest.raises(ValueError, match=f'Recipe.{field}'):
        dataclasses.replace(RECIPE, **{field: value}).check()
