"""Rewriting traces: a rewriter's drafts through the gates; the clean trace if none passes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adx.drafts import Draft, Rewriter, Tools
from adx.gates import UNLIKELY, Gates, Senses
from adx.rewriters.marked import Marked
from adx.texts import edit_distance
from adx.types import NAMING, Trace, check_range, is_name

NONE = 'no draft'
Nll = Callable[[Sequence[tuple[Trace, str]]], Sequence[float]]  # nats a token of texts behind the prompts of traces


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A rewriter of the traces of one arm, selection or earlier rewrite; `name` is its setting where traces are shown
    or released.

    share: (0, 1], at most this share of the traces is rewritten, drawn by the run's seed; the others stay as they are.
    only: slices of the dataset, 'subject=anatomy'; traces in none of them stay as they are. All if empty.
    """

    name: str
    of: str
    rewriter: Rewriter
    gates: Gates = Gates()
    share: float = 1.0
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """What became of one trace. text: the accepted draft, or the trace's own.

    accepted: which draft it is, counted from 0; None where none passed. refusals: why each draft before it, or each of
    all, did not pass; where none was looked at, why none was. note: what the rewriter says of the accepted draft.
    changed: how many of the trace's words it takes to make the text of it, over all of them; None where it is unknown.
    """

    request_id: str
    text: str
    accepted: int | None
    refusals: tuple[str, ...]
    note: str = ''
    changed: float | None = None


def rewrite(
    traces: Sequence[Trace], rewriter: Rewriter, gates: Gates, tools: Tools, senses: Senses, nll: Nll
) -> list[Rewritten]:
    """One result a trace, in their order. nll: under the teacher."""
    closed = {trace.request_id: gates.closed(trace, senses) for trace in traces}
    open_ = [trace for trace in traces if not closed[trace.request_id]]
    proposed = rewriter.drafts(open_, tools) if open_ else []
    passed = _pass(open_, proposed, gates, senses, nll) if open_ else []
    found = {one.request_id: one for one in passed}
    return [
        found.get(trace.request_id) or Rewritten(trace.request_id, trace.text, None, (closed[trace.request_id],))
        for trace in traces
    ]


def _pass(
    traces: Sequence[Trace], proposed: Sequence[Sequence[Draft]], gates: Gates, senses: Senses, nll: Nll
) -> list[Rewritten]:
    """Draft by draft, so that the teacher is asked about no more than what may be taken."""
    own = dict(zip((one.request_id for one in traces), nll([(one, one.text) for one in traces]), strict=True))
    refusals: dict[str, list[str]] = {one.request_id: [] for one in traces}
    accepted: dict[str, int] = {}
    for turn in range(max(map(len, proposed), default=0)):
        left = [(one, drafts[turn]) for one, drafts in zip(traces, proposed, strict=True)
                if one.request_id not in accepted and turn < len(drafts)]  # fmt: skip
        reasons = [draft.problem or gates.refusal(one, draft.text, senses) for one, draft in left]
        sound = [(one, draft.text) for (one, draft), reason in zip(left, reasons, strict=True) if not reason]
        levels = dict(zip((one.request_id for one, _ in sound), nll(sound) if sound else [], strict=True))
        for (one, _), reason in zip(left, reasons, strict=True):
            id_ = one.request_id
            if not reason and gates.is_fluent(own[id_], levels[id_]):
                accepted[id_] = turn
            else:
                refusals[id_].append(reason or UNLIKELY)
    return [
        _result(one, drafts, accepted.get(one.request_id), refusals[one.request_id])
        for one, drafts in zip(traces, proposed, strict=True)
    ]


def _result(trace: Trace, drafts: Sequence[Draft], accepted: int | None, refusals: Sequence[str]) -> Rewritten:
    taken = Draft(trace.text) if accepted is None else drafts[accepted]
    why = tuple(refusals) or (() if drafts else (NONE,))
    words = trace.text.split()
    changed = 0.0 if accepted is None else edit_distance(words, taken.text.split()) / max(len(words), 1)
    return Rewritten(trace.request_id, taken.text, accepted, why, taken.note, changed)


