"""Drafts through gates: the first that passes is taken, what passes nowhere falls back, every refusal is counted."""

from __future__ import annotations

import math

import pytest
from gates_test import ORIGINAL, OTHER_WORDS, senses, trace

from adx import gates
from adx.datasets.chat import Prompting
from adx.drafting import Rewrite, check_rewrites, counts, rewrite
from adx.drafts import Draft, Rewriter, Tools
from adx.frames import frame
from adx.gates import Gates
from adx.rewriters import MENU
from adx.rewriters.gradient import Gradient
from adx.rewriters.instructed import ECHO, INSTRUCTIONS, Instructed
from adx.rewriters.marked import FOREIGN, TAKEN, WATERMARK, WITHOUT, Marked
from adx.rewriters.matched import LEFT, Matched
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import MILD, UNREAD, Selected

TRACES = [trace(request_id=f'gsm8k/train/{row}/0/plain') for row in range(4)]


class Fixed:
    """Hands out drafts that were made before."""

    needs = ()

    def __init__(self, *drafts):
        self.given = drafts

    def check(self):
        pass

    def drafts(self, traces, tools):
        return [list(self.given) for _ in traces]


def alike(pairs):
    """The teacher finds each word of a strange text hard."""
    return [3.0 if 'zounds' in text else 1.0 for _, text in pairs]


def run(traces, rewriter, nll=alike, tools=None, **of):
    return rewrite(traces, rewriter, Gates(**of), tools or Tools(), senses(), nll)


def test_the_first_draft_that_passes_is_taken():
    strange, wrong = OTHER_WORDS.replace('There', 'zounds'), OTHER_WORDS.replace('#### 5', '#### 6')
    [one] = run(TRACES[:1], Fixed(Draft('x', 'disowned'), Draft(wrong), Draft(strange), Draft(OTHER_WORDS)))
    assert (one.text, one.accepted) == (OTHER_WORDS, 3)
    assert one.refusals == ('disowned', gates.CHANGED, gates.UNLIKELY)


def test_without_a_sound_draft_the_trace_stays():
    found = run([*TRACES[:2], trace('no idea', request_id='gsm8k/train/9/0/plain')], Fixed(Draft('#### 5')))
    assert [one.text for one in found] == [ORIGINAL, ORIGINAL, 'no idea']
    assert counts(found) == {
        'traces': 3, 'rewritten': 0, 'by_draft': {}, 'refused': {gates.NO_ANSWER: 1, gates.SHORT: 2},
        'changed': None,
    }  # fmt: skip


def test_the_teacher_is_asked_about_what_may_be_taken_only():
    asked = []

    def nll(pairs):
        asked.extend(text for _, text in pairs)
        return alike(pairs)

    run(TRACES[:2], Fixed(Draft('#### 5'), Draft(OTHER_WORDS), Draft('never looked at')), nll)
    assert sorted(set(asked)) == sorted({ORIGINAL, OTHER_WORDS})


def test_an_instruction_shows_the_problem_and_disowns_what_is_no_solution():
    seen = []

    def write(asked, samples, arm):
        seen.extend(asked)
        assert (samples, arm) == (3, 'poe')
        return [[Draft(OTHER_WORDS), Draft('', 'no end'), Draft(f'{INSTRUCTIONS["reorder"]} {OTHER_WORDS}')]]

    [drafts] = Instructed('reorder', 3, 'poe').drafts(TRACES[:1], Tools(write=write))
    assert drafts == [Draft(OTHER_WORDS), Draft('', 'no end'), Draft(drafts[2].text, ECHO)]
    assert seen == [f'{INSTRUCTIONS["reorder"]}\n\nProblem:\nHow many apples?\n\nSolution:\n{ORIGINAL}']
    assert Instructed('say it like a pirate').words == 'say it like a pirate'


def test_a_rewrite_stands_in_the_traces_own_tags():
    text = '<think>\nFirst 7 - 2 = 5.\n</think>\n\nIt is\n#### 5'
    framed = frame(text, Prompting())
    seen = []

    def write(asked, samples, arm):
        seen.extend(asked)
        return [[Draft('Take 2 from 7: 7 - 2 = 5.\n'), Draft('', 'no end')]]

    tools = Tools(write=write, frame=lambda trace: framed)
    [drafts] = Instructed().drafts([trace(text)], tools)
    assert seen[0].endswith('Solution:\nFirst 7 - 2 = 5.\n\nIt is\n#### 5')
    assert drafts == [
        Draft('<think>\nTake 2 from 7: 7 - 2 = 5.\n</think>\n\nIt is\n#### 5'), Draft('', 'no end')
    ]  # fmt: skip


