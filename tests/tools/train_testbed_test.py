"""The testbed's models: their tokenizer, their curriculum, and a trial run that is cut and goes on."""

from __future__ import annotations

import collections
import itertools
import json
import random

import numpy as np
import pytest
from absl.testing import flagsaver
from studies import SMALL

from adx import checkpoints
from adx.datasets import Arithmetic
from adx.datasets.arithmetic_grammar import read_question
from adx.datasets.chat import Prompting, encode_conversation
from adx.datasets.splits import normalise
from adx.datasets.tokenizing import load_tokenizer
from adx.errors import ConfigError
from adx.models import family_of
from adx.models.tiny import PRESETS
from adx.models.transformer import make_model
from configs import testbed_confirm, testbed_ladder, testbed_screen
from tools import train_testbed


@pytest.fixture(autouse=True)
def parsed(tmp_path):
    train_testbed.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(out=str(tmp_path / 'out'), only=['testbed-teacher'], steps=6):
        yield


@pytest.fixture
def tokenizer(tmp_path):
    train_testbed.write_tokenizer(train_testbed.epath.Path(tmp_path / 'tokenizer'))
    return load_tokenizer(str(tmp_path / 'tokenizer'))


def test_the_tokenizer_gives_every_text_back(tokenizer):
    for question, text in itertools.islice(Arithmetic((1, 4), 2).lessons('x'), 200):
        prompt, completion = encode_conversation(({'role': 'user', 'content': question},), text, tokenizer, Prompting())
        assert tokenizer.decode(completion) == text
        assert tokenizer.decode(prompt) == question
        assert tokenizer.backend.token_to_id('<unk>') not in (*prompt, *completion)


def test_a_word_is_a_token(tokenizer):
    assert len(tokenizer.encode('now Tom: 17 .')) == 4
    assert tokenizer.encode('Tom') == tokenizer.encode('has Tom')[1:]
    assert tokenizer.size == PRESETS['testbed-teacher'].vocab_size


@pytest.mark.parametrize('name', PRESETS)
def test_every_model_has_a_family_that_other_programs_read(name):
    assert family_of(PRESETS[name])
    assert make_model(PRESETS[name]).num_params < 1.1e6


@pytest.mark.slow  # it writes all that the proxies have read: a minute or two
def test_no_question_that_a_proxy_read_is_one_of_a_study(tokenizer, monkeypatch):
    read, draw = set(), train_testbed.Phase.draw

    def noted(*given):
        question, text = draw(*given)
        read.add(normalise(question))
        return question, text

    monkeypatch.setattr(train_testbed.Phase, 'draw', noted)
    with flagsaver.flagsaver(steps=0):
        for shard, name in enumerate(PRESETS):
            if 'proxy' in name:
                (plan,) = train_testbed.make_plans(name, shard)
                lessons = train_testbed.Lessons(plan, tokenizer)
                for step in range(plan.recipe.steps):
                    lessons(step)
    assert len(read) > 50_000
    asked = {
        normalise(prompt.messages[-1]['content'])
        for config, split in itertools.product((testbed_screen, testbed_confirm, testbed_ladder), ('train', 'test'))
        for prompt in config.study().experiment.dataset.prompts(split)
    }
    assert len(asked) > 50_000
    assert not read & asked


def test_weights_fit_in_what_may_be_shipped():
    assert sum(2 * make_model(config).num_params for config in PRESETS.values()) < 16e6


def test_phases_are_met_as_they_say():
    rng = random.Random(0)
    phase = train_testbed.Phase(1.0, 1, 1, (0, 2))
    kinds = collections.Counter()
    for _ in range(400):
        question, _ = phase.draw(rng)
        kinds['easier' if question.endswith('what has all ?') else len(read_question(question).derived)] += 1
    assert kinds['easier'] == pytest.approx(200, abs=40)  # 4 standard errors of 400 draws at 1/2
    assert set(kinds) <= {'easier', 2, 3}  # two steps, with up to one distractor


def test_rows_are_a_function_of_the_step(tokenizer):
    plan = train_testbed.make_plans('testbed-teacher', 0)[0]
    first, again, other = (train_testbed.Lessons(plan, tokenizer)(step) for step in (3, 3, 4))
    np.testing.assert_array_equal(first.tokens_BL, again.tokens_BL)
    assert (first.tokens_BL != other.tokens_BL).any()
    assert first.tokens_BL.shape == (1, plan.recipe.rows, train_testbed.LENGTH)
    assert np.mean(first.segments_BL > 0) > 0.8


def test_a_trial_makes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(train_testbed.PRESETS, 'testbed-teacher', SMALL)
    monkeypatch.setattr(train_testbed, 'EXAM', 16)
    stopped = []

    def stop(*args):
        stopped.append(args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_testbed, 'examine', stop)
        with pytest.raises(KeyboardInterrupt):
            train_testbed.main()
    place, clock = tmp_path / 'out' / 'testbed-teacher', tmp_path / 'out' / 'training' / 'testbed-teacher.seconds'
    before = float(clock.read_text())
    clock.write_text(f'{before + 1000}')  # of processes before
    with monkeypatch.context() as patch:
        written = lambda partial, *more: stop(partial, [*partial.iterdir()])  # noqa: E731
        patch.setattr(checkpoints.safetensors_io, 'write_shards', written)
        with pytest.raises(KeyboardInterrupt):
            train_testbed.main()
    assert not place.exists()
    assert 'testbed.json' in {file.name for file in stopped[1][1]}  # what is there has its record
    train_testbed.main()
    loaded = checkpoints.load(str(place))
    np.testing.assert_allclose(loaded.params['embed'], stopped[0][1]['embed'], rtol=1e-3)  # kept as float16
    record = json.loads((place / 'testbed.json').read_text())
    assert record['steps'] == 12  # two rounds of the trial's 6
    assert 1000 + before < record['seconds'] < 1000 + before + 600
    assert sorted(record['accuracy']) == ['test-3', 'tune-1', 'tune-2', 'tune-3']
    train_testbed.main()
    assert 'testbed-teacher is there' in capsys.readouterr().out


def test_an_unknown_model_is_named():
    with pytest.raises(ConfigError, match=r"--only has 'testbed-techer'.*Did you mean 'testbed-teacher'"):
        train_testbed.chosen(['testbed-techer'])
