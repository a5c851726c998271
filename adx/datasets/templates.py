"""Chat templates: untrusted jinja2 text that turns messages into a prompt, rendered in a sandbox.

Renders what transformers' `apply_chat_template` renders, except that a template never reads the clock.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from adx.errors import AdxError, ConfigError, InputError

Messages = Sequence[Mapping[str, str]]

# Stands for the content of a message when a template is asked what it writes around one.
_PROBE = 'adxprobe'


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for a training mask; its body is rendered as it is."""

    tags = {'generation'}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(
            parser.parse_statements(('name:endgeneration',), drop_needle=True), lineno=line
        )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: jinja2's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise_exception
    return environment


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The compiled template and the names it reads from outside."""
    environment = _environment()
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(template))
        return environment.from_string(template), frozenset(names)
    except jinja2.TemplateError as error:
        raise InputError(
            f'chat template does not parse as jinja2: {_one_line(error)}; fix its text'
        ) from error


def _one_line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def _clock(date: str) -> Any:
    """The `strftime_now` of a template: tells `date` (YYYY-MM-DD), so that a prompt is the same tomorrow."""

    def strftime_now(pattern: str) -> str:
        if not date:
            raise ConfigError(
                "the chat template prints today's date, so its prompts would change from day to day; "
                "set prompting.date to a fixed day such as '2025-01-31'"
            )
        try:
            return datetime.date.fromisoformat(date).strftime(pattern)
        except ValueError as error:
            raise ConfigError(f"prompting.date is {date!r}; give a day as '2025-01-31'") from error

    return strftime_now


def check_arguments(template: str, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument that the template never reads (jinja2 would ignore it)."""
    names = _compile(template)[1]
    unknown = sorted(set(arguments) - names)
    if unknown:
        raise ConfigError(
            f'the chat template has no argument {unknown[0]!r}; it reads {sorted(names)}; '
            'correct or remove it in prompting.template_arguments'
        )


def render_template(
    template: str,
    messages: Messages,
    variables: Mapping[str, Any],
    add_generation_prompt: bool,
    date: str = '',
) -> str:
    """Renders `messages` ({'role', 'content'}).

    variables: names of special tokens ('bos_token', ...) and template arguments ('enable_thinking', ...).
    date: the day (YYYY-MM-DD) that `strftime_now` tells. Raises InputError for whatever goes wrong in the
    template, `raise_exception` included, and ConfigError when it asks for the date and there is none.
    """
    compiled, _ = _compile(template)
    context = {'tools': None, 'documents': None, 'strftime_now': _clock(date), **variables}
    conversation = [dict(message) for message in messages]
    try:
        return compiled.render(messages=conversation, add_generation_prompt=add_generation_prompt, **context)
    except AdxError:
        raise
    except Exception as error:  # the template is a program of somebody else's: any exception is its own
        roles = [message.get('role') for message in conversation]
        raise InputError(
            f'chat template refuses messages of roles {roles}: {_one_line(error)}; change the messages or '
            'prompting.system, or give another template as prompting.template'
        ) from error


def closing(template: str, variables: Mapping[str, Any], date: str = '') -> str:
    """What the template writes after the assistant's last words, e.g. '<|im_end|>\\n'."""
    messages = ({'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': _PROBE})
    text = render_template(template, messages, variables, add_generation_prompt=False, date=date)
    _, found, end = text.rpartition(_PROBE)
    if not found:
        raise InputError(
            'chat template leaves out what the assistant says, so a trace cannot be rendered with it; '
            'give another template as prompting.template'
        )
    return end
