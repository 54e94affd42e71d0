"""A forward proxy that opens tunnels (CONNECT), and takes whatever name it is asked for to be one address here."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Tunnel:
    """`asked` holds what was asked for; with `password`, USER:PASSWORD in base64, nobody else may ask."""

    def __init__(self, port: int, *, password: str | None = None) -> None:
        self.port = port
        self.password = password
        self.asked: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves until the block ends; the proxy's host and port."""
        handler = type("Handler", (_Handler,), {"owner": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
            )
            thread.start()
            try:
                yield f"127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: Tunnel

    def do_CONNECT(self) -> None:
        self.close_connection = True
        password = self.owner.password
        if password is not None and self.headers.get("Proxy-Authorization") != f"Basic {password}":
            self.send_error(407)
            return
        self.owner.asked.append(self.path)
        with socket.create_connection(("127.0.0.1", self.owner.port)) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
            back.start()
            _copy(self.connection, far)
            back.join(5)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Keeps the test output clean."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
