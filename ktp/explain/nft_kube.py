"""kube-proxy's nftables tables in words: what each chain, map, set, rule and element is there for.

Recognised by names and statements; comments only name the Service. Facts: kube-proxy 1.29 to 1.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ktp.explain.nft_words import condition_words, nft_rule_words, share_words
from ktp.kubeproxy.names import (
    NFT_AFFINITY_PREFIX,
    NFT_ENDPOINT_PREFIX,
    NFT_EXTERNAL_PREFIX,
    NFT_FIREWALL_PREFIX,
    NFT_LOCAL_PREFIX,
    NFT_SERVICE_PREFIX,
    NFT_TABLE,
    host_port,
)
from ktp.model.effect import Endpoint
from ktp.model.nftables import (
    AnonymousSet,
    Binary,
    Concat,
    Expression,
    Fib,
    Immediate,
    Mangle,
    MapLookup,
    MapValue,
    Match,
    Meta,
    Nat,
    NftChain,
    NftRule,
    NftRuleset,
    NftTable,
    Numgen,
    Payload,
    Prefix,
    Reject,
    SetElement,
    SetReference,
    SetUpdate,
    Statement,
    Verdict,
    Vmap,
)

SERVICES, MASQUERADING, MARK, REJECT_CHAIN = "services", "masquerading", "mark-for-masquerade", "reject-chain"
NODEPORT_CHECK, SERVICE_CHECK, ENDPOINTS_CHECK = (
    "nodeport-endpoints-check",
    "service-endpoints-check",
    "endpoints-check",
)
FIREWALL_CHECK, FIREWALL_ALLOW_CHECK, CLUSTER_IPS_CHECK = (
    "firewall-check",
    "firewall-allow-check",
    "cluster-ips-check",
)
_OWN_PREFIXES = (
    NFT_SERVICE_PREFIX,
    NFT_LOCAL_PREFIX,
    NFT_EXTERNAL_PREFIX,
    NFT_ENDPOINT_PREFIX,
    NFT_FIREWALL_PREFIX,
)
_FIXED = frozenset((SERVICE_CHECK, FIREWALL_CHECK, FIREWALL_ALLOW_CHECK))  # begin like a Service's own


class NftGeneration(Enum):
    """A generation of kube-proxy's nftables rules, in words."""

    V1_29 = "kube-proxy 1.29, nftables mode (sets firewall and firewall-allow)"
    V1_30 = "kube-proxy 1.30 to 1.32, nftables mode (map firewall-ips; filter-output comes before DNAT)"
    V1_33 = (
        "kube-proxy 1.33 to 1.35, nftables mode (chain filter-prerouting-pre-dnat, and mark-for-masquerade)"
    )
    GE_1_36 = "kube-proxy 1.36 or newer, nftables mode (set hairpin-connections)"


def generation_of(table: NftTable) -> NftGeneration | None:
    """Which kube-proxy wrote a table; None where it does not tell."""
    if "hairpin-connections" in table.sets:
        return NftGeneration.GE_1_36
    if "filter-prerouting-pre-dnat" in table.chains:
        return NftGeneration.V1_33 if MARK in table.chains else NftGeneration.GE_1_36
    if "filter-output-post-dnat" in table.chains or "firewall-ips" in table.maps:
        return NftGeneration.V1_30
    if FIREWALL_ALLOW_CHECK in table.chains or ENDPOINTS_CHECK in table.chains:
        return NftGeneration.V1_29
    return None


def is_kube_table(family: str, name: str) -> bool:
    """Whether a table is kube-proxy's."""
    return name == NFT_TABLE and family in ("ip", "ip6")


def is_service_chain(name: str) -> bool:
    """Whether the chain belongs to one service port or endpoint."""
    return name.startswith(_OWN_PREFIXES) and name not in _FIXED


def service_of_chain(name: str | None) -> str | None:
    """`namespace/name:port` from the name of a chain or affinity set, None where it is no Service's."""
    base = _base(name)
    if base is None:
        return None
    parts = base.partition("__")[0].split("/")
    if len(parts) != 4:
        return None
    return f"{parts[0]}/{parts[1]}" + (f":{parts[3]}" if parts[3] else "")


