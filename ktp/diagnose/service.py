"""The diagnosis of one Service: the matrix, the causes, the verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ktp.diagnose.case import EXTERNAL_KINDS, Case, Entry
from ktp.diagnose.checks import ALL_CHECKS
from ktp.diagnose.checks.base import listed
from ktp.diagnose.checks.ktp901_unexplained import CHECK as UNEXPLAINED
from ktp.diagnose.examine import Examiner
from ktp.diagnose.questions import node_addresses
from ktp.diagnose.reconcile import health_findings, reconcile
from ktp.diagnose.share import load_shares
from ktp.kubeproxy.endpoints import EndpointSelection
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason, ip_versions_of
from ktp.kubeproxy.outcome import Vantage
from ktp.model.capture import EvidenceGap
from ktp.model.cluster import Service, ServicePort
from ktp.model.diagnosis import (
    Evidence,
    Finding,
    FrontEndMatrix,
    HeadlineGroup,
    LoadShare,
    NodeRow,
    ServiceDiagnosis,
    Severity,
    Way,
)
from ktp.model.host import IPAddress
from ktp.model.probing import HealthAnswer
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom

_ORDER = (
    FrontEndKind.NODE_PORT,
    FrontEndKind.LOAD_BALANCER,
    FrontEndKind.EXTERNAL_IP,
    FrontEndKind.CLUSTER_IP,
)


def diagnose_service(
    snapshot: Snapshot,
    service: Service,
    *,
    nodes: Collection[str] = (),
    client: IPAddress | None = None,
    health: Mapping[str, HealthAnswer] | None = None,
) -> ServiceDiagnosis:
    """Everything that ktp can say about one Service.

    `nodes` restricts the rows (default: all); `client` is the outside client to ask for (default: one far away);
    `health` holds what the nodes' healthCheckNodePorts said, where they were asked.
    """
    examiner = Examiner(snapshot, client=client)
    names = [n for n in examiner.node_names() if not nodes or n in nodes]
    reason = ignored_reason(service)
    entries: list[Entry] = []
    if not reason:
        for port in service.ports:
            for front_end in sorted(
                examiner.front_ends(service, port).programmed,
                key=lambda f: (_ORDER.index(f.kind), f.ip_version),
            ):
                entries += _entries(examiner, service, port, front_end, names)
    case = Case(examiner, service, entries, names)
    witnesses = reconcile(case, health or {})
    findings = [*_findings(case), *health_findings(witnesses)]
    findings, causes = _assign(case, findings)
    matrices = _matrices(case, names, causes)
    headline = _headline(case, causes)
    undetermined = any(e.cell.symptom is Symptom.UNKNOWN for e in entries) or (
        not entries and not reason and snapshot.cluster.nodes is None
    )
    return ServiceDiagnosis(
        namespace=service.namespace,
        name=service.name,
        type=service.type,
        external_traffic_policy=service.external_traffic_policy,
        internal_traffic_policy=service.internal_traffic_policy,
        verdict=_verdict(case, findings, headline, reason),
        headline=tuple(headline),
        frontends=tuple(matrices),
        findings=tuple(findings),
        evidence_nodes={n: evidence_of(snapshot, n) for n in names},
        gaps=_gaps(examiner.original, names, ip_versions_of(service)),
        source=snapshot.source,
        versions={n: str(examiner.proxy(n).versions) for n in names},
        undetermined=undetermined,
        shares=tuple(_shares(case)),
        ways=tuple(_ways(case)),
        reconciliation=tuple(witnesses),
    )


def _ways(case: Case) -> list[Way]:
    """For each external front end one way that fails and one that succeeds, of outside clients, where walked."""
    out: list[Way] = []
    for title in dict.fromkeys(e.title for e in case.entries if e.is_external):
        for failing in (True, False):
            entry = next(
                (
                    e
                    for e in case.entries
                    if e.title == title
                    and e.vantage is Vantage.EXTERNAL
                    and e.fails is failing
                    and e.asked.fact is not None
                    and e.asked.fact.paths
                ),
                None,
            )
            if entry is None or entry.asked.fact is None:
                continue
            path = max(
                entry.asked.fact.paths,
                key=lambda p: ((p.symptom is Symptom.CONNECTS) is not failing, p.probability),
            )
            out.append(
                Way(
                    frontend=title,
                    node=entry.node,
                    vantage=entry.vantage.value,
                    client=entry.asked.question.client_name,
                    symptom=path.symptom,
                    reason=path.reason,
                    hops=path.hops,
                )
            )
    return out


def _shares(case: Case) -> list[LoadShare]:
    out: list[LoadShare] = []
    if not case.examiner.index.knows(case.service):
        return out
    for port in case.service.ports:
        entries = [
            e for e in case.entries if e.port == port and e.is_external and e.vantage is Vantage.EXTERNAL
        ]
        counts = {
            e.node: len(
                case.examiner.port_on(case.service, port, e.node)
                .selection(ip_version=e.front_end.ip_version)
                .local
            )
            for e in entries
        }
        if case.service.external_traffic_policy != "Local":
            counts = {e.node: 1 for e in entries}  # every node serves all endpoints alike
        out += load_shares(entries, case.service.external_traffic_policy, counts)
    return out


def _entries(
    examiner: Examiner, service: Service, port: ServicePort, front_end: FrontEnd, names: Iterable[str]
) -> list[Entry]:
    out = []
    for node in names:
        for question in examiner.questions(service, front_end, node):
            asked = examiner.ask(service, port, question)
            out.append(
                Entry(
                    port=port,
                    front_end=front_end,
                    title=_title(front_end, port),
                    asked=asked,
                    cell=examiner.cell(asked),
                )
            )
    return out


def _title(front_end: FrontEnd, port: ServicePort) -> str:
    return _matrix_head(front_end, port).title


def _matrix_head(front_end: FrontEnd, port: ServicePort) -> FrontEndMatrix:
    return FrontEndMatrix(
        kind=front_end.kind.value,
        protocol=port.protocol,
        port=port.port,
        port_name=port.name,
        node_port=port.node_port,
        address=str(front_end.ip) if front_end.ip is not None else None,
        ip_version=front_end.ip_version,
    )


def evidence_of(snapshot: Snapshot, node: str) -> tuple[str, ...]:
    """What was read of a node, in short words: "iptables-nft", "nftables", "routes"; empty where nothing."""
    state = snapshot.nodes.get(node)
    if state is None:
        return ()
    out = [r.backend.value for r in state.rulesets if r.family == "ip" and r.tables()]
    if state.nft is not None and state.nft.tables:
        out.append("nftables")
    if state.ipvs is not None and state.ipvs.services:
        out.append("ipvs")
    return tuple(dict.fromkeys(out))


def _findings(case: Case) -> list[Finding]:
    found: list[Finding] = []
    for check in ALL_CHECKS:
        found.extend(check.run(case))
    return found


def _assign(case: Case, findings: list[Finding]) -> tuple[list[Finding], dict[tuple[str, str, str], str]]:
    """The cause of each failing cell: the first finding that explains it. Cells left over are KTP901."""
    causes: dict[tuple[str, str, str], str] = {}
    failing = {e.key for e in case.failing()}
    for finding in findings:
        for key in finding.cells:
            if key in failing:
                causes.setdefault(key, finding.code)
    left: dict[tuple[str, str], list[Entry]] = {}
    for entry in case.failing():
        if entry.key not in causes:
            left.setdefault((entry.node, entry.cell.reason), []).append(entry)
    for (node, reason), entries in left.items():
        first = entries[0]
        basis = first.cell.decided_by
        findings.append(
            UNEXPLAINED.finding(
                f"{first.title} on {node} ({_vantages(entries)}): {first.cell.symptom.value}: {reason}",
                node=node,
                evidence=[Evidence(kind=basis.kind.value, source=basis.node, text=basis.rule)]
                if basis is not None
                else [],
                cells=entries,
                severity=Severity.WARNING if first.vantage is Vantage.EXTERNAL else Severity.INFO,
            )
        )
        for entry in entries:
            causes[entry.key] = UNEXPLAINED.code
    of_cells = {check.code for check in ALL_CHECKS if check.of_cells}
    doubtful = failing | {e.key for e in case.entries if e.cell.symptom is Symptom.UNKNOWN}
    findings = [
        replace(f, severity=Severity.INFO) if f.code in of_cells and doubtful.isdisjoint(f.cells) else f
        for f in findings
    ]
    # A finding about a failing cell that an earlier finding explains already is still true, but not the cause.
    order = {check.code: i for i, check in enumerate(ALL_CHECKS)}
    findings.sort(key=lambda f: (f.severity.rank, order.get(f.code, 99)))
    return findings, causes


def _vantages(entries: Iterable[Entry]) -> str:
    return ", ".join(dict.fromkeys(e.vantage.value for e in entries))


def _matrices(case: Case, names: list[str], causes: dict[tuple[str, str, str], str]) -> list[FrontEndMatrix]:
    grouped: dict[str, dict[str, list[Entry]]] = {}
    heads: dict[str, FrontEndMatrix] = {}
    for entry in case.entries:
        heads.setdefault(entry.title, _matrix_head(entry.front_end, entry.port))
        grouped.setdefault(entry.title, {}).setdefault(entry.node, []).append(entry)
    out = []
    for title, by_node in grouped.items():
        rows = []
        for node in names:
            entries = by_node.get(node)
            if not entries:
                continue
            cells = {e.vantage.value: replace(e.cell, cause=causes.get(e.key)) for e in entries}
            first = entries[0]
            selection = case.examiner.port_on(case.service, first.port, node).selection(
                ip_version=first.front_end.ip_version
            )
            addresses = [
                str(a) for a in node_addresses(case.snapshot, node) if a.version == first.front_end.ip_version
            ]
            rows.append(
                NodeRow(
                    node=node,
                    addresses=tuple(addresses),
                    local_endpoints=_local_count(selection)
                    if case.examiner.index.knows(case.service)
                    else None,
                    cells=cells,
                    evidence=evidence_of(case.snapshot, node),
                )
            )
        out.append(replace(heads[title], nodes=tuple(rows)))
    return out


def _local_count(selection: EndpointSelection) -> int:
    """How many endpoints of the node could be chosen there."""
    here = [*(e for e in selection.usable if e.is_local), *selection.local]
    return len({(e.ip, e.port) for e in here})


def _gaps(snapshot: Snapshot, names: Iterable[str], versions: Iterable[int]) -> tuple[EvidenceGap, ...]:
    known = {(g.kind, g.subject) for g in snapshot.gaps}
    extra = []
    for name in names:
        state = snapshot.nodes.get(name)
        if state is not None and state.data_plane:
            extra.append(
                EvidenceGap(
                    kind="data-plane",
                    subject=name,
                    message=f"the tables of {state.data_plane} on {name} were not read",
                    remedy=f"ask {state.data_plane}'s own tools there (ktp codes KTP403)",
                )
            )
            continue
        for version in versions:
            if state is not None and state.has_rules and not state.knows_rules_of(version):
                extra.append(
                    EvidenceGap(
                        kind="node-rules",
                        subject=name,
                        message=f"the IPv{version} rules of {name} were not read",
                        remedy="save ip6tables-save of the node too, or let ktp read the node"
                        if version == 6
                        else "save iptables-save of the node too, or let ktp read the node",
                    )
                )
        if (state is None or not state.has_rules) and ("node-rules", name) not in known:
            extra.append(
                EvidenceGap(
                    kind="node-rules",
                    subject=name,
                    message=f"the rules of {name} were not read",
                    remedy="run ktp on the node, or use --node-access ssh or kube-proxy",
                )
            )
        elif (
            state is not None
            and state.has_rules
            and state.sockets is None
            and (
                "node-sockets",
                name,
            )
            not in known
        ):
            extra.append(
                EvidenceGap(
                    kind="node-sockets",
                    subject=name,
                    message=f"the listening sockets of {name} were not read (no ss.txt)",
                    remedy="save `ss -lntuH` of the node",
                )
            )
    served = {g.subject for g in extra if g.kind == "data-plane"}
    told = [g for g in snapshot.gaps if g.kind != "node-rules" or g.subject not in served]
    return (*told, *extra)


# -- the verdict


def _headline(case: Case, causes: dict[tuple[str, str, str], str]) -> list[HeadlineGroup]:
    """The failing cells of outside clients, by front end, symptom and cause."""
    nodes: dict[tuple[str, Symptom, str], list[str]] = {}
    for e in case.failing():
        if e.is_external and e.vantage is Vantage.EXTERNAL:
            nodes.setdefault((e.title, e.cell.symptom, causes[e.key]), []).append(e.node)
    return [
        HeadlineGroup(
            frontend=title, nodes=tuple(names), vantage=Vantage.EXTERNAL.value, symptom=symptom, cause=cause
        )
        for (title, symptom, cause), names in nodes.items()
    ]


def _cause_of(findings: list[Finding], groups: Iterable[HeadlineGroup]) -> Finding | None:
    """The finding that explains cells of these groups, which have one cause."""
    cells = {(g.frontend, node, g.vantage) for g in groups for node in g.nodes}
    codes = {g.cause for g in groups}
    return next((f for f in findings if f.code in codes and not cells.isdisjoint(f.cells)), None)


def _causes_words(findings: list[Finding], headline: list[HeadlineGroup]) -> str:
    """ ". Cause: …", with the nodes of each where there are several."""
    by_code: dict[str, list[HeadlineGroup]] = {}
    for group in headline:
        by_code.setdefault(group.cause, []).append(group)
    said: list[str] = []
    for code, groups in by_code.items():
        finding = _cause_of(findings, groups)
        words = f"{code} {_cause_words(finding)}" if finding is not None else code
        if len(by_code) > 1:
            words = f"{_some(list(dict.fromkeys(n for g in groups for n in g.nodes)))}: {words}"
        said.append(words)
    if not said:
        return ""
    return (". Causes: " if len(said) > 1 else ". Cause: ") + "; ".join(said)


def _verdict(case: Case, findings: list[Finding], headline: list[HeadlineGroup], ignored: str) -> str:
    service = case.service
    if ignored:
        return f"{service.key} has no front end for kube-proxy: {ignored}"
    external = [e for e in case.entries if e.is_external and e.vantage is Vantage.EXTERNAL]
    if not external:
        if not case.entries and case.snapshot.cluster.nodes is None:
            return f"where {service.key} answers is not known: the nodes were not read"
        if not case.entries:
            return f"{service.key} has no front end on any node that ktp knows"
        inside = [e for e in case.entries if e.fails]
        state = (
            "its cluster IP does not answer everywhere inside"
            if inside
            else "its cluster IP answers inside the cluster"
        )
        return (
            f"{service.key} is of type {service.type} and has no external front end: "
            f"nothing outside can dial it; {state}"
        )
    parts = []
    for title in dict.fromkeys(e.title for e in external):
        mine = [e for e in external if e.title == title]
        parts.append(_title_verdict(title, mine))
    planes: dict[str, list[str]] = {}
    for node in case.nodes:
        if name := case.examiner.data_plane(node):
            planes.setdefault(name, []).append(node)
    if planes:
        said = [f"{name} serves Services on {listed(nodes)}" for name, nodes in planes.items()]
        return f"{'; '.join(parts[:3])}. KTP403 {'; '.join(said)}, and its tables were not read"
    verdict = "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more front ends" if len(parts) > 3 else "")
    if headline:
        return verdict + _causes_words(findings, headline)
    # An error may concern other clients, or the load balancer's health check, while outside clients get through.
    main = next((f for f in findings if f.severity is Severity.ERROR), None)
    return verdict + (f". But: {main.code} {_cause_words(main)}" if main is not None else "")


def _title_verdict(title: str, entries: list[Entry]) -> str:
    good = [e.node for e in entries if e.cell.symptom is Symptom.CONNECTS and not e.is_swallowed]
    taken = [e.node for e in entries if e.cell.symptom is Symptom.CONNECTS and e.is_swallowed]
    bad = [e.node for e in entries if e.fails and not e.is_swallowed]
    unknown = [e.node for e in entries if e.cell.symptom is Symptom.UNKNOWN]
    every = len(entries)
    if len(good) == every:
        kept = {e.cell.source_kept for e in entries}
        source = (
            ", the client's address is kept"
            if kept == {True}
            else ", the client's address is rewritten"
            if kept == {False}
            else ""
        )
        where = f"all {every} nodes" if every > 1 else entries[0].node
        return f"{title} answers outside clients on {where}{source}"
    if unknown and not bad and not good and not taken:
        return f"{title}: what outside clients get is not known"
    words = {
        Symptom.TIMES_OUT: "times out",
        Symptom.REFUSED: "is refused",
        Symptom.UNREACHABLE: "is unreachable",
        Symptom.INTERMITTENT: "fails now and then",
    }
    by_symptom: dict[str, list[str]] = {}
    for e in entries:
        if e.fails and not e.is_swallowed:
            by_symptom.setdefault(words.get(e.cell.symptom, "fails"), []).append(e.node)
    said = []
    if good:
        said.append(f"answers outside clients on {_some(good)}")
    said += [
        f"{w} on {'all ' + str(every) + ' nodes' if len(n) == every > 1 else _some(n)}"
        for w, n in by_symptom.items()
    ]
    if taken:
        said.append(f"ends at a socket of the node itself on {_some(taken)}")
    if unknown:
        said.append(f"is not known on {_some(unknown)}")
    return f"{title} " + ", ".join(said)


def _some(names: list[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more nodes"
    return ", ".join(names)


def _cause_words(finding: Finding) -> str:
    return {
        "KTP501": "externalTrafficPolicy is Local and no usable endpoint runs there",
        "KTP101": "no usable endpoint anywhere",
        "KTP102": "pods exist, none is ready",
        "KTP103": "the selector matches no pod",
        "KTP401": "the node's rules disagree with the API",
        "KTP901": "no cause that ktp knows by name",
    }.get(finding.code, finding.message)


def is_external(entry: Entry) -> bool:
    """Whether a cell is of a front end for clients outside."""
    return entry.front_end.kind in EXTERNAL_KINDS
