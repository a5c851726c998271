"""What ARCHITECTURE.md says is held by a test is held by one of that name, and what sends a reader to it finds it."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'ARCHITECTURE.md').read_text(encoding='utf-8')


def test_every_test_that_is_named_is_there():
    file, found = '', 0
    for word in re.findall(r'`([^`\n]+)`', TEXT):
        if re.fullmatch(r'tests/\S+_test\.py', word):
            file = word
        elif word.startswith('test_'):
            assert f'def {word}(' in (ROOT / file).read_text(), f'{file} has no {word}'
            found += 1
    assert found >= 14  # each clause of Determinism has one


def test_every_section_that_code_sends_a_reader_to_is_there():
    sections = {line.removeprefix('## ') for line in TEXT.splitlines() if line.startswith('## ')}
    folders = ('adx', 'launch', 'tools', 'configs')
    named = {
        name for folder in folders for path in (ROOT / folder).rglob('*.py')
        for name in re.findall(r'ARCHITECTURE\.md, ([A-Z][a-z]+)', path.read_text(encoding='utf-8'))
    }  # fmt: skip
    assert named
    assert named <= sections


def test_a_config_is_a_document_of_at_most_60_lines():
    lengths = {path.name: len(path.read_text('utf-8').splitlines()) for path in (ROOT / 'configs').glob('*.py')}
    assert not {name: length for name, length in lengths.items() if length > 60}


def test_what_other_pythons_are_given_is_there():
    """tools/test names files, folders and single tests; pytest would say so too, but only where such a Python is."""
    script = (ROOT / 'tools' / 'test').read_text('utf-8')
    (run,) = re.findall(r'^RUN=(\S+)$', script, re.MULTILINE)
    given = re.search(r'^OTHERS=\((.*?)\)$', script, re.MULTILINE | re.DOTALL)[1].replace('"', '').split()
    for name in given:
        path, _, test = name.replace('${RUN}', run).partition('::')
        assert (ROOT / path).exists(), path
        assert f'def {test}(' in (ROOT / path).read_text('utf-8') if test else True, test
    assert len(given) > 5
