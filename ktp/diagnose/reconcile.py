"""Three witnesses of a service port's endpoints on a node: EndpointSlices, rules, and the health check's own answer.

What they should say differs by policy; where one says something else it is named. The health check is asked by
whoever collects; here its answer is data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ktp.diagnose.alike import Twin
from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.ktp902_probe_disagrees import CHECK as DISAGREES
from ktp.diagnose.questions import node_addresses
from ktp.explain.steps import is_kube_proxys_stop
from ktp.kubeproxy.endpoints import EndpointSelection, ProxyEndpoint, external_policy_local
from ktp.kubeproxy.frontends import FrontEndKind, ip_versions_of
from ktp.kubeproxy.ipvs_mode import destinations
from ktp.kubeproxy.names import host_port
from ktp.kubeproxy.node import ProxyMode
from ktp.kubeproxy.outcome import Vantage
from ktp.model.cluster import Service
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.probing import HealthAnswer, HealthTarget, WitnessRow
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, FlowAnswer, Symptom

SLICES, RULES, HEALTH, ALL = "EndpointSlices", "rules", "health check", "all"


def health_targets(snapshot: Snapshot, service: Service, nodes: Sequence[str] = ()) -> list[HealthTarget]:
    """The healthCheckNodePort on each node's first address; none where the Service has none."""
    number = service.health_check_node_port
    if not number or service.type != "LoadBalancer" or service.external_traffic_policy != "Local":
        return []
    families = ip_versions_of(service)[:1]
    out = []
    for name in dict.fromkeys((*(snapshot.cluster.nodes or {}), *snapshot.nodes)):
        if nodes and name not in nodes:
            continue
        address = next((a for a in node_addresses(snapshot, name) if a.version in families), None)
        if address is not None:
            out.append(HealthTarget(node=name, address=str(address), port=number))
    return out


def reconcile(case: Case, health: Mapping[str, HealthAnswer]) -> list[WitnessRow]:
    """A row for each service port, family and node; `health` holds the answers by node, where they were asked for."""
    out = []
    chosen_ones: dict[int, _Chosen] = {}
    ready: dict[tuple[str, int], int] = {}
    for entry in _asked(case.whole):
        twin = Twin(case.alike, entry.node) if entry.node in case.alike.twin_of else None
        examined = twin.twin if twin is not None else entry.node
        place = case.examiner.port_on(case.service, entry.port, examined)
        family = entry.front_end.ip_version
        selection = place.selection(ip_version=family)
        is_local = external_policy_local(
            case.service,
            place.node.versions.minors()[-1],
            place.node,
            external_ip=entry.front_end.kind is FrontEndKind.EXTERNAL_IP,
        )
        known = case.examiner.index.knows(case.service)
        chosen = selection.local if is_local else selection.cluster
        if place.node.modes == (ProxyMode.IPVS,):
            # There Local without a local endpoint is every endpoint, from 1.24 on.
            kind, minor = entry.front_end.kind, place.node.versions.minors()[-1]
            chosen, _ = destinations(selection, kind, local=is_local, minor=minor)
        if id(chosen) not in chosen_ones:
            chosen_ones[id(chosen)] = _Chosen(chosen)
        if (examined, family) not in ready:
            ready[examined, family] = _local_ready(case, examined, family)
        answer = health.get(entry.node) if family == ip_versions_of(case.service)[0] else None
        out.append(
            _row(
                entry,
                slices=chosen_ones[id(chosen)].of(twin) if known else None,
                rules=_led_to(entry.asked.fact),
                local_ready=ready[examined, family] if known else None,
                falls_back=is_local and selection.local_is_terminating,
                health=answer,
            )
        )
    return out


class _Chosen:
    """The endpoints that a node's kube-proxy chooses from, as witnesses name them; many nodes choose from the same."""

    def __init__(self, chosen: tuple[ProxyEndpoint, ...]) -> None:
        self.chosen = chosen
        self._ips = frozenset(e.ip for e in chosen)
        self._names = tuple(sorted({host_port(e.ip, e.port) for e in chosen}))

    def of(self, twin: Twin | None) -> tuple[str, ...]:
        """Those of a node, or of a twin of it."""
        if twin is None or not twin.exchanges(self._ips):
            return self._names
        return tuple(sorted({host_port(twin.address(e.ip), e.port) for e in self.chosen}))


def _asked(entries: Iterable[Entry]) -> list[Entry]:
    """The outside client's entry of each port, family and node: by the node port, or what there is without one."""
    found: dict[tuple[object, int, str], Entry] = {}
    for e in entries:
        if e.is_external and e.vantage is Vantage.EXTERNAL:
            found.setdefault((e.port, e.front_end.ip_version, e.node), e)
    return list(found.values())


def _local_ready(case: Case, node: str, family: int) -> int:
    """What the health check counts: distinct addresses of ready endpoints on the node, over all ports."""
    selections: list[EndpointSelection] = [
        case.examiner.port_on(case.service, port, node).selection(ip_version=family)
        for port in case.service.ports
    ]
    return len({e.ip for s in selections for e in s.listed if e.is_local and e.ready and not e.terminating})


