"""Kills a process at every call that changes what is on disk: before it, in the middle of a write, and after it."""

from __future__ import annotations

import os
import pathlib
import signal
import traceback
from collections.abc import Callable
from typing import Any

from adx import files, gcs

BEFORE, HALF, AFTER = 'before', 'half', 'after'
FINISHED, FAILED = 0, 1
STORED = 'stored'  # a call that changes a store
# With an open file as their first argument, and with a path.
ON_FILES, ON_PATHS = ('write', 'pwrite', 'fsync', 'ftruncate'), ('replace', 'rename', 'unlink', 'mkdir', 'rmdir')


class Points:
    """Counts the calls below `root` from now on and kills this process at number `at`, counted from 1."""

    def __init__(self, root: pathlib.Path, at: int, when: str):
        self.root, self.at, self.when, self.count = os.fspath(root), at, when, 0
        for name in (*ON_FILES, *ON_PATHS):
            setattr(os, name, self._around(getattr(os, name), name))
        for owner, name in (
            (files, 'upload'), (files, '_pipe'),
            (gcs.Object, 'create'), (gcs.Object, 'touch'), (gcs.Object, 'delete'),
        ):  # fmt: skip
            setattr(owner, name, self._around(getattr(owner, name), STORED))

    def _around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(target: Any, *more: Any, **named: Any) -> Any:
            if not self._is_ours(target, name, named.get('dir_fd')):
                return call(target, *more, **named)
            self.count += 1
            mine = self.count == self.at
            if mine and self.when == HALF and name == 'write':
                call(target, more[0][: len(more[0]) // 2])
            if mine and self.when != AFTER:
                die()
            try:
                return call(target, *more, **named)
            finally:  # also where the call refuses
                if mine:
                    die()

        return counted

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
        return path.startswith(self.root)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(run: Callable[[], Any]) -> int:
    """Runs it in a fork of this process: FINISHED, FAILED, or a negative signal."""
    pid = os.fork()
    if pid:
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


def everywhere(
    root: pathlib.Path, run: Callable[[pathlib.Path], Any], check: Callable[[pathlib.Path], None],
    whens=(BEFORE, AFTER), prepare: Callable[[pathlib.Path], Any] = lambda place: None,
) -> int:
    """Runs on a place of its own below `root` for every point and every way, killed there, and then once more to its
    end. check: of a place after that. prepare: makes one. The number of points.
    """
    for when in whens:
        at = 0
        while True:
            at += 1
            place = root / when / str(at)
            place.mkdir(parents=True)
            prepare(place)
            code = killed(lambda place=place: run(place), place, at, when)
            if code == FINISHED:
                break
            assert code == -signal.SIGKILL, (when, at)
            assert forked(lambda place=place: run(place)) == FINISHED, (when, at)
            check(place)
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
