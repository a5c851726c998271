"""The extractor and graders: stated forms, adversarial text, exact numbers, gold answers of real data."""

from __future__ import annotations

import json
import os
import pathlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adx import grading
from adx.datasets.competition_math import CompetitionMath
from adx.datasets.gsm8k import SAMPLE
from adx.grading import (
    extract,
    extract_choice,
    final_forms,
    math_grade,
    numeric_grade,
    same_answer,
    same_number,
    to_number,
)

DATA = os.environ.get('ADX_DATA', '')
needs_data = pytest.mark.skipif(not DATA, reason='ADX_DATA names no folder with gsm8k/ and math500/')


def jsonl(path: pathlib.Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().split(b'\n') if line]


@pytest.mark.parametrize(
    ('text', 'stated'),
    [
        ('so \\boxed{42}', '42'),
        ('\\boxed{\\frac{1}{\\sqrt{2}}}', '\\frac{1}{\\sqrt{2}}'),
        ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
        ('first \\boxed{1}, no: \\boxed{2}', '2'),
        ('\\fbox{7}', '7'),
        ('\\boxed{3} and then \\boxed{\\frac{4', '3'),
        ('a { that never closes \\boxed{5}', '5'),
        ('#### 1,000', '1,000'),
        ('####$18 ', '$18'),
        ('#### 18 eggs.', '18 eggs'),
        ('#### 9 * 2 = 18', '9 * 2 = 18'),
        ('\\boxed{1}\n#### 2', '2'),
        ('The final answer is 18.', '18'),
        ('**Final Answer:** 18', '18'),
        ('The final answer is: $\\boxed{18}$.', '18'),
        ('The answer is **$3.50**. I hope this helps 2 people.', '$3.50'),
        ('Answer:\n\n18', '18'),
        ('The answer is 1. No, the answer is 2.', '2'),
        ('The answer is 5! = 120.', '5! = 120'),
        ('the answer is Evelyn.', 'Evelyn'),
        ('Final answer is \\(x + 1\\).', 'x + 1'),
    ],
)
def test_takes_the_last_complete_form(text, stated):
    assert extract(text) == stated


@pytest.mark.parametrize(
    'text',
    [
        '', 'It is 18.', '\\boxed{18', 'the answer is \\boxed{18', 'The final answer is', '\\boxed{}',
        '#### 1. Find the eggs', '#### Step 2', '##### 18', 'Our answer is correct.',
        'To check our answer: 3 * 6 = 18', 'The answer is positive because of many things',
    ],
)  # fmt: skip
def test_what_is_no_complete_form_states_nothing(text):
    assert extract(text) is None
    assert not numeric_grade(text, '18')


def test_lenient_takes_the_last_number_of_any_text():
    assert extract('16 - 3 eggs leave 13', strict=False) == '13'
    assert extract('16 - 5', strict=False) == '5'
    assert extract('from 4 to -5', strict=False) == '-5'
    assert extract('no number', strict=False) is None
    assert numeric_grade('she has 13 eggs left', '13', strict=False)
    assert not numeric_grade('she has 13 eggs left', '13')


