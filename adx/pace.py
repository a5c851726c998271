"""How far this process is on the way that all processes of one program go together.

It is counted here, and read by whoever looks for one that stays behind.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(order=True)
class Pace:
    """meetings: how often it came to where each waits for all. steps: common computations since the last meeting.

    Both are counted before the waiting: of processes that wait for one, that one is behind.
    """

    meetings: int = 0
    steps: int = 0


OURS = Pace()


def meet() -> None:
    OURS.meetings, OURS.steps = OURS.meetings + 1, 0


def step() -> None:
    OURS.steps += 1
