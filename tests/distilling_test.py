"""Studies end to end on tiny students: grids, frozen settings, sources and resumption."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from studies import DATASET, SMALL, STRANGE, make_study, write_holdout, write_traces

from adx import assessing, cohorts, distilling, outcomes_io, readings, selecting, study_traces, teaching
from adx.attacks import Attack
from adx.attacks.mixing import MixClean
from adx.batching import Example
from adx.datasets import Arithmetic
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import ConfigError, InputError, WorkdirError
from adx.evaluation import Likelihood, with_shots
from adx.experiment import ModelSource
from adx.models.transformer import make_model
from adx.selection import Selection
from adx.storage import Workdir
from adx.study import attack_hashes, check, commitment, study_hash
from launch import study as launch

pytestmark = pytest.mark.usefixtures('shared_trainers')
SELECTIONS = {'one': 'first', 'any': 'random', 'long': 'max_length'}


@pytest.fixture(scope='module')
def finished(students, shared_trainers, tmp_path_factory):
    """(study, path, outcomes) of a study that ran."""
    study, path = make_study(students), str(tmp_path_factory.mktemp('study'))
    check(study)
    write_traces(study, path)
    return study, path, distilling.distil(study, path)


def test_every_student_is_graded(finished):
    _, _, outcomes = finished
    graded = {(o.seed, o.student, o.attack, o.arm, o.source) for o in outcomes if o.split == 'tune'}
    wanted = {
        (seed, student, *cell)
        for seed in (0, 1)
        for student in ('first', 'second')
        for cell in [
            ('sft', '', 'base'), ('sft', '', 'own'), ('sft', 'plain', 'clean'), ('sft', 'poe', 'defended'),
            ('mixed', '', 'own'), ('mixed', 'plain', 'clean'), ('mixed', 'poe', 'defended'),
        ]
    }  # fmt: skip
    assert graded == wanted
    assert {o.seen for o in outcomes if o.student == 'first'} == {True}
    assert all(len(o.correct) == (8 if o.split == 'attack_val' else 12) for o in outcomes)


def test_the_first_seed_has_the_grid_and_the_others_its_choice(finished):
    _, _, outcomes = finished
    choices = [o for o in outcomes if o.split == 'attack_val']
    assert {o.seed for o in choices} == {0}
    for one in (o for o in outcomes if o.split == 'tune' and o.setting):
        cell = (one.student, one.attack, one.arm, one.source)
        grid = [o for o in choices if (o.student, o.attack, o.arm, o.source) == cell]
        assert sorted(o.setting['learning_rate'] for o in grid) == [1e-3, 3e-3]
        best = max((o.accuracy, o.setting['steps'], o.setting['learning_rate']) for o in grid)
        assert one.setting == {'steps': best[1], 'learning_rate': best[2]}  # of equally good ones the most training


def test_a_ladder_is_climbed_from_one_clean_student(students):
    study = dataclasses.replace(make_study(students), ladder=('mixed', 'sft'))
    found = {attack.name: cohorts.sources(study, attack) for attack in study.attacks}
    assert found == {'sft': ['poe'], 'mixed': ['plain', 'poe', cohorts.OWN]}


def test_threat_models_say_what_was_had(finished):
    _, _, outcomes = finished
    threats = {(o.attack, o.source): o.threat for o in outcomes}
    assert threats['sft', 'defended'].queries == 24
    assert threats['sft', 'defended'].settings == 2
    assert threats['sft', 'defended'].clean_traces == 0
    assert threats['mixed', 'defended'].clean_traces > 0
    assert threats['mixed', 'own'].queries == 0
    assert threats['sft', 'base'].steps == 0


def test_an_attacker_with_nothing_of_its_own_keeps_the_student_as_it_was(finished):
    _, _, outcomes = finished
    of = {(o.seed, o.student, o.attack, o.source): o.correct for o in outcomes if o.split == 'tune'}
    assert all(of[0, name, 'sft', 'own'] == of[0, name, 'sft', 'base'] for name in ('first', 'second'))


def test_outcomes_of_another_attack_or_student_of_the_name_are_not_taken_for_new(students, finished):
    study, path, outcomes = finished
    assert all('attack' in o.identity for o in outcomes if o.source != 'base')
    changed = dataclasses.replace(study, attacks=(study.attacks[0], Attack('mixed', (MixClean(fraction=0.25),))))
    for use in (distilling.distil, assessing.find):
        with pytest.raises(WorkdirError, match=r"outcome 0/first/mixed/\S+ is of another attack 'mixed'"):
            use(changed, path)
    other = dataclasses.replace(study.students[0], source=ModelSource(students[1]))
    with pytest.raises(WorkdirError, match="is of another student 'first'"):
        distilling.distil(dataclasses.replace(study, students=(other, study.students[1])), path)
    earlier = {
        name: dataclasses.replace(o, identity={'study': o.identity['study'], 'student': o.identity['student']})
        for name, o in outcomes_io.read(path).items()
    }
    outcomes_io.check_same(earlier, attack_hashes(changed), {})


def test_going_on_repeats_nothing(finished, monkeypatch):
    study, path, outcomes = finished
    monkeypatch.setattr(cohorts.Cohort, '_train', None)
    assert distilling.distil(study, path) == outcomes


def test_another_seed_is_added_with_the_frozen_settings(students, tmp_path):
    study = make_study(students, attacks=(Attack('sft'),), seeds=(0,))
    write_traces(study, str(tmp_path), seeds=(0, 1))
    before = distilling.distil(study, str(tmp_path))
    after = distilling.distil(dataclasses.replace(study, seeds=(0, 1)), str(tmp_path))
    assert [o for o in after if o.seed == 0] == before
    chosen = {(o.student, o.arm): o.setting for o in before if o.split == 'tune'}  # {} of those not trained
    assert all(o.setting == chosen[o.student, o.arm] for o in after if o.seed == 1)
    assert study_hash(study) == study_hash(dataclasses.replace(study, seeds=(0, 1)))


def test_a_run_that_was_cut_keeps_the_arms_that_were_done(students, tmp_path, monkeypatch):
    study = make_study(students, seeds=(0,))
    write_traces(study, str(tmp_path))
    train, calls = cohorts.Cohort._train, []

    def cut(self, lessons, jobs):
        calls.append((self.family.student.name, self.attack.name, *lessons))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, lessons, jobs)

    monkeypatch.setattr(cohorts.Cohort, '_train', cut)
    with pytest.raises(KeyboardInterrupt):
        distilling.distil(study, str(tmp_path))
    done = {(o.attack, o.source) for o in outcomes_io.read(str(tmp_path)).values() if o.source != 'base'}
    assert done == {('sft', 'clean'), ('sft', 'defended'), ('sft', 'own')}
    distilling.distil(study, str(tmp_path))
    arms = [('plain',), ('poe',), ()], [('plain',), ('poe',), ('own',)]  # sft has no resources of its own
    groups = [(attack, arm) for attack, of in zip(('sft', 'mixed'), arms, strict=True) for arm in of]
    every = [(name, attack, *arm) for name in ('first', 'second') for attack, arm in groups]
    assert calls == [*every[:4], *every[3:]]


def test_what_is_ahead_is_said_before(students, tmp_path, finished):
    """2 arms under sft and 3 sources under mixed: 2 settings on the first seed, 1 on the other, of 2 families."""
    study, said = make_study(students), []
    write_traces(study, str(tmp_path))

    def stop(ahead):
        said.append(ahead)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distilling.distil(study, str(tmp_path), announce=stop)
    distilling.distil(study, finished[1], announce=said.append)
    assert [(one.students, one.steps) for one in said] == [(30, 60), (0, 0)]
    assert said[0].seconds > 0 == said[1].seconds


@pytest.mark.slow  # a minute; assessing_test and tests/launch divide stages too
def test_families_and_attacks_may_be_distilled_by_processes_of_their_own(students, tmp_path):
    study, path = make_study(students, seeds=(0,), attacks=(Attack('sft'), Attack('longer', longer=2.0))), str(tmp_path)
    write_traces(study, path)
    share = distilling.Share
    with outcomes_io.open_log(path, 'first', ['sft'], contextlib.nullcontext):
        found = distilling.distil(study, path, share=share(shard=1, num_shards=2))
        with pytest.raises(WorkdirError, match='student first, attack sft'):
            distilling.distil(study, path)
    made = {(outcome.student, outcome.attack) for outcome in found if outcome.source == 'clean'}
    assert made == {('second', 'longer'), ('first', 'longer')}
    in_parts = distilling.distil(study, path)
    write_traces(study, path + '/whole')
    whole = distilling.distil(study, path + '/whole')
    known = [{outcomes_io.name_of(one): one.correct for one in found} for found in (in_parts, whole)]
    assert known[0] == known[1]
    first, second = study.students
    sft, longer = study.attacks
    assert share(['second'], ['longer']).of(study) == [(second, [longer])]
    shards = [share(shard=shard, num_shards=3).of(study) for shard in range(3)]
    assert shards == [[(first, [sft]), (second, [longer])], [(first, [longer])], [(second, [sft])]]
    assert share((), ['sft'], 2, 3).of(study) == []
    with pytest.raises(ConfigError, match=r"--students has 'third'; the study has \['first', 'second'\]"):
        distilling.distil(study, path, share=share(['third']))
    with pytest.raises(ConfigError, match=r"--attacks has 'soft'; the study has \['sft', 'longer'\]"):
        distilling.distil(study, path, share=share((), ['soft']))


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


def test_selections_stand_for_their_arms(students, tmp_path):
    path = str(tmp_path)
    study = make_study(students[:1], attacks=(Attack('sft'),), seeds=(0,), clean='one', controls=('any',))
    selections = tuple(Selection(name, 'plain', how) for name, how in SELECTIONS.items())
    experiment = dataclasses.replace(study.experiment, selections=selections, samples=2)
    study = dataclasses.replace(study, experiment=experiment)
    check(study)
    write_traces(study, path)
    with pytest.raises(InputError, match="no selection 'one'"):
        distilling.distil(study, path)
    assert launch.each_seed(study, path, lambda one, where: len(selecting.select(one, where)) - 3) == 0
    traces = study_traces.read(study, path, 0)
    assert {trace.request_id.split('/')[3] for trace in traces['one']} == {'0'}
    assert all(trace.text.startswith(STRANGE) for trace in traces['long'])
    outcomes = distilling.distil(study, path)
    assert {(o.arm, o.role, o.source) for o in outcomes if o.split == 'tune' and o.setting} == {
        ('one', 'defence', 'clean'), ('any', 'control', 'defended'), ('long', 'defence', 'defended'),
    }  # fmt: skip
    assert {o.threat.samples for o in outcomes if o.arm} == {1}


def test_a_row_that_was_rejected_once_and_is_there_hides_no_missing_one(students, tmp_path, monkeypatch):
    study = make_study(students, seeds=(0,))
    write_traces(study, str(tmp_path))
    done = sorted(Workdir(study_traces.seed_path(str(tmp_path), 0)).finished())
    plain = [id_ for id_ in done if id_.endswith('/plain')]
    monkeypatch.setattr(Workdir, 'rejected', lambda self: {plain[0]: 'once'})
    for total, refused in ((len(plain), False), (len(plain) + 1, True)):
        monkeypatch.setattr(Workdir, 'totals', lambda self, total=total: {'plain': total})
        expected = pytest.raises(InputError, match=f"'plain' of seed 0 has {len(plain)} of {total} traces")
        with expected if refused else contextlib.nullcontext():
            study_traces.read(study, str(tmp_path), 0)


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
    study = make_study(students, attacks=(Attack('soft', loss='soft'),), seeds=(0,))
    decode = dataclasses.replace(study.experiment.decode, record='top')
    study = dataclasses.replace(study, experiment=dataclasses.replace(study.experiment, decode=decode))
    check(study)
    write_traces(study, str(tmp_path))
    outcomes = distilling.distil(study, str(tmp_path))
    assert {o.threat.log_probs for o in outcomes if o.source == 'defended'} == {2}
    assert not any(o.diverged for o in outcomes)


def test_missing_traces_are_named(students, tmp_path):
    study = make_study(students)
    write_traces(study, str(tmp_path), seeds=(0,))
    with pytest.raises((InputError, WorkdirError), match=r'seed 1|seeds/1'):
        distilling.distil(study, str(tmp_path))


def test_prompts_that_are_graded_on_are_not_trained_on(students, tmp_path, monkeypatch):
    study = make_study(students, seeds=(0,))
    write_traces(study, str(tmp_path))
    same = [dataclasses.replace(prompt, split='tune') for prompt in DATASET.prompts('train')]
    monkeypatch.setattr(Arithmetic, 'prompts', lambda self, split: same)
    with pytest.raises(InputError, match='held apart'):
        distilling.distil(study, str(tmp_path))


def test_the_test_split_is_read_by_frozen_studies_only(students, tmp_path):
    study = make_study(students, split='test', seeds=(0,), attacks=(Attack('sft'),))
    write_traces(study, str(tmp_path))
    with pytest.raises(ConfigError, match='may not read the split test'):
        distilling.distil(study, str(tmp_path))
    assert launch.freeze(study, str(tmp_path)) == 0
    more = dataclasses.replace(study, attacks=(*study.attacks, Attack('longer', longer=2.0)))
    with pytest.raises(ConfigError, match='may not read the split test'):
        distilling.distil(more, str(tmp_path))
    readings.freeze(str(tmp_path / 'earlier'), study_hash(more))
    assert readings.read_test(str(tmp_path / 'earlier'), commitment(more), 'x', study_hash(more)) == 1
    outcomes = distilling.distil(study, str(tmp_path))
    assert {o.split for o in outcomes} == {'attack_val', 'test'}
    graded = [o for o in outcomes if o.split == 'test' and o.source != 'own']
    read = [one['arm'] for one in readings.readings(str(tmp_path))]
    assert sorted(read) == sorted(f'{o.seed}/{o.student}/{o.attack}/{o.arm or o.source}' for o in graded)
