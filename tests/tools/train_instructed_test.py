"""The testbed's models that do as they are told: what instructions mean, and a trial run."""

from __future__ import annotations

import json
import random

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from studies import SMALL

from adx import checkpoints
from adx.datasets import arithmetic_problems as problems
from adx.datasets.arithmetic_grammar import read_question, read_solution, statements
from adx.datasets.chat import Prompting, encode_conversation
from adx.datasets.tokenizing import load_tokenizer
from adx.models.transformer import make_model
from adx.rewriters.instructed import INSTRUCTIONS
from tools import train_instructed, train_testbed


@pytest.fixture
def tokenizer(tmp_path):
    train_testbed.write_tokenizer(train_testbed.epath.Path(tmp_path / 'tokenizer'), train_instructed.words())
    return load_tokenizer(str(tmp_path / 'tokenizer'))


def drawn(name, count=60):
    """(what is asked, the solution in it, what is answered) of rewriting by one instruction."""
    for i in range(count):
        asked, answer = train_instructed.rewriting(random.Random(i), name=name, clauses=0)
        yield asked, asked.partition('Solution:\n')[2], answer


@pytest.mark.parametrize('task', train_instructed.TASKS.values())
def test_every_word_of_what_is_asked_has_a_token(tokenizer, task):
    unknown, rng = tokenizer.backend.token_to_id('<unk>'), random.Random(0)
    for _ in range(50):
        asked, answer = task(rng)
        prompt, completion = encode_conversation(({'role': 'user', 'content': asked},), answer, tokenizer, Prompting())
        assert unknown not in (*prompt, *completion)
        assert tokenizer.decode(completion) == answer
        assert len(prompt) + len(completion) <= train_instructed.LENGTH


def test_the_words_of_the_testbed_keep_their_tokens(tokenizer, tmp_path):
    train_testbed.write_tokenizer(train_testbed.epath.Path(tmp_path / 'own'))
    own = load_tokenizer(str(tmp_path / 'own'))
    text = 'now Tom: 17 .\nwhat has Tom ?'
    assert tokenizer.encode(text) == own.encode(text)
    assert tokenizer.size > own.size


@pytest.mark.parametrize('name', ['identity', 'paraphrase', 'reorder', 'formalise'])
def test_what_is_said_otherwise_is_the_same(name):
    texts = [(before, after) for _, before, after in drawn(name)]
    for before, after in texts:
        assert sorted(statements(before)) == sorted(statements(after))
        assert train_instructed.same_statements(after, before)
    same = sum(before == after for before, after in texts)
    assert same == len(texts) if name == 'identity' else same < len(texts)


def test_a_paraphrase_leaves_no_step_as_it_was():
    for _, before, after in drawn('paraphrase'):
        steps = {line for line in before.splitlines() if ' so ' in line or ' makes ' in line}
        assert not steps & set(after.splitlines())


def test_a_condensed_solution_has_what_is_needed_and_nothing_else():
    shorter = 0
    for asked, before, after in drawn('condense'):
        question = read_question(asked.partition('Problem:\n')[2].partition('\n')[0])
        solution = read_solution(after)
        assert solution.final == question.value(question.target)
        assert not solution.checks
        used = {operand for step in solution.steps for operand in (step.left, step.right)}
        assert all(step.name in used or step.name == question.target for step in solution.steps)
        shorter += len(after) < len(before)
    assert shorter > 10


def told_by(*clauses, count=60):
    """(solution before, after) of copying with these clauses behind."""
    order = ' '.join([INSTRUCTIONS['identity'], *clauses])
    found = []
    for i in range(count * 200):
        asked, answer = train_instructed.rewriting(random.Random(i), name='identity', clauses=len(clauses))
        if asked.startswith(f'{order}\n'):
            found.append((asked.partition('Solution:\n')[2], answer))
        if len(found) == count:
            break
    return found


def steps(text):
    return [line for line in text.splitlines() if ' so ' in line or ' makes ' in line]


SAID = {
    'Use long sentences.': lambda before, after: all(' with ' in step for step in steps(after)),
    'Use short sentences.': lambda before, after: not any(' with ' in step for step in steps(after)),
    'Check every step in another way.': lambda before, after: (
        after.count('check ') == sum(' times ' not in step for step in steps(after))
    ),
    'Begin with what is asked and work backwards.': lambda before, after: after.startswith('the question is '),
    'Say what is found before how.': lambda before, after: after.startswith('find '),
}


