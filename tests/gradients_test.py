"""The gradient of a proxy's loss on real decoded traces: its value, its sign, and that devices do not matter."""

from __future__ import annotations

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import gradients
from adx.batching import Batch, Example
from adx.decoding.engine import Engine
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from adx.models.transformer import make_model

MODEL = make_model(fakes.PROXY)
PARAMS = MODEL.init(1)
MESHES = [
    ((2, 1, 1), 8),
    ((8, 1, 1), 24),
    *(pytest.param(*more, marks=pytest.mark.slow) for more in (((1, 1, 1), 24), ((1, 2, 1), 8), ((2, 2, 2), 8))),
]


ONE = Differentiator(MODEL, make_mesh())
LENGTH = 24  # holds every prompt and completion


@functools.cache
def decoded() -> tuple[Example, ...]:
    """Traces of the fake teacher: 24 prompts, with an end of sequence so that lengths differ."""
    ensemble, weights = fakes.make_ensemble(count=0)
    requests = fakes.undefended(count=24, new=12)
    prompts = {str(request.id): request.tokens for request in requests}
    done = Engine(ensemble, weights, fakes.DECODE, eos=(5, 6, 7)).generate(requests)
    return tuple(Example(str(one.id), prompts[str(one.id)], one.tokens) for one in done)


def padded(examples) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.zeros((len(examples), LENGTH), int), np.zeros((len(examples), LENGTH), bool)
    for row, (_, prompt, completion) in enumerate(examples):
        tokens[row, : len(prompt) + len(completion)] = [*prompt, *completion]
        targets[row, len(prompt) : len(prompt) + len(completion)] = True
    return tokens, targets


@jax.jit
def log_probs(params, tokens):
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    return jax.nn.log_softmax(MODEL.apply(params, tokens, positions)[0])


def loss_of(params, examples) -> float:
    """The mean loss by the model's plain call, in float64 from the log-probs on."""
    tokens, targets = padded(examples)
    row, column = np.nonzero(targets)
    return -np.asarray(log_probs(params, tokens), np.float64)[row, column - 1, tokens[row, column]].mean()


def moved(g, eps: float):
    return {path: PARAMS[path] + eps * g[path] for path in PARAMS}


def flat(g) -> np.ndarray:
    return np.concatenate([np.asarray(g[path], np.float64).ravel() for path in sorted(g)])


@functools.cache
def reference():
    return ONE.mean_gradient(PARAMS, gradients.batches(decoded(), 8))


def test_batches_hold_every_target_once_in_few_shapes():
    examples = [*decoded(), Example('long', tuple(range(40)), tuple(range(50)))]
    made = gradients.batches(examples, 8)
    assert [batch.tokens_BL.shape for batch in made] == [(8, 64)] * 3 + [(8, 128)]
    targets = sorted(tuple(row[mask]) for b in made for row, mask in zip(*b, strict=True) if mask.any())
    assert targets == sorted(example.completion for example in examples)
    again = gradients.batches(reversed(examples), 8)
    assert all((a.tokens_BL == b.tokens_BL).all() for a, b in zip(made, again, strict=True))


def test_it_is_the_gradient_of_the_global_token_mean():
    g, loss, count = reference()
    assert loss == pytest.approx(loss_of(PARAMS, decoded()), rel=1e-5)
    assert count == sum(len(example.completion) for example in decoded())
    assert len({len(example.completion) for example in decoded()}) > 3  # a mean of means would differ
    norm = float(np.linalg.norm(flat(g)))
    # A step of length h along g changes the loss by h |g| + O(h^3); float32 sums of 3 nats leave 1e-6 / h of noise.
    h = 3e-2 / norm
    rise = (loss_of(moved(g, h), decoded()) - loss_of(moved(g, -h), decoded())) / (2 * h)
    assert rise == pytest.approx(norm**2, rel=2e-3)


def test_holdout_loss_rises_along_g_and_falls_along_its_opposite():
    g, loss, _ = reference()
    for eps in (1e-2, 1e-1):
        assert loss_of(moved(g, eps), decoded()) > loss > loss_of(moved(g, -eps), decoded())


