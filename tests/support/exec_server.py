"""An API server's exec endpoint over a real WebSocket (RFC 6455), with Kubernetes' channel protocol v4 or v5.

What it does was taken from kube-apiserver and containerd: an empty message for each channel first, output in
messages of 32 KiB, the end as a v1 Status on channel 3, then a close frame.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a command in the container does. `status` None: the image has no such program.

    `more` says what it does next, given what it is told behind its output.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    status: int | None = 0
    break_off: bool = False
    hang: bool = False
    more: Callable[[bytes], Program] | None = None


@dataclass(frozen=True, kw_only=True)
class Exec:
    """One exec as it was asked for."""

    pod: str
    container: str
    command: tuple[str, ...]
    protocol: str
    authorization: str | None
    stdin: bytes = b""


@dataclass
class ExecServer:
    """`program` says what a command does, given the command and its stdin."""

    program: Callable[[Sequence[str], bytes], Program]
    protocols: tuple[str, ...] = (V5, V4)
    refuse: tuple[int, str] | None = None
    pods: list[dict[str, Any]] = field(default_factory=list)
    forbidden_pods: bool = False
    token: str | None = None
    piece: int = 32 * 1024
    execs: list[Exec] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[ExecServer]:
        """Serves until the block ends."""
        handler = type("Handler", (_Handler,), {"exec_owner": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.hanging.set()
            server.shutdown()
            server.server_close()
            thread.join()


class ExecHandler(BaseHTTPRequestHandler):
    """Serves exec requests, for a server that serves other things too."""

    protocol_version = "HTTP/1.1"
    exec_owner: ExecServer

    def serve_exec(self) -> bool:
        """Whether the request was one for an exec, and so was answered."""
        parts = urlsplit(self.path)
        if not parts.path.endswith("/exec"):
            return False
        if self.exec_owner.refuse is not None:
            code, message = self.exec_owner.refuse
            self._json(code, {"kind": "Status", "status": "Failure", "message": message, "code": code})
        else:
            self._exec(parts.path.split("/")[-2], parse_qs(parts.query))
        return True

    def _json(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _exec(self, pod: str, query: dict[str, list[str]]) -> None:
        offered = [word.strip() for word in self.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        protocol = next(one for one in self.exec_owner.protocols if one in offered)
        key = self.headers["Sec-WebSocket-Key"] + _GUID
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.send_header("Sec-WebSocket-Protocol", protocol)
        self.end_headers()
        self.close_connection = True
        for channel in range(4):
            self._send(bytes([channel]))
        command = tuple(query["command"])
        # A program that is not there is found out before anything is read.
        stdin = self._stdin() if query.get("stdin") == ["true"] else b""
        self.exec_owner.execs.append(
            Exec(
                pod=pod,
                container=query["container"][0],
                command=command,
                protocol=protocol,
                authorization=self.headers.get("Authorization"),
                stdin=stdin,
            )
        )
        self._play(command, self.exec_owner.program(command, stdin))

    def _play(self, command: Sequence[str], program: Program) -> None:
        if program.status is None:
            words = (
                f'error executing command in container: failed to exec in container: failed to start exec "0": '
                f'OCI runtime exec failed: exec failed: unable to start container process: exec: "{command[0]}": '
                "executable file not found in $PATH: unknown"
            )
            self._end({"status": "Failure", "reason": "InternalError", "message": words, "code": 500})
            return
        self._stream(1, program.stdout)
        self._stream(2, program.stderr)
        if program.more is not None:
            self._play(command, program.more((self._receive() or b"\0")[1:]))
            return
        if program.hang:
            self.exec_owner.hanging.wait(30)
        if program.break_off or program.hang:
            return
        if program.status == 0:
            self._end({"metadata": {}, "status": "Success"})
        else:
            self._end(
                {
                    "metadata": {},
                    "status": "Failure",
                    "message": f"command terminated with non-zero exit code: exit status {program.status}",
                    "reason": "NonZeroExitCode",
                    "details": {"causes": [{"reason": "ExitCode", "message": str(program.status)}]},
                }
            )

    def _stream(self, channel: int, content: bytes) -> None:
        for at in range(0, len(content), self.exec_owner.piece):
            self._send(bytes([channel]) + content[at : at + self.exec_owner.piece])

    def _end(self, status: dict[str, Any]) -> None:
        self._send(b"\x03" + json.dumps(status).encode())
        self._frame(8, struct.pack("!H", 1000))
        while self._receive() is not None:
            pass  # closing a socket that still holds something takes back what was sent

    def _send(self, message: bytes) -> None:
        self._frame(2, message)

    def _frame(self, opcode: int, content: bytes) -> None:
        size = len(content)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(head + content)

    def _stdin(self) -> bytes:
        """All of stdin: until v5 closes it, or until the line that runs ktp's script."""
        collected = b""
        while True:
            message = self._receive()
            if message is None or message == b"\xff\x00":
                return collected
            if message[:1] == b"\0":
                collected += message[1:]
            if collected.endswith(b"\nktp_main </dev/null\n"):
                return collected

    def _receive(self) -> bytes | None:
        head = self.rfile.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            return None
        size = head[1] & 127
        if size == 126:
            (size,) = struct.unpack("!H", self.rfile.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.rfile.read(8))
        assert head[1] & 128, "a client must mask what it sends (RFC 6455, 5.1)"
        mask = self.rfile.read(4)
        body = self.rfile.read(size)
        return bytes(byte ^ mask[at & 3] for at, byte in enumerate(body))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Keeps the test output clean."""


class _Handler(ExecHandler):
    def do_GET(self) -> None:
        if not self.serve_exec():
            self._list()

    def _list(self) -> None:
        if self.exec_owner.forbidden_pods:
            message = 'pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "kube-system"'
            self._json(403, {"kind": "Status", "status": "Failure", "message": message, "code": 403})
            return
        self._json(
            200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.exec_owner.pods}
        )
