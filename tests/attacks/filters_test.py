"""Filters against brute force and hand-worked sets."""

from __future__ import annotations

import random

import pytest
from lessons_fakes import WORDS, lesson, lessons, resources, rows

from adx.attacks.filters import BestOfK, CorrectnessFilter, Deduplicate, PerplexityFilter, repetition
from adx.datasets.splits import ngrams as hashed_ngrams
from adx.lessons import Resources


def apply(transform, given, held=None):
    held = resources() if held is None else held
    kept, tally = transform.apply(given, held.only(transform.needs))
    tally.check(len(given), len(kept))
    return kept, tally


def passage(*words):
    return ' '.join(str(word) for word in words)


class TestDeduplicate:
    def test_keeps_the_first_by_id_of_exact_duplicates_on_one_question(self):
        a, b = lesson(0, 0, text='#### 3'), lesson(0, 1, text='#### 3 ')
        other = lesson(1, 0, text='#### 3')  # another question with the same short answer is none
        kept, tally = apply(Deduplicate(), [b, other, a])
        assert kept == [other, a]
        assert tally.dropped == {'exact duplicate': 1}

    def test_finds_passages_that_were_there_before_but_for_case_and_punctuation(self):
        a = lesson(0, text=passage(*range(40)))
        b = lesson(1, text=passage(*range(40)).replace(' ', ', ') + ' end')
        c = lesson(2, text=passage(*range(20), *range(100, 120)))
        kept, tally = apply(Deduplicate(), [a, b, c])
        assert (rows(kept), tally.dropped) == (['0', '2'], {'near-duplicate': 1})
        assert rows(apply(Deduplicate(overlap=0.25), [a, b, c])[0]) == ['0']  # 8 of the 28 runs of c

    def test_is_brute_force_over_the_grams_of_the_splits(self):
        draw = random.Random(0)
        blocks = [passage(*draw.choices(range(10**6), k=14)) for _ in range(6)]
        given = [lesson(i, text=' '.join(draw.choices(blocks, k=3))) for i in range(30)]
        kept, seen = [], set()
        for x in sorted(given, key=lambda x: x.id):
            grams = hashed_ngrams(x.text)
            if len(grams & seen) < 0.5 * len(grams):
                kept.append(x.id)
                seen |= grams
        found, _ = apply(Deduplicate(overlap=0.5, repetition=1.0), given)
        assert 1 < len(kept) < 30
        assert sorted(x.id for x in found) == sorted(kept)

    def test_drops_texts_that_repeat_themselves(self):
        stuck = lesson(0, text=passage(*['so', 'it', 'is', 'that'] * 10))
        assert repetition(stuck.text) == pytest.approx(33 / 37)  # 37 runs of four words, 4 of them different
        assert repetition('a b c') == 0
        assert repetition('a b c d a b c d') == pytest.approx(1 / 5)
        kept, tally = apply(Deduplicate(), [stuck, lesson(1)])
        assert (rows(kept), tally.dropped) == (['1'], {'repeats itself': 1})
        assert len(apply(Deduplicate(repetition=1.0), [stuck])[0]) == 1


class TestPerplexityFilter:
    @pytest.mark.parametrize(('keep', 'expected'), [(0.5, 3), (0.51, 4), (1.0, 6), (1e-9, 1)])
    def test_keeps_the_likeliest_share_rounded_up_in_the_order_given(self, keep, expected):
        given = lessons(6)[::-1]
        kept, tally = apply(PerplexityFilter(keep), given)
        assert rows(kept) == [str(i) for i in reversed(range(expected))]
        assert sum(tally.dropped.values()) == 6 - expected

    def test_what_has_no_likelihood_is_dropped_for_that(self):
        nll = {0: float('nan'), 1: 2.0, 2: float('inf'), 3: 1.0}
        held = resources(nll=lambda lessons: [nll[int(x.request.row)] for x in lessons])
        kept, tally = apply(PerplexityFilter(0.25), lessons(4), held)
        assert rows(kept) == ['3']
        assert tally.dropped == {'NLL is not finite': 2, 'unlikely': 1}


