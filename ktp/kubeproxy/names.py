"""Names that kube-proxy gives to chains, maps and sets, and what each of them is for.

Sources: `pkg/proxy/iptables/proxier.go` (`portProtoHash`, `servicePortEndpointChainName`),
`pkg/proxy/nftables/proxier.go` (`hashAndTruncate`), kube-proxy since 1.18.
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.model.cluster import Service, ServicePort
    from ktp.model.ruleset import Ruleset

# Chains with fixed names, `pkg/proxy/iptables/proxier.go` and `pkg/proxy/ipvs/proxier.go`.
KUBE_SERVICES = "KUBE-SERVICES"
KUBE_EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
KUBE_NODEPORTS = "KUBE-NODEPORTS"
KUBE_POSTROUTING = "KUBE-POSTROUTING"
KUBE_MARK_MASQ = "KUBE-MARK-MASQ"
KUBE_MARK_DROP = "KUBE-MARK-DROP"
KUBE_FORWARD = "KUBE-FORWARD"
KUBE_FIREWALL = "KUBE-FIREWALL"
KUBE_PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBE_PROXY_CANARY = "KUBE-PROXY-CANARY"
KUBE_KUBELET_CANARY = "KUBE-KUBELET-CANARY"
KUBE_IPTABLES_HINT = "KUBE-IPTABLES-HINT"
KUBE_NODE_PORT = "KUBE-NODE-PORT"
KUBE_LOAD_BALANCER = "KUBE-LOAD-BALANCER"
KUBE_SOURCE_RANGES_FIREWALL = "KUBE-SOURCE-RANGES-FIREWALL"
KUBE_IPVS_FILTER = "KUBE-IPVS-FILTER"
KUBE_IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"

# Prefixes of the chains that each service port or endpoint has of its own.
SVC_PREFIX = "KUBE-SVC-"
SVL_PREFIX = "KUBE-SVL-"
EXT_PREFIX = "KUBE-EXT-"
XLB_PREFIX = "KUBE-XLB-"
FW_PREFIX = "KUBE-FW-"
SEP_PREFIX = "KUBE-SEP-"

NFT_TABLE = "kube-proxy"
NFT_SERVICE_PREFIX = "service-"
NFT_LOCAL_PREFIX = "local-"
NFT_EXTERNAL_PREFIX = "external-"
NFT_ENDPOINT_PREFIX = "endpoint-"
NFT_FIREWALL_PREFIX = "firewall-"
NFT_AFFINITY_PREFIX = "affinity-"

_SUFFIX_LENGTH = 16
_NFT_HASH_LENGTH = 8
_NFT_BASE_MAX = 240  # knftables.NameLengthMax 256, less 16 for the prefix


def is_kube_table(family: str, name: str) -> bool:
    """Whether an nftables table is kube-proxy's."""
    return name == NFT_TABLE and family in ("ip", "ip6")


def service_port_string(namespace: str, service: str, port_name: str, *, legacy_unnamed: bool = False) -> str:
    """`ServicePortName.String()`: `ns/name:port`, or `ns/name` for an unnamed port.

    kube-proxy up to 1.18 keeps the colon of an unnamed port (`legacy_unnamed`).
    """
    if port_name or legacy_unnamed:
        return f"{namespace}/{service}:{port_name}"
    return f"{namespace}/{service}"


