"""Launchers as their user meets them: flags in, commands or one line of error out."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.launchers import HOSTILE, KEY, ROOT, Forks, Programs, shellcheck

CONFIG = ('--config=configs/testbed_small.py', '--name=small')
IMAGE = '--image=us-docker.pkg.dev/my-project/adx/run:1'
CLOUD = (*CONFIG, '--workdir=gs://bucket/small', IMAGE)
BATCH = ('gcp_batch', *CLOUD, '--region=us-central1', '--machine_type=g2-standard-4', '--gpus=1')
TPU = ('tpu_pod', *CLOUD, '--zone=us-west4-a', '--accelerator_type=v5litepod-8')
GKE = ('gke', *CLOUD, '--region=us-west4', '--cluster=adx', '--accelerator_type=v5litepod-8')
XPK = ('gke', '--xpk', *CLOUD, '--zone=us-west4-a', '--cluster=adx', '--accelerator_type=v5litepod-8')
SLURM = ('slurm', *CONFIG, '--workdir=/shared/small')
ALL = {'batch': BATCH, 'tpu': TPU, 'gke': GKE, 'xpk': XPK, 'slurm': SLURM}
LISTS = {'batch': 'gcloud', 'tpu': 'gcloud', 'gke': 'kubectl', 'xpk': 'xpk', 'slurm': 'squeue'}
# Refused before anything is imported that takes time.
FAST = (
    (BATCH, '--spot --reservation=x', '--spot and --reservation exclude each other'),
    (BATCH, '--list --cancel', '--list and --cancel exclude each other'),
    (BATCH, '--name=Big;Job', "--name='Big;Job' is not allowed"),
    (BATCH, '--image=$(reboot)', "--image='$(reboot)' is not allowed"),
    (BATCH, '--region=us-central1;x', "--region='us-central1;x' is not allowed"),
    (BATCH, '--kms_key=mine', "--kms_key='mine' is not allowed"),
    (BATCH, '--label=Team', "--label='Team' is not allowed"),
    (BATCH, '--retries=11', 'flag --retries=11'),
    (BATCH, '--shard=1', '--shard is not for a launcher'),
    (BATCH, '--status', '--status is not for a launcher'),
    (BATCH, '--env=HF_TOKEN=x', '--env=HF_TOKEN=... is named like a secret'),
    (BATCH, '--secret=HF_TOKEN=hf_0123456789abcdef', '--secret=NAME:... is not allowed'),
    (BATCH, '--set=a=hf_0123456789abcdef', '--set holds what looks like a secret'),
    (BATCH, '--label=token=hf_0123456789abcdef', '--label holds what looks like a secret'),
    (BATCH, '--service_account=ya29.abcdefghij0123456789', '--service_account holds what looks like a secret'),
    (BATCH, '--machine_type=hf_0123456789abcdef', '--machine_type holds what looks like a secret'),
    (BATCH, '--prices=hf_0123456789abcdef', '--prices holds what looks like a secret'),
    (BATCH, '--preflight --label=token=hf_0123456789abcdef', '--label holds what looks like a secret'),
    (TPU, '--accelerator_type=hf_0123456789abcdef', '--accelerator_type holds what looks like a secret'),
    (TPU, '--runtime_version=hf_0123456789abcdef', '--runtime_version holds what looks like a secret'),
    (GKE, '--cluster=hf_0123456789abcdef', '--cluster holds what looks like a secret'),
    (SLURM, '--partition=hf_0123456789abcdef', '--partition holds what looks like a secret'),
    (SLURM, '--python=hf_0123456789abcdef', '--python holds what looks like a secret'),
    (BATCH, '--shards=2 --stages=generate,distil', 'run generate,rewrite and assess,distil one by one'),
    (BATCH, '--shards=2 --stages=distil,report', '--stages=report is the work of one process'),
    (BATCH, '--shards=2 --stages=prepare', '--stages=prepare is the work of one process'),
    (BATCH, '--distributed --shards=2', '--distributed is one program'),
    (BATCH, '--region=europe-west1 --zone=europe-west10-a', '--zone=europe-west10-a is not in --region=europe-west1'),
    (SLURM, '--hosts=3', '--hosts=3 is of one program: add --distributed'),
    (BATCH, '--workdir=/tmp/x', '--workdir=/tmp/x would end with its machine'),
    (BATCH, '--config=/home/me/config.py', 'is read inside the image'),
    (BATCH, '--config=../config.py', 'is read inside the image'),
    (TPU, '--accelerator_type=v5e-8', '--accelerator_type=v5e-8 is not known'),
    (TPU, '--zone=us-west4', "--zone='us-west4' is not allowed"),
    (TPU, '--delete', '--shards is needed'),
    (GKE, '--cluster=a;b', "--cluster='a;b' is not allowed"),
    (GKE, '--shards=0', 'flag --shards=0'),
    (SLURM, IMAGE, 'are not for Slurm'),
    (('gcp_batch',), '--list', '--region is needed'),
    (('gke', '--region=us-west4'), '--list', '--cluster is needed'),
    (('gke', '--xpk', '--cluster=adx'), '--list', '--xpk needs --cluster and --zone'),
    (('tpu_pod',), '--list', '--zone is needed'),
    (TPU[:-1], '--spot', '--accelerator_type is needed'),
    (XPK[:-1], '--spot', '--xpk needs --accelerator_type'),
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Runs a launcher with these arguments and more."""
    forks = Forks(tmp_path_factory.mktemp('forks'))
    yield lambda given, *more, **variables: forks.run(f'launch.{given[0]}', *given[1:], *more, **variables)
    forks.close()


