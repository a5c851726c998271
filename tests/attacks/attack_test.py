"""Attacks: what a composition does, on which source, and the threat model that follows from what ran."""

from __future__ import annotations

import dataclasses

import pytest
from lessons_fakes import lesson, lessons, query, resources, rows, texts

from adx.attacks import Attack, Training
from adx.attacks.filters import BestOfK, CorrectnessFilter, Keep, PerplexityFilter
from adx.attacks.mixing import MixClean, Reweight
from adx.attacks.queries import Accounts, AugmentQueries, Prefill
from adx.attacks.rewrites import AnswerOnly, Paraphrase, Reconstruct
from adx.lessons import Passive, Tally

TRAINING = Training(student='llama', steps=300, settings=6, tokens=4000)
TOP = {'top_log_probs': [[-0.1, -3.0], [0.0, -9.0]], 'top_ids': [[1, 2], [3, 4]]}


def threat(attack, given, training=TRAINING, **held):
    return attack.threat(attack.prepare(given, resources(**held)), training)


class TestPrepare:
    def test_a_passive_attack_drops_what_is_unfinished_and_nothing_else(self):
        given = [lesson(0), lesson(1, stop='length'), lesson(2, text=''), lesson(3, text='lost')]
        found = Attack('sft').prepare(given, resources())
        assert rows(found.lessons) == ['0', '3']
        assert [t.step for t in found.tallies] == ['finished', 'finished']
        assert found.tallies[0].dropped == {'empty': 1, 'truncated': 1}
        assert rows(Attack('sft', answered=True).prepare(given, resources()).lessons) == ['0']

    def test_applies_the_transforms_in_order_and_counts_every_step(self):
        given = [*lessons(7), lesson(7, text='#### 0')]
        attack = Attack('a', (CorrectnessFilter(), PerplexityFilter(0.5), AnswerOnly()))
        found = attack.prepare(given, resources())
        assert texts(found.lessons) == [f'#### {10 + row}' for row in range(4)]
        assert [t.step for t in found.tallies] == [
            'finished', 'correctness_filter', 'perplexity_filter', 'answer_only', 'finished',
        ]  # fmt: skip
        for one, following in zip(found.tallies, found.tallies[1:], strict=False):
            assert one.returned == following.given
        assert found.tallies[-1].returned == len(found.lessons)
        reverse = dataclasses.replace(attack, transforms=attack.transforms[1::-1])
        assert rows(reverse.prepare(given, resources()).lessons) == ['0', '1', '2', '3']

    def test_fewer_prompts_are_sent_and_fewer_traces_kept_one_set_inside_the_other(self):
        given, sets = lessons(12, 2), []
        for prompts, traces in ((3, 2), (6, 5), (0, 20)):
            found = Attack('a', (Keep(traces),), prompts=prompts).prepare(given, resources())
            assert len(found.lessons) == traces
            assert found.record.queries == (prompts or 12)
            sets.append({x.prompt_id for x in found.lessons})
        assert len(sets[0]) <= 2
        assert {x.prompt_id for x in Attack('a', prompts=3).prepare(given, resources()).lessons} < {
            x.prompt_id for x in Attack('a', prompts=6).prepare(given, resources()).lessons
        }
        other = Attack('a', prompts=3).prepare(given, dataclasses.replace(resources(), seed=9))
        assert rows(other.lessons) != rows(Attack('a', prompts=3).prepare(given, resources()).lessons)
        with pytest.raises(ValueError, match='sends 13 prompts and there are 12'):
            Attack('a', prompts=13).prepare(given, resources())

    def test_fewer_samples_are_drawn_of_each_prompt(self):
        prepared = Attack('a', samples=2).prepare(lessons(4, samples=3), resources())
        assert sorted({lesson.request.sample for lesson in prepared.lessons}) == [0, 1]
        assert (len(prepared.lessons), prepared.record.samples) == (8, 2)

    def test_answers_to_new_queries_may_be_unfinished_too(self):
        cut = resources(query=lambda *asked: [dataclasses.replace(x, stop='length') for x in query(*asked)])
        found = Attack('a', (AugmentQueries(),)).prepare(lessons(2), cut)
        assert (len(found.lessons), found.tallies[-1].dropped) == (2, {'truncated': 2})

    def test_asks_about_the_same_prompts_whatever_the_teacher_made_of_them(self):
        """So that the defended and the clean run are at equal queries."""
        bad = [dataclasses.replace(x, stop='length') for x in lessons(4)]
        records = [Attack('a', (AugmentQueries(),)).prepare(given, resources()).record for given in (lessons(4), bad)]
        assert records[0].queries == records[1].queries == 8

    def test_a_transform_is_handed_what_it_declares_and_its_tally_is_checked(self):
        @dataclasses.dataclass(frozen=True)
        class Greedy(Passive):
            kept: int = 1

            def apply(self, lessons, resources):
                assert resources.grade is None
                return list(lessons)[: self.kept], Tally('greedy', len(lessons))

        assert len(Attack('a', (Greedy(3),)).prepare(lessons(3), resources()).lessons) == 3
        with pytest.raises(ValueError, match='greedy was given 3 lessons and returned 1'):
            Attack('a', (Greedy(1),)).prepare(lessons(3), resources())

    @pytest.mark.parametrize(
        ('attack', 'message'),
        [
            (Attack(''), "Attack.name = ''"),
            (Attack('a', loss='softer'), "Attack.loss = 'softer' is unknown.*Did you mean 'soft'"),
            (Attack('a', longer=0), 'Attack.longer = 0'),
            (Attack('a', knows='all'), "Attack.knows = 'all'"),
            (Attack('a', arguments=(('temperature', 2.0),)), "has 'temperature'; loss 'hard' takes"),
            (Attack('a', loss='on_policy', arguments=(('every', 0),)), 'Attack.arguments every'),
            (Attack('a', (BestOfK(1),)), 'BestOfK.k = 1'),
        ],
    )
    def test_check_refuses_before_any_work(self, attack, message):
        with pytest.raises(ValueError, match=message):
            attack.prepare(lessons(2), resources())


