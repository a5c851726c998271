"""What the benchmark of rewrites publishes of a run's traces, on a tiny teacher and its early exit."""

from __future__ import annotations

import dataclasses

import pytest
from absl import flags
from absl.testing import flagsaver
from storage_test import make_trace

from adx import rewriting
from adx.drafting import Rewrite
from adx.experiment import Arm, experiment_hash, identity
from adx.gates import Gates
from adx.rewriters.instructed import Instructed
from adx.storage import Workdir
from adx.workshop import Workshop
from launch.config import load_config
from tests import tiny
from tools.bench import rewrites

TEXTS = [f'First {n} + 4 = {n + 4}, as we saw.\n#### {n + 4}' for n in range(3)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Three traces of which two are told otherwise, at greater length."""
    run = load_config(tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher')))
    one = Rewrite('said', 'plain', Instructed(), Gates(fluency=100.0))
    run = dataclasses.replace(run, arms=(Arm('plain'),), rewrites=(one,))
    path, tokenizer = tmp_path / 'run', tiny.make_tokenizer()
    traces = [
        make_trace(n, request_id=f'gsm8k/train/{n}/0/plain', text=text, tokens=tuple(tokenizer.encode(text)),
                   gold=text.split()[-1])
        for n, text in enumerate(TEXTS)
    ]  # fmt: skip
    with Workdir.open(path, identity(run), experiment_hash(run)) as writer:
        writer.append(traces)
        writer.heartbeat({'totals': {'plain': 3}})
    drafts = {text: [rewriting.drafting.Draft(f'Now it is so.\n{text}' if n else text)] for n, text in enumerate(TEXTS)}

    def write(self, asked, samples, arm):
        return [next(drafts[text] for text in TEXTS if text in one) for one in asked]

    monkeypatch.setattr(Workshop, '_write', write)
    rewriting.rewrite(run, str(path))
    return run, str(path)


def test_figures_are_of_the_traces_that_changed(made):
    run, path = made
    shop = Workshop(run, path)
    found = rewrites.measured(shop, rewrites.pairs(run, Workdir(path), run.rewrites[0]))
    assert found['rewritten'] == ([pytest.approx(2 / 3)], 'of 3 traces')
    assert len(found['length_ratio'][0]) == 2
    assert min(found['length_ratio'][0]) > 1
    assert set(found) == {'rewritten', 'length_ratio', 'nll_added_teacher', 'nll_added_proxy0'}
    traces = list(Workdir(path).traces())[1:]
    before, after = (shop.nll([(one, f'{start}{one.text}') for one in traces]) for start in ('', 'Now it is so.\n'))
    added = [b - a for a, b in zip(before, after, strict=True)]
    assert found['nll_added_teacher'][0] == pytest.approx(added, abs=1e-5)
    assert found['nll_added_proxy0'][0] != pytest.approx(added, abs=1e-5)


def test_a_workdir_without_rewrites_is_named(tmp_path, made, monkeypatch):
    run, _ = made
    flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(rewrites, 'load_config', lambda path: run)
    with (
        flagsaver.flagsaver(config='c', workdir=str(tmp_path), name='tiny'),
        pytest.raises(rewrites.InputError, match='none of the rewrites'),
    ):
        rewrites.main([])
