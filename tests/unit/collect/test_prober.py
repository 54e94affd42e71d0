"""The prober against real sockets on loopback: listeners, refusing ports, servers that say nothing."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.collect import prober
from ktp.collect.machine import CommandResult
from ktp.collect.prober import (
    ProbeSettings,
    ask_health,
    probe_all,
    probe_once,
    read_counters,
    source_address,
)
from ktp.collect.remote_prober import (
    build_probe_script,
    parse_answers,
    parse_lengths,
    probe_from_nodes,
)
from ktp.collect.ssh import SshSettings
from ktp.model.probing import HealthTarget, LengthAttempt, LengthRow, LengthTarget, Observation, ProbeTarget
from ktp.model.trace import Symptom

QUICK = ProbeSettings(tries=3, timeout=0.3)  # where silence is expected
PATIENT = ProbeSettings(tries=3, timeout=30)  # where an answer is, however busy the machine


@contextlib.contextmanager
def tcp(answer: Callable[[socket.socket], object] = lambda _: None) -> Iterator[int]:
    """A TCP server on loopback; `answer` gets each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def udp(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """A UDP server on loopback; it stays silent where `answer` gives None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        s.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    data, client = s.recvfrom(2048)
                    said = answer(data)
                    if said is not None:
                        s.sendto(said, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield s.getsockname()[1]
        ended.set()  # before the socket's number is another's
        thread.join()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def target(port: int, protocol: str = "TCP", host: str = "127.0.0.1") -> ProbeTarget:
    return ProbeTarget(frontend="f", host=host, port=port, protocol=protocol, node="n")


def one(port: int, protocol: str = "TCP", settings: ProbeSettings = PATIENT) -> Observation:
    return probe_all([target(port, protocol)], settings)[0]


def until_closed(s: socket.socket) -> None:
    """Takes what comes, and says nothing."""
    while s.recv(4096):
        pass


def http_server(status: bytes, body: bytes = b"") -> Callable[[socket.socket], None]:
    def answer(s: socket.socket) -> None:
        s.recv(4096)
        s.sendall(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\n" + body)

    return answer


# ------------------------------------------------------------------------------------------------------ symptoms


def test_a_listener_connects_and_is_left_in_peace() -> None:
    got: list[bytes] = []
    with tcp(lambda s: got.append(s.recv(100))) as port:
        seen = one(port)
        until = time.monotonic() + 30
        while len(got) < 3 and time.monotonic() < until:  # the server may be behind
            time.sleep(0.01)
    assert seen.symptom is Symptom.CONNECTS
    assert seen.connected == 3
    assert seen.source == "127.0.0.1"
    assert got == [b"", b"", b""]


def test_a_closed_port_is_refused() -> None:
    assert one(free_port()).symptom is Symptom.REFUSED


def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens on a port of the ephemeral range, the kernel may choose that port as the source."""
    port = free_port()
    real = socket.socket.connect

    def from_the_same_port(self: socket.socket, address: tuple[str, int]) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind(("127.0.0.1", port))
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", from_the_same_port)
    assert probe_once(target(port), PATIENT).symptom is Symptom.REFUSED


def test_a_full_backlog_times_out() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            s = held.enter_context(socket.socket())
            s.setblocking(False)
            s.connect_ex(listener.getsockname())
        time.sleep(0.05)
        assert one(listener.getsockname()[1], settings=ProbeSettings(tries=1, timeout=0.2)).symptom is (
            Symptom.TIMES_OUT
        )


def test_a_mixture_is_intermittent() -> None:
    seen = Observation(
        target=target(1),
        attempts=tuple(probe_once(target(p), PATIENT) for p in (free_port(), free_port())),
    )
    with tcp() as port:
        mixed = Observation(target=target(port), attempts=(*seen.attempts, probe_once(target(port), PATIENT)))
    assert seen.symptom is Symptom.REFUSED
    assert mixed.symptom is Symptom.INTERMITTENT
    assert mixed.symptoms == {Symptom.REFUSED: 2, Symptom.CONNECTS: 1}


def test_udp_answers_are_refused_or_silent() -> None:
    with udp(lambda data: data) as echo, udp(lambda _: None) as silent:
        assert one(echo, "UDP").symptom is Symptom.CONNECTS
        seen = one(silent, "UDP", QUICK)
        assert seen.symptom is Symptom.TIMES_OUT
        assert "application" in seen.attempts[0].detail
    assert one(free_port(socket.SOCK_DGRAM), "UDP").symptom is Symptom.REFUSED


def test_what_udp_sends() -> None:
    got: list[bytes] = []
    with udp(lambda data: got.append(data) or data) as port:
        one(port, "UDP", ProbeSettings(tries=1, timeout=30))
        one(port, "UDP", ProbeSettings(tries=1, timeout=30, datagram=b"\x00hi"))
        one(port, "UDP", ProbeSettings(tries=1, timeout=30, dns_ports=frozenset({port})))
    assert got[:2] == [b"ktp probe\n", b"\x00hi"]
    assert got[2][4:6] == b"\x00\x01"  # one question
    assert got[2].endswith(b"\x00\x00\x02\x00\x01")  # . NS IN


def test_sctp_and_addresses_without_a_way_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "source_address", lambda host: None if host == "fd00::1" else "127.0.0.1")
    seen = probe_all([target(1, "SCTP"), target(1, host="fd00::1")], QUICK)
    assert [o.skipped for o in seen] == ["SCTP is not probed", "this machine has no way to fd00::1"]
    assert all(o.symptom is Symptom.UNKNOWN and not o.attempts for o in seen)


