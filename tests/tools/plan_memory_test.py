"""The plan of models and machines that are not there."""

from __future__ import annotations

import re

import pytest
from absl.testing import flagsaver

from adx.errors import ConfigError
from adx.experiment import ModelSource
from launch.config import load_config
from tools import plan_memory


@pytest.fixture(autouse=True)
def parsed():
    plan_memory.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='configs/literature_trio.py', machines=['v5e-8'], price=['v5e=1.2']):
        yield


def test_the_trio_resolves_and_has_the_published_sizes(capsys):
    with flagsaver.flagsaver(machines=['v5e-8', 'h100-8'], slots=['64', '128']):
        plan_memory.main()
    shown = capsys.readouterr().out
    # Weights as the model cards of the three give them, in billions.
    for line in ('teacher: 7.616 billion', 'proxies 0: 3.086 billion', 'student llama: 3.213 billion'):
        assert line in shown
    first, second = shown.split('h100-8, decoding at best')
    assert 'best: mesh 2x1x4 with 128 slots' in first
    assert re.search(r'8x1x1 +64  cannot: needs \d+\.\d GB a chip and it has 16', first)
    assert re.search(r'2x1x4 +64 .* 0\.\d\d$', first, re.MULTILINE)
    assert re.search(r'2x1x4 +64 .* unknown$', second, re.MULTILINE)
    assert 'float32 copies         0.0 MiB' in shown
    assert 'training student llama on the mesh 1x1x8' in shown


def test_weights_per_chip_are_the_bytes_of_a_quarter():
    """bfloat16 on four chips; norms stay whole and in float32, so a little more."""
    experiment = load_config('configs/literature_trio.py').experiment
    ensemble, memory = plan_memory.plan(experiment)
    assert memory.teacher_weights == pytest.approx(2 * ensemble.teacher.num_params / 4, rel=0.01)
    assert memory.directions == memory.proxy_weights


def test_a_machine_without_a_mesh_that_fits_says_so(capsys):
    experiment = load_config('configs/literature_trio.py').experiment
    plan_memory.show(experiment, 'v5e', 2, None)
    shown = capsys.readouterr().out
    assert shown.count('cannot: ') == 3
    assert shown.endswith('no mesh can run; take more chips, fewer slots or a shorter cache\n')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'machines': ['v5']}, "has 'v5'; there are"),
        ({'machines': ['v5e-0']}, "has 'v5e-0'; there are"),
        ({'price': ['h20=1']}, r"has 'h20=1'; kinds of chips are .*Did you mean 'h200'"),
        ({'price': ['v5e=cheap']}, "has 'v5e=cheap'; it must be like v5e=1.2"),
    ],
)
def test_a_wrong_machine_or_price_is_named(flags, message):
    with flagsaver.flagsaver(**flags), pytest.raises(ConfigError, match=message):
        plan_memory.main()


def test_an_unknown_model_is_named():
    with pytest.raises(plan_memory.loading.InputError, match=r'qwen2\.5-4b'):
        plan_memory.config_of(ModelSource('qwen2.5-4b'))
