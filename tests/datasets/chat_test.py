"""Chat templates against transformers' renderings; prompts, conversations and the reasoning/answer cut."""

from __future__ import annotations

import datetime
import json
import pathlib
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from adx.datasets.backends import CONTROL, NORMAL, USER_DEFINED, Piece, byte_level_backend
from adx.datasets.chat import (
    Prompting,
    encode_conversation,
    encode_prompt,
    render,
    split_reasoning,
)
from adx.datasets.templates import closing, render_template
from adx.datasets.tokenizing import Tokenizer
from adx.errors import ConfigError, InputError

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens' / 'tokenizers'
SPECIAL = {'bos_token': '<|bos|>', 'eos_token': '<|end|>'}
ENDS = {
    'smollm2': '<|im_end|>',
    'llama3_style': '<|eot_id|>',
    'qwen3_style': '<|im_end|>',
    'gemma_style': '<end_of_turn>',
    'deepseek_style': '<|end|>',
}
QUESTION = ({'role': 'user', 'content': 'What is 6 * 7?'},)


def template(name: str) -> str:
    return (GOLDENS / f'{name}.jinja').read_text(encoding='utf-8')


def make_tokenizer(name: str | None, bos: bool = True) -> Tokenizer:
    """Ids 0-255 are bytes; then bos, the template's end of turn, and '<think>' as text-like tokens."""
    end = ENDS[name] if name else '<|end|>'
    pieces = [Piece(letter, 0.0, NORMAL) for letter in sorted(ByteLevel.alphabet())]
    pieces += [Piece('<|bos|>', 0.0, CONTROL), Piece(end, 0.0, CONTROL)]
    pieces += [Piece(tag, 0.0, USER_DEFINED) for tag in ('<think>', '</think>')]
    backend = byte_level_backend(pieces, [], 'gpt-2')
    text = None if name is None else template(name)
    return Tokenizer(backend, frozenset({257}), 256 if bos else None, SPECIAL, text, 'a test')


def cases() -> list[dict]:
    return json.loads((GOLDENS / 'renderings.json').read_text(encoding='utf-8'))


def label(case: dict) -> str:
    return f'{case["template"]}-{case["name"]}'


@pytest.mark.parametrize('case', cases(), ids=label)
def test_a_template_renders_as_in_transformers(case: dict):
    variables = {**SPECIAL, **case['arguments']}
    text = render_template(
        template(case['template']), case['messages'], variables, case['add_generation_prompt'], case['date']
    )
    assert text == case['text']


@pytest.mark.oracle
@pytest.mark.parametrize('case', cases(), ids=label)
def test_the_goldens_are_what_transformers_renders(case: dict, monkeypatch: pytest.MonkeyPatch):
    transformers = pytest.importorskip('transformers')
    from transformers.utils import chat_template_utils

    today = datetime.datetime.fromisoformat(case['date'] or '1970-01-01')
    monkeypatch.setattr(chat_template_utils, 'datetime', types.SimpleNamespace(now=lambda: today))
    backend = make_tokenizer(case['template']).backend
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    text = tokenizer.apply_chat_template(
        case['messages'],
        chat_template=template(case['template']),
        tokenize=False,
        add_generation_prompt=case['add_generation_prompt'],
        **case['arguments'],
    )
    assert text == case['text']


@pytest.mark.parametrize(('name', 'end'), ENDS.items())
def test_closing_is_what_follows_the_last_words(name: str, end: str):
    assert closing(template(name), SPECIAL, '2025-01-31').strip() == end


@pytest.mark.parametrize('name', ENDS)
@pytest.mark.parametrize('bos', [True, False])
def test_a_bos_token_comes_once_whether_or_not_the_template_writes_it(name: str, bos: bool):
    tokenizer = make_tokenizer(name, bos)
    prompting = Prompting(date='2025-01-31', template_opens_think=name == 'deepseek_style')
    ids = encode_prompt(QUESTION, tokenizer, prompting)
    written = template(name).count('bos_token')
    assert ids.count(256) == (1 if bos or written else 0)
    assert 256 not in ids[1:]


@pytest.mark.parametrize('name', [name for name in ENDS if name not in ('deepseek_style', 'qwen3_style')])
def test_a_conversation_is_the_templates_own_rendering_of_it(name: str):
    tokenizer, prompting = make_tokenizer(name), Prompting(date='2025-01-31')
    text = '6 * 7 = 42.\n#### 42'
    messages = (*QUESTION, {'role': 'assistant', 'content': text})
    own = render(messages, tokenizer, prompting, add_generation_prompt=False)
    prompt, completion = encode_conversation(QUESTION, text, tokenizer, prompting)
    said = tokenizer.backend.decode([*prompt, *completion], skip_special_tokens=False)
    assert said.removeprefix('<|bos|>') == own.rstrip().removeprefix('<|bos|>')


@pytest.mark.parametrize('thinking', [True, False])
def test_a_qwen_conversation_is_the_templates_own_with_and_without_thinking(thinking: bool):
    tokenizer = make_tokenizer('qwen3_style')
    prompting = Prompting(template_arguments=(('enable_thinking', thinking),))
    text = '<think>\nsix sevens\n</think>\n\n42' if thinking else '42'
    messages = (*QUESTION, {'role': 'assistant', 'content': text})
    own = render(messages, tokenizer, prompting, add_generation_prompt=False)
    prompt, completion = encode_conversation(QUESTION, text, tokenizer, prompting)
    assert (
        tokenizer.backend.decode([*prompt, *completion], skip_special_tokens=False)
        == '<|bos|>' + own.rstrip()
    )


