"""Selection: what each rule keeps, and that harm is what a real gradient step does to the holdout loss."""

from __future__ import annotations

from functools import partial

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx.aggregation import Aggregation
from adx.batching import Example, batches
from adx.datasets import Gsm8k, Jsonl, Mmlu
from adx.decoding.ensemble import Ensemble, Group, stack_params
from adx.mesh import make_mesh, proxy_layout, teacher_layout
from adx.models.transformer import make_model
from adx.selection import ROWS, Scorer, Selection, harm, matched, nll, stated_answer

TEXTS = ['#### 7', 'so #### 8', 'The final answer is 7.0', 'no idea', '#### 7 apples']


def choose(how, kept=(True,) * 4, scores=(1.0, 3.0, 3.0, 2.0), key=0):
    return Selection('s', 'plain', how).choose(kept, scores, key)


def test_each_rule_keeps_one_and_the_lowest_of_ties():
    for how in ('max_length', 'max_nll', 'max_harm'):
        assert choose(how) == 1
        assert choose(how, (True, False, True, True)) == 2
        assert choose(how, (True, False, False, False)) == 0
        assert choose(how, scores=(-2.0, -1.0, -1.0, -3.0)) == 1
    assert choose('first') == 0
    assert [choose('random', key=key) for key in range(5)] == [0, 1, 2, 3, 0]
    assert [choose('random', (True, False, True, True), key=key) for key in range(4)] == [0, 2, 3, 0]


@pytest.mark.parametrize(
    ('selection', 'message'),
    [
        (Selection('s', 'plain', 'max_harms'), "Selection.how = 'max_harms' is unknown.*Did you mean 'max_harm'"),
        (Selection('s', 'plain', 'max_nll', join=Aggregation(how='sum')), "Aggregation.how = 'sum'"),
    ],
)
def test_check_names_what_is_wrong(selection, message):
    with pytest.raises(ValueError, match=message):
        selection.check()


class TestMatched:
    def test_keeps_what_states_the_first_answer(self):
        assert matched(TEXTS, '7', Gsm8k().grade) == [True, False, True, False, True]
        assert matched(TEXTS, '9', Gsm8k().grade) == [True, False, True, False, True]
        assert matched(TEXTS, None, Gsm8k().grade) == [True, False, True, False, True]

    def test_two_that_state_nothing_do_not_match(self):
        assert matched(['no idea', 'no idea', '#### 7'], '7', Gsm8k().grade) == [True, False, False]
        assert matched(['#### none', '#### none'], '7', Gsm8k().grade) == [True, False]

    def test_compares_letters_where_gold_is_one(self):
        texts = ['The answer is (B) because it is.', 'The answer is B.', 'The answer is A.', '???']
        assert matched(texts, 'B', Mmlu().grade) == [True, True, False, False]
        assert stated_answer(texts[0], 'C') == 'B'

    def test_leaves_accuracy_as_it_is_also_under_a_grader_that_is_not_transitive(self):
        grade, gold = Jsonl().grade, '18 dollars'
        texts = ['#### 18', 'The final answer is 18 dollars']
        assert grade(texts[1], '18')
        assert grade(texts[1], gold)
        assert not grade(texts[0], gold)
        assert matched(texts, gold, grade) == [True, False]
        draw = np.random.default_rng(0)
        answers = ['#### 7', '#### 8', '#### 7.0', 'nothing', 'The final answer is 7 dollars', '#### 70']
        for _ in range(200):
            candidates = [answers[i] for i in draw.integers(0, len(answers), 4)]
            kept = matched(candidates, '7', grade)
            for how in ('random', 'max_nll'):
                scores, key = draw.normal(size=4).tolist(), int(draw.integers(99))
                chosen = Selection('s', 'a', how, True).choose(kept, scores, key)
                assert grade(candidates[chosen], '7') == grade(candidates[0], '7')


MODEL = make_model(fakes.PROXY)
PARAMS = MODEL.init(0)


def init(seed):
    draw = np.random.default_rng(seed)
    return {path: jnp.asarray(0.3 * draw.normal(size=shape), jnp.float32) for path, shape in MODEL.shapes.items()}