@pytest.mark.parametrize('clause', train_instructed.ADDED)
def test_a_clause_adds_what_it_says(clause):
    pairs = told_by(clause, count=20)
    assert len(pairs) == 20
    assert all(steps(after) for _, after in pairs)
    assert all(SAID[clause](*pair) for pair in pairs)
    assert not all(SAID[clause](before, before) for before, _ in pairs)


def test_a_clause_that_the_testbed_cannot_say_changes_nothing_and_the_last_one_wins():
    assert all(before == after for before, after in told_by('Use the passive voice.', count=20))
    pairs = told_by('Use long sentences.', 'Use short sentences.', count=4)
    assert pairs
    assert all(SAID['Use short sentences.'](*pair) for pair in pairs)


def test_an_attackers_model_learns_no_problem_as_long_as_those_that_are_served():
    for i in range(60):
        for task in (train_instructed.solving, train_instructed.reconstructing):
            asked, answer = task(random.Random(i))
            question = read_question(next(line for line in asked.splitlines() if line.endswith(' ?')))
            solution = read_solution(answer)
            assert solution.final == question.value(question.target)
            needed = {step.name for step in solution.steps}
            assert len(needed) <= 2 + 1  # a detour at most, the one distractor


def test_new_questions_have_an_answer():
    other = 0
    for i in range(100):
        asked, answer = train_instructed.asking(random.Random(i))
        before, after = (read_question(text) for text in (asked.splitlines()[-1], answer))
        assert 0 <= after.value(after.target) <= problems.LIMIT
        if asked.startswith(train_instructed.queries.INSTRUCTIONS['evolve']):
            other += len(after.derived) == len(before.derived) + 1
        if asked.startswith(train_instructed.queries.INSTRUCTIONS['paraphrase']):
            assert (after.given, after.derived, after.target) == (before.given, before.derived, before.target)
    assert other > 20


def test_a_harder_problem_is_of_the_split_that_models_may_read():
    harder = 0
    for i in range(60):
        rng = random.Random(i)
        problem = problems.draw_problem(rng, 2, 1, 'train')
        new = train_instructed._harder(rng, problem)
        assert problems.split_of(new) == 'train'
        harder += len(new.definitions) > len(problem.definitions)
    assert harder > 50


def test_new_tokens_change_nothing_for_the_old_ones():
    model = make_model(SMALL)
    params = model.init(0)
    more, stacked = train_instructed.extended(model, params, SMALL.vocab_size + 50, 1)
    wider = {path: w[0] for path, w in stacked.items()}
    tokens_BL = jnp.asarray([[5, 9, 11, 30]])
    positions_BL = jnp.arange(4)[None]
    old, new = (np.asarray(m.apply(p, tokens_BL, positions_BL)[0]) for m, p in ((model, params), (more, wider)))
    np.testing.assert_allclose(new[..., : SMALL.vocab_size], old[..., : SMALL.vocab_size], rtol=1e-5, atol=1e-5)
    assert stacked['embed'].shape == (1, SMALL.vocab_size + 50, SMALL.embed_dim)


def test_another_number_is_another_statement():
    gold = 'Eva: Tom plus 1 is Tom: 2 plus 1 so Eva: 3\n#### 3'
    assert train_instructed.same_statements('Eva: Tom plus 1 or Tom: 2 plus 1 makes Eva: 3\n#### 3', gold)
    assert not train_instructed.same_statements('Eva: Tom plus 1 or Tom: 2 plus 1 makes Eva: 4\n#### 3', gold)
    assert not train_instructed.same_statements('Eva: Tom plus 1 or Tom: 2 plus 1 makes Eva: 3\n#### 4', gold)
    assert not train_instructed.same_statements('so it is\n' + gold, gold)


def test_a_trial_makes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    train_testbed.flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(train_testbed, 'EXAM', 8)
    with flagsaver.flagsaver(out=str(tmp_path / 'out'), only=['testbed-attacker'], steps=4):
        train_instructed.main()
        train_instructed.main()
    assert 'testbed-attacker is there' in capsys.readouterr().out
    loaded = checkpoints.load(str(tmp_path / 'out' / 'testbed-attacker'))
    assert loaded.model.config.vocab_size == load_tokenizer(str(tmp_path / 'out' / 'testbed-attacker')).size
    record = json.loads((tmp_path / 'out' / 'testbed-attacker' / 'testbed.json').read_text())
    assert record['source'] == 'testbed-student-wide'
    assert {'paraphrasing', 'exactly paraphrasing', 'solving', 'reconstructing'} <= set(record['accuracy'])
