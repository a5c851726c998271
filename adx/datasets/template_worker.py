"""The process that renders chat templates: a template is a program of somebody else's.

Runs as a script and imports nothing of adx. Reads a JSON object a line, {'template', 'date', 'context'}, and answers
each by one: {'text'}, or {'names'} where there is no context, or {'failed': kind of error, 'why'}. jinja2's sandbox
keeps a template from Python's objects; limits of the system keep it from time and memory, which jinja2 cannot.
"""

from __future__ import annotations

import datetime
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

SECONDS = 2.0  # of CPU time, for one rendering; beyond it the system ends the process
MEMORY = 1 << 30  # bytes of address space


class DateError(Exception):
    """A template asks for the date and is told none."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for a training mask; its body is rendered as it is."""

    tags = {'generation'}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(
            parser.parse_statements(('name:endgeneration',), drop_needle=True), lineno=line
        )


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: jinja2's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def clock(date: str) -> Callable[[str], str]:
    """The `strftime_now` of a template: tells `date` (YYYY-MM-DD), so that a prompt is the same tomorrow."""

    def strftime_now(pattern: str) -> str:
        if not date:
            raise DateError(
                "the chat template prints today's date, so its prompts would change from day to day; "
                "set prompting.date to a fixed day such as '2025-01-31'"
            )
        try:
            return datetime.date.fromisoformat(date).strftime(pattern)
        except ValueError as error:
            raise DateError(f"prompting.date is {date!r}; give a day as '2025-01-31'") from error

    return strftime_now


@functools.lru_cache(maxsize=32)
def compiled(template: str) -> tuple[jinja2.Template, list[str]]:
    """The template and the names that it reads from outside."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = to_json
    environment.globals['raise_exception'] = refuse
    names = jinja2.meta.find_undeclared_variables(environment.parse(template))
    return environment.from_string(template), sorted(names)


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    kind = 'parse'
    try:
        template, names = compiled(asked['template'])
        if asked['context'] is None:
            return {'names': names}
        kind = 'render'
        return {'text': template.render(strftime_now=clock(asked['date']), **asked['context'])}
    except DateError as error:
        return {'failed': 'date', 'why': str(error)}
    except Exception as error:  # whatever a template raises is its own
        return {'failed': kind, 'why': ' '.join(f'{type(error).__name__}: {error}'.split())[:1000]}


def main() -> None:
    for limit, most in (('AS', MEMORY), ('FSIZE', 0), ('CORE', 0), ('NPROC', 0)):
        resource.setrlimit(getattr(resource, f'RLIMIT_{limit}'), (most, most))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        reply = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == '__main__':
    main()
