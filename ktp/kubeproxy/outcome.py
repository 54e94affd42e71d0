"""The words and steps that the three modes share: a question, what becomes of a drawn endpoint, the simple fates."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import field, replace
from enum import Enum

from ktp.kubeproxy.endpoints import (
    EndpointSelection,
    ProxyEndpoint,
    external_policy_local,
    internal_policy_local,
)
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, Served, serves_node_port
from ktp.kubeproxy.node import DetectLocal, IPNetwork, ProxyMode, ProxyNode
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.cluster import Service, ServicePort
from ktp.model.host import IPAddress
from ktp.model.record import dataclass
from ktp.model.trace import Disposition, Symptom


class Vantage(str, Enum):
    """Where the client is, relative to the node that it dials (design §5)."""

    EXTERNAL = "external"
    NODE = "node"
    LOCALHOST = "localhost"
    POD_SAME_NODE = "podSameNode"
    POD_OTHER_NODE = "podOtherNode"
    OTHER_NODE = "otherNode"


HERE, KNOWN_AS = "{here}", "{known as}"
"""In an Outcome's words the node's name and the one that its kube-proxy goes by: nodes alike have equal Outcomes."""

PODS = frozenset({Vantage.POD_SAME_NODE, Vantage.POD_OTHER_NODE})
ON_THE_NODE = frozenset({Vantage.NODE, Vantage.LOCALHOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who dials. `ip` decides about source ranges, local detection and hairpins; None where any client is meant.

    A process of a Pod with `hostNetwork` is a client of vantage `node` or `otherNode`, not a pod.
    """

    vantage: Vantage
    ip: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedEndpoint:
    """An endpoint that may be drawn, and what the client sees then.

    `probability` is that of a first draw, before session affinity remembers; None where the possibilities differ.
    `source_kept` says whether the endpoint sees the client's address.
    """

    ip: str
    port: int
    node: str | None
    pod: str | None
    probability: float | None
    disposition: Disposition
    symptom: Symptom
    source_kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An answer without its question. `passes`: the rules leave the packet alone and routing takes it away."""

    symptom: Symptom
    disposition: Disposition
    decided_by: str
    endpoints: tuple[IntendedEndpoint, ...] = ()
    source_kept: bool | None = None
    passes: bool = False
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One possibility of everything that may not be known."""

    minor: int
    mode: ProxyMode
    detector: DetectLocal
    pods_masqueraded: bool | None  # None where the client is no pod
    in_ranges: bool
    unready_count: bool = False  # 1.22 before its fix
    early_1_18: bool = False  # 1.18.2: FORWARD did not yet lead to KUBE-EXTERNAL-SERVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One client, one front end, one node, in one world."""

    service: Service
    port: ServicePort
    node: ProxyNode
    front_end: FrontEnd
    client: Client
    world: World
    selection: EndpointSelection
    # What became of endpoints in other worlds of the same question: most worlds treat them alike.
    fates: dict[Hashable, tuple[IntendedEndpoint, ...]] = field(default_factory=dict, compare=False)

    @property
    def address(self) -> IPAddress:
        """The address dialled."""
        if self.front_end.ip is None:
            raise ValueError("a front end is dialled at an address")
        return self.front_end.ip

    @property
    def is_node_port(self) -> bool:
        """Whether a node port is dialled."""
        return self.front_end.kind is FrontEndKind.NODE_PORT

    @property
    def destination_is_local(self) -> bool:
        """Whether the address dialled is one of the node's own (`--dst-type LOCAL`)."""
        return self.is_node_port or self.node.owns(self.address)

    @property
    def source_is_local(self) -> bool:
        """Whether the client is a process of the node itself (`--src-type LOCAL`)."""
        return self.client.vantage in ON_THE_NODE

    @property
    def source_is_on_every_node(self) -> bool:
        """Whether a process dials an address of kube-ipvs0, from which it then sends: all nodes hold that."""
        return self.source_is_local and self.world.mode is ProxyMode.IPVS and not self.is_node_port

    @property
    def detector_networks(self) -> tuple[IPNetwork, ...]:
        """The CIDRs that the detector compares sources with, of this family."""
        networks = {
            DetectLocal.CLUSTER_CIDR: self.node.cluster_cidrs,
            DetectLocal.NODE_CIDR: self.node.pod_cidrs,
        }.get(self.world.detector, ())
        return tuple(n for n in networks if n.version == self.front_end.ip_version)

    @property
    def has_detector(self) -> bool:
        """Whether kube-proxy can tell pods in this family: a CIDR list without this family is no detector."""
        if self.world.detector is DetectLocal.NONE:
            return False
        networks = {
            DetectLocal.CLUSTER_CIDR: self.node.cluster_cidrs,
            DetectLocal.NODE_CIDR: self.node.pod_cidrs,
        }.get(self.world.detector, ())
        return not networks or bool(self.detector_networks)

    @property
    def source_is_pod(self) -> bool:
        """Whether kube-proxy takes the client for a pod (rule match P, "pod traffic").

        ClusterCIDR also matches a pod of another node whose address arrives as it is; the other detectors match
        pods of this node only.
        """
        if not self.has_detector:
            return False
        if self.client.vantage is Vantage.POD_OTHER_NODE:
            if self.world.pods_masqueraded or self.world.detector is not DetectLocal.CLUSTER_CIDR:
                return False
        if self.detector_networks and self.client.ip is not None:
            return any(self.client.ip in network for network in self.detector_networks)
        return self.client.vantage in PODS

    @property
    def external_local(self) -> bool:
        """Whether `externalTrafficPolicy: Local` holds for this front end."""
        is_external_ip = self.front_end.kind is FrontEndKind.EXTERNAL_IP
        return external_policy_local(self.service, self.world.minor, self.node, external_ip=is_external_ip)

    @property
    def internal_local(self) -> bool:
        """Whether `internalTrafficPolicy: Local` holds."""
        return internal_policy_local(self.service, self.world.minor, self.node)

    def served(self) -> Served:
        """Whether the dialled address serves node ports."""
        return serves_node_port(self.address, self.node, minor=self.world.minor, mode=self.world.mode)


