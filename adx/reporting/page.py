"""The report: one sentence, rows with reasons, pictures, threat models; HTML and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from adx.outcomes import Outcome
from adx.pages import template
from adx.quality import Criterion
from adx.reporting.charts import frontier_chart, recovery_chart
from adx.reporting.headlines import AT_EQUAL
from adx.reporting.rows import MEASURED, Row, Verdicts

COLUMNS = ('points_lost', 'damage', 'damage_adaptive', 'cost_multiplier', 'cost_per_token')
AT_STEPS = AT_EQUAL[0]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prompt's traces side by side. said: arm -> (text, whether its answer is right)."""

    question: str
    gold: str
    said: Mapping[str, tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the report says besides its figures. readings: of the test split; samples: traces to look at.

    proxies: arm -> families of its proxies, for the matrix against the students' families. transfer: (arm, proxy,
    model, rank correlation with its interval) of the transfer matrix. environments: changes of what tokens depend on.
    unjudged: arm -> why its eligibility is not known. rewrites: (seed, name, its `drafting.counts`). searched: as Plan
    has it.
    """

    testbed: str
    readings: int
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()
    licence: str = ''
    disclosure: str = ''
    samples: Sequence[Sample] = ()
    transfer: Sequence[tuple[str, str, str, str]] = ()
    proxies: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    environments: Sequence[str] = ()
    unjudged: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rewrites: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    searched: Sequence[str] = ()


def _heads(rows: Sequence[Row], figure: str, searched: Collection[str]) -> list[Row]:
    """The headlines of arms that have one on every family that counts: a buyer does not choose that of the thief."""
    counting = [
        row for row in rows
        if (row.figure, row.status, row.seen) == (figure, MEASURED, False) and row.student not in searched
    ]  # fmt: skip
    failing = {row.arm for row in counting if not row.headline}
    return [row for row in rows if row.headline and row.figure == figure and row.arm not in failing]


def sentence(rows: Sequence[Row], testbed: str, searched: Collection[str] = ()) -> str:
    """Which defence to use at what price, or none and why; names the testbed. searched: as Plan has it."""
    heads, kind = _heads(rows, 'damage_adaptive', searched), 'even the worst attack tried'
    if not heads:
        heads, kind = _heads(rows, 'damage', searched), 'a passive thief'
    if not heads:
        figures = [row for row in rows if row.role == 'defence' and row.figure == 'damage']
        judged = [row for row in figures if row.value is not None]
        why = 'no defence was measured'
        if judged:
            why = f'none of {len({row.arm for row in judged})} measured defences passes every rule on every family'
        return f'On {testbed}, use none: {why} for a headline.'
    heads = [dataclasses.replace(row, low=_claimed(row, rows)) for row in heads]
    least = {arm: min((row for row in heads if row.arm == arm), key=_low) for arm in {row.arm for row in heads}}
    best = max(least.values(), key=lambda row: (_low(row), row.arm))
    prices = [row for row in rows if row.arm == best.arm and row.value is not None]
    lost = next((f'{row.value:.1f} points of accuracy' for row in prices if row.figure == 'teacher_lost'), '')
    cost = next((f'{row.value:.2f} times the cost a token' for row in prices if row.figure == 'cost_per_token'), '')
    price = ' and '.join(part for part in (lost, cost) if part) or 'a price that was not measured'
    return (
        f'On {testbed}, {best.arm} takes at least {100 * _low(best):.0f} % of what {kind} would gain '
        f'(student {best.student}), for {price}.'
    )


def _low(row: Row) -> float:
    return row.low or 0.0


def _claimed(head: Row, rows: Sequence[Row]) -> float:
    """The least of the lower ends of a headline's figure and of the passive damage at equal steps and tokens."""
    figures = (head.figure, *AT_EQUAL)
    return min(
        _low(row) for row in rows
        if (row.arm, row.student) == (head.arm, head.student) and row.figure in figures and row.value is not None
    )  # fmt: skip


