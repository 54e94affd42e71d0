"""Which addresses a Service answers on: cluster IPs, node ports, external IPs, load-balancer IPs.

Facts: `pkg/proxy/servicechangetracker.go`, `serviceport.go`, `util/nodeport_addresses.go`, kube-proxy since 1.18.
"""

from __future__ import annotations

from enum import Enum

from ktp.kubeproxy.node import ProxyMode, ProxyNode
from ktp.model.cluster import Service, ServicePort, ip_of, networks_of
from ktp.model.host import IPAddress
from ktp.model.record import dataclass

SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"


class FrontEndKind(str, Enum):
    """What kind of address is dialled."""

    NODE_PORT = "nodePort"
    LOAD_BALANCER = "loadBalancer"
    EXTERNAL_IP = "externalIP"
    CLUSTER_IP = "clusterIP"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """One address and port to dial. `ip` is None for a node port that no node was chosen for yet."""

    kind: FrontEndKind
    ip: IPAddress | None
    port: int
    protocol: str
    ip_version: int

    def on(self, address: IPAddress) -> FrontEnd:
        """A node port's front end on one address of a node."""
        return FrontEnd(
            kind=self.kind, ip=address, port=self.port, protocol=self.protocol, ip_version=address.version
        )

    def __str__(self) -> str:
        where = self.ip if self.ip is not None else "NODE"
        return (
            f"{self.kind.value} {f'[{where}]' if self.ip_version == 6 else where}:{self.port}/{self.protocol}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprogrammed:
    """A front end that the API lists and kube-proxy does not program, and why."""

    kind: FrontEndKind
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnds:
    """All front ends of one service port. `ignored` says why kube-proxy leaves the whole Service alone, or ""."""

    programmed: tuple[FrontEnd, ...] = ()
    unprogrammed: tuple[Unprogrammed, ...] = ()
    ignored: str = ""

    def of(self, kind: FrontEndKind) -> tuple[FrontEnd, ...]:
        """The programmed front ends of one kind."""
        return tuple(f for f in self.programmed if f.kind is kind)


def ignored_reason(service: Service) -> str:
    """Why kube-proxy does nothing at all for a Service, "" where it does (all versions)."""
    if service.type == "ExternalName":
        return "type ExternalName: a DNS alias, which kube-proxy does not program"
    if SERVICE_PROXY_NAME_LABEL in service.labels:
        value = service.labels[SERVICE_PROXY_NAME_LABEL]
        return f"label {SERVICE_PROXY_NAME_LABEL}={value}: another proxy is to serve it"
    if not any(ip and ip != "None" for ip in service.cluster_ips):
        return "no cluster IP (headless): clients get the endpoints' addresses by DNS"
    return ""


def ip_versions_of(service: Service) -> tuple[int, ...]:
    """The address families that a Service is programmed in: those of its cluster IPs (`GetClusterIPByFamily`)."""
    found = (ip_of(text) for text in service.cluster_ips)
    return tuple(dict.fromkeys(ip.version for ip in found if ip is not None))


def programs_proxy_ip_mode(minor: int, node: ProxyNode) -> bool:
    """Whether an ingress IP with `ipMode: Proxy` is programmed like any other.

    Up to 1.28 always; since then not, with the gate LoadBalancerIPMode (off in 1.29, on in 1.30, locked in 1.35).
    """
    return minor <= 28 or (minor <= 34 and not node.gate("LoadBalancerIPMode", default=minor >= 30))


def programs_external_ips(minor: int, node: ProxyNode) -> bool:
    """Whether externalIPs are programmed: always, but for the gate AllowServiceExternalIPs of 1.36 (on)."""
    return minor < 36 or node.gate("AllowServiceExternalIPs", default=True)


def front_ends(
    service: Service, port: ServicePort, node: ProxyNode, *, minor: int | None = None
) -> FrontEnds:
    """The front ends of a service port for kube-proxy 1.`minor` (default: the newest that the node may run).

    A node port stands once a family without an address; `FrontEnd.on` and `serves_node_port` put it on a node.
    """
    if reason := ignored_reason(service):
        return FrontEnds(ignored=reason)
    minor = node.versions.minors()[-1] if minor is None else minor
    families = ip_versions_of(service)
    programmed: list[FrontEnd] = []
    unprogrammed: list[Unprogrammed] = []

    def add(kind: FrontEndKind, text: str, number: int) -> None:
        ip = ip_of(text)
        if ip is None:
            unprogrammed.append(Unprogrammed(kind=kind, what=text, reason="not an IP address"))
        elif ip.version not in families:
            reason = f"the Service has no IPv{ip.version} cluster IP"
            unprogrammed.append(Unprogrammed(kind=kind, what=text, reason=reason))
        else:
            programmed.append(
                FrontEnd(kind=kind, ip=ip, port=number, protocol=port.protocol, ip_version=ip.version)
            )

    for text in service.cluster_ips:
        add(FrontEndKind.CLUSTER_IP, text, port.port)
    for family in families if port.node_port else ():
        programmed.append(
            FrontEnd(
                kind=FrontEndKind.NODE_PORT,
                ip=None,
                port=port.node_port,
                protocol=port.protocol,
                ip_version=family,
            )
        )
    if service.type == "LoadBalancer" and not port.node_port:
        reason = (
            "allocateLoadBalancerNodePorts is false"
            if not service.allocate_load_balancer_node_ports
            else ("no node port was allocated")
        )
        unprogrammed.append(Unprogrammed(kind=FrontEndKind.NODE_PORT, what="nodePort 0", reason=reason))
    for text in service.external_ips:
        if programs_external_ips(minor, node):
            add(FrontEndKind.EXTERNAL_IP, text, port.port)
        else:
            reason = "feature gate AllowServiceExternalIPs is off"
            unprogrammed.append(Unprogrammed(kind=FrontEndKind.EXTERNAL_IP, what=text, reason=reason))
    for ingress in service.ingress if service.type == "LoadBalancer" else ():
        kind = FrontEndKind.LOAD_BALANCER
        if not ingress.ip:
            reason = "a host name, which kube-proxy does not resolve: nodes send this traffic out"
            unprogrammed.append(Unprogrammed(kind=kind, what=ingress.hostname or "", reason=reason))
        elif ingress.ip_mode == "Proxy" and not programs_proxy_ip_mode(minor, node):
            reason = "ipMode Proxy: nodes send this traffic out to the load balancer"
            unprogrammed.append(Unprogrammed(kind=kind, what=ingress.ip, reason=reason))
        else:
            add(kind, ingress.ip, port.port)
    return FrontEnds(programmed=tuple(programmed), unprogrammed=tuple(unprogrammed))


@dataclass(frozen=True, slots=True)
class Served:
    """Whether a node port is served on an address, and the field or fact that says so."""

    yes: bool
    why: str


def serves_node_port(address: IPAddress, node: ProxyNode, *, minor: int, mode: ProxyMode) -> Served:
    """Whether kube-proxy serves node ports on `address`, taken to be an address of the node.

    `nodePortAddresses` unset: every address (iptables; nftables 1.29 too), the node's primary IP (nftables since
    1.30), every address but loopback ones (ipvs). `primary` is known since 1.31. CIDRs of the other family only
    leave this family unrestricted.
    """
    if address.is_loopback:
        if mode is not ProxyMode.IPTABLES:
            return Served(False, f"{mode.value} mode serves no node ports on loopback addresses")
        if address.version == 6:
            # Excluded by a rule since 1.26; before, a source of ::1 has no way out of the node.
            return Served(minor <= 25, "no node ports on ::1, which IPv6 cannot route out of the node")
        if minor >= 26 and not node.localhost_node_ports:
            return Served(False, "iptablesLocalhostNodePorts is false")
    listed = node.node_port_addresses
    if not listed and mode is ProxyMode.NFTABLES and minor >= 30:
        return _is_primary(address, node, "nodePortAddresses defaults to primary in nftables mode")
    if minor >= 31 and listed == ("primary",):
        return _is_primary(address, node, "nodePortAddresses is primary")
    cidrs = networks_of(listed, address.version)
    if not cidrs:
        return Served(True, "nodePortAddresses does not restrict this family")
    return Served(
        any(address in cidr for cidr in cidrs), f"nodePortAddresses is {','.join(str(c) for c in cidrs)}"
    )


def _is_primary(address: IPAddress, node: ProxyNode, why: str) -> Served:
    known = [ip for ip in node.primary_ips if ip.version == address.version]
    if not known:  # the Node has no address of this family: taken to be the one that was dialled
        return Served(True, why)
    return Served(address in known, f"{why}, here {known[0]}")
