"""Views of traces: aligned by prompt, marked at the right tokens, within the width, and harmless."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import unicodedata

import pytest

from adx import view
from adx.types import Trace

ESCAPE = re.compile(r'\x1b\[[0-9;]*m')
HOSTILE = 'a <script>alert(1)</script> "\'><img src=x onerror=y> \x1b[2J\x1b]0;title\x07 \u202e{{ 7*7 }} '


def pieces(ids: tuple[int, ...]) -> list[str]:
    return [chr(i) for i in ids]


def make_trace(request_id: str, text: str, marks: str = '', gold: str | None = '7', **fields) -> Trace:
    """One token a character; `marks` has ^ under the intervened ones, whose KL is 2 nats."""
    flags = [int(mark == '^') for mark in marks.ljust(len(text))]
    statistics = {'intervened': flags, 'kl': [2.0 * flag for flag in flags]} if marks else {}
    trace = Trace(
        request_id=request_id, messages=({'role': 'user', 'content': 'How many?'},), text=text, reasoning='',
        answer=text, tokens=tuple(map(ord, text)), stop='eos', prompt_tokens=3, sampling={}, seed=0,
        defence={'type': 'undefended'}, gold=gold, statistics=statistics,
    )  # fmt: skip
    return dataclasses.replace(trace, **fields)


def compare(*traces: Trace) -> list[view.Group]:
    return view.compare(traces, pieces, lambda text, gold: text.endswith(gold), lambda text: text[-1:])


def width_of(line: str) -> int:
    shown = (c for c in ESCAPE.sub('', line) if unicodedata.category(c) not in ('Mn', 'Me', 'Cf'))
    return sum(2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in shown)


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: tags, attributes, marked text, and text without the style."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.marked: list[str] = []
        self.text = ''
        self._inside: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ('meta', 'br'):
            self._inside.append(tag)
        if tag == 'u' and dict(attrs).get('data-note'):
            self.marked.append('')

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag, f'{tag} closes nothing'

    def handle_data(self, data):
        if 'style' not in self._inside:
            self.text += data
        if self._inside and self._inside[-1] == 'u' and self.marked:
            self.marked[-1] += data


TWO = (
    make_trace('d/test/0/0/plain', 'it is 7', ' ' * 7),
    make_trace('d/test/0/0/poe', 'it is 8', '   ^  ^', defence={'type': 'product_of_experts', 'gamma': 0.5}),
)


def test_traces_meet_at_their_prompt_and_sample():
    ids = ['d/test/0/0/a', 'd/test/1/0/a', 'd/test/0/1/a', 'd/test/1/0/b', 'd/test/0/0/b']
    groups = compare(*(make_trace(i, 'x') for i in ids))
    assert {group.name: list(group.columns) for group in groups} == {
        'd/test/0/0': ['a', 'b'], 'd/test/1/0': ['a', 'b'], 'd/test/0/1': ['a'],
    }  # fmt: skip


def test_headings_are_computed_from_the_record():
    plain, poe = compare(*TWO)[0].columns.values()
    assert (plain.right, plain.answer, plain.mean_kl, plain.share) == (True, '7', 0.0, 0.0)
    assert (poe.right, poe.answer) == (False, '8')
    assert (poe.mean_kl, poe.share) == (pytest.approx(4 / 7), pytest.approx(2 / 7))
    assert poe.defence == 'product_of_experts(gamma=0.5)'


def test_what_is_not_known_is_not_claimed():
    (group,) = view.compare([make_trace('d/test/0/0/a', 'first\nlast', gold=None)], pieces)
    column = group.columns['a']
    assert (column.right, column.mean_kl, column.share, column.answer) == (None, None, None, 'last')
    for text in (view.terminal([group]), view.summary([group]), Page(view.html([group], 't')).text):
        assert 'right' not in text.replace('Right', '')
        assert 'wrong' not in text


def test_summary_weighs_tokens_alike():
    groups = compare(
        make_trace('d/test/0/0/a', 'xx7', '^  '), make_trace('d/test/1/0/a', 'x', ' ', stop='length'), TWO[0]
    )
    row = view.summarise(groups)[0]
    assert (row.traces, row.right, row.graded, row.finished, row.mean_tokens) == (2, 1, 2, 1, 2.0)
    assert (row.mean_kl, row.share) == (pytest.approx(0.5), pytest.approx(0.25))  # 2 nats, 1 mark on 4 tokens
    assert row.high_kl == 2.0  # the fourth of four


def test_a_defence_is_described_with_everything_nested_in_it():
    join = {'beta': 1.0, 'how': 'mean'}
    chain = {'type': 'chain', 'rules': [{'type': 'a', 'x': 0.25}, {'type': 'b', 'join': join}]}
    assert view.describe(chain) == 'chain(rules=[a(x=0.25), b(join=(beta=1, how=mean))])'
    assert view.describe({'type': 'undefended'}) == 'undefended'


def test_terminal_brackets_exactly_the_intervened_tokens():
    shown = view.terminal(compare(*TWO), width=80, colour=False)
    assert 'it ⟦i⟧s ⟦8⟧' in shown
    assert '\x1b' not in shown
    assert shown.count('⟦') == 2


def test_terminal_reverses_exactly_the_intervened_tokens():
    shown = view.terminal(compare(*TWO), width=80)
    assert re.findall(r'\x1b\[7m(.*?)\x1b\[0m', shown) == ['i', '8']
    assert 'it is 8' in ESCAPE.sub('', shown)


def test_terminal_puts_the_same_prompt_side_by_side():
    shown = view.terminal(compare(*TWO), width=80, colour=False)
    lines = [[cell.strip() for cell in line.split('│')] for line in shown.split('\n') if '│' in line]
    assert lines == [
        ['plain', 'poe'],
        ['undefended', 'product_of_experts(gamma=0.5)'],
        ['7 tokens, stop: eos', '7 tokens, stop: eos'],
        ['answer: 7, right', 'answer: 8, wrong'],
        ['mean KL 0.000 nats, 0.0 % intervened', 'mean KL 0.571 nats, 28.6 % intervened'],
        ['', ''],
        ['it is 7', 'it ⟦i⟧s ⟦8⟧'],
    ]


@pytest.mark.parametrize('width', [20, 33, 67, 80, 121])
@pytest.mark.parametrize('colour', [False, True])
def test_terminal_keeps_to_the_width_and_loses_no_text(width, colour):
    text = 'word ' * 30 + '日本語' * 30 + 'e\u0301' * 50 + 'x' * 300 + '\n\n  indented 7'
    marks = ''.join('^' if i % 5 < 2 else ' ' for i in range(len(text)))
    names = ['one', 'two', 'three', 'four']
    traces = [make_trace(f'd/test/0/0/{name}', text, marks) for name in names]
    shown = view.terminal(compare(*traces), width, colour)
    assert max(map(width_of, shown.split('\n'))) <= width
    letters = re.sub(r'[^x語]', '', shown)
    assert (letters.count('x'), letters.count('語')) == (300 * 4, 30 * 4)


def test_summary_has_a_line_a_setting_and_says_what_a_mark_is():
    groups = compare(*TWO, make_trace('d/test/1/0/plain', 'x', gold=None, stop='length'))
    shown = view.summary(groups, 140, colour=False).split('\n')
    assert shown[1:3] == [
        'plain: 2 traces, 1 right, 1 finished, 4 tokens a trace, mean KL 0.000 nats, 95 % below 0.000 nats, '
        '0.0 % intervened',
        'poe: 1 trace, 0 right, 1 finished, 7 tokens a trace, mean KL 0.571 nats, 95 % below 2.000 nats, '
        '28.6 % intervened',
    ]
    assert shown[3].startswith('⟦Brackets⟧: not the token')
    assert max(map(width_of, view.summary(groups, 20).split('\n'))) <= 20


def test_terminal_shows_a_gap_where_a_setting_is_missing():
    shown = view.terminal(compare(*TWO, make_trace('d/test/1/0/poe', 'x')), width=80, colour=False)
    assert re.search(r'no trace +│ undefended', shown)


def test_terminal_passes_no_escape_of_the_text_on():
    trace = make_trace('d/test/0/0/\x1b[5m', HOSTILE, '^' * len(HOSTILE), stop='\x1b[1m', gold='\x1b[2m')
    messages = ({'role': 'user', 'content': HOSTILE},)
    groups = view.compare([dataclasses.replace(trace, messages=messages)], pieces)
    assert '\x1b' not in view.terminal(groups, colour=False)
    coloured = view.terminal(groups)
    assert '\x1b' not in ESCAPE.sub('', coloured)
    assert set(re.findall(r'\x1b\[(\d+)m', coloured)) <= {'0', '1', '2', '7'}
    assert not re.search('[\x07\u202e]', coloured)


def test_html_marks_exactly_the_intervened_tokens_and_says_that_it_is_private():
    page = Page(view.html(compare(*TWO), 'Title'))
    assert page.marked == ['i', '8']
    assert 'PRIVATE' in page.text
    assert 'product_of_experts(gamma=0.5)' in page.text
    assert page.tags.count('article') == 2
    assert '95 % below' in page.text
    assert 'fell back' not in page.text
    recorded = {'kl': [0.0, 0.0, 0.0, 1.5], 'fallback': [1, 0, 0, 1]}
    fallen = make_trace('d/test/0/0/a', 'so 7', '   ^', statistics=recorded)
    shown = view.html(compare(fallen), 'Title')
    assert '<td>1.500 nats</td>' in shown
    assert '2 tokens fell back to the teacher' in Page(shown).text
    assert '2 tokens fell back to the teacher' in view.summary(compare(fallen), 200, colour=False)


def test_html_escapes_everything():
    messages = tuple({'role': HOSTILE, 'content': HOSTILE} for _ in range(2))
    trace = make_trace(
        f'd/test/0/0/{HOSTILE.replace("/", "")}', HOSTILE, '^' * len(HOSTILE), stop=HOSTILE, gold=HOSTILE,
        messages=messages, defence={'type': HOSTILE, HOSTILE: HOSTILE},
    )  # fmt: skip
    source = view.html(view.compare([trace], pieces), HOSTILE)
    page = Page(source)
    assert not {'script', 'img', 'iframe', 'link', 'object', 'base', 'a'} & set(page.tags)
    assert {name for name, _ in page.attributes} <= {
        'lang', 'charset', 'name', 'content', 'http-equiv', 'class', 'role', 'scope', 'dir', 'data-note',
    }  # fmt: skip
    assert '{{ 7*7 }}' in page.text
    assert not re.search('[\x07\x1b\u202e]', source)


def test_html_loads_nothing():
    source = view.html(compare(*TWO), 'Title')
    assert '://' not in source
    assert not re.search(r'url\(|@import|src=|href=', source)
    assert "default-src 'none'" in source


def test_html_for_the_public_carries_no_trace_of_the_marks():
    texts = [('it  is\n7', '  ^   ^ '), ('it  is\n7', '^ ^ ^   ')]
    public = []
    for (text, marks), gamma in zip(texts, (0.1, 0.9), strict=True):
        trace = make_trace('d/test/0/0/a', text, marks, defence={'type': 'x', 'gamma': gamma})
        public.append(view.html(compare(trace), 't', private=False))
    assert public[0] == public[1]
    assert 'it  is\n7' in Page(public[0]).text
    assert 'PRIVATE' not in public[0]


def test_a_notebook_gets_a_fragment_and_a_shell_gets_text():
    comparison = view.Comparison(compare(*TWO), 'Title')
    fragment = comparison._repr_html_()
    assert fragment.lstrip().startswith('<div class="adx">')
    assert not {'html', 'body', 'head'} & set(Page(fragment).tags)
    assert 'PRIVATE' in fragment
    rules = re.search(r'<style>(.*?)</style>', fragment, re.DOTALL)[1]
    selectors = re.findall(r'^\s*([^@\s{}/][^{}]*)\{', re.sub(r'/\*.*?\*/', '', rules), re.MULTILINE)
    assert selectors
    assert all(part.strip().startswith('.adx') for selector in selectors for part in selector.split(','))
    assert '⟦8⟧' in str(comparison)
