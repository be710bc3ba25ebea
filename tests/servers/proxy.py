"""An HTTP proxy that does to requests what networks and busy servers do.

`proxy.fault = f` calls f(request) for each request; what it returns happens to that one:

- None: nothing, it goes through;
- (status, headers): this answer, and the server hears nothing of it;
- "drop": the connection ends, and the server hears nothing of it;
- "lose": the server does what it was asked, and the connection ends before its answer;
- "cut": the connection ends in the middle of the answer's body.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    number: int
    method: str
    path: str
    size: int


@dataclass
class Answer:
    """What the server said to a request that it heard: bytes of body."""

    method: str
    path: str
    size: int


class Proxy:
    """What the tests set and look at."""

    def __init__(self, target):
        self.target = target  # port
        self.url = ""
        self.fault = None
        self.requests = []
        self.answers = []
        self._lock = threading.Lock()

    def meet(self, method, path, size):
        with self._lock:
            request = Request(len(self.requests), method, path, size)
            self.requests.append(request)
            return self.fault(request) if self.fault else None

    def storm(self, length, answer=(503, {})):
        """Let this happen to the next `length` requests."""
        start = len(self.requests)
        self.fault = lambda request: answer if request.number < start + length else None

    def once(self, method, happens, part=""):
        """Let this happen to the next request with this method and this in its path."""
        left = [happens]

        def fault(request):
            return left.pop() if left and request.method == method and part in request.path else None

        self.fault = fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    proxy: Proxy

    def do(self):
        body = self._body()
        happens = self.proxy.meet(self.command, self.path, len(body))
        if happens == "drop":
            return self._hang_up()
        if isinstance(happens, tuple):
            return self._answer(happens[0], happens[1], b"")
        status, headers, answer = self._forward(body)
        self.proxy.answers.append(Answer(self.command, self.path, len(answer)))
        if happens == "lose":
            return self._hang_up()
        if happens == "cut":
            self._answer(status, headers, answer[: len(answer) // 2], length=len(answer))
            return self._hang_up()
        return self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do  # noqa: N815  # http.server's names

    def handle_expect_100(self):
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body):
        connection = HTTPConnection("127.0.0.1", self.proxy.target, timeout=30)
        try:
            skipped = ("transfer-encoding", "expect", "connection", "content-length")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            length = int(answer.headers.get("Content-Length", len(data)))
            kept = [item for item in answer.getheaders() if item[0].lower() not in (*skipped, "keep-alive")]
            return answer.status, [*kept, ("Content-Length", str(length))], data
        finally:
            connection.close()

    def _answer(self, status, headers, body, length=None):
        self.send_response_only(status)
        items = headers.items() if isinstance(headers, dict) else headers
        for name, value in items:
            self.send_header(name, value)
        if isinstance(headers, dict):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self):
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def proxied(port):
    """Run a proxy before the server on `port` of this machine."""
    proxy = Proxy(port)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
