"""The virtual servers and set entries that kube-proxy's IPVS mode writes for a Service, since 1.18.

Facts: pkg/proxy/ipvs/proxier.go, ipset.go; compared with what the real kube-proxy 1.36 wrote. The rules beside the sets
are the same for all Services, but for KUBE-IPVS-OUT-FILTER (1.29 and newer): it stops what a node sends from a
load-balancer IP to that, where the source ranges do not hold the node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ktp.kubeproxy.endpoints import (
    EndpointSelection,
    SliceIndex,
    external_policy_local,
    index_slices,
    internal_policy_local,
    select_endpoints,
)
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, front_ends, serves_node_port
from ktp.kubeproxy.ipvs_mode import destinations
from ktp.kubeproxy.names import KUBE_IPVS_OUT_FILTER
from ktp.kubeproxy.node import ProxyMode, ProxyNode
from ktp.model.cluster import Cluster, Service, ServicePort, networks_of
from ktp.model.host import IPAddress, IpSet, NodeState
from ktp.model.ipvs import IpvsTable, RealServer, VirtualServer
from ktp.model.ruleset import EditedRuleset, Ruleset, has_chain, like

_MAX_SET_NAME = 31
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_Place = tuple[str, IPAddress | None, int]
"""Where a virtual server is: protocol, address (None: a node port's), port."""
Ports = Sequence[tuple[Service, ServicePort, bool]]


def has_same_servers(one: NodeState, other: NodeState) -> bool:
    """Whether two nodes' virtual servers and sets give the same answers, whatever the order."""
    return _shape(one) == _shape(other)


def _shape(state: NodeState) -> object:
    servers = state.ipvs.services if state.ipvs is not None else ()
    return (
        {(s.protocol, s.ip, s.port): (s.scheduler, s.persistent, frozenset(s.servers)) for s in servers},
        {name: frozenset(text for text, _ in found.entries) for name, found in (state.ipsets or {}).items()},
    )


def reprogram_servers(
    state: NodeState,
    ports: Ports,
    node: ProxyNode,
    index: SliceIndex,
    node_ports: Collection[tuple[str, int]],
) -> NodeState:
    """The node with the virtual servers and set entries of service ports written anew.

    `node_ports` (protocol, port) of all Services as they were read: they tell which addresses serve node ports here.
    """
    table = state.ipvs or IpvsTable()
    made = _Maker(state, node, index, node_ports)
    mine = {place for service, port, _ in ports for place in made.places(service, port)}
    servers = [s for s in table.services if made.place(s) not in mine]
    entries: dict[str, dict[str, None]] = {}
    for service, port, stays in ports:
        if stays:
            servers += made.servers(service, port)
            for name, text in made.entries(service, port):
                entries.setdefault(name, {})[text] = None
    sets = state.ipsets
    if sets is not None:
        gone = {found for service, port, _ in ports for found in made.old_entries(service, port)}
        sets = {name: _renewed(found, gone, entries.get(name, {})) for name, found in sets.items()}
    rulesets = tuple(_filtered(ruleset, made, ports) for ruleset in state.rulesets)
    return replace(state, rulesets=rulesets, ipvs=replace(table, services=tuple(servers)), ipsets=sets)


def _name(name: str, version: int) -> str:
    return f"KUBE-{'6-' if version == 6 else ''}{name}"[:_MAX_SET_NAME]


class SupposedSets(Mapping[str, IpSet]):
    """kube-proxy's sets as it fills them from the API, for a node whose sets were not read; made at the first look.

    Other programs' sets are not among them, nor is KUBE-LOOP-BACK's pod that no Service selects.
    """

    def __init__(self, state: NodeState, node: ProxyNode, cluster: Cluster) -> None:
        """The virtual servers of `state` tell which addresses serve node ports; Services are `cluster`'s."""
        self._of = state, node, cluster

    @cached_property
    def _sets(self) -> dict[str, IpSet]:
        state, node, cluster = self._of
        ports = [(s, p) for s in cluster.services.values() for p in s.ports]
        node_ports = {(p.protocol.lower(), p.node_port or 0) for _, p in ports}
        made = _Maker(state, node, index_slices(cluster), node_ports)
        entries: dict[str, dict[str, None]] = {}
        for service, port in ports:
            for name, text in made.entries(service, port):
                entries.setdefault(name, {})[text] = None
        return {
            name: IpSet(
                name=name, type=kind, family="inet" if version == 4 else "inet6",
                entries=tuple((text, {}) for text in entries.get(name, ())),
            )
            for version in (4, 6)
            for short, kind in _TYPES.items()
            for name in (_name(short, version),)
        }  # fmt: skip

    def __getitem__(self, name: str) -> IpSet:
        """The set; raises KeyError for another program's."""
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._sets)

    def __len__(self) -> int:
        """How many."""
        return len(self._sets)


