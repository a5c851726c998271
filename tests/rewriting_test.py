"""The stage rewrite on a finished run: what it keeps, kills and resumes, releases, and refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from storage_test import make_trace

from adx import environments, rewrites_io, rewriting, storage
from adx.defences import Undefended
from adx.drafting import Rewrite
from adx.drafts import Draft, Tools
from adx.errors import ConfigError, InputError, WorkdirError
from adx.experiment import Arm, ModelSource, check, experiment_hash, from_json, identity, to_json
from adx.export import export
from adx.gates import SHORT, Gates
from adx.journal import read_records
from adx.policy import Policy, Terms
from adx.processes import Place
from adx.rewriters.gradient import Gradient
from adx.rewriters.instructed import Instructed
from adx.rewriters.marked import Marked
from adx.rewriters.matched import LEFT, Matched
from adx.rewriters.rendered import Rendered
from adx.rewriters.selected import Selected
from adx.selection import Selection
from adx.storage import Workdir
from launch.config import load_config
from tests import tiny

TEXT, OTHER = 'First 3 + 4 = 7, as we saw.\n#### 7', 'We saw that 3 + 4 = 7, at first.\n#### 7'
THIRD = 'At first we saw that 3 + 4 = 7.\n#### 7'
ROWS = 6
WORDS = 6 / 11  # that OTHER has changed, of TEXT's


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """An experiment of one arm on a tiny teacher, which is told to say its traces otherwise."""
    root = tmp_path_factory.mktemp('rewriting')
    teacher = tiny.write_teacher(root / 'teacher')
    run = load_config(tiny.write_config(root / 'config.py', teacher))
    rewrites = (Rewrite('said', 'plain', Instructed()), Rewrite('chosen', 'first', Instructed()))
    selections = (Selection('first', 'plain', 'first'),)
    return dataclasses.replace(run, arms=(Arm('plain'),), selections=selections, rewrites=rewrites)


@pytest.fixture
def workdir(base, tmp_path) -> Workdir:
    tokens, path = tuple(tiny.make_tokenizer().encode(TEXT)), tmp_path / 'run'
    ids = [f'gsm8k/test/{row}/0/plain' for row in range(ROWS)]
    about = {'text': TEXT, 'tokens': tokens, 'gold': '7', 'policy': 'hash'}
    traces = [make_trace(row, request_id=id_, **about) for row, id_ in enumerate(ids)]
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.append(traces)
        writer.heartbeat({'totals': {'plain': ROWS}})
    (path / 'private' / 'selections').mkdir()
    lines = [json.dumps({'request_id': id_, 'how': 'first'}) for id_ in ids[:2]]
    (path / 'private' / 'selections' / 'first.jsonl').write_text('\n'.join(lines))
    return Workdir(path)


class Shop(rewriting.Workshop):
    """Writes what it is given; the teacher likes it all."""

    written = (Draft('#### 7'), Draft(OTHER))

    @property
    def tools(self):
        return Tools(write=lambda asked, samples, arm: [list(self.written)] * len(asked))

    def nll(self, pairs):
        return [1.0] * len(pairs)


@pytest.fixture(autouse=True)
def shop(monkeypatch):
    monkeypatch.setattr(rewriting, 'Workshop', Shop)


def test_keeps_what_became_of_every_trace(base, workdir):
    found = rewriting.rewrite(base, str(workdir.path))
    assert found['said'] == {
        'traces': ROWS, 'rewritten': ROWS, 'by_draft': {'1': ROWS}, 'refused': {SHORT: ROWS}, 'changed': WORDS,
    }  # fmt: skip
    assert found['chosen']['traces'] == 2
    assert rewrites_io.names(workdir) == ['chosen', 'said']
    traces = list(rewrites_io.rewritten(workdir, 'said'))
    assert [trace.request_id for trace in traces] == [f'gsm8k/test/{row}/0/said' for row in range(ROWS)]
    tokenizer = tiny.make_tokenizer()
    for trace in traces:
        assert (trace.text, trace.reasoning, trace.answer) == (OTHER, OTHER.partition('####')[0], '#### 7')
        assert trace.tokens == (*tokenizer.encode(OTHER), tokenizer.eos_id)
        assert trace.statistics == {}
        assert (trace.defence['type'], trace.defence['name']) == ('rewrite', 'said')
    modes = {path.stat().mode & 0o777 for path in (workdir.private / 'rewrites' / 'said').iterdir()}
    assert modes == {0o600}


def test_a_trace_that_stays_is_the_same_under_the_name_of_the_rewrite(base, workdir, monkeypatch):
    monkeypatch.setattr(Shop, 'written', (Draft('#### 7'),))
    rewriting.rewrite(base, str(workdir.path))
    originals = list(workdir.traces())
    for trace, original in zip(rewrites_io.rewritten(workdir, 'said'), originals, strict=True):
        assert (trace.text, trace.tokens, trace.stop) == (original.text, original.tokens, original.stop)
        assert trace.defence != original.defence  # all traces of a setting have one


def test_its_seconds_are_taken_without_a_trace_of_it(base, workdir, monkeypatch):
    ticks = iter((10.0, 13.0))
    monkeypatch.setattr(rewriting.time, 'perf_counter', lambda: next(ticks))
    tokens = sum(len(trace.tokens) for trace in workdir.traces())
    said = dataclasses.replace(base, rewrites=base.rewrites[:1])
    found = rewriting.seconds_per_token(said, str(workdir.path))['said']
    assert found == pytest.approx(3.0 / tokens)
    assert rewrites_io.names(workdir) == []


def test_a_share_is_drawn_by_seed_and_prompt(base, workdir):
    part = dataclasses.replace(base, rewrites=(Rewrite('part', 'plain', Instructed(), share=0.5),))
    counts = rewriting.rewrite(part, str(workdir.path))['part']
    assert counts['rewritten'] == ROWS // 2
    assert counts['refused'][rewriting.NOT_CHOSEN] == ROWS - ROWS // 2


def test_a_control_stays_where_what_it_matches_does_and_says_something_else(base, workdir, monkeypatch):
    monkeypatch.setattr(Shop, 'written', (Draft(OTHER), Draft(THIRD)))
    said = Rewrite('part', 'plain', Instructed(), share=0.5)
    control = Rewrite('control', 'plain', Matched(Instructed(tries=2), 'part'))
    run = dataclasses.replace(base, rewrites=(said, control))
    with pytest.raises(InputError, match=r"'part', which another is to match, has nothing of gsm8k/test/0/0/plain"):
        rewriting._share(run, workdir, control, Place())
    found = rewriting.rewrite(run, str(workdir.path))
    assert found['control']['rewritten'] == ROWS // 2
    assert found['control']['refused'] == {LEFT: ROWS // 2}
    texts = [[one.text for one in rewrites_io.rewritten(workdir, name)] for name in ('part', 'control')]
    assert [{OTHER: THIRD}.get(text, text) for text in texts[0]] == texts[1]
    assert texts[0].count(OTHER) == ROWS // 2
    others = dataclasses.replace(run, rewrites=(dataclasses.replace(said, share=1.0), control))
    assert rewrites_io.identity(others, control) != rewrites_io.identity(run, control)


def test_the_share_of_a_mark_is_of_its_customers_traces(base, workdir, monkeypatch):
    whose = {f'gsm8k/test/{row}/0': ('acme', 'bolt', '')[row % 3] for row in range(ROWS)}
    served = [dataclasses.replace(one, customer=whose[rewriting._name(one)]) for one in workdir.traces()]
    monkeypatch.setattr(rewrites_io, 'originals', lambda *given: served)
    part = Rewrite('part', 'plain', Marked('acme'), share=0.75)
    share = rewriting._share(dataclasses.replace(base, rewrites=(part,)), workdir, part, Place())
    assert len(share.chosen) == 3  # of the four that are acme's or nobody's
    assert {whose[name] for name in share.chosen} <= {'acme', ''}


def test_only_the_chosen_slices_are_rewritten(base, workdir, monkeypatch):
    def slices(self, question):
        return {'first': question.split()[-1][0]}  # of 'Question 3?'

    monkeypatch.setattr(type(base.dataset), 'slices', slices, raising=False)
    part = dataclasses.replace(base, rewrites=(Rewrite('part', 'plain', Instructed(), only=('first=1', 'first=4')),))
    counts = rewriting.rewrite(part, str(workdir.path))['part']
    assert (counts['rewritten'], counts['refused'][rewriting.NOT_CHOSEN]) == (2, ROWS - 2)
    texts = {trace.request_id: trace.text for trace in rewrites_io.rewritten(workdir, 'part')}
    assert [id_.split('/')[2] for id_, text in sorted(texts.items()) if text == OTHER] == ['1', '4']
    wrong = dataclasses.replace(base, rewrites=(Rewrite('wrong', 'plain', Instructed(), only=('first=9',)),))
    with pytest.raises(InputError, match=r"no question is in \['first=9'\]; the slices are first=0, first=1"):
        rewriting.rewrite(wrong, str(workdir.path))


def test_a_rewrite_may_be_of_another(base, workdir, monkeypatch):
    chain = (base.rewrites[0], Rewrite('again', 'said', Instructed(), share=0.5))
    rewriting.rewrite(dataclasses.replace(base, rewrites=chain[:1]), str(workdir.path))
    monkeypatch.setattr(Shop, 'written', (Draft(OTHER.replace('We saw', 'We see')),))
    counts = rewriting.rewrite(dataclasses.replace(base, rewrites=chain), str(workdir.path))
    assert counts['again']['rewritten'] == ROWS // 2
    texts = [trace.text for trace in rewrites_io.rewritten(workdir, 'again')]
    assert sorted(text[:6] for text in texts) == ['We saw'] * (ROWS // 2) + ['We see'] * (ROWS // 2)


def test_a_killed_rewrite_goes_on_where_it_was(base, workdir, monkeypatch):
    monkeypatch.setattr(rewriting, 'BATCH', 2)
    monkeypatch.setattr(rewriting, 'LARGEST', 2)
    asked = []

    class Killed(Shop):
        @property
        def tools(self):
            def write(texts, samples, arm):
                asked.append(len(texts))
                if len(asked) == 2:
                    raise KeyboardInterrupt
                return [list(self.written)] * len(texts)

            return Tools(write=write)

    monkeypatch.setattr(rewriting, 'Workshop', Killed)
    one = dataclasses.replace(base, rewrites=base.rewrites[:1])
    with pytest.raises(KeyboardInterrupt):
        rewriting.rewrite(one, str(workdir.path))
    told = []
    counts = rewriting.rewrite(one, str(workdir.path), lambda *progress: told.append(progress))
    assert asked == [2, 2, 2, 2]
    assert told == [('said', 4, ROWS), ('said', ROWS, ROWS)]
    assert counts['said']['rewritten'] == ROWS
    assert len(list(rewrites_io.rewritten(workdir, 'said'))) == ROWS
    records = [record for _, record in read_records(workdir.private / 'rewrites' / 'said')]
    assert [record['policy'] for record in records] == ['hash'] * ROWS


@pytest.mark.parametrize('shards', [2, 4])
def test_any_number_of_processes_makes_the_rewrites_of_one(base, workdir, monkeypatch, shards):
    """In chains too, killed after a batch, and gone on with by another number."""
    monkeypatch.setattr(rewriting, 'BATCH', 1)
    chain = dataclasses.replace(base, rewrites=(base.rewrites[0], Rewrite('again', 'said', Instructed(), share=0.5)))
    alone = shutil.copytree(workdir.path, workdir.path.parent / 'alone')
    rewriting.rewrite(chain, str(alone))

    def killed(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewriting.rewrite(chain, str(workdir.path), killed, place=Place(2, 3))
    totals = []
    for shard in range(shards):
        counts = rewriting.rewrite(chain, str(workdir.path), place=Place(shard, shards))
        totals.append(counts['said']['traces'])
    assert sum(totals) == ROWS
    for name in ('said', 'again'):
        assert list(rewrites_io.rewritten(workdir, name)) == list(rewrites_io.rewritten(Workdir(alone), name))
        assert len(lines_of(workdir, name)) == ROWS  # nothing twice


def lines_of(workdir, name) -> list[str]:
    paths = (workdir.private / 'rewrites' / name).glob('*.jsonl')
    return [line for path in paths for line in path.read_text().splitlines()]


def test_a_share_of_a_rewrite_is_one_process_and_the_number_of_shares_is_one(base, workdir):
    with storage.held(workdir, 'rewrite', ['rewrites'], (0, 2)):
        with pytest.raises(WorkdirError, match='stage rewrite, shard 0-of-2, is in use'):
            rewriting.rewrite(base, str(workdir.path), place=Place(0, 2))
        with pytest.raises(WorkdirError, match=r'not of 3.* is in use'):
            rewriting.rewrite(base, str(workdir.path), place=Place(1, 3))
        rewriting.rewrite(base, str(workdir.path), place=Place(1, 2))


def test_a_rewrite_is_released_as_defended(base, workdir):
    rewriting.rewrite(base, str(workdir.path))
    release = export(workdir.path, 'chat', 'said', 'proprietary', 'public')
    rows = [json.loads(line) for line in (release / 'traces.jsonl').read_text().splitlines()]
    assert [row['text'] for row in rows] == [OTHER] * ROWS
    assert 'said' not in (release / 'traces.jsonl').read_text()
    with pytest.raises(ConfigError, match='disclosure is empty'):
        export(workdir.path, 'chat', 'said', 'proprietary', '')


def test_nothing_to_do_is_said(base, workdir):
    with pytest.raises(ConfigError, match='rewrites is empty'):
        rewriting.rewrite(dataclasses.replace(base, rewrites=()), str(workdir.path))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rewrites': (Rewrite('r', 'plain', Gradient()),), 'proxies': ()}, 'proxies is empty'),
        ({'rewrites': (Rewrite('r', 'plain', Rendered()),)}, "'gsm8k' has no writer"),
        ({'rewrites': (Rewrite('r', 'poe', Instructed()),)}, "is of 'poe'"),
        ({'disclosure': ''}, 'disclosure'),
        (
            {'rewrites': (Rewrite('r', 'plain', Instructed(arm='plain')),), 'rewriter': ModelSource('other')},
            'leave `rewriter` out',
        ),
    ],
)
def test_experiments_check_their_rewrites(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(base, **changes))


def test_rewrites_are_written_down_and_read_and_leave_the_identity_alone(base):
    one = Rewrite('r', 'plain', Selected(Gradient(protected=('plus',))), Gates(0.9, 0.3), 0.5)
    given = dataclasses.replace(base, rewrites=(one,), rewriter=ModelSource('other'))
    assert from_json(json.loads(json.dumps(to_json(given)))) == given
    assert experiment_hash(given) == experiment_hash(base)


def test_who_is_licensed_to_distil_keeps_the_trace_as_it_was_served(base, workdir, tmp_path):
    """Terms of the plain arm are another matter: there the rewrite is the defence."""
    licences = ['distillation', 'usage'] * (ROWS // 2)
    traces = [dataclasses.replace(one, terms=terms) for one, terms in zip(workdir.traces(), licences, strict=True)]
    path = tmp_path / 'licensed'
    policy = Policy((), (Terms('distillation', None), Terms('usage', Undefended())), 'usage')
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.keep_policy('hash', to_json(policy))
        writer.append(traces)
        writer.heartbeat({'totals': {'plain': ROWS}})
    chain = (base.rewrites[0], Rewrite('again', 'said', Instructed()))
    for rewrites in (chain[:1], chain):
        found = rewriting.rewrite(dataclasses.replace(base, rewrites=rewrites), str(path))
    for name in ('said', 'again'):
        assert found[name]['refused'][rewriting.SPARED] == ROWS // 2
        texts = [trace.text for trace in rewrites_io.rewritten(Workdir(path), name)]
        assert texts == [TEXT, OTHER] * (ROWS // 2)


def test_it_goes_on_elsewhere_only_when_told_to(base, workdir, monkeypatch):
    """As generation does: it decodes tokens. A complete rewrite may be looked at anywhere."""
    environments.enter(workdir, '0-of-1', environments.current(base.mesh), allowed=False)
    monkeypatch.setattr(environments, 'current', lambda mesh: {'jax': '99'})
    with pytest.raises(WorkdirError, match=r'another environment .*jax: .* -> 99.*--allow_environment_change'):
        rewriting.rewrite(base, str(workdir.path))
    rewriting.rewrite(base, str(workdir.path), place=Place(may_change=True))
    assert any(line.startswith('shard rewrite-0-of-1 ') for line in environments.changes(workdir))
    monkeypatch.setattr(environments, 'current', lambda mesh: {'jax': '100'})
    assert rewriting.rewrite(base, str(workdir.path))['said']['traces'] == ROWS


def test_a_batch_is_of_as_many_traces_as_a_minute_takes():
    assert rewriting.next_batch(64, 0.0) == 256
    assert rewriting.next_batch(256, 20.0) == 768
    assert rewriting.next_batch(768, 20.0) == rewriting.LARGEST
    assert rewriting.next_batch(64, 1600.0) == 2
    assert rewriting.next_batch(2, 1600.0) == 1
