"""What a report promises, stated before the outcomes are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from adx.reporting.slices import Slices


@dataclasses.dataclass(frozen=True)
class Plan:
    """attacks: all that are promised; passive: the one of them that adapts to nothing, whose own resources are the base
    student. undefended: the arm of the clean traces' Quality; temperatures: arms of the temperature baseline.
    ladder: attacks of rising cost, the first at D = Q = 1; they are none of `attacks`.
    slices: of the prompts that students are graded on. family: the figures over whose defence rows Holm adjusts.
    selective: arms that are about some slices only, 'name=label'. split: what is read; only 'test' carries headlines.
    left_out: attacks that could have been promised -> why they are not; empty rows that no headline on attacks stands
    without. searched: families of students that rules were searched or shortlisted on: no headline.
    always: what no headline stands without -> the attack that it is, '' where none is promised. controls: of an arm,
    those that it has to do better than; all that there are where it says nothing of the arm.
    """

    attacks: tuple[str, ...]
    passive: str = 'sft'
    undefended: str = 'undefended'
    temperatures: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()
    slices: Slices = dataclasses.field(default_factory=dict)
    selective: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    family: tuple[str, ...] = ('damage', 'damage_adaptive')
    split: str = 'test'
    level: float = 0.95
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    searched: tuple[str, ...] = ()
    always: Mapping[str, str] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
