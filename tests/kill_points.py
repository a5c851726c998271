"""Kills a process at every call that changes what is on disk: before it, in the middle of a write, and after it."""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import shutil
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

from adx import files, gcs

BEFORE, HALF, AFTER = 'before', 'half', 'after'
FINISHED, FAILED, SKIPPED = 0, 1, 2
STORED = 'stored'  # a call that changes a store
# With an open file as their first argument, and with a path.
ON_FILES = ('write', 'pwrite', 'fsync', 'ftruncate')
ON_PATHS = ('replace', 'rename', 'unlink', 'remove', 'mkdir', 'rmdir')


class Points:
    """Counts the calls below `root` from now on and kills this process at number `at`, counted from 1.

    A point that is no write has no middle: there the process ends with SKIPPED.
    """

    def __init__(self, root: pathlib.Path, at: int, when: str):
        self.root, self.at, self.when, self.count = os.fspath(root), at, when, 0
        self._inside = False
        for name in (*ON_FILES, *ON_PATHS):
            setattr(os, name, self._around(getattr(os, name), name))
        for owner, name in (
            (files, 'upload'), (files, '_pipe'),
            (gcs.Object, 'create'), (gcs.Object, 'touch'), (gcs.Object, 'delete'),
        ):  # fmt: skip
            setattr(owner, name, self._around(getattr(owner, name), STORED))
        builtins.open = io.open = self._opening(builtins.open)

    def point(
        self, call: Callable[[], Any], half: Callable[[], Any] | None = None, end: Callable[[], Any] = lambda: None
    ) -> Any:
        """What `call` returns, unless the process is killed here. half: does the first half of it; end: makes what it
        did seen by other processes.
        """
        if self._inside:
            return call()
        self.count += 1
        if self.count != self.at:
            return call()
        if self.when == HALF:
            if half is None:
                os._exit(SKIPPED)
            half()
            end()
        if self.when != AFTER:
            die()
        try:
            return call()
        finally:  # also where the call refuses
            end()
            die()

    def _around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(target: Any, *more: Any, **named: Any) -> Any:
            if not self._is_ours(target, name, named.get('dir_fd')):
                return call(target, *more, **named)
            half = (lambda: call(target, more[0][: len(more[0]) // 2])) if name == 'write' else None
            return self.point(lambda: self._whole(lambda: call(target, *more, **named), name == STORED), half)

        return counted

    def _whole(self, call: Callable[[], Any], stored: bool) -> Any:
        """An object appears whole: where a directory plays the store, what is done in it for one is no point."""
        before, self._inside = self._inside, self._inside or stored
        try:
            return call()
        finally:
            self._inside = before

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """open(): what it opens to write counts as well, and every write to it."""

        def opened(target: Any, mode: str = 'r', *more: Any, **named: Any) -> Any:
            if not set(mode) & set('wax+') or not self._is_ours(target, 'open', None):
                return call(target, mode, *more, **named)
            return Writer(self.point(lambda: call(target, mode, *more, **named)), self)

        return opened

    def _is_ours(self, target: Any, name: str, folder: int | None) -> bool:
        if name == STORED:
            return True
        try:
            if name in ON_FILES:
                path = os.readlink(f'/proc/self/fd/{target}')
            else:
                above = '' if folder is None else os.readlink(f'/proc/self/fd/{folder}')
                path = os.path.abspath(os.path.join(above, os.fspath(target)))
        except (OSError, TypeError):
            return False
        return f'{path}/'.startswith(f'{self.root}/')


class Writer:
    """A file whose writes are points; each is in the file once it returns."""

    def __init__(self, file: Any, points: Points):
        self._file, self._points = file, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        write, half = self._file.write, data[: len(data) // 2]
        return self._points.point(lambda: write(data), lambda: write(half), self._file.flush)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(run: Callable[[], Any], stop: threading.Event | None = None) -> int:
    """Runs it in a fork of this process: FINISHED, FAILED, or a negative signal. stop: kills it once it is set."""
    pid = os.fork()
    if pid:
        while stop and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if stop.wait(0.01):
                os.kill(pid, signal.SIGKILL)
                break
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = FAILED
    os.fsync = lambda fd: None  # what a killed process wrote is there without it; a lost machine is not tested here
    try:
        run()
        code = FINISHED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killed(run: Callable[[], Any], place: pathlib.Path, at: int, when: str) -> int:
    """Runs it in a fork that is killed at a point below `place`: FINISHED where there are fewer."""

    def watched() -> None:
        points = Points(place, at, when)
        run()
        assert points.count < at

    return forked(watched)


def killed_at_requests(fake: Any) -> Callable[[Callable[[], Any], pathlib.Path, int, str], int]:
    """As `killed`, by a store's server: at the requests that change something, of whatever client, in any thread."""

    def kill(run: Callable[[], Any], place: pathlib.Path, at: int, when: str) -> int:
        with fake.killing(at, when == AFTER) as reached:
            return forked(run, reached)

    return kill


def everywhere(
    root: pathlib.Path, run: Callable[[pathlib.Path], Any], check: Callable[[pathlib.Path], None],
    whens=(BEFORE, AFTER), prepare: Callable[[pathlib.Path], Any] = lambda place: None,
    between: Callable[[pathlib.Path], None] = lambda place: None, kill: Callable[..., int] = killed,
) -> int:  # fmt: skip
    """Runs on a place of its own below `root` for every point and every way, killed there, and then once more to its
    end. check: of a place after that. prepare: makes one. between: checks it after the kill, as a reader sees it.
    The number of points.
    """
    for when in whens:
        at, code = 0, -signal.SIGKILL
        while code != FINISHED:
            at += 1
            place = root / when / str(at)
            place.mkdir(parents=True)
            prepare(place)
            code = kill(lambda place=place: run(place), place, at, when)
            assert code in (FINISHED, SKIPPED, -signal.SIGKILL), (when, at)
            if code == -signal.SIGKILL:
                between(place)
                assert forked(lambda place=place: run(place)) == FINISHED, (when, at)
            if code != SKIPPED:
                check(place)
            shutil.rmtree(place)
        assert at > 1
    return at - 1


def said(place: pathlib.Path) -> set[str]:
    """What a run wrote down with `say`."""
    path = place.with_suffix('.said')
    return set(path.read_text().split()) if path.exists() else set()


def say(place: pathlib.Path, ids: Any) -> None:
    """That it was told that these are saved; beside the workdir, so that it is no point."""
    with place.with_suffix('.said').open('a') as file:
        file.write(''.join(f'{id_}\n' for id_ in ids))