def endpoint_of_chain(name: str) -> str | None:
    """`ip:port` from the name of an endpoint's chain or affinity set; dots stand for the colons of IPv6."""
    base = _base(name)
    ip, slash, port = base.partition("__")[2].rpartition("/") if base is not None else ("", "", "")
    if not slash or not port.isdigit():
        return None
    return host_port(ip if ip.count(".") == 3 else ip.replace(".", ":"), int(port))


def _base(name: str | None) -> str | None:
    for prefix in (*_OWN_PREFIXES, NFT_AFFINITY_PREFIX):
        if name is not None and name.startswith(prefix) and name not in _FIXED:
            digest, dash, base = name[len(prefix) :].partition("-")
            return base if dash and len(digest) == 8 else None
    return None


# ------------------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True, kw_only=True)
class NftNodePort:
    """What a table has of one node port: `nat` leads to endpoints, `refusing` drops or rejects."""

    nat: SetElement | None
    refusing: SetElement | None

    @property
    def service(self) -> str | None:
        """`namespace/name:port`."""
        return next(
            (s for e in (self.nat, self.refusing) if e is not None and (s := service_of_element(e))), None
        )

    def __bool__(self) -> bool:
        return self.nat is not None or self.refusing is not None


def kube_table(ruleset: NftRuleset | None, family: str) -> NftTable | None:
    """kube-proxy's table of `family` ("ip" or "ip6")."""
    return ruleset.table(family, NFT_TABLE) if ruleset is not None else None


def node_port_elements(table: NftTable, protocol: str, port: int) -> NftNodePort:
    """The elements of one node port."""
    key = Concat((Immediate(protocol), Immediate(port)))
    found = [
        next((e for e in table.maps[name].elements if e.key == key), None) if name in table.maps else None
        for name in ("service-nodeports", "no-endpoint-nodeports")
    ]
    return NftNodePort(nat=found[0], refusing=found[1])


def nft_node_ports(table: NftTable) -> list[tuple[int, str, str]]:
    """Every (port, protocol, Service or "") of a table, sorted."""
    out: dict[tuple[int, str], str] = {}
    for name in ("service-nodeports", "no-endpoint-nodeports"):
        for element in table.maps[name].elements if name in table.maps else ():
            parts = _parts(element.key)
            if len(parts) == 2 and isinstance(parts[1], int):
                key = (parts[1], str(parts[0]))
                out[key] = out.get(key) or service_of_element(element) or ""
    return sorted((port, protocol, service) for (port, protocol), service in out.items())


def node_port_addresses(table: NftTable) -> tuple[str, ...] | None:
    """The addresses that have node ports; None where every address of the node has."""
    found = table.sets.get("nodeport-ips")
    return tuple(str(e.key) for e in found.elements) if found is not None else None


def pod_network_of(table: NftTable) -> str | None:
    """The pods' network as the rules tell it."""
    for name, chain in table.chains.items():
        if name != SERVICES and not name.startswith((NFT_EXTERNAL_PREFIX, NFT_SERVICE_PREFIX)):
            continue
        for rule in chain.rules:
            for s in rule.statements:
                if isinstance(s, Match) and _is_field(s.left, "saddr") and isinstance(s.right, Prefix):
                    return str(s.right)
    return None


def service_of_element(element: SetElement) -> str | None:
    """The Service that an element of kube-proxy's maps is of: by its chain, else by its comment."""
    value = element.value
    target = value.target if isinstance(value, Verdict) else None
    return service_of_chain(target) or element.comment


def _parts(key: Expression) -> tuple[object, ...]:
    parts = key.parts if isinstance(key, Concat) else (key,)
    return tuple(p.value if isinstance(p, Immediate) else str(p) for p in parts)


def _is_field(expression: Expression, name: str) -> bool:
    return (
        isinstance(expression, Payload) and expression.protocol in ("ip", "ip6") and expression.field == name
    )


# ------------------------------------------------------------------------------------------------- chains, sets

