"""Nodes of which nothing was read, or their rules alone: what is taken for granted there."""

from __future__ import annotations

from ktp.dataplane.host import Host
from ktp.dataplane.packet import Port
from ktp.dataplane.state import State
from ktp.dataplane.topology import Attached
from ktp.dataplane.walk.answers import answer_arrives
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Reach
from ktp.dataplane.walk.ends import end_unknown
from ktp.model.assumption import Assumption, EvidenceKind


def through_unknown_node(walk: Walk, state: State, host: Host, name: str) -> None:
    """Through a node of which no rules were read: to what it has itself, and no further."""
    p = state.packet
    attached = walk.topology.attached.get((p.family, p.dst))
    process = walk.topology.processes.get((name, p.proto, port_number(p.dport)))
    if process is not None and walk.owners.get((p.family, p.dst)) == name:
        attached = Attached(name=process, node=name, host_network=True)
    if state.direction == "request" and attached is not None and attached.node == name:
        state.assume(_lets_pass(name, "packet"))
        walk.go(Reach(state, None, attached))
        return
    if (
        state.direction != "request"
        and state.client.pod
        and p.dst == state.client.ip
        and state.client.node == name
    ):
        state.assume(_lets_pass(name, "answer"))
        answer_arrives(walk, state, host)
        return
    end_unknown(walk, state, name, f"the packet goes on to node {name}: {walk.places.nothing_of(name)}")


def _lets_pass(node: str, what: str) -> Assumption:
    return Assumption(f"nothing there stops the {what} (no rules were read)", EvidenceKind.RULES, node)


def port_number(port: Port) -> int:
    """A port, 0 where it is not one."""
    return port if isinstance(port, int) else 0
