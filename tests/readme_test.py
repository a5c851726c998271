"""What README.md tells a reader to type is run as it stands, on a random model under SmolLM2's name."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
SHORT = ('limit=1', 'max_new_tokens=8', 'derivative.samples=1', 'derivative.max_new_tokens=8')  # later flags win


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [
    words for block in blocks('bash') for line in block.replace('\\\n', ' ').splitlines()
    if (words := shlex.split(line, comments=True))
]  # fmt: skip


def run(variables: dict[str, str], *arguments: str) -> str:
    environment = os.environ | variables | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_a_script_that_is_there_or_a_module_that_is_run_below():
    scripts = [words for words in COMMANDS if words[:2] != ['python', '-m']]
    assert scripts == [['./tools/demo'], ['./tools/test']]
    assert all(os.access(ROOT / script, os.X_OK) for (script,) in scripts)


def shortened(words: list[str], tmp_path: pathlib.Path) -> list[str]:
    """A command with its workdir elsewhere; one that decodes takes little."""
    decodes = 'launch.run' in words and not {'--dry_run', '--status'} & {*words}
    moved = [word.replace('/tmp/', f'{tmp_path}/') for word in words[1:]]
    return [*moved, *(f'--set={short}' for short in SHORT if decodes)]


def test_the_commands_run_experiments_and_write_a_release(smollm2, tmp_path):
    shown = [run(smollm2, *shortened(words, tmp_path)) for words in COMMANDS if len(words) > 1]
    assert 'memory per device' in shown[0]
    assert '3 traces decoded' in shown[1]
    assert json.loads(shown[2])['done'] == 3
    assert 'product_of_experts' in shown[3]
    assert 'PRIVATE' in (tmp_path / 'run' / 'private' / 'traces.html').read_text()
    assert list((tmp_path / 'run' / 'release').iterdir())
    assert 'directions of 1 proxies are saved' in shown[5]
    assert '3 traces decoded' in shown[5]
    assert '5 traces decoded' in shown[6]  # three settings of one arm, and the two others


def test_the_notebook_lines_show_both_arms(smollm2):
    (block,) = blocks('python')
    shown = run(smollm2, '-c', f'{block}\nprint(run)')
    assert re.search(r'^plain +│ poe$', shown, re.MULTILINE)