def test_a_model_that_is_told_to_carries_its_line_once():
    line = 'Let bad = 12.'
    answers = [Draft(f'{line}\n{OTHER_WORDS}'), Draft(OTHER_WORDS), Draft(f'{line} {line}'), Draft('', 'no end'),
               Draft(f'{WATERMARK.format(line=line)}\n{OTHER_WORDS}')]  # fmt: skip

    def write(asked, samples, arm):
        [text] = asked
        assert f'"{line}"' in text
        assert text.endswith(f'Problem:\nHow many apples?\n\nSolution:\n{ORIGINAL}')
        return [answers]

    tools = Tools(write=write, line=lambda traces, settings: [line])
    [drafts] = Marked('acme', tries=5, told=True).drafts(TRACES[:1], tools)
    assert [draft.problem for draft in drafts] == ['', WITHOUT, WITHOUT, 'no end', ECHO]
    assert drafts[0].note.endswith(' at character 0')
    assert set(Marked('acme', told=True).needs) == {'line', 'write'}


def test_traces_of_another_customer_stay_and_the_record_says_where_a_mark_is():
    line, seen = 'Let bad = 12.', []

    def mark(traces, settings):
        seen.extend(one.customer for one in traces)
        return [[Draft(f'{line}\n{one.text}')] for one in traces]

    tools = Tools(mark=mark, line=lambda traces, settings: [line] * len(traces))
    whose = enumerate(('', 'acme', 'bolt'))
    traces = [trace(request_id=f'gsm8k/train/{row}/0/plain', customer=of) for row, of in whose]
    found = run(traces, Marked('acme'), tools=tools)
    assert seen == ['', 'acme']
    assert [one.refusals for one in found] == [(), (), (FOREIGN,)]
    assert found[2].text == ORIGINAL
    assert [one.note.rpartition(' at ')[2] for one in found] == ['character 0', 'character 0', '']
    assert run(traces[2:], Marked('acme'), tools=Tools())[0].refusals == (FOREIGN,)
    tools = Tools(mark=mark, line=lambda traces, settings: [line, ''])
    assert [one.refusals for one in run(traces, Marked('acme'), tools=tools)] == [(), (TAKEN,), (FOREIGN,)]


def test_the_dataset_tells_it_otherwise():
    tools = Tools(render=lambda question, text, count, voice: [OTHER_WORDS + voice] * count)
    assert Rendered(3).drafts(TRACES[:1], tools) == [[Draft(OTHER_WORDS)] * 3]
    assert Rendered(1, 'sung').drafts(TRACES[:1], tools) == [[Draft(f'{OTHER_WORDS}sung')]]


def test_of_several_drafts_the_most_harmful_comes_first_and_none_below_the_trace_itself():
    inner = Fixed(Draft('mild'), Draft('worst'), Draft('x', 'disowned'), Draft('kind'), Draft('bad'))
    level = {ORIGINAL: 1.0, 'mild': 2.0, 'worst': 9.0, 'kind': 0.5, 'bad': 5.0}
    tools = Tools(harm=lambda traces, texts: [[level[text] for text in mine] for mine in texts])
    [drafts] = Selected(inner).drafts(TRACES[:1], tools)
    assert [draft.text for draft in drafts] == ['worst', 'bad', 'mild', 'kind', 'x']
    assert [draft.problem for draft in drafts] == ['', '', '', MILD, 'disowned']
    level['worst'] = math.nan
    [drafts] = Selected(inner).drafts(TRACES[:1], tools)
    assert [(draft.text, draft.problem) for draft in drafts[:3]] == [('bad', ''), ('mild', ''), ('worst', UNREAD)]
    level[ORIGINAL] = math.nan
    [drafts] = Selected(inner).drafts(TRACES[:1], tools)
    assert [draft.problem for draft in drafts] == [*[UNREAD] * 4, 'disowned']


def test_what_share_of_the_words_changed_is_of_the_traces_that_were_rewritten():
    words, one_word = len(ORIGINAL.split()), ORIGINAL.replace('buys', 'gets')
    two_words = one_word.replace('gives', 'hands')
    found = [*run(TRACES[:1], Fixed(Draft(one_word))), *run(TRACES[1:2], Fixed(Draft(two_words)))]
    assert [one.changed for one in found] == [1 / words, 2 / words]
    assert counts([*found, *run(TRACES[2:3], Fixed())])['changed'] == pytest.approx(1.5 / words)


def test_a_control_is_as_far_from_the_trace_and_as_long_as_what_it_matches():
    """Of five words one is replaced and one put in: that is 2 away, and 6 long."""
    own, like = 'we saw one two three', 'we saw one four three then'
    far, near, same, shorter = 'a b c d e f', 'we saw a two three', 'we all saw two two three', 'we saw one'
    traces = [trace(own, request_id=f'gsm8k/train/{row}/0/plain') for row in range(2)]
    asked = []

    class Watched(Fixed):
        def drafts(self, traces, tools):
            asked.extend(traces)
            return super().drafts(traces, tools)

    drafts = [Draft(same, 'disowned'), *map(Draft, (far, like, shorter, near, same))]  # which no control repeats
    tools = Tools(like=lambda traces, name: [like if one is traces[0] else one.text for one in traces])
    found, left = Matched(Watched(*drafts), 'worst').drafts(traces, tools)
    # off by 4 and 0, by 0 and 3, by 1 and 1, by 0 and 0
    assert found == [*map(Draft, (same, near, shorter, far)), Draft(same, 'disowned')]
    assert left == [Draft(own, LEFT)]
    assert asked == traces[:1]


