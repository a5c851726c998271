"""What stands between thinking tags, and behind a model's own."""

from __future__ import annotations

import pytest

from adx.datasets.chat import Prompting
from adx.frames import frame, without_thinking


@pytest.mark.parametrize(
    ('text', 'shown', 'around'),
    [
        ('2 + 2 = 4\n#### 4', '2 + 2 = 4\n#### 4', 'New.'),
        ('<think>\nSo 4.\n</think>\n\n#### 4', 'So 4.\n\n#### 4', '<think>\nNew.\n</think>\n\n#### 4'),
        ('So 4. </think>4', 'So 4.\n\n4', 'New. </think>4'),
        ('<think>\n\n</think>\n\nSo 4.\n#### 4', 'So 4.\n#### 4', '<think>\n\n</think>\n\nNew.'),
        ('<think>So', '<think>So', 'New.'),
    ],
)
def test_another_reasoning_stands_between_the_tags(text: str, shown: str, around: str):
    framed = frame(text, Prompting())
    assert framed.shown == shown
    assert framed.around('New.') == around
    assert framed.around(framed.reasoning) == text


@pytest.mark.parametrize(
    ('text', 'opens', 'left'),
    [
        ('So 4.', False, 'So 4.'), ('Hm.</think>\n\nSo 4.', True, 'So 4.'), ('<think>Hm.</think> So', False, 'So'),
        ('Hm.', True, None), ('\n<think>Hm.', False, None), ('a</think>b</think>c', True, 'b</think>c'),
    ],
)  # fmt: skip
def test_what_was_written_behind_thinking(text: str, opens: bool, left: str | None):
    assert without_thinking(text, Prompting(template_opens_think=opens)) == left
    bare = Prompting(think_open='', think_close='')
    assert without_thinking(text, bare) == text
