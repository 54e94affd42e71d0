"""What a rule, or an element of a map, of kube-proxy's or the kubelet's is for: one vocabulary for every back end.

A purpose is found by each back end's recogniser (`kube`, `nft_kube`); here it becomes a sentence. Facts: kube-proxy
since 1.18.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ktp.explain.words import percent
from ktp.kubeproxy.names import ChainRole, host_port
from ktp.model.ipvs import IPVS_INTERFACE

_CLUSTER_IP_ONLY = "marked for masquerading; concerns the cluster IP only, not node ports"
_ANY_SERVES = "the policy does not hold for them, any endpoint of the cluster serves"
_SELF = "source becomes an address of this node, for it would answer itself directly otherwise; concerns no one else"
_LOCAL_KEEPS = "under externalTrafficPolicy Local: back without a mark, so the client's address stays"
_OF_SET = "to any address of this node that has node ports"
_NO_LOOPBACK = "to any address of this node but loopback ones"
_AMONG_NODE_PORTS = "the port looked up among the node ports"
_AMONG_EMPTY = "looked up among those without usable endpoints"
_NOT_ALLOWED = "for loadBalancerSourceRanges do not allow the source"


class Aim(Enum):
    """What it is for. The value is the sentence; names in braces are a purpose's arguments."""

    ENTER = "{every}: on to {to}"
    # Which Service is dialled
    SEEK_NODE_PORT = f"to any address of this node: {_AMONG_NODE_PORTS}"
    SEEK_NODE_PORT_AT = "to {address}, an address of this node that has node ports: on to the node ports"
    SEEK_NODE_PORT_OF_SET = f"{_OF_SET}: {_AMONG_NODE_PORTS}"
    SEEK_NODE_PORT_NO_LOOPBACK = f"{_NO_LOOPBACK}: {_AMONG_NODE_PORTS}"
    SEEK_EMPTY_NODE_PORT_OF_SET = f"{_OF_SET}: the port {_AMONG_EMPTY}"
    SEEK_EMPTY_NODE_PORT_NO_LOOPBACK = f"{_NO_LOOPBACK}: the port {_AMONG_EMPTY}"
    SEEK_ADDRESS = "address, protocol and port looked up among cluster, external and load-balancer IPs"
    SEEK_EMPTY_ADDRESS = f"address, protocol and port {_AMONG_EMPTY}"
    SEEK_RANGES = "address, protocol and port looked up among those with loadBalancerSourceRanges"
    LEAD = "{front}: on to {chain}"
    LEAD_IF = "{front} (only {rest}): on to {chain}"
    LEAD_COUNTED = "{front}, dialled on a loopback address ({address}): counted, then on to {chain}"
    # The policy of external traffic
    SPARE_OWN = f"from this node's own processes: {_ANY_SERVES}"
    SPARE_PODS = f"from pods ({{source}}): {_ANY_SERVES}"
    SPARE_PODS_BY_DEVICE = f"{{conditions}} (pods): {_ANY_SERVES}"
    CLUSTER_POLICY = "externalTrafficPolicy Cluster: any endpoint of the cluster serves"
    LOCAL_POLICY = "everyone else: externalTrafficPolicy Local, only endpoints on this node serve"
    NO_LOCAL_MARKED = (
        "everyone else: externalTrafficPolicy Local, and no usable endpoint of the Service runs on this node: "
        "marked to be dropped"
    )
    # The choice of an endpoint
    DRAW = "endpoint {endpoint}, for {share} of what gets here, drawn at random"
    DRAW_LAST = "endpoint {endpoint}, for all that is left"
    DRAW_LOCAL = (
        "externalTrafficPolicy Local: endpoint {endpoint}, for {share} of what gets here, drawn at random"
    )
    DRAW_LOCAL_LAST = "externalTrafficPolicy Local: endpoint {endpoint}, for all that is left"
    DRAW_ONE = "one of {count} endpoints, each for {share} of what gets here, drawn at random"
    DRAW_ONLY = "endpoint {endpoint}, the only one"
    STAY = "session affinity: a client that {endpoint} served{within} stays with it"
    NOTE_CLIENT = "session affinity: notes that {endpoint} serves this client"
    STAYS = "this client stays with endpoint {endpoint}{within}"
    TRANSLATE = "destination becomes {endpoint} (DNAT)"
    TRANSLATE_ONLY = "destination becomes {endpoint} (DNAT), the only endpoint"
    TRANSLATE_NOTED = "destination becomes {endpoint} (DNAT); the client is noted for session affinity"
    # Source addresses
    MASQ_OUTSIDE = f"{{front}} dialled from outside the pod network {{source}}: {_CLUSTER_IP_ONLY}"
    MASQ_NO_POD = f"{{front}} dialled by others than pods: {_CLUSTER_IP_ONLY}"
    MASQ_ANYONE = f"{{front}} dialled by anyone: {_CLUSTER_IP_ONLY}"
    MASQ_ADDRESS = "{front}: masquerades the connections of every client; decides nothing else"
    MASQ_FROM_CLUSTER_IP = (
        "a cluster IP of a Service as the source: the node's own process, whose packet the kernel gave such an "
        "address: marked for masquerading"
    )
    MASQ_LOOPBACK = (
        "masquerades packets with a loopback source ({source}), for an answer could not find back to them; grants and "
        "denies nothing: all other packets just pass by this rule"
    )
    MASQ_POLICY = (
        "externalTrafficPolicy Cluster: the client's address is replaced on the way out, and the endpoint sees this "
        "node's"
    )
    MASQ_FRONT = (
        "{front}: externalTrafficPolicy Cluster, so the client's address is replaced on the way out and the endpoint "
        "sees this node's"
    )
    MASQ_OWN = "from this node's own processes: masquerade (their packets may go to endpoints on other nodes)"
    MASQ_SELF = "masquerades the endpoint's connections to itself ({endpoint}); concerns no one else"
    SNAT_SELF = f"an endpoint that dials itself through its Service: {_SELF}"
    DIALS_ITSELF = "endpoint {endpoint} dials itself"
    MARK_MASQ = "{action}: {to} will replace the source address of this packet"
    UNMARKED = "not marked for masquerading: keeps its source address, done here"
    MASQUERADE = "marked for masquerading: source becomes an address of this node"
    UNMARK = "the mark has served: taken off again"
    # loadBalancerSourceRanges
    RANGES_CHECK = "to a load-balancer IP with loadBalancerSourceRanges: on to {to}"
    RANGES_HAS = "{front}: has loadBalancerSourceRanges"
    RANGES_LEAD = "from {source}, which loadBalancerSourceRanges allows: on to {chain}"
    RANGES_NONE = "no source ranges are set: on to {chain}"
    RANGES_RETURN = "from a source that loadBalancerSourceRanges allow: back, on its way"
    RANGES_MAY = "this source may dial it"
    RANGES_MARK = (
        "every other source: outside loadBalancerSourceRanges (or no local endpoint), marked to be dropped"
    )
    RANGES_MARK_REST = "whatever no rule above took (no local endpoint): marked to be dropped"
    RANGES_MARK_OTHERS = f"everyone else: marked to be dropped, {_NOT_ALLOWED}"
    RANGES_DROP_OTHERS = f"everyone else: dropped, {_NOT_ALLOWED}"
    RANGES_DROP_OF = "{conditions} (loadBalancerSourceRanges of {service}): dropped"
    RANGES_DROP = (
        "drops what dials the {front} from outside its loadBalancerSourceRanges: KUBE-FW let the allowed sources go on "
        "to the endpoints before"
    )
    RANGES_DROP_OWN = (
        "a process of this node that dials the {front} and so has that address as its source: dropped, for "
        "loadBalancerSourceRanges do not allow this node"
    )
    RANGES_NOTE = (
        "only a note: whatever else dials {service} is dropped by KUBE-PROXY-FIREWALL in the filter table"
    )
    # Front ends without endpoints
    NO_ENDPOINT = "{front}: refused, for the Service has no usable endpoint on any node"
    NO_LOCAL_INTERNAL = (
        "{front}: dropped; internalTrafficPolicy Local, and no usable endpoint runs on this node"
    )
    NO_LOCAL = (
        "{front}: dropped; externalTrafficPolicy Local, and no usable endpoint runs on this node. Pods and this node's "
        "own processes do not get here: their packets went on to an endpoint before"
    )
    NO_LOCAL_EARLY = (
        "{front}: dropped; externalTrafficPolicy Local, and no usable endpoint runs on this node. This node's own "
        "processes are dropped too: kube-proxy up to {until} checks what they send before it would send them to an "
        "endpoint"
    )
    REFUSE = "refused: the client sees 'connection refused'"
    NO_SUCH_PORT = "still addressed to a cluster IP, so to a port that its Service does not have: refused"
    NO_SUCH_ADDRESS = "{conditions}, an address that no Service has: dropped"
    # What is dropped or let through, whatever is dialled
    MARK_DROP = "{action}: KUBE-FIREWALL in the filter table drops packets with this mark"
    MARK_DROP_IN_VAIN = "{action}: to be dropped, but no rule of KUBE-FIREWALL drops such packets"
    DROP_MARKED = "drops packets that KUBE-MARK-DROP marked"
    DROP_LOOPBACK = (
        "drops packets from outside to loopback addresses; does not concern connections to node addresses"
    )
    DROP_INVALID = (
        "drops packets that belong to no known connection (invalid); does not concern a new connection"
    )
    ACCEPT_MARKED = "accepts packets marked for masquerading"
    ACCEPT_OPEN = "accepts packets of connections that are already open, and answers"
    HEALTH_CHECK = "lets the load balancer's health checks of {service} in (port {port})"
    HEALTH_CHECKS = "lets the load balancers' health checks in"
    # IPVS mode
    IPVS_NODE_PORTS = "to any address of this node: on to the marks for node ports"
    IPVS_LOAD_BALANCERS = "load-balancer IPs: on to their marks"
    IPVS_LOOPBACK = "{conditions}: back, nothing of this is for loopback sources"
    IPVS_ACCEPT = "{set}: accepted here; IPVS comes later"
    IPVS_MASQ = "{set}: marked for masquerading"
    IPVS_NODE_PORTS_LOCAL = f"node ports {_LOCAL_KEEPS}"
    IPVS_NODE_PORTS_MASQ = (
        "node ports: marked for masquerading (externalTrafficPolicy Cluster; those under Local went back "
        "before)"
    )
    IPVS_LOAD_BALANCERS_LOCAL = f"load-balancer IPs {_LOCAL_KEEPS}"
    IPVS_OTHERS_MASQ = "all others (externalTrafficPolicy Cluster): marked for masquerading"
    IPVS_OWN = "a Service's own address and port ({set}): back, on its way"
    IPVS_FOREIGN = (
        f"an address of {IPVS_INTERFACE} with a port that no Service has: refused, so that the node's own services do "
        "not answer there"
    )
    NO_REAL_SERVER = "{conditions}: refuses, for it has no real server to send to"
    NO_BACKEND = "{conditions}: no backend"
    # Elements of other sets
    HAS_NODE_PORTS = "has node ports"
    IS_CLUSTER_IP = "a cluster IP"

    @property
    def tells_conditions(self) -> bool:
        """Whether its sentence has the conditions of the rule in it."""
        return self in _CONDITIONAL

    @property
    def stops(self) -> bool:
        """Whether it drops or refuses packets."""
        return self in _STOPS

    @property
    def keeps_source(self) -> bool:
        """Whether it spares front ends under externalTrafficPolicy Local from masquerading."""
        return self in (Aim.IPVS_NODE_PORTS_LOCAL, Aim.IPVS_LOAD_BALANCERS_LOCAL)

    @property
    def marks_for_drop(self) -> bool:
        """Whether it marks packets that are to be dropped later."""
        return self in _MARKS_FOR_DROP


