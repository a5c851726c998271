"""Mixing: the clean subset, weights against their formula, and traces under other prompts."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
from lessons_fakes import lesson, lessons, resources, rows, texts

from adx.attacks.mixing import MixClean, Reweight, ShuffledPrompts, kind


def apply(transform, given, held=None):
    held = resources() if held is None else held
    kept, tally = transform.apply(given, held.only(transform.needs))
    tally.check(len(given), len(kept))
    return kept, tally


class TestMixClean:
    def test_clean_lessons_take_the_place_of_those_on_their_prompts(self):
        given = lessons(8, 2)
        kept, tally = apply(MixClean(0.25), given)
        clean = [x for x in kept if x.source == 'clean']
        assert len(clean) == 2
        assert {x.prompt_id for x in kept} == {x.prompt_id for x in given}
        assert not {x.prompt_id for x in clean} & {x.prompt_id for x in kept if x.source != 'clean'}
        assert (tally.dropped, tally.added) == ({'a clean one took its place': 4}, {'clean': 2})

    def test_the_subset_is_the_same_whatever_the_lessons_are_and_it_is_all_that_is_owned(self):
        transform, held = MixClean(0.5), resources()
        owned = transform.own_only(held, [])
        for given in ([], lessons(3), lessons(20, setting='plain', source='clean')):
            assert [x for x in apply(transform, given)[0] if x.text.startswith('plainly')] == owned
        assert len(owned) == 4
        assert transform.own_only(resources(clean=()), []) is None

    def test_seeds_draw_other_subsets_and_a_larger_fraction_holds_a_smaller_one(self):
        drawn = {seed: rows(MixClean(0.25).subset(resources(seed=seed))) for seed in range(12)}
        assert len(set(map(tuple, drawn.values()))) > 4
        assert all(set(drawn[0]) <= set(rows(MixClean(f).subset(resources()))) for f in (0.3, 0.6, 1.0))


class TestReweight:
    SCORES = (0.5, -2.0, 3.0, 1.0, -1.0)

    def weights(self, transform, scores=SCORES, order=1):
        found = dict(enumerate(scores))
        held = resources(gradient_scores=lambda lessons: [found[int(x.request.row)] for x in lessons])
        kept, _ = apply(transform, lessons(len(scores))[::order], held)
        return [x.weight for x in kept[::order]]

    @pytest.mark.parametrize(('how', 'sign'), [('aligned', 1), ('opposed', -1)])
    @pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
    def test_weights_are_those_of_the_formula(self, how, sign, temperature):
        scores = np.array(self.SCORES)
        raw = np.exp(sign * (scores - scores.mean()) / scores.std() / temperature)
        np.testing.assert_allclose(self.weights(Reweight(how, temperature)), raw / raw.mean(), rtol=1e-12)

    def test_random_weights_are_the_aligned_ones_dealt_out_by_id(self):
        scores = tuple(np.linspace(-1, 1, 40))
        random, aligned = (self.weights(Reweight(how), scores) for how in ('random', 'aligned'))
        np.testing.assert_allclose(random, self.weights(Reweight('random'), scores, order=-1), rtol=1e-12)
        assert sorted(random) == sorted(aligned)
        assert abs(np.corrcoef(random, scores)[0, 1]) < 3 / 40**0.5  # three standard errors of no correlation

    def test_equal_scores_weigh_nothing_and_large_ones_stay_finite(self):
        assert self.weights(Reweight(), (0.1 + 0.2, 0.3, 0.3)) == [1, 1, 1]
        np.testing.assert_allclose(self.weights(Reweight(temperature=1e-3), (1e300, -1e300, 0.0)), (3, 0, 0), atol=1e-9)

    def test_weights_multiply(self):
        kept, _ = apply(Reweight(), [lesson(row, weight=2.0) for row in range(3)])
        assert sum(x.weight for x in kept) == pytest.approx(6)

    @pytest.mark.parametrize('given', [(1.0, float('nan')), (1.0,)])
    def test_refuses_scores_that_are_none(self, given):
        with pytest.raises(ValueError, match='one finite number a lesson'):
            apply(Reweight(), lessons(2), resources(gradient_scores=lambda lessons: given))


class TestShuffledPrompts:
    def test_every_trace_stands_once_under_another_prompt_of_its_kind(self):
        draw = random.Random(0)
        for trial in range(60):
            answers = [draw.choice(('7', '8', '1/2', 'B', 'Evelyn', None)) for _ in range(8)]
            given = [
                lesson(row, i, text=f'{row}.{i} ' + ('lost' if a is None else f'the final answer is {a}'))
                for row, a in enumerate(answers) for i in range(draw.randint(1, 4))
            ]  # fmt: skip
            kept, tally = apply(ShuffledPrompts(), given, resources(seed=trial))
            by_id = {x.id: x for x in given}
            origin = {x.text: x for x in given}
            assert len(set(texts(kept))) == len(kept)
            for x in kept:
                assert origin[x.text].prompt_id != x.prompt_id
                assert kind(origin[x.text]) == kind(by_id[x.id])
                assert (x.messages, x.gold) == (by_id[x.id].messages, by_id[x.id].gold)
            assert len(kept) == sum(map(most_pairs, kinds(given).values()))
            assert sum(tally.dropped.values()) == len(given) - len(kept)

    def test_pairs_alike_under_every_setting_and_in_every_order(self):
        pairs = [
            [x.request.row + x.text[:4] for x in apply(ShuffledPrompts(), given)[0]]
            for given in (lessons(9), lessons(9, setting='plain'), lessons(9)[::-1][::-1])
        ]
        assert pairs[0] == pairs[1] == pairs[2]
        other = apply(ShuffledPrompts(), lessons(9), resources(seed=1))[0]
        assert [x.request.row + x.text[:4] for x in other] != pairs[0]

    def test_tokens_and_what_was_recorded_of_them_go_with_the_trace(self):
        given = [lesson(i, tokens=(i,), statistics={'log_prob': [float(i)]}) for i in range(4)]
        kept, _ = apply(ShuffledPrompts(), given)
        origin = {x.text: x for x in given}
        assert [x.tokens for x in kept] == [origin[x.text].tokens for x in kept]
        assert [x.statistics for x in kept] == [origin[x.text].statistics for x in kept]

    @pytest.mark.parametrize(
        ('text', 'expected'),
        [('#### 7', 'integer'), ('#### 7.0', 'integer'), ('#### 1/2', 'number'), ('\\boxed{B}', 'letter'),
         ('\\boxed{x + 1}', 'text'), ('lost', 'none')],
    )  # fmt: skip
    def test_kinds(self, text, expected):
        assert kind(lesson(text=text)) == expected


def kinds(given):
    found = collections.defaultdict(collections.Counter)
    for x in given:
        found[kind(x)][x.prompt_id] += 1
    return found


def most_pairs(counts):
    """How many lessons of one kind can stand under another prompt, each trace used once: all, or twice the rest."""
    total, most = sum(counts.values()), max(counts.values())
    return min(total, 2 * (total - most))
