"""IPVS mode: what kube-proxy means to do, and what the packet walk finds on a hand-made node, agree.

No kernel ran these nodes (`ipvs_node`): the rows are those of kube-proxy's source and the kernel's.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind
from ktp.kubeproxy.intent import Intent, PortOnNode
from ktp.kubeproxy.node import ProxyMode
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom
from tests.unit.kubeproxy.ipvs_node import walker
from tests.unit.kubeproxy.objects import ENDPOINTS, LOCAL_IP, PORT, REMOTE_IP, index, node, service

NODE_PORT, LOAD_BALANCER = FrontEndKind.NODE_PORT, FrontEndKind.LOAD_BALANCER
EXTERNAL_IP, CLUSTER_IP = FrontEndKind.EXTERNAL_IP, FrontEndKind.CLUSTER_IP
EXT, SELF, LO = Vantage.EXTERNAL, Vantage.NODE, Vantage.LOCALHOST
POD, POD2, NODE2 = Vantage.POD_SAME_NODE, Vantage.POD_OTHER_NODE, Vantage.OTHER_NODE
BOTH, REMOTE, NONE = "local and remote", "remote", "none"
DIALLED = {
    NODE_PORT: ("10.0.0.3", 30080),
    LOAD_BALANCER: ("10.99.0.10", 80),
    EXTERNAL_IP: ("10.99.0.20", 80),
    CLUSTER_IP: ("172.16.0.10", 80),
}
# (address, node it runs on): None is outside.
CLIENTS = {
    EXT: ("203.0.113.7", None),
    SELF: ("10.0.0.3", "node-a"),
    LO: ("127.0.0.1", "node-a"),
    POD: ("10.244.1.50", "node-a"),
    POD2: ("10.244.3.50", "node-c"),
    NODE2: ("10.0.0.13", "node-c"),
}


def intent(vantage: Vantage, kind: FrontEndKind, endpoints: str, policy: str, minor: int) -> Intent:
    ip, number = DIALLED[kind]
    dialled = "127.0.0.1" if vantage is LO else ip
    where = node(minor, ProxyMode.IPVS)
    asked = PortOnNode(index(ENDPOINTS[endpoints]), service(external_traffic_policy=policy), PORT, where)
    return asked.outcome(
        FrontEnd(kind=kind, ip=ip_address(dialled), port=number, protocol="TCP", ip_version=4),
        Client(vantage=vantage, ip=ip_address(CLIENTS[vantage][0])),
        pods_masqueraded=False,
    )


def fact(vantage: Vantage, kind: FrontEndKind, endpoints: str, policy: str, minor: int) -> FlowAnswer:
    ip, number = DIALLED[kind]
    source, where = CLIENTS[vantage]
    on_a = where == "node-a"
    flow = Flow(
        dst="127.0.0.1" if vantage is LO else ip,
        port=number,
        # The kernel chooses the source of the node's own packets: an address of kube-ipvs0 where it dials one.
        src=None if vantage is SELF else source,
        from_node=where if on_a or vantage in (POD2, NODE2) else None,
        via=None if on_a else "node-a" if vantage is EXT else None,
    )
    return answer_flow(walker(minor, ENDPOINTS[endpoints], local=policy == "Local"), flow)


def shown(answer: Intent | FlowAnswer) -> str:
    """`any SNAT`, `loc keep`, `REJ`: as the tables of kube-proxy's behaviour are written."""
    if isinstance(answer, Intent):
        drawn = {e.ip for e in answer.endpoints if e.symptom is Symptom.CONNECTS}
        kept = answer.source_kept
    else:
        drawn = {p.endpoint_ip or "" for p in answer.paths if p.symptom is Symptom.CONNECTS and p.endpoint_ip}
        kept = answer.source_preserved
    if answer.symptom in (Symptom.CONNECTS, Symptom.INTERMITTENT) and drawn:
        which = {frozenset({LOCAL_IP}): "loc", frozenset({REMOTE_IP}): "remote"}.get(frozenset(drawn), "any")
        some = "some " if answer.symptom is Symptom.INTERMITTENT else ""
        return f"{some}{which} {'keep' if kept else 'SNAT'}"
    return {
        Disposition.REJECTED: "REJ",
        Disposition.NO_LISTENER: "no listener",
        Disposition.LOST: "lost",
        Disposition.HOST_PROCESS: "held",
    }.get(answer.disposition, answer.symptom.value)


# Node port, load-balancer IP and external IP have one list of real servers for everybody (reference: IPVS differences).
ROWS = [
    # policy, endpoints, client, 1.23, 1.30
    ("Local", BOTH, EXT, "loc keep", "loc keep"),
    ("Local", BOTH, SELF, "loc keep", "loc keep"),
    ("Local", BOTH, POD, "loc keep", "loc keep"),
    ("Local", REMOTE, EXT, "REJ", "lost"),
    ("Local", REMOTE, SELF, "REJ", "remote keep"),
    ("Local", REMOTE, POD, "REJ", "remote keep"),
    ("Cluster", BOTH, EXT, "any SNAT", "any SNAT"),
    ("Cluster", BOTH, POD, "any SNAT", "any SNAT"),
    ("Cluster", REMOTE, EXT, "remote SNAT", "remote SNAT"),
    ("Cluster", REMOTE, POD, "remote SNAT", "remote SNAT"),
    ("Local", NONE, EXT, "REJ", "REJ"),
    ("Local", NONE, SELF, "REJ", "REJ"),
    ("Local", NONE, POD, "REJ", "REJ"),
    ("Cluster", NONE, EXT, "REJ", "REJ"),
    ("Cluster", NONE, SELF, "REJ", "REJ"),
    ("Cluster", NONE, POD, "REJ", "REJ"),
]


