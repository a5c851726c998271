"""Hostile chat templates: what they ask for is refused, and what they waste is bounded."""

from __future__ import annotations

import subprocess
import time

import pytest

from adx.datasets import template_worker, templates
from adx.datasets.templates import check_arguments, render_template
from adx.errors import InputError

MESSAGES = ({'role': 'user', 'content': 'What is 6 * 7?'},)


def render(template: str) -> str:
    return render_template(template, MESSAGES, {}, add_generation_prompt=True)


@pytest.mark.parametrize(
    'template',
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (''|attr('__class__')).__base__ }}",
        '{{ cycler.__init__.__globals__.os.environ }}',
        "{{ self.__init__.__globals__['__builtins__'].open('/etc/passwd').read() }}",
        '{{ raise_exception.__globals__ }}',
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.__class__.append(messages, 1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'layout' %}",
    ],
)
def test_python_and_files_are_out_of_reach(template):
    try:
        shown = render(template)
    except InputError as error:
        shown = str(error)
        assert shown.startswith('chat template ')
    else:
        assert shown == ''  # jinja2 shows nothing for an attribute that it refuses


LOOP = '{% for a in range(99999) %}' * 3 + '{% endfor %}' * 3
# Four times as long in every round: what does not fit is asked for at once, before much time has gone by.
ROUND = '{% set s.t = s.t ~ s.t ~ s.t ~ s.t %}'
GROWING = "{% set s = namespace(t='ha') %}{% for i in range(30) %}" + ROUND + '{% endfor %}{{ s.t }}'


@pytest.mark.parametrize(
    ('template', 'words'),
    [
        (LOOP, 'more than 2 s'),
        ('{{ 9 ** (9 ** 9) }}', 'more than 2 s'),  # a constant: folded while it is compiled
        (GROWING, 'MemoryError'),
        ("{{ 'ha' * 10 ** 11 }}", 'Error'),
        ("{{ 'ha'.ljust(10 ** 11) }}", 'Error'),
        ('{{ range(10 ** 9) | list }}', 'OverflowError'),
        ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', 'RecursionError'),
        ('{{ ' + '(' * 5000 + ')' * 5000 + ' }}', 'chat template'),
        ('{% for a in [1] %}' * 30 + '{% endfor %}' * 30, 'chat template'),
    ],
)
def test_time_and_memory_are_bounded(template, words):
    began = time.monotonic()
    with pytest.raises(InputError, match=words) as error:
        render(template)
    assert len(str(error.value)) < 2000
    assert '\n' not in str(error.value)
    assert time.monotonic() - began < 60
    assert render("{{ messages[0]['content'] }}") == MESSAGES[0]['content']  # the next one is served


def test_one_that_is_killed_is_replaced():
    assert render('a') == 'a'
    process = templates._RENDERER._process
    process.kill()
    process.wait()
    with pytest.raises(InputError, match='ended its interpreter'):
        render('a')
    assert render('a') == 'a'
    check_arguments('{{ b }}', {'b': 1})


def test_it_holds_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv('ADX_KEYS', '/secret')
    monkeypatch.setattr(templates, '_RENDERER', templates._Renderer())
    assert render('a') == 'a'
    with open(f'/proc/{templates._RENDERER._process.pid}/environ', 'rb') as environment:
        assert b'ADX_KEYS' not in environment.read()
    templates._RENDERER._end()


def test_the_process_ends_when_its_input_does():
    done = subprocess.run(
        [templates.sys.executable, '-P', template_worker.__file__], input='', capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_an_interruption_leaves_no_answer_for_the_next_question(monkeypatch):
    assert render('first') == 'first'
    answers = templates._RENDERER._process.stdout

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(answers, name)

    monkeypatch.setattr(templates._RENDERER._process, 'stdout', Interrupted())
    with pytest.raises(KeyboardInterrupt):
        render('second')
    if templates._RENDERER._process:
        templates._RENDERER._process.stdout = answers
    assert render('third') == 'third'
