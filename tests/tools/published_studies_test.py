"""Published figures of studies follow from the students in their raw files, and the README states nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest
from studies import make_study, write_students, write_traces

from adx import assessing, distilling
from adx.attacks import AnswerOnly, Attack
from adx.drafting import Rewrite
from adx.errors import InputError, WorkdirError
from adx.outcomes import Quality
from adx.quality import Criterion
from adx.rewriters.rendered import Rendered
from tools.bench import frontier

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    students = write_students(tmp_path_factory.mktemp('students'))
    return make_study(students[:1], attacks=make_study(students).attacks[:1])


@pytest.fixture(scope='module')
def findings(study, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('study'))
    write_traces(study, path)
    distilling.distil(study, path)
    return assessing.find(study, path)


@pytest.fixture
def published(study, findings, tmp_path):
    frontier.publish('one', study, findings, 'python -m publish', tmp_path)
    return tmp_path


def test_rows_are_those_of_the_report(findings, published):
    rows, reported = frontier.read(published), findings.rows()
    assert [row['figure'] for row in rows] == [row.figure for row in reported]
    assert [row['value'] for row in rows] == [row.value for row in reported]
    frontier.verify(published)


def test_studies_stand_beside_each_other_and_one_is_replaced(study, findings, published):
    frontier.publish('two', study, findings, 'python -m publish', published)
    frontier.publish('one', study, findings, 'python -m again', published)
    rows = frontier.read(published)
    assert len(rows) == 2 * len(findings.rows())
    assert {row['command'] for row in rows if row['study'] == 'one'} == {'python -m again'}
    frontier.verify(published)


def test_attacks_of_another_workdir_are_added(study, findings, published):
    other = [dataclasses.replace(one, attack='mixed') for one in findings.outcomes if one.source != 'base']
    plan = dataclasses.replace(findings.plan, attacks=('sft', 'mixed'))
    alone = dataclasses.replace(findings, plan=plan, outcomes=other, qualities=[])
    both = frontier.added('one', study, alone, published)
    frontier.publish('one', study, both, 'python -m publish', published)
    frontier.verify(published)
    rows = [row for row in frontier.read(published) if row['figure'] == 'damage_attacked']
    values = {(row['attack'], row['student']): (row['value'], row['status']) for row in rows}
    assert {attack for attack, _ in values} == {'sft', 'mixed'}
    again = frontier.added('one', study, findings, published)  # of what both have, the workdir's
    assert len(again.outcomes) == len(both.outcomes)
    with pytest.raises(InputError, match='is of another study'):
        frontier.added('one', dataclasses.replace(study, exam=5), findings, published)
    ungraded = dataclasses.replace(findings, outcomes=[], plan=dataclasses.replace(findings.plan, slices={}))
    timed = [
        Quality('poe', 0, 'p', (True,), (True,), (True,), {}, 50.0, 40.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, seconds=x)
        for x in (3.0, 5.0)
    ]
    frontier.publish('one', study, dataclasses.replace(both, qualities=timed[:1]), 'python -m publish', published)
    again = frontier.added('one', study, dataclasses.replace(findings, qualities=timed[1:]), published)
    assert [one.seconds for one in again.qualities] == [3.0]
    kept = frontier.added('one', study, ungraded, published).plan.slices
    assert {name: tuple(labels) for name, labels in kept.items()} == dict(findings.plan.slices)
    other = dataclasses.replace(study, attacks=(dataclasses.replace(study.attacks[0], answered=True),))
    with pytest.raises(WorkdirError, match='is of another attack'):
        frontier.added('one', other, findings, published)
    with pytest.raises(InputError, match='has no raw file to add to'):
        frontier.added('none', study, findings, published)


def test_what_was_forced_is_judged_anew_where_nothing_was_measured(study, findings, tmp_path):
    """Raw files of before say that who cannot be forced at all loses nothing."""
    right, wrong = (True,) * 10, (False,) * 10
    sides = {
        arm: Quality(arm, 0, 'p', right, wrong, right, {}, 50.0, 40.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        for arm in study.arms
    }
    held = Criterion('forced_accuracy_loss', 0.0, -0.001, 0.001, (-math.inf, 0.01), True)
    other = Criterion('tokens', 1.0, 0.99, 1.01, (0.8, 1.25), True)
    said = dataclasses.replace(findings, qualities=[*sides.values()], verdicts={'poe': [held, other]})
    again = frontier._from_json(json.loads(json.dumps(frontier._to_json(said))))
    assert math.isnan(again.verdicts['poe'][0].value)
    assert again.verdicts['poe'][1]._replace(limit=other.limit) == other
    assert {row.eligible for row in again.rows() if row.arm == 'poe'} == {None}
    sides['plain'] = dataclasses.replace(sides['plain'], forced=right)
    lost = frontier._from_json(json.loads(json.dumps(frontier._to_json(dataclasses.replace(
        said, qualities=[*sides.values()]
    )))))  # fmt: skip
    assert {row.eligible for row in lost.rows() if row.arm == 'poe'} == {False}


def test_studies_of_rewrites_have_a_table_of_their_own(study, findings, published):
    of = dataclasses.replace(study.experiment, rewrites=(Rewrite('told', 'plain', Rendered()),))
    bare = dataclasses.replace(study, experiment=of)
    with pytest.raises(InputError, match=r"no student that AnswerOnly taught from \['plain', 'told'\]"):
        frontier.publish('two', bare, findings, 'python -m publish', published)
    alone = dataclasses.replace(bare, attacks=(*study.attacks, Attack('answer_only', (AnswerOnly(),))))
    with pytest.raises(InputError, match=r"taught from \['plain', 'told'\]"):  # promised and not run
        frontier.publish('two', alone, findings, 'python -m publish', published)
    beside = [
        dataclasses.replace(one, attack='answer_only', arm={'poe': 'told'}.get(one.arm, one.arm))
        for one in findings.outcomes if one.arm
    ]  # fmt: skip
    graded = dataclasses.replace(findings, outcomes=[*findings.outcomes, *beside])
    frontier.publish('two', alone, graded, 'python -m publish', published)
    assert 'length_ratio' in frontier.render('two', published).splitlines()[0]
    assert 'length_ratio' not in frontier.render('one', published)
    for table, name in (('frontier.json', 'one'), ('rewriting.json', 'two')):
        assert {row['study'] for row in json.loads((published / table).read_text())} == {name}
    frontier.verify(published)


def test_a_study_with_each_budget_is_published_and_has_a_column_of_damage_at_equal_steps(study, findings, tmp_path):
    frontier.publish('one', study, findings, 'python -m publish', tmp_path)
    assert 'damage_at_steps' not in frontier.render('one', tmp_path)
    right = {'base': 1, 'clean': 9, 'defended': 5}  # of ten

    def graded(one, seed):
        count = right[one.source]
        budgets = ({'step': 2, 'tokens': 20, 'accuracy': count / 10},)
        return dataclasses.replace(one, seed=seed, correct=(True,) * count + (False,) * (10 - count), budgets=budgets)

    mine = [one for one in findings.outcomes if one.split == 'tune' and one.source in right and one.seed == 0]
    outcomes = [graded(one, seed) for one in mine for seed in (0, 1)]
    frontier.publish('one', study, dataclasses.replace(findings, outcomes=outcomes), 'python -m publish', tmp_path)
    frontier.verify(tmp_path)
    head, _, line, *_ = frontier.render('one', tmp_path).splitlines()
    found = dict(zip(head.split(' | '), line.split(' | '), strict=True))
    assert found['damage_at_steps'] == '0.50 [0.50, 0.50]'


def test_a_study_that_was_not_run_has_empty_rows_with_the_reason(study, findings, published):
    frontier.skip('bridge', study, 'no GPU was at hand', published)
    frontier.skip('ladder', dataclasses.replace(study, ladder=('sft',)), 'no winner', published)
    rows = [row for row in frontier.read(published) if row['raw'] is None]
    assert {(row['study'], row['figure'], row['defence'], row['student']) for row in rows} == {
        ('bridge', 'points_lost', 'poe', 'first'), ('bridge', 'damage', 'poe', 'first'),
        ('ladder', 'cost_multiplier', 'poe', 'first'),
    }  # fmt: skip
    assert {row['status'] for row in rows} == {'not_run'}
    assert {row['reason'] for row in rows} == {'not run: no GPU was at hand', 'not run: no winner'}
    before = frontier.read(published)
    frontier.republish(published)
    assert sorted(map(str, frontier.read(published))) == sorted(map(str, before))
    frontier.verify(published)
    frontier.publish('bridge', study, findings, 'python -m publish', published)  # run after all
    assert {row['study'] for row in frontier.read(published) if row['raw'] is None} == {'ladder'}


def test_rows_are_written_anew_from_the_raw_files(published):
    before = frontier.read(published)
    (published / 'frontier.json').write_text(json.dumps([row | {'value': None} for row in before[:3]]))
    frontier.republish(published)
    assert frontier.read(published) == before


@pytest.mark.parametrize('field', ['value', 'low', 'n', 'status', 'eligible'])
def test_tampering_is_caught(published, field):
    rows = frontier.read(published)
    row = next(row for row in rows if row['figure'] == 'points_lost')
    row[field] = 5.0 if field in ('value', 'low', 'n') else 'x'
    (published / 'frontier.json').write_text(json.dumps(rows))
    with pytest.raises(InputError, match='states points_lost/poe/sft/first otherwise'):
        frontier.verify(published)


def test_another_raw_file_is_caught(published):
    next((published / 'raw').iterdir()).write_bytes(b'other')
    with pytest.raises(InputError, match='is not the file whose hash'):
        frontier.verify(published)


def test_a_study_without_students_is_not_published(study, findings, tmp_path):
    empty = assessing.Findings(findings.plan, [], [], {})
    with pytest.raises(InputError, match='no graded student'):
        frontier.publish('none', study, empty, 'python -m publish', tmp_path)


def test_the_published_table_verifies_and_readme_states_every_study():
    frontier.verify()
    page = (ROOT / 'README.md').read_text('utf-8')
    assert frontier.rewrite(page) == page, 'run `python -m tools.bench.frontier --render=README.md`'
    measured = {row['study'] for row in frontier.read() if row['raw'] is not None}
    missing = [name for name in measured if f'<!-- frontier:{name} -->' not in page]
    assert not missing, 'give each a <!-- frontier:STUDY --> block'