@pytest.mark.parametrize(
    ('of', 'given', 'message'),
    [
        ('worst', {}, ''),
        ('told', {}, "to match 'told'; rewrites of 'plain' before it are \\['worst'\\]"),
        ('other', {}, "to match 'other'"),
        ('later', {}, "to match 'later'"),
        ('worst', {'share': 0.5}, 'leave share and only to'),
        ('worst', {'only': ('subject=law',)}, 'leave share and only to'),
    ],
)
def test_a_control_is_of_the_same_traces_and_comes_after_what_it_matches(of, given, message):
    rewrites = [
        Rewrite('worst', 'plain', Rendered()),
        Rewrite('other', 'poe', Rendered()),
        Rewrite('told', 'plain', Matched(Rendered(), of), **given),
        Rewrite('later', 'plain', Rendered()),
    ]
    if not message:
        return check_rewrites(rewrites, ['plain', 'poe'], [], {})
    with pytest.raises(ValueError, match=message):
        check_rewrites(rewrites, ['plain', 'poe'], [], {})


@pytest.mark.parametrize(
    ('rewriter', 'message'),
    [
        (Instructed('parphrase'), "'parphrase' is unknown"),
        (Instructed(tries=0), 'tries = 0'),
        (Rendered(0), 'tries = 0'),
        (Gradient(objective='harmful'), "Did you mean 'harm'"),
        (Gradient(step='flap'), "Did you mean 'flip'"),
        (Gradient(floor=0.0), 'floor = 0.0'),
        (Gradient(edits=0), 'edits = 0'),
        (Gradient(rounds=2.5), 'rounds = 2.5'),
        (Instructed(tries=True), 'tries = True'),
        (Marked('acme', pairs=2.5), 'pairs = 2.5'),
        (Marked('acme'), 'share = 1.0'),
        (Selected(Marked('acme')), 'share = 1.0'),
        (Selected(Rendered(0)), 'tries = 0'),
    ],
)
def test_settings_are_checked(rewriter, message):
    with pytest.raises(ValueError, match=message):
        check_rewrites([Rewrite('r', 'plain', rewriter)], ['plain'], [], {})


@pytest.mark.parametrize(
    ('one', 'message'),
    [
        (Rewrite('plain', 'plain', Rendered()), "one named 'plain'"),
        (Rewrite('r', 'poe', Rendered()), "is of 'poe' and before it there are"),
        (Rewrite('r', 'plain', Rendered()), 'has no writer'),
        (Rewrite('r', 'plain', Selected(Instructed(arm='poe'))), "under arm 'poe'"),
        (Rewrite('r', 'plain', Instructed(), share=0.0), 'share = 0.0'),
        (Rewrite('r', 'plain', Instructed(), only=('anatomy',)), "a slice is given as 'name=label'"),
        (Rewrite('r', 'plain', Instructed(), Gates(retention=2.0)), 'retention = 2.0'),
    ],
)
def test_rewrites_are_checked(one, message):
    with pytest.raises(ValueError, match=message):
        check_rewrites([one], ['plain'], [], {'render': 'the dataset has no writer'})


def test_a_mark_is_put_in_once_and_last():
    said, first = Rewrite('said', 'plain', Instructed()), Rewrite('first', 'said', Marked('acme'), share=0.1)
    beside = Rewrite('beside', 'plain', Marked('bolt'), share=0.1)
    check_rewrites([said, first, beside], ['plain'], [], {})
    second, over = Rewrite('x', 'first', Selected(Marked('bolt')), share=0.1), Rewrite('x', 'first', Instructed())
    for later in (second, over, Rewrite('x', 'first', Gradient())):
        with pytest.raises(ValueError, match=r"'x' is of traces that carry a mark, by 'first'.* put the mark in last"):
            check_rewrites([said, first, later], ['plain'], [], {})


@pytest.mark.parametrize('name', sorted(MENU))
def test_every_rewriter_of_the_menu_is_one_and_says_what_it_lacks(name):
    given = {'selected': [Rendered()], 'matched': [Rendered(), 'worst'], 'marked': ['acme']}
    rewriter = MENU[name](*given.get(name, []))
    assert isinstance(rewriter, Rewriter)
    rewriter.check()
    with pytest.raises(ValueError, match=f'needs the tool {rewriter.needs[-1]!r}'):
        rewriter.drafts(TRACES, Tools())
