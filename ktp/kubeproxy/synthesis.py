"""A snapshot whose API objects were changed, with the rules that each node's kube-proxy would then have written.

Counterfactuals and what-if on the side of facts: the rules of the Services that changed are rewritten in each node's
recorded ruleset, everything else of the node stays as it was read. Reads no text: whoever calls hands in the parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.kubeproxy.endpoints import SliceIndex, index_slices, select_endpoints
from ktp.kubeproxy.names import (
    EXT_PREFIX,
    FW_PREFIX,
    KUBE_EXTERNAL_SERVICES,
    KUBE_IPTABLES_HINT,
    KUBE_NODEPORTS,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
    NFT_TABLE,
    SEP_PREFIX,
    SVC_PREFIX,
    SVL_PREFIX,
    XLB_PREFIX,
    service_port_strings,
    service_suffix,
    split_service_chain,
)
from ktp.kubeproxy.node import ProxyMode, ProxyNode, proxy_node
from ktp.kubeproxy.synthesis_cilium import has_same_front_ends, reprogram_maps
from ktp.kubeproxy.synthesis_iptables import (
    RuleKnobs,
    ServiceRules,
    is_large_cluster,
    knobs_of,
    observed_knobs,
    shows_nfacct,
    synthesize_port,
)
from ktp.kubeproxy.synthesis_ipvs import has_same_servers, reprogram_servers
from ktp.model.cluster import Cluster, Service, ServicePort
from ktp.model.host import NodeState
from ktp.model.reading import TableReading
from ktp.model.record import dataclass
from ktp.model.ruleset import Backend, Chain, Rule, Ruleset
from ktp.model.snapshot import Snapshot

if TYPE_CHECKING:
    from ktp.model.nftables import NftRuleset

RuleParser = Callable[[str, str, str, int, int], Rule]
"""`parse(table, chain, text, line, position)`, as `ktp.model.ruleset.Chain` takes it."""

SHARED_CHAINS = (
    ("nat", KUBE_SERVICES),
    ("nat", KUBE_NODEPORTS),
    ("filter", KUBE_SERVICES),
    ("filter", KUBE_EXTERNAL_SERVICES),
    ("filter", KUBE_NODEPORTS),
    ("filter", KUBE_PROXY_FIREWALL),
)
"""The chains in which kube-proxy writes rules of every Service (iptables mode, all versions)."""

_OWN_PREFIXES = (SVC_PREFIX, SVL_PREFIX, EXT_PREFIX, XLB_PREFIX, FW_PREFIX)
_COMMENT = '--comment "'
_SCORED_PORTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PortChange:
    """What becomes of one service port in a ruleset: every rule of these names goes, `rules` come (None: nothing)."""

    names: frozenset[str]
    suffixes: frozenset[str]
    rules: ServiceRules | None = None


def port_change(service: Service, port: ServicePort, rules: ServiceRules | None) -> PortChange:
    """The change that leaves a service port with exactly `rules`, whichever version wrote the old ones."""
    names = service_port_strings(service, port)
    return PortChange(
        names=frozenset(names),
        suffixes=frozenset(service_suffix(name, port.protocol) for name in names),
        rules=rules,
    )


# ------------------------------------------------------------------------------------------------------ overlay


class OverlayRuleset:
    """A ruleset over another: chains of changed service ports are its own, all others are read through."""

    def __init__(self, base: Ruleset, changes: Sequence[PortChange], parse_rule: RuleParser) -> None:
        """Nothing of `base` is read before it is asked for."""
        self.family: str = base.family
        self.backend: Backend = base.backend
        self.source: str = base.source
        self.recorded = base
        self._changes = changes
        self._parse = parse_rule
        self._shared: dict[tuple[str, str], Chain | None] = {}
        self._own: dict[str, Chain | None] | None = None
        self._by_name = {name: change for change in changes for name in change.names}
        self._by_suffix = {suffix: change for change in changes for suffix in change.suffixes}
        mentioned = sorted({*self._by_name, *self._by_suffix})
        self._mentioned = re.compile("|".join(map(re.escape, mentioned)) if mentioned else r"(?!)")

    def tables(self) -> Sequence[str]:
        """Names of the tables."""
        return self.recorded.tables()

    def reading(self, table: str) -> TableReading:
        """As of the recorded one."""
        return self.recorded.reading(table)

    def chain_names(self, table: str) -> Iterable[str]:
        """Names of the chains: the recorded ones, less the removed, then the new."""
        names = dict.fromkeys(self.recorded.chain_names(table))
        if table == "nat":
            for name, chain in self._own_chains().items():
                if chain is None:
                    names.pop(name, None)
                else:
                    names.setdefault(name)
        for shared_table, name in SHARED_CHAINS:
            if shared_table == table and name not in names and self.chain(table, name) is not None:
                names[name] = None
        return tuple(names)

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain, or None where it does not exist or no longer does."""
        key = (table, name)
        if key in SHARED_CHAINS:
            if key not in self._shared:
                self._shared[key] = self._edited(table, name)
            return self._shared[key]
        if table == "nat" and split_service_chain(name) is not None:
            own = self._own_chains()
            if name in own:
                return own[name]
        return self.recorded.chain(table, name)

    def is_same(self) -> bool:
        """Whether it says what the ruleset under it says."""
        own = self._own_chains()
        return all(self.recorded.chain("nat", name) is chain for name, chain in own.items()) and all(
            self.chain(*key) is self.recorded.chain(*key) for key in SHARED_CHAINS
        )

    def _own_chains(self) -> Mapping[str, Chain | None]:
        """The chains that only changed service ports have; None for those that are no more."""
        if self._own is None:
            own: dict[str, Chain | None] = {}
            for change in self._changes:
                for suffix in change.suffixes:
                    for prefix in _OWN_PREFIXES:
                        own[prefix + suffix] = None
                        for endpoint in self._endpoint_chains(prefix + suffix):
                            own[endpoint] = None
            for change in self._changes:
                for name, lines in (change.rules.own if change.rules is not None else {}).items():
                    own[name] = self._made("nat", name, lines)
            self._own = own
        return self._own

    def _endpoint_chains(self, name: str) -> Iterable[str]:
        chain = self.recorded.chain("nat", name)
        for i in range(len(chain) if chain is not None else 0):
            target = _jump_target(chain.raw(i)) if chain is not None else ""
            if target.startswith(SEP_PREFIX):
                yield target

    def _made(self, table: str, name: str, lines: Sequence[str]) -> Chain:
        """A chain of these lines: the recorded one where it says the same."""
        recorded = self.recorded.chain(table, name)
        if recorded is not None and [_bare(line) for line in recorded.raw_lines()] == list(lines):
            return recorded
        return Chain(table, name, tuple(lines), self._parse)

    def _owner(self, line: str) -> PortChange | None:
        """The changed service port that a rule of a shared chain belongs to."""
        at = line.find(_COMMENT)
        if at >= 0:
            at += len(_COMMENT)
            name = line[at : line.find('"', at)].partition(" ")[0]
            if (found := self._by_name.get(name)) is not None:
                return found
        parts = split_service_chain(_jump_target(line))
        return self._by_suffix.get(parts[1]) if parts is not None else None

    def _edited(self, table: str, name: str) -> Chain | None:
        """A shared chain without the old rules of changed service ports, and with the new ones in their place.

        Rules of a port that had none go to the end, before the jump to KUBE-NODEPORTS that ends nat's KUBE-SERVICES.
        """
        recorded = self.recorded.chain(table, name)
        new: dict[int, tuple[str, ...]] = {}
        for change in self._changes:
            lines = change.rules.shared.get((table, name), ()) if change.rules is not None else ()
            if lines:
                new[id(change)] = lines
        if recorded is None:
            every = [line for lines in new.values() for line in lines]
            # A chain that is missing is declared anew, in a table that is there (`iptables-restore --noflush`).
            return Chain(table, name, every, self._parse) if every and table in self.tables() else None
        old: dict[int, list[int]] = {}
        for i, line in enumerate(recorded.raw_lines()):
            owner = self._owner(line) if self._mentioned.search(line) else None
            if owner is not None:
                old.setdefault(id(owner), []).append(i)
        removed: set[int] = set()
        inserted: dict[int, list[str]] = {}
        end = _end_of_services(recorded) if (table, name) == ("nat", KUBE_SERVICES) else len(recorded)
        for change in self._changes:
            before = old.get(id(change), [])
            after = new.get(id(change), ())
            if [_bare(recorded.raw(i)) for i in before] == list(after):
                continue
            removed.update(before)
            inserted.setdefault(before[0] if before else end, []).extend(after)
        if not removed and not any(inserted.values()):
            return recorded
        lines_out: list[str] = []
        numbers: list[int] = []
        for i in range(len(recorded) + 1):
            for line in inserted.get(i, ()):
                lines_out.append(line)
                numbers.append(0)
            if i < len(recorded) and i not in removed:
                lines_out.append(recorded.raw(i))
                numbers.append(_line_number(recorded, i))
        return Chain(
            table,
            name,
            lines_out,
            self._parse,
            policy=recorded.policy,
            counters=recorded.counters,
            first_line=numbers,
        )


