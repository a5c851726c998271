"""TPU VMs: the commands, the scripts that workers run, and what becomes of slices that come and go."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from adx.errors import ConfigError, Interrupted
from launch import tpu_pod, tpus
from launch.tpu_pod import TpuPod
from tests.launchers import HOSTILE, KEY, SITE, Programs, check_golden, job, shellcheck

POD = TpuPod(dataclasses.replace(SITE, region='', zone='us-west4-a'), tpus.parse('v5litepod-8'))
SECRETS = {'HF_TOKEN': 'projects/my-project/secrets/hub/versions/3'}
# What a worker has; sudo and systemd-run run what they are given, docker writes down what it is given. systemd-run
# replaces as systemd.service(5) says of ExecStart.
WORKER = {
    'sudo': '#!/bin/bash\nexec "$@"\n',
    'systemctl': '#!/bin/bash\n[[ $1 != is-active ]] || { echo inactive; exit 3; }\n',
    'systemd-run': f"""#!{sys.executable}
import os, re, sys
words = sys.argv[1:]
with open(os.environ['HOME'] + '/properties', 'w') as properties:
    while words[0].startswith('--'):
        print(words.pop(0), file=properties)
words = [re.sub(r'[$]([$]|{{\\w*}})', lambda found: '$' if found[1] == '$' else 'replaced', word) for word in words]
os.execvp(words[0], words)
""",
    'docker': f"""#!{sys.executable}
