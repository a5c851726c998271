"""The search for instructions: proposals, scores, an end, and a kill in the middle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from rewriting_test import OTHER, ROWS, Shop, base, workdir  # noqa: F401

from adx import evolving, instructions, rewriting, storage
from adx.drafting import Rewrite
from adx.drafts import Draft, Tools
from adx.errors import ConfigError, InputError, WorkdirError
from adx.evolving import Evolution, evolve, mutate
from adx.experiment import ModelSource
from adx.optimising import Recipe
from adx.rewriters.evolved import Evolved
from adx.rewriters.instructed import INSTRUCTIONS
from adx.training import Trainer

START = [INSTRUCTIONS[name] for name in ('paraphrase', 'formalise', 'reorder')]


@pytest.fixture
def experiment(base):  # noqa: F811
    return dataclasses.replace(base, proxies=(ModelSource(base.teacher.source, exit_layer=1),))


class Counter:
    """A judge who likes clauses; it takes note of what it was asked."""

    asked: list[str] = []  # noqa: RUF012

    def __init__(self, shop, plan, state):
        pass

    def __call__(self, instruction):
        self.asked.append(instruction)
        return sum(instruction.count(clause) for clause in evolving.CLAUSES) - 0.5, {'rewritten': 3}


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(evolving, '_Judge', Counter)
    monkeypatch.setattr(Counter, 'asked', [])
    return Counter


def test_what_beats_doing_nothing_is_kept_the_best_last(experiment, judge, workdir):  # noqa: F811
    found = evolve(experiment, str(workdir.path), Evolution('plain', rounds=4, proposals=3))
    assert [score for _, score in found] == sorted(score for _, score in found)
    assert found[-1][1] >= 1.5
    assert not {instruction for instruction, _ in found} & set(START)  # those have no clause
    assert judge.asked[:3] == START
    assert len(judge.asked) == len(set(judge.asked)) == 3 + 4 * 3


def test_a_rewriter_is_told_the_best_that_was_found(experiment, judge, workdir, monkeypatch):  # noqa: F811
    told = []

    class Asked(Shop):
        @property
        def tools(self):
            def write(texts, samples, arm):
                told.extend(texts)
                state.add('Say it loudly.', 2, 0.75, {})  # by a search that goes on meanwhile
                return [list(self.written)] * len(texts)

            return Tools(write=write, instruction=lambda: instructions.best(workdir))

    monkeypatch.setattr(rewriting, 'Workshop', Asked)
    monkeypatch.setattr(rewriting, 'BATCH', 2)
    run = dataclasses.replace(experiment, rewrites=(Rewrite('found', 'plain', Evolved()),))
    with pytest.raises(InputError, match=r'tools\.evolve'):
        rewriting.rewrite(run, str(workdir.path))
    (workdir.private / 'evolved').mkdir()
    state = instructions.State(workdir, {'a': 1})
    state.add('Say it at once.', 0, -0.5, {})
    with pytest.raises(InputError, match='beats doing nothing'):
        rewriting.rewrite(run, str(workdir.path))
    state.add('Say it slowly.', 1, 0.5, {})
    state.add('Say it twice.', 1, 0.25, {})
    counts = rewriting.rewrite(run, str(workdir.path))
    assert counts['found']['rewritten'] == len(told) == ROWS
    assert all(text.startswith('Say it slowly.\n') for text in told)
    with pytest.raises(InputError, match='another rewrite'):
        rewriting.rewrite(run, str(workdir.path))


def test_a_killed_search_goes_on_where_it_was(experiment, judge, workdir, monkeypatch):  # noqa: F811
    plan, whole, cut = Evolution('plain', rounds=3), f'{workdir.path}.whole', str(workdir.path)
    shutil.copytree(cut, whole)
    expected = evolve(experiment, whole, plan)
    wanted, judge.asked[:] = list(judge.asked), []

    def killed(self, instruction):
        if len(judge.asked) == 7:
            raise KeyboardInterrupt
        return Counter.__call__(self, instruction)

    class Killed(Counter):
        __call__ = killed

    monkeypatch.setattr(evolving, '_Judge', Killed)
    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, cut, plan)
    monkeypatch.setattr(evolving, '_Judge', Counter)
    assert evolve(experiment, cut, plan) == expected
    assert judge.asked == wanted


def test_it_ends_where_nothing_gets_better(experiment, judge, workdir):  # noqa: F811
    stale = lambda best, count, turn: [f'{best[-1][0]} {turn}.{i}' for i in range(count)]  # noqa: E731
    evolve(experiment, str(workdir.path), Evolution('plain', rounds=9, patience=2), stale)
    state = json.loads((workdir.private / 'evolved' / 'state.json').read_text())['search']
    assert sorted(state['proposed']) == ['1', '2']


def test_mutations_add_or_drop_a_clause_and_are_new():
    best = [('Copy it.', 0.1), (f'Copy it. {evolving.CLAUSES[0]}', 0.2)]
    found = mutate(best, 5, 1)
    assert found == mutate(best, 5, 1) != mutate(best, 5, 2)
    assert len(set(found)) == 5
    assert not set(found) & {instruction for instruction, _ in best}


def test_a_model_may_propose():
    seen = []

    def write(asked, samples, arm):
        seen.extend(asked)
        return [[Draft('sure: <i>Say it in verse.</i> and <i> Say it twice. </i><i></i>')]]

    found = evolving.ask(write)([('low', 0.1), ('high', 0.2)], 2, 3)
    assert found == ['Say it in verse.', 'Say it twice.']
    assert seen[0].index('low') < seen[0].index('high')


def test_another_search_is_refused(experiment, judge, workdir):  # noqa: F811
    plan = Evolution('plain', rounds=1)
    evolve(experiment, str(workdir.path), plan)
    other = dataclasses.replace(experiment, rewriter=ModelSource('other'))
    proposer = lambda best, count, turn: []  # noqa: E731
    changed = ((experiment, Evolution('plain', rounds=2), mutate, 'plan.rounds'), (other, plan, mutate, 'rewriter'),
               (experiment, plan, proposer, 'proposer'))  # fmt: skip
    for of, search, propose, what in changed:
        with pytest.raises(InputError, match=f'another search .*{what}'):
            evolve(of, str(workdir.path), search, propose)


def test_it_has_its_workdir_for_itself(experiment, judge, workdir, tmp_path):  # noqa: F811
    with storage.held(workdir, 'evolve', ['evolved']), pytest.raises(WorkdirError, match='is in use'):
        evolve(experiment, str(workdir.path), Evolution('plain'))
    with pytest.raises(WorkdirError, match='is no workdir'):
        evolve(experiment, str(tmp_path / 'mistyped'), Evolution('plain'))
    assert not (tmp_path / 'mistyped').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'sample': 6}, 'has 6 traces and the sample takes 6'), ({'length': 8}, 'at most 8 tokens')],
)
def test_what_cannot_be_scored_is_said(experiment, workdir, changes, message, monkeypatch):  # noqa: F811
    monkeypatch.setattr(evolving, 'Workshop', Shop)
    recipe = Recipe(rows=2, length=changes.get('length', 128))
    plan = Evolution('plain', sample=changes.get('sample', 4), steps=1, start=('say it so',), recipe=recipe)
    with pytest.raises(InputError, match=message):
        evolve(experiment, str(workdir.path), plan)


def test_proxies_are_warmed_up_on_other_traces(experiment, workdir):  # noqa: F811
    judge = evolving._Judge(Shop(experiment, str(workdir.path)), Evolution('plain', sample=4), None)
    taken, others = ({one.request_id for one in traces} for traces in (judge.sample, judge.others))
    assert (len(taken), len(others), taken & others) == (4, 2, set())


@pytest.mark.parametrize(
    ('plan', 'message'),
    [(Evolution('plain', score='harm'), 'score'), (Evolution('plain', sample=0), 'sample = 0'),
     (Evolution('plain', start=()), 'start is empty'), (Evolution('plain', start=('parphrase',)), 'is unknown')],
)  # fmt: skip
def test_plans_are_checked(experiment, plan, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        evolve(experiment, str(tmp_path), plan)
    with pytest.raises(ConfigError, match='proxies is empty'):
        evolve(dataclasses.replace(experiment, proxies=()), str(tmp_path), Evolution('plain'))


@pytest.mark.parametrize('score', evolving.SCORES)
def test_scores_are_of_real_proxies(experiment, workdir, score, monkeypatch):  # noqa: F811
    """The same words score 0, words that no proxy has seen score more."""

    class Two(Shop):
        @property
        def tools(self):
            def write(asked, samples, arm):
                strange = 'zounds' in asked[0]
                return [[Draft(OTHER.replace('at first', 'quizzically') if strange else self.text)] for _ in asked]

            return Tools(write=write)

        text = 'First 3 + 4 = 7, as we saw.\n#### 7'

    def graded(engine, students, exam):
        """Who learned what the first one did has three of four right, others one."""
        [(name, params)] = students.items()
        taught.append({path: np.asarray(x) for path, x in params.items()})
        alike = all((x == taught[0][path]).all() for path, x in taught[-1].items())
        return [(name, types.SimpleNamespace(accuracy=0.75 if alike else 0.25))]

    taught = []
    monkeypatch.setattr(evolving, 'evaluate', graded)
    monkeypatch.setattr(evolving, 'Workshop', Two)
    recipe = Recipe(rows=2, length=128)
    plan = Evolution('plain', sample=4, score=score, steps=3, exam=4, start=('say it so', 'say zounds'), recipe=recipe)
    plan = dataclasses.replace(plan, rounds=1, proposals=1)
    scores = {}
    evolve(experiment, str(workdir.path), plan, lambda best, count, turn: [], scores.__setitem__)
    assert scores['say it so'] == pytest.approx(0, abs=1e-6)
    if score == 'loss':
        assert scores['say zounds'] > 0.01
    else:
        assert scores['say zounds'] == pytest.approx(50)  # points of accuracy that the rewrites take
        assert len(taught) == 3  # one proxy: on the clean sample, and on each instruction's


@pytest.mark.parametrize('score', evolving.SCORES)
def test_what_was_rewritten_and_learned_is_not_done_again(experiment, workdir, score, monkeypatch):  # noqa: F811
    """Every process is killed when it writes or takes a step for the fourth time."""
    events, asked = [], []

    def live(what):
        events.append(what)
        if len(events) == limit:
            raise KeyboardInterrupt

    class Strange(Shop):
        @property
        def tools(self):
            def write(texts, samples, arm):
                live('write')
                asked.extend(texts)
                return [[Draft(OTHER.replace('at first', 'quizzically'))] for _ in texts]

            return Tools(write=write)

    def step(self, *given):
        live('step')
        return whole_step(self, *given)

    whole_step = Trainer.step
    monkeypatch.setattr(Trainer, 'step', step)
    monkeypatch.setattr(evolving, 'Workshop', Strange)
    monkeypatch.setattr(rewriting, 'BATCH', 1)
    monkeypatch.setattr(rewriting, 'next_batch', lambda count, seconds: 1)
    graded = [('proxy', types.SimpleNamespace(accuracy=0.5))]
    monkeypatch.setattr(evolving, 'evaluate', lambda engine, students, exam: graded)
    plan = Evolution('plain', sample=3, score=score, steps=6, exam=4, start=('say it so', 'say it not'), rounds=1)
    plan = dataclasses.replace(plan, recipe=Recipe(rows=2, length=128))
    search = lambda path: evolve(experiment, path, plan, lambda best, count, turn: [])  # noqa: E731

    def known(path):
        return json.loads((Path(path) / 'private' / 'evolved' / 'state.json').read_text())['search']

    limit, whole, cut, processes = 0, f'{workdir.path}.whole', str(workdir.path), 0
    shutil.copytree(cut, whole)
    search(whole)
    least, limit = len(events), 4
    asked.clear()
    while processes == 0 or len(events) == limit:
        assert processes < least, 'a process that is killed gets nowhere'
        events.clear()
        processes += 1
        with contextlib.suppress(KeyboardInterrupt):
            search(cut)
    assert known(cut) == known(whole)
    assert len(asked) == 2 * plan.sample  # each trace once an instruction
    assert processes >= least // limit
    assert not any((workdir.private / 'evolved' / 'training').glob('*'))
