"""`ktp explain-rules` on a snapshot: which nodes, front ends and clients are asked, and what is said of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ktp.diagnose.questions import PodsByNode, external_client, node_addresses, with_supposed_pods
from ktp.diagnose.topology import topology_of
from ktp.errors import EvidenceError, UsageError
from ktp.explain.explain import (
    EXTERNAL,
    LOCALHOST,
    LOOPBACK,
    NODE,
    POD,
    PROCESS,
    Asked,
    explain_flow,
    rules_of,
)
from ktp.explain.find import no_such_node_port
from ktp.explain.front_end import naming_notes, node_port_rules, rules_naming
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason, ip_versions_of
from ktp.model.cluster import Service, ip_of
from ktp.model.explanation import Explanation
from ktp.model.host import IPAddress, NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Rule
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow

_KINDS = {FrontEndKind.LOAD_BALANCER: "load-balancer IP", FrontEndKind.EXTERNAL_IP: "external IP"}


def nodes_with_rules(snapshot: Snapshot, wanted: Sequence[str]) -> list[str]:
    """The asked nodes, or all, of which rules are known."""
    names = wanted or tuple(snapshot.nodes)
    return [n for n in names if n in snapshot.nodes and snapshot.nodes[n].has_rules]


def require_rules(snapshot: Snapshot, wanted: Sequence[str]) -> None:
    """EvidenceError where there is no node to ask."""
    if nodes_with_rules(snapshot, wanted):
        return
    where = " and ".join(wanted) or "any node"
    # Why a node was not asked at all says more than that nothing of it is there.
    gaps = sorted(snapshot.gaps, key=lambda g: g.kind != "node-access")
    gap = next((g for g in gaps if g.kind == "node-access" or "rules" in g.kind), None)
    raise EvidenceError(
        f"no packet filter rules of {where} were read" + (f": {gap.message}" if gap is not None else ""),
        hint=(gap.remedy if gap is not None and gap.remedy else None)
        or "run ktp on the node as root, or `iptables-save | ktp explain-rules … --rules -`",
    )


# --------------------------------------------------------------------------------------------------- front ends


def explain_service_ends(
    snapshot: Snapshot, service: Service, vantage: str, nodes: Sequence[str], *, every_rule: bool = False
) -> list[Explanation]:
    """Every front end of a Service on each node with rules."""
    require_rules(snapshot, nodes)
    if reason := ignored_reason(service):
        raise UsageError(f"kube-proxy makes no rules for {service.key}: {reason}")
    found: list[Explanation] = []
    for port in service.ports:
        protocol = port.protocol.lower()
        ends: list[tuple[FrontEndKind, str | None, int, str]] = []
        if port.node_port:
            ends.append((FrontEndKind.NODE_PORT, None, port.node_port, vantage))
        outside = [(FrontEndKind.LOAD_BALANCER, i.ip) for i in service.ingress]
        outside += [(FrontEndKind.EXTERNAL_IP, ip) for ip in service.external_ips]
        asker = NODE if vantage != POD else vantage
        ends += [
            (kind, ip, port.port, EXTERNAL if vantage == EXTERNAL else asker) for kind, ip in outside if ip
        ]
        ends += [(FrontEndKind.CLUSTER_IP, ip, port.port, asker) for ip in service.cluster_ips]
        named = f"{service.key}{':' + port.name if port.name else ''}"
        for kind, address, number, who in ends:
            for node in nodes_with_rules(snapshot, nodes):
                ip = ip_of(address) if address is not None else None
                end = _End(kind, ip, number, protocol, named, service)
                found += _explain_end(snapshot, node, who, end, every_rule=every_rule)
    return found


def explain_port(
    snapshot: Snapshot,
    protocol: str,
    port: int,
    vantage: str,
    nodes: Sequence[str],
    *,
    every_rule: bool = False,
) -> list[Explanation]:
    """One node port on each node with rules. NotFoundError where neither the API nor a rule knows it."""
    require_rules(snapshot, nodes)
    services = [
        (service, f"{service.key}{':' + p.name if p.name else ''}")
        for service in snapshot.cluster.services.values()
        for p in service.ports
        if p.node_port == port and p.protocol.lower() == protocol
    ]
    names = nodes_with_rules(snapshot, nodes)
    if not services and not any(
        _has_port(snapshot.nodes[n], protocol, port) or _others_naming(snapshot.nodes[n], protocol, port)
        for n in names
    ):
        known = tuple(
            (p.node_port, p.protocol.lower(), s.key)
            for s in snapshot.cluster.services.values()
            for p in s.ports
            if p.node_port
        )
        raise no_such_node_port([snapshot.nodes[n] for n in names], protocol, port, known)
    service, named = services[0] if services else (None, None)
    end = _End(FrontEndKind.NODE_PORT, None, port, protocol, named, service)
    return [e for n in names for e in _explain_end(snapshot, n, vantage, end, every_rule=every_rule)]


def explain_end(
    snapshot: Snapshot,
    address: IPAddress,
    protocol: str,
    port: int,
    vantage: str,
    nodes: Sequence[str],
    *,
    every_rule: bool = False,
) -> list[Explanation]:
    """An address with a port on each node with rules: a Service's where one has it, else whatever it is."""
    require_rules(snapshot, nodes)
    names = nodes_with_rules(snapshot, nodes)
    owners = [n for n in names if address in node_addresses(snapshot, n)]
    found = _service_end(snapshot, address, protocol, port, is_of_node=bool(owners))
    kind, service, named = found or (
        FrontEndKind.NODE_PORT if owners else FrontEndKind.EXTERNAL_IP,
        None,
        None,
    )
    end = _End(kind, address, port, protocol, named, service, is_unnamed=found is None)
    asked = owners if kind is FrontEndKind.NODE_PORT else owners or names if found is None else names
    return [e for n in asked for e in _explain_end(snapshot, n, vantage, end, every_rule=every_rule)]


