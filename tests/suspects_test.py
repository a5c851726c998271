"""Suspects: a model with weights goes on from the very words; an endpoint fails in every way that endpoints do."""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import json
import threading

import pytest

from adx import suspects
from adx.errors import ConfigError, InputError
from adx.experiment import ModelSource
from adx.suspects import FAILED, LIMITED, REFUSED, SILENT, UNSPELT, Answer, Endpoint, Held, Question
from tests import tiny

ASKED = Question(({'role': 'user', 'content': 'How many?'},), 'Let bad =')


def reply(text='12.', **choice):
    return 200, {'choices': [{'message': {'content': text}, 'finish_reason': 'stop'} | choice]}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.seen.append((self.path, self.headers.get('Authorization'), body))
        status, content = self.server.replies.pop(0)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    server.seen, server.replies = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint(server, slept=None, **options):
    sleep = (lambda seconds: None) if slept is None else slept.append
    return Endpoint(f'http://127.0.0.1:{server.server_port}/v1', 'm', sleep=sleep, **options)


def test_an_endpoint_is_asked_to_go_on(server, monkeypatch):
    monkeypatch.setenv('THE_TOKEN', 'secret')
    server.replies = [reply()]
    assert endpoint(server, key_variable='THE_TOKEN').ask([ASKED]) == [Answer('12.')]
    [(path, token, body)] = server.seen
    assert (path, token) == ('/v1/chat/completions', 'Bearer secret')
    [message] = body['messages']
    assert message['role'] == 'user'
    assert message['content'].startswith('How many?\n')
    assert message['content'].endswith('Let bad =')
    assert (body['model'], body['temperature']) == ('m', 0)


