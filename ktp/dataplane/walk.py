"""The walk of a flow: from its sender through every node to its end, and the answer's way back.

One packet opens a connection (a TCP SYN, the first datagram) and walks raw, conntrack, mangle, nat, routing, filter,
security as the kernel orders them; where it arrives, the answer walks back through the same nodes' connection
tracking. Every step is recorded as it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktp.dataplane import packet as pk
from ktp.dataplane.cilium import Balance, Balanced, Fate
from ktp.dataplane.conntrack import confirm
from ktp.dataplane.hooks import (
    FORWARD,
    INPUT,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    Group,
)
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import ICMP_CODES, send_symptom, symptom_of
from ktp.dataplane.packet import (
    CLIENT_PORTS,
    ICMP,
    ICMP6,
    LOCAL_PORTS,
    PROTOCOLS,
    TCP,
    UDP,
    Packet,
    Port,
    endpoint_text,
    some,
    to_int,
    to_text,
)
from ktp.dataplane.places import Places
from ktp.dataplane.routing import MAIN, Lookup
from ktp.dataplane.stages import run_group
from ktp.dataplane.state import (
    ACCEPT,
    DROP,
    IPVS,
    MOST_WAYS,
    RANDOM,
    REJECT,
    Decision,
    Delivery,
    HopRecord,
    LimitExceededError,
    Refusal,
    State,
    StepRecord,
    Verdict,
)
from ktp.dataplane.topology import Attached, Topology
from ktp.dataplane.tunnel import device_of, far_end
from ktp.dataplane.xtables import translation
from ktp.model.assumption import PROGRAM_LISTENS, Assumption, EvidenceKind
from ktp.model.cilium import HOST_DEVICE, CiliumEndpoint
from ktp.model.effect import Drop, Effect, Forbid, Nat, Note, Refuse, Setting, Unmodelled, Untunnelled
from ktp.model.host import (
    ListeningSocket,
    NextHop,
)
from ktp.model.trace import Disposition, Flow, StepKind, Symptom
from ktp.model.tunnel import IPAddress, TunnelDevice, TunnelFault

_MAX_HOPS = 12


@dataclass(frozen=True, slots=True)
class Leaf:
    """The end of one way."""

    state: State
    disposition: Disposition
    symptom: Symptom
    reason: str
    step: StepRecord | None = None
    node: str = ""
    kind: str = ""
    pod: str = ""  # in whose network namespace on the node


class _Client:
    """Who waits for the answer."""

    __slots__ = ("dport", "dst", "ip", "node", "pod", "proto")

    def __init__(self, ip: int, node: str | None, pod: bool, dst: int, dport: Port, proto: int) -> None:
        self.ip = ip
        self.node = node
        self.pod = pod
        self.dst = dst
        self.dport = dport
        self.proto = proto


class Walker:
    """Walks flows over one topology. What is compiled for one flow serves the next."""

    def __init__(self, topology: Topology) -> None:
        """Nothing is compiled before a flow needs it."""
        self.topology = topology
        self._places = Places(topology)
        self._holding: dict[tuple[str, str], Walker] = {}
        self._outer: dict[tuple[str, str, str], list[Leaf]] = {}

    def walk(self, flow: Flow) -> list[Leaf]:
        """Every way that the flow may take, to its end. Raises ValueError where an address or protocol is none."""
        return _Walk(self._places, self._outer).run(flow)

    def host(self, name: str, pod: str = "") -> Host | None:
        """The compiled node, or a pod's network namespace there; None where nothing was read of it."""
        return self._places.inside(Attached(name=pod, node=name)) if pod else self._places.host(name)

    def groups(self, node: str, family: int, hook: str, pod: str = "") -> tuple[Group, ...]:
        """What hangs at `hook` of a node or pod, first to run first; () where nothing was read of it."""
        host = self.host(node, pod)
        return self._places.groups_of(host, family, hook) if host is not None else ()

    def may_hold(self, address: str) -> tuple[str, ...]:
        """The nodes of which an address may be that nobody is known to have."""
        return self._places.may_hold(address)

    def holding(self, node: str, address: str) -> Walker:
        """A walker of the same world in which `node`, one of `may_hold`, has the address."""
        found = self._holding.get((node, address))
        if found is None:
            found = self._holding[node, address] = Walker(self._places.holding(node, address))
        return found


