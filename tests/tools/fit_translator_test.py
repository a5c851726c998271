"""The translator is only as good as the language model that it makes of an early exit: a limit, and who asks for it."""

from __future__ import annotations

import pathlib

import pytest

from adx.errors import InputError
from tools.fit_translator import check_below

ROOT = pathlib.Path(__file__).parents[2]


def test_a_perplexity_must_be_below_its_limit_where_one_is_given():
    check_below(149.9, 150.0)
    check_below(1e9, None)
    for bad in (150.0, float('inf'), float('nan')):
        with pytest.raises(InputError, match=r'must be below 150; fit the translator again'):
            check_below(bad, 150.0)


def test_the_demo_asks_for_a_language_model_before_it_decodes():
    lines = (ROOT / 'tools' / 'demo').read_text().splitlines()
    (asked,) = [i for i, line in enumerate(lines) if line.endswith(' --measure=smollm2_exit10 --below=150')]
    (decodes,) = [i for i, line in enumerate(lines) if 'launch.run' in line]
    assert asked < decodes
    assert 'set -euo pipefail' in (ROOT / 'tools' / '_environment').read_text()  # which the demo sources