def overlay_ruleset(ruleset: Ruleset, changes: Iterable[PortChange], *, parse_rule: RuleParser) -> Ruleset:
    """`ruleset` with the rules of some service ports replaced, for any back end and any size: chains are read lazily.

    Old rules are told by the names in their comments and by the chains that they jump to.
    """
    return OverlayRuleset(ruleset, tuple(changes), parse_rule)


def _bare(line: str) -> str:
    """A rule's line without its counters."""
    return line[line.find("] ") + 2 :] if line.startswith("[") else line


def _jump_target(line: str) -> str:
    """What a rule jumps to, "" where it has no target."""
    _, jump, target = line.rpartition(" -j ")
    return target.partition(" ")[0] if jump else ""


def _end_of_services(chain: Chain) -> int:
    """Where the rules of Services end in nat's KUBE-SERVICES: before the jumps to KUBE-NODEPORTS."""
    end = len(chain)
    for i in range(len(chain) - 1, -1, -1):
        if _jump_target(chain.raw(i)) != KUBE_NODEPORTS:
            break
        end = i
    return end


def _line_number(chain: Chain, index: int) -> int:
    if isinstance(chain.first_line, int):
        return chain.first_line + index if chain.first_line else 0
    return chain.first_line[index]


# ---------------------------------------------------------------------------------------------------- reprogram