_RANGES_WHY = "loadBalancerSourceRanges of {service} do not allow this client"
_NO_LOCAL_WHY = "externalTrafficPolicy of {service} is Local, and no usable endpoint of it runs on this node"
_INVALID = "no Service has this address and port: {words}"
# Why a packet ended that met it, where that is another sentence.
_WHY = {
    Aim.NO_ENDPOINT: "{service} has no usable endpoint on any node",
    Aim.NO_LOCAL: _NO_LOCAL_WHY,
    Aim.NO_LOCAL_EARLY: _NO_LOCAL_WHY,
    Aim.NO_LOCAL_MARKED: _NO_LOCAL_WHY,
    Aim.RANGES_MARK_REST: _NO_LOCAL_WHY,
    Aim.NO_LOCAL_INTERNAL: (
        "internalTrafficPolicy of {service} is Local, and no usable endpoint of it runs on this node"
    ),
    Aim.RANGES_MARK: _RANGES_WHY,
    Aim.RANGES_MARK_OTHERS: _RANGES_WHY,
    Aim.RANGES_DROP_OTHERS: _RANGES_WHY,
    Aim.RANGES_DROP_OF: _RANGES_WHY,
    Aim.RANGES_DROP: _RANGES_WHY,
    Aim.RANGES_DROP_OWN: _RANGES_WHY,
    Aim.NO_BACKEND: "Cilium's front end of {service} has no backend",
    Aim.NO_REAL_SERVER: (
        "the virtual server has no real server that takes connections: {service} has no usable endpoint on any node, "
        "or (kube-proxy up to 1.23, externalTrafficPolicy Local) none on this node"
    ),
    Aim.NO_SUCH_PORT: _INVALID,
    Aim.NO_SUCH_ADDRESS: _INVALID,
}
_MARKS_FOR_DROP = frozenset(
    (Aim.NO_LOCAL_MARKED, Aim.RANGES_MARK, Aim.RANGES_MARK_REST, Aim.RANGES_MARK_OTHERS)
)
_STOPS = frozenset(_WHY) - _MARKS_FOR_DROP | {
    Aim.REFUSE,
    Aim.DROP_MARKED,
    Aim.DROP_LOOPBACK,
    Aim.DROP_INVALID,
    Aim.IPVS_FOREIGN,
}
_CONDITIONAL = frozenset(
    aim for aim in Aim if any(name in aim.value for name in ("{every}", "{conditions}", "{rest}"))
)
_CHAINS = {
    ChainRole.EXTERNAL_LOCAL_OLD: "its chain for external traffic under policy Local",
    ChainRole.EXTERNAL: "its chain for external traffic",
    ChainRole.LOAD_BALANCER_FIREWALL: "its check of source ranges",
    ChainRole.SERVICE_LOCAL: "the choice among its endpoints on this node",
    ChainRole.SERVICE: "the choice among all its endpoints",
}


