"""As fuzzing_test.py, for data sets: rows of every kind, tables, and what was built of them."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import pytest
from malformed_files import counted, tolerates

from adx import generation
from adx.datasets import CompetitionMath, Gsm8k, Jsonl, Mbpp, Mmlu, builder
from adx.datasets.mmlu import HEADER
from adx.errors import InputError
from adx.experiment import override
from launch.config import load_config
from tests import tiny

counts = counted(20, 400)
built_counts = counted(8, 100)
ROWS = {
    'gsm8k': (Gsm8k, {'question': 'How many?', 'answer': 'Two and two.\n#### 4'}),
    'math': (CompetitionMath, {'problem': 'What is $x$?', 'solution': 'It is $\\boxed{4}$.'}),
    'mbpp': (Mbpp, {'text': 'Write f.', 'test_list': ['assert f(1) == 2'], 'task_id': 12, 'test_setup_code': ''}),
    'mmlu': (Mmlu, {'question': 'Which?', 'choices': ['a', 'b'], 'answer': 1, 'subject': 'law'}),
}


@counts
@pytest.mark.parametrize('name', list(ROWS))
def test_rows(tmp_path, name, examples):
    kind, row = ROWS[name]
    path = tmp_path / 'rows.jsonl'
    key = 'task_id' if name == 'mbpp' else 'id'
    path.write_text(f'{json.dumps(row | {key: 601})}\n{json.dumps(row | {key: 12})}\n')
    dataset = kind(str(path))
    tolerates(path, lambda: (dataset.source(), dataset.splits(), kind(str(path), skip_bad=True).source()), examples)


@counts
@pytest.mark.parametrize('folder', ['test', 'dev'])
def test_tables(tmp_path, folder, examples):
    for name in ('test', 'dev'):
        (tmp_path / name).mkdir()
        (tmp_path / name / f'law_{name}.csv').write_text(f'{",".join(HEADER)}\n"What, {name}?",a,b,c,d,A\n')
    dataset = Mmlu(str(tmp_path), skip_bad=True)
    tolerates(tmp_path / folder / f'law_{folder}.csv', lambda: (dataset.source(), dataset.splits()), examples)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A data set of three rows."""
    pytest.importorskip('tensorflow_datasets')
    root = tmp_path_factory.mktemp('built')
    (root / 'rows.jsonl').write_text('\n'.join(json.dumps({'question': f'q{i}', 'answer': '5'}) for i in range(3)))
    return pathlib.Path(builder.build(Jsonl(str(root / 'rows.jsonl')), str(root)))


@built_counts
@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'array_record'])
def test_built_data_sets(built, tmp_path, name, examples):
    place = tmp_path / 'built'
    shutil.copytree(built, place)
    (path,) = place.glob(f'*{name}*')
    tolerates(path, lambda: Jsonl(str(place)).source(), examples)


@pytest.mark.parametrize('kind', ['tfrecord', 'riegeli', 'no such'])
def test_a_build_in_another_format_is_refused(built, tmp_path, kind):
    place = tmp_path / 'built'
    shutil.copytree(built, place)
    about = json.loads((place / 'dataset_info.json').read_text())
    (place / 'dataset_info.json').write_text(json.dumps(about | {'fileFormat': kind}))
    with pytest.raises(InputError, match=r'is no data set .*; restore its files, or build it again'):
        Jsonl(str(place)).source()


def test_prompts_of_a_truncated_build_are_refused(built, tmp_path):
    place = tmp_path / 'built'
    shutil.copytree(built, place)
    (path,) = place.glob('*array_record*')
    os.truncate(path, path.stat().st_size // 2)
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', str(tmp_path / 'teacher'), 'Jsonl()'))
    with pytest.raises(InputError, match=r'is no data set .*; restore its files, or build it again'):
        generation.read_prompts(override(experiment, [f'dataset.path={place}']))
