"""What a node's devices lead to: by which one it reaches somebody, and whose network lies behind it."""

from __future__ import annotations

from ktp.dataplane.host import Host
from ktp.dataplane.packet import Packet
from ktp.dataplane.routing import MAIN
from ktp.dataplane.state import State
from ktp.dataplane.topology import Attached
from ktp.dataplane.walk.context import Walk
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.host import NextHop


def on_bridge(walk: Walk, host: Host, family: int, ip: int, bridge: str | None) -> bool:
    """Whether `ip` belongs to a pod of this node that hangs at `bridge`."""
    attached = walk.topology.attached.get((family, ip))
    if attached is None or attached.node != host.name or attached.host_network:
        return False
    return interface_toward(host, family, ip)[0] == bridge


def interface_toward(host: Host, family: int, ip: int) -> tuple[str | None, bool]:
    """The interface by which the node reaches `ip` directly, and whether it is a bridge."""
    if not host.has_network:
        return None, False
    dev = _direct_interface(host, family, ip)
    if dev is None:
        found = host.fib[family].lookup(ip, iif="lo")
        dev = found.hops[0].dev if found.hops else None
        if found.type == "local":
            return "lo", False
    return dev, dev is not None and _is_bridge(host, dev)


def _direct_interface(host: Host, family: int, ip: int) -> str | None:
    """The interface on whose link `ip` is by the main table, whatever policy routing does with packets to it."""
    direct = host.fib[family].in_table(MAIN, ip)
    if direct is None or direct[0].dst.prefixlen == 0 or not direct[1] or direct[1][0].gateway is not None:
        return None
    return direct[1][0].dev


def _is_bridge(host: Host, dev: str) -> bool:
    interface = host.interfaces.get(dev)
    if interface is None:
        return False
    return interface.kind == "bridge" or any(i.master == dev for i in host.interfaces.values())


def bridge_filters(state: State, host: Host, family: int) -> bool:
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


def arrival_interface(walk: Walk, host: Host, p: Packet) -> str:
    """By which interface a packet from outside reaches this node.

    The one that holds the dialled address, since neighbours ask for it there; for an address that no uplink
    holds (a virtual IP), the one that leads back to the sender.
    """
    if not host.has_network:
        return "?"
    toward = _direct_interface(host, p.family, p.src)
    if toward is None:
        back = host.fib[p.family].lookup(p.src, src=p.dst, iif="lo")
        toward = back.hops[0].dev if back.hops and back.type == "unicast" else None
    holder = host.interface_of(p.family, p.dst)
    if holder is not None and holder != toward and is_uplink(walk, host, p.family, holder):
        return holder
    if toward is not None:
        return toward
    return holder or next((i.name for i in host.interfaces.values() if not i.is_loopback), "?")


def is_uplink(walk: Walk, host: Host, family: int, dev: str) -> bool:
    """Whether other machines are reached by `dev`: a gateway lies there, or a node's address."""
    interface = host.interfaces.get(dev)
    if interface is None or interface.is_loopback or _is_bridge(host, dev):
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
        for (f, ip), n in walk.owners.items()
    )


def network_owner(walk: Walk, host: Host, family: int, ip: int) -> str | None:
    """The other node whose pods' network the address is of: a tunnel's far end, or the node's bridge."""
    for net, name in walk.topology.pod_networks:
        if net.version == family and name != host.name:
            if int(net.network_address) == ip & int(net.netmask):
                return name
    return None


def overlay_owner(host: Host, hop: NextHop, attached: Attached | None) -> str | None:
    """The node behind a tunnel whose far end is not told by the next hop (point-to-point routes)."""
    if attached is None or attached.node in (None, host.name) or hop.dev is None:
        return None
    interface = host.interfaces.get(hop.dev)
    if interface is not None and interface.link_type not in ("ether", "loopback"):
        return attached.node
    return None


def is_of_no_node(walk: Walk, address: tuple[int, int]) -> bool:
    """Whether every node's addresses were read, and none has this one (several may)."""
    if not walk.topology.nodes_known or walk.topology.unread:
        return False
    states = (walk.topology.nodes.get(name) for name in {*walk.owners.values(), *walk.topology.nodes})
    return all(
        s is not None
        and s.interfaces is not None
        and address not in {(a.ip.version, int(a.ip)) for i in s.interfaces for a in i.addresses}
        for s in states
    )


def is_loopback(family: int, number: int) -> bool:
    """Whether an address is one of lo alone."""
    return number >> 24 == 127 if family == 4 else number == 1
