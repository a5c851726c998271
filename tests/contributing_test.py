"""The worked example of CONTRIBUTING.md is run as it stands."""

from __future__ import annotations

import pathlib
import re
import sys
import types

import pytest

TEXT = (pathlib.Path(__file__).parent.parent / 'CONTRIBUTING.md').read_text(encoding='utf-8')
RULE, TESTS = re.findall(r'^```python\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(monkeypatch):
    """The example's tests, with its rule importable by the name that the page gives it."""
    module = types.ModuleType('adx.defences.mixture')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(RULE, 'mixture.py', 'exec'), module.__dict__)
    names: dict = {}
    exec(compile(TESTS, 'mixture_test.py', 'exec'), names)
    return {name: value for name, value in names.items() if name.startswith('test_')}


def test_the_example_passes_its_own_tests(example):
    assert len(example) == 3
    for test in example.values():
        test()


def test_the_example_is_a_defence(example):
    from adx.types import Defence

    assert isinstance(sys.modules['adx.defences.mixture'].Mixture(), Defence)
