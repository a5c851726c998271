"""The notebook API on a tiny model: decode, interrupt, continue, show."""

from __future__ import annotations

import dataclasses

import pytest

import adx
from adx.defences import Antidistillation
from adx.errors import ConfigError, InputError
from adx.experiment import Derivative
from adx.types import POISONED
from launch.config import load_config
from tests import tiny


def test_an_interrupted_run_keeps_what_is_finished_and_continues(tmp_path, monkeypatch, capsys):
    config = tmp_path / 'config.py'
    tiny.write_config(config, tiny.write_teacher(tmp_path / 'teacher'))
    experiment = load_config(str(config))
    models = adx.load(experiment)
    decode = adx.session.generation.decode

    def interrupted(*args):
        for i, item in enumerate(decode(*args)):
            if i == 2:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(adx.session.generation, 'decode', interrupted)
    run = adx.decode(experiment, models, arms=[adx.Arm('plain'), adx.Arm('poe', adx.ProductOfExperts(0.3))])
    assert len(run.traces) == 2
    assert 'stopped with 2 of 6 traces' in capsys.readouterr().out
    monkeypatch.undo()
    first = dict(run.traces)
    assert len(run().traces) == 6
    assert first.items() <= run.traces.items()
    page = run._repr_html_()
    assert 'poe' in page
    assert 'plain' in str(run)


def test_a_poisoned_trace_is_not_finished(tmp_path, monkeypatch, capsys):
    experiment = tiny.one_arm(tmp_path)
    models, decode = adx.load(experiment), adx.session.generation.decode

    def broken(*given):
        for i, (engine, trace) in enumerate(decode(*given)):
            yield engine, dataclasses.replace(trace, stop=POISONED) if i == 0 else trace

    monkeypatch.setattr(adx.session.generation, 'decode', broken)
    run = adx.decode(experiment, models)
    assert len(run.traces) == 2
    assert '1 traces are left out, first gsm8k/train/' in capsys.readouterr().out
    monkeypatch.undo()
    assert len(run().traces) == 3


def test_tokens_that_fell_back_are_told(tmp_path, monkeypatch, capsys):
    experiment = tiny.one_arm(tmp_path)
    models, decode = adx.load(experiment), adx.session.generation.decode

    def fallen(*given):
        for engine, trace in decode(*given):
            fallback = [1, 1, *[0] * (len(trace.tokens) - 2)]
            yield engine, dataclasses.replace(trace, statistics={'fallback': fallback})

    monkeypatch.setattr(adx.session.generation, 'decode', fallen)
    run = adx.decode(experiment, models)
    assert "6 tokens are the plain teacher's: a proxy gave nan or inf" in capsys.readouterr().out
    assert '6 tokens fell back to the teacher' in run._repr_html_()


def test_models_of_other_rules_serve_one_that_wants_derivatives(tmp_path):
    """Of a proxy that is an early exit of the teacher they hold nothing but a translator, and here there is none."""
    experiment = load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))
    settings = Derivative(prompts=1, samples=1, max_new_tokens=4)
    experiment = dataclasses.replace(experiment, limit=1, derivative=settings)
    arms = [adx.Arm('sloped', Antidistillation())]
    models = adx.load(experiment)
    assert models.weights.groups == ({},)
    (found,) = adx.decode(experiment, models, arms=arms).traces.values()
    (expected,) = adx.decode(experiment, arms=arms).traces.values()
    assert found.tokens == expected.tokens


def test_the_split_test_is_not_read_without_a_workdir(tmp_path):
    experiment = dataclasses.replace(tiny.one_arm(tmp_path), split='test')
    with pytest.raises(ConfigError, match='--stages=freeze,generate'):
        adx.decode(experiment)


def test_prompts_that_are_given_may_not_be_of_the_holdout(tmp_path):
    run = tiny.one_arm(tmp_path)
    proxies = (dataclasses.replace(run.teacher, exit_layer=1),)
    run = dataclasses.replace(run, proxies=proxies, arms=(adx.Arm('sloped', Antidistillation()),))
    held = run.dataset.prompts('holdout')[:1]
    with pytest.raises(InputError, match='1 prompts of the run are in the holdout split too'):
        adx.decode(run, None, held)
