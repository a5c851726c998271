"""The search by gradient on tiny models: it accepts what exact evaluation confirms, and only where it may edit."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from influence_test import CONFIG, LENGTH, START, rows

from adx import influence
from adx.aggregation import Aggregation
from adx.batching import Batch
from adx.editing import ELEMENTS, Editor, Proxy, rows_at_once
from adx.influence import Harm
from adx.mesh import make_mesh, teacher_layout
from adx.models.transformer import make_model
from adx.rewriters.gradient import Gradient, nested_edits, nested_sizes, single_edits
from adx.tails import Heads

NONE = Heads(*(np.zeros(shape, np.int32) for shape in ((2, 0), (2,), (2,))))  # rows are whole
WORDS_V = np.arange(CONFIG.vocab_size) >= 3  # the first three may not be placed


@pytest.fixture(scope='module')
def given():
    """(two proxies of one model, the teacher, a batch)"""
    model, rng = make_model(CONFIG), np.random.default_rng(0)
    batch, holdout = rows(rng, 3), rows(rng, 3)
    gradient = jax.jit(jax.grad(lambda params: influence.holdout_loss(model, params, holdout)))
    proxies = [Proxy(model, params, gradient(params)) for params in (model.init(1), model.init(2))]
    return proxies, (model, model.init(3)), batch


def editable(batch):
    editable_BL = batch.targets_BL.copy()
    editable_BL[:, 4] = False
    editable_BL[1] = False
    return editable_BL


@pytest.mark.parametrize('step', ['flip', pytest.param('embedding', marks=pytest.mark.slow)])
def test_every_round_gains_by_exact_evaluation_and_changes_what_it_may(given, step):
    proxies, teacher, batch = given
    settings = Gradient(step=step, rounds=3, edits=4, floor=0.02, radius=2.0, join=Aggregation(how='min'))
    places_BL = editable(batch)
    found = Editor(settings, proxies, teacher, WORDS_V)(batch, places_BL)
    assert len(found.tokens) > 1
    assert np.all(np.diff(found.values, axis=0) >= 0)
    assert found.values[1, 0] > found.values[0, 0]
    changed_RBL = found.tokens != batch.tokens_BL
    assert not changed_RBL[:, ~places_BL].any()
    assert WORDS_V[found.tokens[changed_RBL]].all()
    np.testing.assert_array_equal(found.tokens[:, 1], np.repeat(batch.tokens_BL[1:2], len(found.tokens), axis=0))
    value = jax.jit(lambda params, g, batch: Harm().values(proxies[0].model, params, g, batch))
    for tokens_BL, values_B in zip(found.tokens, found.values, strict=True):
        each = [value(one.params, one.given, Batch(tokens_BL, batch.targets_BL)) for one in proxies]
        np.testing.assert_allclose(values_B, np.min(each, axis=0), rtol=1e-5, atol=1e-6)


def test_a_search_on_a_mesh_is_that_on_one_device(given):
    proxies, teacher, _ = given
    batch, layout = rows(np.random.default_rng(2), 4), teacher_layout(make_mesh(2, 2, 2), CONFIG.sizes)

    def place(params):
        return {path: jax.device_put(x, layout.sharding(teacher[0].axes[path])) for path, x in params.items()}

    settings = Gradient(rounds=2, edits=3, floor=0.02)
    placed = [Proxy(one.model, place(one.params), place(one.given)) for one in proxies]
    split = Editor(settings, placed, (teacher[0], place(teacher[1])), WORDS_V, layout)(batch, editable(batch))
    alone = Editor(settings, proxies, teacher, WORDS_V)(batch, editable(batch))
    np.testing.assert_array_equal(split.tokens, alone.tokens)
    np.testing.assert_allclose(split.values, alone.values, rtol=1e-4, atol=1e-6)
    assert (alone.tokens[0] != alone.tokens[-1]).any()


def test_rows_are_shared_by_the_pieces_of_a_mesh_and_fit_each():
    assert [rows_at_once(100, 100, ways) for ways in (1, 8, 256)] == [64, 8, 1]
    assert rows_at_once(500, 2**15, 1) == ELEMENTS // (512 * 2**15)
    assert rows_at_once(10**6, 2**15, 2) == 1


def test_a_text_is_evaluated_once_and_a_trace_without_gain_is_left(given, monkeypatch):
    """The middle row may not change, and where nothing was found there is no further round."""
    proxies, teacher, batch = given
    editor, evaluated, proposed = Editor(Gradient(rounds=4, edits=4, floor=0.02), proxies, teacher, WORDS_V), [[]], []
    values, propose = editor._values, editor._propose

    def texts(tails):
        return [tuple(row[: max(*mask.nonzero()) + 1].tolist()) for row, mask in zip(*tails, strict=True) if mask.any()]

    def valued(weights, tails, heads):
        evaluated[-1].extend(texts(tails))
        return values(weights, tails, heads)

    def proposing(weights, teacher, tails, heads, editable_BL):
        proposed.append(texts(tails))
        evaluated.append([])
        return propose(weights, teacher, tails, heads, editable_BL)

    monkeypatch.setattr(editor, '_values', valued)
    monkeypatch.setattr(editor, '_propose', proposing)
    found = editor(batch, editable(batch))
    for texts_of_round in evaluated:
        assert len(texts_of_round) == len(set(texts_of_round))
    assert len(evaluated[1]) > 2
    gained = [(a != b).any(axis=1).sum() for a, b in itertools.pairwise(found.tokens)]
    asked = [len(rows) for rows in proposed]
    assert asked[0] == 2  # of three
    assert asked[1:] == gained[: len(asked) - 1]


def test_words_are_what_the_teacher_finds_likely_where_they_are_put(given):
    proxies, teacher, batch = given
    found = Editor(Gradient(rounds=1, edits=1, floor=0.5), proxies, teacher, WORDS_V)(batch, editable(batch))
    model, params = teacher
    positions_BL = jnp.broadcast_to(jnp.arange(LENGTH), batch.tokens_BL.shape)
    log_p_BLV = jax.nn.log_softmax(jax.jit(lambda p: model.apply(p, batch.tokens_BL, positions_BL)[0])(params))
    for row, place in zip(*np.nonzero(found.tokens[-1] != batch.tokens_BL), strict=True):
        log_p_V = log_p_BLV[row, place - 1]
        assert place >= START
        assert log_p_V[found.tokens[-1][row, place]] >= log_p_V.max() + np.log(0.5)


@pytest.mark.parametrize('how', ['min', 'softmin', 'mean'])
def test_slopes_are_those_of_the_joined_value(given, how):
    """By hand: of the least harmed proxy alone, as whose value the join moves; of all alike for the mean."""
    proxies, teacher, batch = given
    batch = Batch(batch.tokens_BL[:2], batch.targets_BL[:2])
    editor = Editor(Gradient(join=Aggregation(1e6, how)), proxies, teacher, WORDS_V)
    weights = [(one.params, one.given) for one in proxies]
    # The very bits, so by XLA's own emitters: those that tools/test takes for speed round as the program around has it.
    jit = functools.partial(jax.jit, compiler_options={'xla_cpu_use_fusion_emitters': True})
    found_BLV = np.asarray(jit(editor._slopes)(weights, batch, NONE))
    each = [
        jit(lambda params, g, batch: Harm().slopes(influence.token_gradients, proxies[0].model, params, g, batch))(
            one.params, one.given, batch
        )
        for one in proxies
    ]
    if how == 'mean':
        np.testing.assert_array_equal(found_BLV, jax.jit(Aggregation())(jnp.stack(each)))
        return
    value = jax.jit(lambda params, g, batch: Harm().values(proxies[0].model, params, g, batch))
    least_B = np.argmin([value(one.params, one.given, batch) for one in proxies], axis=0)
    expected_BLV = np.stack([each[proxy][row] for row, proxy in enumerate(least_B)])
    np.testing.assert_allclose(found_BLV, expected_BLV, rtol=1e-4, atol=1e-6)


def test_more_edits_than_places_are_all_places(given):
    proxies, teacher, batch = given
    settings = Gradient('loss', rounds=1, edits=LENGTH + 5, floor=0.02)
    found = Editor(settings, proxies, teacher, WORDS_V)(batch, editable(batch))
    assert found.values[-1, 0] >= found.values[0, 0]


def test_where_nothing_may_change_nothing_does(given):
    proxies, teacher, batch = given
    found = Editor(Gradient(), proxies, teacher, WORDS_V)(batch, np.zeros(batch.tokens_BL.shape, bool))
    np.testing.assert_array_equal(found.tokens, batch.tokens_BL[None])
    assert np.isfinite(found.values).all()


def test_what_is_nan_takes_nothing(given, monkeypatch):
    proxies, teacher, batch = given
    editor = Editor(Gradient(rounds=1, edits=2), proxies, teacher, WORDS_V)
    monkeypatch.setattr(editor, '_values', lambda weights, tails, heads: np.ones(len(tails.tokens_BL), np.float32))
    first_B1 = lambda tails: np.ones((len(tails.tokens_BL), 1), int)  # noqa: E731
    other_B1 = lambda tails: (tails.tokens_BL[:, 1:2] + 1) % 13  # noqa: E731
    monkeypatch.setattr(editor, '_propose', lambda p, t, tails, *_: (first_B1(tails), other_B1(tails)))
    tokens_BL, best_B = editor._round(batch, editable(batch), np.array([np.nan, 0.5, 2.0], np.float32))
    assert (tokens_BL != batch.tokens_BL).any(axis=1).tolist() == [False, True, False]
    assert np.isnan(best_B[0])


def test_edits_are_laid_out_one_by_one_and_nested():
    tokens_BL = np.array([[5, 6, 7, 8]])
    places_BM, words_BM = np.array([[1, 3, 0]]), np.array([[9, 10, 11]])
    assert single_edits(tokens_BL, places_BM, words_BM).tolist() == [[[5, 9, 7, 8], [5, 6, 7, 10], [11, 6, 7, 8]]]
    gains_BM = np.array([[0.1, 0.3, -0.2]])
    assert [nested_sizes(edits) for edits in (1, 2, 3, 8)] == [[], [2], [2, 3], [2, 4, 8]]
    assert nested_edits(tokens_BL, places_BM, words_BM, gains_BM).tolist() == [
        [[5, 9, 7, 10], [5, 9, 7, 10]]  # the last exchange helps nobody
    ]
    assert nested_edits(tokens_BL, places_BM, words_BM, np.array([[-0.1, 0.3, -0.2]])).tolist() == [[[5, 6, 7, 8]] * 2]
