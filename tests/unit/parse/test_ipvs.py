from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from ktp.errors import EvidenceError
from ktp.model.ipvs import IpvsTable, RealServer, VirtualServer
from ktp.parse.ipvs import parse_ipvs

DATA = Path(__file__).resolve().parents[2] / "data" / "parse"


def test_every_kind_of_service() -> None:
    table = parse_ipvs((DATA / "ipvsadm.txt").read_bytes(), source="ipvsadm.txt")
    node, node6 = ip_address("10.0.0.3"), ip_address("fd00:10::3")
    assert table == IpvsTable(
        source="ipvsadm.txt",
        services=(
            VirtualServer(
                protocol="tcp",
                ip=node,
                port=30080,
                persistent=10800,
                servers=(
                    RealServer(ip=ip_address("10.244.1.10"), port=80, weight=1),
                    RealServer(ip=ip_address("10.244.2.10"), port=80, weight=0),
                ),
            ),
            VirtualServer(
                protocol="tcp",
                ip=node6,
                port=30080,
                persistent=10800,
                servers=(RealServer(ip=ip_address("fd00:244:1::10"), port=80, weight=1),),
            ),
            VirtualServer(protocol="udp", ip=node, port=30053, scheduler="wlc"),
            VirtualServer(
                protocol="sctp",
                ip=node,
                port=30009,
                scheduler="mh",
                servers=(RealServer(ip=ip_address("10.244.1.11"), port=9, weight=2, method="tunnel"),),
            ),
            VirtualServer(
                protocol="fwmark",
                ip=None,
                port=5,
                scheduler="sh",
                servers=(RealServer(ip=ip_address("10.244.1.12"), port=0, weight=1, method="route"),),
            ),
        ),
    )


def test_nothing_is_an_empty_table() -> None:
    assert parse_ipvs(b"").services == ()


def test_defaults_and_long_options() -> None:
    text = (
        "--add-service --tcp-service 10.0.0.3:80 -p -o\n--add-server -t 10.0.0.3:80 --real-server 10.1.1.1\n"
    )
    (service,) = parse_ipvs(text).services
    assert (service.scheduler, service.persistent) == ("wlc", 300)
    assert service.servers == (RealServer(ip=ip_address("10.1.1.1"), port=0, weight=1, method="route"),)


@pytest.mark.parametrize(
    "line",
    [
        "-a -t 10.0.0.9:80 -r 10.1.1.1:80 -m",
        "-A -t node-a:http",
        "-A -s rr",
        "-A -t 10.0.0.3:80 --novel 1",
        "-A -t",
        "TCP  web:http rr",
        "-a -t 10.0.0.3:81 -m",
    ],
)
def test_garbled_lines_are_named(line: str) -> None:
    with pytest.raises(EvidenceError, match=r"line 2 of x\.txt"):
        parse_ipvs(f"-A -t 10.0.0.3:81 -s rr\n{line}\n", source="x.txt")
