"""The benchmark of training on accelerators runs, in small, on what is here, and keeps nothing."""

from __future__ import annotations

import pytest
from absl.testing import flagsaver

from adx.errors import ConfigError
from adx.models import PRESETS
from tools.bench import accelerator_training as bench


def test_without_an_accelerator_nothing_is_measured():
    bench.flags.FLAGS.mark_as_parsed()
    with pytest.raises(ConfigError, match='--trial shows'):
        bench.main()


def test_operations_are_three_passes_of_products_and_of_attention():
    """SmolLM2 of 134.5M weights, 30 layers of 9 heads of 64: twice a weight, and of a query 576 numbers against each of
    the row's keys and as many of values, for the pass and twice for its gradient."""
    weights, attention = 134_515_008, 30 * 576 * 2 * 1024
    assert bench.operations(PRESETS['smollm2-135m'], weights, 1024) == 3 * 2 * (weights + attention)


@pytest.mark.slow
def test_a_trial_prints_every_figure_and_keeps_none(monkeypatch, capsys):
    bench.flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(bench.figures, 'append', None)
    with flagsaver.flagsaver(trial=True):
        bench.main()
    shown = capsys.readouterr().out
    for name in ('model_flops_utilisation_gpu: ', 'model_flops_utilisation_gpu_1b: ', 'stack_speedup_gpu: '):
        assert name in shown
