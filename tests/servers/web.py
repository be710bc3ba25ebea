"""A plain static web server on loopback: files, ranges of files, and an index page for each directory."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(SimpleHTTPRequestHandler):
    """Python's own handler, and ranges; `without` names what a lesser server lacks ("ranges", "index")."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and bodies leave together
    without = ()
    refusal = "NOT_FOUND"

    def send_head(self):
        path = self.translate_path(self.path)
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or "ranges" in self.without or not os.path.isfile(path):
            return super().send_head()
        size = os.path.getsize(path)
        start = int(match[1])
        end = min(int(match[2]) + 1 if match[2] else size, size)
        if start >= size:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(start)
            self.wfile.write(file.read(end - start))
        return None

    def list_directory(self, path):
        if "index" in self.without:
            self.send_error(HTTPStatus[self.refusal])
            return None
        return super().list_directory(path)

    def log_message(self, *_):
        pass


@contextmanager
def web_server(folder, *, without=(), refusal="NOT_FOUND"):
    """Serve `folder`; yields its URL and what was asked for: (method, path, status)."""
    seen = []

    class Server(Handler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def send_response(self, code, message=None):
            seen.append((self.command, self.path, int(code)))
            super().send_response(code, message)

    Server.without, Server.refusal = without, refusal
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
