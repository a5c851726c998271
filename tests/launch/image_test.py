"""The Dockerfile and the README of the launchers, as far as they can be read here."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.launchers import ROOT, shellcheck

INSTRUCTION = re.compile(r'^([A-Z]+) (.*)$', re.MULTILINE)
TEXT = (ROOT / 'launch' / 'Dockerfile').read_text()
README = (ROOT / 'launch' / 'README.md').read_text()
LAUNCHERS = ('tpu_pod', 'gke', 'gcp_batch', 'slurm')


def instructions() -> list[tuple[str, str]]:
    plain = re.sub(r'^#.*\n', '', TEXT, flags=re.MULTILINE)
    return INSTRUCTION.findall(plain.replace('\\\n', ''))


def test_the_entrypoint_forwards_signals():
    """Exec form: a shell in front would keep SIGTERM to itself. tini passes it on."""
    (entrypoint,) = [text for name, text in instructions() if name == 'ENTRYPOINT']
    assert json.loads(entrypoint) == ['/usr/bin/tini', '--', 'python', '-m']
    assert 'tini' in next(text for name, text in instructions() if name == 'RUN')
    (default,) = [text for name, text in instructions() if name == 'CMD']
    assert json.loads(default)[0] == 'launch.run'
    assert [text for name, text in instructions() if name == 'STOPSIGNAL'] == ['SIGTERM']


def test_what_is_copied_is_there_and_nothing_private():
    copied = [source for name, text in instructions() if name == 'COPY' for source in shlex.split(text)[:-1]]
    assert {'adx', 'launch', 'configs', 'pyproject.toml'} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)
    assert '.' not in copied


def test_extras_that_are_installed_exist():
    project = (ROOT / 'pyproject.toml').read_text()
    extras = re.search(r"'\.\[([a-z,]+)\]'", TEXT)
    assert extras
    assert all(re.search(rf'^{extra} = \[', project, re.MULTILINE) for extra in extras[1].split(','))


def test_commands_of_the_image_pass_shellcheck():
    for name, text in instructions():
        if name == 'RUN':
            shellcheck(f'#!/bin/sh\nexport JAX=\n{text}\n', 'sh')


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_the_table_has_every_launcher_with_flags_that_exist(launcher):
    row = next(line for line in README.splitlines() if f'`python -m launch.{launcher} ' in line)
    assert row.count('|') == 6
    sources = ''.join((ROOT / 'launch' / f'{name}.py').read_text() for name in (launcher, 'jobs', 'service'))
    command = re.search(r'`python -m ([^`]*)`', row)
    assert command
    for flag in re.findall(r'--([a-z_]+)', command[1]):
        assert f"'{flag}'" in sources, flag
