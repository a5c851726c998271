"""Queries: what the teacher is asked, and which answers an attacker ends up with."""

from __future__ import annotations

import collections
import dataclasses

import pytest
from lessons_fakes import lesson, lessons, query, resources, rows, texts

from adx.attacks.queries import INSTRUCTIONS, Accounts, AugmentQueries, Prefill
from adx.lessons import question


def apply(transform, given, held=None):
    held = resources() if held is None else held
    kept, tally = transform.apply(given, dataclasses.replace(held.only(transform.needs), prompts=held.prompts))
    tally.check(len(given), len(kept))
    return kept, tally


class Asked:
    """A teacher that remembers what it was asked."""

    def __init__(self, answer=query):
        self.answer, self.calls = answer, []

    def __call__(self, prompts, samples, prefill):
        self.calls.append((prompts, samples, prefill))
        return self.answer(prompts, samples, prefill)


class TestPrefill:
    def test_asks_each_prompt_again_with_the_teachers_first_words(self):
        asked = Asked()
        kept, tally = apply(Prefill('Sure', samples=2), lessons(3, 2), resources(query=asked))
        [(prompts, samples, prefill)] = asked.calls
        assert ([p.row for p in prompts], samples, prefill) == (['0', '1', '2'], 2, 'Sure')
        assert all(text.startswith('Sure') for text in texts(kept))
        assert (len(kept), tally.dropped, tally.added) == (6, {'asked again': 6}, {'prefilled': 6})

    def test_no_first_words_leave_the_teacher_free(self):
        asked = Asked()
        Prefill('').check()
        kept, _ = apply(Prefill('', samples=2), lessons(3), resources(query=asked))
        assert [call[1:] for call in asked.calls] == [(2, '')]
        assert len(kept) == 6
        with pytest.raises(ValueError, match=r'Prefill\.text'):
            Prefill('  ').check()

    def test_asks_what_was_sent_also_where_nothing_usable_came_back(self):
        sent = tuple(x.prompt for x in lessons(5))
        assert rows(apply(Prefill(), lessons(2), resources(prompts=sent))[0]) == ['0', '1', '2', '3', '4']

    def test_counts_what_was_not_answered_and_refuses_what_was_not_asked(self):
        short = resources(query=lambda *asked: query(*asked)[1:])
        assert apply(Prefill(), lessons(3), short)[1].refused == {'the teacher did not answer': 1}
        with pytest.raises(ValueError, match='answered fake/train/9/0/poe, which is none of the 3 prompts'):
            apply(Prefill(), lessons(3), resources(query=lambda *asked: [lesson(9)]))


class TestAugmentQueries:
    def test_new_prompts_are_answered_beside_the_old_ones(self):
        asked = Asked()
        kept, tally = apply(AugmentQueries(count=2, samples=3), lessons(2), resources(query=asked))
        [(prompts, samples, prefill)] = asked.calls
        assert [p.row for p in prompts] == [f'{row}.paraphrase.{i}' for row in range(2) for i in range(2)]
        assert question(prompts[1].messages) == f'my words 1: {lesson(0).question}'
        assert (samples, prefill) == (3, '')
        assert kept[:2] == lessons(2)
        assert (len(kept), tally.added, tally.dropped) == (14, {'paraphrase': 12}, {})

    @pytest.mark.parametrize('how', INSTRUCTIONS)
    def test_only_a_paraphrase_keeps_the_gold_answer(self, how):
        asked, heard = Asked(), []
        own = lambda texts, instruction, samples: heard.append(instruction) or [[f'new {x}'] for x in texts]  # noqa: E731
        apply(AugmentQueries(how), lessons(2), resources(query=asked, own=own))
        answers = [p.answer for p in asked.calls[0][0]]
        assert answers == (['10', '11'] if how == 'paraphrase' else [None, None])
        assert heard == [INSTRUCTIONS[how]]

    def test_other_turns_of_a_chat_stay(self):
        chat = ({'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'A?'},
                {'role': 'assistant', 'content': 'Yes:'})  # fmt: skip
        made, _ = AugmentQueries().make(resources(), [dataclasses.replace(lesson(0).prompt, messages=chat)])
        assert made[0].messages == (chat[0], {'role': 'user', 'content': 'my words 0: A?'}, chat[2])

    def test_refuses_what_asks_nothing_or_what_was_asked_before(self):
        written = iter([[' '], [lesson(2).question.upper()], ['How now?'], ['how  NOW']])
        held = resources(own=lambda texts, instruction, samples: [next(written) for _ in texts])
        kept, tally = apply(AugmentQueries(), lessons(4), held)
        assert tally.refused == {'asked before': 2, 'asks nothing': 1}
        assert rows(kept[4:]) == ['2.paraphrase.0']

    def test_without_a_teacher_the_own_model_answers_old_and_new_prompts(self):
        found = AugmentQueries().own_only(resources(query=None), [x.prompt for x in lessons(2)])
        assert rows(found) == ['0', '1', '0.paraphrase.0', '1.paraphrase.0']
        assert {x.source for x in found} == {'own'}


class TestAccounts:
    def test_each_prompt_comes_from_one_of_the_accounts_that_are_held(self):
        given = [
            lesson(row, sample, account=account, setting=f'poe_{account}')
            for row in range(40) for sample in range(2) for account in 'abc'
        ]  # fmt: skip
        kept, tally = apply(Accounts(2), given)
        by_prompt = collections.defaultdict(set)
        for x in kept:
            by_prompt[x.prompt_id].add(x.account)
        assert len(kept) == 80
        assert all(len(accounts) == 1 for accounts in by_prompt.values())
        # Each of 40 prompts is a fair draw: 20 of a on average, with a standard deviation of 3.2.
        assert 8 < sum(accounts == {'a'} for accounts in by_prompt.values()) < 32
        assert tally.dropped == {'of no account that is held': 80, 'asked by another account': 80}
        assert apply(Accounts(2), given[::-1])[0] == kept[::-1]

    def test_a_prompt_that_one_account_asked_stays_with_it(self):
        given = [lesson(row, account='ab'[row % 2]) for row in range(6)]
        assert apply(Accounts(), given)[0] == given

    def test_a_teacher_without_accounts_answers_all_alike(self):
        kept, tally = apply(Accounts(3), lessons(30))
        assert {x.account for x in kept} == {'account_0', 'account_1', 'account_2'}
        assert (tally.dropped, tally.changed) == ({}, {'dealt out': 30})

    @pytest.mark.parametrize('names', [('a', 'a'), ('a', '')])
    def test_refuses_fewer_accounts(self, names):
        with pytest.raises(ValueError, match=r'Accounts.count = 2 and the lessons were served to'):
            apply(Accounts(), [lesson(row, account=name) for row, name in enumerate(names)])