def _service_end(
    snapshot: Snapshot, address: IPAddress, protocol: str, port: int, *, is_of_node: bool
) -> tuple[FrontEndKind, Service, str] | None:
    """The front end that an address is, its Service, and what that is called."""
    for service in snapshot.cluster.services.values():
        for each in service.ports:
            if each.protocol.lower() != protocol or port not in (each.port, each.node_port):
                continue
            named = f"{service.key}{':' + each.name if each.name else ''}"
            for kind, texts in (
                (FrontEndKind.LOAD_BALANCER, [i.ip for i in service.ingress if i.ip]),
                (FrontEndKind.EXTERNAL_IP, service.external_ips),
                (FrontEndKind.CLUSTER_IP, service.cluster_ips),
            ):
                if each.port == port and address in map(ip_of, texts):
                    return kind, service, named
            if each.node_port == port and is_of_node:
                return FrontEndKind.NODE_PORT, service, named
    return None


def _has_port(state: NodeState, protocol: str, port: int) -> bool:
    if any(node_port_rules(r, protocol, port) for r in state.rulesets):
        return True
    if state.nft is not None and state.nft.tables:
        from ktp.explain.nft_kube import kube_table, node_port_elements

        tables = [t for family in ("ip", "ip6") if (t := kube_table(state.nft, family)) is not None]
        if any(node_port_elements(t, protocol, port) for t in tables):
            return True
    if state.cilium is not None and any(
        f.port == port and f.protocol in (None, protocol) for f in state.cilium.frontends or ()
    ):
        return True
    if state.ipvs is not None:
        from ktp.explain.ipvs import servers_of_port

        return bool(servers_of_port(state.ipvs, protocol, port))
    return False


def _others_naming(state: NodeState, protocol: str, port: int, family: str | None = None) -> list[Rule]:
    """The rules that name a port which is no node port of kube-proxy's."""
    rulesets = state.rulesets if family is None else state.rulesets_of(family)
    return [rule for r in rulesets for rule in rules_naming(r, protocol, port)]


@dataclass(frozen=True, slots=True)
class _End:
    """A front end to be asked about on several nodes.

    `is_unnamed`: neither a Service nor a rule need know the address, and it is called by itself alone.
    """

    kind: FrontEndKind
    address: IPAddress | None
    port: int
    protocol: str
    named: str | None
    service: Service | None
    is_unnamed: bool = False

    def subject(self, target: IPAddress) -> str:
        """`node port 31015/tcp`, `cluster IP 10.96.0.10:53/udp`."""
        if self.kind is FrontEndKind.NODE_PORT and not self.is_unnamed:
            return f"node port {self.port}/{self.protocol}"
        shown = f"[{target}]" if target.version == 6 else str(target)
        if self.is_unnamed:
            return f"{shown}:{self.port}/{self.protocol}"
        return f"{_KINDS.get(self.kind, 'cluster IP')} {shown}:{self.port}/{self.protocol}"


