"""A config file that cannot be used is one line that says why."""

from __future__ import annotations

import pytest

from adx.errors import ConfigError
from adx.experiment import Experiment
from launch.config import load_config, load_experiment
from tests import tiny


def test_loads_the_experiment_that_the_file_defines(tmp_path):
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', 'some/teacher'))
    assert isinstance(experiment, Experiment)
    assert experiment.teacher.source == 'some/teacher'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('def experiment(): return {}', r'returned a dict; experiment\(\) must return an Experiment'),
        ('def experiment(): 1 / 0', 'ZeroDivisionError'),
        ('def experiment(:', 'SyntaxError'),
        ('experiments = None', "has no attribute 'experiment'"),
    ],
)
def test_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_lists_the_configs_that_are_there(tmp_path):
    with pytest.raises(ConfigError, match='does not exist; configs here'):
        load_config(str(tmp_path / 'none.py'))


def test_a_seed_is_that_of_a_study():
    study = load_config('configs/testbed_small.py')
    assert load_experiment('configs/testbed_small.py') == study.experiment
    found = [load_experiment('configs/testbed_small.py', seed) for seed in study.seeds]
    assert found == [study.of_seed(seed) for seed in study.seeds]
    with pytest.raises(ConfigError, match='--seed=99 is none of the seeds'):
        load_experiment('configs/testbed_small.py', 99)


def test_an_experiment_has_no_seeds_to_choose_from(tmp_path):
    path = tiny.write_config(tmp_path / 'config.py', 'some/teacher')
    assert load_experiment(path) == load_config(path)
    with pytest.raises(ConfigError, match='seeds are those of a study'):
        load_experiment(path, 0)