# ---------------------------------------------------------------------------------------------------------- http


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (http_server(b"200 OK"), 200, "HTTP 200"),
        (http_server(b"503 Service Unavailable"), 503, "HTTP 503"),
        (lambda s: s.sendall(b"SSH-2.0-x\r\n"), None, "no HTTP"),
        (lambda s: None, None, "nothing"),
        (until_closed, None, "nothing"),
    ],
    ids=["200", "503", "another protocol", "closed", "hanging"],
)
def test_a_get(answer: Callable[[socket.socket], None], status: int | None, detail: str) -> None:
    with tcp(answer) as port:
        patience = 0.3 if answer is until_closed else 30
        seen = one(port, settings=ProbeSettings(tries=1, timeout=patience, http="/x"))
    assert seen.symptom is Symptom.CONNECTS
    assert seen.attempts[0].http == status
    assert seen.attempts[0].detail.endswith(detail)
    assert seen.answered_http == (status is not None)


def test_a_server_that_drips_is_not_waited_for() -> None:
    def drip(s: socket.socket) -> None:
        while True:  # until the client goes
            s.sendall(b"H")
            time.sleep(0.05)

    with tcp(drip) as port:
        started = time.monotonic()
        one(port, settings=ProbeSettings(tries=1, timeout=0.3, http="/"))
    assert time.monotonic() - started < 20  # waited for, it would never end