def examples(count, seed, low=0, high=fakes.VOCAB):
    """Random prompts of 3 tokens with completions of 4 to 12."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(4, 13, count)
    return [
        Example(f'{i:03d}', tuple(draw.integers(0, fakes.VOCAB, 3).tolist()),
                tuple(draw.integers(low, high, n).tolist()))
        for i, n in enumerate(lengths)
    ]  # fmt: skip


def loss(example, params):
    """Mean completion NLL of one trace, no batch and no padding."""
    tokens = jnp.asarray([*example.prompt, *example.completion])[None]
    logits_LV = MODEL.apply(params, tokens, jnp.arange(tokens.shape[1])[None])[0][0]
    start = len(example.prompt)
    log_probs = jax.nn.log_softmax(logits_LV)[jnp.arange(start - 1, tokens.shape[1] - 1), tokens[0, start:]]
    return -jnp.mean(log_probs)


def one_batch(rows):
    [(inside, batch)] = batches(rows, len(rows))
    assert inside == rows
    return batch


def test_batches_hold_every_example_once_and_pad_to_few_lengths():
    long = Example('x', (1,) * 60, (2,) * 10)
    made = batches([*examples(5, 0), long], 2)
    assert [example for inside, _ in made for example in inside] == [*examples(5, 0), long]
    assert [batch.tokens_BL.shape for _, batch in made] == [(2, 64)] * 3 + [(2, 128)]
    (inside, batch) = made[2]
    assert batch.targets_BL.sum(axis=1).tolist() == [len(inside[0].completion), 0]
    assert nll(MODEL, PARAMS, batch)[1] == 0


def test_the_scores_of_a_padded_row_are_those_of_the_trace_alone():
    rows = examples(6, 1)
    batch, direction = one_batch(rows), init(7)
    alone, gradient = jax.jit(jax.value_and_grad(partial(loss, rows[1])))(PARAMS)
    # Sums of a padded batch round differently: some units of float32's last place.
    np.testing.assert_allclose(jax.jit(partial(nll, MODEL))(PARAMS, batch)[1], alone, rtol=1e-5)
    expected = -sum(jnp.vdot(direction[path], gradient[path]) for path in gradient)
    found = jax.jit(partial(harm, MODEL))(PARAMS, direction, batch)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def steps():
    """Of 64 candidates: harm along the holdout gradient, what an SGD step on each does to the holdout loss, and eta."""
    holdout = one_batch(examples(24, 2, high=20))
    holdout_loss = jax.jit(lambda params: jnp.mean(nll(MODEL, params, holdout)))
    g = jax.grad(holdout_loss)(PARAMS)
    half = examples(32, 3, high=20), examples(32, 4)
    candidates = [row._replace(id=f'{row.id}{part}') for part, rows in enumerate(half) for row in rows]
    candidates.sort()
    harms = np.asarray(jax.jit(partial(harm, MODEL))(PARAMS, g, one_batch(candidates)))
    eta = 1e-2  # small enough for first order, large enough for float32 to see the change
    before = holdout_loss(PARAMS)

    def change(tokens_L, targets_L):
        row = type(holdout)(tokens_L[None], targets_L[None])
        gradient = jax.grad(lambda params: nll(MODEL, params, row)[0])(PARAMS)
        return holdout_loss(jax.tree.map(lambda x, dx: x - eta * dx, PARAMS, gradient)) - before

    batch = one_batch(candidates)
    return harms, np.asarray(jax.jit(jax.vmap(change))(*map(jnp.asarray, batch))), eta


def test_harm_predicts_what_a_real_step_does_to_the_holdout_loss(steps):
    harms, changes, eta = steps
    assert np.corrcoef(harms, changes)[0, 1] > 0.9
    np.testing.assert_allclose(np.polyfit(eta * harms, changes, 1)[0], 1, atol=0.15)  # the second order is left


def test_steps_on_the_most_harmful_raise_the_holdout_loss_more_than_on_random_ones(steps):
    """Of groups of four candidates, as a selection sees them."""
    harms, changes, _ = steps
    order = np.random.default_rng(0).permutation(len(harms)).reshape(-1, 4)
    kept = [True] * 4
    top = [group[Selection('s', 'a', 'max_harm').choose(kept, harms[group], 0)] for group in order]
    random = [group[Selection('s', 'a', 'random').choose(kept, harms[group], i * 7)] for i, group in enumerate(order)]
    assert changes[top].mean() > changes[random].mean() + 2 * changes[random].std() / len(random) ** 0.5
    assert all(changes[top] >= changes[order].mean(axis=1))


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_scorer_gives_every_proxy_and_direction_in_the_experiments_order(sizes):
    """Three proxies in two groups, the members interleaved; two directions each. On a mesh rows are split, in one group
    over its data axis, in the other over proxy too."""

    def stack(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    mesh, members = make_mesh(*sizes), ((0, 2), (1,))
    groups = tuple(Group(MODEL, proxy_layout(mesh, MODEL.config.sizes, len(inside)), len(inside)) for inside in members)
    ensemble = Ensemble(make_model(fakes.TEACHER), teacher_layout(mesh, fakes.TEACHER.sizes), groups)
    params = [
        stack_params(MODEL, group.layout, [init(i) for i in inside])
        for group, inside in zip(groups, members, strict=True)
    ]
    directions = [stack([stack([init(10 + i), init(20 + i)]) for i in inside]) for inside in members]
    batch = one_batch(examples(4, 5))
    assert Scorer(ensemble, params, None, members).rows == ROWS * sizes[0] * sizes[1]
    one_nll, one_harm = jax.jit(partial(nll, MODEL)), jax.jit(partial(harm, MODEL))
    expected = [one_nll(init(i), batch) for i in range(3)]
    np.testing.assert_allclose(Scorer(ensemble, params, None, members)(batch), expected, rtol=1e-5)
    expected = [one_harm(init(i), init(d + i), batch) for i in range(3) for d in (10, 20)]
    np.testing.assert_allclose(Scorer(ensemble, params, directions, members)(batch), expected, rtol=1e-4, atol=1e-5)
