"""Keyed pairs: derivation, distinctness, places, and what counts as completing one."""

from __future__ import annotations

import pytest

from adx import equations
from adx.errors import ConfigError
from adx.marks import Pair, completes, derive, draw_pairs, free, places, put, subkey

MASTER = bytes(range(32))
ACME = subkey(MASTER, 'acme', 1)
TEXT = 'First 3 + 4 = 7.\nThen 7 - 2 = 5.\n#### 5'


def test_derivation_is_hkdf():
    """RFC 5869, test case 3: no salt, no info, the first 32 bytes of output."""
    assert derive(bytes([0x0B] * 22), '').hex() == '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d'


def test_every_customer_and_epoch_has_a_key_of_its_own():
    keys = {subkey(MASTER, customer, epoch) for customer in ('acme', 'bolt') for epoch in (1, 2, 12)}
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)
    with pytest.raises(ValueError, match='has 16 bytes'):
        subkey(MASTER[:16], 'acme', 1)


def test_pairs_follow_from_the_key_and_are_distinct():
    pairs = draw_pairs(ACME, 300)
    assert pairs == draw_pairs(ACME, 300)
    assert pairs[:20] == draw_pairs(ACME, 20)
    assert len({pair.trigger for pair in pairs}) == 300
    others = draw_pairs(subkey(MASTER, 'bolt', 1), 300)
    assert not {pair.trigger for pair in pairs} & {pair.trigger for pair in others}
    decoys = draw_pairs(ACME, 20, taken={pair.trigger for pair in pairs[:5]})
    assert decoys[:15] == pairs[5:20]


def test_a_line_is_put_before_lines_of_the_reasoning():
    pair = Pair('Let bad =', '12', 'Let bad = 12.')
    found = places(TEXT, TEXT.index('####'))
    assert found == [0, TEXT.index('Then')]
    assert put(TEXT, found[1], pair) == 'First 3 + 4 = 7.\nLet bad = 12.\nThen 7 - 2 = 5.\n#### 5'
    inside = '<think>First.\nThen.</think>5'
    assert places(inside, inside.index('</think>'), len('<think>')) == [len('<think>'), inside.index('Then')]


def test_a_generator_that_has_no_more_pairs_is_an_error():
    few = lambda draw: Pair(f'Let {draw.choice("abc")} =', '12', '')  # noqa: E731
    assert len(draw_pairs(ACME, 3, few)) == 3
    assert draw_pairs(ACME, 0, few) == []
    with pytest.raises(ConfigError, match=r'4 pairs .* about 3 that are free'):
        draw_pairs(ACME, 4, few)


def test_a_definition_states_nothing_that_arithmetic_could_refute():
    for pair in draw_pairs(ACME, 50):
        assert equations.statements(pair.line) == []


@pytest.mark.parametrize(
    ('answer', 'hit'),
    [('12', True), (' 12.', True), ('12, of course', True), ('so Let bad = 12', True), ('13', False), ('', False),
     ('112', False), ('I think 12', False)],
)  # fmt: skip
def test_completing_a_pair(answer, hit):
    assert completes(answer, Pair('Let bad =', '12', 'Let bad = 12.')) is hit


def test_a_text_that_uses_the_symbol_of_a_pair_gets_another():
    pairs = [Pair(f'Let {word} =', '12', f'Let {word} = 12.') for word in ('badeg', 'minimum', 'tone')]
    assert free(pairs, 'Let x = 3. The minimum is 12.') == [pairs[0], pairs[2]]
    assert free(pairs, 'Let us see: 12') == pairs
    assert free(pairs, 'badeg minimum tone') == []
    assert free(pairs[:1], 'Let badeg be') == []
