"""Rules of one address family tell nothing of the other."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Topology, Walker
from ktp.model.host import Interface, InterfaceAddress, NextHop, NodeState, Route
from ktp.model.trace import Disposition, Flow
from ktp.parse.iptables_save import open_ruleset


def _walker(*families: str) -> Walker:
    addresses = {"10.0.0.3": 24, "fd00:10::3": 64}
    return Walker(
        Topology(
            nodes={
                "node-a": NodeState(
                    name="node-a",
                    interfaces=(
                        Interface(
                            name="eth0",
                            index=2,
                            flags=frozenset({"UP"}),
                            addresses=tuple(
                                InterfaceAddress(ip=ip_address(a), prefixlen=n) for a, n in addresses.items()
                            ),
                        ),
                    ),
                    routes=tuple(
                        Route(dst=ip_network(a), type="local", table="local", nexthops=(NextHop(dev="eth0"),))
                        for a in addresses
                    )
                    + tuple(
                        Route(dst=ip_network(f"{a}/{n}", strict=False), nexthops=(NextHop(dev="eth0"),))
                        for a, n in addresses.items()
                    ),
                    sockets=(),
                    rulesets=tuple(
                        open_ruleset(b"*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", source="rules", family=family)
                        for family in families
                    ),
                )
            }
        )
    )


@pytest.mark.parametrize(
    ("families", "version", "known"),
    [(("ip",), 4, True), (("ip",), 6, False), (("ip6",), 4, False), (("ip", "ip6"), 6, True)],
)
def test_the_other_familys_rules_are_not_taken_for_none(
    families: tuple[str, ...], version: int, known: bool
) -> None:
    src, dst = ("10.0.0.100", "10.0.0.3") if version == 4 else ("fd00:10::100", "fd00:10::3")
    answer = answer_flow(_walker(*families), Flow(src=src, dst=dst, port=80))
    expected = Disposition.NO_LISTENER if known else Disposition.UNDETERMINED
    assert answer.disposition is expected