@pytest.fixture
def programs(tmp_path) -> Programs:
    return Programs(tmp_path, 'gcloud', 'kubectl', 'xpk', 'sbatch', 'squeue', 'scancel')


@pytest.mark.parametrize(('arguments', 'more', 'message'), FAST)
def test_refusals_are_one_line_and_2(run, arguments, more, message):
    done = run(arguments, *more.split(' '))
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1), done.stderr
    assert done.stderr.startswith('error: ')
    assert message in done.stderr
    assert 'hf_0123456789abcdef' not in done.stderr
    assert 'ya29' not in done.stderr


@pytest.mark.parametrize('launcher', ALL)
def test_a_dry_run_calls_nobody_and_prints_a_script(run, launcher, programs):
    done = run(ALL[launcher], '--dry_run', PATH=programs.path)
    assert done.returncode == 0, done.stderr
    assert programs.calls == []
    shellcheck(f'#!/bin/bash\n{done.stdout}')
    comments = [line for line in done.stdout.splitlines() if line.startswith('# ')]
    assert re.match(r'# requests: \d+ prompts x 1 samples x \d+ arms x \d+ seeds = \d+ traces of at most', comments[0])
    assert comments[1].startswith('# device-hours: unknown; give --tokens_per_second')
    assert comments[2].startswith('# cost: unknown; ')


def test_the_job_gets_the_flags_of_launch_run_that_were_given(run, programs):
    flags = (HOSTILE.replace('--set=a', '--sweep=arms.x.a'), '--set=experiment.limit=8', '--set=experiment.samples=2')
    stages = ('--stages=generate,rewrite', '--nolog_text', '--allow_environment_change', '--compile_cache=/proc/none/x')
    stages = (*stages, '--max_hours=11')
    account = '--service_account=123456789-compute@developer.gserviceaccount.com'
    done = run(BATCH, *flags[1:], *stages, account, '--dry_run', '--shards=3')
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("<<'END_OF_INPUT'\n")[1].rpartition('END_OF_INPUT')[0]
    (group,) = json.loads(text)['taskGroups']
    commands = group['taskSpec']['runnables'][0]['container']['commands']
    assert commands[0] == 'launch.run'
    assert set(commands[1:]) == {
        '--config=configs/testbed_small.py', '--workdir=gs://bucket/small', *flags[1:], *stages[:4], '--max_hours=1'
    }  # fmt: skip
    assert '# limit: 11.00 hours, 1.00 for each of 11 attempts' in done.stdout


