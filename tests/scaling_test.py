"""The best that a machine could do, against numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from adx.decoding.engine import DecodeConfig
from adx.decoding.ensemble import Ensemble, Group
from adx.mesh import abstract_mesh, proxy_layout, teacher_layout
from adx.models.transformer import TransformerConfig, make_model
from adx.scaling import MACHINES, Estimate, Machine, estimate, meshes, model_sums, rank

# 2 layers of 8 x 8 for q, 4 x 8 for k and v, 8 x 8 for o and 3 x 16 x 8 for the MLP; 16 x 8 embeddings; 5 norms of 8.
CONFIG = TransformerConfig(
    vocab_size=16, num_layers=2, embed_dim=8, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=4, dtype='bfloat16'
)
MATRICES = 2 * (2 * 64 + 2 * 32 + 3 * 128) + 128
WEIGHT_BYTES = 2 * MATRICES + 4 * 40  # norms are float32
CACHE_BYTES = 2 * 2 * 4 * 2  # of a token: keys and values of 2 layers, one head of 4, bfloat16
SLOTS, LENGTH = 4, 10
LOGITS = SLOTS * 16 * 4
DECODE = DecodeConfig(slots=SLOTS, chunk=2, buckets=(4,), prefill_rows=4, cache_length=LENGTH)
BYTES = Machine(rate=1e30, bandwidth=1.0, memory=1e9, link=1.0)  # limited by memory alone
OPERATIONS = Machine(rate=1.0, bandwidth=1e30)  # by products alone


def make_ensemble(mesh=(1, 1, 1), proxies=0, directions=0, difference=0.0):
    mesh, model = abstract_mesh(*mesh), make_model(CONFIG)
    group = Group(model, proxy_layout(mesh, CONFIG.sizes, proxies or 1), proxies, directions, difference)
    return Ensemble(model, teacher_layout(mesh, CONFIG.sizes), (group,) if proxies else ())


def test_bytes_of_a_step_are_weights_caches_and_logits():
    one = WEIGHT_BYTES + SLOTS * LENGTH * CACHE_BYTES
    assert BYTES.step_seconds(make_ensemble(), SLOTS, LENGTH) == one + LOGITS
    assert BYTES.step_seconds(make_ensemble(proxies=2), SLOTS, LENGTH) == 3 * (one + LOGITS)
    assert BYTES.step_seconds(make_ensemble(proxies=1, directions=1), SLOTS, LENGTH) == 3 * (one + LOGITS)


@pytest.mark.parametrize(('directions', 'difference', 'passes'), [(0, 0.0, 1), (1, 0.0, 3), (2, 0.0, 5), (1, 0.1, 2)])
def test_operations_are_two_a_weight_and_row_and_three_times_as_many_with_a_tangent(directions, difference, passes):
    forward = 2 * SLOTS * (MATRICES + 40)
    ensemble = make_ensemble(proxies=1, directions=directions, difference=difference)
    assert OPERATIONS.step_seconds(ensemble, SLOTS, LENGTH) == pytest.approx((1 + passes) * forward, rel=1e-12)


def test_a_mesh_divides_rows_weights_and_the_vocabulary():
    """Two ways of rows and two of weights: the one head of keys is on both, and so are its weights and the norms."""
    split = 2 * (2 * 64 + 3 * 128) + 128
    weights = 2 * (split // 2 + 2 * 2 * 32) + 4 * 40
    rows = SLOTS // 2
    expected = weights + rows * LENGTH * CACHE_BYTES + LOGITS / 4
    assert BYTES.step_seconds(make_ensemble((2, 1, 2)), SLOTS, LENGTH) == expected


def test_the_exchange_is_of_sums_of_hidden_states_over_the_model_axis():
    assert model_sums(2) == 5
    # Half of the link's both directions; a sum over two devices moves its own size.
    assert BYTES.exchange_seconds(make_ensemble((1, 1, 2)), SLOTS) == 5 * SLOTS * 8 * 2 / 0.5
    assert BYTES.exchange_seconds(make_ensemble((4, 1, 1)), SLOTS) == 0
    assert dataclasses.replace(BYTES, link=0.0).exchange_seconds(make_ensemble((1, 1, 2)), SLOTS) == 0


def test_tokens_and_dollars():
    made = Estimate((2, 1, 4), slots=100, step=0.04, exchange=0.01)
    assert made.tokens_per_second == pytest.approx(2000)
    # Eight chips at 3.6 dollars an hour are 0.008 dollars a second.
    assert made.dollars_per_million(3.6) == pytest.approx(4.0)


def test_a_mesh_that_does_not_fit_says_what_it_needs_and_comes_last():
    small = dataclasses.replace(BYTES, memory=1000.0)
    fits, full = (estimate((1, 1, 1), make_ensemble(), DECODE, machine) for machine in (BYTES, small))
    assert (fits.problem, fits.memory.total > 1000) == ('', True)
    assert full.problem == f'needs {full.memory.total / 1e9:.1f} GB a chip and it has 0'
    slower = dataclasses.replace(fits, step=2 * fits.step)
    wide = dataclasses.replace(fits, mesh=(1, 1, 2))
    assert sorted([full, slower, wide, fits], key=rank) == [fits, wide, slower, full]


def test_meshes_use_every_chip_once():
    found = list(meshes(8))
    assert len(found) == len(set(found)) == 10
    assert all(data * proxy * model == 8 for data, proxy, model in found)


def test_the_published_example():
    """A 7B teacher on an H200 with 192 rows of 512 tokens: half of its speed beside one 3B proxy with a direction."""
    from adx.models import PRESETS

    mesh, machine = abstract_mesh(), MACHINES['h200']
    large, small = (dataclasses.replace(PRESETS[f'qwen2.5-{n}b'], dtype='bfloat16') for n in (7, 3))
    group = Group(make_model(small), proxy_layout(mesh, small.sizes, 1), 1, directions=1)
    teacher = Ensemble(make_model(large), teacher_layout(mesh, large.sizes))
    both = dataclasses.replace(teacher, groups=(group,))
    share = machine.step_seconds(teacher, 192, 512) / machine.step_seconds(both, 192, 512)
    assert share == pytest.approx(0.5, abs=0.05)
