"""Suspects that complete what they are asked: a model, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Protocol

from adx.datasets.chat import Prompting, encode_prompt
from adx.datasets.tokenizing import Tokenizer
from adx.decoding.engine import DecodeConfig
from adx.defences import Undefended
from adx.errors import ConfigError, InputError
from adx.evaluation import roomy, student_engine
from adx.hashing import content_hash
from adx.lessons import Messages
from adx.loading import load_alone
from adx.mesh import make_mesh
from adx.models.transformer import Model, Params
from adx.settings import ModelSource
from adx.types import Request, RequestId, Sampling

TOKENS = 8  # of an answer: a target and what may stand before it
GREEDY = Sampling(temperature=0.0)
REFUSED, LIMITED, FAILED, SILENT = 'refused', 'rate limited', 'error', 'no text'
UNSPELT = 'not in its vocabulary'  # how it would have to begin: many questions would be one to it
PASSING = (LIMITED, FAILED)  # problems that may be gone when it is asked again
ATTEMPTS, WAITS = 4, (1.0, 4.0, 16.0)  # seconds between attempts
TIMEOUT = 60.0  # seconds of one request
LARGEST, CHUNK = 1 << 22, 1 << 16  # bytes of a reply, and of what is read at once
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # what a reply of another form raises


@dataclasses.dataclass(frozen=True)
class Question:
    """messages: a conversation; begun: how the answer begins, which the suspect is to go on from."""

    messages: Messages
    begun: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What follows. problem: '' or why there is none; such a question counts as not completed."""

    text: str
    problem: str = ''


def _read(reply: http.client.HTTPResponse, end: float) -> bytes:
    """Raises ValueError for a reply without end."""
    data = b''
    while chunk := reply.read1(CHUNK):
        data += chunk
        if len(data) > LARGEST or time.monotonic() > end:
            raise ValueError('the reply has no end')
    return data


class Suspect(Protocol):
    @property
    def identity(self) -> str:
        """Which model this is, as far as can be told: a case is about one."""
        ...

    @property
    def spoken(self) -> str:
        """Names how it is spoken to, as far as that is ours to choose: a case keeps to one way."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, in order. Raises InputError where the suspect cannot be asked at all."""
        ...