def host_port(ip: str, port: int) -> str:
    """`ip:port`, an IPv6 address in brackets (Go's `net.JoinHostPort`)."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


@lru_cache(maxsize=4096)
def _suffix(text: str) -> str:
    from hashlib import sha256  # OpenSSL, which most questions to a dump never need

    return b32encode(sha256(text.encode()).digest()).decode()[:_SUFFIX_LENGTH]


def service_suffix(service_port: str, protocol: str) -> str:
    """What the SVC, SVL, EXT, XLB and FW chains of one service port share (`portProtoHash`)."""
    return _suffix(service_port + protocol.lower())


def endpoint_suffix(service_port: str, protocol: str, ip: str, port: int) -> str:
    """What follows `KUBE-SEP-` for one endpoint of a service port."""
    return _suffix(service_port + protocol.lower() + host_port(ip, port))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceChains:
    """The iptables chains that a service port may have, in nat. iptables and ip6tables share the names."""

    svc: str
    svl: str  # 1.24 and later
    ext: str  # 1.24 and later
    xlb: str  # up to 1.23
    fw: str


def service_chains(service_port: str, protocol: str) -> ServiceChains:
    """The chain names of a service port, whether or not its version and policy make them exist."""
    suffix = service_suffix(service_port, protocol)
    return ServiceChains(
        svc=SVC_PREFIX + suffix,
        svl=SVL_PREFIX + suffix,
        ext=EXT_PREFIX + suffix,
        xlb=XLB_PREFIX + suffix,
        fw=FW_PREFIX + suffix,
    )


def endpoint_chain(service_port: str, protocol: str, ip: str, port: int) -> str:
    """`KUBE-SEP-…` of one endpoint of a service port."""
    return SEP_PREFIX + endpoint_suffix(service_port, protocol, ip, port)


def service_port_strings(service: Service, port: ServicePort) -> tuple[str, ...]:
    """Every servicePortString that some version gives this port: two where it is unnamed, else one."""
    current = service_port_string(service.namespace, service.name, port.name)
    if port.name:
        return (current,)
    return (current, service_port_string(service.namespace, service.name, "", legacy_unnamed=True))


def split_service_chain(chain: str) -> tuple[str, str] | None:
    """(prefix, suffix) of a chain that belongs to one service port or endpoint, None for any other chain."""
    for prefix in (SVC_PREFIX, SVL_PREFIX, EXT_PREFIX, XLB_PREFIX, FW_PREFIX, SEP_PREFIX):
        suffix = chain[len(prefix) :]
        if chain.startswith(prefix) and len(suffix) == _SUFFIX_LENGTH:
            return prefix, suffix
    return None


# nftables mode


def _hash_and_truncate(base: str) -> str:
    from hashlib import sha256

    name = b32encode(sha256(base.encode()).digest()).decode()[:_NFT_HASH_LENGTH] + "-" + base
    return name if len(name) <= _NFT_BASE_MAX else name[: _NFT_BASE_MAX - 3] + "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class NftServiceChains:
    """The chains of a service port in the tables `ip kube-proxy` and `ip6 kube-proxy` (1.29 and later)."""

    service: str
    local: str
    external: str
    firewall: str  # 1.30 and later


def nft_service_chains(namespace: str, service: str, protocol: str, port_name: str) -> NftServiceChains:
    """The nftables chain names of a service port (`servicePortChainNameBase`)."""
    base = _hash_and_truncate(f"{namespace}/{service}/{protocol.lower()}/{port_name}")
    return NftServiceChains(
        service=NFT_SERVICE_PREFIX + base,
        local=NFT_LOCAL_PREFIX + base,
        external=NFT_EXTERNAL_PREFIX + base,
        firewall=NFT_FIREWALL_PREFIX + base,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NftEndpointNames:
    """The chain and the affinity set of an endpoint. 1.36 has the chain only with session affinity."""

    chain: str
    affinity_set: str


def nft_endpoint_names(
    namespace: str, service: str, protocol: str, port_name: str, ip: str, port: int
) -> NftEndpointNames:
    """The nftables names of one endpoint (`servicePortEndpointChainNameBase`); IPv6 colons become dots."""
    address = ip.replace(":", ".")
    base = _hash_and_truncate(f"{namespace}/{service}/{protocol.lower()}/{port_name}__{address}/{port}")
    return NftEndpointNames(chain=NFT_ENDPOINT_PREFIX + base, affinity_set=NFT_AFFINITY_PREFIX + base)


# What a chain is for


class ChainRole(Enum):
    """What a chain that Kubernetes owns is for, in words."""

    SERVICES_NAT = "sorts packets by what they dial: cluster IPs, external and load-balancer IPs, node ports"
    SERVICES_FILTER = "refuses or drops packets to cluster IPs of Services without usable endpoints"
    EXTERNAL_SERVICES = "refuses or drops packets to external front ends without usable endpoints"
    NODEPORTS_NAT = "picks the Service whose node port was dialled"
    NODEPORTS_FILTER = "accepts the load balancer's health checks"
    POSTROUTING = "gives marked packets a source address of this node"
    MARK_MASQ = "marks a packet whose source address is to be replaced on its way out"
    MARK_DROP = "marks a packet that is to be dropped in the filter table"
    FORWARD = "accepts forwarded packets of Services and drops invalid ones"
    FIREWALL_FILTER = "drops packets marked for it, and packets from outside to loopback addresses"
    FIREWALL_IPVS = "marks packets outside the Service's loadBalancerSourceRanges for dropping"
    PROXY_FIREWALL = "drops packets outside the Service's loadBalancerSourceRanges"
    SERVICE = "chooses among all endpoints of one service port"
    SERVICE_LOCAL = "chooses among the endpoints of one service port on this node"
    EXTERNAL = "takes external traffic of one service port and applies its externalTrafficPolicy"
    EXTERNAL_LOCAL_OLD = (
        "takes external traffic of one service port whose externalTrafficPolicy is Local (up to 1.23)"
    )
    LOAD_BALANCER_FIREWALL = "takes load-balancer traffic of one service port and checks its source ranges"
    ENDPOINT = "sends packets to one endpoint"
    CANARY = "holds nothing: if it vanishes, its owner knows that the rules were flushed"
    HINT = "holds nothing: shows which back end (legacy or nft) the kubelet uses"
    IPVS_NODE_PORT_NAT = "marks node port traffic for masquerading, save that of Local Services (IPVS mode)"
    IPVS_NODE_PORT_FILTER = "accepts the load balancer's health checks (IPVS mode)"
    IPVS_LOAD_BALANCER = "marks load-balancer traffic for masquerading (IPVS mode)"
    IPVS_SOURCE_RANGES = "lets the sources of loadBalancerSourceRanges pass and drops the rest (IPVS mode)"
    IPVS_FILTER = "keeps the node's own services from answering on Service addresses (IPVS mode)"
    IPVS_OUT_FILTER = "as KUBE-IPVS-FILTER, for packets of the node itself (IPVS mode)"
    NODEPORT_CHECK = "stops packets to node ports without usable endpoints"
    SERVICE_CHECK = "stops packets to cluster, external and load-balancer IPs without usable endpoints"
    ENDPOINTS_CHECK = "stops packets to front ends without usable endpoints"
    FIREWALL_CHECK = "applies loadBalancerSourceRanges"
    FIREWALL_ALLOW_CHECK = "lets the sources of loadBalancerSourceRanges pass and drops the rest"
    CLUSTER_IPS_CHECK = "stops packets that are still addressed to a cluster IP, which no node has"
    SERVICE_FIREWALL = "drops load-balancer traffic of one service port from outside its source ranges"
    REJECT = "refuses packets"
    INVALID = "drops packets that belong to no connection"
    CHECKS_BEFORE_DNAT = "kube-proxy's checks before destination NAT"
    CHECKS_OF_SENT_BEFORE_DNAT = (
        "kube-proxy's checks before destination NAT, of what this node's own processes send"
    )
    CHECKS_OF_SENT_AFTER_DNAT = (
        "kube-proxy's checks after destination NAT, of what this node's own processes send"
    )
    CHECKS_OF_RECEIVED = "kube-proxy's checks of what this node's own processes receive"
    CHECKS_OF_FORWARDED = "kube-proxy's checks of what passes through this node"
    CHECKS_OF_SENT = "kube-proxy's checks of what this node's own processes send"
    DNAT_OF_ARRIVING = "kube-proxy's destination NAT for what arrives from outside and from pods"
    DNAT_OF_SENT = "kube-proxy's destination NAT for what this node's own processes send"
    SNAT_OF_LEAVING = "kube-proxy's source NAT for what leaves"

    @property
    def words(self) -> str:
        """The role as the end of a sentence that starts with the chain's name."""
        return self.value

    @property
    def is_per_service(self) -> bool:
        """Whether each service port, or each endpoint, has a chain of its own with this role."""
        return self in _PER_SERVICE


