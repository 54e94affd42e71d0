"""To pods and endpoints, with or without their network namespace, and back from them to their node."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import to_text
from ktp.dataplane.state import Delivery, State
from ktp.dataplane.topology import Attached
from ktp.dataplane.walk.answers import answer_arrives, reply_of, turn
from ktp.dataplane.walk.bridge import bridged
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Enter
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended, lost
from ktp.dataplane.walk.links import arrival_interface, interface_toward, is_loopback, on_bridge
from ktp.dataplane.walk.programs import out_of_pod
from ktp.dataplane.walk.routes import does_forward
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.model.assumption import PROGRAM_LISTENS, Assumption
from ktp.model.trace import Disposition, Symptom
from ktp.model.tunnel import IPAddress


def reach(walk: Walk, state: State, host: Host | None, attached: Attached) -> None:
    """To a pod or an endpoint: into its namespace where that was read, else its answer is taken to come."""
    p = state.packet
    if state.direction != "request":
        if (state.client.pod and p.dst == state.client.ip) or attached.node is None:
            answer_arrives(walk, state, host)
        else:
            ended(
                walk, state, Disposition.LOST, Symptom.TIMES_OUT,
                f"the answer goes to {attached.name}, which is not the client", host, "route",
            )  # fmt: skip
        return
    if walk.one_way and walk.places.inside(attached) is None:
        ended(walk, state, Disposition.DELIVERED, Symptom.CONNECTS, f"it comes to {attached.name}", host, "")
        return
    state.delivery = Delivery(p.dst, p.dport, attached.name, attached.node, p.src, p.family)
    if is_loopback(p.family, p.src):
        # ip_route_input_slow and ip6_rcv_core take no loopback source from a wire
        ended(
            walk, state, Disposition.LOST, Symptom.TIMES_OUT,
            f"the packet comes to {attached.name} from {to_text(p.family, p.src)}, which it drops (martian source)",
            host, "route",
        )  # fmt: skip
        return
    if p.src == p.dst:
        # ip_route_input_slow calls it a martian; in IPv6 its answer goes to the pod itself and opens nothing
        ended(
            walk, state, Disposition.LOST, Symptom.TIMES_OUT,
            f"{attached.name} gets its own packet back with itself as the sender, and cannot answer it",
            host, "route",
        )  # fmt: skip
        return
    inside = walk.places.inside(attached)
    if inside is not None:
        walk.go(Enter(state, inside, inside.interface_of(p.family, p.dst) or "?", None))
        return
    if attached.node is not None:
        state.assume(PROGRAM_LISTENS)
    turn(state, reply_of(p), "reply")
    _out_to_node(walk, state, host, attached)


def out_of_namespace(walk: Walk, state: State, host: Host) -> None:
    """What a pod sends leaves its network namespace, and comes to its node by the device that leads to the pod."""
    p = state.packet
    own = [key for key in walk.places.own_addresses(host.name) if key[0] == p.family]
    key = (p.family, p.src) if (p.family, p.src) in own else own[0]
    if p.oif != host.interface_of(*key):
        what = "the packet" if state.direction == "request" else "the answer"
        way = f"by {p.oif}, and not by {host.interface_of(*key)} as the request came"
        lost(walk, state, host, f"{what} leaves {host.name} {way}", "route")
        return
    gateway = state.hop.gateway if state.hop is not None else None
    p.ct, p.ctstate = None, pk.INVALID
    close_hop(state, host)
    _out_to_node(
        walk,
        state,
        walk.places.walkable(host.node, state.packet.family),
        walk.topology.attached[key],
        gateway,
    )


def _out_to_node(
    walk: Walk, state: State, host: Host | None, attached: Attached, gateway: IPAddress | None = None
) -> None:
    """The answer of a pod, or of an endpoint elsewhere, comes to its node; None where that is not known."""
    p = reply = state.packet
    if host is None:
        # Its node is not known: the answer is taken to get out of it unchanged, towards whom it is for.
        key = (reply.family, reply.dst)
        pod = walk.topology.attached.get(key)
        owner = pod.node if pod is not None else walk.owners.get(key)
        target = walk.places.walkable(owner, state.packet.family) if owner is not None else None
        if target is not None:
            walk.go(Enter(state, target, arrival_interface(walk, target, reply), None))
        else:
            answer_arrives(walk, state, None)
        return
    if attached.node is None:
        _answer_from_outside(walk, state, host, attached)
        return
    if host.cilium is not None:
        out_of_pod(walk, state, host, reply.src)
        return
    client = walk.topology.attached.get((p.family, reply.dst))
    iif, bridge = interface_toward(host, p.family, reply.src)
    if bridge and client is not None and on_bridge(walk, host, p.family, reply.dst, iif):
        bridged(walk, state, host, iif or "?", client)
        return
    heard = hears_gateway(walk, host, iif or "?", attached, gateway) if p.family == 4 else True
    if heard is None:
        why = f"whether {attached.name} knows the hardware address of its gateway was not read"
        end_unknown(
            walk, state, host.name, f"{why}, and {host.name}, which does not forward, answers no ARP for it"
        )
    elif not heard:
        why = f"{attached.name} asks for its gateway's hardware address, and gets no answer"
        lost(walk, state, host, f"{why}: {host.name} does not forward (proxy ARP)", "sysctl")
    else:
        walk.go(Enter(state, host, iif or "?", "?" if bridge else None))


def hears_gateway(
    walk: Walk, host: Host, iif: str, attached: Attached, gateway: IPAddress | None
) -> bool | None:
    """Whether a pod behind `iif` has the hardware address of its gateway; None where that was not read.

    Behind a device without an address the gateway is one that nobody has (Calico's 169.254.1.1), for which the node
    answers by proxy ARP, as long as it forwards (arp_process: IN_DEV_FORWARD); else an entry of before must do.
    """
    own = next((i.addresses for i in host.state.interfaces or () if i.name == iif), ())
    if does_forward(host, 4, iif) or any(a.ip.version == 4 for a in own):
        return True
    inside = walk.places.inside(attached)
    known = inside.state.neighbours if inside is not None else None
    if known is not None and gateway is not None:
        return host.is_local(4, int(gateway)) or any(entry.ip == gateway for entry in known)
    return None if host.conf("ipv4", iif, "proxy_arp") else True


def _answer_from_outside(walk: Walk, state: State, host: Host, attached: Attached) -> None:
    """An endpoint outside the cluster answers: straight to the node or pod that it sees, else to the client."""
    p = state.packet
    owner = walk.owners.get((p.family, p.dst))
    if owner is None:
        pod = walk.topology.attached.get((p.family, p.dst))
        if pod is not None and pod.node is not None:
            owner = pod.node
            state.assume(Assumption(f"{attached.name} has a route to the pods by their nodes"))
    if owner is None:
        answer_arrives(walk, state, None)
        return
    target = walk.places.walkable(owner, state.packet.family)
    if target is None:
        through_unknown_node(walk, state, host, owner)
        return
    walk.go(Enter(state, target, arrival_interface(walk, target, p), None))
