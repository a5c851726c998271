"""Rows behind shared heads against the same rows read whole."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from influence_test import CONFIG, LENGTH, START, rows

from adx import influence
from adx.batching import Batch
from adx.influence import Difference, Harm, Loss
from adx.models.transformer import make_model
from adx.tails import behind, passes

LOCAL = dataclasses.replace(CONFIG, window=3, local_pattern=(True, False))


def of_two_traces():
    """Five texts of two traces, of different lengths, and one without targets."""
    batch, of_B = rows(np.random.default_rng(0), 6), np.array([0, 1, 0, 1, 1, 2])
    for one in range(3):
        batch.tokens_BL[of_B == one, : START + one] = batch.tokens_BL[one, : START + one]
        batch.targets_BL[of_B == one, : START + one] = False
    batch.targets_BL[2, -3:] = False
    batch.targets_BL[5] = False
    return batch, of_B


@pytest.mark.parametrize('objective', [Harm(), Loss(), Difference(5e-2)], ids=['harm', 'loss', 'difference'])
@pytest.mark.parametrize('config', [CONFIG, LOCAL], ids=['global', 'local'])
def test_rows_behind_their_heads_are_worth_what_whole_rows_are(objective, config):
    model, (batch, of_B) = make_model(config), of_two_traces()
    params, g = model.init(0), model.init(1)

    @jax.jit
    def read(batch, heads):
        one = model if heads is None else behind(model, heads)
        slopes_BLV = objective.slopes(influence.token_gradients, one, params, g, batch)
        return objective.values(one, params, g, batch), slopes_BLV

    (only,) = passes(batch, of_B, most=8, ways=1, whole=False, shortest=1)
    assert only.heads.tokens_UP.shape[0] == 4  # three heads, in half of eight rows
    values_B, slopes_BLV = (np.asarray(x)[:6] for x in read(only.tails, only.heads))
    wanted_B, whole_BLV = (np.asarray(x) for x in read(batch, None))
    np.testing.assert_allclose(values_B, wanted_B[only.rows], rtol=1e-4, atol=1e-5)
    for row, (i, start) in enumerate(zip(only.rows, only.starts_B, strict=True)):
        some = LENGTH - start - 1  # the first column of a tail is none that may change
        np.testing.assert_allclose(slopes_BLV[row, 1 : 1 + some], whole_BLV[i, start + 1 :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize(('most', 'ways'), [(64, 1), (4, 1), (2, 2), (1, 8)])
def test_every_row_is_in_one_pass_with_all_of_its_targets(whole, most, ways):
    batch, of_B = of_two_traces()
    made = list(passes(batch, of_B, most, ways, whole, shortest=1))
    assert sorted(np.concatenate([one.rows for one in made]).tolist()) == list(range(6))
    for one in made:
        assert one.tails.tokens_BL.shape[0] % ways == one.heads.tokens_UP.shape[0] % ways == 0
        assert not one.tails.targets_BL[len(one.rows) :].any()
        np.testing.assert_array_equal(one.cut(batch.tokens_BL), one.tails.tokens_BL)
        for row, i in enumerate(one.rows):
            head = one.heads.tokens_UP[one.heads.of_B[row], : one.heads.sizes_B[row]]
            read = np.concatenate([head, one.tails.tokens_BL[row]])[:LENGTH]
            np.testing.assert_array_equal(read, batch.tokens_BL[i])
            assert one.tails.targets_BL[row].sum() == batch.targets_BL[i].sum()
            if not whole and batch.targets_BL[i].any():
                assert one.tails.targets_BL[row, 1]


def test_the_last_passes_are_small_and_tails_of_a_length_stand_together():
    rng = np.random.default_rng(0)
    targets_BL = np.zeros((85, 130), bool)
    for row, size in enumerate(rng.permutation(85)):
        targets_BL[row, 10 : 30 + size] = True
    batch = Batch(rng.integers(0, 9, targets_BL.shape).astype(np.int32), targets_BL)
    made = list(passes(batch, np.arange(85), 64, 1, whole=False, shortest=1))
    assert [one.tails.tokens_BL.shape for one in made] == [(64, 96), (16, 128), (16, 128)]
    assert [len(one.rows) for one in made] == [64, 16, 5]
    assert {one.heads.tokens_UP.shape[1] for one in made} == {16}