_ROLE_OF_NAME: Mapping[str, ChainRole] = {
    KUBE_EXTERNAL_SERVICES: ChainRole.EXTERNAL_SERVICES,
    KUBE_POSTROUTING: ChainRole.POSTROUTING,
    KUBE_MARK_MASQ: ChainRole.MARK_MASQ,
    KUBE_MARK_DROP: ChainRole.MARK_DROP,
    KUBE_FORWARD: ChainRole.FORWARD,
    KUBE_PROXY_FIREWALL: ChainRole.PROXY_FIREWALL,
    KUBE_PROXY_CANARY: ChainRole.CANARY,
    KUBE_KUBELET_CANARY: ChainRole.CANARY,
    KUBE_IPTABLES_HINT: ChainRole.HINT,
    KUBE_LOAD_BALANCER: ChainRole.IPVS_LOAD_BALANCER,
    KUBE_SOURCE_RANGES_FIREWALL: ChainRole.IPVS_SOURCE_RANGES,
    KUBE_IPVS_FILTER: ChainRole.IPVS_FILTER,
    KUBE_IPVS_OUT_FILTER: ChainRole.IPVS_OUT_FILTER,
}
_ROLE_OF_TABLE_AND_NAME: Mapping[tuple[str, str], ChainRole] = {
    ("nat", KUBE_SERVICES): ChainRole.SERVICES_NAT,
    ("filter", KUBE_SERVICES): ChainRole.SERVICES_FILTER,
    ("nat", KUBE_NODEPORTS): ChainRole.NODEPORTS_NAT,
    ("filter", KUBE_NODEPORTS): ChainRole.NODEPORTS_FILTER,
    ("nat", KUBE_FIREWALL): ChainRole.FIREWALL_IPVS,
    ("filter", KUBE_FIREWALL): ChainRole.FIREWALL_FILTER,
    ("nat", KUBE_NODE_PORT): ChainRole.IPVS_NODE_PORT_NAT,
    ("filter", KUBE_NODE_PORT): ChainRole.IPVS_NODE_PORT_FILTER,
}
_ROLE_OF_PREFIX: Mapping[str, ChainRole] = {
    SVC_PREFIX: ChainRole.SERVICE,
    SVL_PREFIX: ChainRole.SERVICE_LOCAL,
    EXT_PREFIX: ChainRole.EXTERNAL,
    XLB_PREFIX: ChainRole.EXTERNAL_LOCAL_OLD,
    FW_PREFIX: ChainRole.LOAD_BALANCER_FIREWALL,
    SEP_PREFIX: ChainRole.ENDPOINT,
}