@pytest.mark.parametrize("kind", [NODE_PORT, LOAD_BALANCER, EXTERNAL_IP])
@pytest.mark.parametrize("minor", [23, 30])
@pytest.mark.parametrize(("policy", "endpoints", "vantage", "old", "new"), ROWS)
def test_the_walk_finds_what_the_table_says(
    kind: FrontEndKind, minor: int, policy: str, endpoints: str, vantage: Vantage, old: str, new: str
) -> None:
    expected = old if minor == 23 else new
    if vantage is SELF and expected == "remote keep" and kind is not NODE_PORT:
        expected = "lost"  # it sends from the address that it dials, which the endpoint's node holds, too
    assert shown(fact(vantage, kind, endpoints, policy, minor)) == expected
    assert shown(intent(vantage, kind, endpoints, policy, minor)) == expected


@pytest.mark.parametrize("kind", [NODE_PORT, LOAD_BALANCER, EXTERNAL_IP, CLUSTER_IP])
@pytest.mark.parametrize("minor", [23, 30])
@pytest.mark.parametrize("policy", ["Local", "Cluster"])
@pytest.mark.parametrize("endpoints", [BOTH, REMOTE, NONE])
@pytest.mark.parametrize("vantage", [EXT, SELF, POD])
def test_intent_and_walk_agree(
    kind: FrontEndKind, minor: int, policy: str, endpoints: str, vantage: Vantage
) -> None:
    asked = (vantage, kind, endpoints, policy, minor)
    meant, found = intent(*asked), fact(*asked)
    assert meant.symptom == found.symptom
    drawn = {e.ip for e in meant.endpoints}
    assert drawn == {p.endpoint_ip for p in found.paths if p.endpoint_ip in (LOCAL_IP, REMOTE_IP)}
    # What the node itself sends has an address of the node as its source, masqueraded or not.
    if vantage is not SELF and found.symptom is Symptom.CONNECTS:
        assert meant.source_kept == found.source_preserved


@pytest.mark.parametrize("vantage", [POD2, NODE2])
@pytest.mark.parametrize("minor", [23, 30])
@pytest.mark.parametrize("policy", ["Local", "Cluster"])
@pytest.mark.parametrize("endpoints", [BOTH, REMOTE, NONE])
def test_intent_and_walk_agree_for_other_nodes(
    vantage: Vantage, minor: int, policy: str, endpoints: str
) -> None:
    meant, found = (f(vantage, NODE_PORT, endpoints, policy, minor) for f in (intent, fact))
    assert meant.symptom == found.symptom


@pytest.mark.parametrize("minor", [23, 30])
def test_a_loopback_address_has_no_virtual_server(minor: int) -> None:
    found = fact(LO, NODE_PORT, BOTH, "Cluster", minor)
    assert (found.symptom, found.disposition) == (Symptom.REFUSED, Disposition.NO_LISTENER)
    meant = intent(LO, NODE_PORT, BOTH, "Cluster", minor)
    # Up to 1.23 kube-proxy holds the port with a socket, which this node does not list.
    assert meant.disposition is (Disposition.HOST_PROCESS if minor == 23 else Disposition.NO_LISTENER)


@pytest.mark.parametrize("minor", [23, 30])
@pytest.mark.parametrize("vantage", [EXT, POD])
def test_other_ports_of_a_service_address(minor: int, vantage: Vantage) -> None:
    """kube-ipvs0 makes Service addresses the node's own; since 1.26 its own services do not answer there."""
    source, where = CLIENTS[vantage]
    flow = Flow(dst="172.16.0.10", port=22, src=source, from_node=where, via=None if where else "node-a")
    answer = answer_flow(walker(minor, ENDPOINTS[BOTH], local=False), flow)
    assert answer.symptom is Symptom.REFUSED
    assert answer.disposition is (Disposition.REJECTED if minor >= 26 else Disposition.NO_LISTENER)


@pytest.mark.parametrize(
    ("conntrack", "local", "remote"), [("1", "connects", "connects"), ("0", "connects", "times_out")]
)
def test_without_conntrack_ipvs_translates_by_itself(conntrack: str, local: str, remote: str) -> None:
    """net.ipv4.vs.conntrack=0, seen on a kernel: nothing is masqueraded, and a remote pod's answer misses the node."""
    before = walker(30, ENDPOINTS[BOTH], local=False).topology
    state = before.nodes["node-a"]
    sysctls = {**(state.sysctls or {}), "net.ipv4.vs.conntrack": conntrack}
    nodes = {**before.nodes, "node-a": replace(state, sysctls=sysctls)}
    ip, number = DIALLED[NODE_PORT]
    flow = Flow(dst=ip, port=number, src=CLIENTS[EXT][0], via="node-a")
    answer = answer_flow(Walker(replace(before, nodes=nodes)), flow)
    fates = {p.endpoint_ip: p.symptom.value for p in answer.paths}
    assert fates == {LOCAL_IP: local, REMOTE_IP: remote}
    kept = {p.source_seen for p in answer.paths if p.endpoint_ip == LOCAL_IP}
    assert (CLIENTS[EXT][0] in kept) is (conntrack == "0")
