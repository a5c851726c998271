"""The arithmetic testbed: what is written is solved and read by a grammar that shares no code with the writer."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from adx.datasets import Arithmetic
from adx.datasets import arithmetic_problems as problems
from adx.datasets.arithmetic_grammar import canonicalise, read_question, read_solution, statements
from adx.datasets.splits import SPLITS
from adx.errors import ConfigError
from adx.marks import places, put

QUESTION = 'Tom: 7 . now Bob: Tom minus Ann . we know Ann: 3 . Eva: Bob times 2 . how many has Eva ?'


@pytest.mark.parametrize('again', ['Tom: Ann plus 1', 'Tom: 8'])
def test_who_has_two_things_is_no_question(again):
    question = f'Tom: 7 . {again} . Ann: 3 . what has Tom ?'
    with pytest.raises(ValueError, match='says again what Tom has'):
        read_question(question)
    assert Arithmetic().render(question, 'Tom: Ann plus 1 is Ann: 3 plus 1 so Tom: 4\n#### 4', 1) == []


def lessons(count, **fields):
    return list(itertools.islice(Arithmetic(**fields).lessons('shard'), count))


def test_the_grammar_solves_what_was_written():
    for split in SPLITS:
        for prompt in Arithmetic(steps=(1, 5), distractors=3, size=60).prompts(split):
            question = read_question(prompt.messages[0]['content'])
            assert question.value(question.target) == int(prompt.answer)


def test_solutions_are_true_complete_and_end_in_the_answer():
    for question, text in lessons(300, steps=(1, 5), distractors=3):
        asked, solution = read_question(question), read_solution(text)
        assert not solution.other
        assert all(true for _, true in statements(text))
        assert solution.final == asked.value(asked.target)
        assert all(step.number == asked.value(step.name) for step in solution.steps)


def test_other_tellings_of_a_solution_are_true_and_complete_too():
    for question, text in lessons(50, steps=(1, 5), distractors=3):
        found = Arithmetic().render(question, text, 4)
        assert len(found) == 4
        for other in found:
            solution = read_solution(other)
            assert not solution.other
            assert all(true for _, true in statements(other))
            assert solution.final == read_solution(text).final
    assert len(set(found)) > 1
    assert found == Arithmetic().render(question, text, 4)
    plain = Arithmetic().render(question, text, 4, 'first')
    assert {Arithmetic().canonicalise(question, one) for one in plain} == {Arithmetic().canonicalise(question, text)}
    assert all(' so ' in line and 'makes' not in line for one in plain for line in one.splitlines()[:-1])
    with pytest.raises(ConfigError, match="voice 'loud' is unknown"):
        Arithmetic().render(question, text, 1, 'loud')
    assert Arithmetic().render(question, 'no solution', 4) == []
    assert Arithmetic().render('Tom: Ann plus 1 . Ann: Tom minus 1 . how many has Tom ?', '#### 1', 4) == []
    assert Arithmetic().render('what is this ?', text, 4) == []


def test_a_planted_definition_is_recognised_and_states_nothing():
    question, text = lessons(1)[0]
    pair = Arithmetic().forge(random.Random(0))
    marked = put(text, places(text, text.index('####'))[-1], pair)
    assert pair.line in marked.splitlines()
    assert read_solution(marked) == read_solution(text)
    assert statements(marked) == statements(text)
    assert canonicalise(question, marked) == canonicalise(question, text)


def test_the_number_of_steps_is_what_was_asked_for():
    rng = random.Random(0)
    for steps in (1, 3, 5):
        problem = problems.draw_problem(rng, steps, 2, 'train')
        assert len(problem.needed) == steps
        assert len(problem.definitions) == steps + 2


def test_splits_are_apart_and_test_is_worded_otherwise():
    dataset = Arithmetic(steps=(1, 2), size=200)
    texts = {split: {prompt.messages[0]['content'] for prompt in dataset.prompts(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert texts[one].isdisjoint(texts[other])
    assert all(text.startswith('now we know ') for text in texts['test'])
    assert not any('now we know' in text for split in SPLITS[:-1] for text in texts[split])


def test_a_problem_has_one_split_whatever_its_words():
    rng = random.Random(1)
    problem = problems.draw_problem(rng, 2, 0, 'tune')
    shuffled = dataclasses.replace(problem, values=dict(reversed(problem.values.items())))
    assert problems.split_of(problem) == problems.split_of(shuffled) == 'tune'


def test_a_larger_size_keeps_the_rows():
    small, large = (Arithmetic(size=size).prompts('tune') for size in (5, 9))
    assert small == large[:5]


def test_another_seed_or_shard_is_other_text():
    assert Arithmetic(size=3).prompts('tune') != Arithmetic(size=3, seed=1).prompts('tune')
    a, b = (list(itertools.islice(Arithmetic().lessons(shard), 50)) for shard in 'ab')
    assert not set(a) & set(b)


def test_one_question_has_many_solutions():
    rng = random.Random(0)
    problem = problems.draw_problem(rng, 4, 1, 'train')
    texts = {problems.write_solution(rng, problem, problems.draw_voice(rng)) for _ in range(100)}
    assert len(texts) > 30
    assert len({read_solution(text).final for text in texts}) == 1


def test_easier_tasks_are_true():
    rng = random.Random(0)
    for _ in range(20):
        question, text = problems.draw_recall(rng)
        said = question.removesuffix(problems.ALL).strip(' .').split(' . ')
        assert sorted(text.split('\n')) == sorted(said)
    _, text = problems.draw_drill(rng)
    for line in text.split('\n'):
        total, result = line.replace('plus', '+').replace('minus', '-').replace('times', '*').split(' is ')
        assert eval(total) == int(result)


def test_every_word_is_in_the_vocabulary():
    rng = random.Random(0)
    texts = [*itertools.chain(*lessons(300, steps=(1, 4), distractors=2)), *problems.draw_recall(rng)]
    assert {word for text in [*texts, *problems.draw_drill(rng)] for word in text.split()} <= set(problems.WORDS)


def test_canonicalise_puts_steps_in_the_order_of_the_question():
    text = (
        'find Eva\nBob: Tom minus Ann or Tom: 7 minus Ann: 3 makes Bob: 4\ncheck 4 plus 3 is 7\n'
        'Eva: Bob times 2 with Bob: 4 and 2 : 4 times 2 is 8 so Eva: 8\n#### 8'
    )
    standard = (
        'Bob: Tom minus Ann is Tom: 7 minus Ann: 3 so Bob: 4\nEva: Bob times 2 is Bob: 4 times 2 so Eva: 8\n#### 8'
    )
    assert canonicalise(QUESTION, text) == standard
    assert canonicalise(QUESTION, standard) == standard


def test_canonicalise_is_the_same_for_all_solutions_without_detours():
    rng = random.Random(3)
    problem = problems.draw_problem(rng, 4, 2, 'train')
    question = problems.write_question(rng, problem)
    voice = problems.Voice((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), check=0.5, detour=0.0)
    texts = {problems.write_solution(rng, problem, voice) for _ in range(30)}
    assert len(texts) > 1
    assert len({canonicalise(question, text) for text in texts}) == 1


def test_canonicalise_keeps_what_a_solution_states_wrongly():
    assert canonicalise(QUESTION, 'Bob: Tom minus Ann or Tom: 7 minus Ann: 3 makes Bob: 5\n#### 5') == (
        'Bob: Tom minus Ann is Tom: 7 minus Ann: 3 so Bob: 5\n#### 5'
    )


@pytest.mark.parametrize(
    'text', ['', '#### 8', 'Bob: Tom minus Ann or Tom: 7 minus Ann: 3 makes Bob: 4', 'Bob is 4\n#### 4', '??']
)
def test_what_cannot_be_read_has_no_standard_form(text):
    assert canonicalise(QUESTION, text) is None


def test_false_statements_are_counted():
    text = (
        'Bob: Tom minus Ann or Tom: 7 minus Ann: 3 makes Bob: 5\nBob: Tom minus Ann is Tom: 7 plus Ann: 3 so Bob: 10\n'
        'Bob: Tom minus Ann is Tom: 7 minus Ann: 3 so Bob: 4\ncheck 5 plus 3 is 8\nso there\n#### 5'
    )
    assert [true for _, true in statements(text)] == [False, False, True, True]
    assert read_solution(text).other == ('so there',)
    assert statements('#### 5') == []


@pytest.mark.parametrize(
    ('text', 'reason'),
    [('Tom is tall . how many has Tom ?', "'Tom is tall' is no sentence"), ('Tom: 7 . and ?', 'is no question')],
)
def test_a_foreign_question_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_question(text)


def test_an_open_question_is_refused():
    question = read_question('Tom: Bob plus 1 . Bob: Tom minus 1 . how many has Tom ?')
    with pytest.raises(ValueError, match='does not say what Tom has'):
        question.value('Tom')


@pytest.mark.parametrize('fields', [{'steps': (0, 1)}, {'steps': (3, 2)}, {'size': 0}, {'distractors': 9}])
def test_bad_settings_are_named(fields):
    with pytest.raises(ValueError, match='Arithmetic'):
        Arithmetic(**fields).prompts('train')


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split = 'trian' is unknown.*Did you mean 'train'"):
        Arithmetic(size=1).prompts('trian')