def role_of_chain(table: str, chain: str) -> ChainRole | None:
    """What `chain` of `table` is for, None where Kubernetes does not own a chain of that name there."""
    role = _ROLE_OF_TABLE_AND_NAME.get((table, chain)) or _ROLE_OF_NAME.get(chain)
    if role is None and (parts := split_service_chain(chain)) is not None:
        return _ROLE_OF_PREFIX[parts[0]]
    return role


_PER_SERVICE = frozenset((*_ROLE_OF_PREFIX.values(), ChainRole.SERVICE_FIREWALL))
_ROLE_OF_NFT_NAME: Mapping[str, ChainRole] = {
    "services": ChainRole.SERVICES_NAT,
    "nodeport-endpoints-check": ChainRole.NODEPORT_CHECK,
    "service-endpoints-check": ChainRole.SERVICE_CHECK,
    "endpoints-check": ChainRole.ENDPOINTS_CHECK,
    "firewall-check": ChainRole.FIREWALL_CHECK,
    "firewall-allow-check": ChainRole.FIREWALL_ALLOW_CHECK,
    "cluster-ips-check": ChainRole.CLUSTER_IPS_CHECK,
    "masquerading": ChainRole.POSTROUTING,
    "mark-for-masquerade": ChainRole.MARK_MASQ,
    "reject-chain": ChainRole.REJECT,
    "forward": ChainRole.INVALID,
    "filter-prerouting": ChainRole.CHECKS_BEFORE_DNAT,
    "filter-prerouting-pre-dnat": ChainRole.CHECKS_BEFORE_DNAT,
    "filter-output-pre-dnat": ChainRole.CHECKS_OF_SENT_BEFORE_DNAT,
    "filter-output-post-dnat": ChainRole.CHECKS_OF_SENT_AFTER_DNAT,
    "filter-input": ChainRole.CHECKS_OF_RECEIVED,
    "filter-forward": ChainRole.CHECKS_OF_FORWARDED,
    "filter-output": ChainRole.CHECKS_OF_SENT,
    "nat-prerouting": ChainRole.DNAT_OF_ARRIVING,
    "nat-output": ChainRole.DNAT_OF_SENT,
    "nat-postrouting": ChainRole.SNAT_OF_LEAVING,
}
_ROLE_OF_NFT_PREFIX: Mapping[str, ChainRole] = {
    NFT_SERVICE_PREFIX: ChainRole.SERVICE,
    NFT_LOCAL_PREFIX: ChainRole.SERVICE_LOCAL,
    NFT_EXTERNAL_PREFIX: ChainRole.EXTERNAL,
    NFT_ENDPOINT_PREFIX: ChainRole.ENDPOINT,
    NFT_FIREWALL_PREFIX: ChainRole.SERVICE_FIREWALL,
}


