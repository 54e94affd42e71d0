"""kube-proxy does not serve node ports on this address of the node.

# What it means
nodePortAddresses (--nodeport-addresses) limits node ports to some addresses of the node; in nftables mode the default
is the node's primary address alone, and other addresses answer only if they are listed.

# Why traffic fails
kube-proxy's rules do not match packets to other addresses. They end at the node itself, where nothing listens:
"connection refused".

# Evidence
kube-proxy's configuration or mode, the addresses that are served and those that are not, and that the cell connects
without the limit.

# Confirm by hand
    kubectl get configmap -n kube-system kube-proxy -o yaml | grep -A4 nodePortAddresses
    ip -br addr

# Fix
Dial an address that is served, or add the network to nodePortAddresses.

# Example
nodePortAddresses: ["10.1.0.0/16"] was written for the old network; the nodes have moved to 10.2.0.0/16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.questions import node_addresses
from ktp.kubeproxy.frontends import FrontEndKind, serves_node_port
from ktp.kubeproxy.intent import PortOnNode
from ktp.kubeproxy.node import ProxyNode
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.host import IPAddress
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires where the dialled address is not served; as information where other addresses of the node are not."""
    if not any(p.node_port for p in case.service.ports):
        return
    silent: dict[str, list[IPAddress]] = {}
    for node in case.nodes:
        if case.examiner.data_plane(node):
            continue
        proxy = case.examiner.proxy(node)
        cells = [
            e
            for e in case.failing(node)
            if e.front_end.kind is FrontEndKind.NODE_PORT
            and e.vantage is not Vantage.LOCALHOST
            and (dialled := e.asked.question.front_end.ip) is not None
            and not _served(dialled, proxy)
        ]
        mended = [e for e in cells if _connects_without_limit(case, e, proxy)]
        if mended:
            yield _finding(case, node, proxy, mended)
            continue
        others = [a for a in _addresses(case, node) if not _served(a, proxy)]
        if others:
            silent[node] = others
    if silent:
        nodes = list(silent)
        words = "; ".join(f"{n}: {listed(map(str, a))}" for n, a in list(silent.items())[:4])
        yield CHECK.finding(
            f"node ports answer on some addresses of the nodes only; not on "
            f"{listed(str(a) for v in silent.values() for a in v)}",
            nodes=nodes,
            evidence=[
                field("kube-proxy", _why(silent[nodes[0]][0], case.examiner.proxy(nodes[0]))),
                field("not served", words),
            ],
            fix=Fix("dial an address that is served, or add the network to nodePortAddresses"),
            severity=Severity.INFO,
        )


def _finding(case: Case, node: str, proxy: ProxyNode, mended: list[Entry]) -> Finding:
    first = mended[0]
    dialled = first.asked.question.front_end.ip
    assert dialled is not None
    served = [
        str(a) for a in (*node_addresses(case.snapshot, node), *_addresses(case, node)) if _served(a, proxy)
    ]
    return CHECK.finding(
        f"kube-proxy on {node} serves no node ports on {dialled}: {_why(dialled, proxy)}"
        + (f"; it does on {listed(served)}" if served else ""),
        node=node,
        evidence=[
            field(
                f"kube-proxy's configuration on {node}",
                f"nodePortAddresses: {', '.join(proxy.node_port_addresses) or 'not set'}",
            ),
            field(f"addresses of {node}", listed(map(str, node_addresses(case.snapshot, node)))),
            counterfactual(f"with node ports on every address, {first.title} on {node} connects"),
        ],
        fixes=[
            Fix(
                f"add {dialled}/{dialled.max_prefixlen} or its network to nodePortAddresses and "
                f"restart kube-proxy",
                cost="node ports are open on that network too",
                verified=True,
                outcome=f"{len(mended)} failing ways in then connect",
            ),
            *([Fix(f"dial {listed(served)} instead")] if served else []),
        ],
        cells=mended,
    )


def _addresses(case: Case, node: str) -> list[IPAddress]:
    """Addresses of the node's own interfaces that a client on its network may dial."""
    state = case.state(node)
    families = {e.front_end.ip_version for e in case.on(node)}
    return [
        a.ip
        for interface in (state.interfaces if state is not None else None) or ()
        if not interface.is_loopback
        and interface.kind not in ("bridge", "veth")
        and not interface.name.startswith(_POD_DEVICES)
        for a in interface.addresses
        if a.scope == "global" and a.ip.version in families and a.prefixlen < a.ip.max_prefixlen
    ]


_POD_DEVICES = (
    "cni",
    "cali",
    "veth",
    "flannel",
    "kube-",
    "docker",
    "cilium",
    "lxc",
    "vxlan",
    "tunl",
    "nodelocaldns",
    "virbr",
)


def _served(address: IPAddress, proxy: ProxyNode) -> bool:
    """Whether some mode and version that the node's kube-proxy may have serves the address."""
    return any(
        serves_node_port(address, proxy, minor=minor, mode=mode).yes
        for mode in proxy.modes
        for minor in proxy.versions.minors()
    )


def _why(address: IPAddress, proxy: ProxyNode) -> str:
    return serves_node_port(address, proxy, minor=proxy.versions.minors()[-1], mode=proxy.modes[0]).why


def _connects_without_limit(case: Case, entry: Entry, proxy: ProxyNode) -> bool:
    dialled = entry.asked.question.front_end
    assert dialled.ip is not None
    open_to = replace(proxy, node_port_addresses=(f"{dialled.ip}/{dialled.ip.max_prefixlen}",))
    asked = PortOnNode(case.examiner.index, case.service, entry.port, open_to)
    return asked.outcome(dialled, entry.asked.question.client).symptom is Symptom.CONNECTS


CHECK = Check("KTP207", "NodePortAddressNotServed", Severity.ERROR, run)
