"""The stage select on a finished run: what it writes, kills and resumes, releases, and refuses."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from storage_test import make_trace

from adx import directions, grading, loading, selecting, storage
from adx.aggregation import Aggregation
from adx.datasets import Gsm8k
from adx.decoding.ensemble import Weights
from adx.defences import Undefended
from adx.errors import ConfigError, InputError, StorageError, WorkdirError
from adx.experiment import Arm, ModelSource, check, experiment_hash, from_json, identity, override, to_json
from adx.export import export
from adx.hashing import row_key
from adx.journal import read_records
from adx.policy import Policy, Terms
from adx.selection import Selection
from adx.storage import Workdir
from launch.config import load_config
from tests import tiny

SAMPLES = 4
TEXTS = ('#### 7', 'so #### 8', '7 and 7: #### 7.0', 'no idea, no idea, no idea, no idea')
SELECTIONS = (
    Selection('first', 'plain', 'first'),
    Selection('random', 'plain', 'random'),
    Selection('longest', 'plain', 'max_length'),
    Selection('hardest', 'plain', 'max_nll', join=Aggregation(how='min')),
    Selection('hard_and_right', 'plain', 'max_nll', correctness_matched=True),
)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """An experiment of one arm and two proxies on a tiny teacher."""
    root = tmp_path_factory.mktemp('selecting')
    teacher = tiny.write_teacher(root / 'teacher')
    run = load_config(tiny.write_config(root / 'config.py', teacher))
    proxies = (ModelSource(teacher, exit_layer=1), ModelSource(teacher))
    return dataclasses.replace(run, arms=(Arm('plain'),), proxies=proxies, samples=SAMPLES, selections=SELECTIONS)


def make_workdir(base, path) -> Workdir:
    """Three prompts with the four TEXTS in a turning order, as the arm's finished traces."""
    tokenizer = tiny.make_tokenizer()
    traces = []
    for row in range(3):
        for sample in range(SAMPLES):
            text = TEXTS[(row + sample) % SAMPLES]
            id_ = f'gsm8k/test/{row}/{sample}/plain'
            tokens = tuple(tokenizer.encode(text))
            traces.append(make_trace(row, request_id=id_, text=text, tokens=tokens, gold='7', policy=f'policy {row}'))
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.append(traces)
        writer.reject('gsm8k/test/9/0/plain', 'too long')
        writer.heartbeat({'totals': {'plain': 13}})
    return Workdir(path)


@pytest.fixture
def workdir(base, tmp_path) -> Workdir:
    return make_workdir(base, tmp_path / 'run')


@pytest.fixture(scope='module')
def selected(base, tmp_path_factory) -> Workdir:
    workdir = make_workdir(base, tmp_path_factory.mktemp('selected') / 'run')
    counts = selecting.select(base, str(workdir.path))
    assert {name: one.prompts for name, one in counts.items()} == dict.fromkeys(workdir.selections(), 3)
    assert counts['first'] == (3, 0, 1)  # of a fourth prompt nothing could be served
    return workdir


def chosen(workdir, name) -> list[int]:
    return [record['sample'] for record in workdir.selection(name)]


def files_of(workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir.private / 'selections').iterdir()}