def test_every_form_is_kept_in_order():
    assert final_forms('\\boxed{1} the answer is 2.\n#### 3') == ['1', '2', '3']


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1,000', 1000), ('1000.0', 1000), ('1{,}000', 1000), ('1,\\!000', 1000), ('1\\,000', 1000),
        ('1,234,567', 1234567),
        ('$1,000.50', Fraction(2001, 2)), ('\\$5', 5), ('-5', -5), ('−5', -5), ('-$5', -5), ('$-5', -5),
        ('50%', 50),
        ('50\\%', 50), ('45^\\circ', 45), ('18 dollars a day', 18), ('18\\text{ ways}', 18),
        ('about 18', 18), ('18/day', 18),
        ('60m', 60), ('3/4', Fraction(3, 4)), ('\\frac{3}{4}', Fraction(3, 4)),
        ('-\\dfrac34', Fraction(-3, 4)),
        ('2 1/3 cups', Fraction(7, 3)), ('2\\frac{1}{3}', Fraction(7, 3)), ('.5', Fraction(1, 2)),
        ('x = 5', 5),
        ('16 - 3 = 13 eggs', 13), ('18.', 18),
        ('', None), ('eggs', None), ('3x', None), ('8\\pi', None), ('\\sqrt{5}', None), ('2^5', None),
        ('3 + 4', None),
        ('1,5', None), ('1 000', None), ('2:30', None), ('5 or 6', None), ('(3, 4)', None),
        ('x = 5, y = 7', None),
        ('25_{6}', None), ('1/0', None), ('9' * 5000, None), ('3 \\times 10^5', None),
    ],
)  # fmt: skip
def test_to_number(text, value):
    assert to_number(text) == value


def test_numbers_are_compared_exactly():
    assert same_number('1,000', '1000.0')
    assert same_number('0.5', '\\frac{1}{2}')
    assert not same_number('0.33', '1/3')
    assert not same_number('10000000000000001', '10000000000000000')  # equal as float64
    assert not same_number('eggs', 'eggs')


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_any_spelling_of_a_number_is_that_number(number, decimals):
    spelled = f'{number:,}' + ('.' + '0' * decimals if decimals else '')
    for form in ('\\boxed{%s}', '#### %s', 'The final answer is $%s$.', 'Answer: %s eggs'):
        text = form % spelled
        assert numeric_grade(text, str(number))
        assert not numeric_grade(text, str(number + 1))


@given(st.text(alphabet='\\boxed{}#$ answeri:.,-/0123456789\n*frac()=', max_size=200))
def test_no_text_breaks_the_graders(text):
    numeric_grade(text, '18')
    numeric_grade(text, '18', strict=False)
    extract_choice(text)
    same_answer(text, text)


@pytest.mark.parametrize('piece', ['\\boxed{', '{', '9', '.', '#### ', 'answer is ', ' ', '1/', '$', '('])
def test_degenerate_text_takes_linear_time(piece):
    text = piece * (60_000 // len(piece))
    start = time.perf_counter()
    numeric_grade(text, '18')
    numeric_grade(text, '18', strict=False)
    extract_choice(text)
    assert time.perf_counter() - start < 2  # quadratic time would be minutes


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('The answer is B.', 'B'), ('The answer is (C) because A is wrong.', 'C'),
        ('\\boxed{\\text{(D)}}', 'D'),
        ('**Answer:** A', 'A'), ('Answer: option D', 'D'), ('#### B', 'B'), ('B', 'B'),
        ('I think:\n(C)\n', 'C'),
        ('The answer is B. Paris', 'B'), ('\\boxed{A} no, \\boxed{B}', 'B'),
        ('Both A and B look right', None),
        ('The answer is Berlin.', None), ('', None),
    ],
)  # fmt: skip
def test_extract_choice(text, letter):
    assert extract_choice(text) == letter


@pytest.mark.parametrize(
    ('answer', 'gold', 'same'),
    [
        ('\\dfrac{1}{2}', '\\frac12', True),
        ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3,\\frac{\\pi}{2})', True),
        ('10,\\!000', '10000', True), ('90^\\circ', '90', True), ('\\text{Evelyn}', 'evelyn', True),
        ('864 \\mbox{ inches}^2', '864', True), ('\\sqrt 2', '\\sqrt{2}', True),
        ('0.5', '\\frac{1}{2}', True),
        ('3x', '3', False), ('(1,2)', '(2,1)', False), ('2', '3', False), ('2516_7', '2516_8', False),
        ('x=5,y=7', '7', False),
    ],
)  # fmt: skip
def test_same_answer(answer, gold, same):
    assert same_answer(answer, gold) is same


