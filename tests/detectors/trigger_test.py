"""The trigger test against scipy, its false alarms by simulation, and what it can and cannot detect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adx.detectors.trigger import Block, Trigger, e_process, permutation

NULLS = 20_000


def fisher(keyed_hits, keyed, decoy_hits, decoys):
    """log p of pairs that were asked once each."""
    sides = (keyed_hits, keyed), (decoy_hits, decoys)
    return permutation(*([1] * hits + [0] * (asked - hits) for hits, asked in sides))


@pytest.mark.parametrize('counts', [(2, 20, 0, 200), (0, 20, 3, 200), (5, 20, 5, 200), (20, 20, 9, 9), (7, 9, 1, 30)])
def test_fisher_is_that_of_scipy(counts):
    keyed_hits, keyed, decoy_hits, decoys = counts
    table = [[keyed_hits, keyed - keyed_hits], [decoy_hits, decoys - decoy_hits]]
    expected = stats.fisher_exact(table, alternative='greater').pvalue
    assert fisher(*counts) == pytest.approx(math.log(expected), abs=1e-9)


def test_two_hits_of_twenty_against_none_of_two_hundred():
    """By hand: (20 * 19) / (220 * 219)."""
    assert math.exp(fisher(2, 20, 0, 200)) == pytest.approx(380 / 48180)
    assert Trigger().verdict(blocks(2, 0)).detected
    assert not Trigger(level=0.005).verdict(blocks(2, 0)).detected


@pytest.mark.parametrize(('keyed', 'decoys'), [([1, 0, 1], [0] * 9), ([0, 0], [1, 0, 1]), ([1] * 5, [1, 1, 0])])
def test_pairs_asked_once_give_fishers_test(keyed, decoys):
    table = [[sum(side), len(side) - sum(side)] for side in (keyed, decoys)]
    expected = math.log(stats.fisher_exact(table, alternative='greater').pvalue)
    assert permutation(keyed, decoys) == pytest.approx(expected, abs=1e-12)


def test_a_permutation_by_hand():
    """Of the ten choices of two among 3, 0, 1, 0, 2 those of 3 and 2, 3 and 1, 3 and 0, 3 and 0 have three or more, and
    so has 1 and 2."""
    assert math.exp(permutation([3, 0], [1, 0, 2])) == pytest.approx(5 / 10)


def test_repeated_answers_of_a_pair_are_not_taken_for_independent():
    """A suspect that completes a pair always or never, by chance which: Fisher's test over its answers alarms often."""
    rng, repeats = np.random.default_rng(2), 4
    test = Trigger(pairs=10, decoys=5, repeats=repeats)
    drawn = repeats * (rng.random((4000, 10, 6)) < 0.2)
    found = [test.verdict([Block(row[0], tuple(row[1:])) for row in blocks]) for blocks in drawn.tolist()]
    bound = 0.01 + 3 * math.sqrt(0.01 * 0.99 / 4000)
    assert np.mean([one.detected for one in found]) <= bound
    assert found[0].keyed == repeats * 10
    as_if = [fisher(one.keyed_hits, one.keyed, one.decoy_hits, one.decoys) <= math.log(0.01) for one in found]
    assert np.mean(as_if) > 3 * bound
    wealth = [max(e_process([Block(row[0], tuple(row[1:])) for row in blocks])) for blocks in drawn.tolist()]
    assert np.mean(np.array(wealth) >= math.log(100)) <= bound


def test_probabilities_beyond_floating_point_stay_finite():
    assert -10_000 < fisher(2000, 2000, 0, 20_000) < -5_000


def test_nothing_asked_or_completed_shows_nothing():
    assert fisher(0, 20, 0, 200) == fisher(0, 0, 0, 0) == 0.0
    everything = [Block(True, (True,) * 10)] * 20
    for verdict in (Trigger().verdict([]), Trigger().verdict(everything), Trigger(sequential=True).verdict(everything)):
        assert not verdict.detected
        assert (verdict.log_p, verdict.log_e) == (0.0, 0.0)


def blocks(keyed_hits, decoy_hits, pairs=20, decoys=10):
    flat = [i < decoy_hits for i in range(pairs * decoys)]
    return [Block(i < keyed_hits, tuple(flat[i * decoys : (i + 1) * decoys])) for i in range(pairs)]


@pytest.mark.parametrize('rate', [0.003, 0.03, 0.3])
def test_false_alarms_of_an_unmarked_model_stay_below_the_level(rate):
    """Whatever its rate of lucky hits. The binomial test with the decoys' rate put in does not."""
    rng = np.random.default_rng(0)
    keyed, decoys = rng.random((NULLS, 20)) < rate, rng.random((NULLS, 20, 10)) < rate
    k, d = keyed.sum(axis=1), decoys.sum(axis=(1, 2))
    bound = 0.01 + 3 * math.sqrt(0.01 * 0.99 / NULLS)
    table = {(a, b): fisher(a, 20, b, 200) <= math.log(0.01) for a, b in set(zip(k.tolist(), d.tolist(), strict=True))}
    assert np.mean([table[pair] for pair in zip(k.tolist(), d.tolist(), strict=True)]) <= bound
    plugged_in = stats.binom.sf(k - 1, 20, decoys[:, :, 0].mean(axis=1)) <= 0.01  # 20 decoys
    assert plugged_in.mean() > 3 * bound


def test_the_e_process_may_be_looked_at_after_every_block():
    rng, alarms, ends = np.random.default_rng(1), 0, []
    for _ in range(4000):
        drawn = rng.random((20, 11)) < 0.1
        logs = e_process([Block(bool(row[0]), tuple(row[1:].tolist())) for row in drawn])
        alarms += max(logs) >= math.log(100)
        ends.append(math.exp(logs[-1]))
    assert alarms / 4000 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 4000)
    assert np.mean(ends) <= 1 + 3 * np.std(ends) / math.sqrt(len(ends))


def test_a_marked_model_is_found_by_both():
    few = blocks(5, 1)
    fixed, sequential = Trigger().verdict(few), Trigger(sequential=True).verdict(few)
    assert fixed.detected
    assert sequential.detected
    # Each of the 20 pairs and 200 decoys of the blocks is taken to have been asked as often as the test says.
    assert (fixed.keyed_hits, fixed.keyed, fixed.decoy_hits, fixed.decoys) == (5, 40, 1, 400)
    # The order in which blocks come changes the way and not the end.
    assert e_process(few)[-1] == pytest.approx(e_process(few[::-1])[-1])


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (Trigger(pairs=0), 'pairs = 0'),
        (Trigger(decoys=0), 'decoys = 0'),
        (Trigger(repeats=0), 'repeats = 0'),
        (Trigger(level=1.5), 'level = 1.5'),
        (Trigger(level=1.0), 'level = 1.0'),
        (Trigger(pairs=20.5), 'pairs = 20.5'),
        (Trigger(pairs=1, decoys=5), 'cannot reach level 0.01'),
    ],
)
def test_plans_are_checked(plan, message):
    with pytest.raises(ValueError, match=message):
        plan.check()
    Trigger().check()
    Trigger(sequential=True).check()