def test_the_correctness_filter_keeps_what_is_right():
    given = [lesson(0), lesson(1, text='#### 99'), lesson(2, gold=''), lesson(3, text='lost'), lesson(4)]
    given[2] = given[2].__class__(given[2].id, given[2].messages, given[2].text)  # gold is not known
    kept, tally = apply(CorrectnessFilter(), given)
    assert rows(kept) == ['0', '4']
    assert tally.dropped == {'no gold answer': 1, 'wrong': 2}


def slow(text, gold):
    """Runs out of time over a 9."""
    if text.endswith('9'):
        raise TimeoutError
    return text == f'#### {gold}'


def test_what_a_grader_has_no_time_for_is_wrong_and_counted():
    held = resources(grade=slow)
    given = [lesson(row, text=f'#### {answer}', gold='7') for row, answer in enumerate((7, 8, 9))]
    kept, tally = apply(CorrectnessFilter(), given, held)
    assert rows(kept) == ['0']
    assert tally.dropped == {'wrong': 1, 'the grader ran out of time': 1}
    kept, tally = apply(BestOfK(2), [*samples(9, 7), *samples(9, 8, row=1), *samples(8, 8, row=2)], held)
    assert [(x.request.row, x.request.sample) for x in kept] == [('0', 1)]
    assert tally.dropped == {
        'another sample was chosen': 1, 'the grader ran out of time': 2, 'no sample of its prompt is right': 2
    }  # fmt: skip


def samples(*answers, row=0):
    return [lesson(row, i, text='lost' if a is None else f'#### {a}', gold='7') for i, a in enumerate(answers)]


class TestBestOfK:
    @pytest.mark.parametrize(
        ('answers', 'right', 'commonest'),
        [
            ((7, 8, 8, 7.0), 0, 0),
            ((8, 7, 8, 7), 1, 0),
            ((8, 9, 9, 7), 3, 1),
            ((8, None, None, 9), None, 0),
            ((None, None, None, None), None, None),
            ((8, 8, 8, 8, 7), None, 0),
        ],
    )
    def test_keeps_the_first_that_is_right_or_states_the_commonest_answer(self, answers, right, commonest):
        for how, expected in (('verifier', right), ('self_consistency', commonest)):
            kept, tally = apply(BestOfK(4, how), samples(*answers))
            assert [x.request.sample for x in kept] == ([] if expected is None else [expected])
            assert tally.dropped.get('sampled beyond k', 0) == max(0, len(answers) - 4)

    def test_prompts_do_not_vote_for_each_other(self):
        kept, _ = apply(BestOfK(3, 'self_consistency'), samples(1, 2, 2) + samples(1, 1, 2, row=1))
        assert [(x.request.row, x.request.sample) for x in kept] == [('0', 1), ('1', 0)]

    def test_is_brute_force_on_random_votes(self):
        draw = random.Random(1)
        for _ in range(50):
            answers = [draw.choice((1, 2, 3, None)) for _ in range(5)]
            stated = [a for a in answers if a is not None]
            kept, _ = apply(BestOfK(5, 'self_consistency'), samples(*answers))
            best = max(stated, key=lambda a: (stated.count(a), -stated.index(a)), default=None)
            assert [x.request.sample for x in kept] == ([] if best is None else [answers.index(best)])

    def test_only_the_verifier_needs_one(self):
        assert BestOfK().needs == ('grade',)
        assert BestOfK(how='self_consistency').apply(samples(*[1] * 4), Resources())[0]

    def test_refuses_traces_that_were_drawn_for_another_attack(self):
        with pytest.raises(ValueError, match=r'BestOfK.k = 4 and the lessons have 2 samples a prompt'):
            apply(BestOfK(), lessons(3, 2))


def test_words_of_the_fakes_are_distinct():
    assert len(set(WORDS)) == len(WORDS)
