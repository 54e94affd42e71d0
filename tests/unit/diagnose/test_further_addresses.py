"""Addresses of a node that the API does not list: which are asked, and how those that are alike stand together."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ktp.diagnose.questions import further_addresses
from ktp.diagnose.service import diagnose_service
from ktp.model.host import Interface, InterfaceAddress, NextHop, Route
from ktp.model.snapshot import Snapshot
from ktp.render.report_words import addresses_of
from tests.unit.diagnose.worlds import LOCAL, recorded

UP = frozenset(("UP", "LOWER_UP", "BROADCAST"))
DUMMY = UP | {"NOARP"}
LOOPBACK = frozenset(("UP", "LOWER_UP", "LOOPBACK"))


def device(
    name: str,
    *addresses: str,
    flags: frozenset[str] = DUMMY,
    link_type: str = "ether",
    master: str | None = None,
) -> Interface:
    return Interface(
        name=name,
        index=90,
        flags=flags,
        link_type=link_type,
        master=master,
        addresses=tuple(
            InterfaceAddress(ip=ip_address(ip), prefixlen=int(length))
            for ip, _, length in (text.partition("/") for text in addresses)
        ),
    )


def with_devices(snapshot: Snapshot, node: str, *devices: Interface) -> Snapshot:
    state = snapshot.nodes[node]
    local = tuple(
        Route(
            dst=ip_network(a.ip),
            type="local",
            table="local",
            nexthops=(NextHop(dev=d.name),),
            prefsrc=a.ip,
            scope="host",
        )
        for d in devices
        for a in d.addresses
    )
    changed = replace(
        state, interfaces=(*(state.interfaces or ()), *devices), routes=(*(state.routes or ()), *local)
    )
    return replace(snapshot, nodes={**snapshot.nodes, node: changed})


@pytest.mark.parametrize(
    ("interface", "asked"),
    [
        (device("eth1", "192.0.2.10/24", flags=UP), ["192.0.2.10"]),
        (device("eth1", "192.0.2.10/24", "192.0.2.20/32", flags=UP), ["192.0.2.10", "192.0.2.20"]),
        (device("eth1", "192.0.2.10/24", flags=frozenset(("UP",))), []),
        (device("veth1", "192.0.2.10/32", flags=UP), []),
        (device("vip0", "192.0.2.10/32"), ["192.0.2.10"]),
        (device("vip0", "192.0.2.10/32", flags=DUMMY - {"LOWER_UP"}), []),
        (device("lo2", "192.0.2.10/32", flags=LOOPBACK, link_type="loopback"), ["192.0.2.10"]),
        (device("lo2", "127.0.0.53/8", flags=LOOPBACK, link_type="loopback"), []),
        (device("nodelocaldns", "169.254.20.10/32", "10.96.0.10/32"), []),
        (device("kube-ipvs0", "192.0.2.10/32"), []),
    ],
    ids=[
        "second-network", "virtual-beside", "no-carrier", "single-alone", "dummy", "dummy-down", "loopback",
        "loopback-own", "dns-cache", "ipvs",
    ],
)  # fmt: skip
def test_which_addresses_of_a_device_are_asked(interface: Interface, asked: list[str]) -> None:
    snapshot = recorded()
    service = snapshot.cluster.services[LOCAL]
    dns = replace(service, name="dns", cluster_ips=("10.96.0.10",))
    services = {**snapshot.cluster.services, dns.key: dns}
    snapshot = replace(snapshot, cluster=replace(snapshot.cluster, services=services))
    before = further_addresses(snapshot, "node-b")
    after = further_addresses(with_devices(snapshot, "node-b", interface), "node-b")
    assert [str(ip) for ip in after if ip not in before] == asked


def test_those_that_are_alike_stand_on_one_line() -> None:
    snapshot = with_devices(recorded(), "node-a", device("vip0", "192.0.2.1/32"))
    snapshot = with_devices(snapshot, "node-b", device("vip0", "192.0.2.2/32", "192.0.2.3/32"))
    d = diagnose_service(snapshot, snapshot.cluster.services[LOCAL])
    node_ports = [m for m in d.frontends if m.kind == "nodePort"]
    assert addresses_of(node_ports) == []
    assert addresses_of(node_ports, every=True) == [
        "clients outside connect at other addresses of the nodes: 10.0.0.103 (node-a), 192.0.2.1 (node-a)",
        "clients outside time out at other addresses of the nodes: 10.0.0.110 (node-b), 192.0.2.2 (node-b), "
        "192.0.2.3 (node-b), 10.0.0.113 (node-c)",
    ]