# Words


def endpoint_words(q: Question, endpoints: tuple[ProxyEndpoint, ...], *, local: bool) -> str:
    """What is drawn from, in words."""
    terminating = q.selection.local_is_terminating if local else q.selection.cluster_is_terminating
    state = "serving, terminating" if terminating else "ready"
    where = f" with nodeName={KNOWN_AS}" if local else ""
    by = f" left by {q.selection.filtered_by}" if q.selection.filtered_by and not local else ""
    return f"{len(endpoints)} {state} endpoint{'' if len(endpoints) == 1 else 's'}{where}{by}"


def no_endpoint_words(q: Question) -> str:
    """Why there is no endpoint at all, in words."""
    selection, minor = q.selection, q.world.minor
    if not selection.listed:
        return f"no {selection.source} lists an endpoint for port {q.port.name or q.port.port}"
    if any(e.ready for e in selection.listed):  # up to 1.23: filtered by internalTrafficPolicy
        return f"spec.internalTrafficPolicy=Local and no ready endpoint with nodeName={KNOWN_AS}"
    count = len(selection.listed)
    words = (
        f"none of {count} listed endpoints is ready" if count > 1 else "the only listed endpoint is not ready"
    )
    if minor < 26 and any(e.is_usable_when_terminating for e in selection.listed):
        words += " (terminating endpoints are used since 1.26)"
    return words


def no_local_words(q: Question, *, policy: str = "externalTrafficPolicy") -> str:
    """Why a Local policy leaves nothing on this node, in words."""
    usable = "ready or serving" if q.world.minor >= 26 else "ready"
    return f"spec.{policy}=Local and no {usable} endpoint with nodeName={KNOWN_AS}"


# Fates


def unknown(why: str, *, passes: bool = False) -> Outcome:
    """An answer that the API objects do not hold."""
    return Outcome(
        symptom=Symptom.UNKNOWN, disposition=Disposition.UNDETERMINED, decided_by=why, passes=passes
    )