import json, os, sys
json.dump([sys.argv[1:], os.environ.get('HF_TOKEN')], open(os.environ['HOME'] + '/docker', 'w'))
""",
}


@pytest.fixture
def gcloud(tmp_path, monkeypatch) -> Programs:
    programs = Programs(tmp_path, 'gcloud')
    monkeypatch.setenv('PATH', programs.path)
    monkeypatch.setattr(tpu_pod, 'POLL_SECONDS', 0.0)
    return programs


@pytest.fixture
def worker(tmp_path) -> Programs:
    programs = Programs(tmp_path, 'gcloud')
    for name, text in WORKER.items():
        programs.add(name, text)
    programs.answer({'secrets versions access': (0, 'from the manager', '')})
    return programs


def asked(programs: Programs) -> list[tuple[str, str]]:
    """(what, node) of each call of gcloud"""
    words = [[word for word in call if word != 'alpha'] for call in programs.calls]
    return [(call[4], call[5]) for call in words]


def test_golden_commands():
    commands = [*POD.submission(job(secrets=SECRETS)), *POD.listing(), *POD.logs(job()), *POD.cancel(job())]
    script = '\n'.join(map(str, [*commands, *POD.delete(job())])) + '\n'
    shellcheck(script)
    check_golden('tpu_pod.sh', script)


def test_golden_commands_of_one_program_across_hosts():
    site = dataclasses.replace(POD.site, reservation='kept', kms_key=KEY)
    pod = dataclasses.replace(POD, site=site, slice_=tpus.parse('v5p-64'))
    script = '\n'.join(map(str, pod.submission(job(shards=1, distributed=True)))) + '\n'
    shellcheck(script)
    check_golden('tpu_pod_distributed.sh', script)


@pytest.mark.parametrize('changes', [{}, {'secrets': SECRETS, 'variables': {'A': '1 2'}}, {'flags': (HOSTILE,)}])
def test_scripts_of_workers_pass_shellcheck(changes):
    shellcheck(tpu_pod.worker_script(job(**changes), 1))
    shellcheck(tpu_pod.container_script(job(**changes), 1))


def test_a_worker_starts_the_container_with_what_was_said(worker):
    given = job(flags=(HOSTILE,), secrets=SECRETS, variables={'NOTE': "it's $(touch pwned)"})
    done = worker.bash(tpu_pod.worker_script(given, 1))
    assert done.returncode == 0, done.stderr
    home = worker.bin.parent / 'place'
    words, secret = json.loads((home / 'docker').read_text())
    image = words.index(given.image)
    assert words[image + 1 :] == ['launch.run', HOSTILE, '--shard=1', '--num_shards=2']
    assert "--env=NOTE=it's $(touch pwned)" in words[:image]
    assert worker.nothing_was_made()
    # The secret came from the manager and stands in no command.
    assert secret == 'from the manager'
    assert '--env=HF_TOKEN' in words
    assert 'from the manager' not in json.dumps(words)
    assert ['gcloud', 'secrets', 'versions', 'access', SECRETS['HF_TOKEN']] in worker.calls
    assert ['gcloud', 'auth', 'configure-docker', 'us-docker.pkg.dev', '--quiet'] in worker.calls
    properties = (home / 'properties').read_text().splitlines()
    assert '--property=RestartForceExitStatus=74 75' in properties
    assert '--property=StartLimitBurst=11' in properties
    assert '--setenv=HOME=/root' in properties


def test_a_secret_that_cannot_be_read_starts_nothing(worker):
    worker.answer({'secrets versions access': (1, '', 'PERMISSION_DENIED')})
    done = worker.bash(tpu_pod.worker_script(job(secrets=SECRETS), 0))
    assert done.returncode != 0
    assert not (worker.bin.parent / 'place' / 'docker').exists()


@pytest.mark.parametrize(('state', 'code'), [('active', 0), ('activating', 3)])
def test_a_worker_that_runs_or_is_between_two_attempts_is_left_alone(worker, state, code):
    worker.add('systemctl', f'#!/bin/bash\necho {state}\nexit {code}\n')
    done = worker.bash(tpu_pod.worker_script(job(), 0))
    assert (done.returncode, 'runs already' in done.stdout) == (0, True)
    assert not (worker.bin.parent / 'place' / 'docker').exists()


@pytest.mark.parametrize(('code', 'expected'), [(0, 0), (5, 0), (1, 1)])
def test_stopping_what_has_ended_is_no_failure(worker, code, expected):
    worker.add('systemctl', f'#!/bin/bash\nexit {code}\n')
    (stop,) = [word for word in POD.cancel(job())[0].words if word.startswith('--command=')]
    assert worker.bash(stop.removeprefix('--command=')).returncode == expected


def test_slices_are_asked_for_and_started_when_they_are_active(gcloud, capsys):
    gcloud.answer({'describe poe-0': (0, 'ACTIVE\n', ''), 'describe poe-1': (1, '', 'ERROR: NOT_FOUND: not found')})
    with pytest.raises(Interrupted, match='1 of 2 slices are not active yet'):
        POD.submit(job())
    assert asked(gcloud) == [('describe', 'poe-0'), ('ssh', 'poe-0'), ('describe', 'poe-1'), ('create', 'poe-1')]
    assert 'poe-1: asked for' in capsys.readouterr().out


def test_waiting_starts_all(gcloud):
    gcloud.answer({'describe': (0, 'ACTIVE\n', '')})
    dataclasses.replace(POD, wait_minutes=1.0).submit(job(shards=3))
    assert [what for what, _ in asked(gcloud)] == ['describe', 'ssh'] * 3


def test_a_slice_that_was_taken_back_is_made_anew(gcloud):
    gcloud.answer({'describe': (0, 'SUSPENDED\n', '')})
    with pytest.raises(Interrupted):
        POD.submit(job(shards=1))
    assert [what for what, _ in asked(gcloud)] == ['describe', 'delete', 'create']


@pytest.mark.parametrize('state', ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'SUSPENDING'])
def test_a_slice_in_the_queue_is_not_asked_for_twice(gcloud, state):
    gcloud.answer({'describe': (0, f'{state}\n', '')})
    with pytest.raises(Interrupted):
        POD.submit(job(shards=1))
    assert [what for what, _ in asked(gcloud)] == ['describe']


@pytest.mark.parametrize(
    ('name', 'chips', 'hosts', 'topology', 'machine'),
    [
        ('v5litepod-8', 8, 1, '2x4', 'ct5lp-hightpu-8t'),
        ('v5litepod-64', 64, 16, '8x8', 'ct5lp-hightpu-4t'),
        ('v6e-16', 16, 4, '4x4', 'ct6e-standard-4t'),
        ('v5p-8', 4, 1, '2x2x1', 'ct5p-hightpu-4t'),
        ('v5p-16', 8, 2, '2x2x2', 'ct5p-hightpu-4t'),
        ('v4-8', 4, 1, '2x2x1', 'ct4p-hightpu-4t'),
    ],
)
def test_slices(name, chips, hosts, topology, machine):
    found = tpus.parse(name)
    assert (found.chips, found.hosts, found.topology, found.machine_type) == (chips, hosts, topology, machine)
    sides = [int(side) for side in topology.split('x')]
    assert chips == sides[0] * sides[1] * (sides[2] if len(sides) > 2 else 1)


@pytest.mark.parametrize('name', ['v5e-8', 'v5litepod-7', 'v5p-6', 'v5p', '8'])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(ConfigError, match=f'--accelerator_type={name}'):
        tpus.parse(name)


def test_several_hosts_want_one_program(monkeypatch):
    monkeypatch.setattr('launch.service.check_image', lambda _: None)
    pod = dataclasses.replace(POD, slice_=tpus.parse('v5litepod-16'))
    with pytest.raises(ConfigError, match='has 4 hosts; add --distributed'):
        pod.check(job())
    pod.check(job(shards=1, distributed=True))
