"""Studies end to end on tiny students: grids, frozen settings, sources and resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

import pytest
from studies import DATASET, STRANGE, make_study, write_traces

from adx import assessing, cohorts, distilling, outcomes_io, readings, selecting, study_traces
from adx.attacks import Attack
from adx.attacks.mixing import MixClean
from adx.datasets import Arithmetic
from adx.defences import ProductOfExperts
from adx.errors import ConfigError, InputError, WorkdirError
from adx.experiment import ModelSource
from adx.selection import Selection
from adx.storage import Workdir
from adx.study import Student, attack_hashes, check, commitment, study_hash
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


def test_missing_traces_are_named(students, tmp_path):
    study = make_study(students)
    write_traces(study, str(tmp_path), seeds=(0,))
    with pytest.raises((InputError, WorkdirError), match=r'seed 1|seeds/1'):
        distilling.distil(study, str(tmp_path))


def test_traces_of_another_experiment_are_refused(students, tmp_path):
    """Also where the study is as it was: a weaker rule decoded them."""
    study = make_study(students, seeds=(0,))
    write_traces(study, str(tmp_path))
    weak = dataclasses.replace(study.experiment.arms[1], defence=ProductOfExperts(gamma=0.25))
    weaker = dataclasses.replace(study.experiment, arms=(study.experiment.arms[0], weak))
    with pytest.raises(WorkdirError, match='belongs to another experiment'):
        distilling.distil(dataclasses.replace(study, experiment=weaker), str(tmp_path))
    assert study_traces.read(study, str(tmp_path), 0)


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
    for later in (more, dataclasses.replace(study, seeds=(0, 1)), dataclasses.replace(study, searched=('first',))):
        write_traces(study, str(tmp_path), seeds=set(later.seeds) - {0})
        with pytest.raises(ConfigError, match='may not read the split test'):
            distilling.distil(later, str(tmp_path))
    readings.freeze(str(tmp_path / 'earlier'), study_hash(more))
    assert readings.read_test(str(tmp_path / 'earlier'), commitment(more), 'x', study_hash(more)) == 1
    outcomes = distilling.distil(study, str(tmp_path))
    assert {o.split for o in outcomes} == {'attack_val', 'test'}
    graded = [o for o in outcomes if o.split == 'test' and o.source != 'own']
    read = [one['arm'] for one in readings.readings(str(tmp_path))]
    assert sorted(read) == sorted(f'{o.seed}/{o.student}/{o.attack}/{o.arm or o.source}' for o in graded)
    assert assessing.find(study, str(tmp_path)).outcomes
    for promised in ({'searched': ('first',)}, {'left_out': (('paraphrase', 'no model'),)}):
        with pytest.raises(ConfigError, match='may not read the split test'):  # a figure of it is a reading too
            assessing.find(dataclasses.replace(study, **promised), str(tmp_path))


def test_a_student_with_the_weights_of_a_proxy_is_no_stranger(students, tmp_path):
    copy = str(tmp_path / 'copy')
    shutil.copytree(students[0], copy)
    study = make_study(students, seeds=(0,), attacks=(Attack('sft'),))
    study = dataclasses.replace(study, students=(Student('copy', ModelSource(copy)),))
    write_traces(study, str(tmp_path / 'work'))
    with pytest.raises(ConfigError, match="'copy' has the weights of a proxy"):
        distilling.distil(study, str(tmp_path / 'work'))


def test_a_study_begins_with_the_passive_attack(students):
    for first in (Attack('longer', longer=2.0), Attack('mixed', (MixClean(0.5),)), Attack('own', loss='on_policy')):
        with pytest.raises(ConfigError, match=f'begins with {first.name!r}; the first is the passive one'):
            check(make_study(students, attacks=(first, Attack('sft'))))
    turned = (Attack('one'), Attack('two'))
    assert commitment(make_study(students, attacks=turned)) != commitment(make_study(students, attacks=turned[::-1]))
