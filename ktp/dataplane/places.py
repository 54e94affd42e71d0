"""Who is where, compiled: nodes, pods' namespaces, who has an address, what hangs at a node's hooks.

Kept between flows; nothing of one flow is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

from ktp.dataplane.hooks import Group, HookTable, NftBaseChain
from ktp.dataplane.host import Host
from ktp.dataplane.packet import to_int
from ktp.dataplane.pod import completed
from ktp.dataplane.topology import Attached, Topology
from ktp.model.host import Interface, InterfaceAddress, NextHop, Route
from ktp.model.ipvs import IPVS_INTERFACE

_MAX_HOLDERS = 8  # nodes asked whether an address is theirs


class Places:
    """One topology. Compiled rules and route lookups are kept."""

    def __init__(self, topology: Topology, beside: Places | None = None) -> None:
        """Nothing is compiled before it is asked for; of nodes that `beside` has too, there."""
        self.topology = topology
        self._beside = beside
        self._hosts: dict[str, Host | None] = {}
        self._insides: dict[str, Host | None] = {}
        self._addresses_of: dict[str, list[tuple[int, int]]] | None = None
        self._hooks: dict[tuple[str, int], HookTable] = {}
        self.owners: dict[tuple[int, int], str] = self._address_owners()
        """The node that holds an address, where one alone does."""
        self.nodes_route_pods = self._do_nodes_route_pods()

    def named(self, name: str) -> Host | None:
        """A node, or a pod's namespace that was compiled already."""
        return self.host(name) or self._insides.get(name)

    def host(self, name: str) -> Host | None:
        """The compiled node, None where nothing was read of it."""
        if name not in self._hosts:
            if self._beside is not None and self._is_as_beside(name, self._beside.topology):
                self._hosts[name] = self._beside.host(name)
                return self._hosts[name]
            state = self.topology.nodes.get(name)
            # Without its rules nothing can be said of what a node does, whatever else was read of it.
            usable = state is not None and state.has_rules
            assumed = self.topology.assumed_local.get(name, frozenset())
            self._hosts[name] = Host(state, assumed) if usable and state is not None else None
        return self._hosts[name]

    def _is_as_beside(self, name: str, other: Topology) -> bool:
        """Whether the node is the very same object in the other topology."""
        mine = self.topology
        return (
            name in mine.nodes
            and mine.nodes[name] is other.nodes.get(name)
            and mine.assumed_local.get(name) == other.assumed_local.get(name)
        )

    def inside(self, attached: Attached) -> Host | None:
        """The network namespace of a pod, None where it was not read."""
        if attached.node is None or attached.host_network:
            return None
        if attached.name not in self._insides:
            node = self.topology.nodes.get(attached.node)
            state = node.pods.get(attached.name) if node is not None else None
            if state is not None:
                state = completed(state, self.own_addresses(attached.name))
            self._insides[attached.name] = Host(state, node=attached.node) if state is not None else None
        return self._insides[attached.name]

    def own_addresses(self, name: str) -> list[tuple[int, int]]:
        """The addresses of what is attached by this name."""
        if self._addresses_of is None:
            self._addresses_of = {}
            for key, attached in self.topology.attached.items():
                self._addresses_of.setdefault(attached.name, []).append(key)
        return self._addresses_of.get(name, [])

    def may_hold(self, address: str) -> tuple[str, ...]:
        """The nodes of which an address may be that nobody is known to have: in their network, and not read.

        () where it is known whose it is, or where nothing can be said of one of them.
        """
        family, ip = to_int(address)
        if (family, ip) in self.owners or (family, ip) in self.topology.attached:
            return ()
        holders = tuple(sorted(self.topology.unread))
        if len(holders) > _MAX_HOLDERS:
            return ()
        return holders if all(self.network_of(name, family, ip) for name in holders) else ()

    def network_of(self, node: str, family: int, ip: int) -> Interface | None:
        """The node's device in whose network an address is."""
        host = self.host(node)
        for interface in host.interfaces.values() if host is not None else ():
            for a in interface.addresses:
                shift = a.ip.max_prefixlen - a.prefixlen
                if a.ip.version == family and shift and int(a.ip) >> shift == ip >> shift:
                    return interface
        return None

    def walkable(self, name: str, family: int) -> Host | None:
        """The node, None where its rules of the flow's address family were not read."""
        host = self.host(name)
        return host if host is not None and host.state.knows_rules_of(family) else None

    def nothing_of(self, node: str, where: str = "") -> str:
        """Why it is not known what a node does; `where` says what it is to the packet."""
        state = self.topology.nodes.get(node)
        if state is not None and state.data_plane_unread:
            return f"{state.data_plane} serves Services on {node}, and its tables were not read"
        return f"nothing was read of node {node}" + (f", {where}" if where else "")

    def _address_owners(self) -> dict[tuple[int, int], str]:
        seen: dict[tuple[int, int], str | None] = {}
        for name, state in self.topology.nodes.items():
            devices = (i for i in state.interfaces or () if i.name != IPVS_INTERFACE)
            for address in (a for i in devices for a in i.addresses):
                key: tuple[int, int] = (address.ip.version, int(address.ip))
                if _never_unique(*key):
                    continue
                # An address that several nodes hold (a virtual IP, docker0's) tells no node.
                seen[key] = name if key not in seen or seen[key] == name else None
        owners = {k: n for k, n in seen.items() if n is not None}
        for key, name in self.topology.node_addresses.items():
            owners[key] = name
        return owners

    def _do_nodes_route_pods(self) -> bool:
        """Whether the nodes themselves hold routes to each other's pods (then the network between need not)."""
        for name in self.topology.nodes:
            host = self.host(name)
            if host is None or not host.has_network:
                continue
            for (family, ip), a in self.topology.attached.items():
                if a.node is None or a.node == name or a.host_network:
                    continue
                if self.routes_pods(host, family, ip):
                    return True
        return False

    @staticmethod
    def routes_pods(host: Host, family: int, ip: int) -> bool:
        """Whether the node has a route of its own to a pod's address, and does not leave it to its default route."""
        found = host.fib[family].lookup(ip, iif="lo")
        return found.route is not None and found.route.dst.prefixlen > 0

    def groups_of(self, host: Host, family: int, hook: str) -> tuple[Group, ...]:
        """What hangs at `hook`, first to run first."""
        key = (host.name, family)
        table = self._hooks.get(key)
        if table is None:
            if self._beside is not None and host is self._beside.named(host.name):
                return self._beside.groups_of(host, family, hook)
            native: Sequence[NftBaseChain] = ()
            if host.state.nft is not None:
                from ktp.dataplane.nft import nft_base_chains

                native = nft_base_chains(host, family)
            table = self._hooks[key] = HookTable(host, family, native)
        return table.groups(hook)

    def holding(self, node: str, address: str) -> Topology:
        """The same world in which `node`, one of `may_hold`, has the address."""
        family, ip = to_int(address)
        host, interface = self.host(node), self.network_of(node, family, ip)
        assert host is not None
        assert interface is not None
        own = InterfaceAddress(ip=ip_address(address), prefixlen=128 if family == 6 else 32)
        more = replace(interface, addresses=(*interface.addresses, own))
        local = Route(
            dst=ip_network(own.ip), type="local", table="local", nexthops=(NextHop(dev=interface.name),),
            prefsrc=own.ip, scope="host",
        )  # fmt: skip
        state = replace(
            host.state,
            interfaces=tuple(more if i is interface else i for i in host.state.interfaces or ()),
            routes=(*(host.state.routes or ()), local),
        )
        return replace(self.topology, nodes={**self.topology.nodes, node: state}, unread=frozenset())


def _never_unique(family: int, number: int) -> bool:
    if family == 4:
        return number >> 24 == 127 or number >> 16 == 0xA9FE
    return number == 1 or number >> 118 == 0x3FA
