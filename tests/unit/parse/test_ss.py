from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.errors import EvidenceError
from ktp.model.host import ListeningSocket
from ktp.parse.ss import parse_sockets

DATA = Path(__file__).resolve().parents[2] / "data" / "parse" / "ss"

SOCKETS = (
    ListeningSocket(protocol="udp", ip=None, port=53, family=4),
    ListeningSocket(protocol="udp", ip=None, port=54, family=0),
    ListeningSocket(protocol="udp", ip=ip_address("fe80::1"), port=546, family=6, interface="eth0"),
    ListeningSocket(protocol="tcp", ip=ip_address("10.0.0.3"), port=81, family=4),
    ListeningSocket(protocol="tcp", ip=None, port=80, family=4),
    ListeningSocket(protocol="tcp", ip=None, port=86, family=4, interface="lo"),
    ListeningSocket(protocol="tcp", ip=ip_address("fd00::3"), port=84, family=6),
    ListeningSocket(protocol="tcp", ip=ip_address("10.0.0.3"), port=87, family=4),
    ListeningSocket(protocol="tcp", ip=None, port=83, family=6),
    ListeningSocket(protocol="tcp", ip=None, port=82, family=0),
    ListeningSocket(protocol="tcp", ip=None, port=93, family=6, interface="eth0"),
    ListeningSocket(protocol="tcp", ip=None, port=92, family=0, interface="eth0"),
    ListeningSocket(protocol="tcp", ip=ip_address("fe80::1"), port=85, family=6, interface="eth0"),
)


@pytest.mark.parametrize("file", ["ss.txt", "ss-extended.txt", "ss-all-states.txt"])
def test_every_kind_of_socket(file: str) -> None:
    assert parse_sockets((DATA / file).read_bytes()) == SOCKETS


def test_header_and_processes() -> None:
    sockets = parse_sockets((DATA / "ss-header-process.txt").read_bytes())
    assert {socket.process for socket in sockets} == {"python3"}
    assert [(s.protocol, s.ip, s.port, s.interface) for s in sockets] == [
        (s.protocol, s.ip, s.port, s.interface) for s in SOCKETS
    ]


def test_the_first_process_counts() -> None:
    line = 'tcp LISTEN 0 511 *:80 *:* users:(("my (odd) name",pid=7,fd=6),("nginx",pid=8,fd=6))'
    assert parse_sockets(line)[0].process == "my (odd) name"


def test_sctp_appended_without_its_protocol() -> None:
    text = "tcp LISTEN 0 5 0.0.0.0:80 0.0.0.0:*\nLISTEN 0 5 0.0.0.0:90 0.0.0.0:*\nLISTEN 0 5 *:91 *:*\n"
    assert [(s.protocol, s.port, s.family) for s in parse_sockets(text)] == [
        ("tcp", 80, 4),
        ("sctp", 90, 4),
        ("sctp", 91, 0),
    ]


def test_one_protocol_alone_is_told_by_its_state() -> None:
    text = "State Recv-Q Send-Q Local Address:Port Peer Address:Port\nLISTEN 0 5 0.0.0.0:80 0.0.0.0:*\n"
    assert parse_sockets(text)[0].protocol == "tcp"
    assert parse_sockets("UNCONN 0 0 0.0.0.0:53 0.0.0.0:*")[0].protocol == "udp"
    assert parse_sockets("sctp LISTEN 0 0 10.0.0.3:53 0.0.0.0:*")[0].protocol == "sctp"


def test_old_ss_means_ipv4_by_its_star() -> None:
    text = "tcp LISTEN 0 128 *:22 *:*\ntcp LISTEN 0 100 127.0.0.1:25 *:*\ntcp LISTEN 0 128 :::22 :::*\n"
    assert [(str(s.ip), s.port, s.family) for s in parse_sockets(text)] == [
        ("None", 22, 4),
        ("127.0.0.1", 25, 4),
        ("None", 22, 0),
    ]


def test_connections_and_other_families_are_left_out() -> None:
    text = (
        "nl UNCONN 0 0 rtnl:kernel *\n"
        "u_str LISTEN 0 5 /run/x.sock 12 * 0\n"
        "tcp ESTAB 0 0 10.0.0.3:80 10.0.0.9:5\n"
        "udp ESTAB 0 0 10.0.0.3:80 10.0.0.9:5\n"
    )
    assert parse_sockets(text) == ()
    assert parse_sockets("") == ()


@pytest.mark.parametrize(
    "line",
    [
        "tcp LISTEN 0 5 0.0.0.0:http 0.0.0.0:*",
        "tcp LISTEN 0 5",
        "hello",
        "tcp LISTEN 0 5 1.2.3:80 *:*",
        "tcp X 1 2 3 4",
    ],
)
def test_garbled_lines_are_named(line: str) -> None:
    with pytest.raises(EvidenceError, match=r"line 1 of n/ss\.txt") as raised:
        parse_sockets(line, source="n/ss.txt")
    assert raised.value.hint == "write it again: ss -lntuH"


@given(st.ip_addresses(), st.integers(1, 65535), st.sampled_from(["tcp", "udp", "sctp"]))
def test_addresses_read_back(ip: object, port: int, protocol: str) -> None:
    spelled = f"[{ip}]" if ":" in str(ip) else str(ip)
    state = "UNCONN" if protocol == "udp" else "LISTEN"
    (socket,) = parse_sockets(f"{protocol} {state} 0 5 {spelled}:{port} x:*")
    expected: Any = getattr(ip, "ipv4_mapped", None) or ip
    assert socket.ip == (None if expected.is_unspecified else expected)
    assert (socket.port, socket.protocol) == (port, protocol)


def test_recorded_nodes(recorded_cases: tuple[Path, ...]) -> None:
    files = [path for case in recorded_cases for path in case.glob("nodes/*/ss.txt")]
    assert files
    for file in files:
        assert len(parse_sockets(file.read_bytes())) == len(file.read_text().splitlines())


def test_connections_that_wait_to_be_accepted() -> None:
    """Recv-Q and Send-Q of a TCP socket that listens; the kernel drops a SYN where more wait than may."""
    text = "tcp LISTEN 129 128 0.0.0.0:80 0.0.0.0:*\ntcp LISTEN 128 128 [::]:80 [::]:*\nudp UNCONN 3 0 0.0.0.0:53 0.0.0.0:*\n"
    full, at_its_limit, datagrams = parse_sockets(text)
    assert (full.waiting, full.backlog, full.is_full) == (129, 128, True)
    assert (at_its_limit.is_full, datagrams.is_full, datagrams.backlog) == (False, False, None)
