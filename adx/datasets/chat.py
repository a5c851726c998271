"""Messages to prompt tokens through a chat template; text back to reasoning and answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from adx.datasets.templates import Messages, check_arguments, closing, render_template
from adx.datasets.tokenizing import Tokenizer
from adx.errors import ConfigError, InputError
from adx.grading import final_forms


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How one model is spoken to. A teacher and a student each have their own.

    system: a system message for conversations that bring none; '' leaves it to the template.
    template: jinja2 text instead of the tokenizer's own, needed by a base model; '' takes the tokenizer's.
    template_arguments: (name, value) pairs that the template reads, e.g. ('enable_thinking', False).
    think_open, think_close: the tags around the reasoning; an empty think_close says that there are none.
    template_opens_think: whether the prompt itself ends in think_open, so that the model starts inside.
    date: the day (YYYY-MM-DD) that a template may print; needed by templates that do.
    """

    system: str = ''
    template: str = ''
    template_arguments: tuple[tuple[str, Any], ...] = ()
    think_open: str = '<think>'
    think_close: str = '</think>'
    template_opens_think: bool = False
    date: str = ''


def render(
    messages: Messages, tokenizer: Tokenizer, prompting: Prompting, add_generation_prompt: bool = True
) -> str:
    """The prompt as text, special tokens written out.

    add_generation_prompt: ends with the opening of the assistant's turn.
    Raises InputError for messages that are empty or that the template refuses, and ConfigError for an
    argument that the template does not read.
    """
    _check_messages(messages)
    template = _template(tokenizer, prompting)
    check_arguments(template, dict(prompting.template_arguments))
    if prompting.system and messages[0]['role'] != 'system':
        messages = [{'role': 'system', 'content': prompting.system}, *messages]
    variables = _variables(tokenizer, prompting)
    return render_template(template, messages, variables, add_generation_prompt, prompting.date)


def encode_prompt(messages: Messages, tokenizer: Tokenizer, prompting: Prompting) -> tuple[int, ...]:
    """Token ids of the prompt up to the assistant's first word. A model's bos token is in it exactly once."""
    text = render(messages, tokenizer, prompting)
    opens = bool(prompting.think_open) and text.rstrip().endswith(prompting.think_open)
    if opens != prompting.template_opens_think:
        raise ConfigError(
            f'the prompt {"ends" if opens else "does not end"} in {prompting.think_open!r} but '
            f'prompting.template_opens_think is {prompting.template_opens_think}; set it to {opens}, or '
            'reasoning and answer are taken for one another'
        )
    ids = tokenizer.encode(text)
    # A template may write the bos token itself.
    bos = () if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id] else (tokenizer.bos_id,)
    return (*bos, *ids)


def encode_conversation(
    messages: Messages, text: str, tokenizer: Tokenizer, prompting: Prompting
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The conversation as (prompt ids, completion ids), for training on the completion alone.

    Encoded apart, as decoding made them: no token crosses the border, the prompt is that of `encode_prompt`,
    and the completion is `text` and one end of sequence (the template's, else eos_token). So decoding the
    completion gives `text` back, for any text that the vocabulary can spell.
    """
    ends = [i for i in tokenizer.encode(_closing(tokenizer, prompting)) if i in tokenizer.eos_ids]
    end = ends[0] if ends else tokenizer.eos_id
    return encode_prompt(messages, tokenizer, prompting), (*tokenizer.encode(text), end)


def split_reasoning(text: str, prompting: Prompting) -> tuple[str, str]:
    """Cuts what the model wrote in two: (reasoning, answer), and reasoning + answer == text always.

    With thinking tags the cut is behind the first think_close and the white space that follows; tags stay in
    the reasoning. Thinking that never closes is all reasoning. Without tags the cut is before the last line
    in which a final-answer form starts (see grading); no such line, no answer.
    """
    if prompting.think_close:
        _, close, after = text.partition(prompting.think_close)
        if close:
            cut = len(text) - len(after.lstrip())
            return text[:cut], text[cut:]
        if opens_thinking(text, prompting):
            return text, ''
    cut = final_line(text)
    return text[:cut], text[cut:]


def opens_thinking(text: str, prompting: Prompting) -> bool:
    """Whether what a model wrote begins inside its thinking."""
    opens = bool(prompting.think_open) and text.lstrip().startswith(prompting.think_open)
    return opens or prompting.template_opens_think


def final_line(text: str) -> int:
    """Where the last line begins from which a final-answer form can be read; len(text) if there is none."""
    if not final_forms(text):
        return len(text)
    start = text.rfind('\n') + 1
    while start and not final_forms(text[start:]):
        start = text.rfind('\n', 0, start - 1) + 1
    return start


def _check_messages(messages: Messages) -> None:
    for i, message in enumerate(messages):
        if not all(isinstance(message.get(key), str) for key in ('role', 'content')):
            raise InputError(f"message {i} has keys {sorted(message)}; give text for 'role' and 'content'")
    if not any(message['content'].strip() for message in messages):
        raise InputError(f'empty prompt: {len(messages)} messages without a word; give one that has some')


def _template(tokenizer: Tokenizer, prompting: Prompting) -> str:
    template = prompting.template or tokenizer.template
    if template is None:
        raise InputError(
            f'{tokenizer.source} has no chat template; give one as prompting.template, for a base model say '
            "\"{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}\""
        )
    return template


def _variables(tokenizer: Tokenizer, prompting: Prompting) -> dict[str, Any]:
    return {**tokenizer.special, **dict(prompting.template_arguments)}


def _closing(tokenizer: Tokenizer, prompting: Prompting) -> str:
    return closing(_template(tokenizer, prompting), _variables(tokenizer, prompting), prompting.date)
