"""Directions in a workdir: what they belong to, there and back on any mesh, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import types

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from adx import directions
from adx.batching import Example
from adx.datasets import Gsm8k
from adx.errors import InputError
from adx.experiment import Derivative, Experiment, ModelSource
from adx.generation import Models, Requests
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.types import Prompt

MODEL = make_model(fakes.PROXY)
EXAMPLES = [
    Example(f'{i}', tuple(np.random.default_rng(i).integers(0, fakes.VOCAB, 5).tolist()),
            tuple(np.random.default_rng(100 + i).integers(0, fakes.VOCAB, 6).tolist()))
    for i in range(6)
]  # fmt: skip
EXPERIMENT = Experiment(
    Gsm8k(), ModelSource('teacher'), proxies=(ModelSource('proxy'),), derivative=Derivative(directions=2)
)
FEWER = dataclasses.replace(EXPERIMENT, derivative=Derivative(directions=2, prompts=3))


def silent(done, total):
    pass


def belongs(experiment=EXPERIMENT, vocabulary=fakes.VOCAB, proxy='hash', examples=EXAMPLES):
    return directions.identity(experiment, vocabulary, proxy, examples)


@pytest.fixture(scope='module')
def taken():
    """Two directions of one proxy, and what restores them."""
    differentiator = Differentiator(MODEL, make_mesh(2))
    gradients = directions.take(differentiator, MODEL.init(1), EXAMPLES, 2, 'proxy_0', silent)
    return types.SimpleNamespace(
        differentiator=differentiator, gradients=gradients,
        directions=directions.stack(differentiator, gradients, belongs()),
    )  # fmt: skip


def save(taken, workdir, **changes) -> epath.Path:
    where = directions.place(workdir, 0)
    directions.save(where, dataclasses.replace(taken.directions, **changes), taken.gradients, belongs(), True)
    return where


def test_they_come_back_on_another_mesh_beside_their_identity(taken, tmp_path):
    where = save(taken, tmp_path)
    assert oct(where.stat().mode)[-3:] == '700'
    record = json.loads((where / 'identity.json').read_text())
    assert {name: record[name] for name in belongs()} == belongs()
    assert [one['tokens'] for one in record['directions']] == [18, 18]
    assert record['directions'][1]['norms'] == taken.gradients[1].norms
    other = Differentiator(MODEL, make_mesh(2, 1, 2))
    back = directions.restore(where, other, belongs())
    assert (back.deviations, back.hash) == (taken.directions.deviations, taken.directions.hash)
    for path, x in taken.directions.params.items():
        assert back.params[path].shape == (2, *MODEL.shapes[path])
        np.testing.assert_array_equal(back.params[path], x)
    assert back.params['embed'].sharding == other.layout.sharding('.VD')


def test_more_rows_of_padding_are_zeros(taken, tmp_path):
    where = save(taken, tmp_path)
    wider = Differentiator(make_model(dataclasses.replace(fakes.PROXY, vocab_rows=72)), make_mesh())
    embed = directions.restore(where, wider, belongs()).params['embed']
    assert embed.shape[1] == 72
    np.testing.assert_array_equal(embed[:, : fakes.VOCAB], taken.directions.params['embed'][:, : fakes.VOCAB])
    assert not embed[:, fakes.VOCAB :].any()


OTHERS = {
    'another proxy': (belongs(proxy='other'), 'proxy: "hash" != "other"'),
    'another dtype': (belongs(dataclasses.replace(EXPERIMENT, dtype='bfloat16')), 'dtype: "float32" != "bfloat16"'),
    'another vocabulary': (belongs(vocabulary=60), 'vocabulary: 61 != 60'),
    'other traces': (belongs(examples=EXAMPLES[1:]), 'traces: '),
    'other settings': (belongs(FEWER), 'settings.prompts: 64 != 3'),
    'another format': (belongs() | {'format_version': 2}, 'format_version: 1 != 2'),
}  # fmt: skip


@pytest.mark.parametrize('other', OTHERS)
def test_directions_of_something_else_are_refused(other, taken, tmp_path):
    expected, message = OTHERS[other]
    where = save(taken, tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        directions.restore(where, taken.differentiator, expected)
    assert 'delete it and run --stages=prepare,generate' in str(raised.value)
    assert '\n' not in str(raised.value)


def test_one_other_token_is_another_trace_set():
    first, *rest = EXAMPLES
    other = first._replace(completion=(*first.completion[:-1], first.completion[-1] ^ 1))
    assert belongs(examples=[other, *rest])['traces'] != belongs()['traces']
    assert belongs(examples=reversed(EXAMPLES)) == belongs()


def test_missing_and_damaged_directions_are_refused(taken, tmp_path):
    with pytest.raises(InputError, match='run --stages=prepare,generate'):
        directions.restore(directions.place(tmp_path, 0), taken.differentiator, belongs())
    with pytest.raises(InputError, match=r"no directions of \['proxy_0'\]"):
        directions.check_prepared(EXPERIMENT, tmp_path)
    where = save(taken, tmp_path)
    directions.check_prepared(EXPERIMENT, tmp_path)
    (where / 'identity.json').write_text('{')
    with pytest.raises(InputError, match=r'identity\.json is damaged'):
        directions.known(where, belongs())
    where = save(taken, tmp_path)
    (where / 'params').rmtree()
    with pytest.raises(InputError, match=r'is damaged .*; delete it and run --stages=prepare,generate$'):
        directions.restore(where, taken.differentiator, belongs())


@pytest.mark.parametrize(
    ('value', 'message'), [(0.0, 'layer final_norm is zero'), (np.nan, 'final_norm is not finite'), (3.0, 'has norm')]
)
def test_zero_nan_and_changed_gradients_are_refused_when_they_are_read(value, message, taken, tmp_path):
    scale = taken.directions.params['final_norm.scale']
    where = save(taken, tmp_path, params=taken.directions.params | {'final_norm.scale': jnp.full_like(scale, value)})
    with pytest.raises(InputError, match=message) as raised:
        directions.restore(where, taken.differentiator, belongs())
    assert 'proxy_0' in str(raised.value)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('blocks.0.attention.v', np.nan, r'proxy_7: the gradient of layer \S+ is not finite'),
        ('final_norm.scale', 0.0, 'proxy_7: the gradient of layer blocks.0 is zero'),
    ],
)
def test_zero_and_nan_gradients_are_refused_when_they_are_taken(path, value, message, taken):
    """A final norm of zeros gives every token the same probability, whatever the weights before it."""
    params = MODEL.init(1)
    params[path] = jnp.full_like(params[path], value)
    with pytest.raises(InputError, match=message):
        directions.take(taken.differentiator, params, EXAMPLES, 1, 'proxy_7', silent)


def test_too_few_traces_are_refused(taken):
    with pytest.raises(InputError, match='1 holdout traces are too few'):
        directions.take(taken.differentiator, MODEL.init(1), EXAMPLES[:1], 2, 'proxy_0', silent)
    with pytest.raises(InputError, match=r'no holdout trace has a completion \(too long\)'):
        directions.examples([], Requests({}, {}, {'id': 'too long'}))


def prompt(split, row, text):
    return Prompt('data', split, row, ({'role': 'user', 'content': text},))


def test_prompts_in_both_splits_are_refused_whatever_their_case():
    held = [prompt('holdout', '1', 'How many apples?'), prompt('holdout', '2', '???')]
    directions.check_apart(held, [prompt('train', '3', 'How many pears?'), prompt('train', '4', '!!!')])
    with pytest.raises(InputError, match=r'1 prompts .* train/3 as holdout/1'):
        directions.check_apart(held, [prompt('train', '3', 'how  many apples')])


def on_host(taken) -> directions.Directions:
    """For any mesh."""
    return dataclasses.replace(taken.directions, params=jax.device_get(taken.directions.params))


def attached(taken, count=2, mesh=None, **derivative):
    """The fake ensemble of two proxies with the directions, the second proxy's in the other order."""
    mesh = mesh or make_mesh()
    ensemble, weights = fakes.make_ensemble(mesh, count=count)
    first = on_host(taken)
    swapped = dataclasses.replace(
        first, params={path: x[::-1] for path, x in first.params.items()}, deviations=first.deviations[::-1],
        hash='swapped',
    )  # fmt: skip
    models = Models(ensemble, weights, None, {'teacher': 't'})
    return models, directions.attach(models, [(1, 0)], {0: first, 1: swapped}, Derivative(**derivative))


