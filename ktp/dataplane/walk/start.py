"""Where a flow sets out: at a process of a node, in a pod, or outside."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.conntrack import remembered
from ktp.dataplane.host import Host
from ktp.dataplane.packet import CLIENT_PORTS, LOCAL_PORTS, PROTOCOLS, TCP, UDP, Conn, Packet, to_int, to_text
from ktp.dataplane.state import Client, State
from ktp.dataplane.walk.bridge import bridged
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Enter
from ktp.dataplane.walk.ends import end_unknown, ended
from ktp.dataplane.walk.links import arrival_interface, interface_toward, on_bridge
from ktp.dataplane.walk.pods import hears_gateway
from ktp.dataplane.walk.programs import at_socket, out_of_pod
from ktp.dataplane.walk.routes import first_route, limit_own, source_for
from ktp.dataplane.walk.through import local_out
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.trace import Disposition, Flow, Symptom


def begin(walk: Walk, flow: Flow) -> None:
    """The packet of a flow sets out. Raises ValueError where an address or protocol is none."""
    family, dst = to_int(flow.dst)
    proto = PROTOCOLS.get(flow.protocol.lower())
    if proto not in (TCP, UDP, pk.SCTP, pk.ESP) or (proto == pk.ESP and not walk.is_tunnels):
        raise ValueError(f"protocol {flow.protocol!r} is not tcp, udp or sctp")
    src: int | None = None
    if flow.src is not None:
        src_family, src = to_int(flow.src)
        if src_family != family:
            raise ValueError(f"{flow.src} and {flow.dst} are of different address families")
    ports = CLIENT_PORTS if flow.from_node is None else LOCAL_PORTS
    source_port = 0 if proto == pk.ESP else flow.source_port or ports
    p = Packet(family, proto, src or 0, dst, source_port, flow.port)
    p.mark = flow.mark
    state = State(p)
    if walk.longest is not None:
        p.length, state.answer_length = walk.longest
    if flow.source_port is not None:
        state.conns = _tracked(walk, flow, family)
    if flow.from_node is not None:
        host = walk.places.walkable(flow.from_node, family)
        if host is None and src is not None:
            # Of the client's own node nothing is known: its packet is taken to get out of it unchanged.
            state.assume(
                Assumption(
                    "nothing there stops or changes the packet (no rules were read)",
                    EvidenceKind.RULES,
                    flow.from_node,
                )
            )
            state.client = Client(src, flow.from_node, True, dst, flow.port)
            _from_outside(walk, state, flow)
        elif host is None:
            end_unknown(
                walk, state, flow.from_node, walk.places.nothing_of(flow.from_node, "where the client runs")
            )
        elif src is None or _is_process(host, family, src):
            for each in at_socket(walk, state, host, of_node=True):
                _from_process(walk, each, host, src)
        else:
            for each in at_socket(walk, state, host, of_node=False):
                q = each.packet
                each.client = Client(src, flow.from_node, True, q.dst, q.dport)
                _from_attached(walk, each, host, src)
    else:
        assert src is not None or not flow.src
        if src is None:
            raise ValueError("a flow needs a source address or the node that it comes from")
        state.client = Client(src, None, False, dst, flow.port)
        _from_outside(walk, state, flow)


def _tracked(walk: Walk, flow: Flow, family: int) -> tuple[Conn, ...]:
    """What the nodes track of a client already."""
    return tuple(
        remembered(name, found)
        for name, node in walk.topology.nodes.items()
        for found in node.tracked or ()
        if found.protocol == flow.protocol.lower()
        and found.original.sport == flow.source_port
        and found.original.src.version == family
    )


def _is_process(host: Host, family: int, src: int) -> bool:
    return host.owns(family, src) or host.is_local(family, src)


def _from_process(walk: Walk, state: State, host: Host, src: int | None) -> None:
    p = state.packet
    for each in host.taken[p.family]:
        state.assume(each)
    p.local = True
    if not isinstance(p.sport, int):
        p.sport = host.local_ports()
    found = first_route(walk, state, host, src)
    if found is None:
        return
    if src is None:
        src = source_for(host, p, found)
        if src is None and not host.has_network:
            words = f"neither addresses nor routes of node {host.name} were read"
            end_unknown(walk, state, host.name, words)
            return
        if src is None:
            ended(
                walk,
                state,
                Disposition.LOST,
                Symptom.UNREACHABLE,
                "the node has no address to send from",
                host,
                "route",
            )
            return
        p.src = src
        if found.table != "local":  # rules may look at the source: the kernel asks again with it
            again = host.route(p, iif="lo")
            if again.route is not None:
                found = again
    state.client = Client(src, host.name, False, p.dst, p.dport)
    dialled, state.arrived = state.arrived, p.copy()
    if state.steps is not None:  # translated at the socket
        state.arrived.dst, state.arrived.dport = dialled.dst, dialled.dport
    local_out(walk, state, host, found)


def _from_attached(walk: Walk, state: State, host: Host, src: int) -> None:
    """A pod sends: its packet enters its node by the interface that leads to it."""
    p = state.packet
    if host.cilium is not None:
        out_of_pod(walk, state, host, src)
        return
    target = walk.topology.attached.get((p.family, p.dst))
    iif, bridge = interface_toward(host, p.family, src)
    if iif is None and host.has_network:
        end_unknown(
            walk, state, host.name, f"{host.name} has no route to the client {to_text(p.family, src)}"
        )
        return
    if bridge and target is not None and on_bridge(walk, host, p.family, p.dst, iif):
        bridged(walk, state, host, iif or "?", target)
        return
    client = walk.topology.attached.get((p.family, src))
    if p.family == 4 and client is not None and hears_gateway(walk, host, iif or "?", client, None) is None:
        why = f"whether {client.name} knows the hardware address of its gateway was not read"
        end_unknown(
            walk, state, host.name, f"{why}, and {host.name}, which does not forward, answers no ARP for it"
        )
        return
    inside = walk.places.inside(client) if client is not None and p.length is not None else None
    if inside is not None:
        found = inside.route(p, iif="lo")
        limit_own(p, inside, found, found.hops[0].dev if found.hops else None)
    walk.go(Enter(state, host, iif or "?", "?" if bridge else None))


def _from_outside(walk: Walk, state: State, flow: Flow) -> None:
    p = state.packet
    p.from_far = flow.from_node is None
    entry = flow.via or walk.owners.get((p.family, p.dst))
    if entry is None:
        found = walk.topology.attached.get((p.family, p.dst))
        entry = found.node if found is not None else None
    if entry is None:
        end_unknown(
            walk,
            state,
            "",
            f"no node owns {flow.dst}: say with `via` at which node the packet reaches the cluster",
        )
        return
    host = walk.places.walkable(entry, state.packet.family)
    if host is None:
        end_unknown(walk, state, entry, walk.places.nothing_of(entry, "where the packet arrives"))
        return
    walk.go(Enter(state, host, arrival_interface(walk, host, p), None))
