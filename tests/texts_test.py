"""How far texts are apart, against the definition."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adx.texts import edit_distance

WORDS = st.lists(st.sampled_from('abc'), max_size=6)


def by_definition(before, after):
    """Levenshtein's recursion."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (before[i - 1] != after[j - 1])
        return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(before), len(after))


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_the_distance_is_that_of_the_definition(before, after):
    assert edit_distance(before, after) == by_definition(before, after)


@pytest.mark.parametrize(
    ('before', 'after', 'distance'), [('', '', 0), ('', 'two words', 2), ('two words', '', 2), ('kitten', 'kitten', 0)]
)
def test_texts_without_words_and_equal_ones(before, after, distance):
    assert edit_distance(before.split(), after.split()) == distance
    assert edit_distance('kitten', 'sitting') == 3
