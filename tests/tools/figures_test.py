"""Published figures follow from their raw samples, and the README states nothing else."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from adx.errors import InputError
from tools.bench import figures

ROOT = pathlib.Path(__file__).parents[2]
ABOUT = {'unit': 'ms', 'goal': '<= 5', 'command': 'python -m measure', 'machine': 'a CPU, 2 cores'}


@pytest.fixture
def table(tmp_path) -> pathlib.Path:
    figures.append('speed', 'step', [4.0, 9.0, 2.0], results=tmp_path, **ABOUT)
    figures.append('speed', 'other', np.array([1.5, 1.5]), results=tmp_path, **ABOUT)
    figures.not_run('speed', 'step_gpu', results=tmp_path, **ABOUT)
    return tmp_path


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_row_is_the_median_and_the_extremes(table):
    figures.verify('speed', table)
    row = figures.read('speed', table)[0]
    assert (row['value'], row['low'], row['high'], row['n']) == (4.0, 2.0, 9.0, 3)
    assert json.loads((table / row['raw']['path']).read_text())['samples'] == [4.0, 9.0, 2.0]


def test_appending_replaces_the_row_in_its_place(table):
    figures.append('speed', 'step', [7.0], results=table, **ABOUT)
    assert [(row['figure'], row['value']) for row in figures.read('speed', table)] == [
        ('step', 7.0), ('other', 1.5), ('step_gpu', None),
    ]  # fmt: skip
    figures.verify('speed', table)


def test_not_run_leaves_a_measurement_alone(table):
    figures.not_run('speed', 'step', results=table, **ABOUT)
    assert figures.read('speed', table)[0]['status'] == figures.MEASURED
    figures.append('speed', 'step_gpu', [3.0], results=table, **ABOUT)
    assert figures.read('speed', table)[2]['value'] == 3.0


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'said'),
    [
        ('speed.json', '"value": 4.0', '"value": 3.0', "'step' states"),
        ('speed.json', '"high": 9.0', '"high": 5.0', "'step' states"),
        ('speed.json', '"n": 3', '"n": 30', "'step' states"),
        ('speed.json', '"unit": "ms"', '"unit": "us"', "'step' states"),
        ('speed.json', '"figure": "other"', '"figure": "step"', 'stands twice'),
        ('speed.json', '"status": "measured"', '"status": "not_run"', 'neither'),
        ('raw/speed_step.json', '9.0', '9.1', 'not the file whose hash'),
    ],
)
def test_tampering_is_caught(table, file, old, new, said):
    edit(table / file, old, new)
    with pytest.raises(InputError, match=said):
        figures.verify('speed', table)


def test_missing_samples_are_caught(table):
    (table / 'raw' / 'speed_other.json').unlink()
    with pytest.raises(InputError, match=r'speed_other\.json is missing'):
        figures.verify('speed', table)


@pytest.mark.parametrize(('figure', 'samples'), [('step', []), ('../step', [1.0])])
def test_what_cannot_be_a_row_is_refused(tmp_path, figure, samples):
    with pytest.raises(InputError, match=figure.replace('.', r'\.')):
        figures.append('speed', figure, samples, results=tmp_path, **ABOUT)
    assert not list(tmp_path.iterdir())


def test_rewrite_touches_the_block_only(table):
    page = 'before\n<!-- figures:speed -->\nstale\n<!-- /figures -->\nafter <!-- other -->\n'
    new = figures.rewrite(page, table)
    before, after = '<!-- figures:speed -->\n', '\n<!-- /figures -->\n'
    assert new == f'before\n{before}{figures.render("speed", table)}{after}after <!-- other -->\n'
    assert figures.rewrite(new, table) == new
    assert '| `step` | 4 ms | 2 to 9 | 3 | <= 5 | a CPU, 2 cores |' in new
    assert '| `step_gpu` | not run |' in new


def test_precision_is_a_line_for_every_proxy_format_and_step(tmp_path):
    for kind, value in (('sin', 0.25), ('step', 2e-5), ('changed', 0.5)):
        figures.append('speed', f'precision_{kind}_a_b_float16_1em02', [value], results=tmp_path, **ABOUT)
    figures.not_run('speed', 'precision_sin_a_b_float32_1em02', results=tmp_path, **ABOUT)
    page = '<!-- precision:speed -->\n<!-- /precision -->\n<!-- figures:speed -->\n<!-- /figures -->\n'
    new = figures.rewrite(page, tmp_path)
    assert '| a_b | float16 | 1e-02 | 0.25 | 2e-05 | 0.5 |' in new
    assert '| a_b | float32 | 1e-02 | not run | not run | not run |' in new
    assert 'precision_sin' not in new


@pytest.mark.parametrize('name', figures.tables())
def test_published_table_verifies(name):
    figures.verify(name)


def test_readme_states_every_table_as_it_is():
    page = (ROOT / 'README.md').read_text('utf-8')
    assert figures.rewrite(page) == page, 'run `python -m tools.bench.figures --render=README.md`'
    missing = [name for name in figures.tables() if f'<!-- figures:{name} -->' not in page]
    assert not missing, 'give each a <!-- figures:NAME --> block'