def test_what_a_get_asks_for() -> None:
    got: list[bytes] = []
    with tcp(lambda s: got.append(s.recv(1000))) as port:
        one(port, settings=ProbeSettings(tries=1, timeout=30, http="/healthz?x=1"))
    assert got[0].startswith(f"GET /healthz?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())


# ------------------------------------------------------------------------------------------------------- bounded


def test_never_more_than_asked_for_are_open_at_once() -> None:
    lock = threading.Lock()
    now = most = 0

    def hold(s: socket.socket) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        s.recv(100)
        time.sleep(0.02)
        with lock:  # before the answer: the prober may be here again as soon as it has it
            now -= 1
        s.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with tcp(hold) as port:
        seen = one(port, settings=ProbeSettings(tries=20, parallel=4, timeout=30, http="/"))
    assert seen.connected == 20
    assert 1 < most <= 4


def test_progress_counts_every_try() -> None:
    told: list[tuple[int, int, str]] = []
    with tcp() as port:
        probe_all([target(port)], QUICK, on_progress=lambda *words: told.append(words))
    assert [t[:2] for t in told] == [(1, 3), (2, 3), (3, 3)]


def test_the_source_address_is_the_one_of_the_way_there() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert source_address("127.0.0.9") in ("127.0.0.1", "127.0.0.9")


# -------------------------------------------------------------------------------------------------------- health

BODY = b'{"service": {"namespace": "a", "name": "b"}, "localEndpoints": %d, "serviceProxyHealthy": true}'


def test_health_checks() -> None:
    with (
        tcp(http_server(b"200 OK", BODY % 2)) as well,
        tcp(http_server(b"503 Service Unavailable", BODY % 0)) as none,
        tcp(http_server(b"200 OK", b"[not json")) as odd,
        tcp(until_closed) as hanging,
        tcp(lambda s: s.sendall(b"220 mail\r\n")) as mail,
    ):
        asked = [
            HealthTarget(node="n", address="127.0.0.1", port=p) for p in (well, none, odd, mail, free_port())
        ]
        said = ask_health(asked, timeout=30)
        silent = ask_health([HealthTarget(node="n", address="127.0.0.1", port=hanging)], timeout=0.3)
    assert [(a.status, a.local_endpoints, a.proxy_healthy) for a in (*said, *silent)] == [
        (200, 2, True),
        (503, 0, True),
        (200, None, None),
        (None, None, None),
        (None, None, None),
        (None, None, None),
    ]
    assert [a.problem for a in (*said, *silent)] == [
        "",
        "",
        "",
        "answers no HTTP",
        "is refused",
        "does not answer",
    ]


# ------------------------------------------------------------------------------------------------------ counters


class Machine:
    """Prints a dump for the commands that it has."""

    def __init__(self, *commands: str) -> None:
        self.commands = commands
        self.ran: list[str] = []

    def run(self, command: tuple[str, ...], *, timeout: float) -> CommandResult:
        self.ran.append(" ".join(command))
        return CommandResult(status=0, stdout=b"*nat\n")

    def has_command(self, name: str) -> bool:
        return name in self.commands


def test_counters_are_read_of_back_ends_that_have_rules_alone() -> None:
    machine = Machine("iptables-legacy-save", "iptables-nft-save", "ip6tables-nft-save")
    found = read_counters(["iptables-nft"], machine)  # type: ignore[arg-type]
    assert set(found) == {"iptables-nft/ip", "iptables-nft/ip6"}
    assert machine.ran == ["iptables-nft-save -c", "ip6tables-nft-save -c"]


# -------------------------------------------------------------------------------------------------- on a node


def test_the_script_for_nodes_sees_what_the_prober_sees() -> None:
    settings = ProbeSettings(tries=2, timeout=1.5, http="/")
    expected = [
        {Symptom.CONNECTS},
        {Symptom.CONNECTS},
        {Symptom.REFUSED},
        {Symptom.CONNECTS},
        {Symptom.TIMES_OUT},
        {Symptom.REFUSED},
    ]
    for attempt in range(
        3
    ):  # a busy machine may be late, and a free port may be taken by another test meanwhile
        with (
            tcp(http_server(b"204 No Content")) as web,
            tcp(lambda s: s.recv(100)) as mute,
            udp(lambda data: data) as echo,
            udp(lambda _: None) as silent,
        ):
            targets = [
                target(web),
                target(mute),
                target(free_port()),
                target(echo, "UDP"),
                target(silent, "UDP"),
                target(free_port(socket.SOCK_DGRAM), "UDP"),
            ]
            script = build_probe_script(targets * 2, settings, "mark")
            done = subprocess.run(["sh", "-s"], input=script, capture_output=True, check=False)
        seen = parse_answers(done.stdout, "mark", targets * 2, settings)
        symptoms = [{a.symptom for a in seen[t]} for t in targets]
        answers = [[a.http for a in seen[t]] for t in targets[:2]]
        if (symptoms, answers) == (expected, [[204, 204], [None, None]]):
            break
        assert attempt < 2, (symptoms, answers, done)
    assert all(len(seen[t]) == 2 for t in targets)


def test_hostile_words_stay_words(tmp_path: object) -> None:
    bad = ProbeTarget(frontend="f", host="x'; touch /tmp/ktp-owned; '$(id)`id`", port=1, protocol="TCP")
    settings = ProbeSettings(tries=1, timeout=0.2, http="/'$(id)")
    script = build_probe_script([bad], settings, "mark")
    done = subprocess.run(["sh", "-s"], input=script, capture_output=True, check=False)
    assert b"uid=" not in done.stdout
    (attempt,) = parse_answers(done.stdout, "mark", [bad], settings)[bad]
    assert attempt.symptom is not Symptom.CONNECTS


FAKE_SSH = """#!/bin/sh
for word in "$@"; do
  [ "$word" = -G ] && exit 0
  [ "$word" = node-gone ] && { echo "ssh: connect to host node-gone port 22: Connection refused" >&2; exit 255; }
  [ "$word" = node-bare ] && PATH=/nonexistent
done
exec /bin/sh -s
"""


def test_nodes_dial_over_ssh(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    settings = SshSettings(program=(str(ssh),), timeout=60)
    with tcp() as port:
        open_port, sctp = target(port), target(port, "SCTP")
        shut, hostile = target(free_port()), target(80, host="a b|c")
        targets = dict.fromkeys(("node-a", "node-gone", "node-bare"), (open_port, shut, sctp, hostile))
        seen, _, gaps = probe_from_nodes({}, targets, ProbeSettings(tries=2, timeout=30), settings)
    assert [(o.sender, o.symptom, bool(o.skipped)) for o in seen] == [
        ("node-a", Symptom.CONNECTS, False),
        ("node-a", Symptom.REFUSED, False),
        ("node-a", Symptom.UNKNOWN, True),
        ("node-a", Symptom.UNKNOWN, True),
    ]
    assert [(g.subject, g.kind) for g in gaps] == [("node-gone", "probe"), ("node-bare", "probe")]
    assert "refuses connections" in gaps[0].message
    assert "no bash" in gaps[1].message


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("size 100 PING 10.1.0.5 (10.1.0.5) 72(100) bytes of data. 80 bytes from 10.1.0.5: icmp_seq=1", (100, True, None, "")),
        ("size 1450 PING 10.1.0.5 1422(1450) bytes of data. 1 packets transmitted, 0 received", (1450, False, None, "")),
        ("size 1450 PING x From 10.9.5.2 icmp_seq=1 Frag needed and DF set (mtu = 1400)", (1450, False, 1400, "")),
        ("size 1450 ping: local error: message too long, mtu=1400", (1450, False, 1400, "")),
        ("size 1450 From fd00::1 icmp_seq=1 Packet too big: mtu=1280", (1450, False, 1280, "")),
        ("size 100 head: error reading 'standard input': Connection refused", (100, True, None, "")),
        ("size 100 ", (100, False, None, "")),
        ("size 100 ping: connect: Network is unreachable", (100, False, None, "Network is unreachable")),
        ("bash: line 5: ip: command not found", (None, False, None, "bash: line 5: ip: command not found")),
        ("", (None, False, None, "nothing was sent")),
    ],
)  # fmt: skip
def test_what_ping_and_bash_say_of_a_packet(
    said: str, expected: tuple[int | None, bool, int | None, str]
) -> None:
    packet = LengthTarget(pod="shop/web", node="node-b", host="10.1.0.5", is_full=True)
    printed = (
        f"mark 0 0 1.0 1.1 open\nmark 1 0 1.0 1.1 {said}\nmark 2 0 1 1 size 9\nother 1 0 1 1 x\n".encode()
    )
    ((a,),) = parse_lengths(printed, "mark", [packet], first=1).values()
    assert (a.size, a.answered, a.told, a.problem) == expected


@pytest.mark.parametrize(
    ("small", "full", "carries"),
    [
        ("yy", "yn", True), ("yy", "nn", False), ("yn", "nn", False), ("nn", "nn", None), ("nn", "yn", True), ("yy", "tn", True),
        ("yy", "pn", None), ("yy", "", None), ("", "nn", None),
    ],
)  # fmt: skip
def test_whether_full_packets_are_carried(small: str, full: str, carries: bool | None) -> None:
    kinds = {
        "y": LengthAttempt(answered=True, size=1), "n": LengthAttempt(answered=False, size=1),
        "t": LengthAttempt(answered=False, size=1, told=1400), "p": LengthAttempt(answered=False, problem="no"),
    }  # fmt: skip
    row = LengthRow(
        sender="a",
        pod="p",
        node="b",
        host="h",
        small=tuple(kinds[k] for k in small),
        full=tuple(kinds[k] for k in full),
    )
    assert row.carries is carries
