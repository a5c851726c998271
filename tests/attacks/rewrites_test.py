"""Rewrites: whose words come out, with which answer, and what is dropped."""

from __future__ import annotations

import dataclasses

import pytest
from lessons_fakes import lesson, lessons, resources, rows, texts

from adx.attacks.rewrites import AnswerOnly, Canonicalise, Paraphrase, Reconstruct, last_lines


def apply(transform, given, held=None):
    held = resources() if held is None else held
    kept, tally = transform.apply(given, held.only(transform.needs))
    tally.check(len(given), len(kept))
    return kept, tally


SERVED = {'tokens': (4, 2), 'statistics': {'log_prob': [0.0, 0.0]}}


class TestParaphrase:
    def test_puts_every_trace_in_words_of_the_own_model(self):
        given = lessons(3, **SERVED)
        kept, tally = apply(Paraphrase(), given)
        assert texts(kept) == [f'my words 0: {x.text}' for x in given]
        assert all((x.tokens, x.statistics) == ((), {}) for x in kept)
        assert tally.changed == {'rewritten': 3}

    def test_hands_the_instruction_over(self):
        seen = []
        held = resources(own=lambda texts, instruction, samples: seen.append((instruction, samples)) or [['#### 10']])
        apply(Paraphrase(instruction='Say it again.'), [lesson(0)], held)
        assert seen == [('Say it again.', 1)]

    def test_drops_what_then_states_another_answer_or_nothing(self):
        said = iter([['#### 10.0'], ['#### 99'], ['no end'], ['  '], []])
        held = resources(own=lambda texts, instruction, samples: [next(said) for _ in texts])
        kept, tally = apply(Paraphrase(), lessons(5), held)
        assert rows(kept) == ['0']
        assert tally.dropped == {'nothing was written': 2, 'states another answer': 2}

    def test_any_answer_will_do_where_asked_or_where_there_was_none(self):
        held = resources(own=lambda texts, instruction, samples: [['#### 99']] * len(texts))
        assert rows(apply(Paraphrase(keeps_answer=False), lessons(2), held)[0]) == ['0', '1']
        assert rows(apply(Paraphrase(), [lesson(0), lesson(1, text='lost')], held)[0]) == ['1']

    def test_without_a_teacher_the_own_model_solves_the_prompts(self):
        prompts = [x.prompt for x in lessons(2)]
        found = Paraphrase().own_only(resources(), prompts)
        assert texts(found) == [f'my words 0: {x.question}' for x in lessons(2)]
        assert {x.source for x in found} == {'own'}
        assert Paraphrase().own_only(resources(), []) is None


def test_canonicalise_counts_what_does_not_parse_as_destroyed():
    given = lessons(10, **SERVED)
    kept, tally = apply(Canonicalise(), given)
    assert rows(kept) == [str(i) for i in range(10) if i != 9]  # row 9 is violet
    assert texts(kept)[0] == f'canonical {given[0].question}'
    assert (tally.dropped, tally.destroyed, tally.changed) == ({'does not parse': 1}, 1, {'rewritten': 9})
    assert Canonicalise().own_only(resources(), [lesson(0).prompt]) is None


def test_a_trace_that_is_canonical_already_stays_the_teachers():
    given = [lesson(0, **SERVED)]
    kept, tally = apply(Canonicalise(), given, resources(canonicalise=lambda question, text: text))
    assert (kept, tally.changed) == (given, {})


class TestAnswerOnly:
    @pytest.mark.parametrize(
        ('text', 'left'),
        [
            ('first\nthen\n#### 7', '#### 7'),
            ('first\n#### 7\n', '#### 7\n'),
            ('\\boxed{3}\nno: \\boxed{4}\nthat is it', 'no: \\boxed{4}\nthat is it'),
            ('all in one line, the answer is 7', 'all in one line, the answer is 7'),
            ('\\boxed{\n7\n}', '\\boxed{\n7\n}'),
        ],
    )
    def test_keeps_the_last_lines_from_which_the_answer_is_read(self, text, left):
        assert last_lines(lesson(text=text)) == left

    def test_drops_what_states_none(self):
        given = [lesson(0, **SERVED), lesson(1, text='lost'), lesson(2, text='#### 3', **SERVED)]
        kept, tally = apply(AnswerOnly(), given)
        assert texts(kept) == ['#### 10', '#### 3']
        assert (kept[0].tokens, kept[1].tokens) == ((), (4, 2))
        assert (tally.dropped, tally.changed) == ({'states no answer': 1}, {'rewritten': 1})


class TestReconstruct:
    @staticmethod
    def held(**changes):
        """An own model that knows nothing but what it is told."""

        def own(texts, instruction, samples):
            return [[f'new\n#### {x.rpartition("Answer: ")[2]}'] for x in texts]

        return resources(own=own, **changes)

    def test_nothing_of_the_trace_is_left_but_its_answer(self):
        given = [lesson(0, text='secret steps\n#### 5'), lesson(1, text='lost')]
        kept, tally = apply(Reconstruct(), given, self.held())
        assert texts(kept) == ['new\n#### 5']
        assert tally.dropped == {'states no answer': 1}

    def test_the_gold_answer_needs_a_verifier_and_mends_what_was_wrong(self):
        transform = Reconstruct(answer='gold')
        assert texts(apply(transform, [lesson(0, text='#### 5')], self.held())[0]) == ['new\n#### 10']
        with pytest.raises(ValueError, match=r'reconstruct needs resources.grade'):
            apply(transform, [], self.held(grade=None))

    def test_what_ends_in_another_answer_is_dropped(self):
        held = resources(own=lambda texts, instruction, samples: [['#### 1']] * len(texts))
        assert apply(Reconstruct(), lessons(2), held)[1].dropped == {'states another answer': 2}

    def test_without_a_teacher_it_writes_from_the_gold_answers_that_are_known(self):
        prompts = [lesson(0).prompt, dataclasses.replace(lesson(1).prompt, answer=None)]
        found = Reconstruct().own_only(self.held(), prompts)
        assert [(x.id, x.text, x.source) for x in found] == [('fake/train/0/0/own', 'new\n#### 10', 'own')]
        assert Reconstruct().own_only(self.held(), prompts[1:]) is None
