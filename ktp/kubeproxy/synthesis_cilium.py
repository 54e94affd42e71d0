"""The front ends that Cilium's agent programs for a Service: what-if and intent where it serves in kube-proxy's place.

Facts: pkg/loadbalancer/reconciler (before 1.18 pkg/service), Cilium 1.14 to 1.19; compared with recorded maps of 1.19.
Topology hints are off by default and not modelled; annotations (`service.cilium.io/…`) are not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network

from ktp.kubeproxy.endpoints import ProxyEndpoint, SliceIndex, select_endpoints
from ktp.kubeproxy.frontends import ignored_reason, ip_versions_of
from ktp.kubeproxy.node import ProxyNode
from ktp.model.cilium import CiliumState, LbBackend, LbFlag, LbFrontend, LbKind, NodePortMode
from ktp.model.cluster import Service, ServicePort, ip_of
from ktp.model.host import IPAddress, IPNetwork
from ktp.model.record import dataclass

_NEWEST = 36  # the selection's `listed` does not depend on kube-proxy's version


@dataclass(frozen=True, slots=True)
class _Backends:
    every: tuple[LbBackend, ...]
    local: tuple[LbBackend, ...]


def has_same_front_ends(one: CiliumState | None, other: CiliumState | None) -> bool:
    """Whether two nodes' maps give the same answers: backends of each front end in any order, indices apart."""
    return _shape(one) == _shape(other)


def _shape(state: CiliumState | None) -> object:
    if state is None:
        return None
    # How a cluster IP's packet would be sent on decides nothing: nobody outside gets in there.
    idle = {LbKind.CLUSTER_IP: frozenset({LbFlag.DSR})}
    none: frozenset[LbFlag] = frozenset()
    return {_key(f): (f.flags - idle.get(f.kind, none), frozenset(f.backends)) for f in state.frontends or ()}


def _key(f: LbFrontend) -> tuple[object, ...]:
    return f.ip, f.port, f.protocol, f.internal


def reprogram_maps(
    state: CiliumState, ports: Iterable[tuple[Service, ServicePort, bool]], node: ProxyNode, index: SliceIndex
) -> CiliumState:
    """The maps with the front ends of service ports written anew: (Service, port, whether it is to have any)."""
    ports = tuple(ports)
    mine = {at for service, port, _ in ports for at in _places(service, port)}
    frontends = [f for f in state.frontends or () if _place(f) not in mine]
    ranges = dict(state.source_ranges or {})
    number = max([f.revnat for f in state.frontends or ()] + list(ranges), default=0)
    for service, port, stays in ports:
        for f, networks in synthesize(service, port, node, index, state) if stays else ():
            number += 1
            ranges[number] = networks
            frontends.append(replace(f, revnat=number, text=_text(f, number)))
    return replace(
        state, frontends=tuple(frontends), source_ranges=None if state.source_ranges is None else ranges
    )


_Place = tuple[IPAddress | None, int, str | None]
"""Where a front end is: address (None: a node port), port, protocol (None: the keys have none)."""


def _place(f: LbFrontend) -> _Place:
    return None if f.kind is LbKind.NODE_PORT else f.ip, f.port, f.protocol


def _places(service: Service, port: ServicePort) -> Iterator[_Place]:
    addresses = (*service.cluster_ips, *service.external_ips, *(i.ip or "" for i in service.ingress))
    for protocol in (None, port.protocol.lower()):
        if port.node_port:
            yield None, port.node_port, protocol
        for ip in map(ip_of, addresses):
            if ip is not None:
                yield ip, port.port, protocol


