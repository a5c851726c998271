"""What is read from a program that was compiled for a TPU; and, where there is a compiler, such programs."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from adx.errors import ConfigError, InputError
from tools.bench import figures, scale

HLO = '''
%body.1 (a: f32[4]) -> f32[4] {
  %all-reduce.1 = (bf16[32,8]{1,0:T(8,128)(2,1)S(1)}, bf16[2,32,4]{2,1,0}) all-reduce(%x, %y), channel_id=1
  %all-gather-start.2 = f32[32,64]{1,0:T(8,128)} all-gather-start(%z), dimensions={1}
  %fusion.3 = f32[32]{0} fusion(%all-reduce.1), kind=kLoop
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %all-reduce.4 = f32[] all-reduce(%w)
}
'''


def test_joined_collectives_are_told_apart():
    found = list(scale.collectives(HLO))
    assert found == [
        scale.Collective('all-reduce', (32, 8), True),
        scale.Collective('all-reduce', (2, 32, 4), True),
        scale.Collective('all-gather', (32, 64), True),
        scale.Collective('all-reduce', (), False),
    ]


class Memory:
    argument_size_in_bytes, temp_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 100, 10, 60, 50


class Executable:
    def memory_analysis(self):
        return Memory

    def as_text(self):
        return HLO


def compiled(donated=50, gathered=2048):
    return scale.Compiled(Executable(), 100, donated, 2, lambda shape: shape[-1] in {8, 4}, gathered)


def test_numbers_of_a_program():
    numbers = scale.measured(compiled())
    assert numbers['plan_error'] == pytest.approx(0.2)  # 100 + 10 + 60 - 50 over 100
    assert numbers['temp_over_arguments'] == 0.1
    assert (numbers['collectives_per_step'], numbers['vocabulary_gathers']) == (2, 1)
    assert numbers['aliased_over_donated'] == 1
    numbers = scale.measured(compiled(donated=100, gathered=2049))
    assert (numbers['aliased_over_donated'], numbers['vocabulary_gathers']) == (0.5, 0)


def test_figures_say_that_nothing_ran(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, 'append', lambda *args, **fields: kept.append((args[1], fields)))
    scale.publish('v5e-8', 'chunk', compiled(), scale.measured(compiled()))
    assert [name for name, _ in kept] == [
        'plan_error_chunk_v5e_8', 'temp_over_arguments_chunk_v5e_8', 'collectives_per_step_chunk_v5e_8'
    ]  # fmt: skip
    assert {fields['machine'] for _, fields in kept} == {'v5e-8, compiled for TPU, not run'}
    assert kept[2][1]['goal'] == '2 by the formula'


@pytest.mark.parametrize(('figure', 'value'), [
    ('plan_error', 0.11), ('plan_error', -0.11), ('temp_over_arguments', 0.11), ('collectives_per_step', 1),
    ('collectives_per_step', 3), ('vocabulary_gathers', 1), ('aliased_over_donated', 0.9),
])  # fmt: skip
def test_a_program_that_misses_a_goal_is_named(figure, value):
    sound = {
        'plan_error': 0.1, 'temp_over_arguments': 0.1, 'collectives_per_step': 2, 'vocabulary_gathers': 0,
        'aliased_over_donated': 1.0,
    }  # fmt: skip
    assert scale.missed(compiled(), sound) == []
    (what,) = scale.missed(compiled(), sound | {figure: value})
    assert what.startswith(f'{figure} is {value:.4g}, not ')
    assert len(scale.missed(compiled(), sound | {figure: value}, whole=False)) == (figure != 'plan_error')
    is_free = figure == 'temp_over_arguments'  # where it is gradients and activations
    assert len(scale.missed(compiled()._replace(learns=True), sound | {figure: value})) == (not is_free)


def test_it_ends_with_3_where_a_goal_is_missed(monkeypatch, capsys):
    """Of a program whose peak is a fifth beyond the plan, and which gathers the vocabulary."""
    monkeypatch.setattr(scale, 'devices_of', lambda topology: None)
    monkeypatch.setitem(scale.PROGRAMS, 'chunk', lambda *_: compiled(gathered=2049))
    monkeypatch.setattr(figures, 'append', lambda *args, **fields: None)
    scale.flags.FLAGS.mark_as_parsed()
    asked = flagsaver.flagsaver(topologies=['v5e-8'], programs=['chunk'])
    with asked, pytest.raises(InputError, match=r'chunk on v5e-8: plan_error is 0\.2, not -0\.1 to 0\.1') as error:
        scale.main()
    assert error.value.exit_code == 3


def test_totals_are_of_the_worst(monkeypatch):
    kept = {}
    rows = [
        {'figure': f'{figure}_chunk_{place}', 'value': value, 'goal': goal, 'status': 'measured'}
        for figure, goal, values in (
            ('plan_error', '-0.1 to 0.1', (0.03, -0.05)), ('temp_over_arguments', '<= 0.1', (0.04, 0.02)),
            ('collectives_per_step', '130 by the formula', (130.0, 129.0)),
        )
        for place, value in zip(('v5e_8', 'v5p_8'), values, strict=True)
    ] + [{'figure': 'plan_error', 'value': 9.0, 'goal': '-0.1 to 0.1', 'status': 'measured'}]  # fmt: skip
    monkeypatch.setattr(figures, 'read', lambda table: rows)
    monkeypatch.setattr(figures, 'append', lambda table, figure, samples, **about: kept.update({figure: samples}))
    scale.total()
    assert kept == {'plan_error': [-0.05], 'temp_over_arguments': [0.04], 'collectives_per_step': [-1.0]}


def test_every_published_figure_meets_its_goal():
    rows = [row for row in figures.read(scale.TABLE) if row['status'] == figures.MEASURED]
    assert rows
    missed = [row['figure'] for row in rows if not figures.meets(row['goal'], row['value'])]
    assert not missed


def test_wrong_names_are_refused_before_anything_compiles():
    scale.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(topologies=['v5e-9']), pytest.raises(ConfigError, match="Did you mean 'v5e-8'"):
        scale.main()


def test_nobody_else_imports_the_compiler():
    """It is an extra, and loading it would look for a TPU."""
    root = pathlib.Path(__file__).parents[2]
    files = [path for folder in ('adx', 'launch', 'tools', 'configs') for path in (root / folder).rglob('*.py')]
    named = [path.name for path in files if 'libtpu' in path.read_text() or 'get_topology_desc' in path.read_text()]
    assert named == ['scale.py']


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='the extra tpu-aot is not installed')
@pytest.mark.parametrize(('name', 'error'), [('prefill', 0.5), ('chunk', 0.1), ('tangent', 0.1)])
def test_programs_compiled_for_a_tpu_keep_to_the_plan(name, error):
    """Of two layers. A prefill ends with the last layer's keys and values: of two it reads hardly more than one."""
    command = [sys.executable, '-m', 'tools.bench.scale', '--topologies=v5e-8', f'--programs={name}', '--layers=2']
    on_cpu = os.environ | {'JAX_PLATFORMS': 'cpu'}
    shown = subprocess.run(command, env=on_cpu, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers = json.loads(next(line for line in shown.splitlines() if line.startswith('{')))
    assert abs(numbers['plan_error']) < error
    assert numbers['temp_over_arguments'] < 0.1
    assert numbers['aliased_over_donated'] >= 1
    assert numbers['vocabulary_gathers'] == 0
    assert numbers['collectives_per_step'] == numbers['collectives_by_formula']