_IPSETS = {
    "LOOP-BACK": "endpoints of this node that dial themselves through their Service",
    "CLUSTER-IP": "cluster IPs with their ports",
    "EXTERNAL-IP": "external IPs under externalTrafficPolicy Cluster",
    "EXTERNAL-IP-LOCAL": "external IPs under externalTrafficPolicy Local",
    "LOAD-BALANCER": "load-balancer IPs with their ports",
    "LOAD-BALANCER-LOCAL": "load-balancer IPs under externalTrafficPolicy Local",
    "LOAD-BALANCER-FW": "load-balancer IPs with loadBalancerSourceRanges",
    "LOAD-BALANCER-SOURCE-IP": "load-balancer IPs with the addresses that may dial them",
    "LOAD-BALANCER-SOURCE-CID": "load-balancer IPs with the networks that may dial them",
    "NODE-PORT-TCP": "node ports (TCP)",
    "NODE-PORT-UDP": "node ports (UDP)",
    "NODE-PORT-SCTP": "node ports (SCTP)",
    "NODE-PORT-LOCAL-TCP": "node ports under externalTrafficPolicy Local (TCP)",
    "NODE-PORT-LOCAL-UDP": "node ports under externalTrafficPolicy Local (UDP)",
    "NODE-PORT-LOCAL-SCTP": "node ports under externalTrafficPolicy Local (SCTP)",
    "HEALTH-CHECK-NODE-PORT": "ports of the load balancers' health checks",
    "IPVS-IPS": f"the addresses of {IPVS_INTERFACE}",
}


