"""The transfer matrix: predictions against finite steps of gradient descent, and the whole on tiny models."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from absl.testing import flagsaver
from studies import make_study, write_holdout, write_students, write_traces

from adx import assessing, transfer
from adx.batching import batches
from adx.errors import InputError
from adx.evaluation import Likelihood
from adx.gradients import Differentiator
from adx.mesh import make_mesh
from tools import transfer_matrix
from tools.bench import transfer as bench


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    students = write_students(tmp_path_factory.mktemp('students'))
    study = make_study(students, seeds=(0,))
    return dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, learning_rate=1e-2))


@pytest.fixture(scope='module')
def path(study, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('study'))
    write_traces(study, path)
    write_holdout(study, path)
    return path


def subject(study, path, groups=4, size=3):
    drawn = transfer._draw(study, path, 0, 'plain', groups, size)
    return transfer._subject(study, path, 0, study.students[0], drawn)


def test_without_holdout_traces_there_is_no_matrix(study, tmp_path):
    write_traces(study, str(tmp_path))
    with pytest.raises(InputError, match='no clean holdout traces'):
        subject(study, str(tmp_path))


def test_a_prediction_is_the_slope_of_a_step_of_gradient_descent(study, path):
    one = subject(study, path)
    model, params = one.loaded.model, one.loaded.params
    taker, likelihood, h = Differentiator(model, make_mesh()), Likelihood(model), 1e-2
    for group, predicted in zip(one.groups, transfer.predictions(one), strict=True):
        g, _, _ = taker.mean_gradient(params, [batch for _, batch in batches(group, taker.rows)])
        ends = [
            likelihood.mean({name: w - sign * h * g[name] for name, w in params.items()}, one.held) for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(predicted, rel=0.03)


def test_the_matrix_is_measured_kept_and_reported(study, path, capsys):
    with pytest.raises(InputError, match='wanted; take fewer'):
        transfer.transfer(study, path, 'plain', groups=20, size=2)
    cells = transfer.transfer(study, path, 'plain', groups=20, size=1)
    proxy = study.experiment.proxies[0].source
    assert [(cell.predictor, cell.model) for cell in cells] == [(proxy, proxy), (proxy, 'second')]
    assert cells[0].rho.value > 0.5  # on itself, by a step of Adam where gradient descent was predicted
    assert all(cell.n == 20 and cell.rho.low <= cell.rho.value <= cell.rho.high for cell in cells)
    assert transfer.read(path) == cells
    assert np.isfinite(cells[1].rho.value)
    assert bench.samples(study, path, 20, 1) == {
        f'{pathlib.Path(proxy).name}_to_{pathlib.Path(cell.model).name}'.replace('-', '_'): [cell.rho.value]
        for cell in cells
    }


def test_traces_that_a_model_cannot_read_are_counted(study, path, monkeypatch):
    whole = [example for group in subject(study, path).groups for example in group]
    longest = max(len(example.prompt) + len(example.completion) for example in whole)
    short = dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, length=longest - 1))
    left = [example for group in subject(short, path).groups for example in group]
    assert len(left) < len(whole)
    monkeypatch.setattr(transfer, 'LEAST', 4)
    cells = transfer.measure(short, path, 0, 'plain', 4, 3)
    assert cells[0].unread > 0
    assert f'without {cells[0].unread} traces' in cells[0].text


def test_the_program_prints_a_line_a_cell(study, path, monkeypatch, capsys):
    monkeypatch.setattr(transfer_matrix, 'load_config', lambda _: study)
    transfer_matrix.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='x', workdir=path, arm='poe', groups=20, size=1):
        transfer_matrix.main()
    assert capsys.readouterr().out.count('rho') == 2
    assessing.report(study, path)
    assert 'Whether a proxy' in (transfer.place_of(path).parent / 'report.html').read_text()
