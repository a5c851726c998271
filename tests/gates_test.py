"""What a rewritten trace must have kept, gate by gate, on texts worked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from adx import gates
from adx.answers import Reader
from adx.datasets.chat import Prompting
from adx.frames import reasoning_words
from adx.gates import Gates, Senses
from adx.grading import numeric_grade
from adx.types import Trace

ORIGINAL = 'Ann has 3 apples and buys 4 more: 3 + 4 = 7.\nThen she gives 2 away: 7 - 2 = 5.\n#### 5'
OTHER_WORDS = 'There are 3 apples, and 4 more make 3 + 4 = 7.\nTwo of them leave, so 7 - 2 = 5 stay.\n#### 5'


def trace(text=ORIGINAL, **fields):
    defaults = {
        'request_id': 'gsm8k/train/0/0/plain', 'messages': ({'role': 'user', 'content': 'How many apples?'},),
        'reasoning': '', 'answer': '', 'tokens': (), 'stop': 'eos', 'prompt_tokens': 1, 'defence': {},
        'sampling': {}, 'seed': 0, 'gold': '5',
    }  # fmt: skip
    return Trace(text=text, **(defaults | fields))


def senses(**fields):
    reasoning = lambda text: reasoning_words(text, Prompting())  # noqa: E731
    return dataclasses.replace(Senses(Reader(numeric_grade), reasoning, lambda text: len(text.split())), **fields)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (OTHER_WORDS, ''),
        (ORIGINAL, ''),
        ('  \n', gates.EMPTY),
        (OTHER_WORDS.replace('#### 5', '#### 6'), gates.CHANGED),
        (OTHER_WORDS.replace('\n#### 5', ''), gates.CHANGED),
        ('#### 6\n' + OTHER_WORDS, gates.CHANGED),  # what is stated first is an answer too
        (OTHER_WORDS.replace('#### 5', '#### 5.0'), ''),  # graded, not compared as text
        ('#### 5', gates.SHORT),
        ('3 + 4 = 7, 7 - 2 = 5.\n#### 5', gates.SHORT),
        (OTHER_WORDS.replace('3 + 4 = 7', '3 + 4 = 8'), gates.FALSE),
        (OTHER_WORDS.replace('7 - 2 = 5 stay', 'just five of them stay there'), gates.LOST),
        ('Было 3 и ещё 4: 3 + 4 = 7.\nДва ушли, и вот: 7 - 2 = 5.\nПять их тут осталось\n#### 5', gates.LANGUAGE),
        (OTHER_WORDS.replace('#### 5', 'The answer is \\boxed{5}'), gates.FORMAT),
        (f'```\n{OTHER_WORDS}'.replace('\n#### 5', '\n```\n#### 5'), gates.FORMAT),
    ],
)  # fmt: skip
def test_a_draft_passes_or_is_refused_for_a_reason(text, reason):
    assert Gates().refusal(trace(), text, senses()) == reason


def test_thinking_that_is_blank_is_no_reasoning():
    """Of a model that was told not to think, whose solution follows on empty tags."""
    blank = '<think>\n\n</think>\n\n'
    original = trace(blank + ORIGINAL)
    assert Gates().refusal(original, blank + '#### 5', senses()) == gates.SHORT
    assert Gates().refusal(original, blank + OTHER_WORDS, senses()) == ''
    assert Gates().closed(trace(blank + '#### 5'), senses()) == gates.NO_REASONING
    assert Gates().closed(original, senses()) == ''


def test_tags_are_those_of_the_run():
    tagged = trace('[t]' + ORIGINAL.replace('\n####', '[/t]\n####'))
    draft = OTHER_WORDS.replace('There', '[t]There')
    assert Gates().refusal(tagged, draft, senses()) == ''
    assert Gates().refusal(tagged, draft, senses(tags=('[t]', '[/t]'))) == gates.FORMAT


def test_a_false_statement_of_the_original_is_not_the_rewriters():
    wrong = trace(ORIGINAL.replace('3 + 4 = 7', '3 + 4 = 8'))
    assert Gates().refusal(wrong, OTHER_WORDS.replace('3 + 4 = 7', '3+4 = 8'), senses()) == ''
    assert Gates().refusal(wrong, OTHER_WORDS.replace('3 + 4 = 7', '3 + 4 = 9'), senses()) == gates.FALSE


def test_the_very_statements_stay():
    turned = OTHER_WORDS.replace('3 + 4 = 7', '4 + 3 = 7')
    assert Gates().refusal(trace(), turned, senses()) == ''
    padded = OTHER_WORDS.replace('3 + 4 = 7', '1 + 1 = 2').replace('7 - 2 = 5', '1 + 1 = 2')
    assert Gates().refusal(trace(), padded, senses()) == gates.LOST


def test_a_wrong_answer_stays_wrong():
    """The verdict must not move either way, so that the arm's accuracy is what it was."""
    wrong = trace(ORIGINAL.replace('#### 5', '#### 6'))
    assert Gates().refusal(wrong, OTHER_WORDS, senses()) == gates.CHANGED
    assert Gates().refusal(wrong, OTHER_WORDS.replace('#### 5', '#### 6'), senses()) == ''


