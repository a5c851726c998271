"""Reading traces: answers to one prompt side by side, in a terminal or as HTML.

`compare` turns traces into groups of spans that are safe to show; `terminal` and `html` only lay them out.
Marks, divergences and strengths are the defence's own map: what this module returns is private.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from adx.pages import template
from adx.spans import SHADES, Pieces, Span, make_spans, visible
from adx.types import RequestId, Trace

MAX_ANSWER = 80  # characters of an answer in a heading
Grade = Callable[[str, str], bool]
Extract = Callable[[str], str | None]

@dataclasses.dataclass(frozen=True)
class Column:
    """One trace. right, kls (nats, by token) and share (of tokens intervened) are None where unknown.

    fallbacks: tokens that were the teacher's because a proxy gave no finite numbers.
    """

    defence: str
    stop: str
    tokens: int
    answer: str
    right: bool | None
    kls: tuple[float, ...] | None
    share: float | None
    spans: tuple[Span, ...]
    fallbacks: int = 0

    @property
    def mean_kl(self) -> float | None:
        """In nats a token."""
        return None if self.kls is None else math.fsum(self.kls) / max(self.tokens, 1)


@dataclasses.dataclass(frozen=True)
class Group:
    """The traces that share a prompt and its noise. columns: setting -> trace, in order of first sight."""

    name: str
    messages: tuple[dict[str, str], ...]
    gold: str | None
    columns: dict[str, Column]


@dataclasses.dataclass(frozen=True)
class Summary:
    """One setting over all prompts. mean_kl, high_kl (95th percentile), share and fallbacks are over all tokens.

    finished: traces not cut by length.
    """

    setting: str
    defence: str
    traces: int
    graded: int
    right: int
    finished: int
    mean_tokens: float
    mean_kl: float | None
    high_kl: float | None
    share: float | None
    fallbacks: int


def describe(defence: dict[str, Any]) -> str:
    """`{'type': 'product_of_experts', 'gamma': 0.5}` as 'product_of_experts(gamma=0.5)'; rules nest."""
    numbers = [f'{name}={_value(value)}' for name, value in defence.items() if name != 'type']
    return f'{defence.get("type", "")}({", ".join(numbers)})' if numbers else str(defence.get('type', ''))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return describe(value)
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_value, value))}]'
    return f'{value:g}' if isinstance(value, float) else str(value)


def compare(
    traces: Iterable[Trace], pieces: Pieces, grade: Grade | None = None, extract: Extract | None = None
) -> list[Group]:
    """Groups traces by prompt and sample, in the order of first sight.

    pieces: ids -> one text piece a token, as `spans.token_pieces` makes them.
    grade: (text, gold) -> whether it is right. extract: text -> the final answer; the last line without it.
    """
    groups: dict[str, Group] = {}
    for trace in traces:
        identity = RequestId.parse(trace.request_id)
        group = Group(identity.noise_name, trace.messages, trace.gold, {})
        group = groups.setdefault(identity.noise_name, group)
        group.columns[identity.setting] = _column(trace, pieces, grade, extract)
    return list(groups.values())


def _column(trace: Trace, pieces: Pieces, grade: Grade | None, extract: Extract | None) -> Column:
    kls, marks = trace.statistics.get('kl'), trace.statistics.get('intervened')
    answer = extract(trace.text) if extract else (trace.answer or trace.text).strip().split('\n')[-1]
    return Column(
        defence=describe(trace.defence),
        stop=trace.stop,
        tokens=len(trace.tokens),
        answer=visible(' '.join((answer or '').split()))[:MAX_ANSWER],
        right=None if grade is None or trace.gold is None else grade(trace.text, trace.gold),
        kls=None if kls is None else tuple(kls),
        share=None if marks is None else sum(marks) / max(len(trace.tokens), 1),
        spans=tuple(make_spans(trace, pieces)),
        fallbacks=sum(trace.statistics.get('fallback', ())),
    )


def settings(groups: Sequence[Group]) -> list[str]:
    """Every setting that occurs, in the order of first sight: the columns of a comparison."""
    return list(dict.fromkeys(setting for group in groups for setting in group.columns))


def summarise(groups: Sequence[Group]) -> list[Summary]:
    """One row a setting, over the prompts that have it."""
    rows = []
    for setting in settings(groups):
        columns = [group.columns[setting] for group in groups if setting in group.columns]
        verdicts = [column.right for column in columns if column.right is not None]
        rows.append(
            Summary(
                setting=setting,
                defence=columns[0].defence,
                traces=len(columns),
                graded=len(verdicts),
                right=sum(verdicts),
                finished=sum(column.stop != 'length' for column in columns),
                mean_tokens=sum(column.tokens for column in columns) / len(columns),
                mean_kl=_per_token([(column.mean_kl, column.tokens) for column in columns]),
                high_kl=_high([kl for column in columns for kl in column.kls or ()]),
                share=_per_token([(column.share, column.tokens) for column in columns]),
                fallbacks=sum(column.fallbacks for column in columns),
            )
        )
    return rows


def _per_token(values: list[tuple[float | None, int]]) -> float | None:
    """Mean weighted by tokens over what was recorded; None when nothing was."""
    known = [(value, tokens) for value, tokens in values if value is not None and tokens]
    return math.fsum(v * n for v, n in known) / sum(n for _, n in known) if known else None


def percent(share: float) -> str:
    return f'{100 * share:.1f} %'


def nats(divergence: float) -> str:
    return f'{divergence:.3f} nats'


# What a line never breaks inside (a character, maybe in a bracket) and its SGR code; a mark is reverse video.
Cell = tuple[str, str]
PLAIN, BOLD, DIM, MARK = '', '1', '2', '7'
VERDICTS = {None: ('', PLAIN), True: (', right', '32'), False: (', wrong', '31')}
MIN_COLUMN = 32
BAR = ' │ '


def terminal(groups: Sequence[Group], width: int = 100, colour: bool = True) -> str:
    """The traces of each prompt side by side, at most `width` (20 or more) cells a line.

    Intervened tokens are in reverse video, or in ⟦brackets⟧ with `colour` off.
    Settings that do not fit side by side follow below.
    """
    names = settings(groups)
    beside = min(len(names), max(1, (width + len(BAR)) // (MIN_COLUMN + len(BAR))))
    lines: list[list[Cell]] = []
    for group in groups:
        lines += [_cells('━' * width, DIM), *_prompt(group, width)]
        for first in range(0, len(names), beside):
            lines += [_cells('─' * width, DIM), *_band(group, names[first : first + beside], width, colour)]
    return _text(lines, colour)


def summary(groups: Sequence[Group], width: int = 100, colour: bool = True) -> str:
    """What stands below `terminal`: a line a setting over all prompts, and what a mark means."""
    lines = [_cells('━' * width, DIM)]
    for row in summarise(groups):
        facts = [f'{row.traces} trace{"s" * (row.traces > 1)}', *([f'{row.right} right'] if row.graded else [])]
        facts += [f'{row.finished} finished', f'{row.mean_tokens:.0f} tokens a trace', *_numbers(row)]
        lines += _wrap(_cells(visible(row.setting), BOLD) + _cells(f': {", ".join(facts)}'), width)
    mark = 'Reverse video' if colour else '⟦Brackets⟧'
    note = f'{mark}: not the token that the teacher would have drawn from the same noise.'
    return _text(lines + _wrap(_cells(note, DIM), width), colour)


def _text(lines: Iterable[Iterable[Cell]], colour: bool) -> str:
    return ''.join(_paint(line, colour) + '\n' for line in lines)


def _prompt(group: Group, width: int) -> list[list[Cell]]:
    """Name, gold answer and the last message; earlier messages are only counted."""
    gold = '' if group.gold is None else f'   gold answer: {group.gold}'
    earlier = len(group.messages) - 1
    question = group.messages[-1]['content'] if group.messages else ''
    before = f'({earlier} earlier message{"s" * (earlier > 1)}) ' if earlier > 0 else ''
    head = _cells(visible(group.name), BOLD) + _cells(visible(gold))
    return _wrap(head, width) + _wrap(_cells(before, DIM) + _cells(visible(question)), width)


def _band(group: Group, names: Sequence[str], width: int, colour: bool) -> Iterator[list[Cell]]:
    """Columns beside each other; each section starts on the same line in all of them."""
    room = (width + len(BAR)) // len(names) - len(BAR)
    columns = [_sections(name, group.columns.get(name), colour) for name in names]
    for sections in itertools.zip_longest(*columns, fillvalue=[]):
        for row in itertools.zip_longest(*(_wrap(cells, room) for cells in sections), fillvalue=[]):
            line: list[Cell] = []
            for cells in row:
                blank = room - sum(_width(text) for text, _ in cells)
                line += [*(_cells(BAR, DIM) if line else []), *cells, *_cells(' ' * blank)]
            yield line


def _sections(name: str, column: Column | None, colour: bool) -> list[list[Cell]]:
    if column is None:
        return [_cells(visible(name), BOLD), _cells('no trace', DIM)]
    verdict, verdict_style = VERDICTS[column.right]
    return [
        _cells(visible(name), BOLD),
        _cells(visible(column.defence), DIM),
        _cells(f'{column.tokens} tokens, stop: {visible(column.stop)}', DIM),
        _cells(f'answer: {column.answer or "none stated"}') + _cells(verdict, verdict_style),
        _cells(', '.join(_numbers(column)), DIM),
        [],
        _marked(column.spans, colour),
    ]


def _high(values: Sequence[float]) -> float | None:
    """The value that 95 % do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else None