def role_of_nft_chain(chain: str) -> ChainRole | None:
    """What a chain of kube-proxy's nftables tables is for, None where kube-proxy makes none of that name."""
    fixed = _ROLE_OF_NFT_NAME.get(chain)
    return fixed or next((r for p, r in _ROLE_OF_NFT_PREFIX.items() if chain.startswith(p)), None)


# Which generation of rules


class RuleFamily(Enum):
    """A generation of kube-proxy's iptables rules, by the chains of external traffic."""

    LE_1_23 = "XLB"
    V1_24 = "transition"
    GE_1_25 = "EXT"


def detect_family(chain_names: Iterable[str], ruleset: Ruleset | None = None) -> RuleFamily | None:
    """The generation of the rules whose nat chains are `chain_names`, None where they do not tell.

    KUBE-EXT- or KUBE-SVL- come with 1.24, KUBE-PROXY-FIREWALL (filter) with 1.25; KUBE-XLB- ends with 1.23, though
    a newer kube-proxy may leave some behind for a moment. `ruleset` is asked for single filter chains only.
    """
    newer = older = firewall = False
    for name in chain_names:
        if name.startswith((EXT_PREFIX, SVL_PREFIX)):
            newer = True
        elif name.startswith(XLB_PREFIX):
            older = True
        elif name == KUBE_PROXY_FIREWALL:
            firewall = True
    if older and not newer:
        return RuleFamily.LE_1_23
    if firewall or (ruleset is not None and ruleset.chain("filter", KUBE_PROXY_FIREWALL) is not None):
        return RuleFamily.GE_1_25
    if not newer or ruleset is None:
        return None
    # An iptables-save always lists all of filter; a node asked chain by chain may not know it.
    return RuleFamily.V1_24 if ruleset.chain("filter", KUBE_EXTERNAL_SERVICES) is not None else None
