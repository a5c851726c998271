"""Rewriting: what a rewriter proposes for a finished trace, and what it is handed to do so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from adx.types import Trace


@dataclasses.dataclass(frozen=True)
class Draft:
    """A proposal. problem: why the rewriter itself disowns it, '' if it does not. note: what the private record of the
    rewrite is to say of it where it is taken.
    """

    text: str
    problem: str = ''
    note: str = ''


class Frame(NamedTuple):
    """A text as before + reasoning + behind, with thinking tags in the frame: another reasoning may stand in it.

    shown: the text without tags. Where nothing was thought between tags, or there are none, the reasoning is all that
    follows on them.
    """

    before: str
    reasoning: str
    behind: str
    shown: str

    def around(self, text: str) -> str:
        return f'{self.before}{text.strip()}{self.behind}' if self.behind else self.before + text


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the run hands to rewriters; None where it has none of a kind.

    write(asked, samples, arm): what the rewriting model answers to each text, without what it thought before,
    `samples` answers each, decoded as an arm of the run is; '' for as the undefended teacher is.
    frame(trace): its text without thinking tags, to be shown, and with another reasoning between them.
    edit(traces, settings): what a search by gradient makes of each trace, round by round, the most changed first.
    render(question, text, count, voice): up to `count` other tellings of a trace by its dataset's own writer.
    harm(traces, texts): per trace the harm of each of its texts to the proxies, texts of one trace together.
    mark(traces, settings): each trace with a line of the customer's key, at one place or another.
    line(traces, settings): that line alone, for each trace.
    like(traces, name): what an earlier rewrite made of each trace.
    instruction(): the best that a search for instructions has found.
    """

    write: Callable[[Sequence[str], int, str], Sequence[Sequence[Draft]]] | None = None
    edit: Callable[[Sequence[Trace], Any], list[list[Draft]]] | None = None
    render: Callable[[str, str, int, str], Sequence[str]] | None = None
    harm: Callable[[Sequence[Trace], Sequence[Sequence[str]]], Sequence[Sequence[float]]] | None = None
    mark: Callable[[Sequence[Trace], Any], list[list[Draft]]] | None = None
    line: Callable[[Sequence[Trace], Any], list[str]] | None = None
    like: Callable[[Sequence[Trace], str], list[str]] | None = None
    instruction: Callable[[], str] | None = None
    frame: Callable[[Trace], Frame] = lambda trace: Frame('', trace.text, '', trace.text)

    def need(self, name: str, who: str) -> Any:
        """The tool of that name. Raises ValueError naming who asks for it where there is none."""
        tool = getattr(self, name)
        if tool is None:
            raise ValueError(f'{who} needs the tool {name!r} and the run has none')
        return tool


@runtime_checkable
class Rewriter(Protocol):
    """A frozen dataclass of numbers and words; the same traces and tools give the same drafts.

    needs: the names of the fields of Tools that it uses.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    def check(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        ...

    def drafts(self, traces: Sequence[Trace], tools: Tools) -> list[list[Draft]]:
        """For each trace what may stand in its place, the best first; the first that passes the gates is taken."""
        ...
