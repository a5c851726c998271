"""A row of a report: one figure of one arm, or the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adx.quality import Criterion
from adx.statistics import Interval

MEASURED, SCREEN, NOT_RUN, NO_CREDIT, CENSORED = 'measured', 'screen', 'not_run', 'no_credit', 'censored'
UNRESOLVED = 'unresolved'  # by so few seeds it may deserve credit or not
MIN_SEEDS = 8  # of a row that may carry a headline; fewer screen
Verdicts = Mapping[str, Sequence[Criterion]]  # by arm


@dataclasses.dataclass(frozen=True)
class Row:
    """figure of (arm, attack, student). value is None unless status is 'measured' or 'screen'.

    seen: whether a proxy was of the student's family, None without a student; eligible: as `is_eligible` has it.
    low, high: ends of its interval, infinite where it is unbounded; unit: of all three. n: seeds. p: one-sided, of no
    loss; adjusted by Holm in rows of the family. reason: what the reader must know.
    """

    figure: str
    role: str
    arm: str
    attack: str
    student: str
    seen: bool | None
    eligible: bool | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = 'share'
    status: str = NOT_RUN
    reason: str = ''
    p: float | None = None
    headline: bool = False


class Subject(NamedTuple):
    """Whom a row is about; student '' for the traces themselves."""

    arm: str
    role: str
    student: str
    seen: bool | None
    eligible: bool | None

    def row(self, figure: str, attack: str, **more: Any) -> Row:
        return Row(figure, self.role, self.arm, attack, self.student, self.seen, self.eligible, **more)

    def measured(
        self, figure: str, attack: str, found: Interval, seeds: int, notes: Iterable[str] = (), **more: Any
    ) -> Row:
        """The row of an interval over so many seeds; its own note comes after `notes`."""
        reason = '; '.join(note for note in (*notes, found.note) if note)
        ends = {'value': found.value, 'low': found.low, 'high': found.high}
        return self.row(figure, attack, **ends, n=seeds, status=status_of(seeds), reason=reason, **more)


def is_eligible(arm: str, verdicts: Verdicts) -> bool | None:
    """Whether every criterion holds; None where the arm was not judged, or where all hold that could be measured."""
    judged = verdicts.get(arm)
    failing = [criterion for criterion in judged or () if not criterion.holds]
    return None if not judged or (failing and all(one.is_unknown for one in failing)) else not failing


def status_of(seeds: int) -> str:
    return MEASURED if seeds >= MIN_SEEDS else SCREEN if seeds else NOT_RUN