def served_under_local(q: Question) -> Outcome | None:
    """externalTrafficPolicy Local: pods and the node itself are let through to any endpoint, others to local ones.

    None where there is none for who asks.
    """
    everywhere, here = q.selection.cluster, q.selection.local
    if everywhere and q.source_is_pod:
        why = f"pods are sent past spec.externalTrafficPolicy=Local: {endpoint_words(q, everywhere, local=False)}"
        return delivered(q, everywhere, rewritten=False, why=why)
    if everywhere and q.source_is_local:
        why = (
            "the node itself is sent past spec.externalTrafficPolicy=Local: "
            f"{endpoint_words(q, everywhere, local=False)}"
        )
        return delivered(q, everywhere, rewritten=True, why=why)
    if here:
        why = f"spec.externalTrafficPolicy=Local: {endpoint_words(q, here, local=True)}"
        return delivered(q, here, rewritten=False, why=why)
    return None


def dropped(why: str) -> Outcome:
    """A rule drops the packet: the client waits in vain."""
    return Outcome(symptom=Symptom.TIMES_OUT, disposition=Disposition.DROPPED, decided_by=why)


def rejected(why: str) -> Outcome:
    """A rule answers with port unreachable, which a client of TCP, UDP or SCTP sees as "connection refused"."""
    return Outcome(symptom=Symptom.REFUSED, disposition=Disposition.REJECTED, decided_by=why)


def no_listener(why: str) -> Outcome:
    """The packet reaches the node's own stack, where nothing is taken to listen."""
    return Outcome(
        symptom=Symptom.REFUSED,
        disposition=Disposition.NO_LISTENER,
        decided_by=why,
        assumptions=(Assumption("no process of the node listens on that port", EvidenceKind.SOCKETS),),
    )


def passes(q: Question, why: str) -> Outcome:
    """The rules leave the packet alone: it goes where routing takes it, or to the node's own stack."""
    if not q.destination_is_local:
        return unknown(f"{why}: routing takes the packet as it is", passes=True)
    held = q.world.minor <= 23 and q.front_end.kind in {FrontEndKind.NODE_PORT, FrontEndKind.EXTERNAL_IP}
    protocol = q.front_end.protocol.upper()
    if held and protocol in {"TCP", "UDP"}:
        # Up to 1.23 kube-proxy holds the port with a socket on which it never accepts or reads.
        return Outcome(
            symptom=Symptom.CONNECTS if protocol == "TCP" else Symptom.TIMES_OUT,
            disposition=Disposition.HOST_PROCESS,
            decided_by=f"{why}: the socket with which kube-proxy holds the port takes it and never answers",
        )
    return no_listener(why)


def delivered(q: Question, chosen: tuple[ProxyEndpoint, ...], *, rewritten: bool, why: str) -> Outcome:
    """The packet goes to one of `chosen`, its source replaced by an address of this node where `rewritten`."""
    hairpins = _masquerades_every_hairpin(q)
    key = (id(chosen), rewritten, q.world.pods_masqueraded, hairpins, q.source_is_on_every_node)
    endpoints = q.fates.get(key)
    if endpoints is None:
        endpoints = tuple(_fate(q, endpoint, 1 / len(chosen), rewritten=rewritten) for endpoint in chosen)
        q.fates[key] = endpoints
    symptoms = {e.symptom for e in endpoints}
    dispositions = {e.disposition for e in endpoints}
    kept = {e.source_kept for e in endpoints}
    symptom = endpoints[0].symptom
    if len(symptoms) > 1:
        symptom = Symptom.UNKNOWN if Symptom.UNKNOWN in symptoms else Symptom.INTERMITTENT
    disposition = endpoints[0].disposition
    if len(dispositions) > 1:
        disposition = (
            Disposition.UNDETERMINED if Disposition.UNDETERMINED in dispositions else Disposition.DELIVERED
        )
    if Disposition.LOST in dispositions:
        if q.client.vantage is Vantage.LOCALHOST:
            why += "; but a packet from a loopback address does not leave the node"
            why += " (route_localnet=0)" if q.address.version == 4 else ""
        else:
            some = "" if dispositions == {Disposition.LOST} else " some of"
            why += f"; but the source is kept and{some} the replies do not come back through {HERE}"
    assumptions: tuple[Assumption, ...] = ()
    if q.client.vantage is Vantage.LOCALHOST and q.address.version == 4 and q.node.route_localnet is None:
        assumptions = (
            Assumption(
                "net.ipv4.conf.all.route_localnet is 1, as kube-proxy sets it",
                EvidenceKind.SYSCTLS,
                q.node.name,
            ),
        )
    return Outcome(
        symptom=symptom,
        disposition=disposition,
        decided_by=why,
        endpoints=endpoints,
        source_kept=kept.pop() if len(kept) == 1 else None,
        assumptions=assumptions,
    )


