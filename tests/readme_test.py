"""What README.md tells a reader to type is run as it stands, on a random model under SmolLM2's name."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

from adx import attacks, defences, rewriters

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
SHORT = (  # later flags win; a shallow proxy compiles sooner
    'limit=1', 'max_new_tokens=8', 'derivative.samples=1', 'derivative.max_new_tokens=8', 'proxies.0.exit_layer=2',
)  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = re.sub(r'\\\n *', '', text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [words for block in blocks('bash') for words in commands(block)]
# What takes a cluster, a student or hours stands indented: its flags are parsed, nothing more.
OUTSIDE = re.sub(r'^```.*?^```', '', TEXT, flags=re.MULTILINE | re.DOTALL)
PARSED = commands('\n'.join(re.findall(r'^    (python -m (?:[^\n]*\\\n)*[^\n]*)', OUTSIDE, re.MULTILINE)))


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
    moved = [re.sub(r'/tmp/|\$HOME/', f'{tmp_path}/', word) for word in words[1:]]
    return [*moved, *(f'--set={short}' for short in SHORT if decodes)]


def test_the_commands_run_experiments_write_a_release_and_forget(smollm2, tmp_path):
    (tmp_path / 'keys').mkdir()
    given = [shortened(words, tmp_path) for words in COMMANDS if len(words) > 1]
    shown = [run(smollm2, *words) for words in given[:7]]
    assert 'memory per device' in shown[0]
    assert '3 traces decoded' in shown[1]
    assert json.loads(shown[2])['done'] == 3
    assert 'product_of_experts' in shown[3]
    assert 'PRIVATE' in (tmp_path / 'run' / 'private' / 'traces.html').read_text()
    assert list((tmp_path / 'run' / 'release').iterdir())
    assert 'directions of 1 proxies are saved' in shown[5]
    assert '3 traces decoded' in shown[5]
    assert '7 traces decoded' in shown[6]  # three settings of each of two arms, and the plain one
    job, forgotten, expired, new, rotated, signer = (run(smollm2, *words) for words in given[7:])
    assert '"machineType": "g2-standard-4"' in job
    assert 'nothing that was still there' not in forgotten
    assert expired
    assert new.startswith(f'{tmp_path}/secure/master.key: master key ')
    assert rotated.startswith(f'{tmp_path}/keys/acme.1.key: key ')
    assert signer.startswith(f'{tmp_path}/secure/signer.key: master key ')


def test_the_config_of_a_model_of_ones_own_is_one(smollm2, tmp_path):
    [block] = [text for text in re.findall(r'(?:^(?:    .*)?\n)+', OUTSIDE, re.MULTILINE) if 'Jsonl(' in text]
    prompts = tmp_path / 'prompts.jsonl'
    prompts.write_text('{"question": "How many?", "answer": "7"}\n')
    text = textwrap.dedent(block).replace('prompts.jsonl', str(prompts)).replace('/models/mine-small', '/models/mine')
    (tmp_path / 'mine.py').write_text(text.replace('/models/mine', 'smollm2-135m-instruct'))
    short = ('max_new_tokens=64', 'decode.cache_length=256', 'decode.buckets=(64,)')  # the window there is short
    where = f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run', *(f'--set={one}' for one in short)
    shown = run(smollm2, '-m', 'launch.run', *where, '--dry_run')
    assert 'memory per device' in shown


def halves(words: list[str]) -> list[list[str]]:
    """A command, or the two that it is: launch.parent takes its own flags, and what follows -- is for launch.run."""
    place = words.index('--') if '--' in words else len(words)
    return [half for half in (words[:place], ['python', '-m', 'launch.run', *words[place + 1 :]]) if len(half) > 3]


def test_commands_that_are_not_run_have_flags_that_their_programs_know(smollm2):
    programs = {words[2] for words in PARSED}
    assert programs == {'launch.parent', 'launch.run', 'tools.detect'}
    # Values in capitals are the reader's to fill in.
    given = [[re.sub(r'=[IN]$', '=1', word) for word in half] for words in PARSED for half in halves(words)]
    for words in given:
        run(smollm2, *words[1:], '--only_check_args')


def test_every_option_is_named():
    for menu in (attacks.MENU, defences.MENU, rewriters.MENU):
        assert not [option.__name__ for option in menu.values() if f'`{option.__name__}' not in OUTSIDE]


def test_every_flag_and_module_in_the_text_is_there():
    sources = [path.read_text('utf-8') for folder in ('launch', 'tools') for path in (ROOT / folder).rglob('*.py')]
    defined = {name for text in sources for name in re.findall(r"DEFINE_\w+\(\s*'(\w+)'", text)}
    own = {'slow'}  # of tools/test
    named = {name for code in re.findall(r'`[^`\n]+`', OUTSIDE) for name in re.findall(r'--(\w+)', code)}
    assert named - own <= defined, named - own - defined
    modules = {*re.findall(r'`(?:python -m )?((?:tools|launch)\.[a-z_.]+)[ `]', OUTSIDE)}
    missing = [name for name in modules if not (ROOT / (name.replace('.', '/') + '.py')).exists()]
    assert len(modules) > 10
    assert not missing


def test_the_notebook_lines_show_both_arms(smollm2):
    (block,) = blocks('python')
    shown = run(smollm2, '-c', f'{block}\nprint(run)')
    assert re.search(r'^plain +│ poe$', shown, re.MULTILINE)