class TestThreat:
    def test_of_a_passive_attack(self):
        found = threat(Attack('sft'), [*lessons(5, 2), lesson(5, stop='length')])
        assert dataclasses.asdict(found) == {
            'queries': 6, 'samples': 2, 'traces': 10, 'tokens': 4000, 'student': 'llama', 'steps': 300, 'settings': 6,
            'accounts': 1, 'prefill': '', 'log_probs': 0, 'clean_traces': 0, 'verifier': False, 'own_model': '',
            'knows': 'nothing', 'scored': 0,
        }  # fmt: skip

    def test_prompts_that_brought_nothing_were_sent_as_well(self):
        sent = tuple(x.prompt for x in lessons(9))
        assert threat(Attack('sft'), lessons(5), prompts=sent).queries == 9

    def test_of_everything_at_once(self):
        transforms = (
            Accounts(2), BestOfK(2), MixClean(0.25), Paraphrase(), AugmentQueries(count=3, samples=5), Reweight(),
        )  # fmt: skip
        found = threat(Attack('all', transforms, knows='algorithm'), lessons(8, 2))
        assert (found.queries, found.samples, found.accounts) == (8 + 8 * 3, 5, 2)
        assert (found.verifier, found.clean_traces, found.knows) == (True, 8 + 5, 'algorithm')
        assert found.own_model == 'tiny: paraphrase, augment_queries, reweight'
        assert found.traces == 8 + 8 * 3 * 5

    def test_a_prefill_asks_once_and_not_twice(self):
        found = threat(Attack('a', (Prefill('Sure', samples=3),)), lessons(4))
        assert (found.queries, found.samples, found.prefill) == (4, 3, 'Sure')
        filtered = threat(Attack('a', (CorrectnessFilter(), Prefill('Sure'))), lessons(4))
        assert filtered.queries == 8  # here the traces given were read first

    def test_each_account_that_served_counts(self):
        given = [lesson(row, account='ab'[row % 2]) for row in range(4)]
        assert threat(Attack('sft'), given).accounts == 2

    @pytest.mark.parametrize('field', ['student', 'steps', 'settings', 'tokens'])
    def test_is_refused_where_training_says_nothing(self, field):
        with pytest.raises(ValueError, match=f'Training.{field} is None and a result without its threat model'):
            threat(Attack('sft'), lessons(2), dataclasses.replace(TRAINING, **{field: None}))

    def test_is_refused_where_the_own_model_or_the_validation_set_is_not_named(self):
        with pytest.raises(ValueError, match=r'uses a model of its own; name it in resources.own_name'):
            threat(Attack('a', (Paraphrase(),)), lessons(2), own_name='')
        with pytest.raises(ValueError, match=r'give resources.validation'):
            threat(Attack('a', (Reweight(),)), lessons(2), validation=None)

    def test_soft_labels_show_how_many_log_probs_were_exposed(self):
        soft = Attack('kd', loss='soft', arguments=(('temperature', 2.0),))
        assert threat(soft, [lesson(0, statistics=TOP), lesson(1, statistics=TOP)]).log_probs == 2
        assert threat(Attack('sft'), [lesson(0, statistics=TOP)]).log_probs == 0  # recorded and not read
        with pytest.raises(ValueError, match='1 of 2 lessons have no served log-probs'):
            threat(soft, [lesson(0, statistics=TOP), lesson(1)])
        with pytest.raises(ValueError, match='2 of 2 lessons have no served log-probs'):
            threat(dataclasses.replace(soft, transforms=(Paraphrase(),)), lessons(2, statistics=TOP))
        whole = dataclasses.replace(TRAINING, log_probs=400)
        assert threat(soft, lessons(2), whole).log_probs == 400

    def test_on_policy_training_says_what_it_asked(self):
        on_policy = Attack('gkd', loss='on_policy')
        with pytest.raises(ValueError, match="'on_policy' asks the teacher while it trains"):
            threat(on_policy, lessons(2))
        asked = dataclasses.replace(TRAINING, scored=50, log_probs=20)
        found = threat(on_policy, lessons(2), asked)
        assert (found.queries, found.scored, found.log_probs) == (2, 50, 20)

    def test_who_reads_hidden_states_holds_the_teacher(self):
        assert threat(Attack('a', loss='features'), lessons(2)).own_model == "the teacher's hidden states"


