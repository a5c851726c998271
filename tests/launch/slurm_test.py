"""Batch scripts of Slurm: by shellcheck, and run with stand-ins for srun, squeue and scontrol."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from adx.errors import ConfigError
from launch.jobs import Site
from launch.slurm import Slurm
from tests.launchers import HOSTILE, KEY, Programs, check_golden, job, shellcheck

FLAGS = ('--config=configs/smollm2_poe.py', '--workdir=/shared/poe')
GIVEN = {'image': '', 'flags': FLAGS, 'shards': 8}
SLURM = Slurm(Site(), gpus=1, partition='gpu', time='12:00:00', python='/opt/adx/bin/python', directory='/shared/adx')
# As Slurm sets them in the third task of an array.
TASK = 'export SLURM_JOB_ID=41 SLURM_ARRAY_TASK_ID=2 SLURM_ARRAY_TASK_COUNT=8 SLURM_RESTART_COUNT={restarts}\n'
SRUN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get('HF_TOKEN')]))
sys.exit(int(os.environ['FAKE_CODE']))
"""


@pytest.fixture
def node(tmp_path) -> Programs:
    programs = Programs(tmp_path, 'squeue', 'scontrol')
    programs.add('srun', SRUN)
    programs.answer({'squeue': (0, 'RUNNING\n', '')})
    return programs


def on(node: Programs, code: int = 0, restarts: int = 0, **changes):
    """Runs the script of a job whose program ends with a code."""
    slurm = dataclasses.replace(SLURM, directory=str(node.bin.parent))
    start = TASK.format(restarts=restarts) + f'export FAKE_CODE={code}\n'
    return node.bash(start + slurm.script(job(**(GIVEN | changes))))


def test_golden_and_shellcheck():
    commands = [*SLURM.submission(job(**GIVEN)), *SLURM.listing(), *SLURM.cancel(job())]
    script = '\n'.join(map(str, commands)) + '\n'
    shellcheck(script)
    check_golden('slurm.sh', script)
    secrets = {'HF_TOKEN': '/home/me/hub token'}
    for changes in ({}, {'distributed': True, 'shards': 1, 'hosts': 4}, {'flags': (HOSTILE,), 'secrets': secrets}):
        shellcheck(SLURM.script(job(**(GIVEN | changes))))
    check_golden('slurm_distributed.sh', SLURM.script(job(**(GIVEN | {'distributed': True, 'shards': 1, 'hosts': 4}))))


def test_a_task_gets_its_share_and_what_was_said(node, tmp_path):
    (tmp_path / 'token').write_text('from the file\n')
    secrets = {'HF_TOKEN': str(tmp_path / 'token')}
    done = on(node, flags=(HOSTILE,), variables={'NOTE': '$(touch pwned)'}, secrets=secrets)
    assert done.returncode == 0, done.stderr
    words, secret = json.loads(done.stdout)
    assert words == ['/opt/adx/bin/python', '-m', 'launch.run', HOSTILE, '--shard=2', '--num_shards=8']
    assert secret == 'from the file'
    assert node.nothing_was_made()
    assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize('code', [74, 75])
def test_what_can_continue_is_queued_again(node, code):
    done = on(node, code)
    assert done.returncode == code
    assert ['scontrol', 'requeue', '41'] in node.calls


@pytest.mark.parametrize('code', [0, 2, 3, 4, 5, 70, 134])
def test_anything_else_is_not(node, code):
    assert on(node, code).returncode == code
    assert node.calls == []


def test_retries_have_an_end(node):
    assert on(node, 75, restarts=3, retries=3).returncode == 75
    assert node.calls == []


def test_a_cancelled_job_stays_cancelled(node):
    node.answer({'squeue': (0, 'COMPLETING\n', '')})
    assert on(node, 75).returncode == 75
    assert ['scontrol', 'requeue', '41'] not in node.calls


def test_one_program_takes_no_shard_and_all_gpus_of_its_host(node):
    """Without the variable JAX takes those of SLURM_LOCALID, one."""
    node.add('srun', SRUN.replace('HF_TOKEN', 'JAX_LOCAL_DEVICE_IDS'))
    slurm = dataclasses.replace(SLURM, gpus=4, directory=str(node.bin.parent))
    script = slurm.script(job(**(GIVEN | {'distributed': True, 'shards': 1, 'hosts': 4})))
    words, devices = json.loads(node.bash(f'export FAKE_CODE=0\n{script}').stdout)
    assert (words, devices) == (['/opt/adx/bin/python', '-m', 'launch.parent', '--', *FLAGS], '0,1,2,3')
    assert 'JAX_LOCAL_DEVICE_IDS' not in slurm.script(job(**GIVEN))


def test_logs_are_those_of_the_job(tmp_path):
    """Of an array and of one program, and not of the job poe-2."""
    for name in ('poe-41_0.log', 'poe-42.log', 'poe-2-123.log', 'poe-2-41_0.log', 'poe-x.log'):
        (tmp_path / name).touch()
    (shown,) = dataclasses.replace(SLURM, directory=str(tmp_path)).logs(job(**GIVEN))
    assert shown.words[-2:] == (f'{tmp_path}/poe-41_0.log', f'{tmp_path}/poe-42.log')
    assert len(shown.words) == 5


@pytest.mark.parametrize(('there', 'calls'), [('', ['squeue', 'sbatch']), ('41_2 RUNNING\n', ['squeue'])])
def test_the_same_command_again(tmp_path, monkeypatch, there, calls):
    programs = Programs(tmp_path, 'squeue', 'sbatch')
    monkeypatch.setenv('PATH', programs.path)
    programs.answer({'squeue': (0, there, '')})
    SLURM.submit(job(**GIVEN))
    assert [call[0] for call in programs.calls] == calls


@pytest.mark.parametrize(
    ('slurm', 'changes', 'message'),
    [
        (SLURM, {'image': 'x/y:1'}, 'are not for Slurm'),
        (dataclasses.replace(SLURM, site=Site(kms_key=KEY)), {}, "is not for Slurm: its disks are the cluster's"),
        (dataclasses.replace(SLURM, partition='gpu\n#SBATCH --uid=0'), {}, '--partition='),
        (dataclasses.replace(SLURM, time='1;reboot'), {}, '--time='),
        (dataclasses.replace(SLURM, python='/opt/x\ny'), {}, 'must have no line break'),
    ],
)
def test_refusals(slurm, changes, message):
    with pytest.raises(ConfigError, match=message):
        slurm.check(job(**(GIVEN | changes)))