def test_writes_each_choice_with_all_candidates(base, selected):
    workdir = selected
    assert workdir.selections() == sorted(selection.name for selection in SELECTIONS)
    assert chosen(workdir, 'first') == [0, 0, 0]
    assert chosen(workdir, 'longest') == [3, 2, 1]
    keys = [row_key(base.seed, f'gsm8k/test/{row}').tolist() for row in range(3)]
    assert chosen(workdir, 'random') == [(high << 32 | low) % SAMPLES for high, low in keys]
    for record in workdir.selection('hardest'):
        candidates = record['candidates']
        scores = [candidate['score'] for candidate in candidates]
        assert [min(candidate['proxies']) for candidate in candidates] == scores
        assert record['sample'] == int(np.argmax(scores))
        assert record['request_id'] == candidates[record['sample']]['request_id']
        assert [c['request_id'] for c in candidates] == [f'{record["prompt"]}/{i}/plain' for i in range(SAMPLES)]
        assert record['policy'] == f'policy {record["prompt"].split("/")[2]}'
    scores = [record for _, record in read_records(workdir.private / 'scores' / 'nll')]
    assert {record['policy'] for record in scores} == {'policy 0', 'policy 1', 'policy 2'}
    graded = {(c['answer'], c['right']) for c in workdir.selection('first')[0]['candidates']}
    assert graded == {('7', True), ('8', False), ('7.0', True), (None, False)}
    modes = {path.stat().mode & 0o777 for path in (workdir.private / 'selections').iterdir()}
    assert modes == {0o600}


def test_correctness_matching_keeps_the_accuracy(selected):
    workdir = selected
    texts = {trace.request_id: trace.text for trace in workdir.traces()}
    for first, record in zip(workdir.selection('first'), workdir.selection('hard_and_right'), strict=True):
        before, after = texts[first['request_id']], texts[record['request_id']]
        assert Gsm8k().grade(after, '7') == Gsm8k().grade(before, '7')
        kept = [i for i, candidate in enumerate(record['candidates']) if candidate['kept']]
        same = [i for i in range(SAMPLES) if grading.numeric_grade(texts[record['candidates'][i]['request_id']], '7')]
        assert kept == (same if 0 in same else [0])
        mean = [np.mean(record['candidates'][i]['proxies']) for i in kept]
        assert record['sample'] == kept[int(np.argmax(mean))]


