"""Studies: what their config may not ask for, what becomes of their lessons, and journals of their own."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from studies import make_study, write_traces

from adx import distilling, generation, outcomes_io, study_traces
from adx import experiment as experiments
from adx.attacks import Attack
from adx.attacks.filters import BestOfK
from adx.attacks.queries import Prefill
from adx.attacks.rewrites import AnswerOnly, Canonicalise, Paraphrase
from adx.errors import ConfigError, InputError
from adx.experiment import ModelSource
from adx.families import make_family, make_lab, shown_examples
from adx.optimising import Recipe
from adx.selection import Selection
from adx.storage import Workdir
from adx.study import REGISTRY, Student, check, known_as, study_hash
from configs import testbed_confirm, testbed_rewrites, testbed_screen, testbed_selection

pytestmark = pytest.mark.usefixtures('shared_trainers')


def test_outcomes_say_what_became_of_lessons(students, tmp_path):
    """The defended arm's first line is none of the grammar; one trace of each arm was cut."""
    study = make_study(students[:1], attacks=(Attack('canonical', (Canonicalise(),)),), seeds=(0,))
    write_traces(study, str(tmp_path))
    read = Workdir.traces

    def damaged(self):
        for trace in read(self):
            row = trace.request_id.split('/')[2]
            yield dataclasses.replace(
                trace, stop='length' if row == '0' else trace.stop,
                text='what' if row in ('1', '2') and trace.request_id.endswith('poe') else trace.text,
            )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workdir, 'traces', damaged)
        found = {o.arm: o.lessons for o in distilling.distil(study, str(tmp_path)) if o.setting}
    assert found['plain'] == {'truncated': 1}
    assert found['poe'] == {'truncated': 1, 'does not parse': 2, 'destroyed': 2}
    assert {o.arm: o.lessons for o in outcomes_io.read(str(tmp_path)).values() if o.setting} == found


def test_journals_and_locks_of_families_and_attacks_are_their_own(tmp_path):
    path = str(tmp_path)
    with (
        outcomes_io.open_log(path, 'a', ['b-c'], contextlib.nullcontext),
        outcomes_io.open_log(path, 'a-b', ['c'], contextlib.nullcontext),
    ):
        pass
    names = [outcomes_io._owner('a', attack) for attack in ('q1', 'q1.5')]
    assert not names[1].startswith(f'{names[0]}.')


def test_studies_that_want_what_is_not_there_are_named(students):
    study = make_study(students)
    taught = dataclasses.replace(study.students[0], seen=False)
    soft = Attack('soft', loss='soft', arguments=(('temperature', 2.0),))
    decode = dataclasses.replace(study.experiment.decode, record='top')
    for fields, of, message in (
        ({'students': (taught,)}, {}, "student 'first' is a proxy"),
        ({'fresh_prompts': True}, {}, 'fresh_prompts without experiment.limit'),
        ({'judge': taught}, {}, 'is the teacher or a proxy'),
        ({'attacks': (Attack('a', prompts=30),)}, {'limit': 20}, 'sends prompts = 30 and limit = 20'),
        ({'attacks': (soft,)}, {'decode': decode}, 'has a temperature'),
        ({'attacks': (Attack('soft', loss='soft'),)}, {'decode': decode, 'stop_strings': ('x',)}, 'is spelt anew'),
    ):
        experiment = dataclasses.replace(study.experiment, **of)
        with pytest.raises(ConfigError, match=message):
            check(dataclasses.replace(study, experiment=experiment, **fields))
    several = Attack('a', (Prefill('so', samples=4), BestOfK(4)))
    check(dataclasses.replace(study, attacks=(study.attacks[0], several)))


