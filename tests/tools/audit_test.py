"""The audit: licences of what is installed, and what pip-audit says or cannot say."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from adx.errors import ConfigError, InputError
from tools import audit

ROOT = pathlib.Path(__file__).parents[2]
FOUND = {'dependencies': [
    {'name': 'jax', 'version': '0.10.2', 'vulns': []},
    {'name': 'jinja2', 'version': '2.0', 'vulns': [{'id': 'CVE-1', 'fix_versions': ['3.1']}, {'id': 'CVE-2'}]},
]}  # fmt: skip


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def test_everything_that_adx_needs_has_a_licence_that_fits():
    packages = audit.dependencies()
    assert {'adx', 'jax', 'jaxlib', 'numpy', 'markupsafe', 'orbax-checkpoint'} <= set(packages)
    assert 'pytest' not in packages  # an extra
    assert audit.misfits({name: audit.licence(one) for name, one in packages.items()}) == []


@pytest.mark.parametrize('text', ['', 'GPL-3.0', 'GNU AGPLv3', 'MIT AND GPL-2.0', 'proprietary', 'my own'])
def test_a_licence_that_does_not_fit_is_named(text):
    assert audit.misfits({'a': 'MIT', 'b': text}) == [f'b: {text or "none stated"}']


def test_replies_are_read_and_what_is_none_is_not_taken_for_good_news():
    assert audit.vulnerabilities(json.dumps(FOUND)) == ['jinja2 2.0: CVE-1, CVE-2']
    assert audit.vulnerabilities(json.dumps({'dependencies': FOUND['dependencies'][:1]})) == []
    for reply in ('', 'ConnectionError', '[]', '{}', '{"dependencies": 3}'):
        assert audit.vulnerabilities(reply) is None


@pytest.mark.parametrize(
    ('code', 'shown'),
    [
        (f'print({json.dumps(json.dumps(FOUND))}); raise SystemExit(1)', None),
        ("raise SystemExit('ConnectionError: no route')", 'could not ask its service: ConnectionError: no route'),
        ('import time; time.sleep(60)', 'did not answer within'),
        ("print('{\"dependencies\": []}')", 'none known to pip-audit'),
    ],
)
def test_only_a_vulnerability_fails(monkeypatch, capsys, code, shown):
    monkeypatch.setattr(audit, 'ASK', (sys.executable, '-c', code))
    monkeypatch.setattr(audit, 'SECONDS', 5)
    monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: True)
    if shown is None:
        with pytest.raises(InputError, match=r'jinja2 2.0: CVE-1, CVE-2'):
            audit.main()
    else:
        audit.main()
        assert shown in capsys.readouterr().out


def test_packages_that_its_service_does_not_know_are_no_good_news(monkeypatch, capsys):
    """pip-audit exits with 0 and says that it found nothing."""
    jax, numpy = ({'name': name, 'version': '1', 'skip_reason': 'not found on PyPI'} for name in ('jax', 'numpy'))
    asked = {'name': 'scipy', 'version': '1', 'vulns': []}
    monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: True)
    for packages, said in (
        ([jax, numpy, {**jax, 'name': 'adx'}], 'vulnerabilities: not asked, the service of pip-audit knows none of'),
        ([jax, asked], 'vulnerabilities: none known to pip-audit, which does not know 1 of the packages: jax'),
        ([asked, {**jax, 'name': 'adx'}], 'vulnerabilities: none known to pip-audit\n'),
    ):
        code = f'print({json.dumps(json.dumps({"dependencies": packages}))})'
        monkeypatch.setattr(audit, 'ASK', (sys.executable, '-c', code))
        audit.main()
        assert said in capsys.readouterr().out


def test_without_pip_audit_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: None)
    audit.main()
    out = capsys.readouterr().out
    assert 'jax ' in out
    assert 'not asked, pip-audit is not installed' in out


def test_where_it_is_required_it_must_be_there_and_its_service_need_not(monkeypatch, capsys):
    with flagsaver.flagsaver(required=True):
        monkeypatch.setattr(audit, 'ASK', (sys.executable, '-c', "raise SystemExit('no route')"))
        monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: True)
        audit.main()
        assert 'not asked' in capsys.readouterr().out
        monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: None)
        with pytest.raises(ConfigError, match=r"--required: pip-audit is not installed; .*: pip install -e '\.\[audit"):
            audit.main()


def test_continuous_integration_installs_and_requires_it(tmp_path):
    """With stand-ins for the programs that it calls, which say how they were called."""
    for name, shown in (('tools/test', 'tests in $ADX_EXTRAS'), ('.venv/bin/python', 'python')):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{shown} $*"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / '.ci').mkdir()
    shutil.copy(ROOT / '.ci' / 'run', tmp_path / '.ci' / 'run')
    done = subprocess.run([tmp_path / '.ci' / 'run'], env={'PATH': '/usr/bin:/bin'}, capture_output=True, text=True)
    assert done.stdout == 'tests in test,audit --all_pythons\npython -m tools.audit --required\n', done.stderr
    assert 'make_environment "${ADX_EXTRAS:-test}"' in (ROOT / 'tools' / '_environment').read_text()
