"""Quality of traces against brute force, and criteria whose intervals cover what they should."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import types

import numpy as np
import pytest
from scipy import stats

if importlib.util.find_spec('adx.statistics') is None:  # the three functions that quality.py asks of it

    def _t_interval(x, level=0.95):
        x = np.asarray(x, float)
        half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
        return types.SimpleNamespace(value=x.mean(), low=x.mean() - half, high=x.mean() + half)

    def _paired_upper(a, b, level=0.95):
        return _t_interval(np.asarray(a, float) - np.asarray(b, float), 2 * level - 1).high

    def _binomial_interval(k, n, level=0.95):
        return stats.binomtest(k, n).proportion_ci(level)

    sys.modules['adx.statistics'] = types.ModuleType('adx.statistics')
    vars(sys.modules['adx.statistics']).update(
        t_interval=_t_interval, paired_upper=_paired_upper, binomial_interval=_binomial_interval
    )

from adx.answers import Reader
from adx.datasets import Gsm8k, Mmlu
from adx.errors import InputError
from adx.quality import Measures, audit, divergence, eligibility, forced_loss, measure, per_prompt, repetition
from adx.reporting.rows import is_eligible
from adx.types import Trace

READER = Reader(Gsm8k().grade)
TEXTS = ['3 + 4 = 7\n#### 7', '3 + 4 = 8\n#### 8', 'It is 7', '#### 8\nNo.\n#### 7', 'The answer is 7.\n#### 7 eggs, 3']


def trace(row, text, arm='plain', stop='eos', tokens=(1, 2, 3), **more):
    reasoning = text.partition('####')[0]
    given = {'gold': '7', 'statistics': {'kl': [0.5] * len(tokens)}} | more
    return Trace(f'gsm8k/test/{row}/0/{arm}', (), text, reasoning, '', tuple(tokens), stop, 3, {}, {}, 0, **given)


def traces(arm='plain', texts=TEXTS, **more):
    return [trace(f'{row:04d}', text, arm, **more) for row, text in enumerate(texts)]


def score(traces):
    return [(2.0 * len(trace.text), len(trace.text)) for trace in traces]


MEASURES = Measures(READER, lambda text: len(text.split()), score)


class TestMeasure:
    def test_counts_what_the_texts_hold(self):
        arm = traces()
        arm[2] = dataclasses.replace(arm[2], stop='length', tokens=(1, 1, 1, 1, 1, 1))
        arm[2] = dataclasses.replace(arm[2], statistics={'kl': [2.0] * 6})
        quality = measure(arm[::-1], {arm[0].request_id: True, arm[3].request_id: True}, MEASURES)
        assert quality.correct == (True, False, False, True, True)
        assert quality.lenient == (True, False, True, True, False)
        assert quality.forced == (True, False, False, True, False)
        assert (quality.unparsed, quality.several, quality.first_differs) == (1 / 5, 2 / 5, 1 / 5)
        assert quality.finished == 4 / 5
        assert quality.tokens == (4 * 3 + 6) / 5
        assert quality.reasoning_tokens == (5 + 5 + 3 + 0 + 4) / 5
        assert quality.repetition == pytest.approx(2 / 3 / 5)
        assert quality.true_steps == 1 / 2
        assert quality.nll == 2
        assert quality.kl_mean == pytest.approx((12 * 0.5 + 6 * 2.0) / 18)
        assert quality.kl_95 == 2.0
        assert quality.by_prompt['finished'] == (1, 1, 0, 1, 1)

    def test_takes_the_grammar_and_slices_that_it_is_given(self):
        mine = dataclasses.replace(
            MEASURES, statements=lambda text: [(text, 'No' in text)], slices=lambda asked: {'kind': ('x',) * len(asked)}
        )
        quality = measure(traces(), {}, mine)
        assert quality.true_steps == 1 / 5
        assert quality.slices == {'kind': ('x',) * 5}

    def test_a_grader_that_runs_out_of_time_is_wrong_and_counted(self):
        def grade(text, gold):
            if 'No' in text:
                raise TimeoutError
            return True

        quality = measure(traces(), {}, dataclasses.replace(MEASURES, reader=Reader(grade)))
        assert quality.correct == (True, True, True, False, True)
        assert quality.timed_out == 1 / 5

    def test_letters_are_read_as_letters(self):
        texts = ['The answer is (B) because A is wrong.', 'B', 'nothing', 'The answer is A. No, the answer is B.']
        quality = measure(traces(texts=texts, gold='B'), {}, dataclasses.replace(MEASURES, reader=Reader(Mmlu().grade)))
        assert quality.correct == quality.lenient == (True, True, False, True)
        assert (quality.unparsed, quality.first_differs) == (1 / 4, 1 / 4)

    @pytest.mark.parametrize(
        ('arm', 'message'),
        [
            ([], 'there are no traces to measure'),
            ([trace('1', 'x', gold=None)], 'gsm8k/test/1/0/plain has no gold answer'),
            ([trace('1', 'x'), trace('1', 'x', 'poe')], "arms \\['plain', 'poe'\\] are mixed"),
            ([trace('1', 'x'), trace('1', 'y')], 'another sample of a prompt'),
        ],
    )
    def test_refuses_what_cannot_be_measured(self, arm, message):
        with pytest.raises(InputError, match=message):
            measure(arm, {}, MEASURES)

    def test_repetition_is_that_of_brute_force(self):
        draw = np.random.default_rng(0)
        for length in (0, 3, 4, 50):
            tokens = draw.integers(0, 2, length).tolist()
            grams = [tokens[i : i + 4] for i in range(max(0, length - 3))]
            seen = sum(gram in grams[:i] for i, gram in enumerate(grams))
            assert repetition(tokens) == pytest.approx(seen / len(grams) if grams else 0)
        assert repetition([5] * 10) == pytest.approx(6 / 7)

    def test_divergence_without_a_record_is_unknown(self):
        assert all(map(math.isnan, divergence([trace('1', 'x'), trace('2', 'x', statistics={})])))


def arms(count=600, seed=0, **changes):
    """(defended, clean): Quality of equal arms over `count` prompts but for `changes` of the defended by_prompt."""
    draw = np.random.default_rng(seed)
    tokens, statements = draw.integers(50, 200, count), draw.integers(1, 9, count)
    numbers = {
        'tokens': tokens, 'reasoning_tokens': tokens - 10, 'finished': np.ones(count),
        'repetition': draw.uniform(0, 0.3, count), 'statements': statements, 'true_statements': statements,
        'nats': 2.0 * tokens, 'scored_tokens': tokens,
    }  # fmt: skip
    right = tuple(draw.uniform(size=count) < 0.8)
    base = dataclasses.replace(measure(traces(), {}, MEASURES), correct=right, forced=right)
    made = [base, base]
    for i, arm in enumerate((numbers | {n: f(numbers) for n, f in changes.items()}, numbers)):
        made[i] = dataclasses.replace(base, by_prompt={name: tuple(map(float, xs)) for name, xs in arm.items()})
    return made


def failing(defended, clean):
    return [criterion.name for criterion in eligibility([defended], [clean]) if not criterion.holds]


class TestEligibility:
    def test_an_arm_is_eligible_against_itself(self):
        defended, clean = arms()
        assert failing(defended, clean) == []
        by_name = {criterion.name: criterion for criterion in eligibility([defended], [clean])}
        assert by_name['tokens'][1:4] == (1, 1, 1)
        assert by_name['perplexity'][1:4] == (1, 1, 1)
        assert by_name['accuracy_loss'].high == pytest.approx(1 - 0.05 ** (1 / 600))  # none of 600 changed

    def test_one_changed_prompt_bounds_no_closer_than_none(self):
        defended, clean = arms(count=320)
        unfinished = dataclasses.replace(
            defended, by_prompt=defended.by_prompt | {'finished': (0.0, *defended.by_prompt['finished'][1:])}
        )
        none, one = (
            next(c for c in eligibility([arm], [clean]) if c.name == 'finished') for arm in (defended, unfinished)
        )
        assert one.low < none.low < 0
        assert none.holds
        assert not one.holds

    def test_too_few_prompts_establish_nothing(self):
        defended, clean = arms(count=50)
        wanted = {'accuracy_loss', 'forced_accuracy_loss', 'finished', 'repetition', 'true_steps'}
        assert {*failing(defended, clean)} == wanted
        with pytest.raises(InputError, match='at least 2'):
            eligibility(*([one] for one in arms(count=1)))

    @pytest.mark.parametrize(
        ('changes', 'failed'),
        [
            ({'tokens': lambda x: 1.3 * x['tokens']}, ['tokens']),
            ({'tokens': lambda x: 0.7 * x['tokens']}, ['tokens']),
            ({'reasoning_tokens': lambda x: 0.7 * x['reasoning_tokens']}, ['retention']),
            ({'reasoning_tokens': lambda x: 0 * x['tokens']}, ['retention']),
            ({'reasoning_tokens': lambda x: 2.0 * x['reasoning_tokens']}, []),
            ({'finished': lambda x: np.arange(600) >= 12}, ['finished']),
            ({'repetition': lambda x: x['repetition'] + 0.02}, ['repetition']),
            ({'nats': lambda x: 2.3 * x['tokens']}, ['perplexity']),
            ({'true_statements': lambda x: 0.97 * x['statements']}, ['true_steps']),
            ({'statements': lambda x: 0 * x['statements']}, ['true_steps']),
        ],
    )
    def test_each_criterion_fails_alone(self, changes, failed):
        assert failing(*arms(**changes)) == failed

    def test_accuracy_is_paired_by_prompt(self):
        defended, clean = arms(count=6000)
        right = np.array(clean.correct)
        right[np.flatnonzero(right)[:30]] = False  # half a point, 30 discordant prompts
        defended = dataclasses.replace(defended, correct=tuple(right))
        loss = eligibility([defended], [clean])[0]
        lost = np.arange(6000) < 30
        half = stats.t.ppf(0.95, 5999) * lost.std(ddof=1) / 6000**0.5
        np.testing.assert_allclose(loss[1:4], (0.005, 0.005 - half, 0.005 + half), rtol=1e-9)
        assert loss.holds
        right[np.flatnonzero(right)[:30]] = False
        assert not eligibility([dataclasses.replace(defended, correct=tuple(right))], [clean])[0].holds

    def test_prompts_count_once_by_their_mean_over_seeds(self):
        """Half of 30 losses on one seed are won back on another: the interval is that of the means by prompt."""
        defended, clean = arms(count=2000)
        changed = {seed: np.array(clean.correct) for seed in (0, 1)}
        right = np.flatnonzero(clean.correct)[:30]
        changed[0][right], changed[1][right[:15]] = False, False
        sides = [
            [dataclasses.replace(defended, seed=seed, correct=tuple(correct)) for seed, correct in changed.items()],
            [dataclasses.replace(clean, seed=seed) for seed in changed],
        ]
        loss, *others = eligibility(*sides)
        lost = np.repeat([1.0, 0.5, 0.0], [15, 15, 1970])
        half = stats.t.ppf(0.95, 1999) * lost.std(ddof=1) / 2000**0.5
        np.testing.assert_allclose(loss[1:4], (22.5 / 2000, 22.5 / 2000 - half, 22.5 / 2000 + half), rtol=1e-9)
        assert not loss.holds
        assert all(criterion.holds for criterion in others)
        once = eligibility([sides[0][0]], [sides[1][0]])[0]
        assert loss.high - loss.low < once.high - once.low
        with pytest.raises(InputError, match='other prompts or seeds'):
            eligibility(sides[0], sides[1][:1])

    def test_seeds_that_are_asked_other_prompts_count_each_of_them(self):
        """Two seeds of 2,000 prompts each, 30 and 15 lost: 4,000 independent ones."""
        defended, clean = arms(count=2000)
        sides = [], []
        for seed, lost in enumerate((30, 15)):
            right = np.array(clean.correct)
            right[np.flatnonzero(right)[:lost]] = False
            own = {'seed': seed, 'prompts': f'those of {seed}'}
            sides[0].append(dataclasses.replace(defended, correct=tuple(right), **own))
            sides[1].append(dataclasses.replace(clean, **own))
        loss, *others = eligibility(*sides)
        lost = np.repeat([1.0, 0.0], [45, 3955])
        half = stats.t.ppf(0.95, 3999) * lost.std(ddof=1) / 4000**0.5
        np.testing.assert_allclose(loss[1:3], (45 / 4000, 45 / 4000 - half), rtol=1e-9)
        assert all(criterion.holds for criterion in others)
        with pytest.raises(InputError, match='other prompts or seeds'):
            eligibility(sides[0], [dataclasses.replace(one, prompts='x') for one in sides[1]])

    def test_without_statements_in_either_arm_nothing_changed(self):
        defended, clean = arms()
        none = {'statements': (0.0,) * 600, 'true_statements': (0.0,) * 600}
        bare = [dataclasses.replace(arm, by_prompt=arm.by_prompt | none) for arm in (defended, clean)]
        criterion = eligibility(*([one] for one in bare))[-1]
        assert criterion.holds
        assert math.isnan(criterion.value)
        assert criterion.is_unknown
        lost = eligibility([bare[0]], [clean])[-1]  # all that the clean traces state
        assert (lost.value, lost.holds, lost.is_unknown) == (-1.0, False, False)
        assert is_eligible('poe', {'poe': [lost]}) is False
        new = eligibility([defended], [bare[1]])[-1]  # against nothing
        assert (new.holds, new.is_unknown) == (False, True)
        assert is_eligible('poe', {'poe': [new]}) is None

    def test_arms_of_other_prompts_are_not_compared(self):
        defended, clean = arms()
        with pytest.raises(InputError, match='on other prompts or seeds'):
            eligibility([dataclasses.replace(defended, prompts='x')], [clean])

    def test_intervals_of_ratios_and_shares_cover_the_truth_at_their_level(self):
        """600 draws of 200 prompts whose steps are right or wrong together; 3 standard errors of a rate are 0.037."""
        draw, hits = np.random.default_rng(1), {'tokens': 0, 'true_steps': 0, 'perplexity': 0}
        truth = {'tokens': 1.1, 'true_steps': -0.1, 'perplexity': math.exp(0.1)}
        defended, clean = arms(count=200)
        for _ in range(600):
            made = []
            for mean, scale, loss in ((0.8, 1.1, 2.1), (0.9, 1.0, 2.0)):
                statements = draw.integers(1, 9, 200)
                tokens = draw.gamma(4, 25, 200)
                own = {
                    'tokens': scale * draw.gamma(4, 25, 200), 'statements': statements,
                    'true_statements': statements * draw.beta(mean / 2, (1 - mean) / 2, 200),
                    'nats': tokens * draw.normal(loss, 0.5, 200), 'scored_tokens': tokens,
                }  # fmt: skip
                made.append({name: tuple(map(float, xs)) for name, xs in own.items()})
            pair = zip((defended, clean), made, strict=True)
            pair = [dataclasses.replace(arm, by_prompt=arm.by_prompt | own) for arm, own in pair]
            for criterion in eligibility(*([one] for one in pair)):
                if criterion.name in hits:
                    hits[criterion.name] += criterion.low <= truth[criterion.name] <= criterion.high
        for name, count in hits.items():
            assert abs(count / 600 - 0.9) < 0.037, name


def test_an_audit_is_a_random_sample_with_what_was_extracted():
    many = [*traces(), *[trace(f'{row:04d}', TEXTS[0]) for row in range(5, 300)]]
    rows = audit(many, READER, seed=3)
    assert rows == audit(many[::-1], READER, seed=3) != audit(many, READER, seed=4)
    assert len({row['id'] for row in rows}) == 100
    rows = audit(traces(), READER)
    assert [row['strict'] for row in rows] == ['7', '8', None, '7', '7 eggs, 3']
    assert [row['lenient'] for row in rows] == ['7', '8', '7', '7', '3']
    assert [row['right'] for row in rows] == [True, False, False, True, True]
    with pytest.raises(InputError, match='no traces'):
        audit([], READER)


def test_who_cannot_be_forced_loses_nothing_that_is_known():
    """Of five right answers of the clean arm three or two stay right when forced: below half nothing is measured."""
    measured = measure(traces(), {}, MEASURES)

    def arm(forced):
        right = (True,) * forced + (False,) * (5 - forced)
        return per_prompt([dataclasses.replace(measured, correct=(True,) * 5, forced=right)])

    assert forced_loss(arm(3), arm(0)).value == pytest.approx(0.6)
    unknown = forced_loss(arm(2), arm(0))
    assert math.isnan(unknown.value)
    assert not unknown.holds