def _numbers(of: Column | Summary) -> list[str]:
    numbers = [] if of.mean_kl is None else [f'mean KL {nats(of.mean_kl)}']
    if isinstance(of, Summary) and of.high_kl is not None:
        numbers.append(f'95 % below {nats(of.high_kl)}')
    numbers += [] if of.share is None else [f'{percent(of.share)} intervened']
    return numbers + ([f'{of.fallbacks} tokens fell back to the teacher'] if of.fallbacks else [])


def _marked(spans: Iterable[Span], colour: bool) -> list[Cell]:
    cells: list[Cell] = []
    for span in spans:
        cells += _cells(span.lead) + _cells(span.text, MARK if span.intervened else PLAIN) + _cells(span.tail)
    if colour:
        return cells
    for i, (text, style) in enumerate(cells):
        if style == MARK:
            before = '' if i and cells[i - 1][1] == MARK else '⟦'
            after = '' if i + 1 < len(cells) and cells[i + 1][1] == MARK else '⟧'
            cells[i] = (f'{before}{text}{after}', MARK)
    return cells


def _cells(text: str, style: str = PLAIN) -> list[Cell]:
    return [(char, style) for char in text]


def _width(text: str) -> int:
    """Terminal columns of `text`: a combining character takes none and a wide one two."""
    shown = (char for char in text if unicodedata.category(char) not in ('Mn', 'Me', 'Cf'))
    return sum(2 if unicodedata.east_asian_width(char) in 'WF' else 1 for char in shown)