@pytest.mark.parametrize('scale', ['raw', 'deviation'])
def test_attached_directions_are_stacked_and_scaled_per_group(scale, taken):
    _, models = attached(taken, mesh=make_mesh(1, 2, 2), scale=scale, directions=2)
    (group,), (stacked,) = models.ensemble.groups, models.weights.directions
    assert (group.directions, group.difference) == (2, 0.0)
    assert models.hashes == {'teacher': 't', 'directions_0': taken.directions.hash, 'directions_1': 'swapped'}
    for path, g in taken.directions.params.items():
        divisors = np.array(taken.directions.deviations if scale == 'deviation' else (1.0, 1.0))
        expected = g / divisors.reshape(-1, *[1] * (g.ndim - 1))
        np.testing.assert_allclose(stacked[path], np.stack([expected[::-1], expected]), rtol=1e-6)
    assert stacked['embed'].sharding == group.layout.sharding('N.VD')


def test_directions_have_the_dtypes_of_the_weights(taken):
    config = dataclasses.replace(fakes.PROXY, dtype='bfloat16')
    ensemble, weights = fakes.make_ensemble(proxy=config)
    half = {p: x if p.endswith('.scale') else x.astype(jnp.bfloat16) for p, x in weights.groups[0].items()}
    models = Models(ensemble, weights._replace(groups=(half,)), None, {})
    found = directions.attach(models, [(0, 1)], {0: on_host(taken), 1: on_host(taken)}, Derivative())
    assert all(x.dtype == half[path].dtype for path, x in found.weights.directions[0].items())


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_difference_holds_two_copies(dtype, taken):
    """Rows of sums in float32, rounded once: theta and eps g of some 0.1 differ by half a unit of the dtype."""
    both = on_host(taken)
    one = dataclasses.replace(
        both, params={path: x[:1] for path, x in both.params.items()}, deviations=both.deviations[:1]
    )
    ensemble, weights = fakes.make_ensemble(count=1)
    settings = Derivative(method='difference', eps=0.5, dtype=dtype, scale='raw')
    models = directions.attach(Models(ensemble, weights, None, {}), [(0,)], {0: one}, settings)
    (group,), (plus,), (minus,) = models.ensemble.groups, models.weights.groups, models.weights.directions
    assert (group.directions, group.difference, group.model.config.dtype) == (1, 0.5, dtype)
    for path, theta in weights.groups[0].items():
        rounding = 2 * float(jnp.finfo(plus[path].dtype).eps)
        assert plus[path].dtype == jnp.dtype('float32' if path.endswith('.scale') else dtype)
        for copy, sign in ((plus[path], 1), (minus[path][:, 0], -1)):
            expected = theta + sign * 0.5 * one.params[path]
            np.testing.assert_allclose(copy.astype(jnp.float32), expected, rtol=rounding, atol=rounding)
