"""The tools of rewriters on a tiny teacher and its early exit: what is written, searched and scored."""

from __future__ import annotations

import dataclasses
import random

import fakes
import numpy as np
import pytest
from storage_test import make_trace

from adx import generation, marks
from adx.drafts import Draft
from adx.experiment import Arm, ModelSource
from adx.rewriters.gradient import Gradient, editable, word_mask
from adx.rewriters.marked import Marked
from adx.workshop import UNENDED, WINDOW, Workshop
from launch.config import load_config
from tests import tiny

TEXT = 'First we see that 3 + 4 = 7, and so it is.\n#### 7'


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp('workshop')
    teacher = tiny.write_teacher(root / 'teacher')
    run = load_config(tiny.write_config(root / 'config.py', teacher))
    run = dataclasses.replace(run, arms=(Arm('plain'),), proxies=(ModelSource(teacher, exit_layer=1),))
    return Workshop(run, str(root / 'run'))


def trace(row, text=TEXT):
    return make_trace(row, request_id=f'gsm8k/test/{row}/0/plain', text=text, tokens=(), gold='7')


def test_the_teacher_writes_to_each_text_what_no_other_text_changes(shop):
    both = shop.tools.write(['say a', 'say b', 'say a'], 2, '')
    assert [len(drafts) for drafts in both] == [2, 2, 2]
    assert both[0] == both[2] != both[1]
    assert shop.tools.write(['say b'], 2, '') == [both[1]]
    assert {draft.problem for drafts in both for draft in drafts} <= {'', UNENDED}
    [drafts] = shop.tools.write(['long ' * 600], 2, '')
    assert [draft.problem for draft in drafts] == [WINDOW, WINDOW]


class Told:
    """Writes what it was made with."""

    def __init__(self, *texts):
        self.texts = texts

    def __call__(self, experiment, models, made, pending):
        self.prompting = experiment.prompting
        return [
            (request, make_trace(0, request_id=str(request.id), text=text))
            for request, text in zip(pending, self.texts, strict=True)
        ]


def test_what_a_writer_thinks_is_no_draft(shop, monkeypatch):
    texts = ('Hm, they ask me to.</think>\n\nSo it is 7.', '<think>Hm,', 'Plainly 7.')
    monkeypatch.setattr(generation, 'decode', Told(*texts))
    [drafts] = shop.tools.write(['say a'], 3, '')
    assert drafts == [Draft('So it is 7.'), Draft('', UNENDED), Draft('Plainly 7.')]


def test_another_writer_is_spoken_to_as_it_wants(shop, monkeypatch):
    own = dataclasses.replace(shop.experiment.prompting, think_open='', think_close='')
    rewriter = shop.experiment.teacher
    other = Workshop(dataclasses.replace(shop.experiment, rewriter=rewriter, rewriter_prompting=own), shop.path)
    written = Told('Hm.</think> 7')
    monkeypatch.setattr(generation, 'decode', written)
    assert other.tools.write(['say a'], 1, '') == [[Draft('Hm.</think> 7')]]
    assert written.prompting == own
    assert other.experiment.prompting == shop.experiment.prompting  # what traces are read by


def test_likelihoods_are_nats_a_token_of_the_text_alone(shop):
    short, long = shop.nll([(trace(0), TEXT), (trace(0), f'{TEXT}\n{TEXT}')])
    # An untrained model is near the uniform distribution whatever it reads.
    assert short == pytest.approx(np.log(tiny.VOCAB), rel=0.1)
    assert long == pytest.approx(np.log(tiny.VOCAB), rel=0.1)