def has_same_rules(before: NodeState, after: NodeState) -> bool:
    """Whether reprogramming left the rules of a node as they were: then no answer can differ there."""
    if len(before.rulesets) != len(after.rulesets) or before.nft != after.nft:
        return False
    if before.cilium is not after.cilium and not has_same_front_ends(before.cilium, after.cilium):
        return False
    if before.ipvs is not after.ipvs and not has_same_servers(before, after):
        return False
    return all(
        new is old or (isinstance(new, OverlayRuleset) and new.is_same())
        for old, new in zip(before.rulesets, after.rulesets, strict=True)
    )


def reprogram(
    snapshot: Snapshot,
    changed: Cluster,
    *,
    services: Collection[str] | None = None,
    nodes: Collection[str] | None = None,
    parse_rule: RuleParser | None = None,
) -> Snapshot:
    """`snapshot` with the API objects `changed` and the rules that kube-proxy then writes for `services`.

    `services` ("namespace/name") None is every Service, what `changed_services` says is enough where rules and API
    agreed before. `nodes` None is every node; the others keep their rules (as a node whose kube-proxy hangs does).
    Rules are rewritten where there are some of kube-proxy's: `why_not_reprogrammed` names the rest. The back end is
    the one that agrees best with the API, where an older kube-proxy left rules in another. `parse_rule` None is what
    the recorded lines are parsed with. Where a node may run several versions of kube-proxy, the newest writes.
    """
    after = replace(snapshot, cluster=changed)
    keys = {*snapshot.cluster.services, *changed.services} if services is None else set(services)
    ports = _ports(snapshot.cluster, changed, keys)
    index = index_slices(changed)
    states: dict[str, NodeState] = {}
    for name, state in snapshot.nodes.items():
        if (nodes is not None and name not in nodes) or not state.has_rules:
            states[name] = state
            continue
        before = proxy_node(snapshot, name)
        node = proxy_node(after, name, versions=before.versions, modes=before.modes)
        renewed = state
        if state.cilium is not None and state.cilium.is_readable:
            renewed = replace(state, cilium=reprogram_maps(state.cilium, ports, node, index))
            if state.cilium.config.replaces:
                states[name] = renewed  # rules that kube-proxy left behind stay as they are
                continue
        states[name] = _reprogram_node(snapshot, renewed, before, node, index, ports, changed, parse_rule)
    return replace(after, nodes=states)


