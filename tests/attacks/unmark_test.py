"""Against marks: which lines go, which stay, and how well a detector without the key tells them apart."""

from __future__ import annotations

import random

import pytest
from lessons_fakes import lesson, resources, texts

from adx import marks
from adx.attacks.unmark import FilterLines, StripLines, forge_lines, learn

KEY = marks.subkey(bytes(range(32)), 'acme', 1)
WORDS = ['He', 'buys', 'apples', 'and', 'gives', 'some', 'of', 'them', 'to', 'his', 'friends', 'who', 'eat', 'they']


def plain(row: int) -> str:
    """Some lines of prose with numbers."""
    draw = random.Random(row)
    lines = [' '.join(draw.sample(WORDS, 6)) + f' {draw.randint(2, 90)}.' for _ in range(4)]
    return '\n'.join([*lines, f'#### {row}'])


def given(count: int = 40) -> tuple[list, list[str]]:
    """Lessons of which every tenth carries a line of the key; and those lines."""
    pairs = marks.draw_pairs(KEY, 20)
    carried = {row: pairs[row // 10] for row in range(0, count, 10)}
    made = [marks.put(plain(row), 0, carried[row]) if row in carried else plain(row) for row in range(count)]
    return [lesson(row, text=text) for row, text in enumerate(made)], [pair.line for pair in carried.values()]


@pytest.mark.parametrize('transform', [StripLines(), FilterLines(caught=0.999)])
def test_takes_the_marks_and_leaves_the_rest(transform):
    lessons, lines = given()
    kept, tally = transform.apply(lessons, resources().only(transform.needs))
    assert not any(line in text for line in lines for text in texts(kept))
    assert tally.kept == 40
    assert 4 <= tally.changed['rewritten'] <= 6
    left = [x.text for i, x in enumerate(kept) if i % 10]
    assert sum(text == plain(i) for i, text in zip([i for i in range(40) if i % 10], left, strict=True)) >= 34


def test_the_detector_learns_what_is_forged_and_nothing_where_both_are_alike():
    lines = forge_lines(resources())
    assert lines == forge_lines(resources())
    assert lines != forge_lines(resources(seed=1))
    others = [line for row in range(50) for line in plain(row).splitlines()]
    score = learn(lines[::2], others)
    assert min(map(score, lines[1::2])) > max(map(score, others))
    blind = learn(lines[::2], lines[1::2])
    right = sum(blind(line) > 0 for line in lines[:200])
    assert 40 < right < 190


def test_a_weaker_threshold_leaves_some():
    lessons, lines = given()
    kept, _ = FilterLines(caught=0.05).apply(lessons, resources().only(('forge',)))
    assert any(line in text for line in lines for text in texts(kept))