class TestOwnOnly:
    PROMPTS = tuple(x.prompt for x in lessons(6))

    def run(self, *transforms, **held):
        attack = Attack('a', transforms)
        found = attack.own_only(self.PROMPTS, resources(query=None, **held))
        return found, None if found is None else attack.threat(found, TRAINING)

    @pytest.mark.parametrize('transforms', [(), (CorrectnessFilter(),), (Prefill(),), (Accounts(), BestOfK())])
    def test_of_what_makes_no_lessons_is_nothing(self, transforms):
        assert self.run(*transforms) == (None, None)

    def test_of_clean_data_is_the_same_subset_alone(self):
        found, model = self.run(MixClean(0.5))
        attacked = Attack('a', (MixClean(0.5),)).prepare(lessons(6), resources())
        assert {x.id for x in found.lessons} == {x.id for x in attacked.lessons if x.source == 'clean'}
        assert (model.queries, model.samples, model.clean_traces, model.traces) == (0, 0, 8, 4)

    def test_filters_work_on_what_was_made_before_them(self):
        found, model = self.run(CorrectnessFilter(), Paraphrase(), CorrectnessFilter())
        assert (found, model) == (None, None)  # the fake model repeats questions and is never right
        found, _ = self.run(Paraphrase(), PerplexityFilter(0.5))
        assert rows(found.lessons) == ['0', '1', '2']

    def test_lessons_of_several_transforms_are_joined_once(self):
        found, model = self.run(MixClean(0.5), Paraphrase(), Reconstruct())
        assert len(found.lessons) == 4 + 6
        assert found.tallies[2].refused == {'there already': 6}
        assert model.own_model == 'tiny: paraphrase, reconstruct'

    def test_gold_answers_that_are_read_show(self):
        assert self.run(Reconstruct())[1].verifier
        assert not self.run(Paraphrase())[1].verifier
        # A filter that had nothing to filter read nothing.
        assert not self.run(CorrectnessFilter(), Paraphrase())[1].verifier

    def test_the_teacher_is_out_of_reach(self):
        @dataclasses.dataclass(frozen=True)
        class Cheat(Passive):
            needs = ('query',)

            def own_only(self, resources, prompts):
                return resources.query(prompts, 1, '') if resources.query else None

        attack = Attack('a', (Cheat(),))
        assert attack.own_only(self.PROMPTS, resources()) is None
