"""The README's tree has every file, each with the first line of its docstring."""

from __future__ import annotations

import pathlib
import re

import pytest

from adx.errors import InputError
from tools import tree

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> pathlib.Path:
    for name, text in {
        'lib/__init__.py': '"""The library."""', 'lib/b.py': '"""What b is.\n\nMore."""',
        'lib/in/c.py': '"""C:\n\n  x"""',
        'lib/run': '#!/bin/sh\n# Runs it.\n# And more.\n', 'lib/in/data.json': '{}', 'lib/assets/model.bin': '',
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_is_names_and_first_lines(project):
    shown = ['lib/     The library.', '  b.py   What b is.', '  run    Runs it.', '  in/', '    c.py  C']
    assert [line.split() for line in tree.render('lib', project).splitlines()[1:-1]] == [line.split() for line in shown]


def test_a_page_that_lacks_a_file_or_says_otherwise_is_rewritten(project):
    page = tree.rewrite('before\n<!-- tree:lib -->\n<!-- /tree -->\nafter\n', project)
    assert tree.rewrite(page, project) == page
    assert page.startswith('before\n<!-- tree:lib -->\n```text\nlib/')
    (project / 'lib' / 'b.py').write_text('"""What b is now."""')
    assert tree.rewrite(page, project) != page
    (project / 'lib' / 'b.py').write_text('"""What b is."""')
    (project / 'lib' / 'new.py').write_text('"""New."""')
    assert tree.rewrite(page, project) != page


@pytest.mark.parametrize('text', ['', 'x = 1', f'"""{"x" * 91}"""'])
def test_a_file_without_a_comment_that_fits_is_refused(project, text):
    (project / 'lib' / 'b.py').write_text(text)
    with pytest.raises(InputError, match=r'b\.py begins with (0|91) characters'):
        tree.render('lib', project)


def test_readme_states_the_tree_as_it_is():
    page = (ROOT / 'README.md').read_text('utf-8')
    assert tree.rewrite(page) == page, 'run `python -m tools.tree --render=README.md`'
    for folder in tree.FOLDERS:
        block = page.partition(f'<!-- tree:{folder} -->')[2].partition('<!-- /tree -->')[0]
        files = [path.name for path in (ROOT / folder).rglob('*.py') if path.name != '__init__.py']
        assert sorted(re.findall(r'^ *(\w+\.py) +\S', block, re.MULTILINE)) == sorted(files)