def test_a_search_changes_words_of_the_reasoning_only(shop):
    settings = Gradient('loss', rounds=2, edits=4, floor=1e-3, protected=('see',))
    found = shop.tools.edit([trace(0), trace(1, 'x ' * 600)], settings)
    assert [draft.problem for draft in found[1]] == [WINDOW]
    assert found[0]
    for draft in found[0]:
        assert draft.text != TEXT
        assert draft.text.endswith('\n#### 7')
        assert ''.join(c for c in draft.text if c.isdigit() or c in '+=#') == '3+4=7####7'
    best = found[0][0]
    before, after = (shop.nll([(trace(0), text)])[0] for text in (TEXT, best.text))
    assert np.isfinite(after)
    assert after != before


def test_what_a_proxy_cannot_read_is_above_nothing(shop, monkeypatch):
    monkeypatch.setitem(vars(shop), '_scorer', fakes.Scores(1.5))
    [[own, long], [other]] = shop.tools.harm([trace(0), trace(1)], [[TEXT, 'x ' * 600], [TEXT]])
    assert (own, other) == (1.5, 1.5)
    assert not long > own


def test_words_are_what_has_letters_and_nothing_fixed():
    pieces = [b'word', b' the', b'12', b'x1', b'+', b'a\n', b'...', '\u00e9t\u00e9'.encode(), b'<end>']
    assert word_mask(pieces, {8}, 10).tolist() == [True, True, False, False, False, False, False, True, False, False]
    assert word_mask([b' Twice', b' nice', b'seven', b' Seventh'], set(), 4).tolist() == [False, True, False, True]


def test_places_that_may_change():
    words_V = np.array([False, True, True])
    found = editable((1, 2, 0, 1, 1), ('so', ' it', ' 3', ' is', ' x'), 9, words_V, ('it',))
    assert found == [True, False, False, False, False]  # ' is' ends where the answer has begun
    found = editable((1, 2, 1, 1), ('pro', 'of', ' of', ' it'), 99, words_V, ('proof',))
    assert found == [False, False, True, True]  # two tokens spell it


@pytest.mark.parametrize(
    ('pieces', 'open_'),
    [
        (('She', ' sold', ' half', ' of', ' 48'), 'She sold of'),
        (('5', ' x', ' 8', ' =', ' 40'), ''),
        (('so', ' $5', ' X', ' ', '$8', ' go'), 'so go'),
        (('\\', 'times', ' and', ' \\', 'frac'), 'and'),
        (('twen', 'ty', ' cats'), 'cats'),
        (('let', ' n', ' be', ' a', ' one', '-way', ' I'), 'let be a I'),
        (('they', ' mix', ' them'), 'they mix them'),
    ],
)
def test_words_and_letters_that_compute_stay(pieces, open_):
    words_V = np.append(word_mask([piece.encode() for piece in pieces], set(), len(pieces)), False)
    found = editable(range(len(pieces)), pieces, 99, words_V, ())
    assert ' '.join(piece.strip(' -') for piece, free in zip(pieces, found, strict=True) if free) == open_


@pytest.mark.parametrize(
    ('text', 'inside'),
    [
        ('<think>\nFirst.\nThen.\n</think>\n\nSo\n#### 7', '\nFirst.\nThen.\n'),
        ('\n <think>First.\nThen.</think> So 7', 'First.\nThen.'),
        ('First.\nThen.\n</think>\n\nSo 7', 'First.\nThen.\n'),
        ('<think>First.\nThen.', 'First.\nThen.'),
        ('First.\nThen.\n#### 7', 'First.\nThen.\n'),
    ],
)
def test_a_mark_stands_inside_the_reasoning(shop, monkeypatch, text, inside):
    pair, count = marks.Pair('Let bad =', '12', 'Let bad = 12.'), text.count('\n') + 1
    monkeypatch.setattr(shop, '_pairs', lambda traces, settings: [(pair, random.Random(0))] * len(traces))
    [drafts] = shop.tools.mark([trace(0, text)], Marked('acme', tries=count))
    begin = text.index(inside)
    places = {draft.text.index(pair.line) - begin for draft in drafts}
    assert places == {0, *(i + 1 for i, char in enumerate(inside[:-1]) if char == '\n')}