_CHAIN_WORDS = {
    SERVICES: "sorts packets by what they dial: cluster IPs, external and load-balancer IPs, node ports",
    NODEPORT_CHECK: "stops packets to node ports without usable endpoints",
    SERVICE_CHECK: "stops packets to cluster, external and load-balancer IPs without usable endpoints",
    ENDPOINTS_CHECK: "stops packets to front ends without usable endpoints",
    FIREWALL_CHECK: "applies loadBalancerSourceRanges",
    FIREWALL_ALLOW_CHECK: "lets the sources of loadBalancerSourceRanges pass and drops the rest",
    CLUSTER_IPS_CHECK: "stops packets that are still addressed to a cluster IP, which no node has",
    MASQUERADING: "gives marked packets a source address of this node",
    MARK: "marks a packet whose source address is to be replaced on its way out",
    REJECT_CHAIN: "refuses packets",
    "forward": "drops packets that belong to no connection",
    "filter-prerouting": "kube-proxy's checks before destination NAT",
    "filter-prerouting-pre-dnat": "kube-proxy's checks before destination NAT",
    "filter-output-pre-dnat": "kube-proxy's checks before destination NAT, of what this node's own processes send",
    "filter-output-post-dnat": "kube-proxy's checks after destination NAT, of what this node's own processes send",
    "filter-input": "kube-proxy's checks of what this node's own processes receive",
    "filter-forward": "kube-proxy's checks of what passes through this node",
    "filter-output": "kube-proxy's checks of what this node's own processes send",
    "nat-prerouting": "kube-proxy's destination NAT for what arrives from outside and from pods",
    "nat-output": "kube-proxy's destination NAT for what this node's own processes send",
    "nat-postrouting": "kube-proxy's source NAT for what leaves",
}
_PREFIX_WORDS = {
    NFT_EXTERNAL_PREFIX: "takes external traffic of one service port and applies its externalTrafficPolicy",
    NFT_SERVICE_PREFIX: "chooses among all endpoints of one service port",
    NFT_LOCAL_PREFIX: "chooses among the endpoints of one service port on this node",
    NFT_ENDPOINT_PREFIX: "sends packets to one endpoint",
    NFT_FIREWALL_PREFIX: "drops load-balancer traffic of one service port from outside its source ranges",
}
_SET_WORDS = {
    "service-ips": "cluster, external and load-balancer IPs with the chain of each one's service port",
    "service-nodeports": "node ports with the chain of each one's service port",
    "no-endpoint-services": "addresses of Services without usable endpoints, and what becomes of their packets",
    "no-endpoint-nodeports": "node ports without usable endpoints, and what becomes of their packets",
    "firewall-ips": "load-balancer IPs whose Services have loadBalancerSourceRanges",
    "firewall": "load-balancer IPs whose Services have loadBalancerSourceRanges",
    "firewall-allow": "load-balancer IPs with the sources that may dial them",
    "nodeport-ips": "addresses of this node that have node ports",
    "cluster-ips": "the cluster IPs of all Services",
    "hairpin-connections": "endpoints of this node that dial themselves through their Service",
}
_OWNERS = (
    ("firewalld", "firewalld"),
    ("docker", "Docker"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("flannel", "flannel"),
    ("kube-router", "kube-router"),
    ("f2b", "fail2ban"),
    ("fail2ban", "fail2ban"),
    ("crowdsec", "CrowdSec"),
    ("libvirt", "libvirt"),
    ("netavark", "Podman"),
    ("cni_hostport", "the CNI's portmap plugin (hostPorts)"),
    ("kindnet", "kindnet"),
    ("antrea", "Antrea"),
    ("azure", "Azure"),
)


def explain_nft_chain(table: NftTable, name: str) -> str:
    """What a chain is for; of a chain of unknown making, whose table it is in."""
    if is_kube_table(table.family, table.name):
        words = _CHAIN_WORDS.get(name)
        if words is None and is_service_chain(name):
            words = next(w for prefix, w in _PREFIX_WORDS.items() if name.startswith(prefix))
            service = service_of_chain(name)
            words = words.replace("one service port", service) if service is not None else words
            if name.startswith(NFT_EXTERNAL_PREFIX) and _serves_nobody_else(table, name):
                words += (
                    "; without a rule for everyone else, for no usable endpoint runs on this node: their packets go "
                    "on unchanged"
                )
            if name.startswith(NFT_ENDPOINT_PREFIX) and (endpoint := endpoint_of_chain(name)) is not None:
                words = f"sends packets to endpoint {endpoint}"
        if name == FIREWALL_CHECK and generation_of(table) is NftGeneration.V1_29:
            words = (
                "applies loadBalancerSourceRanges (1.29: of forwarded connections it sees the endpoint's address "
                "already, and so does not stop them)"
            )
        if words is not None:
            return words
    return f"a chain of {owner_of(table)}"


def _serves_nobody_else(table: NftTable, name: str) -> bool:
    """Whether a chain for external traffic has rules, and none that takes every packet."""
    chain = table.chains.get(name)
    return (
        chain is not None
        and bool(chain.rules)
        and all(_conditions(r) or (v := verdict_in(r)) is None or v.kind != "goto" for r in chain.rules)
    )


def owner_of(table: NftTable) -> str:
    """Whose table it is: a program's, or "table inet site, which is not Kubernetes'"."""
    if is_kube_table(table.family, table.name):
        return "kube-proxy"
    if table.is_xtables:
        return f"iptables-nft (table {table.family} {table.name})"
    low = table.name.lower()
    owner = next((words for mark, words in _OWNERS if mark in low), None)
    return owner or f"table {table.family} {table.name}, which is not Kubernetes'"


def set_words(table: NftTable, name: str) -> str:
    """What a set or map is for; "" where it is not kube-proxy's."""
    if not is_kube_table(table.family, table.name):
        found = table.set_or_map(name)
        return found.comment or "" if found is not None else "which the listing does not have"
    if name.startswith(NFT_AFFINITY_PREFIX):
        return f"clients that stay with endpoint {endpoint_of_chain(name) or '?'} (session affinity)"
    return _SET_WORDS.get(name, "")


# ------------------------------------------------------------------------------------------------------ elements


def element_words(table: NftTable, name: str, element: SetElement) -> str:
    """What an element of a set or map says."""
    if not is_kube_table(table.family, table.name):
        return f"{element.value}" if element.value is not None else "in the set"
    parts = _parts(element.key)
    value = element.value if isinstance(element.value, Verdict) else None
    service = service_of_element(element) or "a Service"
    if name in ("service-nodeports", "no-endpoint-nodeports") and len(parts) == 2:
        front = f"node port {parts[1]}/{parts[0]} of {service}"
    elif len(parts) == 3:
        front = f"{_dialled(parts)} of {service}"
    else:
        front = ""
    if name in ("service-nodeports", "service-ips") and value is not None:
        kind = "" if name == "service-nodeports" else _kind_of_address(value.target)
        return f"{kind}{front}: on to {_target_words(value.target)}"
    if (why := without_endpoint(table, name, element)) is not None:
        return f"{front}: {_refusal(table, name, why)}"
    if name in ("firewall-ips", "firewall"):
        return f"load-balancer IP {front}: has loadBalancerSourceRanges"
    if name.startswith(NFT_AFFINITY_PREFIX):
        left = f", for another {element.expires} s" if element.expires is not None else ""
        return f"this client stays with endpoint {endpoint_of_chain(name) or '?'}{left}"
    if name == "hairpin-connections" and len(parts) == 4:
        return f"endpoint {host_port(str(parts[0]), int(str(parts[3])))} dials itself"
    words = {
        "nodeport-ips": "has node ports",
        "cluster-ips": "a cluster IP",
        "firewall-allow": "this source may dial it",
    }
    return words.get(name, "in the set")


def _dialled(parts: tuple[object, ...]) -> str:
    return f"{host_port(str(parts[0]), int(str(parts[2])))}/{parts[1]}"


def _kind_of_address(target: str | None) -> str:
    if target is not None and target.startswith(NFT_EXTERNAL_PREFIX):
        return "external or load-balancer IP "
    return "cluster IP "


def _target_words(target: str | None) -> str:
    name = target or ""
    if name.startswith(NFT_EXTERNAL_PREFIX):
        return "its chain for external traffic"
    if name.startswith(NFT_LOCAL_PREFIX):
        return "the choice among its endpoints on this node (internalTrafficPolicy Local)"
    return "the choice among all its endpoints"


class WithoutEndpoint(Enum):
    """What an element of the maps no-endpoint-nodeports and no-endpoint-services is there for."""

    ANYWHERE = "no usable endpoint on any node"
    EXTERNAL_LOCAL = "externalTrafficPolicy"
    INTERNAL_LOCAL = "internalTrafficPolicy"


def without_endpoint(table: NftTable, name: str, element: SetElement) -> WithoutEndpoint | None:
    """Why an element of map `name` stops packets; None where it is of another map."""
    if name not in ("no-endpoint-services", "no-endpoint-nodeports") or not isinstance(
        element.value, Verdict
    ):
        return None
    if element.value.kind != "drop":
        return WithoutEndpoint.ANYWHERE
    cluster_ips = table.sets.get("cluster-ips")
    inside = cluster_ips is not None and any(
        _parts(e.key) == _parts(element.key)[:1] for e in cluster_ips.elements
    )
    return (
        WithoutEndpoint.INTERNAL_LOCAL
        if name == "no-endpoint-services" and inside
        else WithoutEndpoint.EXTERNAL_LOCAL
    )


def _refusal(table: NftTable, name: str, why: WithoutEndpoint) -> str:
    if why is WithoutEndpoint.ANYWHERE:
        return "refused, for the Service has no usable endpoint on any node"
    if why is WithoutEndpoint.INTERNAL_LOCAL:
        return "dropped; internalTrafficPolicy Local, and no usable endpoint runs on this node"
    words = "dropped; externalTrafficPolicy Local, and no usable endpoint runs on this node. "
    generation = generation_of(table)
    if generation is NftGeneration.V1_29 or (
        generation is NftGeneration.V1_30 and name == "no-endpoint-services"
    ):
        until = "1.29" if name == "no-endpoint-nodeports" else "1.32"
        return (
            f"{words}This node's own processes are dropped too: kube-proxy up to {until} checks what they send "
            "before it would send them to an endpoint"
        )
    return f"{words}Pods and this node's own processes do not get here: their packets went on to an endpoint before"


# --------------------------------------------------------------------------------------------------------- rules


def explain_nft_rule(table: NftTable, chain: str, rule: NftRule, *, brief: bool = False) -> str:
    """What `rule` is there for, in plain words. Never empty.

    `brief` leaves out what the chain that the rule leads to is for, as its own line tells it.
    """
    if is_kube_table(table.family, table.name):
        words = _kube_words(table, chain, rule, brief)
        if words is not None:
            return words
    found = table.chains.get(chain)
    return nft_rule_words(
        rule, policy=(found.policy or "accept") if found is not None and found.is_base else None
    )


def verdict_in(rule: NftRule) -> Verdict | None:
    """The rule's jump, goto or verdict."""
    return next((s for s in rule.statements if isinstance(s, Verdict)), None)


def _marks(statements: Iterable[Statement]) -> bool:
    """Whether the packet is marked for masquerading: by a chain up to 1.35, in place since 1.36."""
    return any(
        (isinstance(s, Verdict) and s.target == MARK)
        or (
            isinstance(s, Mangle)
            and s.key == Meta("mark")
            and isinstance(s.value, Binary)
            and s.value.operator == "|"
        )
        for s in statements
    )


def _conditions(rule: NftRule) -> list[Match]:
    return [s for s in rule.statements if isinstance(s, Match)]


def _kube_words(table: NftTable, chain: str, rule: NftRule, brief: bool) -> str | None:
    verdict = verdict_in(rule)
    vmap = next((s for s in rule.statements if isinstance(s, Vmap)), None)
    found: NftChain | None = table.chains.get(chain)
    if found is not None and found.is_base and verdict is not None and verdict.target is not None:
        conditions = condition_words(rule.statements)
        every = f"packets {conditions}" if conditions else "every packet"
        if found.type == "nat":
            every = "every new connection"
        words = f"{every}: on to {verdict.target}"
        return words if brief else f"{words}, which {explain_nft_chain(table, verdict.target)}"
    if vmap is not None and isinstance(vmap.data, SetReference):
        return _lookup_words(rule, vmap.data.name)
    if chain == SERVICES and _marks(rule.statements):
        return _cluster_ip_mark(rule)
    if chain == MASQUERADING:
        return _masquerading(rule, verdict)
    if chain == MARK and _marks(rule.statements):
        return "marked for masquerading: chain masquerading will replace the source address of this packet"
    if chain == REJECT_CHAIN and any(isinstance(s, Reject) for s in rule.statements):
        return "refused: the client sees 'connection refused'"
    if chain == CLUSTER_IPS_CHECK:
        if any(isinstance(s, Reject) for s in rule.statements):
            return "still addressed to a cluster IP, so to a port that its Service does not have: refused"
        if verdict is not None and verdict.kind == "drop":
            return f"{condition_words(rule.statements)}, an address that no Service has: dropped"
    if chain == FIREWALL_CHECK and verdict is not None:
        return f"to a load-balancer IP with source ranges (set firewall): on to {verdict.target}"
    if chain == FIREWALL_ALLOW_CHECK and verdict is not None:
        if verdict.kind == "return":
            return "from a source that loadBalancerSourceRanges allow (set firewall-allow): back, on its way"
        return "everyone else: dropped, for loadBalancerSourceRanges do not allow the source"
    if chain == "forward" and verdict is not None and verdict.kind == "drop":
        return "drops packets that belong to no known connection (invalid); does not concern a new connection"
    if chain.startswith(NFT_FIREWALL_PREFIX) and verdict is not None and verdict.kind == "drop":
        return f"{condition_words(rule.statements)} (loadBalancerSourceRanges of {service_of_chain(chain)}): dropped"
    if chain.startswith(NFT_EXTERNAL_PREFIX):
        return _external(rule, verdict)
    if chain.startswith(NFT_ENDPOINT_PREFIX):
        return _endpoint(chain, rule)
    if chain.startswith((NFT_SERVICE_PREFIX, NFT_LOCAL_PREFIX)):
        return _balance(table, rule, verdict, vmap)
    return None


def _lookup_words(rule: NftRule, name: str) -> str | None:
    where = "to any address of this node that has node ports"
    for match in _conditions(rule):
        if isinstance(match.left, Fib):
            where = "to any address of this node but loopback ones"
    words = {
        "service-ips": "address, protocol and port looked up among cluster, external and load-balancer IPs",
        "service-nodeports": f"{where}: the port looked up among the node ports",
        "no-endpoint-services": "address, protocol and port looked up among those without usable endpoints",
        "no-endpoint-nodeports": f"{where}: the port looked up among those without usable endpoints",
        "firewall-ips": "address, protocol and port looked up among those with loadBalancerSourceRanges",
    }
    return words.get(name)


def _cluster_ip_mark(rule: NftRule) -> str:
    outside = next((m for m in _conditions(rule) if _is_field(m.left, "saddr")), None)
    whom = (
        f"dialled from outside the pod network {outside.right}" if outside is not None else "whoever dials it"
    )
    if outside is None and any(isinstance(m.left, Meta) for m in _conditions(rule)):
        whom = "dialled by others than pods"
    return f"a cluster IP {whom}: marked for masquerading; concerns cluster IPs only, not node ports"


def _masquerading(rule: NftRule, verdict: Verdict | None) -> str | None:
    if any(isinstance(s, Match) and s.right == SetReference("hairpin-connections") for s in rule.statements):
        return (
            "an endpoint that dials itself through its Service: source becomes an address of this node, for it would "
            "answer itself directly otherwise; concerns no one else"
        )
    if verdict is not None and verdict.kind == "return":
        return "without the mark for masquerading: back, the source stays as it is"
    if any(isinstance(s, Nat) for s in rule.statements):
        return "marked for masquerading: source becomes an address of this node"
    if any(isinstance(s, Mangle) for s in rule.statements):
        return "the mark has served: taken off again"
    return None


def _external(rule: NftRule, verdict: Verdict | None) -> str | None:
    conditions = _conditions(rule)
    from_node = any(isinstance(m.left, Fib) and m.left.flags == ("saddr",) for m in conditions)
    if _marks(rule.statements):
        if from_node:
            return "from this node's own processes: masquerade (their packets may go to endpoints on other nodes)"
        if not conditions:
            return (
                "externalTrafficPolicy Cluster: the client's address is replaced on the way out, and the endpoint "
                "sees this node's"
            )
        return None
    if verdict is None or verdict.target is None:
        return None
    if verdict.target.startswith(NFT_LOCAL_PREFIX):
        return "everyone else: externalTrafficPolicy Local, only endpoints on this node serve"
    if not verdict.target.startswith(NFT_SERVICE_PREFIX):
        return None
    if from_node:
        return "from this node's own processes: the policy does not hold for them, any endpoint of the cluster serves"
    if not conditions:
        return "externalTrafficPolicy Cluster: any endpoint of the cluster serves"
    source = next((m for m in conditions if _is_field(m.left, "saddr")), None)
    whom = (
        f"from pods ({source.right})" if source is not None else f"{condition_words(rule.statements)} (pods)"
    )
    return f"{whom}: the policy does not hold for them, any endpoint of the cluster serves"


def _endpoint(chain: str, rule: NftRule) -> str | None:
    endpoint = endpoint_of_chain(chain) or "the endpoint"
    if _marks(rule.statements):
        return f"masquerades the endpoint's connections to itself ({endpoint}); concerns no one else"
    for statement in rule.statements:
        if isinstance(statement, SetUpdate):
            return f"session affinity: notes that {endpoint} serves this client"
        if isinstance(statement, Nat) and statement.kind == "dnat":
            return f"destination becomes {endpoint} (DNAT)"
    return None


def _balance(table: NftTable, rule: NftRule, verdict: Verdict | None, vmap: Vmap | None) -> str | None:
    if _marks(rule.statements):
        dialled = next((str(m.right) for m in _conditions(rule) if _is_field(m.left, "daddr")), "")
        outside = next((m for m in _conditions(rule) if _is_field(m.left, "saddr")), None)
        whom = f" dialled from outside the pod network {outside.right}" if outside is not None else ""
        return f"cluster IP {dialled}{whom}: masquerade; concerns the cluster IP only, not node ports"
    stuck = next((m.right for m in _conditions(rule) if isinstance(m.right, SetReference)), None)
    if stuck is not None and verdict is not None:
        found = table.sets.get(stuck.name)
        within = f" within {found.timeout} s" if found is not None and found.timeout else ""
        return f"session affinity: a client that {endpoint_of_chain(stuck.name)} served{within} stays with it"
    drawn: AnonymousSet | None = None
    if vmap is not None and isinstance(vmap.key, Numgen) and isinstance(vmap.data, AnonymousSet):
        drawn = vmap.data
    for statement in rule.statements:
        if isinstance(statement, Nat) and isinstance(statement.address, MapLookup):
            drawn = statement.address.data if isinstance(statement.address.data, AnonymousSet) else None
    if drawn is None or not drawn.elements:
        return None
    if len(drawn.elements) > 1:
        return f"one of {len(drawn.elements)} endpoints, each for {share_words(len(drawn.elements))}"
    endpoint = endpoint_of_value(drawn.elements[0].value)
    return (
        f"destination becomes {endpoint} (DNAT), the only endpoint"
        if vmap is None
        else f"endpoint {endpoint}, the only one"
    )


def endpoint_of_value(value: MapValue | None) -> str:
    """`ip:port` that a map's value translates to, or that the chain of an endpoint stands for; "" for others."""
    if isinstance(value, Verdict):
        return (endpoint_of_chain(value.target) if value.target is not None else None) or ""
    if (target := target_of_value(value)) is not None:
        return host_port(target.ip, target.port or 0)
    return str(value) if isinstance(value, Immediate) else ""


def target_of_value(value: MapValue | None) -> Endpoint | None:
    """The address and port that a map's value is, None where it is something else."""
    if isinstance(value, Concat) and len(value.parts) == 2:
        ip, port = _parts(value)
        if isinstance(port, int):
            return Endpoint(str(ip), port)
    return None


__all__ = [
    "NftGeneration",
    "NftNodePort",
    "element_words",
    "endpoint_of_chain",
    "endpoint_of_value",
    "explain_nft_chain",
    "explain_nft_rule",
    "generation_of",
    "is_kube_table",
    "is_service_chain",
    "kube_table",
    "nft_node_ports",
    "node_port_addresses",
    "node_port_elements",
    "owner_of",
    "pod_network_of",
    "service_of_chain",
    "service_of_element",
    "set_words",
    "target_of_value",
    "verdict_in",
]