@pytest.mark.parametrize(('shape', 'rows'), MESHES, ids=str)
def test_devices_and_batch_size_change_it_by_rounding_only(shape, rows):
    """By less than 1e-5 of its norm: sums of some 200 float32 numbers in another order."""
    g, loss, count = Differentiator(MODEL, make_mesh(*shape)).mean_gradient(PARAMS, gradients.batches(decoded(), rows))
    expected = flat(reference()[0])
    assert np.linalg.norm(flat(g) - expected) < 1e-5 * np.linalg.norm(expected)
    assert (loss, count) == (pytest.approx(reference()[1], rel=1e-6), reference()[2])


def test_rows_are_split_over_data_and_proxy():
    differentiator = Differentiator(MODEL, make_mesh(2, 2, 2))
    assert differentiator.rows == 16
    batch = differentiator._place(gradients.batches(decoded(), 8)[0])
    assert {shard.data.shape for shard in batch.tokens_BL.addressable_shards} == {(2, 64)}


def test_a_bfloat16_proxy_is_differentiated_in_float32():
    half = make_model(dataclasses.replace(fakes.PROXY, dtype='bfloat16'))
    params = {path: x.astype(jnp.bfloat16) for path, x in PARAMS.items()}
    exact = {path: x.astype(jnp.float32) for path, x in params.items()}
    made = gradients.batches(decoded(), 24)
    g, _, _ = Differentiator(half, make_mesh()).mean_gradient(params, made)
    expected, _, _ = ONE.mean_gradient(exact, made)
    assert all(g[path].dtype == jnp.float32 and (g[path] == expected[path]).all() for path in g)


def test_blocks_and_logits_are_computed_again_in_the_backward_pass():
    """The forward pass holds one checkpoint per block and one for the logits, each of them whole."""
    differentiator = Differentiator(make_model(dataclasses.replace(fakes.PROXY, num_layers=3)), make_mesh())
    (batch,) = gradients.batches(decoded(), 24)
    equations = jax.make_jaxpr(differentiator._loss)(differentiator.model.init(0), batch).eqns
    wrapped = [equation for equation in equations if equation.primitive.name in ('checkpoint', 'remat2')]
    assert len(wrapped) == 4
    assert not [equation for equation in equations if equation.primitive.name == 'dot_general']


def test_deviation_is_that_of_the_log_probs_over_the_vocabulary():
    g, _, _ = reference()
    tokens, targets = padded(decoded())
    plus, minus = (np.asarray(log_probs(moved(g, eps), tokens), np.float64) for eps in (1e-2, -1e-2))
    row, column = np.nonzero(targets)
    delta, p = (plus - minus) / 2e-2, np.exp((plus + minus) / 2)
    variances = np.sum(p * delta**2, axis=-1)[row, column - 1]
    made = gradients.batches(decoded(), 8)
    found = ONE.deviation(PARAMS, g, made)
    assert found == pytest.approx(np.sqrt(np.mean(variances)), rel=1e-3)
    scaled = {path: x / found for path, x in g.items()}
    assert ONE.deviation(PARAMS, scaled, made) == pytest.approx(1, rel=1e-5)


def test_dealt_traces_are_disjoint_and_stable():
    parts = gradients.deal(decoded(), 3)
    assert [len(part) for part in parts] == [8, 8, 8]
    assert sorted(example for part in parts for example in part) == sorted(decoded())
    assert gradients.deal(reversed(decoded()), 3) == parts


def test_take_says_what_it_took_and_how_far_it_is():
    told = []
    taken = ONE.take(PARAMS, gradients.batches(decoded(), 8), lambda *at: told.append(at))
    assert told == [(i, 6) for i in range(7)]
    assert set(taken.norms) == {'embed', 'blocks.0', 'final_norm'}
    assert sum(norm**2 for norm in taken.norms.values()) == pytest.approx(np.sum(flat(taken.params) ** 2), rel=1e-5)
    assert taken.loss == pytest.approx(reference()[1])
    assert taken.deviation > 0


def test_an_empty_row_adds_nothing():
    (full,) = gradients.batches(decoded(), 24)
    empty = Batch(np.zeros_like(full.tokens_BL), np.zeros_like(full.targets_BL))
    g, loss, count = ONE.mean_gradient(PARAMS, [full, empty])
    alone, *told = ONE.mean_gradient(PARAMS, [full])
    assert (loss, count) == tuple(told)
    assert all((g[path] == alone[path]).all() for path in g)
