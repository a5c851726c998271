"""The memory plan of models that are not there."""

from __future__ import annotations

import pytest
from absl.testing import flagsaver

from adx.errors import ConfigError
from adx.experiment import ModelSource
from launch.config import load_config
from tools import plan_memory


@pytest.fixture(autouse=True)
def parsed():
    plan_memory.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(config='configs/literature_trio.py', machines=['v5e-8', '8xh100']):
        yield


def test_the_trio_resolves_and_has_the_published_sizes(capsys):
    plan_memory.main()
    shown = capsys.readouterr().out
    # Weights as the model cards of the three give them, in billions.
    for line in ('teacher: 7.616 billion', 'proxies 0: 3.086 billion', 'student llama: 3.213 billion'):
        assert line in shown
    assert shown.count('memory per chip of decoding on the mesh 2x1x4') == 2
    assert 'fits' in shown
    assert 'float32 copies         0.0 MiB' in shown
    assert 'training student llama on the mesh 1x1x8' in shown


def test_weights_per_chip_are_the_bytes_of_a_quarter():
    """bfloat16 on four chips; norms stay whole and in float32, so a little more."""
    experiment = load_config('configs/literature_trio.py').experiment
    ensemble, memory = plan_memory.plan(experiment)
    assert memory.teacher_weights == pytest.approx(2 * ensemble.teacher.num_params / 4, rel=0.01)
    assert memory.directions == memory.proxy_weights


def test_an_unknown_machine_or_model_is_named():
    with flagsaver.flagsaver(machines=['v5']), pytest.raises(ConfigError, match="has 'v5'; there are"):
        plan_memory.main()
    with pytest.raises(plan_memory.loading.InputError, match=r'qwen2\.5-4b'):
        plan_memory.config_of(ModelSource('qwen2.5-4b'))
