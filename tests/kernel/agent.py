"""One process inside one network namespace: it serves, probes, runs commands and reads the node's state.

Run as `python agent.py NAMESPACE`; it speaks JSON lines on its standard streams. Servers answer with their name,
the address that they were asked at and the client's address as they see it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

from trace_socket import TraceSocket

_CLONE_NEWNET = 0x40000000
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_OPEN = {1, 8}  # TCP_ESTABLISHED, TCP_CLOSE_WAIT
_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET}


def enter(namespace: str) -> None:
    """Move this process into a namespace of `ip netns`."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


class Servers:
    """TCP and UDP servers in a thread of their own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    def open(self, proto: str, ip: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if proto == "udp":
                s.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        elif proto == "udp":
            s.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        s.bind((ip, port))
        s.setblocking(False)
        if proto == "tcp":
            s.listen(512)
        with self._lock:
            self._selector.register(s, selectors.EVENT_READ, (proto, family))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(0.2):
                proto, family = key.data
                try:
                    if proto == "tcp":
                        self._accept(key.fileobj)
                    else:
                        self._datagram(key.fileobj, family)
                except OSError:
                    continue

    def _words(self, local: str, port: int, client: str) -> bytes:
        return json.dumps({"name": self._name, "ip": local, "port": port, "source": client}).encode()

    def _accept(self, s: Any) -> None:
        connection, client = s.accept()
        with connection:
            local = connection.getsockname()
            connection.send(self._words(local[0], local[1], client[0]))

    def _datagram(self, s: Any, family: int) -> None:
        """Answer from the address that was asked, as servers on several addresses do."""
        _, ancillary, _, client = s.recvmsg(2048, 512)
        local, extra = "", []
        for level, kind, value in ancillary:
            if family == socket.AF_INET and kind == _IP_PKTINFO:
                local = socket.inet_ntop(family, value[8:12])
                extra = [(level, kind, struct.pack("=I4s4s", 0, value[8:12], value[8:12]))]
            elif kind == _IPV6_PKTINFO:
                local = socket.inet_ntop(family, value[:16])
                extra = [(level, kind, value[:16] + struct.pack("=I", 0))]
        s.sendmsg([self._words(local, s.getsockname()[1], client[0])], extra, 0, client)


class Probe:
    """One connection attempt, or one datagram and its answer."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.answer: dict[str, Any] | None = None
        self.connected = False
        family = socket.AF_INET6 if ":" in wanted["dst"] else socket.AF_INET
        self.tcp = wanted["proto"] == "tcp"
        self.socket = socket.socket(family, socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.until = time.monotonic() + wanted.get("timeout", 0.25)
        try:
            if wanted.get("src"):
                self.socket.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
                self.socket.bind((wanted["src"], 0))
            code = self.socket.connect_ex((wanted["dst"], wanted["port"]))
            if code not in (0, errno.EINPROGRESS):
                self.fail(code)
            elif not self.tcp:
                self.connected = True
                self.socket.send(b"?")
        except OSError as error:
            self.fail(error.errno or 0)

    def fail(self, code: int) -> None:
        if self.tcp and self.connected:  # the handshake was answered; what came then is not asked
            self.finish({"outcome": "connects"})
            return
        outcome = "refused" if code in _REFUSED else "unreachable"
        self.finish({"outcome": outcome, "errno": errno.errorcode.get(code, str(code))})

    def finish(self, answer: dict[str, Any]) -> None:
        if self.answer is None:
            self.answer = answer
            self.socket.close()

    def events(self) -> int:
        return selectors.EVENT_READ if self.connected else selectors.EVENT_WRITE

    def ready(self) -> None:
        if (
            self.tcp
            and not self.connected
            and self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _OPEN
        ):
            self.connected = True  # an error that came right behind the handshake does not undo it
            return
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.fail(code)
            return
        if not self.connected:
            self.connected = True
            return
        try:
            data = self.socket.recv(2048)
        except OSError as error:
            self.fail(error.errno or 0)
            return
        self.finish({"outcome": "connects", **(json.loads(data) if data else {})})

    def expire(self) -> None:
        self.finish({"outcome": "connects"} if self.tcp and self.connected else {"outcome": "times_out"})


def probe(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All probes at once; the answers in their order."""
    probes = [Probe(each) for each in wanted]
    selector = selectors.DefaultSelector()
    waiting = {p for p in probes if p.answer is None}
    for p in waiting:
        selector.register(p.socket, p.events(), p)
    while waiting:
        now = time.monotonic()
        for key, _ in selector.select(max(0.0, min(p.until for p in waiting) - now)):
            p = key.data
            was, held = p.connected, p.socket
            p.ready()
            if p.answer is not None:
                selector.unregister(key.fd)
                waiting.discard(p)
            elif was != p.connected:
                selector.modify(held, p.events(), p)
        now = time.monotonic()
        for p in [p for p in waiting if p.until <= now]:
            selector.unregister(p.socket)
            waiting.discard(p)
            p.expire()
    return [p.answer or {} for p in probes]


def run(argv: list[str], text: str | None) -> dict[str, Any]:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def collect(node: str) -> dict[str, str]:
    """The node's files, as ktp itself collects them."""
    from ktp.collect.local_node import collect_local_node

    capture = collect_local_node(node)
    lost = [gap for gap in capture.gaps if gap.kind.startswith("node-")]
    if lost:
        raise OSError("; ".join(gap.message for gap in lost))
    return {name: content.decode("latin-1") for name, content in capture.files.items()}


def main() -> None:
    """Answer requests until the input ends."""
    enter(sys.argv[1])
    servers = Servers(sys.argv[2])
    trace: TraceSocket | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request["do"]
        answer: Any = None
        try:
            if what == "serve":
                for proto, ip, port in request["servers"]:
                    servers.open(proto, ip, port)
            elif what == "probe":
                answer = probe(request["probes"])
            elif what == "run":
                answer = run(request["argv"], request.get("text"))
            elif what == "write":
                for path, value in request["values"]:
                    with open(path, "w", encoding="ascii") as file:
                        file.write(value)
            elif what == "trace":
                trace = trace or TraceSocket()
                answer = trace.read()
            elif what == "collect":
                answer = collect(request["node"])
            reply = {"answer": answer}
        except Exception as error:  # noqa: BLE001 - told to the test, which fails
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
