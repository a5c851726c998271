"""Losses that students are trained by: what they read of a row, and weights of their own beside the student's."""

from __future__ import annotations

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adx import losses
from adx.batching import Corpus, Example, Stream
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.objectives import PROJECTION, Features, Hard
from adx.optimising import Recipe
from adx.training import Trainer

MODEL, SIZE = make_model(fakes.PROXY), 5
EXAMPLES = [Example(str(i), (1 + i, 2), tuple(range(3 + i, 9 + 2 * i))) for i in range(3)]


def features(seed=0):
    """A fixed random map of the token that is to be predicted: something that a hidden state can tell."""
    table = np.random.default_rng(seed).normal(size=(fakes.VOCAB, SIZE)).astype(np.float32)
    return {example.id: table[list(example.completion)] for example in EXAMPLES}


def rows(pack=False):
    stream = Stream([Corpus(EXAMPLES, extras={'features': features()})], 2, 64, pack)
    return jax.tree.map(lambda x: x[0], stream(0))


def test_features_are_compared_where_the_token_is_predicted():
    """Against a loop over examples, one at a time and unpadded."""
    params = MODEL.init(0) | {PROJECTION: jax.random.normal(jax.random.key(1), (SIZE, MODEL.config.sizes['D']))}
    total, count = Features(0.5, SIZE)(MODEL, params, rows(pack=True))
    expected = 0.0
    for example, wanted_LE in zip(EXAMPLES, features().values(), strict=True):
        tokens_BL = jnp.array([[*example.prompt, *example.completion]])
        own = {path: x for path, x in params.items() if path != PROJECTION}
        x_BLD, _ = MODEL.apply(own, tokens_BL, jnp.arange(tokens_BL.shape[1])[None], method='hidden')
        first = len(example.prompt) - 1
        found_LE = x_BLD[0, first:-1] @ params[PROJECTION].T
        log_probs_LV = jax.nn.log_softmax(MODEL.apply(own, x_BLD, method='unembed')[0, first:-1])
        chosen_L = log_probs_LV[jnp.arange(len(wanted_LE)), jnp.array(example.completion)]
        expected += float(0.5 * jnp.mean((found_LE - wanted_LE) ** 2, axis=-1).sum() - chosen_L.sum())
    assert count == sum(len(example.completion) for example in EXAMPLES)
    assert float(total) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('rank', [0, 2], ids=['full', 'lora'])
def test_the_projection_is_learned_and_does_not_stay_with_the_student(rank):
    recipe = Recipe(learning_rate=1e-2, rows=6, steps=60, length=64, lora_rank=rank)
    trainer = Trainer(MODEL, make_mesh(2, 2, 2), recipe, 2, Features(1.0, SIZE))
    start = {path: jnp.stack([x, x]) for path, x in MODEL.init(0).items()}
    state = trainer.start(start)
    before = np.asarray(state.weights[PROJECTION])
    assert before.shape == (2, SIZE, MODEL.config.sizes['D'])
    assert not np.allclose(before[0], before[1])  # each student has a projection of its own
    stream, distances = Stream([Corpus(EXAMPLES, extras={'features': features()})] * 2, 6, 64), []
    for step in range(recipe.steps):
        state, _ = trainer.step(state, stream(step))
        if step in (0, recipe.steps - 1):
            distances.append(distance(trainer, state))
    assert distances[1] < 0.5 * distances[0]
    assert trainer.params(state).keys() == MODEL.shapes.keys()


def distance(trainer, state):
    """Of the first student's projected hidden states from the features."""
    params = {path: x[0] for path, x in jax.device_get(trainer.params(state)).items()}
    told = rows()
    x_BLD, _ = MODEL.apply(params, told.tokens_BL, told.positions_BL, method='hidden')
    projection, wanted = np.asarray(state.weights[PROJECTION])[0], losses.ahead(told.extras['features'])
    return float(losses.feature_losses(x_BLD, projection, wanted, told.targets_BL).sum())


def test_a_loss_is_one_object_for_all_who_use_its_numbers():
    assert hash(Features(0.5, SIZE)) == hash(Features(0.5, SIZE))
    assert Hard() == Hard()