_Ports = Sequence[tuple[Service, ServicePort, bool]]
"""Service ports to rewrite: the Service, its port, and whether it is to have rules."""


def _ports(before: Cluster, after: Cluster, keys: Collection[str]) -> _Ports:
    found: list[tuple[Service, ServicePort, bool]] = []
    for key in sorted(keys):
        new, old = after.services.get(key), before.services.get(key)
        kept = set()
        for port in new.ports if new is not None else ():
            kept.add((port.name, port.protocol))
            if new is not None:
                found.append((new, port, True))
        for port in old.ports if old is not None else ():
            if (port.name, port.protocol) not in kept and old is not None:
                found.append((old, port, False))
    return found


def _reprogram_node(
    snapshot: Snapshot,
    state: NodeState,
    before: ProxyNode,
    node: ProxyNode,
    index: SliceIndex,
    ports: _Ports,
    changed: Cluster,
    parse_rule: RuleParser | None,
) -> NodeState:
    iptables, nft = _live(snapshot, state, before)
    rulesets = []
    for ruleset in state.rulesets:
        if ruleset not in iptables:
            rulesets.append(ruleset)
            continue
        knobs = _knobs(ruleset, state, node, changed)
        quirk = node.versions.minors()[-1] == 22 and _counts_unready(ruleset, snapshot.cluster, node)
        changes = [
            port_change(
                service,
                port,
                _rules(service, port, node, index, ruleset, knobs, quirk=quirk) if stays else None,
            )
            for service, port, stays in ports
        ]
        rulesets.append(overlay_ruleset(ruleset, changes, parse_rule=parse_rule or _parser_of(ruleset)))
    state = replace(state, rulesets=tuple(rulesets))
    if ProxyMode.IPVS in before.modes and state.ipvs is not None and state.ipvs.services:
        services = snapshot.cluster.services.values()
        node_ports = {(p.protocol.lower(), p.node_port or 0) for s in services for p in s.ports}
        state = reprogram_servers(state, ports, node, index, node_ports)
    new_nft = state.nft
    if nft and new_nft is not None:
        from ktp.kubeproxy.synthesis_nft import reprogram_table

        tables = tuple(
            reprogram_table(table, ports, node, index, minor=_minor(node), config=state.kube_proxy)
            if table.name == NFT_TABLE and table.family in {"ip", "ip6"}
            else table
            for table in new_nft.tables
        )
        new_nft = replace(new_nft, tables=tables)
    return replace(state, nft=new_nft)


def _parser_of(ruleset: Ruleset) -> RuleParser:
    """What makes Rules of the recorded lines."""
    services = ruleset.chain("nat", KUBE_SERVICES)
    if services is None:
        raise ValueError("no rules of kube-proxy's are there to rewrite")
    return services.parser


def _minor(node: ProxyNode) -> int:
    return node.versions.minors()[-1]


def _rules(
    service: Service,
    port: ServicePort,
    node: ProxyNode,
    index: SliceIndex,
    ruleset: Ruleset,
    knobs: RuleKnobs,
    *,
    quirk: bool = False,
) -> ServiceRules:
    return synthesize_port(
        service,
        port,
        node,
        index,
        family=ruleset.family,
        minor=_minor(node),
        knobs=knobs,
        unready_count=quirk,
    )


