"""Writing into a cache, alone and mapped over a stack, against assignments one by one; and reading embeddings so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.models.cache import LayerCache, write
from adx.models.products import lookup

N, B, L, G, K, S = 3, 4, 2, 2, 5, 7


def arrays():
    draw = np.random.default_rng(0).normal
    k, v = draw(size=(N, B, G, K, S)), draw(size=(N, B, G, S, K))
    new_k, new_v = draw(size=(N, B, L, G, K)), draw(size=(N, B, L, G, K))
    positions = np.array([[0, 1], [5, 6], [3, 2], [4, 0]])
    return [x.astype(np.float32) for x in (k, v, new_k, new_v)], positions


def expected():
    (k, v, new_k, new_v), positions = arrays()
    for b in range(B):
        for i in range(L):
            k[:, b, :, :, positions[b, i]], v[:, b, :, positions[b, i]] = new_k[:, b, i], new_v[:, b, i]
    return k, v


def run(k, v, new_k, new_v):
    layer = write(LayerCache(k, v), new_k, new_v, jnp.asarray(arrays()[1]))
    return layer.k_BGKS, layer.v_BGSK


def test_a_stack_is_written_as_each_of_it_alone():
    given, _ = arrays()
    whole = jax.jit(jax.vmap(run))(*given)
    for one, other in zip(whole, expected(), strict=True):
        np.testing.assert_array_equal(one, other)
    for n in range(N):
        for one, other in zip(run(*(x[n] for x in given)), expected(), strict=True):
            np.testing.assert_array_equal(one, other[n])


@pytest.mark.parametrize('mapped', [True, False])
def test_derivatives_are_written_as_values_are(mapped):
    """Also along several directions of one cache, which is itself written once."""
    given, _ = arrays()
    one = tuple(jnp.asarray(x[0]) for x in given)
    if mapped:
        values, tangents = jax.vmap(lambda *t: jax.jvp(run, one, t), out_axes=(None, 0))(*map(jnp.asarray, given))
    else:
        values, tangents = jax.jvp(run, one, one)
    for value, tangent, other in zip(values, tangents, expected(), strict=True):
        np.testing.assert_array_equal(value, other[0])
        np.testing.assert_array_equal(tangent, other if mapped else other[0])


def test_rows_of_a_stack_are_looked_up_as_each_of_it_alone():
    draw = np.random.default_rng(1)
    w, tokens = draw.normal(size=(N, 6, 4)).astype(np.float32), draw.integers(0, 6, (B, 1))
    np.testing.assert_array_equal(jax.vmap(lookup, in_axes=(0, None))(w, tokens), w[:, tokens])
    np.testing.assert_array_equal(jax.vmap(lookup, in_axes=(None, 0))(w[0], tokens), w[0][tokens])
    both = jax.vmap(lookup)(w[:B], np.stack([tokens] * N))
    np.testing.assert_array_equal(both, w[:, tokens])
    value, tangent = jax.vmap(lambda t: jax.jvp(lambda w: lookup(w, tokens), (w[0],), (t,)), out_axes=(None, 0))(w)
    np.testing.assert_array_equal(value, w[0][tokens])
    np.testing.assert_array_equal(tangent, w[:, tokens])