class FrontKind(Enum):
    """What is dialled, as far as a rule or element tells it."""

    NODE_PORT = "node port "
    CLUSTER_IP = "cluster IP "
    LOAD_BALANCER_IP = "load-balancer IP "
    EXTERNAL_IP = "external IP "
    EXTERNAL = "external or load-balancer IP "
    SERVICE_ADDRESS = "Service address "
    ADDRESS = ""


class Front(NamedTuple):
    """A front end of a Service; None is what is not told. `address` is None of a node port, too."""

    kind: FrontKind
    address: str | None = None
    port: int | None = None
    protocol: str | None = None

    @property
    def words(self) -> str:
        """`cluster IP 10.96.0.10:80/tcp`, `node port 31015/tcp`, `a cluster IP`."""
        if self.address is None and self.port is None:
            return f"a {self.kind.value.strip()}"
        if self.kind is FrontKind.NODE_PORT or self.address is None:
            return f"{self.kind.value}{self.port}/{self.protocol or '?'}"
        where = host_port(self.address, self.port) if self.port is not None else self.address
        return f"{self.kind.value}{where}" + (f"/{self.protocol}" if self.protocol else "")


class Purpose(NamedTuple):
    """An aim and its arguments.

    `service` is `namespace/name:port`, `source` a network or address, `to` the chain that it leads to (`role` what that
    is for), `endpoint` `ip:port`, `share` the part of the packets that are drawn, `seconds` how long a client stays,
    `set_name` an ipset, `until` the last version that did so.
    """

    aim: Aim
    front: Front | None = None
    service: str | None = None
    source: str = ""
    to: str = ""
    role: ChainRole | None = None
    endpoint: str | None = None
    share: float | None = None
    seconds: str = ""
    set_name: str = ""
    until: str = ""

    @property
    def pod_network(self) -> str:
        """The pods' network as kube-proxy detects it, where the rule tells pods by one; "" otherwise."""
        bits = self.source.partition("/")[2] if self.aim in (Aim.SPARE_PODS, Aim.MASQ_OUTSIDE) else ""
        return self.source if bits.isdigit() and int(bits) < (128 if ":" in self.source else 32) else ""

    def words(self, *, conditions: str = "", action: str = "", brief: bool = False) -> str:
        """The sentence. `conditions` and `action` are its rule's in words; `brief` leaves out what the chain is for."""
        service = self.service or "the Service"
        front = ""
        if self.front is not None:
            has_name = self.front.address is not None or self.front.port is not None
            front = self.front.words + (f" of {service}" if has_name else "")
        within = f" within {self.seconds} s" if self.aim is Aim.STAY else f", for another {self.seconds} s"
        words = self.aim.value.format(
            every=self._every(conditions),
            conditions=conditions,
            rest=conditions.partition(", ")[2],  # without the address dialled
            action=action or "marked for masquerading",
            to=self.to,
            chain=_CHAINS.get(self.role, self.to) if self.role is not None else self.to,
            front=front,
            service=service,
            port=self.front.port if self.front is not None else None,
            source=self.source,
            address=self.front.address if self.front is not None else "",
            endpoint=self.endpoint or "the endpoint",
            share=percent(self.share) if self.share is not None else "",
            count=round(1 / self.share) if self.share else 0,
            within=within if self.seconds else "",
            set=self.set_name and (ipset_words("KUBE-" + self.set_name) or self.set_name),
            until=self.until,
        )
        if self.aim is Aim.ENTER and self.role is not None and not brief:
            words += f", which {self.role.words}"
        return words

    def _every(self, conditions: str) -> str:
        """Whom a base chain's rule is for: nat sees only the first packet of a connection."""
        which = "new connection" if self.source == "nat" else "packet"
        return f"{which}s {conditions}" if conditions else f"every {which}"

    def why(self, service: str, words: str) -> str:
        """Why a packet ended that met it; `words` is its sentence, `service` is whose where it does not tell itself."""
        return _WHY.get(self.aim, "{words}").format(service=self.service or service, words=words)


def ipset_words(name: str) -> str:
    """What one of kube-proxy's ipsets holds; IPv6 names are cut to 31 characters."""
    short = name.removeprefix("KUBE-").removeprefix("6-")
    if short in _IPSETS:
        return _IPSETS[short]
    # Longest first: NODE-PORT-TCP begins as NODE-PORT-LOCAL-TCP does not, LOAD-BALANCER as all of them.
    return next(
        (
            w
            for n, w in sorted(_IPSETS.items(), key=lambda i: -len(i[0]))
            if name.startswith("KUBE-") and (short.startswith(n) or n.startswith(short))
        ),
        "",
    )