class _Walk:
    """One flow on its ways. `one_way`: what becomes of an answer is not asked, as of tunnels' own packets."""

    def __init__(
        self, places: Places, outer: dict[tuple[str, str, str], list[Leaf]], *, one_way: bool = False
    ) -> None:
        self._places = places
        self.topology = places.topology
        self._owners = places.owners
        self._outer = outer
        self._one_way = one_way
        self._leaves: list[Leaf] = []
        self._family = 4
        self._client = _Client(0, None, False, 0, 0, 0)

    # -- who is where

    # -- one flow

    def run(self, flow: Flow) -> list[Leaf]:
        """Every way that the flow may take, to its end. Raises ValueError where an address or protocol is none."""
        family, dst = to_int(flow.dst)
        self._family = family
        proto = PROTOCOLS.get(flow.protocol.lower())
        if proto not in (TCP, UDP, pk.SCTP):
            raise ValueError(f"protocol {flow.protocol!r} is not tcp, udp or sctp")
        src: int | None = None
        if flow.src is not None:
            src_family, src = to_int(flow.src)
            if src_family != family:
                raise ValueError(f"{flow.src} and {flow.dst} are of different address families")
        ports = CLIENT_PORTS if flow.from_node is None else LOCAL_PORTS
        p = Packet(family, proto, src or 0, dst, ports, flow.port)
        state = State(p)
        if flow.from_node is not None:
            host = self._places.walkable(flow.from_node, self._family)
            if host is None and src is not None:
                # Of the client's own node nothing is known: its packet is taken to get out of it unchanged.
                state.assume(
                    Assumption(
                        "nothing there stops or changes the packet (no rules were read)",
                        EvidenceKind.RULES,
                        flow.from_node,
                    )
                )
                self._client = _Client(src, flow.from_node, True, dst, flow.port, proto)
                self._from_outside(state, flow)
            elif host is None:
                self._end_unknown(
                    state, flow.from_node, self._places.nothing_of(flow.from_node, "where the client runs")
                )
            elif src is None or self._is_process(host, family, src):
                for each in self._at_socket(state, host, of_node=True):
                    self._from_process(each, host, src)
            else:
                for each in self._at_socket(state, host, of_node=False):
                    q = each.packet
                    self._client = _Client(src, flow.from_node, True, q.dst, q.dport, proto)
                    self._from_attached(each, host, src)
        else:
            assert src is not None or not flow.src
            if src is None:
                raise ValueError("a flow needs a source address or the node that it comes from")
            self._client = _Client(src, None, False, dst, flow.port, proto)
            self._from_outside(state, flow)
        return self._leaves

    def _is_process(self, host: Host, family: int, src: int) -> bool:
        return host.owns(family, src) or host.is_local(family, src)

    def _from_process(self, state: State, host: Host, src: int | None) -> None:
        p = state.packet
        for each in host.taken[p.family]:
            state.assume(each)
        p.local = True
        p.sport = host.local_ports()
        found = self._first_route(state, host, src)
        if found is None:
            return
        if src is None:
            src = self._source_for(host, p, found)
            if src is None and not host.has_network:
                words = f"neither addresses nor routes of node {host.name} were read"
                self._end_unknown(state, host.name, words)
                return
            if src is None:
                self._leaf(
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
        self._client = _Client(src, host.name, False, p.dst, p.dport, p.proto)
        dialled, state.arrived = state.arrived, p.copy()
        if state.steps is not None:  # translated at the socket
            state.arrived.dst, state.arrived.dport = dialled.dst, dialled.dport
        self._local_out(state, host, found)

    def _first_route(self, state: State, host: Host, src: int | None) -> Lookup | None:
        p = state.packet
        if not host.has_network:
            return (
                Lookup("local", table="local")
                if host.is_local(p.family, p.dst)
                else Lookup("unicast", hops=(NextHop(dev="?"),))
            )
        found = host.route(p, iif="lo", src=src or 0)
        if found.type == "unknown":
            self._end_unknown(state, host.name, found.unknown or "routing is unknown")
            return None
        if found.type in ("unreachable", "hostunreach", "prohibit", "blackhole"):
            self._leaf(
                state, Disposition.LOST, Symptom.UNREACHABLE,
                f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})", host, "route",
            )  # fmt: skip
            return None
        return found

    @staticmethod
    def _source_for(host: Host, p: Packet, found: Lookup) -> int | None:
        route = found.route
        if route is not None and route.prefsrc is not None and route.prefsrc.version == p.family:
            return int(route.prefsrc)
        if found.type == "local":
            return p.dst
        hop = found.hops[0] if found.hops else NextHop()
        if not host.has_network:
            return None
        toward = int(hop.gateway) if hop.gateway is not None and hop.gateway.version == p.family else p.dst
        scope = route.scope if route is not None else "global"
        if p.family == 6:
            toward = p.dst
        return host.select_source(p.family, hop.dev, toward, scope)

    def _from_attached(self, state: State, host: Host, src: int) -> None:
        """A pod sends: its packet enters its node by the interface that leads to it."""
        p = state.packet
        if host.cilium is not None:
            self._out_of_pod(state, host, src)
            return
        target = self.topology.attached.get((p.family, p.dst))
        iif, bridge = self._interface_toward(host, p.family, src)
        if iif is None and host.has_network:
            self._end_unknown(
                state, host.name, f"{host.name} has no route to the client {to_text(p.family, src)}"
            )
            return
        if bridge and target is not None and self._on_bridge(host, p.family, p.dst, iif):
            self._bridged(state, host, iif or "?", target)
            return
        client = self.topology.attached.get((p.family, src))
        if (
            p.family == 4
            and client is not None
            and self._hears_gateway(host, iif or "?", client, None) is None
        ):
            why = f"whether {client.name} knows the hardware address of its gateway was not read"
            self._end_unknown(
                state, host.name, f"{why}, and {host.name}, which does not forward, answers no ARP for it"
            )
            return
        self._enter(state, host, iif or "?", "?" if bridge else None)

    def _on_bridge(self, host: Host, family: int, ip: int, bridge: str | None) -> bool:
        """Whether `ip` belongs to a pod of this node that hangs at `bridge`."""
        attached = self.topology.attached.get((family, ip))
        if attached is None or attached.node != host.name or attached.host_network:
            return False
        return self._interface_toward(host, family, ip)[0] == bridge

    def _interface_toward(self, host: Host, family: int, ip: int) -> tuple[str | None, bool]:
        """The interface by which the node reaches `ip` directly, and whether it is a bridge."""
        if not host.has_network:
            return None, False
        dev = self._direct_interface(host, family, ip)
        if dev is None:
            found = host.fib[family].lookup(ip, iif="lo")
            dev = found.hops[0].dev if found.hops else None
            if found.type == "local":
                return "lo", False
        return dev, dev is not None and self._is_bridge(host, dev)

    @staticmethod
    def _direct_interface(host: Host, family: int, ip: int) -> str | None:
        """The interface on whose link `ip` is by the main table, whatever policy routing does with packets to it."""
        direct = host.fib[family].in_table(MAIN, ip)
        if (
            direct is None
            or direct[0].dst.prefixlen == 0
            or not direct[1]
            or direct[1][0].gateway is not None
        ):
            return None
        return direct[1][0].dev

    @staticmethod
    def _is_bridge(host: Host, dev: str) -> bool:
        interface = host.interfaces.get(dev)
        if interface is None:
            return False
        return interface.kind == "bridge" or any(i.master == dev for i in host.interfaces.values())

    @staticmethod
    def _bridge_filters(state: State, host: Host, family: int) -> bool:
        """Whether bridged packets pass iptables (net.bridge.bridge-nf-call-iptables)."""
        word = "iptables" if family == 4 else "ip6tables"
        value = host.sysctl(f"net.bridge.bridge-nf-call-{word}")
        if value is None:
            state.assume(
                Assumption(
                    f"net.bridge.bridge-nf-call-{word} is 1, as Kubernetes requires (it was not read)",
                    EvidenceKind.SYSCTLS,
                    host.name,
                )
            )
            return True
        return value == 1

    def _from_outside(self, state: State, flow: Flow) -> None:
        p = state.packet
        p.from_far = flow.from_node is None
        entry = flow.via or self._owners.get((p.family, p.dst))
        if entry is None:
            found = self.topology.attached.get((p.family, p.dst))
            entry = found.node if found is not None else None
        if entry is None:
            self._end_unknown(
                state,
                "",
                f"no node owns {flow.dst}: say with `via` at which node the packet reaches the cluster",
            )
            return
        host = self._places.walkable(entry, self._family)
        if host is None:
            self._end_unknown(state, entry, self._places.nothing_of(entry, "where the packet arrives"))
            return
        self._enter(state, host, self._arrival_interface(host, p), None)

    def _arrival_interface(self, host: Host, p: Packet) -> str:
        """By which interface a packet from outside reaches this node.

        The one that holds the dialled address, since neighbours ask for it there; for an address that no uplink
        holds (a virtual IP), the one that leads back to the sender.
        """
        if not host.has_network:
            return "?"
        toward = self._direct_interface(host, p.family, p.src)
        if toward is None:
            back = host.fib[p.family].lookup(p.src, src=p.dst, iif="lo")
            toward = back.hops[0].dev if back.hops and back.type == "unicast" else None
        holder = host.interface_of(p.family, p.dst)
        if holder is not None and holder != toward and self._is_uplink(host, p.family, holder):
            return holder
        if toward is not None:
            return toward
        return holder or next((i.name for i in host.interfaces.values() if not i.is_loopback), "?")

    def _is_uplink(self, host: Host, family: int, dev: str) -> bool:
        """Whether other machines are reached by `dev`: a gateway lies there, or a node's address."""
        interface = host.interfaces.get(dev)
        if interface is None or interface.is_loopback or self._is_bridge(host, dev):
            return False
        if any(h.dev == dev and h.gateway is not None for r in host.fib[family].routes() for h in r.nexthops):
            return True
        nets = [
            (int(a.ip) >> (a.ip.max_prefixlen - a.prefixlen), a.ip.max_prefixlen - a.prefixlen)
            for a in interface.addresses
            if a.ip.version == family
        ]
        return any(
            f == family and n != host.name and any(ip >> shift == net for net, shift in nets)
            for (f, ip), n in self._owners.items()
        )

    # -- into a node

    def _enter(
        self, state: State, host: Host, iif: str, physin: str | None, *, begun: bool = False, mark: int = 0
    ) -> None:
        """A packet arrives on an interface of a node; `begun` where a program has seen it there, and set `mark`."""
        p = state.packet
        for each in host.taken[p.family]:
            state.assume(each)
        state.seen_nodes += 1
        if state.seen_nodes > _MAX_HOPS:
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT, "the packet goes round in a circle", host, "route"
            )
            return
        p.iif, p.oif = iif, None
        p.ipvs = None
        p.local = False
        p.mark = mark  # a mark lives in one kernel only
        p.physin = physin if physin is not None and self._bridge_filters(state, host, p.family) else None
        p.physout, p.bridged = None, False
        p.ct, p.ctstate = None, pk.INVALID
        if not begun:
            state.arrived = p.copy()
            state.steps = None
        if p.family == 6 and iif != "lo" and (p.dst == 1 or p.src == 1):
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT, "::1 never comes in by a wire", host, "route"
            )
            return
        if host.cilium is not None and host.cilium.has_program(iif):
            if state.direction != "request":
                if self._undo_balance(state, host):
                    self._onward(state, host)
                    return
            elif (found := host.cilium.at_device(p)) is not None:
                self._balance_at_device(state, host, found)
                return
        self._into_stack(state, host)

    def _into_stack(self, state: State, host: Host) -> None:
        for verdict in self._run_hook(state, host, PREROUTING):
            if self._passed(verdict, host, PREROUTING):
                self._route_in(verdict.state, host)

    def _route_in(self, state: State, host: Host) -> None:
        """The routing decision for what came in (ip_route_input_slow, ip6_route_input)."""
        p = state.packet
        iif = p.iif or ""
        if not host.has_network:
            if host.is_local(p.family, p.dst):
                self._input(state, host)
            else:
                state.hop = NextHop(dev="?")
                self._forward(state, host, "?")
            return
        if p.family == 4:
            problem = self._martian(host, p, iif)
            if problem is not None:
                self._lost(state, host, problem, "route")
                return
        elif p.dst == 1 and iif != "lo":
            # rt6_need_strict: the route to ::1 is lo's alone, also for an answer translated back to it
            self._lost(state, host, f"{host.name} has no route for ::1 from {iif}", "route")
            return
        found = host.route(p, iif=iif)
        if found.type == "unknown":
            self._end_unknown(state, host.name, found.unknown or "routing is unknown")
            return
        forwards = self._forwards(host, p.family, iif)
        if found.type in ("local", "anycast") or (found.type == "broadcast" and p.family == 4):
            why = host.validate_source(p, iif, None)
            if why is not None:
                self._lost(state, host, f"{host.name} drops the packet: {why}", "sysctl")
                return
            if found.type == "broadcast":
                self._lost(state, host, f"{to_text(p.family, p.dst)} is a broadcast address", "route")
                return
            state.note(
                StepKind.ROUTE,
                Note(f"for this node ({to_text(p.family, p.dst)} is one of its addresses)"),
                hook="ROUTING",
            )
            self._input(state, host)
            return
        if (
            p.physin is not None
            and (forwards or p.family == 6)
            and found.hops
            and found.hops[0].dev == iif
            and self._on_bridge(host, p.family, p.dst, iif)
        ):
            # br_nf_pre_routing_finish: translated to another port of the same bridge, it stays on the bridge. In IPv4
            # the route that is asked for does not lead there where the bridge does not forward.
            self._bridge_forward(state, host, iif)
            return
        if not forwards:
            key = "net.ipv4.ip_forward" if p.family == 4 else "net.ipv6.conf.all.forwarding"
            if p.family == 4 and host.sysctl("net.ipv4.ip_forward"):
                key = f"net.ipv4.conf.{iif}.forwarding"
            reason = f"{host.name} does not forward packets ({key} = 0)"
            step = state.note(StepKind.SYSCTL, Forbid(Setting.FORWARDING, reason), hook="ROUTING")
            self._lost(state, host, reason, "sysctl", step)
            return
        if found.type in ("unreachable", "hostunreach", "prohibit"):
            kind = {
                (4, "unreachable"): "icmp-net-unreachable",
                (4, "hostunreach"): "icmp-host-unreachable",
                (4, "prohibit"): "icmp-admin-prohibited",
                (6, "unreachable"): "icmp6-no-route",
                (6, "hostunreach"): "icmp6-no-route",
                (6, "prohibit"): "icmp6-adm-prohibited",
            }[p.family, found.type]
            what = "no route" if found.route is None else f"a route of type {found.route.type}"
            step = state.note(
                StepKind.ROUTE, Note(f"{what} to {to_text(p.family, p.dst)}: {kind}"), hook="ROUTING"
            )
            self._send_error(
                state,
                host,
                kind,
                Disposition.LOST,
                f"{host.name} has {what} to {to_text(p.family, p.dst)}",
                step,
                "route",
            )
            return
        if found.type != "unicast" or not found.hops:
            self._lost(
                state,
                host,
                f"{host.name} has only a {found.type} route to {to_text(p.family, p.dst)}",
                "route",
            )
            return
        why = host.validate_source(p, iif, found.hops[0].dev)
        if why is not None:
            self._lost(state, host, f"{host.name} drops the packet: {why}", "sysctl")
            return
        for each, hop in self._choose_hop(state, found):
            each.note(StepKind.ROUTE, Note(_hop_words(hop)), hook="ROUTING", text=_route_text(found))
            each.hop = hop
            self._forward(each, host, hop.dev or "?")

    @staticmethod
    def _martian(host: Host, p: Packet, iif: str) -> str | None:
        if p.src >> 28 == 0xE or p.src in (0xFFFFFFFF, 0):
            return f"{to_text(4, p.src)} is no source address (martian source)"
        if (p.src >> 24 == 127 or p.dst >> 24 == 127) and not host.conf("ipv4", iif, "route_localnet"):
            which = "source" if p.src >> 24 == 127 else "destination"
            return (
                f"{host.name} drops packets with a loopback {which} from {iif} (martian; "
                "net.ipv4.conf.all.route_localnet = 0)"
            )
        return None

    @staticmethod
    def _forwards(host: Host, family: int, iif: str) -> bool:
        if family == 6:
            value = host.sysctl("net.ipv6.conf.all.forwarding")
            return value is None or bool(value)
        return bool(host.conf("ipv4", iif, "forwarding"))

    @staticmethod
    def _choose_hop(state: State, found: Lookup) -> list[tuple[State, NextHop]]:
        if len(found.hops) == 1:
            return [(state, found.hops[0])]
        total = sum(h.weight for h in found.hops)
        out = []
        for number, hop in enumerate(found.hops):
            each = state.fork() if number + 1 < len(found.hops) else state
            out.append((each, hop))
        for number, (each, hop) in enumerate(out):
            each.decide(
                Decision(RANDOM, ("multipath", id(found.route)), number, hop.weight / total, "", "", None)
            )
        return out

    def _forward(self, state: State, host: Host, oif: str) -> None:
        p = state.packet
        p.oif = oif
        if p.ttl <= 1:
            reason = f"the packet's TTL ends at {host.name}"
            step = state.note(StepKind.ROUTE, Note(reason), hook="ROUTING")
            p.oif = None
            kind = "icmp-time-exceeded" if p.family == 4 else "icmp6-time-exceeded"
            self._send_error(state, host, kind, Disposition.LOST, reason, step, "route")
            return
        p.ttl -= 1
        for verdict in self._run_hook(state, host, FORWARD):
            if self._passed(verdict, host, FORWARD):
                self._postrouting(verdict.state, host)

    def _input(self, state: State, host: Host) -> None:
        p = state.packet
        p.oif = None
        for verdict in self._run_hook(state, host, INPUT):
            if verdict.code == IPVS:
                self._ipvs_out(verdict.state, host)
            elif self._passed(verdict, host, INPUT):
                confirm(verdict.state)
                self._deliver_here(verdict.state, host)

    # -- IPVS

    def _ipvs_out(self, state: State, host: Host) -> None:
        """ip_vs_nat_xmit: what IPVS took leaves by LOCAL_OUT, from its start, and POSTROUTING.

        __ip_vs_get_out_rt asks for a route to the address alone: neither source nor mark nor ports matter. Whoever
        sent the packet is told by ICMP, if at all: its own hook has ended (NF_STOLEN).
        """
        p = state.packet
        p.local = False
        if not host.has_network:
            state.hop = NextHop(dev="?")
            self._out_again(state, host)
            return
        if _is_loopback(p.family, p.src):
            self._lost(state, host, f"IPVS on {host.name} sends nothing from a loopback address", "route")
            return
        found = host.fib[p.family].lookup(p.dst, iif="lo")
        if found.type == "unknown":
            self._end_unknown(state, host.name, found.unknown or "routing is unknown")
            return
        if found.type != "unicast" or not found.hops:
            reason = f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})"
            step = state.note(StepKind.ROUTE, Note(reason), hook="ROUTING")
            kind = "icmp-host-unreachable" if p.family == 4 else "icmp6-addr-unreachable"
            self._send_error(state, host, kind, Disposition.LOST, reason, step, "route")
            return
        if p.ttl <= 1:
            self._lost(state, host, f"the packet's TTL ends at {host.name}", "route")
            return
        p.ttl -= 1
        for each, hop in self._choose_hop(state, found):
            each.hop = hop
            each.note(StepKind.ROUTE, Note(_hop_words(hop)), hook="ROUTING", text=_route_text(found))
            self._out_again(each, host)

    def _out_again(self, state: State, host: Host) -> None:
        state.packet.iif, state.packet.oif = None, state.hop.dev if state.hop is not None else None
        for verdict in self._run_hook(state, host, OUTPUT):
            if self._passed(verdict, host, OUTPUT):
                self._postrouting(verdict.state, host)

    # -- out of a node

    def _local_out(self, state: State, host: Host, found: Lookup) -> None:
        """A packet of the node itself: OUTPUT, then POSTROUTING. `found` is its first route."""
        for each, hop in self._choose_hop(state, found) if found.hops else [(state, NextHop(dev="?"))]:
            p = each.packet
            p.iif = None
            p.oif = "lo" if found.type == "local" else hop.dev
            each.hop = NextHop(dev="lo") if found.type == "local" else hop
            why = self._leaves_loopback(host, p, p.oif)
            if why is not None:
                # connect() or sendto() fails with EINVAL
                self._lost(each, host, why, "sysctl", symptom=Symptom.UNREACHABLE)
                continue
            for verdict in self._run_hook(each, host, OUTPUT):
                if verdict.code == IPVS:
                    self._ipvs_out(verdict.state, host)
                elif self._passed(verdict, host, OUTPUT):
                    self._postrouting(verdict.state, host)

    @staticmethod
    def _leaves_loopback(host: Host, p: Packet, oif: str | None) -> str | None:
        # __mkroute_output: a loopback source may leave by another interface with route_localnet only
        if p.family == 4 and p.src >> 24 == 127 and oif not in ("lo", "?") and host.has_network:
            if not host.conf("ipv4", oif or "", "route_localnet"):
                return (
                    f"{host.name} does not let a packet from {to_text(4, p.src)} out "
                    "(net.ipv4.conf.all.route_localnet = 0)"
                )
        return None

    def _reroute(self, state: State, host: Host) -> bool:
        """ip_route_me_harder: route again after OUTPUT changed the packet. False where it is dropped."""
        p = state.packet
        # The rest of OUTPUT still sees the first route's interface (nf_hook_state.out); POSTROUTING the new one.
        if not host.has_network:
            state.hop = NextHop(dev="lo" if host.is_local(p.family, p.dst) else "?")
            return True
        found = host.route(p, iif="lo")
        if found.type == "unknown":
            self._end_unknown(state, host.name, found.unknown or "routing is unknown")
            return False
        if found.type not in ("unicast", "local") or (found.type == "unicast" and not found.hops):
            self._lost(
                state, host, f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})", "route",
                symptom=send_symptom(p, OUTPUT),
            )  # fmt: skip
            return False
        local = found.type == "local" or not found.hops
        state.hop = hop = NextHop(dev="lo") if local else found.hops[0]
        state.note(
            StepKind.ROUTE,
            Note("for this node" if local else _hop_words(hop)),
            hook="ROUTING",
            text=_route_text(found),
        )
        why = self._leaves_loopback(host, p, hop.dev)
        if why is not None:
            self._lost(state, host, why, "sysctl", symptom=send_symptom(p, OUTPUT))
            return False
        return True

    def _postrouting(self, state: State, host: Host) -> None:
        if state.hop is not None:
            state.packet.oif = state.hop.dev
        for verdict in self._run_hook(state, host, POSTROUTING):
            if self._passed(verdict, host, POSTROUTING):
                confirm(verdict.state)
                self._emit(verdict.state, host)

    def _emit(self, state: State, host: Host) -> None:
        """The packet leaves by `oif`: into the node itself again, to a pod, to another node, out of the cluster."""
        p = state.packet
        if p.oif == "lo":
            self._loop_back(state, host)
            return
        if host.pod:
            self._out_of_namespace(state, host)
            return
        bridge = p.bridged
        p.ct, p.ctstate = None, pk.INVALID
        if host.cilium is not None:
            self._undo_balance(state, host)
        if host.cilium is not None and p.oif == HOST_DEVICE:
            self._into_cilium(state, host)
            return
        hop = state.hop
        to_device = host.has_network and not bridge and hop is not None and hop.gateway is None
        if host.cilium is not None and to_device and host.cilium.pod(p.family, p.dst) is not None:
            self._to_pod(state, host)  # its program sits at the pod's device, whichever route leads there
            return
        self._close_hop(state, host)
        dst_key = (p.family, p.dst)
        if not host.has_network:
            self._arrive_unseen(state, host)
            return
        assert hop is not None
        next_ip = int(hop.gateway) if hop.gateway is not None and hop.gateway.version == p.family else p.dst
        attached = self.topology.attached.get(dst_key)
        client = self._client
        if attached is None and p.reply and client.pod and p.dst == client.ip:
            attached = Attached(name="the client", node=client.node)
        if bridge and attached is not None:
            self._arrive_attached(state, host, attached)
            return
        if (
            hop.gateway is None
            and attached is not None
            and attached.node == host.name
            and not attached.host_network
        ):
            self._arrive_attached(state, host, attached)
            return
        if p.reply and not client.pod and client.node is None and p.dst == client.ip:
            owner = self._owners.get((p.family, next_ip)) if hop.gateway is not None else None
            if owner is None:
                self._answer_arrives(state, host)
                return
        owner = self._owners.get((p.family, next_ip))
        if owner is None:
            owner = self._network_owner(host, p.family, next_ip)
        if owner is None or owner == host.name:
            owner = self._overlay_owner(host, hop, p, attached)
        if owner is not None and owner != host.name:
            self._to_node(state, host, owner, hop.dev or "?", next_ip)
            return
        if attached is not None and attached.node is not None and attached.node != host.name:
            supposed = EvidenceKind.ROUTES in host.state.supposed
            if hop.gateway is None or not self._places.nodes_route_pods or supposed:
                state.assume(
                    Assumption("the network between the nodes delivers packets for pods to the pods' nodes")
                )
                self._to_node(state, host, attached.node, hop.dev or "?", next_ip)
                return
            if not self.topology.nodes_known and self._places.routes_pods(host, *dst_key):
                router = to_text(p.family, next_ip)
                state.assume(
                    Assumption(
                        f"{router} is {attached.node}, or leads there (not all nodes were read)",
                        EvidenceKind.NODES,
                        attached.node,
                    )
                )
                self._to_node(state, host, attached.node, hop.dev or "?", next_ip)
                return
        if attached is not None and attached.node is None:
            self._arrive_attached(state, host, attached)
            return
        owner = self._owners.get(dst_key)
        if owner is not None and owner != host.name and hop.gateway is not None:
            state.assume(Assumption("the router between the nodes delivers packets for nodes' addresses"))
            self._to_node(state, host, owner, hop.dev or "?", p.dst)
            return
        self._leave_cluster(state, host, hop, next_ip)

    def _network_owner(self, host: Host, family: int, ip: int) -> str | None:
        """The other node whose pods' network the address is of: a tunnel's far end, or the node's bridge."""
        for net, name in self.topology.pod_networks:
            if net.version == family and name != host.name:
                if int(net.network_address) == ip & int(net.netmask):
                    return name
        return None

    def _overlay_owner(self, host: Host, hop: NextHop, p: Packet, attached: Attached | None) -> str | None:
        """The node behind a tunnel whose far end is not told by the next hop (point-to-point routes)."""
        if attached is None or attached.node in (None, host.name) or hop.dev is None:
            return None
        interface = host.interfaces.get(hop.dev)
        if interface is not None and interface.link_type not in ("ether", "loopback"):
            return attached.node
        return None

    def _leave_cluster(self, state: State, host: Host, hop: NextHop, next_ip: int) -> None:
        p = state.packet
        target = to_text(p.family, p.dst)
        if (
            state.direction == "request"
            and not self.topology.pods_known
            and hop.gateway is None
            and not self._is_uplink(host, p.family, hop.dev or "")
        ):
            state.assume(
                Assumption(
                    f"a pod has the address {target} (pods and endpoints were not read)", EvidenceKind.PODS
                )
            )
            self._arrive_attached(state, host, Attached(name=target, node=host.name))
            return
        if state.direction == "request" and not (self.topology.nodes_known and self.topology.endpoints_known):
            whose = "node" if self.topology.endpoints_known else "endpoint"
            article = "a" if whose == "node" else "an"
            words = f"{target} may be an address of {article} {whose} that is not known: not all {whose}s were read"
            self._end_unknown(state, host.name, words)
            return
        if hop.gateway is not None:
            reason = (
                f"the packet leaves the cluster by router {to_text(p.family, next_ip)} for {target}, "
                "and nobody that ktp knows answers there"
            )
            if state.direction != "request":
                router = to_text(p.family, next_ip)
                reason = f"the answer leaves by router {router} for {target}, which is not the client"
            self._leaf(state, Disposition.LOST, Symptom.TIMES_OUT, reason, host, "route")
            return
        if state.direction == "request" and self.topology.unread:
            self._end_unknown(
                state,
                host.name,
                f"{target} may be an address of {some(sorted(self.topology.unread))}, of which they were not read",
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
            self._leaf(state, Disposition.LOST, Symptom.TIMES_OUT, reason, host, "route")
            return
        conn = state.conns[-1] if state.conns and state.conns[-1].node == host.name else None
        p.ct = conn.copy() if conn is not None else None
        self._send_error(state, host, kind, Disposition.LOST, reason, step, "route")

    def _to_node(self, state: State, host: Host, name: str, dev: str, next_ip: int) -> None:
        target = self._places.walkable(name, self._family)
        p = state.packet
        tunnel = (host.state.tunnels or {}).get(dev)
        end: IPAddress | None = None
        if tunnel is not None and not tunnel.is_external:
            found = far_end(host.state, tunnel, p.family, next_ip)
            if isinstance(found, TunnelFault):
                self._untunnelled(state, host, tunnel, found, to_text(p.family, next_ip))
                return
            end = found
        if target is None:
            self._through_unknown_node(state, host, name)
            return
        if not target.has_network:
            self._enter(state, target, "?", None)
            return
        if tunnel is not None and not tunnel.is_external:
            self._tunnelled(state, host, target, tunnel, end)
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
            back, _ = self._interface_toward(target, p.family, p.src)
            holder = back or "?"
        self._enter(state, target, holder, None)

    def _tunnelled(
        self, state: State, host: Host, target: Host, tunnel: TunnelDevice, end: IPAddress | None
    ) -> None:
        """What a route sends into a tunnel becomes a packet of this node to the far end's, which rules may stop."""
        own = [a for a, n in self._owners.items() if n == target.name]
        key: tuple[int, int] | None
        if end is not None:
            key = (end.version, int(end))
            name = self._owners.get(key)
            if name is None and self._is_of_no_node(key):
                self._untunnelled(state, host, tunnel, TunnelFault.NO_SUCH_PEER, str(end))
                return
            if name is not None and name != target.name:
                other = self._places.walkable(name, self._family)
                if other is None:
                    self._through_unknown_node(state, host, name)
                    return
                target = other
        else:
            underlay = tunnel.local.version if tunnel.local is not None else 4
            key = next((a for a in own if a[0] == underlay and a in self.topology.node_addresses), None)
            words = f"the tunnel {tunnel.name} leads to the node's address that the API tells"
            state.assume(Assumption(words, EvidenceKind.NEIGHBOURS, host.name))
        device, fault = device_of(target.state, tunnel)
        if fault is not None:
            self._untunnelled(state, host, tunnel, fault, target.name, far=target.name)
            return
        if key is not None and tunnel.port and not self._outer_passes(state, host, tunnel, to_text(*key)):
            return
        self._enter(state, target, device or tunnel.name, None)

    def _is_of_no_node(self, address: tuple[int, int]) -> bool:
        """Whether every node's addresses were read, and none has this one (several may)."""
        if not self.topology.nodes_known or self.topology.unread:
            return False
        states = (self.topology.nodes.get(name) for name in {*self._owners.values(), *self.topology.nodes})
        return all(
            s is not None
            and s.interfaces is not None
            and address not in {(a.ip.version, int(a.ip)) for i in s.interfaces for a in i.addresses}
            for s in states
        )

    def _untunnelled(
        self, state: State, host: Host, tunnel: TunnelDevice, fault: TunnelFault, about: str, far: str = ""
    ) -> None:
        words = f"the tunnel {tunnel.name} of {host.name} does not carry it: {fault.value} ({about})"
        step = state.note(StepKind.ROUTE, Untunnelled(fault, far, words), hook="TUNNEL")
        self._lost(state, host, words, "route", step)

    def _outer_passes(self, state: State, host: Host, tunnel: TunnelDevice, to: str) -> bool:
        """Whether the rules of both nodes let the tunnel's own packets through; else the packet's end is noted."""
        key = (host.name, tunnel.name, to)
        leaves = self._outer.get(key)
        if leaves is None:
            flow = Flow(
                dst=to, port=tunnel.port or 0, protocol="udp", from_node=host.name,
                src=str(tunnel.local) if tunnel.local is not None else None,
            )  # fmt: skip
            leaves = self._outer[key] = _Walk(self._places, self._outer, one_way=True).run(flow)
        for assumption in dict.fromkeys(a for leaf in leaves for a in leaf.state.assumptions):
            state.assume(assumption)
        stopped = [leaf for leaf in leaves if leaf.disposition is not Disposition.DELIVERED]
        if not stopped:
            return True
        unknown = [leaf for leaf in stopped if leaf.disposition is Disposition.UNDETERMINED]
        leaf = (unknown or stopped)[0]
        if unknown or len(stopped) < len(leaves):
            why = f"whether the tunnel's own packets (UDP {tunnel.port} to {to}) get through: {leaf.reason}"
            self._end_unknown(state, host.name, why)
            return False
        reason = f"the tunnel's own packets (UDP {tunnel.port} to {to}) do not get through: {leaf.reason}"
        disposition = leaf.disposition if state.direction == "request" else Disposition.LOST
        if state.steps is not None:
            self._close_hop(state, host)
        self._leaves.append(
            Leaf(state, disposition, Symptom.TIMES_OUT, reason, leaf.step, leaf.node, leaf.kind)
        )
        return False

    def _through_unknown_node(self, state: State, host: Host, name: str) -> None:
        p = state.packet
        attached = self.topology.attached.get((p.family, p.dst))
        process = self.topology.processes.get((name, p.proto, _number(p.dport)))
        if process is not None and self._owners.get((p.family, p.dst)) == name:
            attached = Attached(name=process, node=name, host_network=True)
        if state.direction == "request" and attached is not None and attached.node == name:
            state.assume(_lets_pass(name, "packet"))
            self._arrive_attached(state, None, attached)
            return
        if (
            state.direction != "request"
            and self._client.pod
            and p.dst == self._client.ip
            and self._client.node == name
        ):
            state.assume(_lets_pass(name, "answer"))
            self._answer_arrives(state, host)
            return
        self._end_unknown(state, name, f"the packet goes on to node {name}: {self._places.nothing_of(name)}")

    def _arrive_unseen(self, state: State, host: Host) -> None:
        """Where only rules are known: what leaves the node is taken to arrive."""
        p = state.packet
        if state.direction != "request":
            self._answer_arrives(state, host)
            return
        attached = self.topology.attached.get((p.family, p.dst))
        if attached is None and (p.dst, p.dport) == (self._client.dst, self._client.dport):
            # No rule chose a destination: who has the address that was dialled, nothing here tells.
            unread = f"neither addresses nor routes of {host.name} were read"
            words = f"who has {to_text(p.family, p.dst)} is not known: {unread}"
            self._end_unknown(state, host.name, words)
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
        reply = self._reply_of(p)
        if node in (None, host.name) or host.is_local(reply.family, reply.dst):
            # kube-proxy sees to it: either the endpoint answers the node, or it runs there.
            state.assume(
                Assumption(
                    "the answer comes back through this node (its routes were not read)",
                    EvidenceKind.ROUTES,
                    host.name,
                )
            )
            self._turn(state, reply, "reply")
            self._enter(state, host, "?", None)
            return
        self._delivered(state, host, "the answer's way was not followed: routes were not read")

    def _loop_back(self, state: State, host: Host) -> None:
        """Out by lo and in again: the packet keeps its connection and its route (loopback_xmit)."""
        p = state.packet
        p.iif, p.oif = "lo", None
        for verdict in self._run_hook(state, host, PREROUTING):
            if self._passed(verdict, host, PREROUTING):
                self._input(verdict.state, host)

    # -- Cilium's programs

    def _at_socket(self, state: State, host: Host, *, of_node: bool) -> list[State]:
        """What goes on after connect(): as dialled, or to each backend that may be drawn."""
        programs = host.cilium
        balances = programs.balances_at_socket(of_node=of_node) if programs is not None else False
        if programs is None or balances is False:
            return [state]
        if balances is None and programs.at_socket(state.packet, of_node=of_node) is not None:
            self._end_unknown(
                state, host.name, "whether Cilium translates at connect() was not read (cilium-dbg status)"
            )
            return []
        return self._balance(state, host, programs.at_socket(state.packet, of_node=of_node), "CONNECT")

    def _balance(self, state: State, host: Host, found: Balance | None, hook: str) -> list[State]:
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
            self._end_unknown(state, host.name, found.why, text, step)
            return []
        kind = "icmp-port-unreachable" if state.packet.family == 4 else "icmp6-port-unreachable"
        ends: dict[Fate, tuple[Effect, Disposition, Symptom]] = {
            Fate.REFUSE: (Refuse(kind), Disposition.REJECTED, Symptom.REFUSED),
            Fate.UNREACHABLE: (Refuse("EHOSTUNREACH"), Disposition.REJECTED, Symptom.UNREACHABLE),
            Fate.DROP: (Drop(), Disposition.DROPPED, Symptom.TIMES_OUT),
        }
        effect, disposition, symptom = ends[fate]
        step = state.note(StepKind.RULE, effect, hook=hook, table="cilium", text=text, backend="cilium")
        self._close_hop(state, host)
        self._leaf(state, disposition, symptom, reason, host, "rule", step)
        return []

    def _balance_at_device(self, state: State, host: Host, found: Balance) -> None:
        """nodeport_lb4: a backend here goes on by the stack, one elsewhere leaves without having seen it."""
        programs = host.cilium
        assert programs is not None
        p = state.packet
        virtual, client = (p.dst, p.dport), p.src
        for each in self._balance(state, host, found, "DEVICE"):
            q = each.packet
            real = (q.dst, q.dport)
            endpoint = programs.endpoint(q.family, q.dst)
            if endpoint is not None:
                each.balanced = Balanced(host.name, virtual, real, client, client)
                if endpoint.is_host or programs.config.legacy_routing is not False:
                    self._into_stack(each, host)
                else:
                    self._to_pod(each, host)
                continue
            direct = programs.is_direct(found.frontend, q.proto)
            tunnelled = programs.is_tunnelled(q.family, q.dst)
            if direct is None or tunnelled is None:
                why = "how Cilium sends a packet on to a backend of another node was not read (cilium-dbg status)"
                self._end_unknown(each, host.name, why)
                continue
            if not direct:
                source = self._source_of_cilium(host, q.family, tunnelled=tunnelled)
                if source is None:
                    self._end_unknown(each, host.name, "the address that Cilium sends from was not read")
                    continue
                effect = translation(Nat.SNAT, q.family, (q.src, 0), (source, 0))
                q.src = source
                each.note(StepKind.NAT, effect, hook="DEVICE", table="cilium", backend="cilium")
            each.balanced = Balanced(host.name, virtual, real, client, q.src, direct)
            if tunnelled:
                self._through_tunnel(each, host)
            else:
                self._by_routes(each, host)

    def _source_of_cilium(self, host: Host, family: int, *, tunnelled: bool) -> int | None:
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
        return next(
            (ip for ip in own if self.topology.node_addresses.get((family, ip)) == host.name), None
        ) or (own[0] if own else None)

    def _undo_balance(self, state: State, host: Host) -> bool:
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

    def _out_of_pod(self, state: State, host: Host, ip: int) -> None:
        """A packet of a pod comes by its device (bpf_lxc, from-container)."""
        programs, p = host.cilium, state.packet
        assert programs is not None
        if state.direction != "request":
            if self._undo_balance(state, host):
                self._onward(state, host)
            else:
                self._from_container(state, host, ip)
            return
        if state.steps is None:
            state.arrived = p.copy()
        if programs.balances_at_socket(of_node=False) is not False:
            self._from_container(state, host, ip)
            return
        virtual, found = (p.dst, p.dport), programs.at_pod_device(p)
        for each in self._balance(state, host, found, "POD"):
            q = each.packet
            if found is not None:
                if q.dst == q.src and (own := programs.loopback_source(q.family)) is not None:
                    q.src = own
                each.balanced = Balanced(host.name, virtual, (q.dst, q.dport), ip, q.src)
            self._from_container(each, host, ip)

    def _from_container(self, state: State, host: Host, ip: int) -> None:
        programs, p = host.cilium, state.packet
        assert programs is not None
        own = programs.endpoint(p.family, ip)
        if state.direction == "request" and own is not None and p.dst != ip:
            if not self._is_let(state, host, own, {programs.identity(p.family, p.dst)}, egress=True):
                return
        if state.direction == "request" and p.src == p.dst:
            self._close_hop(state, host)  # the pod's own stack hands it back to the pod
            state.delivery = Delivery(p.dst, p.dport, self._name_of(host, p), host.name, p.src, p.family)
            self._delivered(state, host, "")
            return
        device = host.device_at(own.ifindex) if own is not None else None
        self._onward(state, host, device or HOST_DEVICE)

    def _onward(self, state: State, host: Host, device: str | None = None) -> None:
        """Where a program sends a packet: to a pod here, into the tunnel, to the stack, out by the routes.

        `device` is the pod's, by which it comes; None for what a program of a node's device sends on.
        """
        programs, p = host.cilium, state.packet
        assert programs is not None
        if programs.pod(p.family, p.dst) is not None:
            self._to_pod(state, host)
            return
        tunnelled = programs.is_tunnelled(p.family, p.dst)
        if tunnelled is None:
            self._end_unknown(
                state, host.name, "whether Cilium tunnels was not read (cilium-dbg status, ipcache)"
            )
        elif tunnelled:
            self._through_tunnel(state, host)
        elif (device is None and state.direction != "request") or (
            programs.config.legacy_routing is False and not host.is_local(p.family, p.dst)
        ):
            self._by_routes(state, host)
        else:
            begun = state.steps is not None
            mark = programs.mark_of(p.family, p.src) if device is not None else 0
            self._enter(state, host, device or HOST_DEVICE, None, begun=begun, mark=mark)

    def _by_routes(self, state: State, host: Host) -> None:
        """Out of the node as its routes say, without meeting a rule (bpf_fib_lookup)."""
        found = host.route(state.packet, iif="lo")
        if found.type != "unicast" or not found.hops:
            target = to_text(state.packet.family, state.packet.dst)
            self._lost(state, host, f"{host.name} has no route to {target} ({found.type})", "route")
            return
        for each, hop in self._choose_hop(state, found):
            each.note(StepKind.ROUTE, Note(_hop_words(hop)), hook="ROUTING", text=_route_text(found))
            each.hop, each.packet.oif = hop, hop.dev
            self._emit(each, host)

    def _into_cilium(self, state: State, host: Host) -> None:
        """What leaves by cilium_host is delivered, here or through the tunnel (bpf_host, from-host)."""
        programs, p = host.cilium, state.packet
        assert programs is not None
        if programs.pod(p.family, p.dst) is not None:
            self._to_pod(state, host)
        elif programs.is_tunnelled(p.family, p.dst):
            self._through_tunnel(state, host)
        else:
            target = to_text(p.family, p.dst)
            self._lost(
                state, host, f"no pod of {host.name} has the address {target} (Cilium's endpoints)", "route"
            )

    def _through_tunnel(self, state: State, host: Host) -> None:
        p = state.packet
        self._close_hop(state, host)
        key = (p.family, p.dst)
        attached = self.topology.attached.get(key)
        name = attached.node if attached is not None else self._owners.get(key)
        if name is None:
            name = self._network_owner(host, p.family, p.dst)
        target = self._places.walkable(name, self._family) if name is not None else None
        if name is None:
            self._end_unknown(
                state, host.name, f"whose {to_text(p.family, p.dst)} is, behind the tunnel, was not read"
            )
        elif target is None:
            self._through_unknown_node(state, host, name)
        elif target.cilium is None:
            self._end_unknown(
                state, name, f"what Cilium on {name} does with a packet from the tunnel was not read"
            )
        else:
            self._out_of_tunnel(state, target)

    def _out_of_tunnel(self, state: State, host: Host) -> None:
        """bpf_overlay, from-overlay: to a pod here, or to the node itself."""
        p = state.packet
        assert host.cilium is not None
        p.iif, p.oif, p.mark, p.local = HOST_DEVICE, None, 0, False
        p.ct, p.ctstate = None, pk.INVALID
        state.arrived = p.copy()
        state.steps = None
        state.seen_nodes += 1
        if state.seen_nodes > _MAX_HOPS:
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT, "the packet goes round in a circle", host, "route"
            )
        elif self._undo_balance(state, host):
            self._onward(state, host)
        elif host.cilium.pod(p.family, p.dst) is not None:
            self._to_pod(state, host)
        else:
            self._enter(state, host, HOST_DEVICE, None, begun=True)

    def _to_pod(self, state: State, host: Host) -> None:
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
            if endpoint is not None and not self._is_let(state, host, endpoint, identities, egress=False):
                return
        elif self._undo_balance(state, host):
            key = (p.family, p.dst)
        self._close_hop(state, host)
        attached = self.topology.attached.get(key)
        if attached is None:
            client = self._client.pod and p.reply and p.dst == self._client.ip
            name = "the client" if client else to_text(*key)
            attached = Attached(name=name, node=host.name)
        self._arrive_attached(state, host, attached)

    def _name_of(self, host: Host, p: Packet) -> str:
        attached = self.topology.attached.get((p.family, p.dst))
        return attached.name if attached is not None else to_text(p.family, p.dst)

    def _is_let(
        self, state: State, host: Host, endpoint: CiliumEndpoint, identities: set[int | None], *, egress: bool
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
            self._end_unknown(state, host.name, f"Cilium's policy map of {whose} ({which}) was not read")
            return False
        reason = f"{host.name}: Cilium's policy of {whose} does not allow this {which}"
        step = state.note(
            StepKind.RULE, Drop(), hook="POD", table="cilium", chain="policy", backend="cilium",
            text=f"policy map of endpoint {endpoint.identifier}, {which}",
        )  # fmt: skip
        self._close_hop(state, host)
        self._leaf(state, Disposition.DROPPED, Symptom.TIMES_OUT, reason, host, "rule", step)
        return False

    # -- on a bridge

    def _bridged(self, state: State, host: Host, bridge: str, target: Attached) -> None:
        """Pod to pod over the bridge, without routing."""
        p = state.packet
        if not self._bridge_filters(state, host, p.family):
            state.arrived = p.copy()
            self._close_hop(state, host)
            self._arrive_attached(state, host, target)
            return
        state.seen_nodes += 1
        if state.seen_nodes > _MAX_HOPS:
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT, "the packet goes round in a circle", host, "route"
            )
            return
        p.iif, p.oif, p.physin, p.physout, p.bridged = bridge, None, "?", None, False
        p.local = False
        p.mark = 0
        p.ct, p.ctstate = None, pk.INVALID
        state.arrived = p.copy()
        state.steps = None
        before = p.dst
        for verdict in self._run_hook(state, host, PREROUTING):
            if not self._passed(verdict, host, PREROUTING):
                continue
            each = verdict.state
            if each.packet.dst == before:
                self._bridge_forward(each, host, bridge)
            else:
                self._route_in(each, host)

    def _bridge_forward(self, state: State, host: Host, bridge: str) -> None:
        p = state.packet
        p.iif = p.oif = bridge
        p.physin = p.physout = "?"
        p.bridged = True
        state.hop = NextHop(dev=bridge)
        state.note(StepKind.ROUTE, Note(f"stays on the bridge {bridge}"), hook="BRIDGE")
        for verdict in self._run_hook(state, host, FORWARD):
            if self._passed(verdict, host, FORWARD):
                self._postrouting(verdict.state, host)

    # -- arrivals

    def _arrive_attached(self, state: State, host: Host | None, attached: Attached) -> None:
        p = state.packet
        if state.direction != "request":
            if (self._client.pod and p.dst == self._client.ip) or attached.node is None:
                self._answer_arrives(state, host)
            else:
                self._leaf(
                    state, Disposition.LOST, Symptom.TIMES_OUT,
                    f"the answer goes to {attached.name}, which is not the client", host, "route",
                )  # fmt: skip
            return
        state.delivery = Delivery(p.dst, p.dport, attached.name, attached.node, p.src, p.family)
        if _is_loopback(p.family, p.src):
            # ip_route_input_slow and ip6_rcv_core take no loopback source from a wire
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT,
                f"the packet comes to {attached.name} from {to_text(p.family, p.src)}, which it drops (martian source)",
                host, "route",
            )  # fmt: skip
            return
        if p.src == p.dst:
            # ip_route_input_slow calls it a martian; in IPv6 its answer goes to the pod itself and opens nothing
            self._leaf(
                state, Disposition.LOST, Symptom.TIMES_OUT,
                f"{attached.name} gets its own packet back with itself as the sender, and cannot answer it",
                host, "route",
            )  # fmt: skip
            return
        inside = self._places.inside(attached)
        if inside is not None:
            self._enter(state, inside, inside.interface_of(p.family, p.dst) or "?", None)
            return
        if attached.node is not None:
            state.assume(PROGRAM_LISTENS)
        self._turn(state, self._reply_of(p), "reply")
        self._out_to_node(state, host, attached)

    def _out_of_namespace(self, state: State, host: Host) -> None:
        """What a pod sends leaves its network namespace, and comes to its node by the device that leads to the pod."""
        p = state.packet
        own = [key for key in self._places.own_addresses(host.name) if key[0] == p.family]
        key = (p.family, p.src) if (p.family, p.src) in own else own[0]
        if p.oif != host.interface_of(*key):
            what = "the packet" if state.direction == "request" else "the answer"
            way = f"by {p.oif}, and not by {host.interface_of(*key)} as the request came"
            self._lost(state, host, f"{what} leaves {host.name} {way}", "route")
            return
        gateway = state.hop.gateway if state.hop is not None else None
        p.ct, p.ctstate = None, pk.INVALID
        self._close_hop(state, host)
        self._out_to_node(
            state, self._places.walkable(host.node, self._family), self.topology.attached[key], gateway
        )

    def _out_to_node(
        self, state: State, host: Host | None, attached: Attached, gateway: IPAddress | None = None
    ) -> None:
        """The answer of a pod, or of an endpoint elsewhere, comes to its node; None where that is not known."""
        p = reply = state.packet
        if host is None:
            # Its node is not known: the answer is taken to get out of it unchanged, towards whom it is for.
            key = (reply.family, reply.dst)
            pod = self.topology.attached.get(key)
            owner = pod.node if pod is not None else self._owners.get(key)
            target = self._places.walkable(owner, self._family) if owner is not None else None
            if target is not None:
                self._enter(state, target, self._arrival_interface(target, reply), None)
            else:
                self._answer_arrives(state, None)
            return
        if attached.node is None:
            self._answer_from_outside(state, host, attached)
            return
        if host.cilium is not None:
            self._out_of_pod(state, host, reply.src)
            return
        client = self.topology.attached.get((p.family, reply.dst))
        iif, bridge = self._interface_toward(host, p.family, reply.src)
        if bridge and client is not None and self._on_bridge(host, p.family, reply.dst, iif):
            self._bridged(state, host, iif or "?", client)
            return
        heard = self._hears_gateway(host, iif or "?", attached, gateway) if p.family == 4 else True
        if heard is None:
            why = f"whether {attached.name} knows the hardware address of its gateway was not read"
            self._end_unknown(
                state, host.name, f"{why}, and {host.name}, which does not forward, answers no ARP for it"
            )
        elif not heard:
            why = f"{attached.name} asks for its gateway's hardware address, and gets no answer"
            self._lost(state, host, f"{why}: {host.name} does not forward (proxy ARP)", "sysctl")
        else:
            self._enter(state, host, iif or "?", "?" if bridge else None)

    def _hears_gateway(
        self, host: Host, iif: str, attached: Attached, gateway: IPAddress | None
    ) -> bool | None:
        """Whether a pod behind `iif` has the hardware address of its gateway; None where that was not read.

        Behind a device without an address the gateway is one that nobody has (Calico's 169.254.1.1), for which the node
        answers by proxy ARP, as long as it forwards (arp_process: IN_DEV_FORWARD); else an entry of before must do.
        """
        own = next((i.addresses for i in host.state.interfaces or () if i.name == iif), ())
        if self._forwards(host, 4, iif) or any(a.ip.version == 4 for a in own):
            return True
        inside = self._places.inside(attached)
        known = inside.state.neighbours if inside is not None else None
        if known is not None and gateway is not None:
            return host.is_local(4, int(gateway)) or any(entry.ip == gateway for entry in known)
        return None if host.conf("ipv4", iif, "proxy_arp") else True

    def _answer_from_outside(self, state: State, host: Host, attached: Attached) -> None:
        """An endpoint outside the cluster answers: straight to the node or pod that it sees, else to the client."""
        p = state.packet
        owner = self._owners.get((p.family, p.dst))
        if owner is None:
            pod = self.topology.attached.get((p.family, p.dst))
            if pod is not None and pod.node is not None:
                owner = pod.node
                state.assume(Assumption(f"{attached.name} has a route to the pods by their nodes"))
        if owner is None:
            self._answer_arrives(state, None)
            return
        target = self._places.walkable(owner, self._family)
        if target is None:
            self._through_unknown_node(state, host, owner)
            return
        self._enter(state, target, self._arrival_interface(target, p), None)

    def _deliver_here(self, state: State, host: Host) -> None:
        """The packet is for the node itself: a process takes it or the stack refuses."""
        p = state.packet
        if p.reply:
            self._close_hop(state, host)
            if self._client.node == host.name and not self._client.pod:
                self._answer_arrives(state, host)
            else:
                self._leaf(
                    state, Disposition.LOST, Symptom.TIMES_OUT,
                    f"the answer ends at {host.name}, which knows no connection it belongs to", host, "conntrack",
                )  # fmt: skip
            return
        if self._one_way:
            self._leaf(state, Disposition.DELIVERED, Symptom.CONNECTS, f"it comes to {host.name}", host, "")
            return
        name = self.topology.processes.get((host.name, p.proto, _number(p.dport)))
        socket = host.listener(p.family, p.proto, p.dst, p.dport, p.iif)
        where = endpoint_text(p.family, p.dst, p.dport)
        proto = pk.PROTOCOL_NAMES.get(p.proto, str(p.proto))
        if socket is None and host.pod:
            state.assume(PROGRAM_LISTENS)
        elif socket is None and name is None:
            # Most ports have no listener, and kube-proxy since 1.24 holds none. The answer says what it stands on.
            state.assume(
                Assumption(
                    f"no process of the node listens on {where}/{proto} (its sockets were not read)",
                    EvidenceKind.SOCKETS,
                    host.name,
                )
            )
            socket = False
        if socket is False:
            what = "nothing in" if host.pod else "no process of"
            step = state.note(
                StepKind.SOCKET, Note(f"{what} {host.name} listens on {where}/{proto}"), hook="LOCAL"
            )
            kind = (
                "tcp-reset"
                if p.proto == TCP
                else "icmp-port-unreachable"
                if p.family == 4
                else "icmp6-port-unreachable"
            )
            if p.proto == pk.SCTP:
                kind = "tcp-reset"  # an ABORT, with the same effect
            self._send_error(
                state,
                host,
                kind,
                Disposition.NO_LISTENER,
                f"nothing {'in' if host.pod else 'on'} {host.name} listens on {where}/{proto}",
                step,
                "socket",
            )
            return
        if p.proto == TCP and isinstance(socket, ListeningSocket) and host.is_queue_full(socket):
            # tcp_conn_request drops the SYN before anything else is made of it; so does a client's own kernel.
            why = f"the accept queue of {where}/{proto} {'in' if host.pod else 'on'} {host.name} is full"
            step = state.note(StepKind.SOCKET, Drop(), hook="LOCAL", text=why)
            self._leaf(state, Disposition.DROPPED, Symptom.TIMES_OUT, why, host, "socket", step)
            return
        if host.pod:
            state.note(
                StepKind.SOCKET, Note(f"a program in {host.name} listens on {where}/{proto}"), hook="LOCAL"
            )
            self._answer(state, host)
            return
        silent = name is None and (host.name, p.proto, _number(p.dport)) in self.topology.silent
        state.note(
            StepKind.SOCKET, Note(f"a process of {host.name} listens on {where}/{proto}"), hook="LOCAL"
        )
        state.delivery = Delivery(
            p.dst, p.dport, name, host.name, p.src, p.family, process=name is None, silent=silent
        )
        if silent and p.proto != TCP:
            self._close_hop(state, host)
            self._leaf(
                state, Disposition.HOST_PROCESS, Symptom.TIMES_OUT,
                f"kube-proxy on {host.name} holds the port {where}/{proto} and never answers", host, "socket",
            )  # fmt: skip
            return
        self._answer(state, host)

    def _answer(self, state: State, host: Host) -> None:
        """A socket here takes the packet, and its stack answers."""
        reply = self._reply_of(state.packet)
        reply.local = True
        self._close_hop(state, host)
        self._turn(state, reply, "reply")
        self._answer_out(state, host)

    @staticmethod
    def _reply_of(p: Packet) -> Packet:
        reply = Packet(p.family, p.proto, p.dst, p.src, p.dport, p.sport)
        reply.reply = True
        reply.tcp_flags = pk.SYN | pk.ACK
        return reply

    @staticmethod
    def _turn(state: State, packet: Packet, direction: str) -> None:
        state.packet = packet
        state.direction = direction
        state.arrived = packet.copy()
        state.steps = None
        state.seen_nodes = 0

    def _answer_out(self, state: State, host: Host) -> None:
        """The node itself sends the answer or the error."""
        p = state.packet
        if not host.has_network:
            found = (
                Lookup("local", table="local")
                if host.is_local(p.family, p.dst)
                else Lookup("unicast", hops=(NextHop(dev="?"),))
            )
        else:
            found = host.route(p, iif="lo")
            if (
                host.pod
                and p.proto == pk.UDP
                and state.direction == "reply"
                and self._chooses(host, p, found)
            ):
                why = (
                    f"the program in {host.name} may answer from another address than was asked (IP_PKTINFO)"
                )
                self._end_unknown(state, host.name, why)
                return
        if found.type not in ("unicast", "local"):
            self._lost(state, host, f"{host.name} has no route back to {to_text(p.family, p.dst)}", "route")
            return
        if p.src == 0:
            p.src = self._source_for(host, p, found) or 0
        state.arrived = p.copy()
        self._local_out(state, host, found)

    @staticmethod
    def _chooses(host: Host, p: Packet, found: Lookup) -> bool:
        """Whether a datagram goes another way while its socket, bound to no address, has not chosen the source yet."""
        socket = host.listener(p.family, p.proto, p.src, p.sport, None)
        if isinstance(socket, ListeningSocket) and socket.ip is not None:
            return False
        unbound = p.copy()
        unbound.src = 0
        return host.route(unbound, iif="lo").hops != found.hops

    def _answer_arrives(self, state: State, host: Host | None) -> None:
        """The answer, or the error, is at the client: does the client take it for its own?"""
        p = state.packet
        client = self._client
        if p.inner is not None:
            src, _, dst, dport, _ = p.inner
            known = src == client.ip and dst == client.dst and dport == client.dport
        else:
            known = p.src == client.dst and p.sport == client.dport and p.dst == client.ip
        if state.direction == "error":
            self._error_arrived(state, host, known)
            return
        if known:
            self._delivered(state, host, "")
            return
        shown = endpoint_text(p.family, p.src, p.sport)
        wanted = endpoint_text(p.family, client.dst, client.dport)
        d = state.delivery
        assert isinstance(d, Delivery)
        self._leaf(
            state, Disposition.LOST, Symptom.TIMES_OUT,
            f"the answer of {d.name or endpoint_text(p.family, d.ip, d.port)} comes back by a way on which no node "
            f"undoes the translation: the client asked {wanted}, is answered by {shown}, and does not know it",
            host, "conntrack",
        )  # fmt: skip

    def _delivered(self, state: State, host: Host | None, note: str) -> None:
        d = state.delivery
        assert isinstance(d, Delivery)
        name = d.name or endpoint_text(d.family, d.ip, d.port)
        if note:
            state.assume(Assumption(note, EvidenceKind.ROUTES, host.name if host is not None else ""))
        if d.process:
            what = "kube-proxy's own socket, which never answers" if d.silent else "a process of the node"
            self._leaf(
                state,
                Disposition.HOST_PROCESS,
                Symptom.CONNECTS,
                f"{what} takes it on {d.node}",
                host,
                "socket",
            )
        else:
            self._leaf(state, Disposition.DELIVERED, Symptom.CONNECTS, f"delivered to {name}", host, "")

    # -- errors on the way

    def _send_error(
        self,
        state: State,
        host: Host,
        kind: str,
        disposition: Disposition,
        reason: str,
        step: StepRecord | None,
        cause: str,
        *,
        routed: bool = True,
    ) -> None:
        """A rule, a route or the stack refuses: the error walks back to the sender."""
        p = state.packet
        if p.reply:
            self._lost(state, host, f"{host.name} refuses the answer ({reason})", cause, step)
            return
        if disposition is Disposition.NO_LISTENER and kind == "tcp-reset" and p.family == 6 and p.src == 1:
            if host.has_network and host.interface_of(6, p.dst) != "lo":
                # tcp_v6_send_response asks for ::1 by the interface of the dialled address, and there is no such route
                self._leaf(
                    state,
                    disposition,
                    Symptom.TIMES_OUT,
                    f"{reason}; the reset for ::1 finds no route",
                    host,
                    cause,
                    step,
                )
                return
        if kind == "tcp-reset" and p.proto not in (TCP, pk.SCTP):
            self._leaf(
                state,
                disposition,
                Symptom.TIMES_OUT,
                f"{reason}; a TCP reset cannot be sent for this protocol",
                host,
                cause,
                step,
            )
            return
        if kind == "tcp-reset":
            error = Packet(p.family, p.proto, p.dst, p.src, p.dport, p.sport)
            error.tcp_flags = pk.RST | pk.ACK
            if disposition is Disposition.NO_LISTENER:
                error.tos = p.tos  # tcp_v4_send_reset answers with the packet's TOS
        else:
            source = p.dst if host.is_local(p.family, p.dst) else 0
            if p.family == 4 and not routed:
                source = 0  # nf_reject_fill_skb_dst gives it the way back for its route, which is none to this node
            error = Packet(p.family, ICMP if p.family == 4 else ICMP6, source, p.src, 0, 0)
            error.icmp = ICMP_CODES[kind]
            error.tcp_flags = 0
            if p.family == 4:
                error.tos = p.tos & 0x1E | 0xC0  # icmp_send: precedence internetwork control
        error.inner = (p.src, p.sport, p.dst, p.dport, p.proto)
        error.reply = True
        error.local = True
        # icmp_send and nf_send_reset give the error the refused packet's connection (nf_ct_attach), already before raw;
        # at a socket the packet has lost it (nf_reset_ct in ip_local_deliver), and conntrack looks the error's up.
        ct = p.ct if disposition is not Disposition.NO_LISTENER else None
        self._close_hop(state, host)
        self._turn(state, error, "error")
        state.delivery = Refusal(disposition, kind, reason, step, cause, host.node, host.pod, p.proto)
        if kind == "tcp-reset" and disposition is Disposition.REJECTED and p.physin is not None:
            # nf_send_reset puts it straight on the bridge port: no hook sees it, nothing is translated back
            self._answer_arrives(state, host)
            return
        if ct is not None:
            error.ct, error.ctstate = ct.copy(), pk.RELATED
        self._answer_out(state, host)

    def _error_arrived(self, state: State, host: Host | None, known: bool) -> None:
        refused = state.delivery
        assert isinstance(refused, Refusal)
        lost = "; the error that says so reaches the client in a form that it does not take for its own"
        self._leaves.append(
            Leaf(
                state,
                refused.disposition,
                symptom_of(refused.error, refused.protocol) if known else Symptom.TIMES_OUT,
                refused.reason if known else refused.reason + lost,
                refused.step,
                refused.node,
                refused.cause,
                refused.pod,
            )
        )
        state.delivery = None

    # -- hooks

    def _run_hook(self, state: State, host: Host, hook: str) -> list[Verdict]:
        ended: list[Verdict] = []
        states = [state]
        for group in self._places.groups_of(host, state.packet.family, hook):
            after: list[State] = []
            for each in states:
                p = each.packet
                before = (p.dst, p.mark, p.tos)
                for verdict in run_group(each, host, hook, group):
                    if verdict.code != ACCEPT:
                        ended.append(verdict)
                        continue
                    then = verdict.state
                    q = then.packet
                    if hook == OUTPUT and (
                        q.dst != before[0] or (group.reroutes and (q.mark, q.tos) != before[1:])
                    ):
                        if not self._reroute(then, host):
                            continue
                    after.append(then)
            states = after
            if len(states) + len(self._leaves) > MOST_WAYS:
                raise LimitExceededError
        ended.extend(Verdict(ACCEPT, s) for s in states)
        return ended

    def _passed(self, verdict: Verdict, host: Host, hook: str) -> bool:
        """Whether the packet goes on; where not, its end is recorded."""
        code = verdict.code
        if code == ACCEPT:
            return True
        state, step = verdict.state, verdict.step
        if code == DROP:
            words = _step_words(step) if step is not None else verdict.detail
            if verdict.detail:
                words = verdict.detail
            if state.direction != "request":
                self._lost(
                    state, host, f"{host.name} drops the answer: {words}", step.kind if step else "rule", step
                )
            else:
                self._close_hop(state, host)
                self._leaf(
                    state, Disposition.DROPPED, send_symptom(state.packet, hook),
                    f"{host.name} drops the packet: {words}", host,
                    step.kind if step is not None else "rule", step,
                )  # fmt: skip
        elif (
            code == REJECT
            and state.direction == "request"
            and send_symptom(state.packet, hook) is Symptom.UNREACHABLE
        ):
            self._close_hop(state, host)
            self._leaf(
                state, Disposition.REJECTED, Symptom.UNREACHABLE,
                f"{host.name} rejects the packet with {verdict.detail}: {_step_words(step)}", host, "rule", step,
            )  # fmt: skip
        elif code == REJECT:
            self._send_error(
                state, host, verdict.detail, Disposition.REJECTED,
                f"{host.name} rejects the packet with {verdict.detail}: {_step_words(step)}", step, "rule",
                routed=hook != PREROUTING or state.packet.iif == "lo",
            )  # fmt: skip
        else:
            text = getattr(step.rule, "text", step.text) if step is not None else ""
            self._end_unknown(state, host.name, verdict.detail, text, step)
        return False

    # -- conntrack and NAT

    # -- ends

    def _close_hop(self, state: State, host: Host) -> None:
        state.hops = (
            *state.hops,
            HopRecord(host.node, state.direction, state.arrived, state.packet.copy(), state.steps, host.pod),
        )
        state.steps = None

    def _leaf(
        self,
        state: State,
        disposition: Disposition,
        symptom: Symptom,
        reason: str,
        host: Host | None,
        kind: str,
        step: StepRecord | None = None,
    ) -> None:
        if state.steps is not None and host is not None:
            self._close_hop(state, host)
        node, pod = (host.node, host.pod) if host is not None else ("", "")
        self._leaves.append(Leaf(state, disposition, symptom, reason, step, node, kind, pod))

    def _lost(
        self,
        state: State,
        host: Host,
        reason: str,
        kind: str,
        step: StepRecord | None = None,
        symptom: Symptom = Symptom.TIMES_OUT,
    ) -> None:
        """The packet, or its answer or error, ends here; a request whose sender is told at once has its `symptom`."""
        if step is None:
            step = state.note(
                StepKind(kind), Note(reason), hook="ROUTING" if kind in ("route", "sysctl") else ""
            )
        self._close_hop(state, host)
        if state.direction == "error":
            refused = state.delivery
            assert isinstance(refused, Refusal)
            state.delivery = None
            self._leaves.append(
                Leaf(
                    state,
                    refused.disposition,
                    Symptom.TIMES_OUT,
                    f"{refused.reason}; the error that says so is lost: {reason}",
                    refused.step,
                    refused.node,
                    refused.cause,
                    refused.pod,
                )
            )
            return
        if state.direction != "request":
            symptom = Symptom.TIMES_OUT
        self._leaves.append(Leaf(state, Disposition.LOST, symptom, reason, step, host.node, kind, host.pod))

    def _end_unknown(
        self, state: State, node: str, why: str, what: str = "", step: StepRecord | None = None
    ) -> None:
        host = self._places.named(node) if node else None
        if host is not None and state.steps is not None:
            self._close_hop(state, host)
        if isinstance(state.delivery, Refusal):
            state.delivery = None
        self._leaves.append(
            Leaf(
                state,
                Disposition.UNDETERMINED,
                Symptom.UNKNOWN,
                why,
                step,
                host.node if host is not None else node,
                what or "evidence",
                host.pod if host is not None else "",
            )
        )


def _number(port: Port) -> int:
    return port if isinstance(port, int) else 0


def _is_loopback(family: int, number: int) -> bool:
    return number >> 24 == 127 if family == 4 else number == 1


def _hop_words(hop: NextHop) -> str:
    return f"out by {hop.dev}" + (f" to {hop.gateway}" if hop.gateway is not None else "")


def _route_text(found: Lookup) -> str:
    route = found.route
    if route is None:
        return ""
    dst = "default" if route.dst.prefixlen == 0 else str(route.dst)
    return " ".join(
        [
            *([route.type] if route.type != "unicast" else []),
            dst,
            *(_hop_words(h)[7:] for h in found.hops[:1]),
        ]
    )


def _step_words(step: StepRecord | None) -> str:
    if step is None:
        return ""
    if step.kind is StepKind.POLICY:
        return f"{step.table} {step.text}"
    return f"{step.table} {step.rule.text if step.rule is not None else step.text}"


__all__ = ["Attached", "Leaf", "LimitExceededError", "Topology", "Walker"]


def _lets_pass(node: str, what: str) -> Assumption:
    return Assumption(f"nothing there stops the {what} (no rules were read)", EvidenceKind.RULES, node)
