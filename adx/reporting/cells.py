"""Which students may be compared: by what they learned from, joined by seed and prompts.

A join drops a seed that one side lacks, or whose sides were graded on other prompts or had other budgets, and says so:
nothing is filled in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from adx.errors import InputError
from adx.outcomes import SOURCES, Outcome, ThreatModel
from adx.types import check_choice

Value = Callable[[Outcome], float]
UNEQUAL = 'unequal steps: '  # how the note of it begins
NEAR = 3.0  # points that what is interpolated may be from what was measured


@dataclasses.dataclass(frozen=True)
class Joined:
    """Outcomes of the same seeds, one tuple a side; `notes` say what was dropped and what diverged."""

    seeds: tuple[int, ...]
    sides: tuple[tuple[Outcome, ...], ...]
    notes: tuple[str, ...]

    def values(self, value: Value = lambda outcome: outcome.accuracy) -> list[np.ndarray]:
        """One array over seeds a side."""
        return [np.array([value(outcome) for outcome in side]) for side in self.sides]


class Cells:
    """Outcomes of one split. Raises InputError on one without a threat model and on two of the same student."""

    def __init__(self, outcomes: Iterable[Outcome], split: str):
        self._cells: dict[tuple[str, str, str, str], dict[int, Outcome]] = {}
        for outcome in outcomes:
            check_outcome(outcome)
            if outcome.split != split:
                continue
            arm = outcome.arm if outcome.source == 'defended' else ''
            seeds = self._cells.setdefault((outcome.source, arm, outcome.attack, outcome.student), {})
            if outcome.seed in seeds:
                raise InputError(f'{_name(outcome)} stands twice; give each student of a seed once')
            seeds[outcome.seed] = outcome

    def arms(self) -> dict[str, str]:
        """Arm -> role, sorted by name."""
        found = {arm: next(iter(cell.values())).role for (source, arm, _, _), cell in self._cells.items() if arm}
        return dict(sorted(found.items()))

    def students(self) -> dict[str, bool]:
        """Family -> whether any proxy was of it, sorted by name."""
        found: dict[str, bool] = {}
        for (*_, student), cell in sorted(self._cells.items()):
            found[student] = found.get(student, False) or any(outcome.seen for outcome in cell.values())
        return dict(sorted(found.items()))

    def defended(self, arm: str, attack: str, student: str) -> dict[int, Outcome]:
        return self._cells.get(('defended', arm, attack, student), {})

    def clean(self, attack: str, student: str) -> dict[int, Outcome]:
        return self._cells.get(('clean', '', attack, student), {})

    def own(self, attack: str, student: str) -> dict[int, Outcome]:
        return self._cells.get(('own', '', attack, student), {})

    def base(self, student: str) -> dict[int, Outcome]:
        """The better way to ask the student that was not distilled (zero-shot, few-shot), by its mean over seeds."""
        ways = [cell for (source, _, _, who), cell in sorted(self._cells.items()) if (source, who) == ('base', student)]
        return max(ways, key=lambda cell: np.mean([o.accuracy for o in cell.values()]), default={})

    def ways(self, student: str) -> int:
        """In how many ways the student that was not distilled was asked."""
        return sum((source, who) == ('base', student) for source, _, _, who in self._cells)

    def fewest_settings(self, arm: str, student: str) -> int:
        """Of how many optimiser settings the least tuned one was chosen, among an arm's students and the clean ones."""
        sides = [
            cell for (source, of, _, who), cell in self._cells.items()
            if who == student and (source == 'clean' or (source, of) == ('defended', arm))
        ]
        return min((outcome.threat.settings for cell in sides for outcome in cell.values()), default=0)


def check_outcome(outcome: Outcome) -> None:
    """Raises InputError naming what is missing: a result whose threat model is not known is not a result."""
    name, threat = _name(outcome), outcome.threat
    try:
        check_choice('source', outcome.source, SOURCES)
    except ValueError as error:
        raise InputError(f'{name}: {error}') from error
    if not outcome.correct:
        raise InputError(f'{name} was graded on no prompt; grade it or leave it out')
    if not isinstance(threat, ThreatModel):
        raise InputError(f'{name} has no threat model; a result is refused without one, derive it from the run')
    taught = outcome.source in ('defended', 'clean')
    lacking = [field for field in ('queries', 'samples', 'traces', 'tokens') if taught and getattr(threat, field) < 1]
    if lacking or not threat.student:
        raise InputError(f'{name}: its threat model has no {(lacking or ["student"])[0]}; derive it from the run')


