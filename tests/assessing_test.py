"""Quality and report of a study whose traces are known."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from studies import make_study, write_students, write_traces

from adx import assessing, distilling, rewriting, selecting, storage
from adx.attacks import Attack
from adx.drafting import Rewrite
from adx.errors import ConfigError, InputError, StorageError, WorkdirError
from adx.gates import Gates
from adx.processes import ALONE, Place
from adx.rewriters.rendered import Rendered
from adx.selection import Selection
from adx.study_traces import seed_path
from launch import study as stages

pytestmark = pytest.mark.usefixtures('shared_trainers')


@pytest.fixture(scope='module')
def ran(shared_trainers, tmp_path_factory):
    """(study, path, quality) after every stage."""
    directory = tmp_path_factory.mktemp('study')
    study = make_study(write_students(directory), attacks=(Attack('sft'),), seeds=(0, 1), testbed='a <b>tiny</b> bed')
    study = dataclasses.replace(study, judge=study.students[1])
    path = str(directory / 'work')
    write_traces(study, path)
    distilling.distil(study, path)
    second = assessing.assess(study, path, share=Place(1, 2))
    assert {one.seed for one in second} == {1}
    return study, path, assessing.assess(study, path)


def test_traces_are_measured_arm_by_arm_and_seed_by_seed(ran):
    _, _, found = ran
    assert [(one.seed, one.arm) for one in found] == [(0, 'plain'), (0, 'poe'), (1, 'plain'), (1, 'poe')]
    plain, poe = found[:2]
    assert all(plain.correct)
    assert plain.true_steps == poe.true_steps == 1.0
    assert poe.tokens == pytest.approx(plain.tokens + 7)  # its first line
    assert plain.prompts == poe.prompts
    assert plain.finished == 1.0
    assert 0 < plain.nll < 6
    assert min(one.seconds for one in found) > 0


def test_what_is_measured_is_not_measured_again(ran, monkeypatch):
    study, path, found = ran
    monkeypatch.setattr(assessing, 'measure', None)
    assert assessing.assess(study, path) == found


def test_arms_that_a_killed_run_left_are_not_timed_anew(ran, tmp_path, monkeypatch):
    study, path, found = ran
    again = str(tmp_path / 'work')
    shutil.copytree(path, again)
    assessing._place(again, 0, 'poe').unlink()
    monkeypatch.setattr(assessing.timing, 'seconds_per_token', None)
    after = assessing.assess(study, again)
    assert [one.seconds for one in after] == pytest.approx([one.seconds for one in found])
    assert after[1] == dataclasses.replace(found[1], seconds=after[1].seconds)


@pytest.mark.parametrize('fields', [{'exam': 5}, {'learning_rates': (1e-2,)}])
def test_no_report_of_one_study_is_written_under_anothers_name(ran, fields):
    study, path, _ = ran
    with pytest.raises(WorkdirError, match=f'belongs to another study .*{next(iter(fields))}'):
        assessing.report(dataclasses.replace(study, **fields), path)


def test_two_processes_do_not_measure_one_share(ran):
    study, path, _ = ran
    with (
        storage.held(assessing.Workdir(path), 'assess', ['quality']),
        pytest.raises(WorkdirError, match='stage assess, shard 0-of-1'),
    ):
        assessing.assess(study, path)


def test_a_selection_is_measured_under_its_own_name(tmp_path):
    how = {'one': 'first', 'long': 'max_length'}
    study = make_study(write_students(tmp_path), attacks=(Attack('sft'),), seeds=(0,), clean='one')
    selections = tuple(Selection(name, 'plain', by) for name, by in how.items())
    experiment = dataclasses.replace(study.experiment, selections=selections, samples=2)
    study, path = dataclasses.replace(study, experiment=experiment, judge=study.students[1]), str(tmp_path / 'work')
    write_traces(study, path)
    selecting.select(experiment, seed_path(path, 0))
    found = assessing.assess(study, path)
    assert [one.arm for one in found] == ['one', 'long']
    place = assessing._place(path, 0, 'long')
    place.write_text(json.dumps(json.loads(place.read_text()) | {'arm': 'plain'}))  # as it was once filed
    judged, unjudged = assessing.verdicts(study, assessing.qualities(study, path))
    assert {arm: len(criteria) for arm, criteria in judged.items()} == {'long': 8}
    assert unjudged == {}


def test_an_arm_that_lost_a_row_is_not_judged_and_the_others_are(ran):
    study, _, found = ran
    lost = [dataclasses.replace(one, prompts='other') if one.arm == 'poe' else one for one in found]
    beside = [dataclasses.replace(one, arm='third') for one in found if one.arm == 'plain']
    judged, unjudged = assessing.verdicts(study, [*lost, *beside])
    assert judged['poe'] == []
    assert 'measured on other prompts' in unjudged['poe']
    assert len(judged['third']) == 8


def test_a_rewrite_costs_its_rewriter_beside_the_decoding(tmp_path):
    study = make_study(write_students(tmp_path), attacks=(Attack('sft'),), seeds=(0,))
    told = Rewrite('told', 'plain', Rendered(1), Gates(retention=0.1, fluency=100.0))
    experiment = dataclasses.replace(study.experiment, rewrites=(told,))
    study = dataclasses.replace(study, experiment=experiment, judge=study.students[1])
    path = str(tmp_path / 'work')
    write_traces(study, path)
    rewriting.rewrite(experiment, seed_path(path, 0))
    by_arm = {one.arm: one for one in assessing.assess(study, path)}
    a_token = {name: one.seconds / (one.tokens * len(one.correct)) for name, one in by_arm.items()}
    assert a_token['told'] > a_token['plain'] > 0
    costs = json.loads((assessing.Workdir(path).private / 'quality' / 'costs' / '0.json').read_text())['seconds']
    plain = by_arm['plain']
    of_all = plain.tokens * len(plain.correct)  # the rewriter's time was taken for tokens of what it reads
    assert by_arm['told'].seconds == pytest.approx((costs['plain'] + costs['told']) * of_all)
    assert by_arm['told'].tokens != plain.tokens
    rows = assessing.report(study, path)
    assert {row.arm for row in rows if row.figure == 'length_ratio'} == {'poe', 'told'}
    content = json.loads((assessing.Workdir(path).private / 'report' / 'report.json').read_text())
    [[seed, name, counts]] = content['rewrites']
    assert (seed, name, counts['traces']) == ('0', 'told', len(plain.correct))
    html = (assessing.Workdir(path).private / 'report' / 'report.html').read_text()
    row = f'<th scope="row">told</th><td>0</td><td>{counts["rewritten"]}</td><td>{counts["traces"]}</td>'
    assert f'{row}<td>{100 * counts["changed"]:.0f} %</td>' in html
    assert counts['changed'] > 0


def test_longer_traces_are_not_eligible(ran):
    study, _, found = ran
    judged = {one.name: one for one in assessing.verdicts(study, found)[0]['poe']}
    assert not judged['tokens'].holds
    assert judged['retention'].holds


def test_the_report_shows_every_arm_and_its_reasons(ran):
    study, path, _ = ran
    rows = assessing.report(study, path, ['python -m launch.run'])
    lost = [row for row in rows if row.figure == 'points_lost' and row.arm == 'poe']
    assert next(row for row in rows if row.figure == 'cost_per_token' and row.arm == 'poe').status == 'screen'
    assert {row.student for row in lost} == {'first', 'second'}
    assert all(row.n == 2 and row.eligible is False and not row.headline for row in lost)
    html = (assessing.Workdir(path).private / 'report' / 'report.html').read_text()
    content = json.loads((assessing.Workdir(path).private / 'report' / 'report.json').read_text())
    assert 'a &lt;b&gt;tiny&lt;/b&gt; bed' in html
    assert '<b>tiny' not in html
    assert 'python -m launch.run' in html
    assert len(content['rows']) == len(rows)
    sample = content['samples'][0]
    assert set(sample['said']) == {'plain', 'poe'}
    assert all(right for _, right in sample['said'].values())
    assert sample['said']['poe'][0] in html
    audits = json.loads((assessing.Workdir(path).private / 'report' / 'audit.json').read_text())
    assert set(audits) == {'plain', 'poe'}
    assert all(one['right'] == (one['strict'] == one['gold']) for arm in audits.values() for one in arm)
    by = {(row.figure, row.arm): row for row in rows if not row.student}
    assert by['length_ratio', 'poe'].value > 1
    assert by['lenient_accuracy', 'plain'].value == 100
    assert by['fallback', 'poe'].value == by['unparsed', 'plain'].value == 0


def test_the_stages_of_the_launcher_say_what_they_did(ran, capsys):
    study, path, _ = ran
    assert stages.assess(study, path, ALONE) == 0
    assert stages.report(study, path, 'x') == 0
    said = capsys.readouterr().out
    assert 'seed 0, plain: 100.0% right' in said
    assert 'report.html' in said
    assert '12 on the first seed' in stages.count_line(study)  # 2 families x 1 attack x 3 sources x 2 settings
    each = dataclasses.replace(study, seeds=(0, 1, 2), budgets=(2, 4, 8), each_budget=True)
    assert '36 on 2 others' in stages.count_line(each)  # of 6 sources 3 numbers of steps on 2 seeds


def test_a_study_without_a_judge_is_not_assessed(ran):
    study, path, _ = ran
    with pytest.raises(ConfigError, match='give `judge`'):
        assessing.assess(dataclasses.replace(study, judge=None), path)


def test_missing_traces_are_named(ran, tmp_path):
    with pytest.raises(InputError, match="arm 'plain' of seed 0 has 0 of 0 traces"):
        assessing.assess(ran[0], str(tmp_path))


def test_a_damaged_record_is_named(ran):
    study, path, _ = ran
    place = assessing._place(path, 1, 'poe')
    whole = place.read_text()
    place.write_text(whole[: len(whole) // 2])
    try:
        with pytest.raises(StorageError, match=r'poe.json is damaged'):
            assessing.qualities(study, path)
    finally:
        place.write_text(whole)


def test_a_report_compares_the_ranks_of_another_testbed(ran, tmp_path):
    study, path, _ = ran
    other = assessing.Workdir(str(tmp_path)).private / 'report'
    with pytest.raises(StorageError, match='run --stages=report of that study first'):
        assessing.report(study, path, beside=str(tmp_path))
    other.mkdir(parents=True)
    (other / 'report.json').write_text(json.dumps({'rows': [], 'testbed': 'the bridge'}))
    row = assessing.report(study, path, beside=str(tmp_path))[-1]
    assert (row.figure, row.status) == ('rank_agreement', 'not_run')
    assert '0 arms have a damage on both' in row.reason
    assert 'no other testbed' in assessing.report(study, path)[-1].reason
