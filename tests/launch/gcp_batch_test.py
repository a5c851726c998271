"""Batch jobs: what Google's own parser says, what must be in them, and how a job is continued."""

from __future__ import annotations

import dataclasses
import json

import pytest
from google.cloud import batch_v1

from adx.errors import ConfigError
from launch import gcp_batch, run
from launch.commands import CloudError
from launch.gcp_batch import Batch
from tests.launchers import HOSTILE, KEY, SITE, Programs, check_golden, job, shellcheck

BATCH = Batch(SITE, 'g2-standard-4', gpus=1)
ABSENT = (1, '', 'ERROR: (gcloud.batch.jobs.describe) NOT_FOUND: Resource was not found')
SECRETS = {'HF_TOKEN': 'projects/my-project/secrets/hub/versions/3'}


@pytest.fixture
def gcloud(tmp_path, monkeypatch) -> Programs:
    programs = Programs(tmp_path, 'gcloud')
    monkeypatch.setenv('PATH', programs.path)
    monkeypatch.setattr(gcp_batch, 'POLL_SECONDS', 0.0)
    return programs


def parsed(batch: Batch, **changes) -> batch_v1.Job:
    """As Google's parser understands it, and that nothing of it was lost."""
    config = batch.config(job(**changes))
    read = batch_v1.Job.from_json(json.dumps(config))
    text = batch_v1.Job.to_json(read, including_default_value_fields=False, use_integers_for_enums=False)
    assert leaves(json.loads(text)) == leaves(config)
    return read