def _explain_end(
    snapshot: Snapshot, node: str, vantage: str, end: _End, *, every_rule: bool
) -> list[Explanation]:
    """One front end on one node: one explanation for each address family it is served in."""
    out: list[Explanation] = []
    own = node_addresses(snapshot, node)
    state = snapshot.nodes[node]
    service = end.service
    versions = (
        (end.address.version,)
        if end.address is not None
        else ip_versions_of(service)
        if service is not None
        else (4, 6)
    )
    for version in versions:
        word = "ip" if version == 4 else "ip6"
        evidence = _evidence(state, word, end)
        target = end.address or next((ip for ip in own if ip.version == version), None)
        others: list[Rule] = []
        if service is None and not evidence.names_port:
            others = _others_naming(state, end.protocol, end.port, word)
        if (
            target is None
            or not evidence.sources
            or (service is None and not end.is_unnamed and not evidence.names_port and not others)
        ):
            continue
        front = FrontEnd(
            kind=end.kind, ip=target, port=end.port, protocol=end.protocol.upper(), ip_version=version
        )
        flow = Flow(dst=str(target), port=end.port, protocol=end.protocol)
        notes = naming_notes(others) if others else []
        asked_of = snapshot
        if vantage == EXTERNAL:
            client = external_client(snapshot, service or Service(namespace="", name=""), front, node)
            flow = replace(flow, src=str(client), via=node)
            notes.append(f"the client is taken to be {client}")
        elif vantage == POD:
            pods = PodsByNode(snapshot.cluster)
            asked_of, supposed = with_supposed_pods(snapshot, pods, version)
            pod = pods.client(node, version)
            pod = pod or (("a supposed pod", supposed[node]) if node in supposed else None)
            if pod is None:
                raise EvidenceError(f"no pod of {node} is known, and no podCIDR of it either")
            flow = replace(flow, src=str(pod[1]), from_node=node)
            notes.append(f"the pod is {pod[0]}, {pod[1]}")
        elif vantage == LOCALHOST and end.kind is FrontEndKind.NODE_PORT:
            flow = replace(flow, dst=LOOPBACK[version], src=LOOPBACK[version], from_node=node)
        else:
            flow = replace(flow, from_node=node)
        if state.ipvs is not None and state.ipvs.services:
            from ktp.explain.ipvs import ipvs_notes

            notes += ipvs_notes(state, flow.dst)
        notes += [
            f"{gap.message} ({gap.remedy})"
            for gap in snapshot.gaps
            if gap.kind == "rules-not-read" and gap.subject == node
        ]
        named = end.named or evidence.service
        asked = replace(
            evidence.asked,
            subject=f"port {end.port}/{end.protocol}"
            if others
            else end.subject(target) + (f" of {named}" if named else ""),
            node=node,
            vantage=PROCESS if vantage == NODE and end.kind is not FrontEndKind.NODE_PORT else vantage,
            flow=flow,
            source=", ".join(evidence.sources),
            service=named,
            notes=tuple(notes),
        )
        out.append(_explained(asked_of, asked, every_rule=every_rule))
    return out


def _explained(snapshot: Snapshot, asked: Asked, *, every_rule: bool) -> Explanation:
    from ktp.dataplane.walk import Walker

    return explain_flow(Walker(topology_of(snapshot)), asked, every_rule=every_rule)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a node's rules of one family say of a front end, before the question is complete."""

    asked: Asked
    sources: list[str]
    service: str | None
    names_port: bool


def _evidence(state: NodeState, family: str, end: _End) -> _Evidence:
    # An empty dump says that a back end has no rules: it is no more to be told than the other that is not there.
    rulesets = tuple(r for r in state.rulesets_of(family) if r.tables()) or state.rulesets_of(family)
    rules = [node_port_rules(r, end.protocol, end.port) for r in rulesets]
    best = next((i for i, r in enumerate(rulesets) if r.chain("nat", "KUBE-SERVICES") is not None), 0)
    is_node_port = end.kind is FrontEndKind.NODE_PORT
    words = [rules_of(r, rules[i].nat) for i, r in enumerate(rulesets)]
    sources = [r.source for r in rulesets]
    asked = Asked(
        subject="",
        node=state.name,
        vantage="",
        flow=Flow(dst="", port=0),
        rules=rules[best] if rules and is_node_port else None,
    )
    service = rules[best].service if rules else None
    names_port = any(rules)
    if state.nft is not None and (state.nft.tables or not rulesets):
        from ktp.explain.nft_explain import rules_of_nft
        from ktp.explain.nft_kube import kube_table, node_port_elements

        sources.append(state.nft.source)
        table = kube_table(state.nft, family)
        if table is not None:
            own = node_port_elements(table, end.protocol, end.port)
            names_port = names_port or bool(own)
            service = service or own.service
            words = [rules_of_nft(table), *(w for w in words if not w.startswith("no kube-proxy"))]
            asked = replace(asked, rules=own if is_node_port else None)
        elif not rulesets:
            words.append(rules_of_nft(None))
    if state.ipvs is not None and state.ipvs.services:
        from ktp.explain.ipvs import servers_of_port

        sources.append(state.ipvs.source)
        names_port = names_port or bool(servers_of_port(state.ipvs, end.protocol, end.port))
    if state.cilium is not None and state.cilium.is_readable and state.cilium.config.replaces:
        from ktp.explain.cilium import front_ends_met

        words = ["Cilium's load-balancing maps", *(w for w in words if not w.startswith("no kube-proxy"))]
        sources = [state.cilium.source, *sources] if state.cilium.source else sources
        mine = front_ends_met(state.cilium.frontends or (), None, end.protocol, end.port)
        names_port = names_port or bool(mine)
    return _Evidence(
        replace(asked, rules_of=", and ".join(dict.fromkeys(words))), sources, service, names_port
    )