def test_the_digest_of_an_image_is_no_secret(run):
    image = f'--image=us-docker.pkg.dev/my-project/adx/run@sha256:{"0123456789abcdef" * 4}'
    done = run(BATCH, image, '--dry_run')
    assert done.returncode == 0, done.stderr
    assert image.partition('=')[2] in done.stdout


def test_a_budget_becomes_hours(run, programs, tmp_path):
    """8 chips at 1.20: 96 dollars are ten hours, one for two starts, two attempts of four and a half."""
    row = {'unit': 'v5e', 'region': 'us-west4', 'provisioning': 'on_demand', 'usd_per_hour': 1.2, 'date': '2026-01'}
    (tmp_path / 'prices.json').write_text(json.dumps({'source': 'a test', 'date': '2026-01', 'prices': [row]}))
    prices = f'--prices={tmp_path}/prices.json'
    done = run(TPU, '--dry_run', '--max_usd=96', '--retries=1', '--tokens_per_second=1000', prices)
    assert done.returncode == 0, done.stderr
    assert '--max_hours=4.5 ' in done.stdout
    assert '# limit: 9.00 hours, 4.50 for each of 2 attempts' in done.stdout
    assert 'paid for until --delete' in done.stdout
    assert re.search(r'# cost: at most \d+\.\d\d USD; 1\.2 USD an hour of each v5e in us-west4', done.stdout)
    refused = run(TPU, '--dry_run', '--max_usd=96', '--spot', prices)
    assert (refused.returncode, refused.stdout) == (2, '')
    assert '--max_usd=96 needs a price; no price of v5e in us-west4, spot' in refused.stderr


def test_submitting_and_submitting_again(run, programs):
    programs.answer({'jobs describe': (1, '', 'ERROR: NOT_FOUND: was not found')})
    done = run(BATCH, '--shards=2', PATH=programs.path)
    assert (done.returncode, done.stdout) == (0, 'small is submitted, 2 tasks\n'), done.stderr
    printed = run(BATCH, '--shards=2', '--dry_run').stdout
    assert programs.inputs[1].strip() in printed
    programs.answer({'jobs describe': (0, 'RUNNING\n', '')})
    done = run(BATCH, '--shards=2', PATH=programs.path)
    assert (done.returncode, done.stdout) == (0, 'small is there, RUNNING; nothing was done\n')


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        ((1, '', 'ERROR: You do not currently have an active account selected.\n'), 'gcloud auth login'),
        ((1, '', 'ERROR: RESOURCE_EXHAUSTED: Quota GPUS_ALL_REGIONS exceeded\n'), '--preflight lists the quotas'),
    ],
)
def test_what_gcloud_refuses_is_one_line_and_69(run, programs, answer, message):
    programs.answer({'gcloud': answer})
    done = run(BATCH, '--cancel', PATH=programs.path)
    assert (done.returncode, done.stderr.count('\n')) == (69, 1), done.stderr
    assert message in done.stderr