def test_seeds_have_prompts_of_their_own_where_they_are_fresh(students):
    study = make_study(students, seeds=(5, 7, 2))
    study = dataclasses.replace(study, experiment=dataclasses.replace(study.experiment, limit=6, skip=1))
    rows = [prompt.row for prompt in study.experiment.dataset.prompts('train')]
    same = [[prompt.row for prompt in generation.read_prompts(study.of_seed(seed))] for seed in study.seeds]
    assert same == [rows[1:7]] * 3
    fresh = dataclasses.replace(study, fresh_prompts=True)
    own = [[prompt.row for prompt in generation.read_prompts(fresh.of_seed(seed))] for seed in study.seeds]
    assert own == [rows[1:7], rows[7:13], rows[13:19]]
    assert [fresh.of_seed(seed).seed for seed in study.seeds] == [5, 7, 2]
    assert experiments.holdout(fresh.of_seed(2)).skip == 0  # what directions are taken on is a split of its own
    few = dataclasses.replace(fresh, experiment=dataclasses.replace(fresh.experiment, limit=len(rows) // 3))
    with pytest.raises(ConfigError, match=r"want \d+ prompts, and split 'train' has"):
        generation.read_prompts(few.of_seed(2))


def test_what_an_attack_refuses_names_it_and_the_arm(students, tmp_path):
    study = make_study(students[:1], attacks=(Attack('many', prompts=9000),), seeds=(0,))
    write_traces(study, str(tmp_path))
    with pytest.raises(InputError, match=r"attack 'many' on the traces of 'plain': .* sends 9000 prompts"):
        distilling.distil(study, str(tmp_path))


def test_worked_examples_are_finished_and_right(students, tmp_path):
    study = make_study(students[:1], seeds=(0,), shots=3)
    write_traces(study, str(tmp_path))
    lab = make_lab(study, str(tmp_path), lambda *at: None)
    family, clean = make_family(lab, study.students[0]), study_traces.lessons(study, str(tmp_path), 0)['plain']
    good = clean[:3]
    bad = [dataclasses.replace(one, gold='-1') for one in clean[3:12]]
    bad += [dataclasses.replace(one, stop='length') for one in clean[12:]]
    only, among = (shown_examples(lab, family, 0, given).exams['tune'] for given in (good, [*bad, *good]))
    assert among.requests == only.requests


def test_clean_traces_are_no_choice(students):
    study = make_study(students, clean='long')
    ways = {'one': 'first', 'any': 'random', 'long': 'max_length'}
    selections = tuple(Selection(name, 'plain', how) for name, how in ways.items())
    experiment = dataclasses.replace(study.experiment, selections=selections, samples=2)
    with pytest.raises(ConfigError, match="'long' is a selection by 'max_length'"):
        check(dataclasses.replace(study, experiment=experiment))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'clean': 'poe'}, 'is a defended arm'),
        ({'clean': 'plian'}, "Did you mean 'plain'"),
        ({'controls': ('nobody',)}, "'nobody' is unknown"),
        ({'split': 'train'}, "split = 'train'"),
        ({'seeds': (0, 0)}, r'seeds = \[0, 0\]'),
        ({'students': (Student('a/b', ModelSource('x')),)}, "'a/b'"),
        ({'budgets': ()}, r'budgets = \[\]'),
        ({'learning_rates': (0.0,)}, 'learning_rates'),
        ({'attacks': (Attack('p', (Paraphrase(),)),)}, 'does not provide'),
        ({'attacks': (Attack('soft', loss='soft'),)}, "set decode.record = 'top'"),
        ({'recipe': Recipe(rows=0)}, 'Recipe.rows'),
        ({'attacks': (Attack('a', samples=2),)}, "'a' has samples = 2 and a prompt has 1"),
        ({'attacks': (Attack('a', (BestOfK(4),)),)}, "'a' has BestOfK.k = 4 and a prompt has 1"),
    ],
)
def test_bad_studies_are_named(students, fields, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(make_study(students), **fields))


def test_a_study_goes_through_json(students):
    study = make_study(students, attacks=(Attack('a', (AnswerOnly(), Canonicalise())),))
    assert experiments.from_json(experiments.to_json(study, REGISTRY), REGISTRY) == study


def test_a_control_is_held_against_what_it_was_made_to_measure():
    """In the screen those of ads and poe are of one rule each; a control of chance is everybody's."""
    screen = testbed_screen.study()
    assert screen.controls_of('ads') == ('ads_control',)
    assert screen.controls_of('poe') == ('poe_control',)
    assert screen.controls_of('cross_soft') == ()
    assert testbed_confirm.study().controls_of('cross_soft') == ('soft_control',)
    assert testbed_rewrites.study().controls_of('worst') == ('told',)
    assert testbed_rewrites.study().controls_of('both') == ()
    whole = testbed_selection.study()
    assert {arm: whole.controls_of(arm) for arm in whole.arms if whole.role(arm) == 'defence'} == {
        arm: whole.controls for arm in whole.arms if whole.role(arm) == 'defence'
    }


def test_a_study_is_known_by_what_it_was_before_it_had_fields_that_it_does_not_set():
    """The hash that the published screen states was that of a version without four of them."""
    screen = testbed_screen.study()
    assert known_as(screen)[0] == study_hash(screen)
    assert known_as(screen)[-1] == '0ce87522bdcd28a8'
    assert len(known_as(screen)) == 5
    assert known_as(testbed_confirm.study()) == [study_hash(testbed_confirm.study())]
    later = dataclasses.replace(screen, experiment=dataclasses.replace(screen.experiment, skip=3))
    assert len(known_as(later)) == 2
    assert not {*known_as(later)} & {*known_as(screen)}
