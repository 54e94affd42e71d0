"""What Cilium's programs do with a packet, at a socket and at devices (bpf/ of Cilium)."""

from __future__ import annotations

from ktp.dataplane.cilium import Balance, Balanced, Fate
from ktp.dataplane.host import Host
from ktp.dataplane.packet import Packet, to_text
from ktp.dataplane.state import RANDOM, Decision, Delivery, State
from ktp.dataplane.topology import Attached
from ktp.dataplane.walk.answers import delivered
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Emit, Enter, PreRouting, Reach
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended, goes_round, lost
from ktp.dataplane.walk.links import network_owner
from ktp.dataplane.walk.routes import choose_hop, hop_words, route_text
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.dataplane.xtables import translation
from ktp.model.cilium import HOST_DEVICE, CiliumEndpoint
from ktp.model.effect import Drop, Effect, Nat, Note, Refuse, Unmodelled
from ktp.model.trace import Disposition, StepKind, Symptom


def at_socket(walk: Walk, state: State, host: Host, *, of_node: bool) -> list[State]:
    """What goes on after connect(): as dialled, or to each backend that may be drawn."""
    programs = host.cilium
    balances = programs.balances_at_socket(of_node=of_node) if programs is not None else False
    if programs is None or balances is False:
        return [state]
    if balances is None and programs.at_socket(state.packet, of_node=of_node) is not None:
        end_unknown(
            walk, state, host.name, "whether Cilium translates at connect() was not read (cilium-dbg status)"
        )
        return []
    return _balance(walk, state, host, programs.at_socket(state.packet, of_node=of_node), "CONNECT")


def _balance(walk: Walk, state: State, host: Host, found: Balance | None, hook: str) -> list[State]:
    """The ways that go on behind a front end, translated; those that it ends are recorded."""
    if found is None:
        return [state]
    text, fate = found.frontend.text, found.fate
    if found.assumption is not None:
        state.assume(found.assumption)
    if fate is Fate.TRANSLATE:
        out = []
        for number, backend in enumerate(found.backends):
            each = state.fork() if number + 1 < len(found.backends) else state
            if len(found.backends) > 1:
                chance = 1 / len(found.backends)
                each.decide(Decision(RANDOM, ("cilium", host.name, text), number, chance, "", "", None))
            q = each.packet
            before, after = (q.dst, q.dport), (int(backend.ip), backend.port)
            if each.steps is None:
                each.arrived = q.copy()
            q.dst, q.dport = after
            effect = translation(Nat.CILIUM, q.family, before, after)
            each.nat_step = each.note(
                StepKind.RULE, effect, hook=hook, table="cilium", text=text, backend="cilium"
            )
            out.append(each)
        return out
    reason = f"{host.name}: {found.why} ({text})"
    if fate is Fate.UNKNOWN:
        step = state.note(
            StepKind.RULE, Unmodelled("Cilium"), hook=hook, table="cilium", text=text, backend="cilium"
        )
        end_unknown(walk, state, host.name, found.why, text, step)
        return []
    kind = "icmp-port-unreachable" if state.packet.family == 4 else "icmp6-port-unreachable"
    ends: dict[Fate, tuple[Effect, Disposition, Symptom]] = {
        Fate.REFUSE: (Refuse(kind), Disposition.REJECTED, Symptom.REFUSED),
        Fate.UNREACHABLE: (Refuse("EHOSTUNREACH"), Disposition.REJECTED, Symptom.UNREACHABLE),
        Fate.DROP: (Drop(), Disposition.DROPPED, Symptom.TIMES_OUT),
    }
    effect, disposition, symptom = ends[fate]
    step = state.note(StepKind.RULE, effect, hook=hook, table="cilium", text=text, backend="cilium")
    close_hop(state, host)
    ended(walk, state, disposition, symptom, reason, host, "rule", step)
    return []


def balance_at_device(walk: Walk, state: State, host: Host, found: Balance) -> None:
    """nodeport_lb4: a backend here goes on by the stack, one elsewhere leaves without having seen it."""
    programs = host.cilium
    assert programs is not None
    p = state.packet
    virtual, client = (p.dst, p.dport), p.src
    for each in _balance(walk, state, host, found, "DEVICE"):
        q = each.packet
        real = (q.dst, q.dport)
        endpoint = programs.endpoint(q.family, q.dst)
        if endpoint is not None:
            each.balanced = Balanced(host.name, virtual, real, client, client)
            if endpoint.is_host or programs.config.legacy_routing is not False:
                walk.go(PreRouting(each, host))
            else:
                to_pod(walk, each, host)
            continue
        direct = programs.is_direct(found.frontend, q.proto)
        tunnelled = programs.is_tunnelled(q.family, q.dst)
        if direct is None or tunnelled is None:
            why = "how Cilium sends a packet on to a backend of another node was not read (cilium-dbg status)"
            end_unknown(walk, each, host.name, why)
            continue
        if not direct:
            source = _source_of_cilium(walk, host, q.family, tunnelled=tunnelled)
            if source is None:
                end_unknown(walk, each, host.name, "the address that Cilium sends from was not read")
                continue
            effect = translation(Nat.SNAT, q.family, (q.src, 0), (source, 0))
            q.src = source
            each.note(StepKind.NAT, effect, hook="DEVICE", table="cilium", backend="cilium")
        each.balanced = Balanced(host.name, virtual, real, client, q.src, direct)
        if tunnelled:
            _through_tunnel(walk, each, host)
        else:
            _by_routes(walk, each, host)


