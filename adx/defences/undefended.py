"""The teacher as it is: the baseline every other rule is compared with."""

from __future__ import annotations

from adx import struct
from adx.types import Array, State, Stateless, Views


@struct.dataclass
class Undefended(Stateless):
    """Returns the teacher's log-probs. A run of this rule alone decodes with a teacher-only program."""

    def adjust(self, views: Views, state: State) -> tuple[Array, State]:
        return views.teacher_V, state