@given(text=st.text(st.characters(codec='utf-8', exclude_characters='<'), max_size=60))
@pytest.mark.parametrize('name', ENDS)
def test_the_tokens_of_a_conversation_round_trip(name: str, text: str):
    tokenizer = make_tokenizer(name)
    prompting = Prompting(date='2025-01-31', template_opens_think=name == 'deepseek_style')
    prompt, completion = encode_conversation(QUESTION, text, tokenizer, prompting)
    assert prompt == encode_prompt(QUESTION, tokenizer, prompting)
    assert tokenizer.decode(completion) == text
    assert [i for i in completion if i in tokenizer.eos_ids] == [completion[-1]]


def test_a_conversation_without_an_end_in_its_template_gets_the_models():
    tokenizer = make_tokenizer(None)
    prompting = Prompting(template="{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}")
    _, completion = encode_conversation(QUESTION, '42', tokenizer, prompting)
    assert completion == (*tokenizer.encode('42'), 257)


def test_the_system_message_is_added_unless_the_conversation_has_one():
    tokenizer, prompting = make_tokenizer('smollm2'), Prompting(system='Be brief.')
    own = ({'role': 'system', 'content': 'Be long.'}, *QUESTION)
    assert render(QUESTION, tokenizer, prompting).startswith('<|im_start|>system\nBe brief.<|im_end|>\n')
    assert render(own, tokenizer, prompting).startswith('<|im_start|>system\nBe long.<|im_end|>\n')
    assert 'Be brief.' not in render(own, tokenizer, prompting)


@pytest.mark.parametrize(
    ('change', 'messages', 'error', 'words'),
    [
        ({}, (), InputError, 'empty prompt: 0 messages'),
        ({}, ({'role': 'user', 'content': ' \n'},), InputError, 'empty prompt: 1 messages'),
        ({}, ({'role': 'user'},), InputError, "message 0 has keys ['role']"),
        ({}, ({'role': 'user', 'content': None},), InputError, 'message 0 has keys'),
        ({}, ({'role': 'tool', 'content': 'x'},), InputError, 'role "tool" is unknown'),
        ({'date': ''}, QUESTION, ConfigError, 'set prompting.date'),
        ({'date': 'today'}, QUESTION, ConfigError, "prompting.date is 'today'"),
        ({'template_arguments': (('datestring', 'x'),)}, QUESTION, ConfigError, "no argument 'datestring'"),
        ({'template_opens_think': True}, QUESTION, ConfigError, 'set it to False'),
        ({'template': '{% if %}'}, QUESTION, InputError, 'does not parse'),
        ({'template': '{{ messages + 1 }}'}, QUESTION, InputError, 'TypeError'),
        ({'template': '{{ messages.append(1) }}'}, QUESTION, InputError, 'SecurityError'),
        ({'template': "{{ ''.__class__.__mro__ }}"}, QUESTION, InputError, 'SecurityError'),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict, messages, error: type, words: str):
    prompting = Prompting(**{'date': '2025-01-31', **change})
    with pytest.raises(error) as caught:
        encode_prompt(messages, make_tokenizer('llama3_style'), prompting)
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_prompt_that_opens_the_thinking_must_be_declared():
    with pytest.raises(ConfigError, match='set it to True'):
        encode_prompt(QUESTION, make_tokenizer('deepseek_style'), Prompting())


def test_a_base_model_needs_a_template():
    with pytest.raises(InputError, match='a test has no chat template'):
        render(QUESTION, make_tokenizer(None), Prompting())


OPENED = Prompting(template_opens_think=True)


@pytest.mark.parametrize(
    ('text', 'prompting', 'answer'),
    [
        ('<think>\n6*7\n</think>\n\nIt is 42.', Prompting(), 'It is 42.'),
        ('<think>a</think>b</think>c', Prompting(), 'b</think>c'),
        ('6*7 is 42\n</think>\n42', OPENED, '42'),
        ('6*7 is 42\n#### 42', OPENED, ''),
        ('<think>6*7 is\n#### 42', Prompting(), ''),
        ('<think>6*7 is\n#### 42', Prompting(think_open='', think_close=''), '#### 42'),
        ('[T]6*7[/T] 42', Prompting(think_open='[T]', think_close='[/T]'), '42'),
        ('6 * 7 = 42\n#### 42', Prompting(), '#### 42'),
        ('#### 41\nNo, wait.\n#### 42\nDone.\n', Prompting(), '#### 42\nDone.\n'),
        ('So it is\nthus \\boxed{\n42\n}.', Prompting(), 'thus \\boxed{\n42\n}.'),
        ('Multiply.\nThe final answer is 42.', Prompting(), 'The final answer is 42.'),
        ('#### 42', Prompting(), '#### 42'),
        ('I count to 42', Prompting(), ''),
        ('', Prompting(), ''),
    ],
)
def test_the_answer_is_cut_off_where_it_starts(text: str, prompting: Prompting, answer: str):
    reasoning, found = split_reasoning(text, prompting)
    assert found == answer
    assert reasoning + found == text


PARTS = ['<think>', '</think>', '\n', ' ', '#### 4', 'x', '\\boxed{', '}']


@given(text=st.lists(st.sampled_from(PARTS)).map(''.join))
@pytest.mark.parametrize('prompting', [Prompting(), OPENED, Prompting(think_open='', think_close='')])
def test_reasoning_and_answer_make_up_the_text(prompting: Prompting, text: str):
    assert ''.join(split_reasoning(text, prompting)) == text