@pytest.mark.parametrize(
    ('replies', 'expected', 'waits'),
    [
        ([(429, {}), reply()], Answer('12.'), [1.0]),
        ([(429, {})] * 4, Answer('', LIMITED), [1.0, 4.0, 16.0]),
        ([(500, {})] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
        ([(200, b'not json')] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
        ([(200, {'choices': []})] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
        ([(400, {})], Answer('', REFUSED), []),
        ([reply('', finish_reason='content_filter')], Answer('', REFUSED), []),
        ([reply('  ')], Answer('  ', SILENT), []),
        ([reply(None)], Answer('', SILENT), []),
        ([reply(['12'])] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
        ([(200, {'choices': ['12']})] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
        ([(200, b'[' * 100_000)] * 4, Answer('', FAILED), [1.0, 4.0, 16.0]),
    ],
)
def test_every_failure_is_an_answer_with_a_reason(server, replies, expected, waits):
    server.replies, slept = list(replies), []
    assert endpoint(server, slept).ask([ASKED]) == [expected]
    assert slept == waits


def test_an_endpoint_that_takes_no_question_at_all_is_no_suspect(server):
    server.replies = [(400, {'error': 'max_tokens is not supported'})] * 3
    with pytest.raises(InputError, match=r'answers 400 to all 3 questions, first .*max_tokens is not supported'):
        endpoint(server).ask([ASKED] * 3)
    server.replies = [(400, {}), reply(), (400, {})]
    assert endpoint(server).ask([ASKED] * 3) == [Answer('', REFUSED), Answer('12.'), Answer('', REFUSED)]


@pytest.mark.parametrize('error', [http.client.IncompleteRead(b'{"cho'), http.client.BadStatusLine('hello')])
def test_a_broken_connection_is_an_answer_with_a_reason(error, monkeypatch):
    def broken(self, body):
        raise error

    monkeypatch.setattr(Endpoint, '_post', broken)
    asked = Endpoint('http://127.0.0.1:9/v1', 'm', sleep=lambda seconds: None)
    assert asked.ask([ASKED]) == [Answer('', FAILED)]


def test_a_conversation_that_ends_in_an_answer_goes_on(server):
    server.replies = [reply()]
    said = (*ASKED.messages, {'role': 'assistant', 'content': 'Seven.'})
    endpoint(server).ask([Question(said, 'Let bad =')])
    messages = server.seen[0][2]['messages']
    assert [one['role'] for one in messages] == ['user', 'assistant', 'user']
    assert messages[:2] == list(said)


@pytest.mark.parametrize('status', [401, 403, 404])
def test_what_cannot_be_asked_at_all_is_refused(server, status):
    server.replies = [(status, {})]
    with pytest.raises(InputError, match=f'answers {status}'):
        endpoint(server).ask([ASKED])


def test_an_address_that_nobody_answers_at_is_an_error(monkeypatch):
    nobody = Endpoint('http://127.0.0.1:9/v1', 'm', sleep=lambda seconds: None)
    assert nobody.ask([ASKED]) == [Answer('', FAILED)]


def test_settings_are_checked(monkeypatch):
    wrong = ('localhost/v1', 'http://local host/v1', 'http:///v1', 'http://localhost:x/v1', 'http://localhost/v1\n',
             'http://me:word@localhost/v1')  # fmt: skip
    for url in wrong:
        with pytest.raises(ConfigError, match='no address'):
            Endpoint(url, 'm')
    assert Endpoint('http://localhost/v1', 'm').identity == 'm at http://localhost/v1'
    monkeypatch.delenv('NO_SUCH_TOKEN', raising=False)
    with pytest.raises(ConfigError, match='NO_SUCH_TOKEN is not set'):
        Endpoint('http://localhost/v1', 'm', 'NO_SUCH_TOKEN')


def test_a_model_goes_on_from_the_very_words(tmp_path):
    suspect = Held.load(ModelSource(tiny.write_teacher(tmp_path / 'teacher')))
    other = Question(ASKED.messages, 'Let worse =')
    first = suspect.ask([ASKED, other, ASKED])
    assert first[0] == first[2]
    assert suspect.ask([other]) == [first[1]]
    assert all(one.text.strip() for one in first)
    assert suspect.ask([]) == []
    assert suspects.TOKENS == 8
    assert suspect.identity


def test_what_its_vocabulary_does_not_spell_is_not_asked(tmp_path):
    class Deaf:
        """Knows no made-up word."""

        def __init__(self, inner):
            self.inner = inner

        def encode(self, text):
            return self.inner.encode(text.replace('worse', ''))

        def __getattr__(self, name):
            return getattr(self.inner, name)

    suspect = Held.load(ModelSource(tiny.write_teacher(tmp_path / 'teacher')))
    deaf, other = dataclasses.replace(suspect, tokenizer=Deaf(suspect.tokenizer)), Question((), 'Let worse =')
    assert deaf.ask([other, ASKED]) == [Answer('', UNSPELT), *suspect.ask([ASKED])]
    assert deaf.ask([other]) == [Answer('', UNSPELT)]


def test_refusals_of_who_answered_before_are_refusals(server):
    server.replies = [(400, {})] * 2
    assert endpoint(server, has_answered=True).ask([ASKED] * 2) == [Answer('', REFUSED)] * 2
    asked = endpoint(server)
    server.replies = [reply(), (400, {}), (400, {}), (400, {})]
    asked.ask([ASKED] * 2)
    assert asked.ask([ASKED] * 2) == [Answer('', REFUSED)] * 2


def test_a_reply_without_end_is_given_up(server, monkeypatch):
    monkeypatch.setattr(suspects, 'LARGEST', 100)
    server.replies = [(200, b'{"a": "' + b'a' * 1000)] * 4
    assert endpoint(server).ask([ASKED]) == [Answer('', FAILED)]
    monkeypatch.setattr(suspects, 'LARGEST', 10_000)
    monkeypatch.setattr(suspects, 'TIMEOUT', 5.0)
    monkeypatch.setattr(suspects.time, 'monotonic', iter(range(0, 1000, 10)).__next__)
    server.replies = [reply()] * 4
    assert endpoint(server).ask([ASKED]) == [Answer('', FAILED)]
