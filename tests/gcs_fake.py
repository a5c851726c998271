"""A small gs:// over loopback: what gcsfs asks of the JSON API, generation preconditions, and scripted faults."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

LOST = 'lost'  # the request is carried out and its reply never sent


@dataclasses.dataclass
class Fault:
    """what: a status that is answered instead, seconds to wait before the answer, or LOST. times: how often."""

    method: str
    part: str  # of the path and query
    what: int | float | str
    times: int = 1


@dataclasses.dataclass
class Kill:
    """See Fake.killing. gone: the client is."""

    at: int
    after: bool
    reached: threading.Event = dataclasses.field(default_factory=threading.Event)
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)


class Fake(http.server.ThreadingHTTPServer):
    """objects: name in the bucket -> (resource, data). shift: of its clock, in seconds."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.objects: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.uploads: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
        self.faults: list[Fault] = []
        self.firsts: Iterator[int | float | str] | None = None  # what goes wrong with every request that is a new one
        self.requests: list[str] = []
        self.seen: set[str] = set()
        self.kill: Kill | None = None
        self.changes = 0  # requests that change something, since `killing` began
        self.page, self.shift, self.delay, self.lock, self.count = 1000, 0.0, 0.0, threading.Lock(), 0

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}'

    def names(self, part: str = '') -> list[str]:
        return sorted(name for name in self.objects if part in name)

    def fault(self, request: str) -> int | float | str | None:
        """What is to go wrong with this request, once."""
        # Without TensorStore's number against caches, and the generation, another one in each attempt to commit.
        known = re.sub(r'(&tensorstore|ifGenerationMatch)=\w+', '', request)
        with self.lock:
            is_new = known not in self.seen
            self.seen.add(known)
            self.requests.append(request)
            if is_new and self.firsts is not None:
                return next(self.firsts)
            for fault in self.faults:
                if fault.times and request.startswith(fault.method) and fault.part in request:
                    fault.times -= 1
                    return fault.what
        return None

    @contextlib.contextmanager
    def killing(self, at: int, after: bool) -> Iterator[threading.Event]:
        """Request `at` of those that change something, counted from 1, sets the event and is never answered; it is
        carried out only with `after`. Who waits for the event kills the client.
        """
        self.changes, self.kill = 0, Kill(at, after)
        try:
            yield self.kill.reached
        finally:
            self.kill.gone.set()
            self.kill = None

    def due(self, method: str) -> Kill | None:
        """The kill that is due at this request."""
        with self.lock:
            if method == 'GET' or self.kill is None:
                return None
            self.changes += 1
            return self.kill if self.changes == self.kill.at else None

    def handle_error(self, *_: Any) -> None:  # a client that went away
        pass