def report(rows: Sequence[Row], outcomes: Iterable[Outcome], verdicts: Verdicts, facts: Facts) -> dict[str, Any]:
    """Everything that the page shows, as JSON: infinite and undefined numbers are null."""
    about = dataclasses.asdict(facts)
    return _finite({
        'headline': sentence(rows, facts.testbed, facts.searched),
        'rows': [dataclasses.asdict(row) for row in rows],
        'eligibility': {arm: [one._asdict() for one in judged] for arm, judged in sorted(verdicts.items())},
        'threat_models': _threat_models(outcomes),
        **about,
    })  # fmt: skip


def _threat_models(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One an attack, source, arm and student, with what became of the lessons of all its seeds."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    lessons: dict[tuple[str, ...], Counter[str]] = {}
    for one in outcomes:
        key = (one.attack, one.source, one.arm, one.student)
        found[key] = {'attack': one.attack, 'source': one.source, 'arm': one.arm} | dataclasses.asdict(one.threat)
        lessons.setdefault(key, Counter()).update(one.lessons)
    return [threat | {'lessons': dict(sorted(lessons[key].items()))} for key, threat in sorted(found.items())]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(row: Row | None) -> str:
    """A cell of a table: the value with its interval, or what is missing."""
    if row is None:
        return 'not run'
    if row.value is None:
        return row.reason or row.status
    low, high = ('unbounded' if x is None or not math.isfinite(x) else f'{x:.2f}' for x in (row.low, row.high))
    return f'{row.value:.2f} [{low}, {high}]'


def with_steps(columns: tuple[str, ...], measured: Collection[str]) -> tuple[str, ...]:
    """Damage at equal steps stands beside the damage where it was measured. measured: names of figures."""
    after = columns.index('damage') + 1
    return (*columns[:after], AT_STEPS, *columns[after:]) if AT_STEPS in measured else columns


def _table(rows: Sequence[Row], eligible: bool, columns: Sequence[str]) -> list[tuple[Row, list[Row | None]]]:
    """A line per defence or control and student; the figures of the traces stand on each line of the arm."""
    lines = []
    by = {(row.figure, row.arm, row.student): row for row in rows}
    for row in rows:
        if row.figure == 'points_lost' and bool(row.eligible) == eligible:
            cells = [by.get((name, row.arm, row.student), by.get((name, row.arm, ''))) for name in columns]
            lines.append((row, cells))
    return lines


def _lacking(judged: Sequence[Criterion]) -> list[str]:
    """Which criteria of eligibility do not hold, and which were not measured."""
    lacks = [one for one in judged if not one.holds]
    kinds = {'fails': [one.name for one in lacks if not one.is_unknown]}
    kinds['not measured'] = [one.name for one in lacks if one.is_unknown]
    return [f'{kind}: {", ".join(names)}' for kind, names in kinds.items() if names]


def _matrix(rows: Sequence[Row], proxies: Mapping[str, Sequence[str]]) -> list[tuple[str, str, dict[str, Row]]]:
    """A line an arm and family of its proxies: the damage by student."""
    damage: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.figure == 'damage':
            damage.setdefault(row.arm, {})[row.student] = row
    return [(family, arm, cells) for arm, cells in damage.items() for family in proxies.get(arm, ())]


def html(rows: Sequence[Row], outcomes: Iterable[Outcome], verdicts: Verdicts, facts: Facts) -> str:
    """One self-contained page: inline style, no script, nothing loaded."""
    students = sorted({row.student for row in rows if row.student})
    failed = {arm: '; '.join(lacking) for arm, judged in verdicts.items() if (lacking := _lacking(judged))}
    failed |= {arm: f'not judged: {why}' for arm, why in facts.unjudged.items()}
    columns = with_steps(COLUMNS, {row.figure for row in rows if row.value is not None})
    return template('report.html', number).render(
        content=report(rows, outcomes, verdicts, facts), facts=facts, rows=rows, columns=columns, failed=failed,
        judged=sorted(verdicts.items()), good=_table(rows, True, columns),
        bad=_table(rows, False, columns),
        recovery=recovery_chart(rows), matrix=_matrix(rows, facts.proxies), students=students,
        charts=[chart for s in students if (chart := frontier_chart(rows, s))],
    )  # fmt: skip