def _led_to(fact: FlowAnswer | None) -> frozenset[str] | None:
    """Where the dialled node's rules lead the packet, whatever becomes of it later; None where that is not known."""
    if fact is None or fact.symptom is Symptom.UNKNOWN:
        return None
    out = set()
    for path in fact.paths:
        first = next((h for h in path.hops if h.direction == "request"), None)
        found = [
            t.after
            for s in (first.steps if first is not None else ())
            for t in s.translations
            if not t.kind.of_source and t.after.port is not None
        ]
        if found:
            out.add(host_port(found[-1].ip, found[-1].port or 0))
        elif path.disposition in (Disposition.DROPPED, Disposition.REJECTED) and not (
            path.decided_by is not None and is_kube_proxys_stop(path.decided_by.step)
        ):
            return None  # another's rule ends the packet before it meets kube-proxy's
    return frozenset(out)


def _row(
    entry: Entry,
    *,
    slices: tuple[str, ...] | None,
    rules: frozenset[str] | None,
    local_ready: int | None,
    falls_back: bool,
    health: HealthAnswer | None,
) -> WitnessRow:
    named = None if slices is None or rules is None else frozenset(slices)  # alone they disagree with nobody
    odd, words = _compare(named, rules, local_ready, falls_back=falls_back, health=health)
    return WitnessRow(
        frontend=entry.title,
        node=entry.node,
        slices=slices,
        rules=None if rules is None else tuple(sorted(rules)),
        local_ready=local_ready,
        health=health,
        odd=odd,
        words=words,
    )


def _compare(
    slices: frozenset[str] | None,
    rules: frozenset[str] | None,
    local_ready: int | None,
    *,
    falls_back: bool,
    health: HealthAnswer | None,
) -> tuple[str, str]:
    """The witness that disagrees, and how; ("", "") where all that spoke agree."""
    rules_differ = slices is not None and rules is not None and slices != rules
    answered = health is not None and health.status is not None
    against_slices = answered and local_ready is not None and not _counts(health, local_ready)
    by_rules = None if rules is None else 0 if falls_back else len({r.rpartition(":")[0] for r in rules})
    against_rules = answered and by_rules is not None and not _counts(health, by_rules)
    if rules_differ:
        assert slices is not None
        assert rules is not None
        if answered and against_slices and not against_rules:
            return SLICES, (
                "the rules and the health check agree with each other: kube-proxy has not taken over what the "
                "EndpointSlices say"
            )
        if answered and against_slices and against_rules:
            return ALL, "no two of the three agree"
        return RULES, _difference(slices, rules)
    if against_slices:
        return HEALTH, _health_words(health, local_ready or 0)
    if health is not None and health.problem:
        return HEALTH, f"port {health.target.port} {health.problem}"
    return "", ""


def _counts(health: HealthAnswer | None, wanted: int) -> bool:
    """Whether the health check's answer fits so many ready endpoints on the node."""
    assert health is not None
    if health.local_endpoints is not None and health.local_endpoints != wanted:
        return False
    return (health.status == 200) == (wanted > 0)


def _health_words(health: HealthAnswer | None, wanted: int) -> str:
    assert health is not None
    count = health.local_endpoints
    said = f"it answers {health.status}" + ("" if count is None else f" and counts {count}")
    if health.proxy_healthy is False and (count is None or count == wanted):
        return f"{said}, since kube-proxy takes itself for unhealthy; the EndpointSlices name {wanted} here"
    return f"{said}; the EndpointSlices name {wanted} ready here"


def _difference(slices: frozenset[str], rules: frozenset[str]) -> str:
    more, less = sorted(rules - slices), sorted(slices - rules)
    said = []
    if less:
        said.append(f"they do not lead to {_some(less)}")
    if more:
        said.append(f"they lead to {_some(more)}, which the EndpointSlices do not name for it")
    return " and ".join(said)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def health_findings(rows: Iterable[WitnessRow]) -> list[Finding]:
    """A finding for each kind of disagreement of the health check; that of the rules is another check's business."""
    kinds: dict[bool, dict[str, WitnessRow]] = {}
    for row in rows:
        if row.odd in (HEALTH, ALL) and row.health is not None:
            kinds.setdefault(bool(row.health.problem), {}).setdefault(row.node, row)
    out = []
    for is_problem, by_node in kinds.items():
        first = next(iter(by_node.values()))
        assert first.health is not None
        port = first.health.target.port
        nodes = list(by_node)
        what = (
            f"the healthCheckNodePort {port} gives no answer from here"
            if is_problem
            else f"the healthCheckNodePort {port} answers against the endpoints: the load balancer goes by it"
        )
        out.append(
            DISAGREES.finding(
                f"{what} ({', '.join(nodes[:6])}{' …' if len(nodes) > 6 else ''})",
                node=nodes[0],
                nodes=nodes,
                severity=Severity.WARNING,
                evidence=[
                    Evidence(
                        "probe",
                        f"GET http://{host_port(r.health.target.address, port)}/",
                        f"{r.node}: {r.words}",
                    )
                    for r in list(by_node.values())[:4]
                    if r.health is not None
                ],
                fixes=[
                    Fix(
                        "see whether a firewall lets the health checks through to the nodes, and from where"
                        if is_problem
                        else "see whether kube-proxy runs and syncs on these nodes"
                    )
                ],
            )
        )
    return out
