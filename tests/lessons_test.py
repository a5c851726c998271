"""Lessons: what a trace becomes, what is dropped and counted, and sets that nothing can be concluded from."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lessons_fakes import lesson, lessons, resources

from adx.datasets import splits
from adx.errors import InputError
from adx.lessons import (
    Tally,
    by_prompt,
    check_apart,
    finished,
    from_trace,
    prompts_of,
    question,
    shuffled,
    sort_out,
    stated,
    tallied,
)
from adx.texts import canonical as normalise
from adx.texts import ngrams
from adx.types import Trace

TRACE = Trace(
    'gsm8k/train/7/2/poe', ({'role': 'user', 'content': 'How many?'},), 'so\n#### 3', 'so\n', '#### 3', (4, 5, 2),
    stop='eos', prompt_tokens=9, defence={'type': 'undefended'}, sampling={}, seed=0, gold='3', customer='lab',
    statistics={'top_ids': [[1], [2], [3]]},
)  # fmt: skip


class TestFromTrace:
    def test_takes_what_a_student_learns_and_gold_only_where_it_is_known(self):
        found = from_trace(TRACE)
        assert (found.text, found.tokens, found.statistics) == (TRACE.text, TRACE.tokens, TRACE.statistics)
        assert (found.gold, from_trace(TRACE, knows_gold=True).gold) == (None, '3')
        assert (found.prompt_id, found.account, found.question) == ('gsm8k/train/7', 'lab', 'How many?')
        assert found.prompt.row == '7'

    def test_traces_of_two_defences_differ_by_more_than_the_name_of_their_arm(self):
        other = dataclasses.replace(TRACE, defence={'type': 'budget'})
        assert from_trace(TRACE).defence != from_trace(other).defence

    def test_refuses_a_source_by_name(self):
        with pytest.raises(ValueError, match=r"source = 'defend' is unknown.*Did you mean 'defended'"):
            from_trace(TRACE, 'defend')


def test_other_words_leave_the_teachers_tokens_behind_and_the_same_words_do_not():
    one = from_trace(TRACE)
    assert one.rewritten(one.text) is one
    other = one.rewritten('#### 4')
    assert (other.text, other.tokens, other.statistics) == ('#### 4', (), {})


def test_the_question_is_what_the_user_said_last():
    chat = ({'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'A?'},
            {'role': 'assistant', 'content': 'a'}, {'role': 'user', 'content': 'B?'})  # fmt: skip
    assert question(chat) == 'B?'
    assert question(chat[:1]) == 'Be kind.'


def test_a_letter_is_read_where_the_gold_answer_is_one():
    text = 'The answer is (B) because it is.'
    assert stated(lesson(text=text, gold='C')) == 'B'
    assert stated(lesson(text='no idea')) is None


def test_prompts_stand_by_id_and_samples_by_number():
    given = lessons(3, 12)
    groups = by_prompt(reversed(given))
    assert list(groups) == ['fake/train/0', 'fake/train/1', 'fake/train/2']
    assert [x.request.sample for x in groups['fake/train/1']] == list(range(12))
    assert [p.row for p in prompts_of(given, [given[-1].prompt])] == ['2', '0', '1']


def test_an_order_is_drawn_from_names_alone():
    names = [str(i) for i in range(30)]
    drawn = shuffled(names, 0, 'p', str)
    assert drawn == shuffled(reversed(names), 0, 'p', str)
    assert [x for x in drawn if x in names[:9]] == shuffled(names[:9], 0, 'p', str)
    assert sorted(drawn) == sorted(names)
    assert len({tuple(shuffled(names, *other, str)) for other in ((0, 'p'), (1, 'p'), (0, 'q'))}) == 3


def test_text_is_normalised_and_cut_as_the_splits_do_it():
    text = 'Ｊane’s  12 eggs, ' * 9
    assert normalise(text) == splits.normalise(text)
    assert set(map(hash, ngrams(normalise(text).split(), 13))) == splits.ngrams(text)
    assert ngrams(['a', 'b'], 4) == [('a', 'b')]
    assert ngrams([], 4) == []
    assert normalise('?!') == '?!'


class TestFinished:
    GIVEN = (
        lesson(0), lesson(1, text=' \n'), lesson(2, stop='length'), lesson(3, text='who knows'),
        lesson(4, stop='stop_string'), lesson(5, text='', stop='length'),
    )  # fmt: skip

    def test_drops_what_is_empty_or_did_not_end(self):
        kept, tally = finished(self.GIVEN)
        assert kept == [self.GIVEN[0], self.GIVEN[3]]
        assert tally == Tally('finished', 6, {'empty': 2, 'truncated': 2})
        tally.check(6, 2)

    def test_drops_what_states_no_answer_where_asked(self):
        kept, tally = finished(self.GIVEN, answered=True)
        assert kept == [self.GIVEN[0]]
        assert tally.dropped == {'empty': 2, 'states no answer': 1, 'truncated': 2}


def test_what_a_stop_string_ended_is_a_whole_text_that_is_spelt_anew():
    served = Trace(
        'fake/train/0/0/poe', ({'role': 'user', 'content': 'x'},), 'so 3', 'so 3', '', (5, 6, 7), 'stop_string', 3, {},
        {}, seed=0, statistics={'kl': [0.1] * 3},
    )  # fmt: skip
    found = from_trace(served)
    assert (found.text, found.stop, found.tokens, found.statistics) == ('so 3', 'eos', (), {})
    assert finished([found])[0] == [found]


def test_tallies_are_summed_by_reason():
    tallies = [Tally('a', 5, {'empty': 2}), Tally('b', 3, {'empty': 1, 'odd': 1}, refused={'late': 4}, destroyed=1)]
    assert tallied([*tallies, Tally('c', 1)]) == {'destroyed': 1, 'empty': 3, 'late': 4, 'odd': 1}


class TestTally:
    def test_counts_the_kept_the_changed_and_the_destroyed(self):
        given = lessons(4)
        verdicts = dict(zip(given_ids(given), [given[0], given[1].rewritten('x'), 'bad', 'worse'], strict=True))
        kept, tally = sort_out('step', given, lambda x: verdicts[x.id], destroyed='bad')
        assert [x.text for x in kept] == [given[0].text, 'x']
        assert tally == Tally('step', 4, {'bad': 1, 'worse': 1}, changed={'rewritten': 1}, destroyed=1)
        assert (tally.kept, tally.returned) == (2, 2)

    @pytest.mark.parametrize(
        ('tally', 'given', 'returned'),
        [
            (Tally('s', 4, {'bad': 1}), 4, 4),
            (Tally('s', 3, {'bad': 1}), 4, 2),
            (Tally('s', 4, {'bad': 1}, {'new': 1}), 4, 3),
            (Tally('s', 1, {'bad': 2}, {'new': 2}), 1, 1),
            (Tally('s', 2, changed={'rewritten': 3}), 2, 2),
        ],
    )
    def test_that_does_not_add_up_is_refused(self, tally, given, returned):
        with pytest.raises(ValueError, match=r's was given .* lessons and returned'):
            tally.check(given, returned)


def given_ids(given):
    return [x.id for x in given]


class TestCheckApart:
    def test_accepts_one_defence_with_clean_and_own_lessons_beside_it(self):
        clean = lessons(3, setting='plain', source='clean', defence='0')
        own = lessons(3, setting='own', source='own')
        check_apart([*lessons(6, defence='a'), *clean, *own], [])
        both = [lesson(0, defence='a', account='x'), lesson(1, defence='b', account='y')]
        check_apart(both, [])  # each account has its own terms

    @pytest.mark.parametrize(
        ('given', 'message'),
        [
            ([], 'the set of lessons is empty'),
            ([lesson(0), lesson(1), lesson(0)], 'fake/train/0/0/poe is there 2 times'),
            ([lesson(0), lesson(1, setting='ads')], r"several defences are mixed: \['ads .no hash.', 'poe"),
            ([lesson(0, defence='a'), lesson(1, defence='b')], r"mixed: \['poe \(a\)', 'poe \(b\)'\]"),
            ([lesson(0, defence='a', account='x'), lesson(1, account='x')], "to account 'x' are mixed"),
        ],
    )
    def test_refuses_in_one_line(self, given, message):
        with pytest.raises(InputError, match=message) as error:
            check_apart(given, [])
        assert '\n' not in str(error.value)

    def test_refuses_prompts_that_are_measured_on_whatever_their_case_and_punctuation(self):
        test = lesson(3).prompt
        shouted = dataclasses.replace(test, split='test', row='99', messages=(
            {'role': 'user', 'content': f'  {test.messages[0]["content"].upper()}!'},))  # fmt: skip
        check_apart(lessons(3), [shouted])
        with pytest.raises(InputError, match=r'1 lessons have prompts.*first fake/train/3 as fake/test/99'):
            check_apart(lessons(6), [shouted])


def test_resources_are_handed_out_by_name_and_missed_by_name():
    narrow = resources(seed=7).only(('nll', 'own'))
    held = {f.name for f in dataclasses.fields(narrow) if callable(getattr(narrow, f.name))}
    assert held == {'nll', 'own'}
    assert (narrow.clean, narrow.seed, narrow.own_name) == (None, 7, 'tiny')
    with pytest.raises(ValueError, match=r'reweight needs resources.clean and the attacker has none'):
        narrow.need('clean', 'reweight')


def test_a_tally_is_plain_data():
    json.dumps(dataclasses.asdict(finished(lessons())[1]))