def _counts_unready(ruleset: Ruleset, cluster: Cluster, node: ProxyNode) -> bool:
    """Whether this kube-proxy 1.22 takes endpoints that are not ready for endpoints, as its first releases did.

    It shows where a Service has no others: they wrote no REJECT for it.
    """
    index = index_slices(cluster)
    version = 4 if ruleset.family == "ip" else 6
    refused = [
        line
        for chain in (ruleset.chain("filter", KUBE_SERVICES), ruleset.chain("filter", KUBE_EXTERNAL_SERVICES))
        for line in (chain.raw_lines() if chain is not None else ())
    ]
    for service in cluster.services.values():
        for port in service.ports:
            chosen = select_endpoints(index, service, port, node, minor=22, ip_version=version)
            if chosen.listed and not any(e.ready or e.terminating for e in chosen.listed):
                name = next(iter(sorted(service_port_strings(service, port))))
                return not any(f'"{name} has no endpoints"' in line for line in refused)
    return False


def _knobs(ruleset: Ruleset, state: NodeState, node: ProxyNode, cluster: Cluster) -> RuleKnobs:
    """What the configuration says, or else what the node's own rules show."""
    if state.kube_proxy is not None:
        knobs = replace(knobs_of(node, ruleset.family, state.kube_proxy), nfacct=shows_nfacct(ruleset))
    else:
        knobs = observed_knobs(ruleset) or knobs_of(node, ruleset.family)
    return replace(knobs, comments=not is_large_cluster(cluster, ruleset.family))


def _is_programmed(ruleset: Ruleset) -> bool:
    services = ruleset.chain("nat", KUBE_SERVICES)
    return services is not None and len(services) > 0


def _has_table(nft: NftRuleset | None) -> bool:
    return nft is not None and any(nft.table(family, NFT_TABLE) is not None for family in ("ip", "ip6"))


def _live(snapshot: Snapshot, state: NodeState, node: ProxyNode) -> tuple[tuple[Ruleset, ...], bool]:
    """The xtables rulesets that the node's kube-proxy keeps, and whether it keeps the nftables table.

    An older kube-proxy may have left rules in the other back end: the live ones agree best with the API as it was
    read. Where that does not tell, the back end that the kubelet marked (KUBE-IPTABLES-HINT, 1.25 and later).
    """
    found: list[Ruleset] = []
    if ProxyMode.IPTABLES in node.modes:
        index = None
        for family in ("ip", "ip6"):
            those = [r for r in state.rulesets_of(family) if _is_programmed(r)]
            if len(those) > 1:
                index = index or index_slices(snapshot.cluster)
                scored = [(_agreement(r, state, node, snapshot.cluster, index), r) for r in those]
                those = [max(scored, key=lambda pair: pair[0])[1]]
            found += those
    keeps_nft = ProxyMode.NFTABLES in node.modes and _has_table(state.nft)
    if found and keeps_nft:
        keeps_nft = False  # both, and no configuration that tells: see `detect_modes`
    return tuple(found), keeps_nft


def _agreement(
    ruleset: Ruleset, state: NodeState, node: ProxyNode, cluster: Cluster, index: SliceIndex
) -> tuple[int, bool]:
    """How many chains of a sample of service ports hold what the API asks for; whether the kubelet's mark is there."""
    knobs = _knobs(ruleset, state, node, cluster)
    agreeing = seen = 0
    for service in cluster.services.values():
        for port in service.ports:
            rules = _rules(service, port, node, index, ruleset, knobs)
            for name, lines in rules.own.items():
                chain = ruleset.chain("nat", name)
                agreeing += chain is not None and sorted(map(_bare, chain.raw_lines())) == sorted(lines)
            seen += 1
            if seen >= _SCORED_PORTS:
                break
        if seen >= _SCORED_PORTS:
            break
    return agreeing, ruleset.chain("mangle", KUBE_IPTABLES_HINT) is not None
