from __future__ import annotations

import dataclasses
import html.parser
import json
import pathlib
import re

from frontier_test import PLAN, VERDICTS, outcomes, rows

from adx.reporting.page import Facts, Sample, number, report, sentence
from adx.reporting.page import html as page

ROOT = pathlib.Path(__file__).parents[2]
FACTS = Facts(
    'the testbed', 3, {'adx': '1'}, ('run --stages=report',), 'licence', 'disclosure', proxies={'ads': ['narrow']}
)


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != 'meta':
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_sentence_names_testbed_defence_and_price_or_none():
    text = sentence(rows(), 'the testbed')
    low = next(row.low for row in rows() if row.figure == 'damage_adaptive' and row.arm == 'ads')
    assert text.startswith(f'On the testbed, ads takes at least {100 * low:.0f} % of what even the worst attack')
    assert '0.5 points of accuracy and 2.00 times the cost a token' in text
    none = sentence(rows(verdicts={}), 'the testbed')
    assert none.startswith('On the testbed, use none: none of 1 measured defences')


def test_the_sentence_claims_what_the_least_harmed_family_loses():
    found = rows(plan=dataclasses.replace(PLAN, family=('damage',)))
    row = next(one for one in found if (one.figure, one.arm) == ('damage', 'ads'))
    assert row.headline
    others = [
        dataclasses.replace(row, student='a', low=0.1), dataclasses.replace(row, student='b', low=0.6),
        dataclasses.replace(row, arm='poe', low=0.2),
    ]  # fmt: skip
    assert sentence(others, 'it').startswith('On it, poe takes at least 20 %')
    assert sentence(others[:2], 'it').startswith('On it, ads takes at least 10 % of what a passive thief would gain (s')


def test_the_sentence_claims_no_more_than_what_holds_at_equal_steps():
    row = next(one for one in rows() if (one.figure, one.arm) == ('damage', 'ads'))
    head = dataclasses.replace(row, headline=True)
    equal = dataclasses.replace(row, figure='damage_at_steps', low=0.03)
    assert sentence([head, equal], 'it').startswith('On it, ads takes at least 3 % of what a passive thief')
    unknown = dataclasses.replace(equal, value=None, low=None)
    assert sentence([head, unknown], 'it').startswith(f'On it, ads takes at least {100 * row.low:.0f} %')


def test_damage_at_equal_steps_stands_beside_the_damage_where_it_was_measured():
    head = '<th>damage</th><th>damage_at_steps</th><th>damage_adaptive</th>'
    assert head not in page(rows(), outcomes(), VERDICTS, FACTS)
    point = {'step': 100, 'tokens': 1000}
    given = [dataclasses.replace(o, budgets=(point | {'accuracy': o.accuracy},)) for o in outcomes()]
    found = rows(given)
    text, row = page(found, given, VERDICTS, FACTS), next(r for r in found if r.figure == 'damage_at_steps' and r.value)
    assert head in text
    assert text.count(f'<td>{number(row)}</td>') >= 2  # as large as the damage, of which it is


def test_the_page_parses_loads_nothing_and_escapes():
    evil = '<script>alert(1)</script>'
    given = [dataclasses.replace(o, arm=evil) if o.arm == 'hot' else o for o in outcomes()]
    found = rows(given)
    samples = [Sample(evil, '4', {evil: (evil, True), 'plain': ('4', False)})]
    text = page(found, given, VERDICTS, dataclasses.replace(FACTS, testbed=evil, samples=samples, environments=[evil]))
    reader = Reader()
    reader.feed(text.replace('<!doctype html>', ''))
    assert not reader.open
    assert not {'script', 'link', 'img'} & {tag for tag, _ in reader.tags}
    assert not {'src', 'href'} & {name for _, attrs in reader.tags for name in attrs}
    assert evil not in text
    assert 'Decoded in another environment' in text
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in text
    assert '&lt;script&gt;' in text
    assert text.count('<th scope="row">' + 'damage_attacked') == sum(r.figure == 'damage_attacked' for r in found)
    assert len([t for t in reader.tags if t[0] == 'svg']) == 2


def test_a_report_of_nothing_yet_has_its_page():
    text = page([], [], {}, FACTS)
    assert 'use none: no defence was measured' in text
    assert 'Threat models' in text
    assert re.search(r'disclosure</p>\n.* owes to others: RESPONSIBLE_USE\.md', text)
    assert (ROOT / 'RESPONSIBLE_USE.md').exists()


def test_json_is_strict_and_holds_every_row():
    found = rows(outcomes(1))
    content = json.loads(json.dumps(report(found, outcomes(1), VERDICTS, FACTS), allow_nan=False))
    assert len(content['rows']) == len(found)
    assert content['readings'] == 3
    assert content['threat_models'][0]['queries'] == 100
    assert {one['arm'] for one in content['threat_models']} == {'', 'ads', 'hot'}


def test_what_became_of_lessons_and_why_an_arm_is_not_judged_is_shown():
    given = [dataclasses.replace(o, lessons={'destroyed': 2, 'too <long>': 1}) for o in outcomes()]
    facts = dataclasses.replace(FACTS, unjudged={'ads': 'other <prompts>'})
    text = page(rows(given, verdicts={'ads': []}), given, {'ads': []}, facts)
    assert '<td>destroyed: 16; too &lt;long&gt;: 8</td>' in text
    assert 'not judged: other &lt;prompts&gt;' in text


def test_rows_without_a_value_are_not_counted_as_measured():
    given = [o for o in outcomes() if o.source != 'clean']
    assert sentence(rows(given), 'the testbed') == 'On the testbed, use none: no defence was measured for a headline.'


def test_the_matrix_has_a_line_a_proxy_family_and_a_column_a_student():
    facts = dataclasses.replace(FACTS, proxies={'ads': ['narrow', 'deep'], 'hot': []})
    seen = [dataclasses.replace(o, student='first', seen=True) for o in outcomes()]
    given = [*outcomes(), *seen]
    text = page(rows(given), given, VERDICTS, facts)
    matrix = text.split('Proxy family by student family')[1].split('</table>')[0]
    assert [matrix.count(f'<th scope="row">{name}') for name in ('narrow', 'deep')] == [1, 1]
    student = outcomes()[0].student
    assert f'<th>{student}</th>' in matrix
    assert matrix.count('(seen)') == 2


def test_the_sentence_does_not_forget_a_family_that_a_defence_fails_on():
    found = rows(plan=dataclasses.replace(PLAN, family=('damage',)))
    row = next(one for one in found if (one.figure, one.arm) == ('damage', 'ads'))
    failed = dataclasses.replace(row, student='other', low=-0.1, headline=False)
    assert sentence([row], 'it').startswith('On it, ads takes')
    assert sentence([row, failed], 'it') == (
        'On it, use none: none of 1 measured defences passes every rule on every family for a headline.'
    )
    assert sentence([row, failed], 'it', searched=('other',)).startswith('On it, ads takes')
    assert sentence([row, dataclasses.replace(failed, seen=True)], 'it').startswith('On it, ads takes')
