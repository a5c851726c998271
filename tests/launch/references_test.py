"""Secrets travel as references: values are refused and never shown."""

from __future__ import annotations

import pytest

from adx.errors import ConfigError
from launch.gcp_batch import Batch
from launch.gke import Gke
from launch.references import parse_environment, parse_references, refuse_secrets
from launch.slurm import Slurm
from launch.xpk import Xpk

# Made up, in the forms of well-known services.
TOKENS = [
    'hf_AbCdEfGhIjKlMnOpQrStUvWx',
    'sk-proj-0123456789abcdefghij',
    'ghp_0123456789abcdefghijABCDEFGHIJ012345',
    'AKIA0123456789ABCDEF',
    'AIzaSyA0123456789abcdefghijklmnopqrstu',
    'ya29.a0AfH6SMB0123456789',
    'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln',
    '-----BEGIN PRIVATE KEY-----',
    '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b',
    'Zm9vYmFyYmF6MTIzNDU2Nzg5MGFiY2RlZmdoaWo=',
]
GOOD = {
    Batch: 'projects/my-project/secrets/hub/versions/3',
    Gke: 'hub/token',
    Slurm: '/home/me/.secrets/hub',
}


@pytest.mark.parametrize('token', TOKENS)
@pytest.mark.parametrize('form', ['{}', 'prefix={}', '--set=a.b={}', 'HF:{}'])
def test_values_are_refused_and_not_shown(token, form):
    text = form.format(token)
    with pytest.raises(ConfigError) as refused:
        refuse_secrets('set', [text])
    assert token not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        parse_environment([f'NOTE={text}'])
    assert token not in str(refused.value)
    for service in (Batch, Gke, Slurm, Xpk):
        for given in (text, f'HF_TOKEN={token}', f'HF_TOKEN:{token}', token):
            with pytest.raises(ConfigError) as refused:
                parse_references([given], *service.references)
            assert token not in str(refused.value)


@pytest.mark.parametrize(
    'text',
    [
        '--config=configs/smollm2_poe.py',
        '--workdir=gs://a-bucket-with-a-long-name-0123456789/runs/poe/2025-01-01-and-so-on',
        '--xla_dump_to=/tmp/x --xla_force_host_platform_device_count=8',
        '--set=arms.product_of_experts.defence.gamma=0.5',
        'us-docker.pkg.dev/my-project/adx/run@sha256',
        '--stages=prepare,generate',
    ],
)
def test_ordinary_values_are_not(text):
    refuse_secrets('set', [text])


@pytest.mark.parametrize('name', ['HF_TOKEN', 'API_KEY', 'client_secret', 'DB_PASSWORD', 'WANDB_API_KEY'])
def test_what_is_named_like_a_secret_is_refused(name):
    with pytest.raises(ConfigError, match=f'--secret={name}:REFERENCE'):
        parse_environment([f'{name}=short'])


def test_other_variables_pass():
    found = parse_environment(['JAX_PLATFORMS=cpu', 'XLA_FLAGS=--a=b --c', 'ADX_KEYS=/keys', 'EMPTY='])
    assert found == {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--a=b --c', 'ADX_KEYS': '/keys', 'EMPTY': ''}


@pytest.mark.parametrize('given', ['NAME', '=x', 'A B=x', 'A;reboot=x', '1A=x', '$(x)=1'])
def test_what_is_no_variable_is_refused(given):
    with pytest.raises(ConfigError, match='write --env=NAME=value'):
        parse_environment([given])


@pytest.mark.parametrize('service', GOOD)
def test_references_of_each_service(service):
    assert parse_references([f'HF_TOKEN:{GOOD[service]}'], *service.references) == {'HF_TOKEN': GOOD[service]}
    for other in {*GOOD.values()} - {GOOD[service]}:
        with pytest.raises(ConfigError, match='names where a secret is'):
            parse_references([f'HF_TOKEN:{other}'], *service.references)


@pytest.mark.parametrize('tail', ['\nx', '; reboot', '$(reboot)', ' x', '"'])
def test_references_hold_nothing_for_a_shell(tail):
    for service, reference in GOOD.items():
        with pytest.raises(ConfigError):
            parse_references([f'HF_TOKEN:{reference}{tail}'], *service.references)


def test_xpk_takes_none():
    with pytest.raises(ConfigError, match='has nowhere to go here'):
        parse_references(['HF_TOKEN:hub/token'], *Xpk.references)
