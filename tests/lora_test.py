"""Low-rank adapters: fresh ones change nothing, merged ones are the side path, on every projection."""

from __future__ import annotations

import fakes
import jax
import jax.numpy as jnp
import numpy as np

from adx.models import lora
from adx.models.transformer import make_model

MODEL = make_model(fakes.TEACHER)
PARAMS = MODEL.init(0)


def drawn(rank=3):
    fresh = lora.init(MODEL, rank, lora.PROJECTIONS, jax.random.key(1))
    return {p: x if p.endswith('.a') else jax.random.normal(jax.random.key(2), x.shape) for p, x in fresh.items()}


def test_fresh_adapters_are_the_model_bit_for_bit():
    fresh = lora.init(MODEL, 3, lora.PROJECTIONS, jax.random.key(1))
    assert len(fresh) == 2 * 7 * fakes.TEACHER.num_layers
    merged = lora.merge(MODEL, PARAMS, fresh, 2.0)
    assert all((merged[path] == PARAMS[path]).all() for path in PARAMS)
    # fan_in ** -0.5 = 1/4, over 2 * 3 * 16 numbers each: within 5 standard errors of 7 %.
    found = np.concatenate([np.ravel(x) for p, x in fresh.items() if p.endswith('q.a')])
    assert abs(found.std() * 4 - 1) < 0.36


def test_a_merged_weight_is_the_weight_and_its_side_path():
    """Of x, in float64: W x + scale * B (A x), with every weight as outputs x inputs."""
    adapters, random = drawn(), np.random.default_rng(0)
    merged = lora.merge(MODEL, PARAMS, adapters, 0.7)
    for path in lora.targets(MODEL, lora.PROJECTIONS):
        a, b, w, new = (np.asarray(x, np.float64) for x in
                        (adapters[f'{path}.a'], adapters[f'{path}.b'], PARAMS[path], merged[path]))  # fmt: skip
        outputs = w.shape[0] if path.endswith(('.o', '.gate', '.up', '.down')) else w.shape[0] * w.shape[1]
        x = random.standard_normal(w.size // outputs)
        expected = w.reshape(outputs, -1) @ x + 0.7 * (b.reshape(outputs, 3) @ (a.reshape(3, -1) @ x))
        np.testing.assert_allclose(new.reshape(outputs, -1) @ x, expected, atol=1e-5)
    others = set(PARAMS) - set(lora.targets(MODEL, lora.PROJECTIONS))
    assert all((merged[path] == PARAMS[path]).all() for path in others)


def test_only_the_chosen_projections_have_adapters_and_stacks_are_mapped():
    keys = jax.random.split(jax.random.key(0), 2)
    stack = jax.vmap(lambda key: lora.init(MODEL, 2, ('q', 'down'), key))(keys)
    assert {path.split('.')[-2] for path in stack} == {'q', 'down'}
    one = lora.init(MODEL, 2, ('q', 'down'), keys[1])
    np.testing.assert_allclose(stack['blocks.1.mlp.down.a'][1], one['blocks.1.mlp.down.a'], rtol=1e-6)
    assert jnp.any(stack['blocks.0.attention.q.a'] != stack['blocks.1.attention.q.a'])