@pytest.mark.parametrize(
    ('original', 'reason'),
    [
        (trace(), ''),
        (trace(stop='length'), gates.UNFINISHED),
        (trace('I do not know'), gates.NO_ANSWER),
        (trace('#### 5'), gates.NO_REASONING),  # the answer stands at the very start
    ],
)
def test_some_traces_cannot_be_rewritten(original, reason):
    assert Gates().closed(original, senses()) == reason


def test_retention_is_adjustable_but_a_bare_answer_never_passes():
    half = ' '.join(OTHER_WORDS.split()[:9]) + ' 3 + 4 = 7, 7 - 2 = 5.\n#### 5'
    assert Gates(retention=0.9).refusal(trace(), half, senses()) == gates.SHORT
    assert Gates(retention=0.5).refusal(trace(), half, senses()) == ''
    assert Gates(retention=1e-9).refusal(trace(), '#### 5', senses()) == gates.SHORT
    with pytest.raises(ValueError, match='retention = 0'):
        Gates(retention=0.0).check()


def test_fluency_is_a_budget_over_the_original():
    assert Gates(fluency=0.5).is_fluent(1.0, 1.5)
    assert not Gates(fluency=0.5).is_fluent(1.0, 1.51)
    assert not Gates(fluency=0.5).is_fluent(1.0, float('nan'))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('There are 12 apples and each of them was sold for $2, so they have 12 * 2 = 24.', 'English'),
        ('Hay 12 manzanas y cada una se vende por 2 pesos, entonces son 12 * 2 = 24 pesos para los dos.', 'Spanish'),
        ('Il y a 12 pommes dans les paniers et on vend chaque pomme pour 2, donc le prix est 24 pour nous.', 'French'),
        ('Es sind 12 Äpfel und jeder ist für 2 zu haben, also hat der Mann 12 * 2 = 24 von den Talern.', 'German'),
        ('Ci sono 12 mele nel cesto e ogni mela si vende per 2, quindi il prezzo della merce è 24.', 'Italian'),
        ('São 12 maçãs e cada uma custa 2, então o preço do cesto com as maçãs não é mais do que 24.', 'Portuguese'),
        ('Er zijn 12 appels en elke appel kost 2, dus het kost 24 voor een mand met appels van de boer.', 'Dutch'),
        ('12 * 2 = 24\n#### 24', ''),
        ('So 3 + 4 = 7, the total.', ''),
        ('we know Ada Ben : 7', ''),
    ],
)
def test_a_language_is_known_by_its_commonest_words(text, expected):
    assert gates.language(text) == expected


def test_another_language_is_refused():
    english = 'There are 3 of them and then they have 4 more, so 3 + 4 = 7 of which 2 are sold: 7 - 2 = 5.\n#### 5'
    spanish = 'Hay 3 de los primeros y por cada uno hay más, entonces 3 + 4 = 7 y se van 2: 7 - 2 = 5.\n#### 5'
    assert Gates().refusal(trace(english), spanish, senses()) == gates.LANGUAGE
    assert Gates().refusal(trace(spanish), spanish, senses()) == ''
    assert Gates().refusal(trace(english), OTHER_WORDS, senses()) == ''


def test_the_script_is_that_of_most_letters():
    assert gates.script('abcd где') == 'LATIN'
    assert gates.script('где ab') == 'CYRILLIC'
    assert gates.script('12 + 3') == ''