def counts(rewritten: Sequence[Rewritten]) -> dict[str, Any]:
    """How many were rewritten, by which draft, how many drafts were refused, by cause, and what share of its words a
    rewritten trace has changed, in the mean; None where that is unknown."""
    changed = [one.changed for one in rewritten if one.accepted is not None and one.changed is not None]
    taken = collections.Counter(one.accepted for one in rewritten if one.accepted is not None)
    causes = collections.Counter(reason for one in rewritten for reason in one.refusals)
    return {
        'traces': len(rewritten),
        'rewritten': sum(taken.values()),
        'by_draft': {str(draft): taken[draft] for draft in sorted(taken)},
        'refused': dict(sorted(causes.items())),
        'changed': sum(changed) / len(changed) if changed else None,
    }


def layers(rewriter: Any) -> list[Any]:
    """A rewriter and those inside it, the outermost first."""
    inside = getattr(rewriter, 'rewriter', None)
    return [rewriter, *([] if inside is None else layers(inside))]


def innermost(rewriter: Any) -> Any:
    """The rewriter that makes the drafts, inside whatever stands around it."""
    return layers(rewriter)[-1]


def matched_to(rewriter: Any) -> str:
    """The rewrite that it is a control of; '' for none."""
    return next((one.like for one in layers(rewriter) if hasattr(one, 'like')), '')


def written_under(rewriter: Any) -> str:
    """The arm by whose rule a rewriting model is decoded; '' for none."""
    return getattr(innermost(rewriter), 'arm', '')


def chain(rewrites: Sequence[Rewrite], name: str) -> list[Rewrite]:
    """The rewrite of that name and those that it is of, the last made first; none where no rewrite is named so."""
    by_name, found = {one.name: one for one in rewrites}, list[Rewrite]()
    while name in by_name:
        found.append(by_name.pop(name))
        name = found[-1].of
    return found


def check_rewrites(
    rewrites: Sequence[Rewrite], arms: Sequence[str], selections: Sequence[str], tools: Mapping[str, str]
) -> None:
    """Raises ValueError naming the rewrite. tools: those that the run lacks, and why."""
    taken = [*arms, *selections]
    for one in rewrites:
        if not is_name(one.name) or one.name in taken:
            raise ValueError(f'rewrites has one named {one.name!r}; it needs a name that is not of {taken}, {NAMING}')
        if one.of not in taken:
            raise ValueError(f'rewrite {one.name!r} is of {one.of!r} and before it there are {taken}')
        taken.append(one.name)
        try:
            one.rewriter.check()
            one.gates.check()
            check_range('share', one.share, 0.0, getattr(one.rewriter, 'most', 1.0), open_low=True)
        except ValueError as error:
            raise ValueError(f'rewrite {one.name!r}: {error}') from error
        if wrong := [label for label in one.only if '=' not in label]:
            raise ValueError(f"rewrite {one.name!r} is only of {wrong}; a slice is given as 'name=label'")
        if marked := [x.name for x in chain(rewrites, one.of) if isinstance(innermost(x.rewriter), Marked)]:
            raise ValueError(
                f'rewrite {one.name!r} is of traces that carry a mark, by {marked[0]!r}, and no gate would miss it; '
                'put the mark in last'
            )
        if like := matched_to(one.rewriter):
            _check_like(one, like, rewrites)
        if (arm := written_under(one.rewriter)) not in ('', *arms):
            raise ValueError(f'rewrite {one.name!r} is written under arm {arm!r} and there are {[*arms]}')
        for name in one.rewriter.needs:
            if name in tools:
                raise ValueError(f'rewrite {one.name!r} needs {name!r}: {tools[name]}')


def _check_like(one: Rewrite, like: str, rewrites: Sequence[Rewrite]) -> None:
    """Raises ValueError unless a control is of the same traces as the rewrite before it that it is to match."""
    before = {each.name: each.of for each in rewrites[: rewrites.index(one)]}
    if before.get(like) != one.of:
        of_same = sorted(name for name, of in before.items() if of == one.of)
        raise ValueError(f'rewrite {one.name!r} is to match {like!r}; rewrites of {one.of!r} before it are {of_same}')
    if one.share != 1.0 or one.only:
        raise ValueError(
            f'rewrite {one.name!r} matches {like!r} and stays where that does; leave share and only to {like!r}'
        )