_TYPES = {
    **dict.fromkeys(("CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER"), "hash:ip,port"),
    **dict.fromkeys(("LOAD-BALANCER-FW", "LOAD-BALANCER-LOCAL"), "hash:ip,port"),
    **dict.fromkeys(("NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH"), "hash:ip,port"),
    **dict.fromkeys(("LOOP-BACK", "LOAD-BALANCER-SOURCE-IP"), "hash:ip,port,ip"),
    **dict.fromkeys(("NODE-PORT-TCP", "NODE-PORT-UDP", "HEALTH-CHECK-NODE-PORT"), "bitmap:port"),
    **dict.fromkeys(("NODE-PORT-LOCAL-TCP", "NODE-PORT-LOCAL-UDP"), "bitmap:port"),
    "LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "IPVS-IPS": "hash:ip",
}
"""kube-proxy's sets and their types (pkg/proxy/ipvs/ipset.go)."""


ADDRESS_SETS = tuple(_name("IPVS-IPS", version) for version in (4, 6))
"""The sets that hold the addresses of kube-ipvs0."""


def _filtered(ruleset: Ruleset, made: _Maker, ports: Ports) -> Ruleset:
    """The ruleset with the rules of service ports in KUBE-IPVS-OUT-FILTER written anew, where it has that chain."""
    chain = ruleset.chain("filter", KUBE_IPVS_OUT_FILTER)
    if chain is None or not has_chain(ruleset, "filter", KUBE_IPVS_OUT_FILTER):
        return ruleset
    version = 4 if ruleset.family == "ip" else 6
    old = {line for service, port, _ in ports for line, _ in made.out_filters(service, port, version)}
    new = [
        line
        for service, port, stays in ports
        if stays
        for line, is_wanted in made.out_filters(service, port, version)
        if is_wanted
    ]
    recorded = [line.partition("] ")[2] if line.startswith("[") else line for line in chain.raw_lines()]
    if {line for line in recorded if line in old} == set(new):
        return ruleset
    kept = [raw for raw, line in zip(chain.raw_lines(), recorded, strict=True) if line not in old]
    return EditedRuleset(ruleset, {("filter", KUBE_IPVS_OUT_FILTER): like(chain, [*kept, *new])})


def _renewed(found: IpSet, gone: Collection[tuple[str, str]], new: Mapping[str, None]) -> IpSet:
    kept = [e for e in found.entries if (found.name, e[0].rpartition(",")[0] or e[0]) not in gone]
    kept = [e for e in kept if (found.name, e[0]) not in gone and e[0] not in new]
    return replace(found, entries=(*kept, *((text, {}) for text in new)))


