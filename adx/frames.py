"""Thinking tags: what stands between them, and what a model wrote behind its own."""

from __future__ import annotations

from adx.datasets.chat import Prompting, final_line, opens_thinking, split_reasoning
from adx.drafts import Frame


def without_thinking(text: str, prompting: Prompting) -> str | None:
    """What a model wrote behind its thinking, all of it where it did not think; None where it never stopped to."""
    if not prompting.think_close:
        return text
    _, close, after = text.partition(prompting.think_close)
    if close:
        return after.lstrip()
    return None if opens_thinking(text, prompting) else text


def reasoning_span(text: str, prompting: Prompting) -> tuple[int, int]:
    """Where the reasoning begins and ends, without its tags and with the white space beside them."""
    reasoning = split_reasoning(text, prompting)[0]
    closes = reasoning.find(prompting.think_close) if prompting.think_close else -1
    end = closes if closes >= 0 else len(reasoning)
    opens = text.find(prompting.think_open, 0, end) if prompting.think_open else -1
    return opens + len(prompting.think_open) if opens >= 0 else 0, end


def frame(text: str, prompting: Prompting) -> Frame:
    """Thinking that never closes is no frame."""
    if not prompting.think_close or prompting.think_close not in text:
        return Frame('', text, '', text)
    start, close = reasoning_span(text, prompting)
    inside, after = text[start:close], split_reasoning(text, prompting)[1]
    if not inside.strip():
        return Frame(text[: len(text) - len(after)], after, '', after)
    start += len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    return Frame(text[:start], text[start:end], text[end:], f'{text[start:end]}\n\n{after}'.rstrip())


def reasoning_words(text: str, prompting: Prompting) -> str:
    """The reasoning without its tags; where nothing was thought between them, what stands before the final answer."""
    framed = frame(text, prompting)
    return framed.reasoning if framed.behind else framed.reasoning[: final_line(framed.reasoning)]
