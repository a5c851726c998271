"""A study from its config to its report, by the program, on the models that ship."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny

from adx import study_traces
from adx.storage import Workdir

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '--config=configs/testbed_small.py'


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    """Both seeds and all processes share programs, which are as users have them: it trains for minutes."""
    found = tiny.environment(tmp_path_factory.mktemp('cache')) | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield


def run(*arguments, code=0):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'launch.run', *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_small_study_runs_to_its_report(tmp_path):
    shown = run(CONFIG, '--dry_run')
    assert 'students: up to 3 on the first seed' in shown
    assert 'memory per device' in shown
    stages = '--stages=prepare,generate,distil,assess,report'
    shown = run(CONFIG, f'--workdir={tmp_path}', stages)
    assert shown.count('96 traces decoded') == 2
    assert 'ahead: up to 4 students, 40 steps' in shown
    assert '8 students graded on tune, 2 on attack_val' in shown  # base, own and two arms of two seeds
    content = json.loads((tmp_path / 'private' / 'report' / 'report.json').read_text())
    rows = {(row['figure'], row['arm']): row for row in content['rows']}
    assert rows['teacher_accuracy', 'plain']['value'] > 80  # it solves 94 % of what it is asked here, 48 prompts a seed
    asked = [
        {trace.request_id.split('/')[2] for trace in Workdir(study_traces.seed_path(str(tmp_path), seed)).traces()}
        for seed in (0, 1)
    ]
    assert [len(rows) for rows in asked] == [48, 48]
    assert not asked[0] & asked[1]
    lost = [row for row in content['rows'] if row['figure'] == 'points_lost']
    assert [(row['arm'], row['n'], row['status']) for row in lost] == [('ads_budget', 2, 'screen')]
    assert rows['cost_per_token', 'ads_budget']['status'] == 'screen'
    assert (tmp_path / 'private').stat().st_mode & 0o777 == 0o700
    status = json.loads(run('--status', f'--workdir={tmp_path}'))
    assert status['outcomes'] == 10
    assert {seed: one['done'] for seed, one in status['seeds'].items()} == {'0': 96, '1': 96}
    again = run(CONFIG, f'--workdir={tmp_path}', '--stages=distil')
    assert 'ahead: up to 0 students' in again
    foreign = run(CONFIG, f'--workdir={tmp_path}', '--stages=distil', '--set=recipe.rows=4', code=4)
    assert 'belongs to another study (theirs != ours): recipe.rows: 8 != 4' in foreign


def test_a_stage_of_the_other_kind_is_named(tmp_path):
    shown = run(CONFIG, f'--workdir={tmp_path}', '--stages=export', code=2)
    assert '--stages=export is none of a study' in shown
    shown = run('--config=configs/demo.py', f'--workdir={tmp_path}', '--stages=distil', code=2)
    assert '--stages=distil is none of an experiment' in shown
