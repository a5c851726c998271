"""The precision tool: its arithmetic in closed form, and what float32 and half precision do to a tiny proxy."""

from __future__ import annotations

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import directions
from adx.batching import Example
from adx.experiment import Derivative
from adx.gradients import Differentiator, batches
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from launch.config import load_config
from tests import tiny
from tools import precision

MODEL = make_model(fakes.PROXY)
DRAW = np.random.default_rng(0)
EXAMPLES = [
    Example(str(i), tuple(DRAW.integers(0, fakes.VOCAB, 4).tolist()), tuple(DRAW.integers(0, fakes.VOCAB, 6).tolist()))
    for i in range(5)
]


def test_sines_of_known_angles():
    exact = np.array([[1.0, 0.0, 0.0]] * 5)
    other = np.array([[2.0, 0, 0], [0, 3.0, 0], [1.0, 1.0, 0], [1.0, 1e-9, 0], [0, 0, 0]])
    np.testing.assert_allclose(precision.sines(exact, other), [0, 1, 0.5**0.5, 1e-9, 1], atol=1e-15)


def test_the_share_of_changed_weights_is_what_the_cast_leaves():
    """Near 1, half precision has steps of 2^-10 and bfloat16 of 2^-7: smaller moves round away, norm scales' do not."""
    theta = {'w': jnp.full(8, 1.0), 'norm.scale': jnp.full(2, 1.0)}
    g = {'w': jnp.array([0, 0, 0, 0, 1e-4, 1e-3, 1e-2, 1e-1]), 'norm.scale': jnp.full(2, 1e-4)}
    shares = {
        dtype: precision.share_changed(directions.cast(theta, dtype), precision.move(theta, g, 1.0, dtype))
        for dtype in ('float32', 'float16', 'bfloat16')
    }
    assert shares == {'float32': 0.6, 'float16': 0.5, 'bfloat16': 0.4}


def test_positions_are_evenly_chosen_among_those_that_predict_targets():
    made = batches(EXAMPLES, 2)
    every = precision.choose(made, 10**6)
    assert sum(len(rows) for _, (rows, _) in every) == 30
    for batch, (rows, columns) in every:
        assert batch.targets_BL[rows, columns + 1].all()
    assert sum(len(rows) for _, (rows, _) in precision.choose(made, 7)) == 7


@pytest.fixture(scope='module')
def rows():
    params = MODEL.init(1)
    differentiator = Differentiator(MODEL, make_mesh())
    made = batches(EXAMPLES, differentiator.rows)
    taken = differentiator.take(params, made)
    g = jax.tree.map(lambda x: x / taken.deviation, taken.params)
    comparison = precision.Comparison(differentiator.model, params, g, made, 12)
    dtypes = ('float32', 'bfloat16', 'float16')
    return {(row.dtype, row.eps): row for row in precision.compare('fake', comparison, (1e-1, 1e-2, 1e-4), dtypes)}


def mean(row) -> float:
    return float(np.mean(row.sines))


def test_the_difference_tends_to_the_derivative_in_float32_alone(rows):
    """The error falls with eps^2 until rounding, some 1e-7 / eps, takes over; half precision is lost at 1e-4."""
    assert all(len(row.sines) == 12 for row in rows.values())
    assert mean(rows['float32', 1e-2]) < 1e-3
    assert mean(rows['float32', 1e-1]) > 10 * mean(rows['float32', 1e-2])
    for dtype in ('bfloat16', 'float16'):
        assert mean(rows[dtype, 1e-4]) > 0.5
        assert rows[dtype, 1e-4].changed < 0.5 < rows['float32', 1e-2].changed
    assert mean(rows['float16', 1e-1]) < mean(rows['bfloat16', 1e-1])


def test_steps_are_relative_to_the_weights(rows):
    assert rows['float32', 1e-1].step == pytest.approx(1000 * rows['float16', 1e-4].step)
    assert precision.rms({'a': jnp.array([3.0, 0.0]), 'b': jnp.array([0.0, 4.0])}) == pytest.approx(2.5)


def test_an_early_exit_of_the_teacher_is_compared_with_all_its_weights(tmp_path):
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))
    settings = Derivative(prompts=1, samples=1, max_new_tokens=4)
    experiment = dataclasses.replace(experiment, derivative=settings)
    ((name, comparison),) = precision.comparisons(experiment, 2)
    assert name == 'teacher_exit1'
    (row,) = precision.compare(name, comparison, (1e-2,), ('float32',))
    assert len(row.sines) == 2
    assert mean(row) < 0.1


def test_recorded_rows_have_names_of_a_table(rows, monkeypatch):
    recorded = {}
    monkeypatch.setattr(precision.figures, 'append', lambda table, name, samples, **_: recorded.update({name: samples}))
    rows['float16', 1e-4].record()
    assert list(recorded) == [f'precision_{x}_fake_float16_1em04' for x in ('sin', 'step', 'changed')]
    for name in recorded:
        precision.figures._check_names(name)