def test_stopped_while_it_scores_it_goes_on_to_the_same(base, workdir, selected, monkeypatch):
    def stop(kind, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selecting.select(base, str(workdir.path), tell=stop)
    assert not files_of(workdir)
    told = []
    selecting.select(base, str(workdir.path), tell=lambda *given: told.append(given))
    assert told == [('nll', 12, 12)]  # the second batch: the first was saved
    resumed = files_of(workdir)
    monkeypatch.setattr(loading, 'load_proxies', None)  # all scores are known: nothing is loaded
    selecting.select(base, str(workdir.path))
    assert files_of(workdir) == resumed == files_of(selected)  # that was never stopped


def test_harm_is_scored_along_the_directions_of_the_workdir(base, workdir, monkeypatch):
    harmful = dataclasses.replace(base, selections=(Selection('harmful', 'plain', 'max_harm'),))
    with pytest.raises(InputError, match=r"no directions of \['proxy_0', 'proxy_1'\] and the run wants derivatives"):
        selecting.select(harmful, str(workdir.path))

    def along_weights(experiment, path, plan, models):
        assert (experiment, path, models.weights.teacher) == (harmful, workdir.path, {})
        ones = tuple(jax.tree.map(lambda x: jnp.stack([x, -x], axis=1), group) for group in models.weights.groups)
        return dataclasses.replace(models, weights=models.weights._replace(directions=ones))

    monkeypatch.setattr(directions, 'load', along_weights)
    monkeypatch.setattr(directions, 'hashes', lambda *given: ['0', '1'])
    selecting.select(harmful, str(workdir.path))
    for record in workdir.selection('harmful'):
        for candidate in record['candidates']:
            first, opposite, second, other = candidate['proxies']  # two directions of two proxies
            assert first == -opposite != 0
            assert second == -other != first


def test_who_is_licensed_to_distil_gets_the_first_sample_of_a_defence_and_any_of_a_control(base, workdir, selected):
    """Who is served the plain arm under terms of its own is protected by the selection as everybody is."""
    licences = ('distillation', 'usage', 'distillation')
    traces = [
        dataclasses.replace(trace, policy='hash', terms=licences[int(trace.request_id.split('/')[2])])
        for trace in workdir.traces()
    ]
    path = workdir.path.parent / 'licensed'
    policy = Policy((), (Terms('distillation', None), Terms('usage', Undefended())), 'usage')
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.append(traces)
        with pytest.raises(StorageError, match=r'policies/hash.json cannot be read'):
            selecting.select(base, str(path))
        writer.keep_policy('hash', to_json(policy))
    selecting.select(base, str(path))
    for name in ('longest', 'hardest', 'hard_and_right'):
        assert chosen(Workdir(path), name) == [0, chosen(selected, name)[1], 0]
    assert chosen(Workdir(path), 'longest') == [0, 2, 0]
    assert chosen(Workdir(path), 'random') != [0, 0, 0]


def test_scores_of_other_proxies_or_directions_are_not_taken(base, workdir, monkeypatch):
    hashes, scored = ['a', 'b'], []

    def scorer(*given):
        scored.append(tuple(hashes))
        return fakes.Scores(float(len(scored)))

    monkeypatch.setattr(selecting, 'Scorer', scorer)
    monkeypatch.setattr(loading, 'proxy_hashes', lambda experiment: hashes)
    monkeypatch.setattr(loading, 'load_proxies', lambda *given: ((), {}))
    monkeypatch.setattr(directions, 'load', lambda *given: SimpleNamespace(weights=Weights({}, ())))
    kinds = {'nll': 'max_nll', 'harm': 'max_harm'}
    for kind, how in kinds.items():
        run = dataclasses.replace(base, selections=(Selection('one', 'plain', how),))
        monkeypatch.setattr(directions, 'hashes', lambda *given: ['first'])
        scored.clear()
        for names in (['a', 'b'], ['a', 'b'], ['a', 'c']):
            hashes[:] = names
            selecting.select(run, str(workdir.path))
        assert scored == [('a', 'b'), ('a', 'c')]
        assert workdir.selection('one')[0]['candidates'][0]['proxies'] == [2.0, 2.0]
        monkeypatch.setattr(directions, 'hashes', lambda *given: ['second'])
        selecting.select(run, str(workdir.path))
        assert len(scored) == (3 if kind == 'harm' else 2)
    old = [{k: v for k, v in one.items() if k != 'by'} for _, one in read_records(workdir.private / 'scores' / 'harm')]
    for path in (workdir.private / 'scores' / 'harm').iterdir():
        path.unlink()
    (workdir.private / 'scores' / 'harm' / 'old.jsonl').write_text(''.join(f'{json.dumps(one)}\n' for one in old))
    selecting.select(run, str(workdir.path))
    assert len(scored) == 4  # which of them is right nobody knows


def test_a_prompt_with_a_rejected_sample_is_left_out_and_told(base, tmp_path):
    whole = make_workdir(base, tmp_path / 'whole')
    path, poisoned = tmp_path / 'run', 'gsm8k/test/1/2/plain'
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.append([trace for trace in whole.traces() if trace.request_id != poisoned])
        writer.reject(poisoned, 'the teacher gave nan')
        writer.heartbeat({'totals': {'plain': 12}})
    some = dataclasses.replace(base, selections=SELECTIONS[:3])
    assert set(selecting.select(some, str(path)).values()) >= {(2, 0, 1), (2, 2, 1)}
    assert [one['prompt'] for one in Workdir(path).selection('longest')] == ['gsm8k/test/0', 'gsm8k/test/2']
    card = (export(path, 'chat', 'longest', 'cc0-1.0', 'public') / 'README.md').read_text()
    assert '| Missing | 1 of 3' in card
    assert '| Rejected | 1 of the missing' in card


def test_a_score_that_is_no_number_is_named(base, workdir, monkeypatch):
    monkeypatch.setattr(selecting, 'Scorer', lambda *given: fakes.Scores(np.nan))
    with pytest.raises(InputError, match=r"gsm8k/test/0/0/plain: the proxies' nll is \[nan, nan\], not finite"):
        selecting.select(base, str(workdir.path))
    assert not files_of(workdir)


def test_a_release_holds_exactly_the_chosen_traces(selected):
    workdir = selected
    folder = export(workdir.path, 'chat', 'longest', 'cc0-1.0', 'public')
    rows = [json.loads(line) for line in (folder / 'traces.jsonl').read_text().splitlines()]
    ids = sorted(record['request_id'].removesuffix('/plain') for record in workdir.selection('longest'))
    assert [row['id'] for row in rows] == ids
    assert {row['text'] for row in rows} == {TEXTS[3]}
    assert 'under an anti-distillation defence' in rows[0]['policy']  # though the arm is not
    card = (folder / 'README.md').read_text()
    assert '| Traces | 3 |' in card
    assert '| Missing | 0 of 3 |' in card
    with pytest.raises(ConfigError, match="disclosure is empty though 'longest' is defended"):
        export(workdir.path, 'chat', 'longest', 'cc0-1.0')
    assert '| Defended | no |' in (export(workdir.path, 'chat', 'random', 'cc0-1.0') / 'README.md').read_text()
    with pytest.raises(InputError, match='it has: first, hard_and_right, hardest, longest, plain, random'):
        export(workdir.path, 'chat', 'shortest', 'cc0-1.0')


@pytest.mark.parametrize(
    ('selection', 'message'),
    [
        (Selection('', 'plain', 'first'), "selections has one named ''"),
        (Selection('a/b', 'plain', 'first'), "selections has one named 'a/b'"),
        (Selection('plain', 'plain', 'first'), r"selections has one named 'plain'; .* not of \['plain'\]"),
        (Selection('s', 'plane', 'first'), r"of the arm 'plane' and there are \['plain'\]. Did you mean 'plain'"),
        (Selection('s', 'plain', 'max'), "selection 's': Selection.how = 'max' is unknown"),
    ],
)
def test_check_names_a_bad_selection(base, selection, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(base, selections=(selection,)))


def test_check_knows_what_a_selection_needs(base):
    assert from_json(json.loads(json.dumps(to_json(base)))) == base
    assert experiment_hash(override(base, ['selections.longest.how=first'])) == experiment_hash(base)
    scored = dataclasses.replace(base, selections=SELECTIONS[3:4], proxies=())
    with pytest.raises(ConfigError, match="selection 'hardest' is scored by proxies and proxies is empty"):
        check(scored)
    check(dataclasses.replace(base, selections=SELECTIONS[:2], proxies=(), disclosure=''))
    with pytest.raises(ConfigError, match='disclosure'):
        check(dataclasses.replace(base, selections=SELECTIONS[2:3], disclosure=''))
    harmful = dataclasses.replace(base, selections=(Selection('h', 'plain', 'max_harm'),))
    check(harmful)
    with pytest.raises(ConfigError, match=r"selection 'h' wants derivative.method = 'exact' and it is 'difference'"):
        check(override(harmful, ['derivative.method=difference']))


def test_refuses_a_run_that_is_not_complete_or_anothers(base, workdir, tmp_path):
    path = str(workdir.path)
    with pytest.raises(ConfigError, match='selections is empty'):
        selecting.select(dataclasses.replace(base, selections=()), path)
    with pytest.raises(WorkdirError, match='belongs to another experiment'):
        selecting.select(override(base, ['seed=1']), path)
    with pytest.raises(WorkdirError, match='is no workdir'):
        selecting.select(base, str(tmp_path / 'none'))
    with storage.held(workdir, 'select', ()), pytest.raises(WorkdirError, match='stage select'):
        selecting.select(base, path)
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.heartbeat({'totals': {'plain': 16}})
    with pytest.raises(InputError, match=r"arm 'plain' has 12 of 16 traces \(1 rejected\).*finish --stages=generate"):
        selecting.select(base, path)
    with Workdir.open(path, identity(base), experiment_hash(base)) as writer:
        writer.append([make_trace(5)])
        writer.heartbeat({'totals': {'plain': 13}})
    with pytest.raises(InputError, match='all 4 samples of each prompt'):
        selecting.select(base, path)
