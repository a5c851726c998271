"""As fuzzing_test.py, for the files that stand beside traces: what stages write of themselves, cases and prices."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import types
from typing import Any

import jax.numpy as jnp
import pytest
from detecting_test import CASE, KEY, SIGNER, Parrot
from etils import epath
from fuzzing_test import workdir  # noqa: F401
from malformed_files import counted, tolerates
from storage_test import make_trace

from adx import (
    assessing,
    attributing,
    detecting,
    directions,
    environments,
    files,
    instructions,
    journal,
    policy,
    readings,
    training_io,
    transfer,
)
from adx.datasets import Gsm8k
from adx.detectors.trigger import Trigger
from adx.experiment import Experiment, ModelSource
from adx.gradients import Gradient
from adx.mesh import Layout, make_mesh
from adx.outcomes import Quality
from adx.statistics import Interval
from adx.storage import Workdir
from adx.training import TrainState
from launch import costs

counts = counted(12, 300)
slower = counted(5, 100)  # what starts programs of a device, or draws pairs


@counts
@pytest.mark.parametrize('name', ['policy.json', 'forgotten.json', 'environments.jsonl'])
def test_what_was_served_and_where(workdir, name, examples):  # noqa: F811
    place, private = Workdir(workdir), workdir / 'private'
    kept = {'customers': [], 'terms': [{'licence': 'usage', 'defence': None}], 'default': 'usage'}
    (private / 'policies' / 'policy.json').write_text(json.dumps({'format_version': 1, 'policy': kept}))
    (private / 'forgotten.json').write_text(json.dumps({'format_version': 1, 'prompts': ['ab', 'cd']}))
    for version in ('1', '2'):
        environments.enter(place, '0-of-1', {'jax': version, 'mesh': '1x1x1'}, allowed=True)
    path = next(private.rglob('0-of-1.jsonl' if name == 'environments.jsonl' else name))
    trace = dataclasses.replace(make_trace(1), policy='policy', terms='usage')

    def read():
        policy.spares(private / 'policies')(trace)
        place.forgotten()
        place.totals()
        environments.changes(place)
        environments.enter(place, '1-of-2', {'jax': '1', 'mesh': '1x1x1'}, allowed=True)

    tolerates(path, read, examples)


@slower
@pytest.mark.parametrize('name', ['training.json', 'metrics.jsonl'])
def test_checkpoints_of_training(tmp_path, name, examples):
    run = training_io.Run(epath.Path(tmp_path), {'experiment': {'seed': 0}})
    count_N = jnp.ones(1, jnp.int32)
    counts = (count_N,) * 3
    state = TrainState({'w': jnp.ones((1, 2))}, {}, {}, jnp.ones((), jnp.int32), jnp.ones(1), *counts)
    training_io.save(run, state)
    files.make_private_dir(run.directory / training_io.METRICS)
    path = tmp_path / training_io.METRICS / '00000001.jsonl'
    path.write_text('{"step": 1, "loss": [0.5, null]}\n')
    if name == 'training.json':
        (path,) = tmp_path.glob(f'*/{training_io.MANIFEST}')
        tolerates(path, lambda: training_io.restore(run, state), examples)
    else:
        tolerates(path, lambda: training_io.metrics(run), 2 * examples)


@slower
def test_directions(tmp_path, examples):
    """Of a proxy with one weight."""
    model = types.SimpleNamespace(axes={'w': 'DF'}, shapes={'w': (2, 3)})
    takes: Any = types.SimpleNamespace(model=model, layout=Layout(make_mesh(), {}))
    experiment = Experiment(Gsm8k(), ModelSource('teacher'), proxies=(ModelSource('proxy'),))
    belongs, where = directions.identity(experiment, 9, 'hash', []), directions.place(tmp_path, 0)
    one = Gradient({'w': jnp.ones((2, 3))}, 4, 0.5, 1.0, {'w': 6**0.5})
    directions.save(where, directions.stack(takes, [one], belongs), [one], belongs, True)

    def read():
        directions.hashes(experiment, tmp_path)
        directions.restore(where, takes, belongs)

    tolerates(pathlib.Path(where / directions.IDENTITY), read, examples)


QUALITY = Quality(
    'plain', 0, 'p', (True,), (True,), (False,), {'difficulty': ('3',)}, 5.0, 3.0, 1.0, 0.0, float('nan'), 0.0, 0.0,
    0.0, 1.5, by_prompt={'tokens': (5.0,)},
)  # fmt: skip


@counts
@pytest.mark.parametrize('name', ['quality', 'costs', 'report', 'transfer', 'readings', 'frozen'])
def test_figures_of_a_study(tmp_path, name, examples):
    study: Any = types.SimpleNamespace(seeds=(0,), arms=('plain', 'poe'), clean='plain')
    private = tmp_path / 'private'
    path = {
        'quality': private / 'quality' / '0' / 'plain.json',
        'costs': private / 'quality' / 'costs' / '0.json',
        'report': private / 'report' / 'report.json',
        'transfer': private / 'report' / 'transfer.json',
        'readings': private / 'readings.json',
        'frozen': private / 'frozen.json',
    }[name]
    path.parent.mkdir(parents=True)
    row = {'figure': 'damage', 'role': 'defence', 'arm': 'a', 'attack': 'sft', 'student': 's', 'seen': False}
    cell = transfer.Cell('a', 'p', 'm', Interval(0.5, 0.1, 0.9), 20)
    content = {
        'quality': dataclasses.asdict(QUALITY), 'costs': {'plain': 0.5, 'poe': 1},
        'report': {'rows': [row | {'eligible': None, 'value': 0.5}], 'testbed': 't'},
        'transfer': [dataclasses.asdict(cell)], 'readings': [{'experiment': 'a', 'arm': 'b', 'time': 'c'}],
        'frozen': {'a': 'then'},
    }[name]  # fmt: skip
    words = {'costs': 'seconds', 'transfer': 'cells'}.get(name, name)
    path.write_bytes(json.dumps(content).encode() if name == 'report' else journal.content_to_json(words, content))
    read = {
        'quality': lambda: assessing.verdicts(study, assessing.qualities(study, str(tmp_path))),
        'costs': lambda: assessing._read_costs(files.path_of(path), ['plain', 'poe']),
        'report': lambda: assessing._reported(str(tmp_path)),
        'transfer': lambda: [f'{one.rho.value:.2f}' for one in transfer.read(str(tmp_path))],
        'readings': lambda: readings.readings(tmp_path),
        'frozen': lambda: readings.freeze(tmp_path, 'a'),
    }[name]
    tolerates(path, read, examples)


@counts
def test_searches(workdir, examples):  # noqa: F811
    place = Workdir(workdir)
    (workdir / 'private' / 'evolved').mkdir()
    state = instructions.State(place, {'experiment': 'a'})
    state.propose(1, ['Say it.'])
    state.add('Say it.', 1, 0.5, {'rewritten': 3})

    def read():
        found = instructions.State(place, {'experiment': 'a'})
        sum(score for _, score in found.ranked)
        _ = found.best_turn + 1, [len(new) for new in found.proposed.values()]

    tolerates(pathlib.Path(state.place), read, examples)


@pytest.fixture
def case(tmp_path):
    """Two cases side by side, with verdicts."""
    small = dataclasses.replace(CASE, test=Trigger(pairs=4, decoys=5, level=0.1), pairs=4)
    for name in ('case', 'beside'):
        detecting.commit(small, tmp_path / name, KEY)
        detecting.ask(tmp_path / name, Parrot(KEY))
        detecting.verdict(tmp_path / name, KEY, SIGNER)
    return tmp_path / 'case'


@slower
@pytest.mark.parametrize('name', ['plan.json', 'commitment.json', 'suspect.json', 'answers', 'verdicts.jsonl'])
def test_cases(case, name, examples):
    path = next((case / name).iterdir()) if name == 'answers' else case / name
    aside = case.parent / 'aside'
    shutil.copytree(case, aside)

    def read():
        for one in (path, case / 'verdicts.jsonl'):  # those that were issued meanwhile
            if one != path:
                shutil.copy(aside / one.name, one)
        detecting.ask(case, Parrot(KEY))
        attributing.attribute([case], SIGNER)
        detecting.verdict(case, KEY, SIGNER)
        detecting.verdict(case.parent / 'beside', KEY, SIGNER)

    tolerates(path, read, examples)


@counts
def test_prices(tmp_path, examples):
    path = tmp_path / 'prices.json'
    row = {'unit': 'v5e', 'region': 'r', 'provisioning': 'spot', 'usd_per_hour': 1.5, 'date': '2026-01-01'}
    path.write_text(json.dumps({'prices': [row, row | {'unit': 'v6e'}]}))
    fleet = costs.Fleet('v5e', 4, 4, 'r', 'spot')
    tolerates(path, lambda: costs.price_line(fleet, costs.find_price(str(path), fleet)), examples)
