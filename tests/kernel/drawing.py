"""What every random case is made of, whatever its rules: packets, node settings, and the case itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.kernel.lab import ADDRESSES, NETS, NODES, OUTSIDE, PODS


@dataclass(frozen=True)
class Packet:
    """One probe: who asks whom for what."""

    host: str
    dst: str
    port: int
    proto: str
    src: str | None = None
    via: str | None = None


@dataclass
class Case:
    """What is loaded on the nodes, and the packets that are sent then."""

    seed: int
    family: int
    rules: dict[tuple[str, str], str] = field(default_factory=dict)  # (node, back end) → iptables-save text
    sets: dict[str, str] = field(default_factory=dict)  # node → ipset save text
    sysctls: dict[str, dict[str, str]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)  # node → words of `ip`
    packets: list[Packet] = field(default_factory=list)
    nft: dict[str, str] = field(default_factory=dict)  # node → what `nft -f` loads, one command a line
    ipvs: dict[str, str] = field(default_factory=dict)  # node → what `ipvsadm -R` loads
    heard: bool = False  # a TCP connection on which nothing comes is none: the servers speak first


class Drawing:
    """Draws around one random generator. `node` is the one that things are drawn for."""

    def __init__(self, case: Case, r: random.Random, node: str = "a") -> None:
        self.r = r
        self.case = case
        self.family = case.family
        self.node = node

    def ip(self, name: str) -> str:
        return ADDRESSES[name][self.family == 6]

    # -- packets

    def packet(self) -> Packet:
        r = self.r
        host = r.choice(("c1", "c2", "a", "b", *PODS, "c1", "a", "pa1", "qa1"))
        names = [
            "a",
            "a.second",
            "a.eth1",
            "a.dummy",
            "b",
            "b.dummy",
            "vip.a",
            "vip.a2",
            "vip.b",
            *PODS,
            "vip.a",
            "a",
        ]
        if host in NODES:
            names += ["localhost", "localhost", "srv", "dead", "far", host, f"{host}.dummy"]
        elif host in PODS:
            names += ["srv", "c1", "vip.a", "vip.a2", host]
        name = r.choice(names)
        if host == "c2" and name.endswith("dummy"):
            name = "a"  # which of its two ways the router takes is not the node's to know
        if name == host and host in PODS:
            name = "vip.a"
        port = r.choice((80, 8080, 8080, 30080, 30081, 5353, 443, 8081))
        if name == "c1":
            name = "srv"
        src = None
        if host in NODES and r.random() < 0.25:
            src = self.ip(r.choice((f"{host}.second", f"{host}.dummy", f"{host}.eth1", "localhost")))
        via = name[4] if name.startswith("vip") and host in OUTSIDE else None
        return Packet(host, self.ip(name), port, r.choice(("tcp", "tcp", "udp")), src, via)

    # -- node settings

    def settings(self) -> None:
        r, node = self.r, self.node
        values = {}
        if r.random() < 0.05:
            values["net/ipv4/ip_forward"] = "0"
        if r.random() < 0.05:
            values["net/ipv6/conf/all/forwarding"] = "0"
        for name in ("all", "eth0", "eth1"):
            if r.random() < 0.15:
                values[f"net/ipv4/conf/{name}/rp_filter"] = r.choice("12")
        for name in ("all", "eth0"):
            if r.random() < 0.2:
                values[f"net/ipv4/conf/{name}/route_localnet"] = "1"
        if r.random() < 0.1:
            values["net/ipv4/conf/all/src_valid_mark"] = "1"
        if r.random() < 0.05:
            values["net/ipv4/conf/all/accept_local"] = "1"
        if r.random() < 0.25:
            values["net/bridge/bridge-nf-call-iptables"] = "0"
            values["net/bridge/bridge-nf-call-ip6tables"] = "0"
        self.case.sysctls[node] = values
        if r.random() < 0.25:
            self.case.commands[node] = self._policy_routing()

    def _policy_routing(self) -> list[str]:
        r, node, version = self.r, self.node, f"-{self.family}"
        via = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd00:1::1", "fd00:2::1")}[self.family]
        out = []
        what = r.choice((
            f"default via {via[0]}", f"default via {via[1]}", "blackhole default", "unreachable default",
            "prohibit default",
            f"unreachable {self.ip('srv')}", f"blackhole {self.ip(r.choice(list(PODS)))}", "throw default",
        ))  # fmt: skip
        table = "100"
        out.append(f"{version} route add {what} table {table}")
        rule = r.choice((
            "fwmark 0x1", "fwmark 0x2/0x2", f"from {self.ip(r.choice(('pa1', 'qa1', 'c1', 'a.second')))}",
            f"to {self.ip(r.choice(('pa1', 'srv', 'pb1', 'b')))}", f"iif {r.choice(('eth0', 'cni0', 'lo'))}",
            "not fwmark 0x1", "ipproto tcp dport 8080", "ipproto udp",
        ))  # fmt: skip
        action = r.choice((f"lookup {table}",) * 4 + ("unreachable", "blackhole", "prohibit"))
        out.append(f"{version} rule add pref {r.choice((50, 100, 32767))} {rule} {action}")
        if r.random() < 0.3:
            dst = self.ip(r.choice(("srv", "pb1", "pa1")))
            out.append(
                f"{version} route add {r.choice(('blackhole', 'unreachable', 'prohibit'))} {dst} metric 5"
            )
        _ = node
        return out

    def source_of(self, p: Packet) -> str:
        if p.src is not None:
            return p.src
        return self.ip(p.host)

    def net_of(self, name: str) -> str:
        node = PODS[name]
        net = NETS[node][name.startswith("q")]
        return f"10.244.{net}.0/24" if self.family == 4 else f"fd00:244:{net}::/64"


def flow_of(p: Packet, family: int) -> dict[str, Any]:
    """The packet as keyword arguments of ktp's Flow."""
    out: dict[str, Any] = {"dst": p.dst, "port": p.port, "protocol": p.proto}
    if p.host in NODES:
        out |= {"from_node": p.host, "src": p.src}
    elif p.host in PODS:
        out |= {"from_node": PODS[p.host], "src": ADDRESSES[p.host][family == 6]}
    else:
        out |= {"src": ADDRESSES[p.host][family == 6], "via": p.via}
    return out