def _source_of_cilium(walk: Walk, host: Host, family: int, *, tunnelled: bool) -> int | None:
    """Whence a packet for another node's backend comes: from cilium_host, or the direct routing device."""
    assert host.cilium is not None
    device = HOST_DEVICE if tunnelled else host.cilium.config.direct_device or ""
    interface = host.interfaces.get(device)
    own = [
        int(a.ip)
        for a in (interface.addresses if interface is not None else ())
        if a.ip.version == family and a.scope == "global" and not a.secondary
    ]
    # node.GetInternalIP: of several, the one that the Node object has
    return next((ip for ip in own if walk.topology.node_addresses.get((family, ip)) == host.name), None) or (
        own[0] if own else None
    )


def undo_balance(state: State, host: Host) -> bool:
    """Whether a program here undid its translation for an answer (an ICMP error of the stack it leaves alone)."""
    b, p = state.balanced, state.packet
    if b is None or state.direction == "request" or p.icmp is not None:
        return False
    if not (b.direct or b.node == host.name) or (p.src, p.sport) != b.real or p.dst != b.source:
        return False
    p.src, p.sport = b.virtual
    p.dst = b.client
    if p.inner is not None:
        p.inner = (b.client, p.inner[1], *b.virtual, p.proto)
    effect = translation(Nat.DESTINATION_UNDONE, p.family, b.real, b.virtual)
    state.note(StepKind.NAT, effect, hook="DEVICE", table="cilium", backend="cilium")
    state.balanced = None
    return True


def out_of_pod(walk: Walk, state: State, host: Host, ip: int) -> None:
    """A packet of a pod comes by its device (bpf_lxc, from-container)."""
    programs, p = host.cilium, state.packet
    assert programs is not None
    if state.direction != "request":
        if undo_balance(state, host):
            onward(walk, state, host)
        else:
            _from_container(walk, state, host, ip)
        return
    if state.steps is None:
        state.arrived = p.copy()
    if programs.balances_at_socket(of_node=False) is not False:
        _from_container(walk, state, host, ip)
        return
    virtual, found = (p.dst, p.dport), programs.at_pod_device(p)
    for each in _balance(walk, state, host, found, "POD"):
        q = each.packet
        if found is not None:
            if q.dst == q.src and (own := programs.loopback_source(q.family)) is not None:
                q.src = own
            each.balanced = Balanced(host.name, virtual, (q.dst, q.dport), ip, q.src)
        _from_container(walk, each, host, ip)


def _from_container(walk: Walk, state: State, host: Host, ip: int) -> None:
    programs, p = host.cilium, state.packet
    assert programs is not None
    own = programs.endpoint(p.family, ip)
    if state.direction == "request" and own is not None and p.dst != ip:
        if not _is_let(walk, state, host, own, {programs.identity(p.family, p.dst)}, egress=True):
            return
    if state.direction == "request" and p.src == p.dst:
        close_hop(state, host)  # the pod's own stack hands it back to the pod
        state.delivery = Delivery(p.dst, p.dport, _name_of(walk, p), host.name, p.src, p.family)
        delivered(walk, state, host, "")
        return
    device = host.device_at(own.ifindex) if own is not None else None
    onward(walk, state, host, device or HOST_DEVICE)


def onward(walk: Walk, state: State, host: Host, device: str | None = None) -> None:
    """Where a program sends a packet: to a pod here, into the tunnel, to the stack, out by the routes.

    `device` is the pod's, by which it comes; None for what a program of a node's device sends on.
    """
    programs, p = host.cilium, state.packet
    assert programs is not None
    if programs.pod(p.family, p.dst) is not None:
        to_pod(walk, state, host)
        return
    tunnelled = programs.is_tunnelled(p.family, p.dst)
    if tunnelled is None:
        end_unknown(
            walk, state, host.name, "whether Cilium tunnels was not read (cilium-dbg status, ipcache)"
        )
    elif tunnelled:
        _through_tunnel(walk, state, host)
    elif (device is None and state.direction != "request") or (
        programs.config.legacy_routing is False and not host.is_local(p.family, p.dst)
    ):
        _by_routes(walk, state, host)
    else:
        begun = state.steps is not None
        mark = programs.mark_of(p.family, p.src) if device is not None else 0
        walk.go(Enter(state, host, device or HOST_DEVICE, None, begun=begun, mark=mark))