def _wrap(cells: Iterable[Cell], width: int) -> list[list[Cell]]:
    """Breaks at newlines, then at the last space that fits (it is dropped), else inside the word."""
    lines: list[list[Cell]] = [[]]
    used = space = 0  # of the last line: its width, and how many cells end in its last space
    for text, style in cells:
        if text == '\n' or (text == ' ' and used == width):
            lines.append([])
            used = space = 0
            continue
        while used + _width(text) > width:
            cut = space or len(lines[-1])
            lines.append(lines[-1][cut:])
            del lines[-2][cut:]
            used, space = sum(_width(earlier) for earlier, _ in lines[-1]), 0
        lines[-1].append((text, style))
        used += _width(text)
        space = len(lines[-1]) if text == ' ' else space
    return lines


def _paint(cells: Iterable[Cell], colour: bool) -> str:
    painted = ''
    for style, run in itertools.groupby(cells, key=lambda cell: cell[1]):
        joined = ''.join(text for text, _ in run)
        painted += f'\x1b[{style}m{joined}\x1b[0m' if style and colour else joined
    return painted.rstrip(' ')


def html(groups: Sequence[Group], title: str, private: bool = True, page: bool = True) -> str:
    """One self-contained page: inline style, no script, nothing loaded. page False: its body, for a notebook.

    private False leaves out what maps the defence: marks, divergences, notes and strengths. Clean traces of
    defended prompts are private as well; leave them out of `groups` then.
    """
    return template('traces.html', percent, nats).render(
        groups=groups, title=title, private=private, page=page,
        settings=settings(groups), rows=summarise(groups), shades=SHADES,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Groups that show themselves: as HTML in a notebook, as text in a terminal."""

    groups: Sequence[Group]
    title: str = 'Traces side by side'

    def _repr_html_(self) -> str:
        return html(self.groups, self.title, page=False)

    def __str__(self) -> str:
        return terminal(self.groups, colour=False) + summary(self.groups, colour=False)
