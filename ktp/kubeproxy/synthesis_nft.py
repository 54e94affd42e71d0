"""What kube-proxy writes for one service port into the tables `ip kube-proxy` and `ip6 kube-proxy`, since 1.29.

Chains of the port's own, and elements of the maps and sets that all Services share. Facts:
`pkg/proxy/nftables/proxier.go` (`syncProxyRules`). Base chains and what they look up do not depend on Services: a
node's recorded table keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ktp.kubeproxy.endpoints import ProxyEndpoint, SliceIndex, select_endpoints
from ktp.kubeproxy.names import (
    NFT_AFFINITY_PREFIX,
    NFT_ENDPOINT_PREFIX,
    NFT_EXTERNAL_PREFIX,
    NftEndpointNames,
    NftServiceChains,
    nft_endpoint_names,
    nft_service_chains,
    service_port_strings,
)
from ktp.kubeproxy.node import IPNetwork, ProxyNode
from ktp.kubeproxy.synthesis_iptables import LocalMatch, PortFacts, RuleKnobs, ip_version, knobs_of
from ktp.model import nftables as nft
from ktp.model.cluster import Service, ServicePort
from ktp.model.host import IPAddress, KubeProxyConfig

CLUSTER_IPS = "cluster-ips"  # 1.30 and later
SERVICE_IPS = "service-ips"
SERVICE_NODEPORTS = "service-nodeports"
NO_ENDPOINT_SERVICES = "no-endpoint-services"
NO_ENDPOINT_NODEPORTS = "no-endpoint-nodeports"
FIREWALL_IPS = "firewall-ips"  # 1.30 and later
FIREWALL = "firewall"  # 1.29 alone
FIREWALL_ALLOW = "firewall-allow"  # 1.29 alone
HAIRPIN_CONNECTIONS = "hairpin-connections"  # 1.36 and later
MARK_FOR_MASQUERADE = "mark-for-masquerade"  # up to 1.35
REJECT_CHAIN = "reject-chain"

_SHORT_CIRCUIT = "short-circuit pod traffic"
_AFFINITY_SIZE = 65535  # the kernel's default for a set with a timeout
_HASH_LENGTH = 9  # eight characters and a hyphen


@dataclass(frozen=True, slots=True, kw_only=True)
class NftServiceRules:
    """What one service port has in a table: `chains` complete, `elements` by map or set, sets of session affinity.

    `name` is the port's name in comments, `affinity` the timeouts of its affinity sets in seconds.
    """

    name: str
    chains: Mapping[str, tuple[nft.NftRule, ...]] = field(default_factory=dict)
    elements: Mapping[str, tuple[nft.SetElement, ...]] = field(default_factory=dict)
    affinity: Mapping[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------ writing


def _goto(chain: str) -> nft.Verdict:
    return nft.Verdict("goto", chain)


def _key(*parts: str | int) -> nft.Concat:
    return nft.Concat(tuple(nft.Immediate(part) for part in parts))


def _address(network: IPNetwork) -> nft.Expression:
    """A network as nft prints it: without a length where it is one address."""
    address = nft.Immediate(str(network.network_address))
    return address if network.prefixlen == network.max_prefixlen else nft.Prefix(address, network.prefixlen)


@dataclass(kw_only=True, eq=False)
class _Writer(PortFacts):
    """Collects what one service port has in a table."""

    masquerade_bit: int
    chains: dict[str, list[nft.NftRule]] = field(default_factory=dict)
    elements: dict[str, list[nft.SetElement]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        service = self.service
        self.header = "ip6" if self.version == 6 else "ip"
        self.mark = 1 << self.masquerade_bit
        self.names: NftServiceChains = nft_service_chains(
            service.namespace, service.name, self.protocol, self.port.name
        )

    def add(self, chain: str, *statements: nft.Statement, comment: str | None = None) -> None:
        rules = self.chains[chain]
        rules.append(nft.NftRule(statements=statements, comment=comment, index=len(rules)))

    def element(
        self, where: str, key: nft.Expression, value: nft.Verdict | None = None, comment: str | None = None
    ) -> None:
        self.elements.setdefault(where, []).append(nft.SetElement(key, value, comment=comment))

    def endpoint_names(self, endpoint: ProxyEndpoint) -> NftEndpointNames:
        return nft_endpoint_names(
            self.service.namespace,
            self.service.name,
            self.protocol,
            self.port.name,
            endpoint.ip,
            endpoint.port,
        )

    @property
    def has_endpoint_chains(self) -> bool:
        """Up to 1.35 always, since 1.36 only with session affinity."""
        return self.minor <= 35 or self.has_affinity

    def field(self, name: str) -> nft.Payload:
        return nft.Payload(self.header, name)

    def masquerade(self) -> nft.Statement:
        """Up to 1.35 a jump to a chain that marks, since 1.36 the mark itself."""
        if self.minor <= 35:
            return nft.Verdict("jump", MARK_FOR_MASQUERADE)
        mark = nft.Meta("mark")
        return nft.Mangle(mark, nft.Binary("|", mark, nft.Immediate(self.mark)))

    def pods(self, operator: str) -> tuple[nft.Statement, ...]:
        """The condition on pods ("==") or on all others ("!="); none where there is no detector."""
        local = self.knobs.local
        if local is None:
            return ()
        if local.option == "-i":
            return (nft.Match(operator, nft.Meta("iifname"), nft.Immediate(local.value.replace("+", "*"))),)
        address, _, length = local.value.partition("/")
        return (nft.Match(operator, self.field("saddr"), nft.Prefix(nft.Immediate(address), int(length))),)

    def rules(self) -> NftServiceRules:
        affinity = {}
        if self.has_affinity:
            timeout = self.service.session_affinity_timeout
            affinity = {self.endpoint_names(e).affinity_set: timeout for e in self.reachable()}
        return NftServiceRules(
            name=self.name,
            chains={name: tuple(rules) for name, rules in self.chains.items()},
            elements={name: tuple(found) for name, found in self.elements.items()},
            affinity=affinity,
        )


def synthesize_port_nft(
    service: Service,
    port: ServicePort,
    node: ProxyNode,
    index: SliceIndex,
    *,
    family: str,
    minor: int,
    knobs: RuleKnobs | None = None,
    masquerade_bit: int = 14,
) -> NftServiceRules:
    """What kube-proxy 1.`minor` on `node` writes for a service port into table `family` ("ip" or "ip6") kube-proxy."""
    w = _Writer(
        service=service,
        port=port,
        node=node,
        selection=select_endpoints(index, service, port, node, minor=minor, ip_version=ip_version(family)),
        family=family,
        minor=minor,
        knobs=knobs if knobs is not None else knobs_of(node, family),
        masquerade_bit=masquerade_bit,
    )
    if w.cluster_ip is None:
        return w.rules()
    has_endpoints = w.selection.has_endpoints
    here = w.selection.local
    has_internal = has_endpoints and (not w.internal_local or bool(here))
    has_external = has_endpoints and (not w.external_local or bool(here))
    internal = w.names.local if w.internal_local else w.names.service
    if w.selection.cluster:
        w.chains[w.names.service] = []
    if here:
        w.chains[w.names.local] = []
    if has_endpoints and w.is_external:
        w.chains[w.names.external] = []
    _elements(w, w.cluster_ip, internal, has_internal=has_internal, has_external=has_external)
    _source_ranges(w)
    if has_internal:
        _masquerade_cluster_ip(w, w.cluster_ip, internal)
    if has_endpoints and w.is_external:
        _external(w, has_external=has_external)
    if w.selection.cluster:
        _balance(w, w.names.service, w.selection.cluster)
    if here:
        _balance(w, w.names.local, here)
    _endpoints(w)
    return w.rules()


def _elements(
    w: _Writer, cluster_ip: IPAddress, internal: str, *, has_internal: bool, has_external: bool
) -> None:
    """Where the addresses and the node port lead: `no-endpoint-…` drops without local endpoints, else rejects."""
    refuse = nft.Verdict("drop") if w.selection.has_endpoints else _goto(REJECT_CHAIN)
    if w.minor >= 30:
        w.element(CLUSTER_IPS, nft.Immediate(str(cluster_ip)))
    key = _key(str(cluster_ip), w.protocol, w.port.port)
    if has_internal:
        w.element(SERVICE_IPS, key, _goto(internal))
    else:
        w.element(NO_ENDPOINT_SERVICES, key, refuse, w.name)
    for ip in (*w.external_ips, *w.lb_ips):
        key = _key(str(ip), w.protocol, w.port.port)
        if w.selection.has_endpoints:
            w.element(SERVICE_IPS, key, _goto(w.names.external))
        if not has_external:
            w.element(NO_ENDPOINT_SERVICES, key, refuse, w.name)
    if w.node_port:
        key = _key(w.protocol, w.node_port)
        if w.selection.has_endpoints:
            w.element(SERVICE_NODEPORTS, key, _goto(w.names.external))
        if not has_external:
            w.element(NO_ENDPOINT_NODEPORTS, key, refuse, w.name)


def _source_ranges(w: _Writer) -> None:
    """loadBalancerSourceRanges, with or without endpoints: since 1.30 a chain, in 1.29 a set of what is allowed."""
    ranges = w.source_ranges() if w.lb_ips else ()
    if not ranges:
        return
    allowed = [_address(network) for network in ranges]
    if w.ranges_hold_node(ranges):
        allowed += [nft.Immediate(str(ip)) for ip in w.lb_ips]
    if w.minor <= 29:
        for ip in w.lb_ips:
            w.element(FIREWALL, _key(str(ip), w.protocol, w.port.port), None, w.name)
            for source in allowed:
                parts = (*_key(str(ip), w.protocol, w.port.port).parts, source)
                w.element(FIREWALL_ALLOW, nft.Concat(parts))
        return
    for ip in w.lb_ips:
        w.element(FIREWALL_IPS, _key(str(ip), w.protocol, w.port.port), _goto(w.names.firewall))
    w.chains[w.names.firewall] = []
    right = allowed[0] if len(allowed) == 1 else nft.AnonymousSet(tuple(nft.SetElement(a) for a in allowed))
    w.add(w.names.firewall, nft.Match("!=", w.field("saddr"), right), nft.Verdict("drop"))


def _masquerade_cluster_ip(w: _Writer, cluster_ip: IPAddress, chain: str) -> None:
    """Up to 1.33 by address and port, 1.34 and 1.35 by address; since 1.36 one rule in `services` does it for all."""
    if w.minor >= 36 or not (w.knobs.masquerade_all or w.knobs.local):
        return
    conditions: list[nft.Statement] = [nft.Match("==", w.field("daddr"), nft.Immediate(str(cluster_ip)))]
    if w.minor <= 33:
        conditions.append(nft.Match("==", nft.Payload(w.protocol, "dport"), nft.Immediate(w.port.port)))
    if not w.knobs.masquerade_all:
        conditions += w.pods("!=")
    w.add(chain, *conditions, w.masquerade())


def _external(w: _Writer, *, has_external: bool) -> None:
    chain, service = w.names.external, w.names.service
    if not w.external_local:
        w.add(chain, w.masquerade(), comment="masquerade" if w.minor >= 36 else None)
        w.add(chain, _goto(service))
        return
    if w.knobs.local is not None:
        w.add(chain, *w.pods("=="), _goto(service), comment=_SHORT_CIRCUIT)
    local = nft.Match("==", nft.Fib("type", ("saddr",)), nft.Immediate("local"))
    w.add(chain, local, w.masquerade(), comment="masquerade local traffic")
    w.add(chain, local, _goto(service), comment="short-circuit local traffic")
    if has_external:
        w.add(chain, _goto(w.names.local))


def _balance(w: _Writer, chain: str, endpoints: Sequence[ProxyEndpoint]) -> None:
    """Affinity look-ups, then a draw: of endpoint chains, or since 1.36 of addresses where there is no affinity."""
    draw = nft.Numgen("random", len(endpoints))
    if not w.has_endpoint_chains:
        found = nft.AnonymousSet(
            tuple(nft.SetElement(nft.Immediate(i), _key(e.ip, e.port)) for i, e in enumerate(endpoints))
        )
        nat = nft.Nat("dnat", family=w.header, address=nft.MapLookup(draw, found))
        w.add(chain, nft.Match("==", nft.Meta("l4proto"), nft.Immediate(w.protocol)), nat)
        return
    names = [w.endpoint_names(endpoint) for endpoint in endpoints]
    for name in names if w.has_affinity else ():
        stuck = nft.Match("==", w.field("saddr"), nft.SetReference(name.affinity_set))
        w.add(chain, stuck, _goto(name.chain))
    chains = (nft.SetElement(nft.Immediate(i), _goto(name.chain)) for i, name in enumerate(names))
    w.add(chain, nft.Vmap(draw, nft.AnonymousSet(tuple(chains))))


def _endpoints(w: _Writer) -> None:
    """A chain an endpoint: hairpins are masqueraded there up to 1.35, by `hairpin-connections` since 1.36."""
    for endpoint in w.reachable():
        if w.minor >= 36 and endpoint.is_local:
            w.element(HAIRPIN_CONNECTIONS, _key(endpoint.ip, endpoint.ip, w.protocol, endpoint.port))
        if not w.has_endpoint_chains:
            continue
        names = w.endpoint_names(endpoint)
        w.chains[names.chain] = []
        if w.minor <= 35:
            itself = nft.Match("==", w.field("saddr"), nft.Immediate(endpoint.ip))
            w.add(names.chain, itself, w.masquerade())
        if w.has_affinity:
            w.add(names.chain, nft.SetUpdate("update", names.affinity_set, nft.SetElement(w.field("saddr"))))
        nat = nft.Nat("dnat", address=nft.Immediate(endpoint.ip), port=nft.Immediate(endpoint.port))
        w.add(names.chain, nft.Match("==", nft.Meta("l4proto"), nft.Immediate(w.protocol)), nat)


# ------------------------------------------------------------------------------------------------------- tables


def table_minor(table: nft.NftTable, minor: int) -> int:
    """The version whose style the table is in, nearest to `minor`: 1.36 marks without a chain and lists hairpins."""
    if table.set_or_map(HAIRPIN_CONNECTIONS) is not None:
        return max(minor, 36)
    if MARK_FOR_MASQUERADE not in table.chains:
        return max(minor, 29)
    if table.set_or_map(FIREWALL_IPS) is None:
        return 29
    return min(max(minor, 30), 35)


def observed_knobs_nft(table: nft.NftTable) -> RuleKnobs | None:
    """The knobs that the table's own rules show: the detector of external traffic's chains, None where none has one."""
    for name, chain in table.chains.items():
        if not name.startswith(NFT_EXTERNAL_PREFIX):
            continue
        for rule in chain.rules:
            if rule.comment == _SHORT_CIRCUIT and rule.statements:
                first = rule.statements[0]
                if isinstance(first, nft.Match) and (local := _local_match(first)) is not None:
                    return RuleKnobs(local=local)
    return None


def _local_match(match: nft.Match) -> LocalMatch | None:
    if (
        isinstance(match.left, nft.Payload)
        and match.left.field == "saddr"
        and isinstance(match.right, nft.Prefix)
    ):
        return LocalMatch("-s", str(match.right))
    if isinstance(match.left, nft.Meta) and match.left.key in {"iif", "iifname"}:
        if isinstance(match.right, nft.Immediate):
            return LocalMatch("-i", str(match.right.value))
    return None


def reprogram_table(
    table: nft.NftTable,
    ports: Sequence[tuple[Service, ServicePort, bool]],
    node: ProxyNode,
    index: SliceIndex,
    *,
    minor: int,
    config: KubeProxyConfig | None,
) -> nft.NftTable:
    """The table with what kube-proxy writes for these service ports; where the last part is False, without them."""
    minor = table_minor(table, minor)
    knobs = knobs_of(node, table.family, config)
    if config is None:
        knobs = observed_knobs_nft(table) or knobs
    bit = config.masquerade_bit if config is not None else 14
    written = [
        synthesize_port_nft(
            service,
            port,
            node,
            index,
            family=table.family,
            minor=minor,
            knobs=knobs,
            masquerade_bit=bit,
        )
        for service, port, stays in ports
        if stays
    ]
    return replace_ports(table, [(service, port) for service, port, _ in ports], written, index)


def replace_ports(
    table: nft.NftTable,
    ports: Iterable[tuple[Service, ServicePort]],
    written: Sequence[NftServiceRules],
    index: SliceIndex,
) -> nft.NftTable:
    """The table without everything that these service ports have, and with `written` instead."""
    old = _OldPorts(table, ports)
    chains = {name: chain for name, chain in table.chains.items() if not old.owns_chain(name)}
    sets = {name: one for name, one in table.sets.items() if not old.owns_set(name)}
    maps = dict(table.maps)
    key_type = "ipv6_addr" if table.family == "ip6" else "ipv4_addr"
    elements: dict[str, list[nft.SetElement]] = {}
    for rules in written:
        for name, found in rules.chains.items():
            recorded = table.chains.get(name)
            chains[name] = (
                recorded if recorded and recorded.rules == found else nft.NftChain(name=name, rules=found)
            )
        for name, timeout in rules.affinity.items():
            # What clients stuck to outlives a change of rules, while the set stays.
            sets[name] = table.sets.get(name) or nft.NftSet(
                name=name, key_types=(key_type,), flags=("timeout",), timeout=timeout, size=_AFFINITY_SIZE
            )
        for name, more in rules.elements.items():
            elements.setdefault(name, []).extend(more)
    for name, one in sets.items():
        if not name.startswith(NFT_AFFINITY_PREFIX):
            sets[name] = _edited(one, elements.get(name, ()), old.owns_element(name, index))
    for name, mapping in maps.items():
        maps[name] = _edited(mapping, elements.get(name, ()), old.owns_element(name, index))
    return replace(table, chains=chains, sets=sets, maps=maps)


_AnySet = TypeVar("_AnySet", nft.NftSet, nft.NftMap)


def _edited(one: _AnySet, new: Sequence[nft.SetElement], is_old: Callable[[nft.SetElement], bool]) -> _AnySet:
    """A set or map without old elements and with new ones; its own elements where those say the same."""
    elements = _merged(one.elements, new, is_old)
    return one if elements == one.elements else replace(one, elements=elements)


def _merged(
    recorded: Sequence[nft.SetElement],
    new: Sequence[nft.SetElement],
    is_old: Callable[[nft.SetElement], bool],
) -> tuple[nft.SetElement, ...]:
    by_key = {element.key: element for element in new}
    kept: list[nft.SetElement] = []
    for element in recorded:
        same = by_key.pop(element.key, None)
        if same is not None:
            kept.append(element if (element.value, element.comment) == (same.value, same.comment) else same)
        elif not is_old(element):
            kept.append(element)
    return (*kept, *by_key.values())


class _OldPorts:
    """Tells what of a table belongs to some service ports, whatever version and policy wrote it."""

    def __init__(self, table: nft.NftTable, ports: Iterable[tuple[Service, ServicePort]]) -> None:
        self._table = table
        self._comments: set[str] = set()
        self._own: set[str] = set()
        self._endpoints: set[str] = set()  # "ns/svc/proto/port"
        for service, port in ports:
            protocol = port.protocol.lower()
            names = nft_service_chains(service.namespace, service.name, protocol, port.name)
            self._comments.update(service_port_strings(service, port))
            self._own.update((names.service, names.local, names.external, names.firewall))
            self._endpoints.add(f"{service.namespace}/{service.name}/{protocol}/{port.name}")
        self._drawn: set[tuple[str | int | bool, ...]] | None = None
        self._listed: set[tuple[str, int]] | None = None

    def owns_chain(self, name: str) -> bool:
        return name in self._own or self._is_endpoint(name, NFT_ENDPOINT_PREFIX)

    def owns_set(self, name: str) -> bool:
        return self._is_endpoint(name, NFT_AFFINITY_PREFIX)

    def _is_endpoint(self, name: str, prefix: str) -> bool:
        base = name[len(prefix) + _HASH_LENGTH :]
        return name.startswith(prefix) and base.rpartition("__")[0] in self._endpoints

    def owns_element(self, where: str, index: SliceIndex) -> Callable[[nft.SetElement], bool]:
        """A test for the elements of one map or set."""
        if where == CLUSTER_IPS:
            addresses = self._addresses()
            return lambda element: element.key in addresses
        if where == HAIRPIN_CONNECTIONS:
            return lambda element: self._is_old_hairpin(element, index)
        if where == FIREWALL_ALLOW:
            firewall = self._table.set_or_map(FIREWALL)
            found = {e.key for e in (firewall.elements if firewall else ()) if e.comment in self._comments}
            return lambda e: isinstance(e.key, nft.Concat) and nft.Concat(e.key.parts[:3]) in found
        return self._is_ours

    def _is_ours(self, element: nft.SetElement) -> bool:
        value = element.value
        return element.comment in self._comments or (
            isinstance(value, nft.Verdict) and value.target in self._own
        )

    def _addresses(self) -> frozenset[nft.Expression]:
        """Every address that the ports have in the maps: of them `cluster-ips` holds the cluster IPs alone."""
        found = set()
        for name in (SERVICE_IPS, NO_ENDPOINT_SERVICES):
            for element in self._table.maps[name].elements if name in self._table.maps else ():
                if self._is_ours(element) and isinstance(element.key, nft.Concat):
                    found.add(element.key.parts[0])
        return frozenset(found)

    def _is_old_hairpin(self, element: nft.SetElement, index: SliceIndex) -> bool:
        """Whether the ports drew this endpoint and no Service lists it any more: several may share an element."""
        if not isinstance(element.key, nft.Concat) or len(element.key.parts) != 4:
            return False
        if self._drawn is None:
            chains = (chain for name, chain in self._table.chains.items() if self.owns_chain(name))
            self._drawn = {
                target for chain in chains for rule in chain.rules for target in _dnat_targets(rule)
            }
        ip, _, _, port = (part.value if isinstance(part, nft.Immediate) else "" for part in element.key.parts)
        if (ip, port) not in self._drawn:
            return False
        if self._listed is None:
            self._listed = {
                (address, number.port)
                for grouped in (index.slices, index.endpoints)
                for slices in (grouped or {}).values()
                for one in slices
                for endpoint in one.endpoints
                for address in endpoint.addresses
                for number in one.ports
                if number.port is not None
            }
        return (ip, port) not in self._listed


def _dnat_targets(rule: nft.NftRule) -> Iterable[tuple[str | int | bool, ...]]:
    """(address, port) of everything that a rule translates to."""
    for statement in rule.statements:
        if not isinstance(statement, nft.Nat):
            continue
        if isinstance(statement.address, nft.Immediate) and isinstance(statement.port, nft.Immediate):
            yield statement.address.value, statement.port.value
        elif isinstance(statement.address, nft.MapLookup) and isinstance(
            statement.address.data, nft.AnonymousSet
        ):
            for element in statement.address.data.elements:
                if isinstance(element.value, nft.Concat):
                    yield tuple(part.value for part in element.value.parts if isinstance(part, nft.Immediate))