def leaves(value, path=()):
    """{path: text} without empty things; numbers of 64 bits are text in JSON."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in leaves(item, (*path, name)).items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in leaves(item, (*path, i)).items()}
    return {path: str(value)}


def test_a_task_array_of_shards():
    read = parsed(BATCH, shards=8, secrets=SECRETS, variables={'XLA_FLAGS': '--xla_x=1'})
    (group,) = read.task_groups
    assert (group.task_count, group.parallelism, group.task_count_per_node) == (8, 8, 1)
    (runnable,) = group.task_spec.runnables
    assert runnable.container.image_uri == job().image
    assert list(runnable.container.commands) == ['launch.run', *job().flags]
    assert not runnable.script.text
    assert not runnable.container.entrypoint  # that of the image, which forwards signals
    assert dict(group.task_spec.environment.secret_variables) == SECRETS
    (instance,) = read.allocation_policy.instances
    assert instance.policy.machine_type == 'g2-standard-4'
    assert instance.install_gpu_drivers
    assert read.allocation_policy.location.allowed_locations == ['regions/us-central1']
    assert read.allocation_policy.service_account.email == SITE.service_account
    assert read.logs_policy.destination == batch_v1.LogsPolicy.Destination.CLOUD_LOGGING
    assert read.labels['adx-job'] == 'poe'


def test_the_index_and_count_of_a_task_are_read_by_the_program(monkeypatch):
    """Batch sets these two in every task of the array."""
    monkeypatch.setenv('BATCH_TASK_INDEX', '5')
    monkeypatch.setenv('BATCH_TASK_COUNT', str(parsed(BATCH, shards=8).task_groups[0].task_count))
    assert run._scheduled() == (5, 8)


def test_only_what_can_continue_is_tried_again():
    spec = parsed(BATCH).task_groups[0].task_spec
    (policy,) = spec.lifecycle_policies
    assert policy.action == batch_v1.LifecyclePolicy.Action.RETRY_TASK
    assert list(policy.action_condition.exit_codes) == [74, 75, 50001, 50003]
    assert spec.max_retry_count == 10
    assert parsed(BATCH, retries=3).task_groups[0].task_spec.max_retry_count == 3


def test_a_limit_ends_a_task_that_hangs_too():
    spec = parsed(BATCH, max_hours=1.5).task_groups[0].task_spec
    assert '--max_hours=1.5' in spec.runnables[0].container.commands
    assert spec.max_run_duration.seconds == 1.5 * 3600 + 1800
    assert not parsed(BATCH).task_groups[0].task_spec.max_run_duration


@pytest.mark.parametrize(
    ('site', 'field', 'value'),
    [({'spot': True}, 'provisioning_model', 'SPOT'), ({'reservation': 'kept'}, 'reservation', 'kept')],
)
def test_capacity(site, field, value):
    batch = dataclasses.replace(BATCH, site=dataclasses.replace(SITE, **site))
    found = getattr(parsed(batch).allocation_policy.instances[0].policy, field)
    assert getattr(found, 'name', found) == value


def test_gpus_that_a_machine_does_not_have_by_itself():
    batch = Batch(SITE, 'n1-standard-8', 'nvidia-tesla-t4', 2)
    (accelerator,) = parsed(batch).allocation_policy.instances[0].policy.accelerators
    assert (accelerator.type_, accelerator.count) == ('nvidia-tesla-t4', 2)
    assert batch.fleet(job()).unit == ''  # the price of the machine is not all
    assert batch.fleet(job()).devices == 4


def test_a_key_comes_by_a_template_of_machines():
    batch = dataclasses.replace(BATCH, site=dataclasses.replace(SITE, kms_key=KEY, spot=True))
    (instance,) = parsed(batch).allocation_policy.instances
    assert instance.instance_template == 'adx-poe'
    assert not instance.policy.machine_type
    template, _ = batch.submission(job())
    assert f'--boot-disk-kms-key={KEY}' in template.words
    assert '--provisioning-model=SPOT' in template.words
    check_golden('gcp_batch_key.sh', '\n'.join(map(str, batch.submission(job()))) + '\n')


def test_golden_commands():
    commands = [*BATCH.submission(job(secrets=SECRETS)), *BATCH.listing(), *BATCH.logs(job())]
    commands += [*BATCH.cancel(job()), *BATCH.delete(job())]
    script = '\n'.join(map(str, commands)) + '\n'
    shellcheck(script)
    check_golden('gcp_batch.sh', script)


def test_what_is_printed_is_what_would_run(tmp_path):
    programs = Programs(tmp_path, 'gcloud')
    (submit,) = BATCH.submission(job(flags=(HOSTILE,)))
    done = programs.bash(str(submit))
    assert done.returncode == 0, done.stderr
    assert programs.calls == [list(submit.words)]
    assert json.loads(programs.inputs[0])['taskGroups'][0]['taskSpec']['runnables'][0]['container']['commands'] == [
        'launch.run', HOSTILE
    ]  # fmt: skip
    assert programs.nothing_was_made()


def test_a_job_that_is_not_there_is_submitted(gcloud, capsys):
    gcloud.answer({'jobs describe': ABSENT})
    BATCH.submit(job())
    assert [call[3] for call in gcloud.calls] == ['describe', 'submit']
    assert json.loads(gcloud.inputs[1])['taskGroups']
    assert 'poe is submitted, 2 tasks' in capsys.readouterr().out


@pytest.mark.parametrize('state', ['QUEUED', 'SCHEDULED', 'RUNNING'])
def test_a_job_that_runs_is_left_alone(gcloud, capsys, state):
    gcloud.answer({'jobs describe': (0, f'{state}\n', '')})
    BATCH.submit(job())
    assert [call[3] for call in gcloud.calls] == ['describe']
    assert f'{state}; nothing was done' in capsys.readouterr().out


@pytest.mark.parametrize('state', ['FAILED', 'CANCELLED', 'SUCCEEDED'])
def test_a_job_that_ended_is_continued_under_its_name(gcloud, state):
    there, going = (0, f'{state}\n', ''), (0, 'DELETION_IN_PROGRESS\n', '')
    gcloud.answer({'jobs describe': [there, going, ABSENT]})
    BATCH.submit(job())
    assert [call[3] for call in gcloud.calls] == ['describe', 'delete', 'describe', 'describe', 'submit']


def test_a_deletion_is_not_waited_for_without_end(gcloud, monkeypatch):
    monkeypatch.setattr(gcp_batch, 'DELETION_SECONDS', 0.0)
    gcloud.answer({'jobs describe': (0, 'FAILED\n', '')})
    with pytest.raises(CloudError, match='poe is still in FAILED'):
        BATCH.submit(job())
    assert 'submit' not in [call[3] for call in gcloud.calls]


def test_a_template_that_a_refused_job_left_is_made_anew(gcloud):
    batch = dataclasses.replace(BATCH, site=dataclasses.replace(SITE, kms_key=KEY))
    gcloud.answer({'jobs describe': ABSENT})
    batch.submit(job())
    assert [call[2:4] for call in gcloud.calls] == [
        ['jobs', 'describe'], ['instance-templates', 'delete'], ['instance-templates', 'create'], ['jobs', 'submit']
    ]  # fmt: skip


def test_a_job_that_is_ending_is_waited_for(gcloud):
    gcloud.answer({'jobs describe': (0, 'CANCELLATION_IN_PROGRESS\n', '')})
    with pytest.raises(CloudError, match='run the same command again when it has ended'):
        BATCH.submit(job())
    assert len(gcloud.calls) == 1


def test_deleting_never_touches_the_workdir():
    for batch in (BATCH, dataclasses.replace(BATCH, site=dataclasses.replace(SITE, kms_key=KEY))):
        for one in (*batch.delete(job()), *batch.cancel(job())):
            assert one.words[1] in ('batch', 'compute')
            assert 'gs://' not in str(one)


@pytest.mark.parametrize(
    ('batch', 'changes', 'message'),
    [
        (BATCH, {'distributed': True}, 'is not for Batch'),
        (Batch(SITE, ''), {}, '--machine_type is needed'),
        (Batch(SITE, 'n1-standard-8', 'nvidia-tesla-t4'), {}, '--gpu=nvidia-tesla-t4 needs --gpus'),
    ],
)
def test_refusals(monkeypatch, batch, changes, message):
    monkeypatch.setattr('launch.service.check_image', lambda _: None)
    with pytest.raises(ConfigError, match=message):
        batch.check(job(**changes))
