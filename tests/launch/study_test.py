"""A study from its config to its report, by the program, on a teacher that learned to answer at all."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from studies import SMALL

from adx import checkpoints
from adx.batching import Corpus, Example, Stream
from adx.datasets import Arithmetic
from adx.datasets.chat import Prompting, encode_conversation
from adx.datasets.tokenizing import load_tokenizer
from adx.mesh import make_mesh
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.training import Trainer
from tools.train_testbed import write_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from adx.datasets import Arithmetic
from adx.decoding.engine import DecodeConfig
from adx.defences import ProductOfExperts
from adx.experiment import Arm, Experiment, ModelSource
from adx.optimising import Recipe
from adx.study import Student, Study
from adx.types import Sampling


def study():
    model, cold = ModelSource({model!r}), Sampling(temperature=0.3)
    experiment = Experiment(
        dataset=Arithmetic(steps=(1, 1), distractors=0, size=12), teacher=model, proxies=(model,), max_new_tokens=8,
        arms=(Arm('plain', sampling=cold), Arm('poe', ProductOfExperts(gamma=0.5), cold)), disclosure='public',
        decode=DecodeConfig(slots=4, chunk=4, buckets=(48,), cache_length=64, record='scalars'),
    )
    return Study(
        experiment, (Student('tiny', model, seen=True),), recipe=Recipe(rows=4, length=64), learning_rates=(1e-3,),
        budgets=(2,), seeds=(0, 1), exam=6, choice=4, max_new_tokens=8, judge=Student('judge', model),
    )
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A config file of a study whose teacher says '#### 4' to everything."""
    directory = tmp_path_factory.mktemp('study')
    model = make_model(dataclasses.replace(SMALL, embed_dim=32))
    write_tokenizer(checkpoints.epath.Path(directory / 'tokenizer'))
    tokenizer = load_tokenizer(str(directory / 'tokenizer'))
    questions = [prompt.messages for prompt in Arithmetic(steps=(1, 1), distractors=0, size=16).prompts('train')]
    examples = [
        Example(str(i), *encode_conversation(messages, '#### 4', tokenizer, Prompting()))
        for i, messages in enumerate(questions)
    ]
    trainer = Trainer(model, make_mesh(), Recipe(learning_rate=2e-2, rows=16, steps=40, length=64))
    state = trainer.start({path: np.asarray(w)[None] for path, w in model.init(0).items()})
    stream = Stream([Corpus(examples)], 16, 64)
    for step in range(40):
        state, _ = trainer.step(state, stream(step))
    params = {path: w[0] for path, w in jax.device_get(trainer.params(state)).items()}
    checkpoints.save_hf(str(directory / 'model'), model, params, write_tokenizer)
    path = directory / 'config.py'
    path.write_text(textwrap.dedent(CONFIG.format(model=str(directory / 'model'))))
    return path


def run(*arguments, code=0):
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-m', 'launch.run', *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_study_runs_to_its_report(config, tmp_path):
    shown = run(f'--config={config}', '--dry_run')
    assert 'students: up to 3 on the first seed' in shown
    assert 'memory per device' in shown
    command = (f'--config={config}', f'--workdir={tmp_path}')
    shown = run(*command, '--stages=generate,distil,assess,report')
    assert shown.count('24 traces decoded') == 2
    assert '8 students graded on tune, 2 on attack_val' in shown  # base, own, clean and defended of two seeds
    assert 'seed 1, poe:' in shown
    content = json.loads((tmp_path / 'private' / 'report' / 'report.json').read_text())
    lost = [row for row in content['rows'] if row['figure'] == 'points_lost']
    assert [(row['arm'], row['n'], row['status']) for row in lost] == [('poe', 2, 'screen')]
    assert (tmp_path / 'private').stat().st_mode & 0o777 == 0o700
    status = json.loads(run('--status', f'--workdir={tmp_path}'))
    assert status['outcomes'] == 10
    assert {seed: one['done'] for seed, one in status['seeds'].items()} == {'0': 24, '1': 24}
    again = run(*command, '--stages=generate,distil,assess,report')
    assert again.count('0 traces decoded') == 2
    foreign = run(*command, '--stages=distil', '--set=recipe.rows=8', code=4)
    assert 'belongs to another study (theirs != ours): recipe.rows: 4 != 8' in foreign
    assert '8 students graded on tune, 2 on attack_val' in again


def test_a_stage_of_the_other_kind_is_named(config, tmp_path):
    shown = run(f'--config={config}', f'--workdir={tmp_path}', '--stages=export', code=2)
    assert '--stages=export is none of a study' in shown
    shown = run('--config=configs/demo.py', f'--workdir={tmp_path}', '--stages=distil', code=2)
    assert '--stages=distil is none of an experiment' in shown
