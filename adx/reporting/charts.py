"""Pictures of rows as inline SVG: no script, no colour but that of the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from adx.reporting.rows import Row
from adx.spans import visible

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 64, 52, 16, 110


def _text(x: float, y: float, text: str, anchor: str = 'start', kind: str = '', turn: str = '') -> str:
    shown = escape(visible(text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turn}>{shown}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _inside(value: float | None, low: float, high: float) -> float:
    return min(max(0.0 if value is None else value, low), high)


def frontier_chart(rows: Sequence[Row], student: str) -> str:
    """Teacher accuracy against student accuracy, both in points with intervals; '' where no arm has both.

    Lower right is better. Arms that are not known to be eligible are grey and open.
    """
    teachers = {r.arm: r for r in rows if r.figure == 'teacher_accuracy' and r.value is not None}
    students = [r for r in rows if r.figure == 'student_accuracy' and r.student == student and r.value is not None]
    points = [(teachers[r.arm], r) for r in students if r.arm in teachers]
    if not points:
        return ''
    left = max(0.0, min(min(t.value or 0, _inside(t.low, (t.value or 0) - 5, 100)) for t, _ in points) - 2)
    span, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float | None) -> float:
        return LEFT + span * (_inside(value, left, 100) - left) / (100 - left)

    def y(value: float | None) -> float:
        return TOP + tall * (1 - _inside(value, 0, 100) / 100)

    parts = [_line(LEFT, y(v), WIDTH - RIGHT, y(v), 'grid') + _text(LEFT - 8, y(v) + 4, f'{v}', 'end', 'tick')
             for v in range(0, 101, 20)]  # fmt: skip
    step = next(step for step in (1, 2, 5, 10, 20, 25) if (100 - left) / step <= 6)
    for value in range(100, int(left) - 1, -step):
        if value >= left:
            parts.append(_text(x(value), HEIGHT - BOTTOM + 18, f'{value}', 'middle', 'tick'))
    parts.append(_text(LEFT + span / 2, HEIGHT - 10, 'Teacher accuracy (points of 100)', 'middle', 'axis'))
    turn = f' transform="rotate(-90 16 {TOP + tall / 2:.1f})"'
    parts.append(_text(16, TOP + tall / 2, f'Student accuracy, {student} (points)', 'middle', 'axis', turn))
    for teacher, row in points:
        kind = 'good' if row.eligible else 'plain' if row.role == 'reference' else 'grey'
        parts.append(_line(x(teacher.low), y(row.value), x(teacher.high), y(row.value), f'bar {kind}'))
        parts.append(_line(x(teacher.value), y(row.low), x(teacher.value), y(row.high), f'bar {kind}'))
        parts.append(f'<circle cx="{x(teacher.value):.1f}" cy="{y(row.value):.1f}" r="5" class="dot {kind}"/>')
        parts.append(_text(x(teacher.value) + 9, y(row.value) - 7, row.arm, 'start', f'label {kind}'))
    return _svg(parts, HEIGHT, f'Teacher accuracy against student accuracy, student {student}')


def recovery_chart(rows: Sequence[Row]) -> str:
    """A bar an attack: the share of the lost points that it wins back; '' without any."""
    found = [r for r in rows if r.figure == 'recovered' and r.value is not None]
    if not found:
        return ''
    start, span = 300, WIDTH - 300 - 70

    def x(value: float | None) -> float:
        return start + span * _inside(value, 0, 1)

    parts = [_line(x(v), 8, x(v), 16 + 26 * len(found), 'grid') for v in (0.0, 0.5, 1.0)]
    for i, row in enumerate(found):
        y, kind = 24 + 26 * i, 'good' if row.eligible else 'grey'
        width = x(row.value) - start
        parts.append(_text(start - 8, y + 4, f'{row.arm} · {row.attack} · {row.student}', 'end', 'label'))
        parts.append(f'<rect x="{start}" y="{y - 7}" width="{width:.1f}" height="14" class="fill {kind}"/>')
        parts.append(_line(x(row.low), y, x(row.high), y, 'bar plain'))
        parts.append(_text(WIDTH - 60, y + 4, f'{row.value:.2f}', 'start', 'tick'))
    bottom = 24 + 26 * len(found)
    parts += [_text(x(v), bottom + 10, f'{v:g}', 'middle', 'tick') for v in (0.0, 0.5, 1.0)]
    parts.append(_text(start + span / 2, bottom + 30, 'Share of the lost points recovered', 'middle', 'axis'))
    return _svg(parts, bottom + 42, 'Share of the lost points that each attack recovers')


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    name = escape(visible(title), quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
