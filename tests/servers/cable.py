"""A TCP connection to a server of this machine that can be cut."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import contextmanager, suppress


class Cable:
    """`cut()` ends every connection now; with `cut_after = n` it happens once n more bytes went to the server.

    While `down` is set, as when the server is started anew, connections end as they are made.
    """

    def __init__(self, target):
        self.target = target  # port
        self.port = 0
        self.cut_after = None
        self.down = False
        self.connections = 0
        self._lock = threading.Lock()
        self._open = set()

    def cut(self):
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    @property
    def open_connections(self):
        with self._lock:
            return len(self._open) // 2

    def join(self, near):
        if self.down:
            return
        far = socket.create_connection(("127.0.0.1", self.target))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self.connections += 1
            self._open |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near, False))
        back.start()
        self._pump(near, far, True)
        back.join()
        with self._lock:
            self._open -= {near, far}
        far.close()

    def _pump(self, source, target, counts):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counts and self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after < 0:
                        self.cut_after = None
                        self.cut()
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cable(port):
    cable = Cable(port)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            cable.join(self.request)

    with Server(("127.0.0.1", 0), Handler) as server:
        cable.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield cable
        finally:
            cable.cut()
            server.shutdown()
            thread.join()
