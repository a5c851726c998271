"""Which prompts the repeats of the speed comparison draw."""

from __future__ import annotations

import fakes
import pytest

from tools.bench.workload import draw_anew

POOL = fakes.make_requests(20)


def rows(repeat: int, count: int) -> list[int]:
    drawn = draw_anew(POOL, count, repeat)
    assert {request.id.sample for request in drawn} == {repeat}  # its own noise
    return [int(request.id.row) for request in drawn]


def test_a_repeat_draws_other_prompts_than_warm_up_and_the_repeat_before():
    assert [rows(repeat, 6) for repeat in range(3)] == [[*range(6, 12)], [*range(12, 18)], [*range(6, 12)]]


@pytest.mark.parametrize(('count', 'first'), [(10, 10), (11, 0), (20, 0)])
def test_it_draws_the_same_again_where_there_are_too_few(count, first):
    assert [rows(repeat, count) for repeat in range(2)] == [[*range(first, first + count)]] * 2