class _Maker:
    def __init__(
        self,
        state: NodeState,
        node: ProxyNode,
        index: SliceIndex,
        node_ports: Collection[tuple[str, int]],
    ) -> None:
        self.node, self.index = node, index
        self.minor = node.versions.minors()[-1]
        servers = state.ipvs.services if state.ipvs is not None else ()
        self.scheduler = next((s.scheduler for s in servers), "rr")
        serving = {s.ip for s in servers if (s.protocol, s.port) in node_ports and s.ip is not None}
        self.serving = serving or {
            a.ip
            for i in state.interfaces or ()
            if i.is_up  # kube-ipvs0 is down
            for a in i.addresses
            if serves_node_port(a.ip, node, minor=self.minor, mode=ProxyMode.IPVS).yes
        }

    def place(self, server: VirtualServer) -> _Place:
        """Where a virtual server is."""
        return server.protocol, None if server.ip in self.serving else server.ip, server.port

    def places(self, service: Service, port: ServicePort) -> Iterator[_Place]:
        """Where the virtual servers of a service port are."""
        for f in self._front_ends(service, port):
            yield f.protocol.lower(), f.ip if f.ip not in self.serving else None, f.port

    def _front_ends(self, service: Service, port: ServicePort) -> tuple[FrontEnd, ...]:
        return front_ends(service, port, self.node, minor=self.minor).programmed

    def _selection(self, service: Service, port: ServicePort, version: int) -> EndpointSelection:
        return select_endpoints(self.index, service, port, self.node, minor=self.minor, ip_version=version)

    def _is_local(self, service: Service, f: FrontEnd) -> bool:
        if f.kind is FrontEndKind.CLUSTER_IP:
            return internal_policy_local(service, self.minor, self.node)
        is_external_ip = f.kind is FrontEndKind.EXTERNAL_IP
        return external_policy_local(service, self.minor, self.node, external_ip=is_external_ip)

    def servers(self, service: Service, port: ServicePort) -> Iterator[VirtualServer]:
        """The virtual servers of a service port."""
        held = service.session_affinity == "ClientIP"
        for f in self._front_ends(service, port):
            chosen, _ = destinations(
                self._selection(service, port, f.ip_version), f.kind, local=self._is_local(service, f), minor=self.minor
            )  # fmt: skip
            real = tuple(RealServer(ip=e.address, port=e.port, weight=1) for e in chosen)
            for ip in self._addresses(f):
                yield VirtualServer(
                    protocol=f.protocol.lower(), ip=ip, port=f.port, scheduler=self.scheduler,
                    persistent=service.session_affinity_timeout if held else None, servers=real,
                )  # fmt: skip

    def _addresses(self, f: FrontEnd) -> Iterable[IPAddress]:
        if f.ip is not None:
            return (f.ip,)
        return sorted((ip for ip in self.serving if ip.version == f.ip_version), key=int)

    def entries(self, service: Service, port: ServicePort) -> Iterator[tuple[str, str]]:
        """(set, entry) of a service port."""
        protocol = port.protocol.lower()
        for f in self._front_ends(service, port):
            local, version = self._is_local(service, f), f.ip_version
            names = ["CLUSTER-IP"]
            if f.kind is FrontEndKind.EXTERNAL_IP:
                names = ["EXTERNAL-IP-LOCAL" if local else "EXTERNAL-IP"]
            elif f.kind is FrontEndKind.LOAD_BALANCER:
                names = ["LOAD-BALANCER", *(["LOAD-BALANCER-LOCAL"] if local else [])]
            if f.kind is FrontEndKind.NODE_PORT:
                for name in ("NODE-PORT", *(("NODE-PORT-LOCAL",) if local else ())):
                    if protocol == "sctp":
                        for ip in self._addresses(f):
                            yield _name(f"{name}-SCTP-HASH", version), f"{ip},sctp:{f.port}"
                    else:
                        yield _name(f"{name}-{protocol.upper()}", version), f"{f.port}"
                continue
            for name in names:
                yield _name(name, version), f"{f.ip},{protocol}:{f.port}"
            yield _name("IPVS-IPS", version), f"{f.ip}"
            if f.kind is FrontEndKind.LOAD_BALANCER:
                yield from self._ranges(service, f, protocol)
        for version in {f.ip_version for f in self._front_ends(service, port)}:
            for e in self._selection(service, port, version).listed:
                if e.is_local:
                    yield _name("LOOP-BACK", version), f"{e.address},{protocol}:{e.port},{e.address}"
            if service.health_check_node_port and service.external_traffic_policy == "Local":
                yield _name("HEALTH-CHECK-NODE-PORT", version), f"{service.health_check_node_port}"

    def out_filters(self, service: Service, port: ServicePort, version: int) -> Iterator[tuple[str, bool]]:
        """The rule of KUBE-IPVS-OUT-FILTER that each load-balancer IP may have, and whether it has it."""
        number = _NUMBERS[port.protocol.lower()]
        for f in self._front_ends(service, port):
            if f.kind is not FrontEndKind.LOAD_BALANCER or f.ip_version != version:
                continue
            networks = networks_of(service.load_balancer_source_ranges, version)
            holds_node = any(ip in network for network in networks for ip in self.node.primary_ips)
            line = (
                f"-A {KUBE_IPVS_OUT_FILTER} -s {f.ip}/{32 if version == 4 else 128} -m ipvs --vproto {number} "
                f"--vaddr {f.ip} --vport {f.port} -j DROP"
            )
            yield line, bool(networks) and not holds_node

    def _ranges(self, service: Service, f: FrontEnd, protocol: str) -> Iterator[tuple[str, str]]:
        where = f"{f.ip},{protocol}:{f.port}"
        networks = networks_of(service.load_balancer_source_ranges, f.ip_version)
        if not networks:
            return
        yield _name("LOAD-BALANCER-FW", f.ip_version), where
        for network in networks:
            # A set keeps a network of one address without its length.
            whole = network.prefixlen == network.max_prefixlen
            yield (
                _name("LOAD-BALANCER-SOURCE-CIDR", f.ip_version),
                f"{where},{network.network_address if whole else network}",
            )
            if any(ip in network for ip in self.node.primary_ips):
                # A process of the node itself dials from the load-balancer IP, which is the node's.
                yield _name("LOAD-BALANCER-SOURCE-IP", f.ip_version), f"{where},{f.ip}"

    def old_entries(self, service: Service, port: ServicePort) -> Iterator[tuple[str, str]]:
        """(set, entry, or what it begins with) of a service port under any policy; what Services share stays."""
        protocol = port.protocol.lower()
        for f in self._front_ends(service, port):
            for name in (
                "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW",
                "LOAD-BALANCER-SOURCE-CIDR", "LOAD-BALANCER-SOURCE-IP", "CLUSTER-IP",
            ) if f.ip is not None else ():  # fmt: skip
                yield _name(name, f.ip_version), f"{f.ip},{protocol}:{f.port}"
            if f.kind is FrontEndKind.NODE_PORT:
                for name in ("NODE-PORT", "NODE-PORT-LOCAL"):
                    yield _name(f"{name}-{protocol.upper()}", f.ip_version), f"{f.port}"
                    for ip in self._addresses(f):
                        yield _name(f"{name}-SCTP-HASH", f.ip_version), f"{ip},sctp:{f.port}"
        if service.health_check_node_port:
            for version in (4, 6):
                yield _name("HEALTH-CHECK-NODE-PORT", version), f"{service.health_check_node_port}"
