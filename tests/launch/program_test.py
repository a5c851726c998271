"""Every program of tools/ says what it does and answers a wrong flag with one line and exit code 2."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from adx.errors import BUG, COMPLETE, REJECTED_ROWS, AdxError, InputError
from launch import program

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (ROOT / 'tools').glob('[a-z]*.py'))


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', f'tools.{program}', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_wrong_flag_is_one_line_and_2(program):
    done = run(program, '--no_such_flag')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert done.stderr.startswith("error: Unknown command line flag 'no_such_flag'")
    assert done.stdout == ''


def test_help_says_what_it_does():
    done = run('fetch_smollm2', '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert 'Fetches SmolLM2-135M-Instruct' in done.stdout
    assert 'Exit codes: 0 done, 2 flags, 3 input, 74 storage' in done.stdout


@pytest.mark.parametrize('flag', ['--help', '--helpfull'])
def test_help_of_the_run_has_every_exit_code(flag):
    done = subprocess.run([sys.executable, '-m', 'launch.run', flag], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    listed = done.stdout.partition('Exit codes:')[2].partition('\n\n')[0]
    assert re.findall(r'(?<!\S)(\d+) ([a-z]+)', listed) == [
        ('0', 'complete'), ('2', 'flags'), ('3', 'input'), ('4', 'workdir'), ('5', 'done'), ('70', 'a'),
        ('74', 'storage'), ('75', 'interrupted'),
    ]  # fmt: skip
    ours = [error for error in AdxError.__subclasses__() if error.__module__ == AdxError.__module__]  # no test's
    codes = {error.exit_code for error in ours} | {COMPLETE, REJECTED_ROWS, BUG}
    assert codes == {int(code) for code in re.findall(r'\d+', listed)}
    assert '--workdir' in done.stdout


@pytest.mark.parametrize('module', ['launch.parent', 'launch.slurm'])
def test_help_of_other_programs_is_no_error(module):
    done = subprocess.run([sys.executable, '-m', module, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'Try --helpfull' in done.stdout


def test_what_is_no_flag_is_refused():
    done = run('fetch_smollm2', 'stray')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith("error: ['stray'] are no flags")


@pytest.mark.parametrize(
    ('raised', 'code', 'message'),
    [(InputError('no such file'), InputError.exit_code, 'error: no such file\n'), (KeyError('x'), BUG, 'Traceback')],
)
def test_what_main_raises_decides_the_exit_code(capsys, raised, code, message):
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        program.call(main)
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(message)
