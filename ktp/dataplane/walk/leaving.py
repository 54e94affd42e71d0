"""A packet leaves a node: to the node itself, to a pod, to another node, out of the cluster."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import some, to_text
from ktp.dataplane.state import Delivery, State
from ktp.dataplane.topology import Attached
from ktp.dataplane.tunnel import BY_IPSEC, far_end
from ktp.dataplane.walk.answers import answer_arrives, delivered, reply_of, turn
from ktp.dataplane.walk.arrival import loop_back
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Enter, Reach
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.links import interface_toward, is_uplink, network_owner, overlay_owner
from ktp.dataplane.walk.pods import out_of_namespace
from ktp.dataplane.walk.programs import into_cilium, to_pod, undo_balance
from ktp.dataplane.walk.tunnels import tunnelled, untunnelled
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.dataplane.walk.wireguard import encrypted
from ktp.dataplane.walk.xfrm import protected
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.cilium import HOST_DEVICE
from ktp.model.effect import Note
from ktp.model.host import NextHop
from ktp.model.trace import Disposition, StepKind, Symptom
from ktp.model.tunnel import IPAddress, TunnelFault


def emit(walk: Walk, state: State, host: Host) -> None:
    """The packet leaves by `oif`: into the node itself again, to a pod, to another node, out of the cluster."""
    p = state.packet
    if p.oif == "lo":
        loop_back(walk, state, host)
        return
    if host.pod:
        out_of_namespace(walk, state, host)
        return
    bridge = p.bridged
    if not bridge and protected(walk, state, host):
        return
    p.ct, p.ctstate = None, pk.INVALID
    if host.cilium is not None:
        undo_balance(state, host)
    if host.cilium is not None and p.oif == HOST_DEVICE:
        into_cilium(walk, state, host)
        return
    hop = state.hop
    to_device = host.has_network and not bridge and hop is not None and hop.gateway is None
    if host.cilium is not None and to_device and host.cilium.pod(p.family, p.dst) is not None:
        to_pod(walk, state, host)  # its program sits at the pod's device, whichever route leads there
        return
    close_hop(state, host)
    dst_key = (p.family, p.dst)
    if not host.has_network:
        _arrive_unseen(walk, state, host)
        return
    assert hop is not None
    next_ip = int(hop.gateway) if hop.gateway is not None and hop.gateway.version == p.family else p.dst
    attached = walk.topology.attached.get(dst_key)
    client = state.client
    if attached is None and p.reply and client.pod and p.dst == client.ip:
        attached = Attached(name="the client", node=client.node)
    if bridge and attached is not None:
        walk.go(Reach(state, host, attached))
        return
    if (
        hop.gateway is None
        and attached is not None
        and attached.node == host.name
        and not attached.host_network
    ):
        walk.go(Reach(state, host, attached))
        return
    if p.reply and not client.pod and client.node is None and p.dst == client.ip:
        owner = walk.owners.get((p.family, next_ip)) if hop.gateway is not None else None
        if owner is None:
            answer_arrives(walk, state, host)
            return
    owner = walk.owners.get((p.family, next_ip))
    if owner is None:
        owner = network_owner(walk, host, p.family, next_ip)
    if owner is None or owner == host.name:
        owner = overlay_owner(host, hop, attached)
    if owner is not None and owner != host.name:
        _to_node(walk, state, host, owner, hop.dev or "?", next_ip)
        return
    if attached is not None and attached.node is not None and attached.node != host.name:
        supposed = EvidenceKind.ROUTES in host.state.supposed
        if hop.gateway is None or not walk.places.nodes_route_pods or supposed:
            state.assume(
                Assumption("the network between the nodes delivers packets for pods to the pods' nodes")
            )
            _to_node(walk, state, host, attached.node, hop.dev or "?", next_ip)
            return
        if not walk.topology.nodes_known and walk.places.routes_pods(host, *dst_key):
            router = to_text(p.family, next_ip)
            state.assume(
                Assumption(
                    f"{router} is {attached.node}, or leads there (not all nodes were read)",
                    EvidenceKind.NODES,
                    attached.node,
                )
            )
            _to_node(walk, state, host, attached.node, hop.dev or "?", next_ip)
            return
    if attached is not None and attached.node is None:
        walk.go(Reach(state, host, attached))
        return
    owner = walk.owners.get(dst_key)
    if owner is not None and owner != host.name and hop.gateway is not None:
        state.assume(Assumption("the router between the nodes delivers packets for nodes' addresses"))
        _to_node(walk, state, host, owner, hop.dev or "?", p.dst)
        return
    _leave_cluster(walk, state, host, hop, next_ip)


def _leave_cluster(walk: Walk, state: State, host: Host, hop: NextHop, next_ip: int) -> None:
    p = state.packet
    target = to_text(p.family, p.dst)
    if (
        state.direction == "request"
        and not walk.topology.pods_known
        and hop.gateway is None
        and not is_uplink(walk, host, p.family, hop.dev or "")
    ):
        state.assume(
            Assumption(
                f"a pod has the address {target} (pods and endpoints were not read)", EvidenceKind.PODS
            )
        )
        walk.go(Reach(state, host, Attached(name=target, node=host.name)))
        return
    if state.direction == "request" and not (walk.topology.nodes_known and walk.topology.endpoints_known):
        whose = "node" if walk.topology.endpoints_known else "endpoint"
        article = "a" if whose == "node" else "an"
        words = (
            f"{target} may be an address of {article} {whose} that is not known: not all {whose}s were read"
        )
        end_unknown(walk, state, host.name, words)
        return
    if hop.gateway is not None:
        reason = (
            f"the packet leaves the cluster by router {to_text(p.family, next_ip)} for {target}, "
            "and nobody that ktp knows answers there"
        )
        if state.direction != "request":
            router = to_text(p.family, next_ip)
            reason = f"the answer leaves by router {router} for {target}, which is not the client"
        ended(walk, state, Disposition.LOST, Symptom.TIMES_OUT, reason, host, "route")
        return
    if state.direction == "request" and walk.topology.unread:
        end_unknown(
            walk,
            state,
            host.name,
            f"{target} may be an address of {some(sorted(walk.topology.unread))}, of which they were not read",
        )
        return
    # Nobody answers the neighbour solicitation: after three seconds the node itself reports it (arp_error_report).
    kind = "icmp-host-unreachable" if p.family == 4 else "icmp6-addr-unreachable"
    reason = (
        f"{target} should be a neighbour of {host.name} on {hop.dev}, "
        "and no node, pod or endpoint has this address"
    )
    p.oif = None
    step = state.note(StepKind.ROUTE, Note(f"no neighbour {target} on {hop.dev}"), hook="ROUTING")
    if state.direction != "request":
        ended(walk, state, Disposition.LOST, Symptom.TIMES_OUT, reason, host, "route")
        return
    conn = state.conns[-1] if state.conns and state.conns[-1].node == host.name else None
    p.ct = conn.copy() if conn is not None else None
    send_error(walk, state, host, kind, Disposition.LOST, reason, step, "route")


def _to_node(walk: Walk, state: State, host: Host, name: str, dev: str, next_ip: int) -> None:
    target = walk.places.walkable(name, state.packet.family)
    p = state.packet
    tunnel = (host.state.tunnels or {}).get(dev)
    if tunnel is not None and tunnel.wireguard is not None:
        encrypted(walk, state, host, name, tunnel, tunnel.wireguard)
        return
    if tunnel is not None and tunnel.kind in BY_IPSEC:
        end_unknown(walk, state, host.name, f"how {dev} of {host.name} protects packets is not modelled")
        return
    end: IPAddress | None = None
    if tunnel is not None and not tunnel.is_external:
        found = far_end(host.state, tunnel, p.family, next_ip)
        if isinstance(found, TunnelFault):
            untunnelled(walk, state, host, tunnel, found, to_text(p.family, next_ip))
            return
        end = found
    if target is None:
        through_unknown_node(walk, state, host, name)
        return
    if not target.has_network:
        walk.go(Enter(state, target, "?", None))
        return
    if tunnel is not None and not tunnel.is_external:
        tunnelled(walk, state, host, target, tunnel, end)
        return
    holder = target.interface_of(p.family, next_ip) or target.interface_of(p.family, p.dst)
    if holder != dev and dev in target.interfaces:
        mine = host.interfaces.get(dev)
        on_link = mine is not None and any(
            a.ip.version == p.family
            and int(a.ip) >> (a.ip.max_prefixlen - a.prefixlen)
            == next_ip >> (a.ip.max_prefixlen - a.prefixlen)
            and a.prefixlen < a.ip.max_prefixlen
            for a in mine.addresses
        )
        if not on_link:
            holder = dev  # a tunnel: its packets come out of the tunnel of the same name
    if holder is None:
        back, _ = interface_toward(target, p.family, p.src)
        holder = back or "?"
    walk.go(Enter(state, target, holder, None))


def _arrive_unseen(walk: Walk, state: State, host: Host) -> None:
    """Where only rules are known: what leaves the node is taken to arrive."""
    p = state.packet
    if state.direction != "request":
        answer_arrives(walk, state, host)
        return
    attached = walk.topology.attached.get((p.family, p.dst))
    if attached is None and (p.dst, p.dport) == (state.client.dst, state.client.dport):
        # No rule chose a destination: who has the address that was dialled, nothing here tells.
        unread = f"neither addresses nor routes of {host.name} were read"
        words = f"who has {to_text(p.family, p.dst)} is not known: {unread}"
        end_unknown(walk, state, host.name, words)
        return
    state.assume(
        Assumption(
            "the packet reaches its destination from here (routes of the node were not read)",
            EvidenceKind.ROUTES,
            host.name,
        )
    )
    name = attached.name if attached is not None else None
    node = attached.node if attached is not None else None
    state.delivery = Delivery(p.dst, p.dport, name, node, p.src, p.family)
    reply = reply_of(p)
    if node in (None, host.name) or host.is_local(reply.family, reply.dst):
        # kube-proxy sees to it: either the endpoint answers the node, or it runs there.
        state.assume(
            Assumption(
                "the answer comes back through this node (its routes were not read)",
                EvidenceKind.ROUTES,
                host.name,
            )
        )
        turn(state, reply, "reply")
        walk.go(Enter(state, host, "?", None))
        return
    delivered(walk, state, host, "the answer's way was not followed: routes were not read")
