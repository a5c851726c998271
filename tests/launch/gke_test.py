"""JobSets: the Job inside by kubernetes-validate, the fields around it by the documentation of JobSet, and XPK."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys

import kubernetes_validate
import pytest
import yaml

from adx.errors import ConfigError
from launch import tpus
from launch.gke import Gke
from launch.xpk import Xpk
from tests.launchers import HOSTILE, KEY, SITE, Programs, check_golden, job, kubernetes, shellcheck

PLACE = dataclasses.replace(SITE, region='us-west4', service_account='runner')
TPU = Gke(PLACE, 'adx', slice_=tpus.parse('v5litepod-8'))
HOSTS = Gke(PLACE, 'adx', slice_=tpus.parse('v5litepod-16'))
GPU = Gke(PLACE, 'adx', machine_type='a2-highgpu-1g', gpu='nvidia-tesla-a100', gpus=1)
XPK = Xpk(dataclasses.replace(SITE, region='', zone='us-west4-a', service_account=''), 'adx', tpus.parse('v5litepod-8'))
SECRETS = {'HF_TOKEN': 'hub/token'}
ONE = {'shards': 1, 'distributed': True, 'flags': (*job().flags, '--distributed')}
# Fields of jobset.x-k8s.io/v1alpha2, as its API reference has them; those that adx uses and their kinds.
SPEC = {'replicatedJobs': list, 'failurePolicy': dict}
REPLICATED = {'name': str, 'replicas': int, 'template': dict}
POLICY = {'maxRestarts': int, 'rules': list}
RULE = {'name': str, 'action': str, 'onJobFailureReasons': list}
CASES = {
    'shards on TPUs': (TPU, {'secrets': SECRETS, 'variables': {'NOTE': 'a $(B)'}}),
    'hosts of a slice': (HOSTS, {**ONE, 'hosts': 4, 'max_hours': 2.0}),
    'shards on GPUs': (GPU, {'shards': 4, 'max_hours': 0.5}),
    'hosts with GPUs': (GPU, {**ONE, 'hosts': 2}),
    'spot': (dataclasses.replace(TPU, site=dataclasses.replace(PLACE, spot=True)), {}),
    'CPUs': (Gke(PLACE, 'adx', machine_type='n2-standard-8'), {}),
}


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Programs:
    made = Programs(tmp_path, 'gcloud', 'kubectl', 'xpk')
    monkeypatch.setenv('PATH', made.path)
    return made


def check_fields(value: dict, fields: dict[str, type]) -> None:
    assert set(value) <= set(fields), f'{set(value) - set(fields)} are no fields'
    assert all(isinstance(item, fields[name]) for name, item in value.items())


def read(gke: Gke, **changes) -> dict:
    """The manifest as kubectl reads it, checked from outside in."""
    text = gke.submission(job(**changes))[-1].stdin
    found = yaml.safe_load(text)
    assert '&id' not in text  # plain YAML, for people
    assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    assert set(found) == {'apiVersion', 'kind', 'metadata', 'spec'}
    check_fields(found['spec'], SPEC)
    check_fields(found['spec']['failurePolicy'], POLICY)
    for rule in found['spec']['failurePolicy'].get('rules', []):
        check_fields(rule, RULE)
        assert rule['action'] in ('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts')
        assert set(rule['onJobFailureReasons']) <= {'PodFailurePolicy', 'BackoffLimitExceeded', 'DeadlineExceeded'}
    for one in found['spec']['replicatedJobs']:
        check_fields(one, REPLICATED)
        validate(one['template'])
    return found


def validate(template: dict) -> None:
    whole = {'apiVersion': 'batch/v1', 'kind': 'Job', **template}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def job_of(found: dict) -> dict:
    return found['spec']['replicatedJobs'][0]['template']['spec']


def container_of(found: dict) -> dict:
    (container,) = job_of(found)['template']['spec']['containers']
    return container


@pytest.mark.parametrize('case', CASES)
def test_valid(case):
    gke, changes = CASES[case]
    found = read(gke, **changes)
    pod = job_of(found)['template']['spec']
    assert pod['restartPolicy'] == 'Never'  # or the API refuses podFailurePolicy
    assert pod['serviceAccountName'] == 'runner'
    assert 'command' not in container_of(found)  # the entrypoint of the image forwards signals
    # Kubernetes wants its jobs' names, and those of their pods, within 63 characters.
    assert len(f'{found["metadata"]["name"]}-{found["spec"]["replicatedJobs"][0]["name"]}-0-0') < 63


def test_the_checks_see_what_is_wrong():
    """They must be able to fail: a field that the Job does not have."""
    gke, changes = CASES['CPUs']
    template = job_of(read(gke, **changes))
    with pytest.raises(kubernetes_validate.ValidationError):
        validate({'spec': template | {'completion': 3}})


def test_a_dead_shard_starts_again_alone():
    found = read(TPU, shards=8, retries=4)
    spec = job_of(found)
    assert (spec['completions'], spec['parallelism'], spec['completionMode']) == (8, 8, 'Indexed')
    assert spec['backoffLimitPerIndex'] == 4
    assert found['spec']['failurePolicy']['maxRestarts'] == 0
    disrupted, other = spec['podFailurePolicy']['rules']
    assert disrupted == {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
    assert other == {'action': 'FailIndex', 'onExitCodes': {'operator': 'NotIn', 'values': [74, 75]}}
    # Kubernetes sets JOB_COMPLETION_INDEX itself.
    assert {'name': 'JOB_COMPLETIONS', 'value': '8'} in container_of(found)['env']


def test_one_program_starts_again_as_a_whole():
    found = read(HOSTS, **ONE, hosts=4)
    spec = job_of(found)
    assert (spec['completions'], spec['backoffLimit']) == (4, 0)
    policy = found['spec']['failurePolicy']
    assert policy['maxRestarts'] == 10
    assert policy['rules'][0]['action'] == 'FailJobSet'
    assert spec['podFailurePolicy']['rules'][1]['action'] == 'FailJob'
    assert found['metadata']['annotations'] == {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
    }
    assert container_of(found)['args'][:2] == ['launch.parent', '--']
    assert not any(word.startswith('--coordinator') for word in container_of(found)['args'])  # JAX finds TPUs
    assert container_of(found)['resources']['limits'] == {'google.com/tpu': '4'}


def test_hosts_with_gpus_are_told_of_each_other():
    args = container_of(read(GPU, **ONE, hosts=2))['args']
    assert args[-3:] == [
        '--coordinator=poe-hosts-0-0.poe:8476', '--num_processes=2', '--process_id=$(JOB_COMPLETION_INDEX)'
    ]  # fmt: skip


def test_a_limit_ends_what_hangs_too():
    spec = job_of(read(TPU, retries=2, max_hours=0.5))
    assert spec['activeDeadlineSeconds'] == 3 * (1800 + 1800)
    assert spec['podFailurePolicy']['rules'][0]['action'] == 'Count'  # every attempt is part of the budget
    assert job_of(read(HOSTS, **ONE, hosts=4, max_hours=0.5))['activeDeadlineSeconds'] == 1800 + 1800


def test_secrets_are_references_and_values_are_not_replaced():
    found = container_of(read(TPU, secrets=SECRETS, variables={'NOTE': '$(HF_TOKEN)'}, flags=(HOSTILE,)))
    assert '$(HF_TOKEN)' in HOSTILE
    assert {'name': 'HF_TOKEN', 'valueFrom': {'secretKeyRef': {'name': 'hub', 'key': 'token'}}} in found['env']
    assert [kubernetes(one['value'], HF_TOKEN='x') for one in found['env'] if one['name'] == 'NOTE'] == ['$(HF_TOKEN)']
    assert [kubernetes(word, HF_TOKEN='x') for word in found['args']] == ['launch.run', HOSTILE]


@pytest.mark.parametrize(
    ('changes', 'selector'),
    [
        ({'spot': True}, {'cloud.google.com/gke-spot': 'true'}),
        ({'reservation': 'kept'}, {'cloud.google.com/reservation-name': 'kept'}),
    ],
)
def test_capacity(changes, selector):
    gke = dataclasses.replace(TPU, site=dataclasses.replace(PLACE, **changes))
    assert selector.items() <= job_of(read(gke))['template']['spec']['nodeSelector'].items()


def test_golden_commands():
    commands = [*TPU.submission(job(secrets=SECRETS)), *TPU.listing(), *TPU.logs(job())]
    commands += [*TPU.cancel(job()), *TPU.delete(job())]
    script = '\n'.join(map(str, commands)) + '\n'
    shellcheck(script)
    check_golden('gke.sh', script)


def test_golden_commands_of_one_program_under_a_key():
    site = dataclasses.replace(PLACE, zone='us-west4-a', kms_key=KEY, spot=True)
    gke = dataclasses.replace(HOSTS, site=site, node_pool='keyed')
    script = '\n'.join(map(str, gke.submission(job(**ONE, hosts=4)))) + '\n'
    shellcheck(script)
    assert f'--boot-disk-kms-key={KEY}' in script
    assert 'cloud.google.com/gke-nodepool: keyed' in script
    assert '--node-locations=us-west4-a' in script  # or there would be as many nodes in each zone of the region
    check_golden('gke_key.sh', script)
    assert not any('node-pools' in one.words for one in gke.delete(job(**ONE)))


@pytest.mark.parametrize(
    ('state', 'verbs'),
    [
        ((1, '', 'Error from server (NotFound): jobsets "poe" not found'), ['get', 'apply']),
        ((0, 'false/', ''), ['get']),
        ((0, '/', ''), ['get']),
        ((0, 'true/', ''), ['get', 'patch']),
        ((0, 'false/Failed', ''), ['get', 'delete', 'apply']),
        ((0, 'false/Completed', ''), ['get', 'delete', 'apply']),
    ],
)
def test_the_same_command_again(programs, state, verbs):
    programs.answer({'get jobset': state})
    TPU.submit(job())
    assert programs.calls[0][:4] == ['gcloud', 'container', 'clusters', 'get-credentials']
    calls = [[word for word in call if not word.startswith('--namespace')] for call in programs.calls[1:]]
    assert [call[1] for call in calls] == verbs
    if verbs[-1] == 'patch':
        assert '--patch={"spec": {"suspend": false}}' in programs.calls[-1]


def test_a_pool_under_a_key_is_made_once(programs):
    gke = dataclasses.replace(GPU, site=dataclasses.replace(PLACE, kms_key=KEY), node_pool='keyed')
    for described, expected in (((1, '', 'ERROR: NOT_FOUND: pool not found'), 1), ((0, 'keyed\n', ''), 0)):
        programs.answer({'node-pools describe': described, 'get jobset': (0, '/', '')})
        gke.submit(job())
        assert sum('create' in call for call in programs.calls) == expected


def test_xpk_goldens_and_what_it_hands_to_a_shell(tmp_path):
    given = job(flags=(HOSTILE,), variables={'NOTE': '$(HF_TOKEN)'})
    commands = [*XPK.submission(given), *XPK.listing(), *XPK.logs(job()), *XPK.delete(job())]
    script = '\n'.join(map(str, commands)) + '\n'
    shellcheck(script)
    check_golden('xpk.sh', script)
    (start,) = [word.removeprefix('--command=') for word in commands[1].words if word.startswith('--command=')]
    (note,) = [word.removeprefix('--env=NOTE=') for word in commands[1].words if word.startswith('--env=')]
    assert kubernetes(note, HF_TOKEN='x') == '$(HF_TOKEN)'
    start = kubernetes(start, HF_TOKEN='x')
    shellcheck(f'#!/bin/bash\n{start}\n')
    programs = Programs(tmp_path, 'python')
    programs.add('python', f'#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n')
    done = programs.bash(start)
    assert json.loads(done.stdout) == ['-m', 'launch.run', HOSTILE, '--shard=1', '--num_shards=2']
    assert programs.nothing_was_made()
    assert shlex.split(start)[0] == 'exec'


def test_xpk_and_the_same_command_again(programs, capsys):
    """Of three shards one runs, one has ended and one is not there."""
    programs.answer({
        'get jobset poe-0': (0, '', ''),
        'get jobset poe-1': (0, 'Failed', ''),
        'get jobset': (1, '', 'Error from server (NotFound): jobsets.jobset.x-k8s.io "poe-2" not found'),
    })  # fmt: skip
    XPK.submit(job(shards=3))
    assert programs.calls[0][:3] == ['xpk', 'workload', 'list']  # which logs in
    done = [(call[0], call[2]) for call in programs.calls[1:]]
    assert done == [
        ('kubectl', 'jobset'), ('kubectl', 'jobset'), ('xpk', 'delete'), ('xpk', 'create'), ('kubectl', 'jobset'),
        ('xpk', 'create'),
    ]  # fmt: skip
    names = [word for call in programs.calls for word in call if word.startswith('--workload=')]
    assert names == ['--workload=poe-1', '--workload=poe-1', '--workload=poe-2']
    assert capsys.readouterr().out == 'poe-0 is there; nothing was done\n'


@pytest.mark.parametrize(
    ('gke', 'changes', 'message'),
    [
        (HOSTS, {}, 'has 4 hosts; add --distributed'),
        (HOSTS, {**ONE, 'hosts': 2}, 'has 4 hosts; give --hosts=4'),
        (dataclasses.replace(TPU, site=dataclasses.replace(PLACE, kms_key=KEY)), {}, '--kms_key is for the disks'),
        (
            dataclasses.replace(TPU, site=dataclasses.replace(PLACE, kms_key=KEY), node_pool='keyed'),
            {},
            'add --node_pool, --zone',
        ),
        (dataclasses.replace(TPU, site=SITE), {}, 'is one of Kubernetes here'),
        (HOSTS, {**ONE, 'hosts': 4, 'retries': 0}, '--retries must be above 0 with --distributed'),
        (XPK, {'retries': 0}, '--retries must be above 0 with --xpk'),
        (XPK, {'labels': {'team': 'x'}}, 'are not for --xpk'),
        (
            dataclasses.replace(XPK, site=dataclasses.replace(PLACE, kms_key=KEY)), {},
            f'xpk cluster create --custom-nodepool-arguments=--boot-disk-kms-key={KEY}',
        ),
        (dataclasses.replace(XPK, slice_=None), {}, '--xpk needs --accelerator_type'),
    ],
)
def test_refusals(monkeypatch, gke, changes, message):
    monkeypatch.setattr('launch.service.check_image', lambda _: None)
    with pytest.raises(ConfigError, match=message):
        gke.check(job(**changes))
