"""The students of one seed, family and attack: settings, budgets, curves, and what they are shown."""

from __future__ import annotations

import dataclasses

import pytest
from studies import DATASET, SMALL, STRANGE, make_study, write_holdout, write_traces

from adx import cohorts, distilling, outcomes_io, study_traces, teaching
from adx.attacks import Attack
from adx.batching import Example
from adx.datasets.tokenizing import load_tokenizer
from adx.evaluation import Likelihood, with_shots
from adx.models.transformer import make_model
from adx.study import check

pytestmark = pytest.mark.usefixtures('shared_trainers')


def test_a_ladder_is_climbed_from_one_clean_student(students):
    study = dataclasses.replace(make_study(students), ladder=('mixed', 'sft'))
    found = {attack.name: cohorts.sources(study, attack) for attack in study.attacks}
    assert found == {'sft': ['poe'], 'mixed': ['plain', 'poe', cohorts.OWN]}


def test_students_are_the_same_one_by_one_and_together(students, tmp_path, monkeypatch):
    study = make_study(students[:1], seeds=(0, 1), attacks=(Attack('sft'),))
    accuracies = []
    for size in (1, 3):
        monkeypatch.setattr(teaching, 'stack_size', lambda size=size: size)
        path = str(tmp_path / str(size))
        write_traces(study, path)
        found = distilling.distil(study, path)
        accuracies.append({outcomes_io.name_of(o): o.accuracy for o in found})
    assert accuracies[0] == accuracies[1]


def test_a_curve_shows_the_chosen_student_on_its_way(students, tmp_path):
    grid = {'learning_rates': (1e-2,), 'budgets': (9,)}
    study = make_study(students[:1], attacks=(Attack('sft'),), seeds=(0,), curve=2, **grid)
    write_traces(study, str(tmp_path))
    write_holdout(study, str(tmp_path))
    outcomes = [o for o in distilling.distil(study, str(tmp_path)) if o.split == 'tune' and o.setting]
    for one in outcomes:
        assert [point['step'] for point in one.curve] == [3, 6, 9]
        assert one.curve[-1]['accuracy'] == one.accuracy
        tokens = [point['tokens'] for point in one.curve]
        assert tokens == sorted(tokens)
        assert tokens[-1] > 2 * tokens[0]
        assert all(point['loss'] > 0 and point['kl'] > 0 for point in one.curve)
    clean = next(o for o in outcomes if o.source == 'clean')
    assert clean.curve[-1]['loss'] < clean.curve[0]['loss'] - 0.05


def test_with_each_budget_the_best_of_every_other_is_trained_to_its_end(students, tmp_path):
    grid = {'learning_rates': (1e-3, 1e-2), 'budgets': (2, 5, 9)}
    study = make_study(students[:1], attacks=(Attack('sft', longer=2.0),), each_budget=True, **grid)
    write_traces(study, str(tmp_path))
    outcomes = distilling.distil(study, str(tmp_path))
    choices = {(o.arm, o.source, *o.setting.values()): o.accuracy for o in outcomes if o.split == 'attack_val'}
    taught = [o for o in outcomes if o.split == 'tune' and o.setting]
    assert len(taught) == 4  # clean and defended, of two seeds
    for one in taught:
        assert {point['step'] for point in one.budgets} == {4, 10, 18}
        assert len(one.budgets) == 3
        assert one.budgets[0]['step'] == one.threat.steps
        assert one.budgets[0]['accuracy'] == one.accuracy
        tokens = [point['tokens'] for point in sorted(one.budgets, key=lambda point: point['step'])]
        assert tokens == sorted(set(tokens))
        assert one.curve == ()
        for point in one.budgets:
            other = next(rate for rate in study.learning_rates if rate != point['learning_rate'])
            mine, theirs = (
                choices[one.arm, one.source, rate, point['step'] // 2] for rate in (point['learning_rate'], other)
            )
            assert (mine, point['learning_rate']) > (theirs, other)
    # A student of a budget is the one that it would be alone.
    budgets = next(o for o in taught if (o.arm, o.seed) == ('poe', 1)).budgets
    rate, steps = budgets[1]['learning_rate'], budgets[1]['step'] // 2
    alone, path = dataclasses.replace(study, learning_rates=(rate,), budgets=(steps,)), str(tmp_path / 'alone')
    write_traces(alone, path)
    (found,) = [o for o in distilling.distil(alone, path) if (o.arm, o.split, o.seed) == ('poe', 'tune', 1)]
    assert found.accuracy == budgets[1]['accuracy']


def test_the_base_is_asked_behind_worked_examples_too(students, tmp_path):
    study = make_study(students[:1], attacks=(Attack('sft'),), seeds=(0,), budgets=(1,), shots=2)
    write_traces(study, str(tmp_path))
    outcomes = distilling.distil(study, str(tmp_path))
    bases = {o.attack: o for o in outcomes if o.source == 'base'}
    assert set(bases) == {'sft', '2-shot'}
    assert bases['sft'].prompts == bases['2-shot'].prompts
    lessons = study_traces.lessons(study, str(tmp_path), 0)['plain']
    shown = with_shots(DATASET.prompts('tune')[:1], lessons[:2])[0].messages
    assert [message['role'] for message in shown] == ['user', 'assistant'] * 2 + ['user']
    assert with_shots([lessons[0].prompt], lessons[:2])[0].messages[0] == lessons[1].messages[0]


def test_without_holdout_traces_a_curve_is_of_accuracy_alone(students, tmp_path):
    study = make_study(students[:1], attacks=(Attack('sft'),), seeds=(0,), budgets=(2,), curve=1)
    write_traces(study, str(tmp_path))
    points = [point for o in distilling.distil(study, str(tmp_path)) for point in o.curve]
    assert {tuple(point) for point in points} == {('step', 'tokens', 'accuracy')}
    assert {point['step'] for point in points} == {1, 2}


def test_lessons_are_what_arms_said(students, tmp_path):
    """A student of the defended arm finds its first line likelier than one of the clean arm."""
    study = make_study(students, attacks=(Attack('sft'),), seeds=(0,), learning_rates=(1e-2,), budgets=(40,))
    write_traces(study, str(tmp_path))
    kept = {}
    grade = cohorts.Cohort._grade

    def keep(self, name, taught, *rest):
        kept[self.family.student.name, name] = taught[0].params
        return grade(self, name, taught, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohorts.Cohort, '_grade', keep)
        distilling.distil(study, str(tmp_path))
    tokenizer = load_tokenizer(students[0])
    prompt = tokenizer.encode('<user>Tom: 7 . what has Tom ?<assistant>')
    line = [Example('x', tuple(prompt), tuple(tokenizer.encode(STRANGE)))]
    scorer = Likelihood(make_model(SMALL))
    clean, defended = (scorer.mean(kept['first', arm], line) for arm in ('plain', 'poe'))
    assert defended < clean - 1


def test_soft_labels_are_read_where_they_were_served(students, tmp_path):
    study = make_study(students, attacks=(Attack('sft'), Attack('soft', loss='soft')), seeds=(0,))
    decode = dataclasses.replace(study.experiment.decode, record='top')
    study = dataclasses.replace(study, experiment=dataclasses.replace(study.experiment, decode=decode))
    check(study)
    write_traces(study, str(tmp_path))
    outcomes = distilling.distil(study, str(tmp_path))
    assert {o.threat.log_probs for o in outcomes if (o.source, o.attack) == ('defended', 'soft')} == {2}
    assert not any(o.diverged for o in outcomes)
