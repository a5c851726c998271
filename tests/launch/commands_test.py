"""Programs of a service fail in one line, with what to do."""

from __future__ import annotations

import pytest

from launch.commands import CloudError, command, find, remove_each, run, run_all, run_each
from tests.launchers import Programs

ONE = command('gcloud', 'batch', 'jobs', 'list', '')


@pytest.fixture
def gcloud(tmp_path, monkeypatch) -> Programs:
    programs = Programs(tmp_path, 'gcloud')
    monkeypatch.setenv('PATH', programs.path)
    return programs


def test_what_it_prints(gcloud, capsys):
    gcloud.answer({'list': (0, 'a\nb\n', 'Listed 2 items.\n')})
    assert run(ONE) == 'a\nb'
    run_all([ONE, ONE])
    assert capsys.readouterr().out == 'a\nb\na\nb\n'


@pytest.mark.parametrize(
    ('stderr', 'expected'),
    [
        (
            'ERROR: (gcloud.batch.jobs.list) You do not currently have an active account selected.\n'
            'Please run:\n\n  $ gcloud auth login\n\nto obtain new credentials.\n',
            'run: gcloud auth login',
        ),
        ('Working...\nERROR: Quota exceeded for quota metric GPUS\nTry later\n', '--preflight lists the quotas'),
        ("ERROR: PERMISSION_DENIED: 'batch.jobs.create' denied\n", '--preflight lists the roles'),
        ('ERROR: Cloud Batch API has not been used in project 3 before\n', '--preflight lists the APIs'),
        (
            'Unable to connect to the server: getting credentials: exec: executable gke-gcloud-auth-plugin not found\n',
            'run: gcloud components install gke-gcloud-auth-plugin',
        ),
        ('something odd\n', 'something odd'),
        ('', 'it printed nothing'),
    ],
)
def test_failures_are_one_line(gcloud, stderr, expected):
    gcloud.answer({'list': (1, '', stderr)})
    with pytest.raises(CloudError) as failed:
        run(ONE)
    message = str(failed.value)
    assert message.startswith('gcloud batch jobs list ended with 1: ')
    assert expected in message
    assert '\n' not in message
    assert failed.value.exit_code == 69
    with pytest.raises(CloudError):
        find(ONE)


def test_a_program_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(CloudError, match=r'gcloud cannot be started \(No such file or directory\); install it'):
        run(ONE)


def test_what_is_not_there_is_none(gcloud):
    gcloud.answer({'list': (1, '', "ERROR: NOT_FOUND: Resource 'x' was not found\n")})
    assert find(ONE) is None
    remove_each([ONE])
    with pytest.raises(CloudError):
        run(ONE)


def test_a_missing_login_is_not_a_missing_job(gcloud):
    """Or a job that runs would be submitted again."""
    gcloud.answer({'list': (1, '', 'ERROR: account not found. Please run: gcloud auth login\n')})
    with pytest.raises(CloudError, match='gcloud auth login'):
        find(ONE)


def test_one_that_fails_keeps_no_other_from_running(gcloud, capsys):
    gcloud.answer({'0': (3, '', 'ERROR: odd\n'), '1': (4, '', 'ERROR: odder\n'), '2': (0, 'stopped\n', '')})
    with pytest.raises(CloudError, match='gcloud 0 ended with 3: ERROR: odd'):
        run_each([command('gcloud', str(shard)) for shard in range(3)])
    assert [call[1] for call in gcloud.calls] == ['0', '1', '2']
    assert capsys.readouterr().out == 'stopped\n'


@pytest.mark.parametrize('act', [run_each, remove_each])
def test_a_login_that_finds_no_cluster_keeps_all_others_from_running(gcloud, act):
    """Or they would reach the cluster of an earlier login."""
    gcloud.answer({'get-credentials': (1, '', 'ERROR: ResponseError: code=404, message=Not found: x.\n')})
    with pytest.raises(CloudError, match='code=404'):
        act([command('gcloud', 'get-credentials', login=True), command('gcloud', 'delete')])
    assert gcloud.calls == [['gcloud', 'get-credentials']]


def test_as_it_is_typed(tmp_path):
    programs = Programs(tmp_path, 'gcloud')
    one = command('gcloud', "it's", '$HOME', 'a b', stdin='$(touch pwned)\n`x`\n')
    assert programs.bash(str(one)).returncode == 0
    assert (programs.calls, programs.inputs) == ([list(one.words)], [one.stdin])
    assert programs.nothing_was_made()
