"""What `iptables-save` prints on a node that kube-proxy 1.36 programmed for the Services of a cluster.

The rules of Services are those that ktp's own synthesis writes; tests that load them ask the kernel what they do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ktp.kubeproxy.endpoints import index_slices
from ktp.kubeproxy.node import proxy_node
from ktp.kubeproxy.synthesis_iptables import RuleKnobs, synthesize_port
from ktp.model.snapshot import Snapshot

_HOOKED = {
    ("filter", "INPUT"): (
        '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
        '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        "-m conntrack --ctstate NEW -m comment --comment "
        '"kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
        "-j KUBE-FIREWALL",
    ),
    ("filter", "FORWARD"): (
        '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
        '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        '-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-m conntrack --ctstate NEW -m comment --comment "
        '"kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
    ),
    ("filter", "OUTPUT"): (
        '-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
        '-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-j KUBE-FIREWALL",
    ),
    ("filter", "KUBE-FIREWALL"): (
        '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    ),
    ("filter", "KUBE-FORWARD"): (
        '-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
        '-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED '
        "-j ACCEPT",
    ),
    ("nat", "PREROUTING"): ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
    ("nat", "OUTPUT"): ('-m comment --comment "kubernetes service portals" -j KUBE-SERVICES',),
    ("nat", "POSTROUTING"): ('-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',),
    ("nat", "KUBE-MARK-MASQ"): ("-j MARK --set-xmark 0x4000/0x4000",),
    ("nat", "KUBE-POSTROUTING"): (
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    ),
}
_BUILT_IN = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
_OWN = {
    "mangle": ("KUBE-PROXY-CANARY",),
    "filter": (
        "KUBE-EXTERNAL-SERVICES", "KUBE-FIREWALL", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-CANARY",
        "KUBE-PROXY-FIREWALL", "KUBE-SERVICES",
    ),
    "nat": ("KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY", "KUBE-SERVICES"),
}  # fmt: skip


def iptables_save(snapshot: Snapshot, node: str, knobs: RuleKnobs) -> str:
    """The dump of IPv4 of `node`, as its kube-proxy writes it from the Services and endpoints of `snapshot`."""
    chains: dict[tuple[str, str], list[str]] = {key: list(rules) for key, rules in _HOOKED.items()}
    proxy, index = proxy_node(snapshot, node), index_slices(snapshot.cluster)
    for service in snapshot.cluster.services.values():
        for port in service.ports:
            rules = synthesize_port(service, port, proxy, index, family="ip", minor=36, knobs=knobs)
            for name, lines in rules.own.items():
                chains.setdefault(("nat", name), []).extend(lines)
            for key, lines in rules.shared.items():
                chains.setdefault(key, []).extend(lines)
    chains.setdefault(("nat", "KUBE-SERVICES"), []).append(
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
        "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    )
    return "".join(f"{line}\n" for line in _dump(chains))


def _dump(chains: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    for table, built_in in _BUILT_IN.items():
        yield f"*{table}"
        yield from (f":{name} ACCEPT [0:0]" for name in built_in)
        own = dict.fromkeys([*_OWN[table], *sorted(name for at, name in chains if at == table)])
        yield from (f":{name} - [0:0]" for name in own if name not in built_in)
        for (at, name), rules in sorted(chains.items()):
            if at == table:
                yield from (rule if rule.startswith("-A ") else f"-A {name} {rule}" for rule in rules)
        yield "COMMIT"
