"""Commands of other programs (gcloud, kubectl, xpk, sbatch): printed as typed, or run."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Callable, Iterable

from adx.errors import AdxError

END = 'END_OF_INPUT'
# What a service says, in lower case, and what one can do about it.
HINTS = (
    (('gke-gcloud-auth-plugin',), 'run: gcloud components install gke-gcloud-auth-plugin'),
    (('gcloud auth login', 'do not currently have an active account', 'reauthentication'), 'run: gcloud auth login'),
    (('quota', 'resource_exhausted'), '--preflight lists the quotas and how to see them'),
    (('permission_denied', 'permission denied', 'forbidden', 'does not have'), '--preflight lists the roles'),
    (('has not been used in project', 'service_disabled'), '--preflight lists the APIs to enable'),
)
ABSENT = ('not_found', 'not found', 'notfound')


class CloudError(AdxError):
    """A service, or the program that talks to it, that refused or is not there."""

    exit_code = 69


@dataclasses.dataclass(frozen=True)
class Command:
    """words: the program and its arguments, never seen by a shell. stdin: a file that it reads there.

    login: whether the commands after it are only right once it has succeeded.
    """

    words: tuple[str, ...]
    stdin: str = ''
    login: bool = False

    def __str__(self) -> str:
        """As it is typed into a shell."""
        line = shlex.join(self.words)
        return f"{line} <<'{END}'\n{self.stdin.rstrip()}\n{END}" if self.stdin else line


def command(*words: str, stdin: str = '', login: bool = False) -> Command:
    """Leaves out words that are ''."""
    return Command(tuple(word for word in words if word), stdin, login)


def escape(text: str) -> str:
    """Keeps what is written: systemd replaces ${NAME} and $$ in arguments, Kubernetes $(NAME) and $$."""
    return text.replace('$', '$$')


def run(one: Command) -> str:
    """What it prints, without the last newline. Raises CloudError, one line, if it fails."""
    done = _run(one)
    if done.returncode:
        raise CloudError(_failure(one, done))
    return done.stdout.rstrip('\n')


def find(one: Command) -> str | None:
    """As run, but None if what is asked for is not there."""
    done = _run(one)
    if done.returncode and any(word in done.stderr.lower() for word in ABSENT) and not _hint(done.stderr):
        return None
    if done.returncode:
        raise CloudError(_failure(one, done))
    return done.stdout.strip()


def run_all(some: Iterable[Command]) -> None:
    """Runs them in order and shows what they print."""
    for one in some:
        _show(run(one))


def run_each(some: Iterable[Command], how: Callable[[Command], str | None] = run) -> None:
    """As run_all, but one that fails keeps only a login's followers from running; the first failure is raised then."""
    failures = []
    for one in some:
        try:
            _show(run(one) if one.login else how(one))
        except CloudError as error:
            failures.append(error)
            if one.login:
                break
    if failures:
        raise failures[0]


def remove_each(some: Iterable[Command]) -> None:
    """As run_each; what a command should delete and is not there is no failure."""
    run_each(some, find)


def _show(text: str | None) -> None:
    if text:
        print(text)


def _run(one: Command) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(one.words, input=one.stdin, capture_output=True, text=True)
    except OSError as error:
        program = one.words[0]
        raise CloudError(
            f'{program} cannot be started ({error.strerror}); install it, or take --dry_run and run what it prints'
        ) from error


def _failure(one: Command, done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ['it printed nothing']
    said = next((line for line in lines if line.startswith(('ERROR', 'Error', 'error'))), lines[-1])
    hint = _hint(done.stderr)
    return f'{" ".join(one.words[:5])} ended with {done.returncode}: {said}{hint and f"; {hint}"}'


def _hint(stderr: str) -> str:
    low = stderr.lower()
    return next((hint for words, hint in HINTS if any(word in low for word in words)), '')
