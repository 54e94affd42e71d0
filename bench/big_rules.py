#!/usr/bin/env python3
"""Writes the iptables-save dump of a node of a large cluster: `bench/big_rules.py SERVICES ENDPOINTS > dump.txt`.

What kube-proxy 1.30 programs: Service number i is a NodePort (30000 + i, while ports last), and every third has
externalTrafficPolicy Local, half of them without an endpoint on this node. About 7 + 3*ENDPOINTS rules each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

from ktp.kubeproxy.names import endpoint_chain, service_chains

FIRST_NODE_PORT, NODE_PORTS = 30000, 2768
CLUSTER_NETWORK = "10.128.0.0/9"
MASQUERADE_BIT = "0x4000/0x4000"


class BigNode:
    """The rules of one node."""

    def __init__(self, services: int, endpoints: int) -> None:
        self.nat: dict[str, list[str]] = {
            "PREROUTING": [_jump("KUBE-SERVICES", "kubernetes service portals")],
            "OUTPUT": [_jump("KUBE-SERVICES", "kubernetes service portals")],
            "POSTROUTING": [_jump("KUBE-POSTROUTING", "kubernetes postrouting rules")],
            "KUBE-MARK-MASQ": [f"-j MARK --set-xmark {MASQUERADE_BIT}"],
            "KUBE-NODEPORTS": [],
            "KUBE-POSTROUTING": [
                f"-m mark ! --mark {MASQUERADE_BIT} -j RETURN",
                "-j MARK --set-xmark 0x4000/0x0",
                _jump("MASQUERADE --random-fully", "kubernetes service traffic requiring SNAT"),
            ],
            "KUBE-SERVICES": [],
        }
        new = "-m conntrack --ctstate NEW "
        self.filter: dict[str, list[str]] = {
            "INPUT": [
                new + _jump("KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
                _jump("KUBE-NODEPORTS", "kubernetes health check service ports"),
                new + _jump("KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals"),
            ],
            "FORWARD": [
                new + _jump("KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
                _jump("KUBE-FORWARD", "kubernetes forwarding rules"),
                new + _jump("KUBE-SERVICES", "kubernetes service portals"),
                new + _jump("KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals"),
            ],
            "OUTPUT": [
                new + _jump("KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
                new + _jump("KUBE-SERVICES", "kubernetes service portals"),
            ],
            "KUBE-EXTERNAL-SERVICES": [],
            "KUBE-FORWARD": [
                "-m conntrack --ctstate INVALID -j DROP",
                f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {MASQUERADE_BIT} -j ACCEPT',
                '-m comment --comment "kubernetes forwarding conntrack rule" '
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ],
            "KUBE-NODEPORTS": [],
            "KUBE-PROXY-FIREWALL": [],
            "KUBE-SERVICES": [],
        }
        for number in range(services):
            self._add_service(number, endpoints)
        self.nat["KUBE-SERVICES"].append(
            '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
            "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
        )

    def _add_service(self, number: int, endpoints: int) -> None:
        name = f"team-{number % 89}/app-{number}:web"
        protocol = "tcp" if number // NODE_PORTS % 2 == 0 else "udp"
        cluster_ip = IPv4Address("10.96.0.10") + number
        node_port = FIRST_NODE_PORT + number % NODE_PORTS if number < 2 * NODE_PORTS else None
        local, here = number % 3 == 0, number % 2 == 0
        chains = service_chains(name, protocol)
        to_cluster_ip = f'-d {cluster_ip}/32 -p {protocol} -m comment --comment "{name} cluster IP"'
        dport = f"-m {protocol} --dport 80"
        nat = self.nat
        nat["KUBE-SERVICES"].append(f"{to_cluster_ip} {dport} -j {chains.svc}")
        service = nat[chains.svc] = [f"! -s {CLUSTER_NETWORK} {to_cluster_ip} {dport} -j KUBE-MARK-MASQ"]
        first = ""
        for index in range(endpoints):
            ip = IPv4Address("10.128.0.0") + number * endpoints + index
            chain = endpoint_chain(name, protocol, str(ip), 8080)
            first = first or f'-m comment --comment "{name} -> {ip}:8080" -j {chain}'
            left = endpoints - index
            draw = f" -m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
            service.append(f'-m comment --comment "{name} -> {ip}:8080"{draw} -j {chain}')
            nat[chain] = [
                f'-s {ip}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ',
                f'-p {protocol} -m comment --comment "{name}" -m {protocol} -j DNAT --to-destination {ip}:8080',
            ]
        if node_port is None:
            return
        to_port = f"-m {protocol} --dport {node_port}"
        nat["KUBE-NODEPORTS"].append(f'-p {protocol} -m comment --comment "{name}" {to_port} -j {chains.ext}')
        if not local:
            nat[chains.ext] = [
                _jump("KUBE-MARK-MASQ", f"masquerade traffic for {name} external destinations"),
                f"-j {chains.svc}",
            ]
            return
        words = f"LOCAL traffic for {name} external destinations"
        nat[chains.ext] = [
            f"-s {CLUSTER_NETWORK} {_jump(chains.svc, f'pod traffic for {name} external destinations')}",
            f'-m comment --comment "masquerade {words}" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ',
            f'-m comment --comment "route {words}" -m addrtype --src-type LOCAL -j {chains.svc}',
        ]
        if here:
            nat[chains.ext].append(f"-j {chains.svl}")
            nat[chains.svl] = [first]
        else:
            self.filter["KUBE-EXTERNAL-SERVICES"].append(
                f'-p {protocol} -m comment --comment "{name} has no local endpoints" '
                f"-m addrtype --dst-type LOCAL {to_port} -j DROP"
            )

    def lines(self) -> Iterator[str]:
        """The dump."""
        yield "# Generated by iptables-save v1.8.9 on Thu Jan  1 00:00:00 2026"
        for table, chains, hooks in (
            ("mangle", {}, ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")),
            ("filter", self.filter, ("INPUT", "FORWARD", "OUTPUT")),
            ("nat", self.nat, ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
        ):
            own = sorted(chains.keys() - set(hooks))
            yield f"*{table}"
            yield from (f":{name} ACCEPT [0:0]" for name in hooks)
            yield from (f":{name} - [0:0]" for name in own)
            for name in (*hooks, *own):
                yield from (f"-A {name} {rule}" for rule in chains.get(name, ()))
            yield "COMMIT"
        yield "# Completed on Thu Jan  1 00:00:00 2026"


def _jump(target: str, comment: str) -> str:
    return f'-m comment --comment "{comment}" -j {target}'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("services", type=int)
    parser.add_argument("endpoints", type=int)
    arguments = parser.parse_args()
    for line in BigNode(arguments.services, arguments.endpoints).lines():
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