def join(**sides: dict[int, Outcome]) -> Joined:
    """The seeds that every side has, on the same prompts; defended and clean sides also at equal queries."""
    common = sorted(set.intersection(*(set(side) for side in sides.values())))
    notes = [
        f'seed {seed} dropped: not in {", ".join(name for name, side in sides.items() if seed not in side)}'
        for seed in sorted(set().union(*sides.values()) - set(common))
    ]
    kept = []
    for seed in common:
        reason = _unequal([side[seed] for side in sides.values()])
        notes += [f'seed {seed} dropped: {reason}'] if reason else []
        kept += [] if reason else [seed]
    notes += _unequal_steps({name: [side[seed] for seed in kept] for name, side in sides.items()})
    for name, side in sides.items():
        diverged = sum(side[seed].diverged for seed in kept)
        notes += [f'{diverged} of {len(kept)} {name} diverged'] if diverged else []
    return Joined(tuple(kept), tuple(tuple(side[seed] for seed in kept) for side in sides.values()), tuple(notes))


def _unequal(outcomes: Sequence[Outcome]) -> str:
    if len({outcome.prompts for outcome in outcomes}) > 1:
        return 'graded on other prompts'
    budgets = {
        outcome.attack: set[tuple[int, int]]() for outcome in outcomes if outcome.source in ('defended', 'clean')
    }
    for outcome in outcomes:
        if outcome.source in ('defended', 'clean'):
            budgets[outcome.attack].add((outcome.threat.queries, outcome.threat.samples))
    return 'unequal queries or samples' if any(len(budget) > 1 for budget in budgets.values()) else ''


def _unequal_steps(sides: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """The best setting of each side may train for longer than another's: a difference is then of both."""
    of_attack: dict[str, dict[str, set[int]]] = {}
    for name, side in sides.items():
        for outcome in side:
            if outcome.source in ('defended', 'clean'):
                of_attack.setdefault(outcome.attack, {}).setdefault(name, set()).add(outcome.threat.steps)
    return [
        UNEQUAL + ', '.join(f'{name} {"/".join(map(str, sorted(counts)))}' for name, counts in steps.items())
        for steps in of_attack.values()
        if len(set().union(*steps.values())) > 1
    ]


def missing(**sides: dict[int, Outcome]) -> str:
    """'not run: ...' naming the sides without any outcome; '' when all have one."""
    lacking = [name for name, side in sides.items() if not side]
    return f'not run: {", ".join(lacking)}' if lacking else ''


def at_equal(joined: Joined, unit: str) -> tuple[list[np.ndarray], str]:
    """Accuracies where both of a pair's curves last reach: one array a side, or no array and the reason.

    unit: 'steps' or 'tokens'; between two points, accuracy is taken on the line that joins them, at most NEAR from the
    nearer. A point is a student that was trained to its end with each budget where all have those, else a checkpoint.
    """
    key, outcomes = {'steps': 'step', 'tokens': 'tokens'}[unit], [outcome for side in joined.sides for outcome in side]
    which = 'budgets' if all(outcome.budgets for outcome in outcomes) else 'curve'
    if not all(getattr(outcome, which) for outcome in outcomes):
        return [], 'not run: curves'
    sides: list[list[float]] = [[] for _ in joined.sides]
    for row in zip(*joined.sides, strict=True):
        curves = [sorted((point[key], point['accuracy']) for point in getattr(outcome, which)) for outcome in row]
        end, start = min(curve[-1][0] for curve in curves), max(curve[0][0] for curve in curves)
        if end < start:
            return [], f'curves do not overlap in {unit}'
        for side, curve in zip(sides, curves, strict=True):
            xs, accuracies = np.array(curve).T
            between = float(np.interp(end, xs, accuracies))
            neighbours = accuracies[[np.searchsorted(xs, end, 'right') - 1, np.searchsorted(xs, end)]]
            if (gap := 100 * np.abs(neighbours - between).min()) > NEAR:
                return [], f'{gap:.1f} points of accuracy from what was measured, more than {NEAR:g}'
            side.append(between)
    return [np.array(side) for side in sides], ''


def _name(outcome: Outcome) -> str:
    parts = (outcome.source, outcome.arm, outcome.attack, outcome.student, f'seed {outcome.seed}', outcome.split)
    return f'outcome {"/".join(part for part in parts if part)}'
