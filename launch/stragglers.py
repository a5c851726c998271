"""Ends one program across hosts where a process lives and does not go on, and names it.

Missing heartbeats do not tell: they come from a thread of their own. So each process posts how far it is (adx.pace)
to the key-value store of JAX's coordination service, and looks there at the others.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from adx import pace
from adx.pace import Pace
from launch.joining import names

LEAST_POLL, MOST_POLL = 0.1, 5.0  # seconds between two looks
BOARD, VERDICT = 'adx/pace', 'adx/late'  # keys


class Watch:
    """What one process knows of all. seconds: how long nobody may have gone on while some wait for others."""

    def __init__(self, count: int, seconds: float, now: float):
        self.seconds = seconds
        self.paces = {process: Pace() for process in range(count)}
        self.moved = now  # when any of them was last seen to go on

    def late(self, seen: Mapping[int, Pace], now: float) -> list[int]:
        """The processes that are behind all others, once nobody has gone on for so long; none where all are equally
        far, as they are while each compiles.
        """
        for process, where in seen.items():
            if where != self.paces[process]:
                self.paces[process], self.moved = where, now
        last = min(self.paces.values())
        if now - self.moved < self.seconds or last == max(self.paces.values()):
            return []
        return [process for process, where in self.paces.items() if where == last]


def watch(seconds: float, end: Callable[[str, float], Any]) -> None:
    """Watches all processes of this program from a thread, and calls `end` with a message where one is late.

    seconds: see Watch. end: given the message and how long to wait after it is said, see `Interrupts.end`.
    """
    threading.Thread(target=_watch, args=(Board(), seconds, end), daemon=True).start()


class Board:
    """Where all processes of a program read what each wrote. Nothing else uses what JAX keeps private."""

    def __init__(self) -> None:
        from jax._src.distributed import global_state

        self._client: Any = global_state.client
        self.process, self.count = global_state.process_id, global_state.num_processes

    def write(self, key: str, value: Any) -> None:
        self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)

    def read(self, directory: str) -> dict[str, Any]:
        """Last part of each key in it -> value."""
        return {key.rpartition('/')[2]: json.loads(text) for key, text in self._client.key_value_dir_get(directory)}


def _watch(board: Any, seconds: float, end: Callable[[str, float], Any]) -> None:
    poll = min(max(seconds / 20, LEAST_POLL), MOST_POLL)
    watched = Watch(board.count, seconds, time.monotonic())
    while True:
        time.sleep(poll)
        try:
            late = _look(board, watched)
        except RuntimeError:  # the service is gone or busy: JAX itself ends the program then, or the next look succeeds
            continue
        if late:
            break
    # All say it before the first ends, which the others notice in their own way; process 0 has JAX's service.
    end(message(late, board.count, seconds), 2 * poll if board.process else 4 * poll)


def _look(board: Any, watched: Watch) -> list[int]:
    """Posts how far this process is and looks at the others; who is late, as the first says who finds it out."""
    board.write(f'{BOARD}/{board.process}', [pace.OURS.meetings, pace.OURS.steps])
    if said := board.read(VERDICT):
        return said[min(said)]
    seen = {int(process): Pace(*where) for process, where in board.read(BOARD).items()}
    late = watched.late(seen, time.monotonic())
    if late:
        board.write(f'{VERDICT}/{board.process}', late)
    return late


def message(late: list[int], count: int, seconds: float) -> str:
    """One line."""
    return (
        f'{names(late)} of {count} made no progress for {seconds:.0f} s and the others wait; see its log, or give more '
        '--straggler_seconds; what is finished is saved, the same commands continue'
    )
