"""The bridge's models, made in a trial out of random ones that have SmolLM2's and Gemma's names."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
from absl.testing import flagsaver

from adx import checkpoints
from adx.datasets.chat import Prompting, encode_prompt
from adx.datasets.tokenizing import load_tokenizer
from adx.decoding.engine import DecodeConfig
from adx.experiment import ModelSource
from adx.study import check
from configs import bridge
from tools import train_bridge, train_testbed


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The directory of the models; every part is the first layer of one random model without a template."""
    tiny.write_teacher(tmp_path / 'cache' / 'base')
    (tmp_path / 'cache' / 'base' / 'chat_template.jinja').unlink()
    for name, part in train_bridge.PARTS.items():
        source = ModelSource(str(tmp_path / 'cache' / 'base'), exit_layer=1)
        monkeypatch.setitem(train_bridge.PARTS, name, dataclasses.replace(part, source=source))
    monkeypatch.setattr(train_testbed, 'EXAM', 4)
    monkeypatch.setattr(train_bridge, 'DECODE', DecodeConfig(slots=4, chunk=4, buckets=(448,), cache_length=452))
    train_testbed.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(out=str(tmp_path / 'out'), only=['bridge-proxy', 'bridge-student-gemma'], steps=1):
        yield tmp_path / 'out'


def test_a_trial_makes_models_that_speak_and_load(out, capsys):
    train_bridge.main()
    for name in ('bridge-proxy', 'bridge-student-gemma'):
        loaded, tokenizer = checkpoints.load(str(out / name)), load_tokenizer(str(out / name))
        assert loaded.model.config.num_layers == 1
        asked = encode_prompt(({'role': 'user', 'content': 'how many has Bob ?'},), tokenizer, Prompting())
        assert tokenizer.decode(asked).startswith('Question: how many has Bob ?\nAnswer:')
        record = json.loads((out / name / 'testbed.json').read_text())
        assert sorted(record['accuracy']) == ['test-3', 'tune-1', 'tune-2', 'tune-3']
    train_bridge.main()
    assert 'bridge-proxy is there' in capsys.readouterr().out


def test_the_config_is_a_study_on_these_models():
    study = bridge.study()
    check(study)
    sources = [study.experiment.teacher, *study.experiment.proxies, *(student.source for student in study.students)]
    assert {source.source for source in sources} == set(train_bridge.PARTS)