@dataclasses.dataclass(frozen=True)
class Held:
    """A model whose weights are at hand, which goes on from the very words. identity: names their content."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    prompting: Prompting = Prompting()
    decode: DecodeConfig = DecodeConfig()
    identity: str = ''

    @staticmethod
    def load(source: ModelSource, prompting: Prompting = Prompting()) -> Held:  # noqa: B008
        """Raises InputError where there is no such model."""
        loaded, tokenizer = load_alone(source)
        return Held(loaded.model, loaded.params, tokenizer, prompting, identity=loaded.identity)

    @property
    def spoken(self) -> str:
        return content_hash(dataclasses.asdict(self.prompting))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        spelt = {i: one for i, one in enumerate(questions) if self._spells(one.begun)}
        requests = {i: self._request(i, one) for i, one in spelt.items()}
        if not requests:
            return [Answer('', UNSPELT)] * len(questions)
        config, ends = roomy(self.decode, list(requests.values())), sorted(self.tokenizer.eos_ids)
        engine = student_engine(self.model, self.params, make_mesh(), config, 0, ends)
        done = {one.id: self.tokenizer.decode(one.tokens) for one in engine.generate(list(requests.values()))}
        found = {i: Answer(done[one.id], '' if done[one.id].strip() else SILENT) for i, one in requests.items()}
        return [found.get(i, Answer('', UNSPELT)) for i in range(len(questions))]

    def _spells(self, text: str) -> bool:
        """But for white space, which some tokenizers take for their own."""
        return self.tokenizer.decode(self.tokenizer.encode(text)).split() == text.split()

    def _request(self, i: int, question: Question) -> Request:
        begun = self.tokenizer.encode(question.begun)
        tokens = (*encode_prompt(question.messages, self.tokenizer, self.prompting), *begun)
        id_ = RequestId('suspect', 'suspect', str(i), 0, 'suspect')
        return Request(id_, tokens, TOKENS, GREEDY, Undefended(), False)


class Endpoint:
    """An OpenAI-compatible chat endpoint, which is asked to go on from a line. url: up to and with `/v1`.

    key_variable: of the environment, which holds the bearer token, '' for none; it is never written anywhere.
    has_answered: whether it took a question before; a 400 is then a refusal of what is asked.
    """

    spoken = ''  # in whatever template it has

    def __init__(
        self, url: str, model: str, key_variable: str = '', sleep: Callable[[float], None] = time.sleep,
        has_answered: bool = False,
    ):  # fmt: skip
        if not _is_address(url):
            raise ConfigError(f'suspect {url!r} is no address; give http:// or https:// up to and with /v1')
        if key_variable and key_variable not in os.environ:
            raise ConfigError(f'environment variable {key_variable} is not set; it is to hold the key of {url}')
        self.url, self.model, self.sleep = url.rstrip('/'), model, sleep
        self.key_variable, self.has_answered = key_variable, has_answered

    @property
    def identity(self) -> str:
        return f'{self.model} at {self.url}'

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Raises InputError also where every one of several questions gets a 400 and none was ever answered: it is the
        form then that the endpoint does not take, and no refusal of what is asked.
        """
        said: list[str] = []
        found = [self._ask(one, said) for one in questions]
        self.has_answered = self.has_answered or len(said) < len(found)
        if len(said) > 1 and not self.has_answered:
            raise InputError(
                f'{self.url} answers 400 to all {len(found)} questions, first {said[0]!r}; give an endpoint that takes '
                'messages, max_tokens and temperature'
            )
        return found

    def _ask(self, question: Question, said: list[str]) -> Answer:
        """said: what comes with every 400."""
        body = {'model': self.model, 'messages': _conversation(question), 'max_tokens': TOKENS, 'temperature': 0}
        problem = FAILED
        for attempt in range(ATTEMPTS):
            try:
                return _answer(self._post(body))
            except urllib.error.HTTPError as error:
                if error.code in (401, 403, 404):
                    raise InputError(f'{self.url} answers {error.code}; check the address, model and key') from error
                problem = LIMITED if error.code == 429 else REFUSED if error.code == 400 else FAILED
                if error.code == 400:
                    said.append(_words(error))
                    break
            except (OSError, http.client.HTTPException, *MALFORMED):
                problem = FAILED
            if attempt < ATTEMPTS - 1:
                self.sleep(WAITS[attempt])
        return Answer('', problem)

    def _post(self, body: dict) -> dict:
        headers = {'Content-Type': 'application/json'}
        if self.key_variable:
            headers['Authorization'] = f'Bearer {os.environ[self.key_variable]}'
        data = json.dumps(body).encode()
        request = urllib.request.Request(f'{self.url}/chat/completions', data, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return json.loads(_read(reply, time.monotonic() + TIMEOUT))


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(200).decode(errors='replace')
    except (OSError, http.client.HTTPException):
        return ''


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if '@' in parts.netloc:  # a password, which a case would keep
        return False
    return whole and url.isascii() and url.isprintable() and ' ' not in url


def _conversation(question: Question) -> list[dict[str, str]]:
    """The conversation with what is asked behind its last words. An answer that is begun would be right too, but most
    endpoints begin another one after it.
    """
    asked = f'Go on with this line, from where it ends: {question.begun}'
    *before, last = question.messages
    if last['role'] != 'user':
        return [*question.messages, {'role': 'user', 'content': asked}]
    return [*before, {'role': 'user', 'content': f'{last["content"]}\n\n{asked}'}]


def _answer(reply: dict) -> Answer:
    choice = reply['choices'][0]
    if choice.get('finish_reason') == 'content_filter' or choice['message'].get('refusal'):
        return Answer('', REFUSED)
    text = choice['message']['content'] or ''  # null where a model has only thought
    return Answer(text, '' if text.strip() else SILENT)