@contextlib.contextmanager
def serve() -> Iterator[Fake]:
    fake = Fake()
    thread = threading.Thread(target=fake.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    try:
        yield fake
    finally:
        fake.shutdown()
        fake.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.server.shift)

    def _now(self) -> str:
        now = datetime.datetime.fromtimestamp(time.time() + self.server.shift, datetime.UTC)
        return now.isoformat(timespec='milliseconds').replace('+00:00', 'Z')

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        written = re.search(rb'"name": "([^"]+)"', body)  # the name of an upload is in its body
        name = written[1].decode() if written else urllib.parse.unquote(url.path.partition('/o/')[2])
        fault = self.server.fault(f'{self.command} {urllib.parse.unquote(self.path)} {name}')
        time.sleep(self.server.delay)
        if isinstance(fault, int):
            self._send(fault, {'error': {'code': fault, 'message': 'scripted'}})
            return
        if isinstance(fault, float):
            time.sleep(fault)
        kill = self.server.due(self.command)
        if not kill or kill.after:
            with self.server.lock:
                status, content, headers = self._carry_out(url.path, name, query, body)
        if kill:
            kill.reached.set()
            kill.gone.wait(30)
        if fault == LOST or kill:
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            self._send(status, content, headers)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ((headers or {}) | {'Content-Length': str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def _carry_out(self, path: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path.startswith('/upload/'):
            return self._upload(query, body)
        if not name:
            return 200, self._list(query), {}
        resource, data = self.server.objects.get(name, (None, b''))
        if resource is None:
            return 404, {'error': {'code': 404, 'message': 'No such object'}}, {}
        for param, field in (('ifGenerationMatch', 'generation'), ('ifMetagenerationMatch', 'metageneration')):
            if query.get(param, resource[field]) != resource[field]:
                return 412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {}
        if self.command == 'DELETE':
            del self.server.objects[name]
            return 204, b'', {}
        if self.command == 'PATCH':
            changed = json.loads(body) | {'metageneration': str(int(resource['metageneration']) + 1)}
            self.server.objects[name] = (resource | changed | {'updated': self._now()}, data)
            return 200, self.server.objects[name][0], {}
        if query.get('alt') != 'media':
            return 200, resource, {}
        headers = {'X-Goog-Generation': resource['generation']}
        if 'Range' not in self.headers:
            return 200, data, headers
        first, last = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range']).groups()
        part = data[int(first) : int(last) + 1 if last else None]
        return 206, part, headers | {'Content-Range': f'bytes {first}-{int(first) + len(part) - 1}/{len(data)}'}

    def _upload(self, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if query['uploadType'] == 'media':
            return self._create({'name': query['name']}, query, body)
        if query['uploadType'] == 'multipart':
            kind = f'Content-Type: {self.headers["Content-Type"]}\n\n'.encode()
            about, media = email.message_from_bytes(kind + body).get_payload()
            return self._create(json.loads(about.get_payload()), query, media.get_payload(decode=True))
        if 'upload_id' not in query:
            self.server.uploads[str(len(self.server.uploads))] = (json.loads(body), query)
            location = f'{self.server.url}/upload/storage/v1/b/x/o?uploadType=resumable'
            return 200, {}, {'Location': f'{location}&upload_id={len(self.server.uploads) - 1}'}
        about, first = self.server.uploads[query['upload_id']]
        # A chunk that comes again, since the reply to it was lost, takes its own place.
        begin = re.match(r'bytes (\d+)-', self.headers['Content-Range'])
        before = about.get('data', b'')
        about['data'] = whole = before[: int(begin[1])] + body if begin else before
        if self.headers['Content-Range'].endswith('/*'):
            return 308, b'', {'Range': f'bytes=0-{len(whole) - 1}'}
        return self._create({'name': about['name']}, first, whole)

    def _create(self, about: dict[str, Any], query: dict[str, str], data: bytes) -> tuple[int, Any, dict[str, str]]:
        name, known = about['name'], self.server.objects.get(about['name'])
        if query.get('ifGenerationMatch', '') not in ('', known[0]['generation'] if known else '0'):
            return 412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {}
        self.server.count += 1
        about |= {'generation': str(10**15 + self.server.count), 'metageneration': '1', 'updated': self._now()}
        self.server.objects[name] = (about | {'size': str(len(data)), 'bucket': 'bucket'}, data)
        return 200, self.server.objects[name][0], {}

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, after = query.get('prefix', ''), query.get('pageToken', '')
        found: dict[str, Any] = {}
        for name in self.server.names():
            if name.startswith(prefix):
                rest, slash, _ = name[len(prefix) :].partition(query.get('delimiter') or '\0')
                found.setdefault(prefix + rest + slash, None if slash else self.server.objects[name][0])
        names = [name for name in found if name > after]
        page = names[: min(self.server.page, int(query.get('maxResults', 1000)))]
        answer: dict[str, Any] = {'kind': 'storage#objects'}
        answer['items'] = [found[name] for name in page if found[name]]
        answer['prefixes'] = [name for name in page if not found[name]]
        return answer | ({'nextPageToken': page[-1]} if len(page) < len(names) else {})
