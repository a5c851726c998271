"""Thinking tags: what stands between them, and what a model wrote behind its own."""

from __future__ import annotations

from adx.datasets.chat import Prompting, final_line, opens_thinking
from adx.drafts import Frame


def without_thinking(text: str, prompting: Prompting) -> str | None:
    """What a model wrote behind its thinking, all of it where it did not think; None where it never stopped to."""
    if not prompting.think_close:
        return text
    _, close, after = text.partition(prompting.think_close)
    if close:
        return after.lstrip()
    return None if prompting.template_opens_think or opens_thinking(text, prompting) else text


def frame(text: str, prompting: Prompting) -> Frame:
    """Thinking that never closes is no frame."""
    close = text.find(prompting.think_close) if prompting.think_close else -1
    if close < 0:
        return Frame('', text, '', text)
    opened = text.find(prompting.think_open, 0, close) if prompting.think_open else -1
    start = opened + len(prompting.think_open) if opened >= 0 else 0
    inside, after = text[start:close], text[close + len(prompting.think_close) :].lstrip()
    if not inside.strip():
        return Frame(text[: len(text) - len(after)], after, '', after)
    start += len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    return Frame(text[:start], text[start:end], text[end:], f'{text[start:end]}\n\n{after}'.rstrip())


def reasoning_words(text: str, prompting: Prompting) -> str:
    """The reasoning without its tags; where nothing was thought between them, what stands before the final answer."""
    framed = frame(text, prompting)
    return framed.reasoning if framed.behind else framed.reasoning[: final_line(framed.reasoning)]