def _by_routes(walk: Walk, state: State, host: Host) -> None:
    """Out of the node as its routes say, without meeting a rule (bpf_fib_lookup)."""
    found = host.route(state.packet, iif="lo")
    if found.type != "unicast" or not found.hops:
        target = to_text(state.packet.family, state.packet.dst)
        lost(walk, state, host, f"{host.name} has no route to {target} ({found.type})", "route")
        return
    for each, hop in choose_hop(state, found):
        each.note(StepKind.ROUTE, Note(hop_words(hop)), hook="ROUTING", text=route_text(found))
        each.hop, each.packet.oif = hop, hop.dev
        walk.go(Emit(each, host))


def into_cilium(walk: Walk, state: State, host: Host) -> None:
    """What leaves by cilium_host is delivered, here or through the tunnel (bpf_host, from-host)."""
    programs, p = host.cilium, state.packet
    assert programs is not None
    if programs.pod(p.family, p.dst) is not None:
        to_pod(walk, state, host)
    elif programs.is_tunnelled(p.family, p.dst):
        _through_tunnel(walk, state, host)
    else:
        target = to_text(p.family, p.dst)
        lost(
            walk, state, host, f"no pod of {host.name} has the address {target} (Cilium's endpoints)", "route"
        )


def _through_tunnel(walk: Walk, state: State, host: Host) -> None:
    p = state.packet
    close_hop(state, host)
    key = (p.family, p.dst)
    attached = walk.topology.attached.get(key)
    name = attached.node if attached is not None else walk.owners.get(key)
    if name is None:
        name = network_owner(walk, host, p.family, p.dst)
    target = walk.places.walkable(name, state.packet.family) if name is not None else None
    if name is None:
        end_unknown(
            walk, state, host.name, f"whose {to_text(p.family, p.dst)} is, behind the tunnel, was not read"
        )
    elif target is None:
        through_unknown_node(walk, state, host, name)
    elif target.cilium is None:
        end_unknown(
            walk, state, name, f"what Cilium on {name} does with a packet from the tunnel was not read"
        )
    else:
        _out_of_tunnel(walk, state, target)


def _out_of_tunnel(walk: Walk, state: State, host: Host) -> None:
    """bpf_overlay, from-overlay: to a pod here, or to the node itself."""
    p = state.packet
    assert host.cilium is not None
    p.come_in(HOST_DEVICE)
    state.arrived = p.copy()
    state.steps = None
    if goes_round(walk, state, host):
        return
    if undo_balance(state, host):
        onward(walk, state, host)
    elif host.cilium.pod(p.family, p.dst) is not None:
        to_pod(walk, state, host)
    else:
        walk.go(Enter(state, host, HOST_DEVICE, None, begun=True))


def to_pod(walk: Walk, state: State, host: Host) -> None:
    """to-container: the policy of the pod, then the pod."""
    programs, p = host.cilium, state.packet
    assert programs is not None
    key = (p.family, p.dst)
    if state.direction == "request":
        endpoint = programs.pod(*key)
        identities = {programs.identity(p.family, p.src)}
        if state.balanced is not None and state.balanced.node != host.name and programs.config.tunnel:
            # The tunnel carries the identity that the sending node gave it, which no map here tells.
            identities.add(programs.identity(p.family, state.balanced.client))
        if endpoint is not None and not _is_let(walk, state, host, endpoint, identities, egress=False):
            return
    elif undo_balance(state, host):
        key = (p.family, p.dst)
    close_hop(state, host)
    attached = walk.topology.attached.get(key)
    if attached is None:
        client = state.client.pod and p.reply and p.dst == state.client.ip
        name = "the client" if client else to_text(*key)
        attached = Attached(name=name, node=host.name)
    walk.go(Reach(state, host, attached))


def _name_of(walk: Walk, p: Packet) -> str:
    attached = walk.topology.attached.get((p.family, p.dst))
    return attached.name if attached is not None else to_text(p.family, p.dst)


def _is_let(
    walk: Walk,
    state: State,
    host: Host,
    endpoint: CiliumEndpoint,
    identities: set[int | None],
    *,
    egress: bool,
) -> bool:
    """Whether an endpoint's policy lets the packet through; where not, its end is recorded."""
    assert host.cilium is not None
    p = state.packet
    if state.balanced is not None and state.balanced.client == p.dst and not egress:
        return True  # a pod that draws itself
    allowed = host.cilium.permits(endpoint, frozenset(identities), p, egress=egress)
    if allowed:
        return True
    which = "egress" if egress else "ingress"
    whose = to_text(p.family, p.src if egress else p.dst)
    if allowed is None:
        end_unknown(walk, state, host.name, f"Cilium's policy map of {whose} ({which}) was not read")
        return False
    reason = f"{host.name}: Cilium's policy of {whose} does not allow this {which}"
    step = state.note(
        StepKind.RULE, Drop(), hook="POD", table="cilium", chain="policy", backend="cilium",
        text=f"policy map of endpoint {endpoint.identifier}, {which}",
    )  # fmt: skip
    close_hop(state, host)
    ended(walk, state, Disposition.DROPPED, Symptom.TIMES_OUT, reason, host, "rule", step)
    return False
