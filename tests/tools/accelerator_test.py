"""The benchmark of accelerators runs, in small, on what is here, and keeps nothing."""

from __future__ import annotations

import pytest
from absl.testing import flagsaver

from adx.errors import ConfigError
from tools.bench import accelerator


def test_without_an_accelerator_nothing_is_measured():
    accelerator.flags.FLAGS.mark_as_parsed()
    with pytest.raises(ConfigError, match='--trial shows'):
        accelerator.main()


@pytest.mark.slow
def test_a_trial_prints_every_figure_and_keeps_none(monkeypatch, capsys):
    accelerator.flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(accelerator, 'keep', None)
    with flagsaver.flagsaver(trial=True, batches=['4', '64']):
        accelerator.main()
    shown = capsys.readouterr().out
    for name in ('roofline_share_gpu', 'defended_over_teacher_only_gpu', 'ads_share_of_bound_gpu',
                 'tangent_over_two_passes_gpu', 'poe_step_ms_gpu'):  # fmt: skip
        assert f'{name}: ' in shown
        assert f'{name}_batch_4: ' in shown
