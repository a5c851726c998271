"""Renders the tree of files in README.md from the first line of each file's docstring.

    python -m tools.tree                        # prints it
    python -m tools.tree --render=README.md     # rewrites what stands in each <!-- tree:FOLDER --> block of the file

A folder's comment is that of its __init__.py, a script's its first comment. Exit codes: 0 done, 2 flags, 3 input.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

from absl import flags

from adx.errors import InputError
from launch import program
from tools.bench.figures import rewrite_blocks

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = 'adx', 'configs', 'launch', 'tools'
LONGEST = 90  # characters of a comment
INDENT = 2  # spaces a level

_RENDER = flags.DEFINE_string(
    'render', '', 'File whose <!-- tree:FOLDER --> blocks are rewritten.', allow_override=True
)


def comment(path: pathlib.Path) -> str:
    """The first line of a file's docstring, or the first comment of a script. Raises InputError where there is none."""
    text = path.read_text('utf-8')
    if path.suffix == '.py':
        line = (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]
    else:
        line = next((line for line in text.splitlines() if line.startswith('# ')), '').removeprefix('# ')
    if not 0 < len(line) <= LONGEST:
        fix = f'say in 1 to {LONGEST}, in one line, what it is for'
        raise InputError(f'{path} begins with {len(line)} characters of comment; {fix}')
    return line.removesuffix(':')


def lines(folder: pathlib.Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(indented name, comment) of a folder and what is in it: scripts and Python files first, then folders."""
    inner = folder / '__init__.py'
    yield f'{" " * INDENT * depth}{folder.name}/', comment(inner) if inner.exists() else ''
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(('.', '__')))
    for path in entries:
        if path.is_file() and path.suffix in ('.py', '') and path.name != 'Dockerfile':
            yield f'{" " * INDENT * (depth + 1)}{path.name}', comment(path)
    for path in entries:
        if path.is_dir() and any(path.rglob('*.py')):
            yield from lines(path, depth + 1)


def render(folder: str, root: pathlib.Path = ROOT) -> str:
    """The tree of a folder as a fenced block, without a line break at its end."""
    found = list(lines(root / folder))
    width = max(len(name) for name, _ in found)
    return '\n'.join(['```text', *(f'{name:{width}}  {said}'.rstrip() for name, said in found), '```'])


def rewrite(text: str, root: pathlib.Path = ROOT) -> str:
    """`text` with the tree of each <!-- tree:FOLDER --> ... <!-- /tree --> block rendered anew."""
    return rewrite_blocks(text, 'tree', lambda folder: render(folder, root))


def main() -> None:
    if not _RENDER.value:
        print(*map(render, FOLDERS), sep='\n')
        return
    page = pathlib.Path(_RENDER.value)
    page.write_text(rewrite(page.read_text('utf-8')), 'utf-8')


if __name__ == '__main__':
    program.start(main)