def test_math_is_not_graded_without_math_verify(monkeypatch):
    monkeypatch.setattr(grading, '_math_verify', lambda: False)
    with pytest.raises(grading.ConfigError, match=r"pip install -e '\.\[math\]'"):
        math_grade('\\boxed{\\tfrac12}', '0.5')


def test_math_verify_in_its_process():
    assert math_grade('\\boxed{\\tfrac12}', '0.5')
    assert not math_grade('1/2', '0.5')  # no final answer
    assert math_grade('\\boxed{x^2 + 2x + 1}', '(x+1)^2')
    assert math_grade('\\boxed{\\{2, 1\\}}', '\\{1, 2\\}')
    assert not math_grade('\\boxed{x^2 + 2x}', '(x+1)^2')


@pytest.fixture
def verifier(monkeypatch):
    made = grading._Verifier()
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
ECHO = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(int('same' in line), flush=True)"


def test_the_worker_answers_and_restarts_when_it_dies(verifier, monkeypatch):
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', ECHO)
    assert verifier.equal('same', 'x')
    assert not verifier.equal('other', 'x')
    verifier.process.kill()
    verifier.process.wait()
    assert verifier.equal('same', 'x')


def test_the_worker_is_killed_at_its_time_limit(verifier, monkeypatch):
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', SLEEP)
    monkeypatch.setattr(grading._Verifier, 'SECONDS', 0.2)
    with pytest.raises(TimeoutError):
        verifier.equal('1', '2')
    assert verifier.process.poll() is not None


DIES = "import os\nprint('ready', flush=True)\ninput()\nos._exit(1)"


def test_a_worker_that_dies_at_a_question_is_no_plain_no(verifier, monkeypatch):
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', DIES)
    with pytest.raises(TimeoutError, match='died'):
        verifier.equal('1', '2')
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', ECHO)
    assert verifier.equal('same', 'x')
    verifier.process.kill()
    verifier.process.wait()
    monkeypatch.setattr(verifier.process, 'poll', lambda: None)  # it dies between that look and the question
    with pytest.raises(TimeoutError, match='died'):
        verifier.equal('same', 'x')


def test_a_worker_that_says_that_it_was_late_is_no_plain_no(verifier, monkeypatch):
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', ECHO.replace("int('same' in line)", "'late'"))
    monkeypatch.setattr(grading, '_math_verify', lambda: True)
    monkeypatch.setattr(grading, '_verifier', lambda: verifier)
    math = CompetitionMath()
    assert not math.grade('\\boxed{x^2}', '(x+1)^2')
    assert math.reader().read('\\boxed{x^2}', '(x+1)^2').timed_out


def test_a_worker_that_cannot_start_is_an_error_and_no_wrong_grade(verifier, monkeypatch):
    monkeypatch.setattr(grading._Verifier, 'PROGRAM', 'raise ImportError')
    with pytest.raises(grading.ConfigError, match='math-verify is installed and cannot be imported'):
        verifier.equal('1', '1')


def check_gsm8k(folder: pathlib.Path) -> int:
    """Every gold answer grades as itself and as no other, strict and lenient; returns how many there are."""
    rows = jsonl(folder / 'train.jsonl') + jsonl(folder / 'test.jsonl')
    for row in rows:
        gold = row['answer'].rsplit('####', 1)[1].strip()
        assert numeric_grade(row['answer'], gold), row
        assert numeric_grade(row['answer'], gold, strict=False), row
        assert not numeric_grade(row['answer'], gold + '1'), row
    return len(rows)


def test_gold_answers_of_the_sample():
    assert check_gsm8k(SAMPLE) == 128


@needs_data
def test_gold_answers_of_all_of_gsm8k():
    assert check_gsm8k(pathlib.Path(DATA) / 'gsm8k') == 8792


@needs_data
def test_the_solutions_of_math_500_state_its_answers():
    rows = jsonl(pathlib.Path(DATA) / 'math500' / 'test.jsonl')
    assert len(rows) == 500
    assert [row for row in rows if not grading.text_grade(row['solution'], row['answer'])] == []
