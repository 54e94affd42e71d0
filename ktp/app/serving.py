"""A small HTTP server of pages that are made when they are asked for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from ktp.errors import UsageError
from ktp.model.record import dataclass

_TIMEOUT = 10.0  # seconds for a client to send its request


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered to a GET."""

    status: int
    content_type: str
    body: bytes


@contextlib.contextmanager
def serving(address: tuple[str, int], page: Callable[[str], Page | None]) -> Iterator[str]:
    """Answer GET and HEAD of the paths that `page` has until the block ends; yields where, as HOST:PORT.

    Raises UsageError where that address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT

        def do_GET(self) -> None:
            found = page(urlsplit(self.path).path) or Page(
                404, "text/plain; charset=utf-8", b"there is no such page\n"
            )
            self.send_response(found.status)
            self.send_header("Content-Type", found.content_type)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def version_string(self) -> str:
            return "ktp"

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6 and not address[0]:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is nothing to tell."""

    if ":" in address[0] or (not address[0] and socket.has_dualstack_ipv6()):
        Server.address_family = socket.AF_INET6
    try:
        server = Server(address, Handler)
    except OSError as error:
        where = f"{address[0] or '*'}:{address[1]}"
        raise UsageError(
            f"cannot listen on {where}: {error.strerror or error}", hint="choose another port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        host, port = str(server.server_address[0]), server.server_address[1]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    finally:
        server.shutdown()
        server.server_close()
