"""Chat templates: untrusted jinja2, rendered in a process of its own.

Renders what transformers' `apply_chat_template` renders, except that a template never reads the clock. The process, see
template_worker.py, has limits of time and memory; one that is ended by them is replaced at the next rendering.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from adx.errors import ConfigError, InputError

Messages = Sequence[Mapping[str, str]]

# Stands for the content of a message when a template is asked what it writes around one.
_PROBE = 'adxprobe'
_WORKER = pathlib.Path(__file__).with_name('template_worker.py')
_KEPT = ('PATH', 'PYTHONPATH', 'PYTHONHOME', 'LD_LIBRARY_PATH')  # variables that an interpreter may need to start


class _Renderer:
    """The process that renders, started when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, template: str, date: str, context: Mapping[str, Any] | None) -> dict[str, Any]:
        """Its answer; {'failed': 'limits'} where it ended."""
        line = json.dumps({'template': template, 'date': date, 'context': context})
        with self._lock:
            if self._process is None:
                self._process = self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            reply = ''
            try:
                self._process.stdin.write(f'{line}\n')
                self._process.stdin.flush()
                reply = self._process.stdout.readline()
            except BrokenPipeError:
                pass
            except BaseException:  # interrupted: its answer would be taken for that to the next question
                self._end()
                raise
            if reply.endswith('\n'):
                return json.loads(reply)
            self._end()
        why = 'it takes more than 2 s of CPU time or 1 GiB of memory, or ended its interpreter'
        return {'failed': 'limits', 'why': why}

    def _start(self) -> subprocess.Popen[str]:
        atexit.register(self._end)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return subprocess.Popen(
            [sys.executable, '-P', str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_RENDERER = _Renderer()


@functools.lru_cache(maxsize=32)
def _names(template: str) -> frozenset[str]:
    """The names that a template reads from outside. Raises InputError where it does not parse."""
    answer = _RENDERER.ask(template, '', None)
    if 'failed' in answer:
        raise InputError(f'chat template does not parse as jinja2: {answer["why"]}; fix its text')
    return frozenset(answer['names'])


def check_arguments(template: str, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument that the template never reads (jinja2 would ignore it)."""
    names = _names(template)
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

    variables: names of special tokens ('bos_token', ...) and template arguments ('enable_thinking', ...), JSON-able.
    date: the day (YYYY-MM-DD) that `strftime_now` tells. Raises InputError for whatever goes wrong in the
    template, `raise_exception` included, and ConfigError when it asks for the date and there is none.
    """
    conversation = [dict(message) for message in messages]
    context = {'tools': None, 'documents': None, **variables}
    context |= {'messages': conversation, 'add_generation_prompt': add_generation_prompt}
    answer = _RENDERER.ask(template, date, context)
    if 'text' in answer:
        return answer['text']
    if answer['failed'] == 'date':
        raise ConfigError(answer['why'])
    if answer['failed'] == 'parse':
        raise InputError(f'chat template does not parse as jinja2: {answer["why"]}; fix its text')
    roles = [message.get('role') for message in conversation]
    raise InputError(
        f'chat template refuses messages of roles {roles}: {answer["why"]}; change the messages or '
        'prompting.system, or give another template as prompting.template'
    )


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