def _fate(q: Question, endpoint: ProxyEndpoint, probability: float, *, rewritten: bool) -> IntendedEndpoint:
    found = IntendedEndpoint(
        ip=endpoint.ip,
        port=endpoint.port,
        node=endpoint.node_name,
        pod=endpoint.pod,
        probability=probability,
        disposition=Disposition.DELIVERED,
        symptom=Symptom.CONNECTS,
        source_kept=False,
    )
    address = endpoint.address
    arrives_unchanged = not (q.client.vantage is Vantage.POD_OTHER_NODE and q.world.pods_masqueraded)
    if q.client.vantage is Vantage.LOCALHOST and not q.node.owns(address):
        # IPv4: __mkroute_output refuses a loopback source elsewhere without route_localnet; IPv6 has no such knob.
        if q.address.version == 6 or q.node.route_localnet is False:
            return replace(found, disposition=Disposition.LOST, symptom=Symptom.TIMES_OUT, source_kept=None)
    if q.node.owns(address) and not q.source_is_local:
        # Delivered to the node itself: the packet never meets POSTROUTING, so no mark is redeemed (seen in probes).
        return replace(found, source_kept=arrives_unchanged)
    if rewritten or (q.client.ip == address and _hairpin_is_masqueraded(q, endpoint)):
        return found
    on_this_node = endpoint.node_name == q.node.name
    if not on_this_node and _cni_masquerades(q, address):
        return found
    found = replace(found, source_kept=arrives_unchanged)
    source_is_here = q.source_is_local and not q.source_is_on_every_node
    if on_this_node or source_is_here or q.client.vantage is Vantage.POD_SAME_NODE:
        return found
    if endpoint.node_name is None:
        return replace(found, disposition=Disposition.UNDETERMINED, symptom=Symptom.UNKNOWN)
    # The endpoint answers the client straight: conntrack of this node never sees the reply, so the client gets it
    # from an address that it did not dial. Also where client and endpoint are on one node (seen in real probes).
    return replace(found, disposition=Disposition.LOST, symptom=Symptom.TIMES_OUT)


def _hairpin_is_masqueraded(q: Question, endpoint: ProxyEndpoint) -> bool:
    """Whether an endpoint that is drawn for itself gets its packet from the node's address.

    iptables: always (`-s endpoint -j KUBE-MARK-MASQ`); nftables up to 1.35 likewise; nftables 1.36
    (`hairpin-connections`) and ipvs (`KUBE-LOOP-BACK`) know only the endpoints on this node.
    """
    return _masquerades_every_hairpin(q) or endpoint.is_local


def _masquerades_every_hairpin(q: Question) -> bool:
    mode, minor = q.world.mode, q.world.minor
    return mode is ProxyMode.IPTABLES or (mode is ProxyMode.NFTABLES and minor <= 35)


def _cni_masquerades(q: Question, address: IPAddress) -> bool:
    """Whether the CNI's masquerading meets a packet of this node's pod after all: an endpoint outside the pod network.

    What a CNI masquerades is a pod's traffic to addresses outside the pod network, of which the endpoints are only
    those with `hostNetwork` and foreign ones.
    """
    if q.client.vantage is not Vantage.POD_SAME_NODE or not q.world.pods_masqueraded:
        return False
    networks = [n for n in (*q.node.cluster_cidrs, *q.node.pod_cidrs) if n.version == address.version]
    return bool(networks) and not any(address in network for network in networks)