def synthesize(
    service: Service, port: ServicePort, node: ProxyNode, index: SliceIndex, state: CiliumState
) -> Iterator[tuple[LbFrontend, tuple[IPNetwork, ...]]]:
    """Each front end of a service port on a node, with the source ranges that it checks.

    The addresses at which node ports are served are those of the maps that were read (--nodeport-addresses).
    """
    if ignored_reason(service):
        return
    served = {f.ip for f in state.frontends or () if f.kind is LbKind.NODE_PORT}
    for version in ip_versions_of(service):
        listed = select_endpoints(index, service, port, node, minor=_NEWEST, ip_version=version).listed
        backends = _Backends(_used(listed), _used([e for e in listed if e.is_local]))
        networks = tuple(
            n
            for text in service.load_balancer_source_ranges
            if (n := _network(text)) and n.version == version
        )
        made = _Maker(service, port, backends, state)
        for ip in _of_version(version, service.cluster_ips):
            yield made.front_end(ip, LbKind.CLUSTER_IP, local=service.internal_traffic_policy == "Local"), ()
        if port.node_port and state.config.replaces:
            for ip in sorted((a for a in served if a.version == version), key=int):
                for f in made.both(ip, LbKind.NODE_PORT):
                    yield f, ()
        for ip in _of_version(version, [i.ip or "" for i in service.ingress]):
            for f in made.both(ip, LbKind.LOAD_BALANCER):
                yield (replace(f, flags=f.flags | {LbFlag.SOURCE_RANGE}) if networks else f), networks
        for ip in _of_version(version, service.external_ips):
            yield next(iter(made.both(ip, LbKind.EXTERNAL_IPS))), ()


@dataclass(frozen=True, slots=True)
class _Maker:
    service: Service
    port: ServicePort
    backends: _Backends
    state: CiliumState

    def both(self, ip: IPAddress, kind: LbKind) -> Iterator[LbFrontend]:
        """The external scope, and where the two policies differ, the internal one."""
        external = self.service.external_traffic_policy == "Local"
        internal = self.service.internal_traffic_policy == "Local"
        yield self.front_end(ip, kind, local=external)
        if external != internal:
            yield self.front_end(ip, kind, local=internal, internal=True)

    def front_end(self, ip: IPAddress, kind: LbKind, *, local: bool, internal: bool = False) -> LbFrontend:
        """One front end, without its reverse NAT index."""
        service, config = self.service, self.state.config
        external_local = service.external_traffic_policy == "Local"
        internal_local = service.internal_traffic_policy == "Local"
        protocol = self.port.protocol.lower()
        is_any = int(ip) == 0
        direct = config.mode is NodePortMode.DSR or (config.mode is NodePortMode.HYBRID and protocol == "tcp")
        flags = {
            LbFlag.EXTERNAL_LOCAL: external_local,
            LbFlag.INTERNAL_LOCAL: internal_local,
            LbFlag.TWO_SCOPES: kind is not LbKind.CLUSTER_IP and external_local != internal_local,
            LbFlag.AFFINITY: service.session_affinity == "ClientIP",
            LbFlag.NON_ROUTABLE: kind is LbKind.CLUSTER_IP or is_any,
            LbFlag.DSR: direct and kind is not LbKind.CLUSTER_IP,
        }
        named = any(f.protocol for f in self.state.frontends or ())
        return LbFrontend(
            ip=ip, port=self.port.node_port or 0 if kind is LbKind.NODE_PORT else self.port.port,
            protocol=protocol if named else None, internal=internal, kind=kind,
            flags=frozenset(flag for flag, is_set in flags.items() if is_set),
            backends=self.backends.local if local else self.backends.every,
        )  # fmt: skip


def _of_version(version: int, texts: Iterable[str]) -> Iterator[IPAddress]:
    for ip in map(ip_of, texts):
        if ip is not None and ip.version == version:
            yield ip


def _used(listed: Sequence[ProxyEndpoint]) -> tuple[LbBackend, ...]:
    """Active backends, or the terminating ones where none is active (pkg/loadbalancer, Backend state)."""
    active = [e for e in listed if e.ready and not e.terminating]
    # With publishNotReadyAddresses a terminating endpoint counts as ready all the same.
    chosen = active or [e for e in listed if e.ready or e.is_usable_when_terminating]
    return tuple(LbBackend(ip=e.address, port=e.port) for e in chosen)


def _network(text: str) -> IPNetwork | None:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        return None


def _text(f: LbFrontend, number: int) -> str:
    """As `bpf lb list` prints it."""
    where = f"[{f.ip}]" if f.ip.version == 6 else f"{f.ip}"
    protocol = f"/{f.protocol.upper()}" if f.protocol else ""
    none = "[::]:0" if f.ip.version == 6 else "0.0.0.0:0"
    flags = ", ".join([f.kind.value, *(flag.value for flag in LbFlag if flag in f.flags)])
    return f"{where}:{f.port}{protocol}{'/i' if f.internal else ''} (0) {none} ({number}) (0) [{flags}]"
