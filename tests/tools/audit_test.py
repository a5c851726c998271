"""The audit: licences of what is installed, and what pip-audit says or cannot say."""

from __future__ import annotations

import json
import sys

import pytest

from adx.errors import InputError
from tools import audit

FOUND = {'dependencies': [
    {'name': 'jax', 'version': '0.10.2', 'vulns': []},
    {'name': 'jinja2', 'version': '2.0', 'vulns': [{'id': 'CVE-1', 'fix_versions': ['3.1']}, {'id': 'CVE-2'}]},
]}  # fmt: skip


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


def test_without_pip_audit_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(audit.importlib.util, 'find_spec', lambda name: None)
    audit.main()
    out = capsys.readouterr().out
    assert 'jax ' in out
    assert 'not asked, pip-audit is not installed' in out