def test_without_gcloud(tmp_path):
    """As `python -m` starts it."""
    command = [sys.executable, '-m', 'launch.gcp_batch', *BATCH[1:], '--list']
    done = subprocess.run(command, cwd=ROOT, env={'PATH': str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count('\n')) == (69, 1), done.stderr
    assert 'gcloud cannot be started' in done.stderr


@pytest.mark.parametrize('launcher', ALL)
def test_list_cancel_and_delete_call_what_a_dry_run_prints(run, launcher, programs):
    for action in ('--list', '--cancel', '--delete'):
        programs.answer({})
        done = run(ALL[launcher], action, '--shards=2', PATH=programs.path)
        assert done.returncode == 0, done.stderr
        calls = programs.calls
        assert calls[-1][0] == LISTS[launcher] or action != '--list'
        programs.answer({})
        printed = run(ALL[launcher], action, '--shards=2', '--dry_run', PATH=programs.path).stdout
        assert programs.calls == []
        assert programs.bash(printed).returncode == 0
        assert programs.calls == calls
        if launcher == 'tpu':  # none of these reads it
            without = run(TPU[:-1], action, '--shards=2', '--dry_run')
            assert (without.returncode, without.stdout) == (0, printed), without.stderr
        assert 'gs://' not in printed
        assert '/shared/small' not in printed


def test_deleting_in_a_cluster_that_is_not_there_is_69_and_deletes_nowhere(run, programs):
    programs.answer({'get-credentials': (1, '', 'ERROR: ResponseError: code=404, message=Not found: adx.\n')})
    done = run(GKE, '--delete', PATH=programs.path)
    assert (done.returncode, [call[0] for call in programs.calls]) == (69, ['gcloud']), done.stderr
    printed = run(GKE, '--delete', '--dry_run').stdout
    assert programs.bash(printed).returncode == 1
    assert [call[0] for call in programs.calls] == ['gcloud', 'gcloud']


def test_all_shards_are_cancelled_although_one_is_not_there(run, programs):
    programs.answer({'small-0': (1, '', 'ERROR: NOT_FOUND: small-0\n')})
    done = run(TPU, '--cancel', '--shards=2', PATH=programs.path)
    assert (done.returncode, len(programs.calls)) == (69, 2), done.stderr


@pytest.mark.parametrize('launcher', ALL)
def test_preflight_lists_what_is_needed_and_calls_nobody(run, launcher, programs):
    more = () if launcher in ('slurm', 'xpk') else ('--secret=HF_TOKEN:hub/token',) if launcher == 'gke' else (
        '--secret=HF_TOKEN:projects/my-project/secrets/hub/versions/1',
    )  # fmt: skip
    key = () if launcher == 'slurm' else (f'--kms_key={KEY}', '--spot', '--project=my-project')
    done = run(ALL[launcher], '--preflight', *more, *key, PATH=programs.path)
    assert done.returncode == 0, done.stderr
    assert programs.calls == []
    shellcheck(f'#!/bin/bash\n{done.stdout}')
    if launcher == 'slurm':
        return
    for wanted in (
        'APIs', 'Capacity', 'Spot', 'Quotas', 'roles/', 'gcloud services list', 'get-iam-policy gs://bucket', 'app=adx',
        'roles/cloudkms.cryptoKeyEncrypterDecrypter', f'gcloud kms keys get-iam-policy {KEY}', 'quota',
    ):  # fmt: skip
        assert wanted in done.stdout, wanted
    for account in ('ACCOUNT', 'SERVICE_ACCOUNT'):
        assert f'--filter=bindings.members:{account}\n' in done.stdout
    assert "gcloud projects get-iam-policy my-project '--flatten=bindings[].members'" in done.stdout
    assert 'gcloud compute reservations list --project=my-project' in done.stdout
    assert 'roles/owner' not in done.stdout
    assert 'roles/editor' not in done.stdout


@pytest.mark.parametrize(
    ('reservation', 'shown'),
    [
        ('kept', 'reservations describe kept --zone=us-central1-a --project=my-project\n'),
        ('projects/other/reservations/kept', 'reservations describe kept --zone=us-central1-a --project=other\n'),
    ],
)
def test_preflight_shows_the_reservation_and_the_roles_of_the_jobs_account(run, reservation, shown):
    account = 'runner@my-project.iam.gserviceaccount.com'
    more = (f'--reservation={reservation}', f'--service_account={account}', '--zone=us-central1-a')
    done = run(BATCH, '--preflight', *more, '--project=my-project')
    assert done.returncode == 0, done.stderr
    assert f'gcloud compute {shown}' in done.stdout
    assert f'--filter=bindings.members:{account}\n' in done.stdout
    assert f'gcloud iam service-accounts get-iam-policy {account} --project=my-project\n' in done.stdout
    assert 'SERVICE_ACCOUNT' not in done.stdout


@pytest.mark.parametrize('program', ['gcp_batch', 'tpu_pod', 'gke', 'slurm'])
def test_help_says_the_shared_flags_too(run, program):
    shown = run((program,), '--help').stdout
    for flag in ('--shards', '--config', '--[no]preflight', '--max_usd', '--kms_key', 'Exit codes: 0'):
        assert flag in shown
