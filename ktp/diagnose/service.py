"""The diagnosis of one Service: the matrix, the causes, the verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from ktp.diagnose.alike import FEW, Alike, Twin, alike_nodes
from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks import ALL_CHECKS
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.diagnose.checks.ktp901_unexplained import CHECK as UNEXPLAINED
from ktp.diagnose.examine import Examiner
from ktp.diagnose.questions import Question
from ktp.diagnose.reconcile import health_findings, reconcile
from ktp.diagnose.share import load_shares
from ktp.diagnose.verdict import headline_of, verdict_of
from ktp.kubeproxy.data_planes import is_readable_plane
from ktp.kubeproxy.endpoints import EndpointSelection
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason, ip_versions_of
from ktp.kubeproxy.outcome import Vantage
from ktp.model.capture import EvidenceGap
from ktp.model.cluster import Service, ServicePort
from ktp.model.diagnosis import (
    Cell,
    Evidence,
    Finding,
    FrontEndMatrix,
    LoadShare,
    NodeRow,
    OtherAddress,
    OtherClient,
    ServiceDiagnosis,
    Severity,
    Way,
)
from ktp.model.host import IPAddress, NodeState
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom

if TYPE_CHECKING:
    from ktp.model.probing import HealthAnswer

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
    few: int = FEW,
    examiner: Examiner | None = None,
) -> ServiceDiagnosis:
    """Everything that ktp can say about one Service.

    `nodes` restricts the rows (default: all); `client` is the outside client to ask for (default: one far away);
    `health` holds what the nodes' healthCheckNodePorts said, where they were asked. Of more than `few` nodes alike
    two are examined for all. `examiner` is one of this snapshot and client, where several Services are diagnosed: what
    it has compiled for one serves the next.
    """
    examiner = examiner or Examiner(snapshot, client=client)
    names = [n for n in examiner.node_names() if not nodes or n in nodes]
    reason = ignored_reason(service)
    asked_for: list[tuple[ServicePort, FrontEnd]] = []
    if not reason:
        asked_for = [
            (port, front_end)
            for port in service.ports
            for front_end in sorted(
                examiner.front_ends(service, port).programmed,
                key=lambda f: (_ORDER.index(f.kind), f.ip_version),
            )
        ]
    questions = {
        name: [examiner.questions(service, front_end, name) for _, front_end in asked_for] for name in names
    }
    alike = alike_nodes(examiner, service, {name: [*chain(*rows)] for name, rows in questions.items()}, few)
    entries = _entries(examiner, service, asked_for, questions, alike)
    case = Case(examiner, service, entries, names, alike)
    witnesses = reconcile(case, health or {})
    findings = [*_findings(case), *health_findings(witnesses)]
    findings, causes = _assign(case, findings)
    findings, causes = _everywhere(alike, findings, causes)
    matrices = _matrices(case, names, causes)
    headline = headline_of(case, causes)
    undetermined = any(e.cell.symptom is Symptom.UNKNOWN for e in entries) or (
        not entries and not reason and snapshot.cluster.nodes is None
    )
    return ServiceDiagnosis(
        namespace=service.namespace,
        name=service.name,
        type=service.type,
        external_traffic_policy=service.external_traffic_policy,
        internal_traffic_policy=service.internal_traffic_policy,
        verdict=verdict_of(case, findings, headline, reason),
        headline=tuple(headline),
        frontends=tuple(matrices),
        findings=tuple(findings),
        evidence_nodes={n: evidence_of(snapshot, n) for n in names},
        gaps=_gaps(examiner.original, names, ip_versions_of(service)),
        source=snapshot.source,
        versions={n: str(examiner.proxy(n).versions) for n in names if not examiner.data_plane(n)},
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
        entries = case.outside.get((port.protocol, port.port, port.name), [])
        counts = {e.node: len(selection_of(case, e).local) for e in entries}
        if case.service.external_traffic_policy != "Local":
            counts = {e.node: 1 for e in entries}  # every node serves all endpoints alike
        out += load_shares(entries, case.service.external_traffic_policy, counts)
    return out


def _entries(
    examiner: Examiner,
    service: Service,
    asked_for: Iterable[tuple[ServicePort, FrontEnd]],
    questions: Mapping[str, Sequence[Sequence[Question]]],
    alike: Alike,
) -> list[Entry]:
    """The cells of all nodes, those of twins from the nodes that were asked."""
    twins = {name: Twin(alike, name) for name in alike.twin_of}
    out = []
    for place, (port, front_end) in enumerate(asked_for):
        title = front_end_title(front_end, port)
        answers: dict[str, list[Entry]] = {}
        for node in [*(n for n in questions if n not in twins), *twins]:
            found = answers[node] = []
            for at, question in enumerate(questions[node][place]):
                if node in twins:
                    first = answers[alike.twin_of[node]][at]
                    asked = twins[node].asked(first.asked, question)
                    cell = twins[node].cell(first.cell, asked)
                else:
                    asked = examiner.ask(service, port, question)
                    cell = examiner.cell(asked)
                    if asked.fact is not None and front_end.kind is not FrontEndKind.CLUSTER_IP:
                        cell = replace(
                            cell,
                            others=_others(examiner, service, port, question, cell),
                            addresses=_addresses(examiner, service, port, question),
                        )
                found.append(Entry(port=port, front_end=front_end, title=title, asked=asked, cell=cell))
        out += [entry for node in questions for entry in answers[node]]
    return out


def _everywhere(
    alike: Alike, findings: Iterable[Finding], causes: Mapping[tuple[str, str, str], str]
) -> tuple[list[Finding], dict[tuple[str, str, str], str]]:
    """What was found of the examined nodes, of those alike too."""

    def of_all(cells: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        return [(title, node, vantage) for title, found_on, vantage in cells for node in alike.of(found_on)]

    if not alike.twin_of:
        return list(findings), dict(causes)
    return [
        replace(
            f,
            nodes=(nodes := tuple(alike.everywhere(f.nodes))),
            alike=tuple(n for n in nodes if n not in f.nodes) if f.node is not None else (),
            cells=tuple(of_all(f.cells)),
        )
        for f in findings
    ], {cell: code for key, code in causes.items() for cell in of_all([key])}


def _others(
    examiner: Examiner, service: Service, port: ServicePort, question: Question, cell: Cell
) -> tuple[OtherClient, ...]:
    """The clients of the cell's kind that see something else."""
    found = []
    for who, other in examiner.others_alike(service, question):
        symptom, reason = examiner.seen(service, port, other)
        if symptom not in (cell.symptom, Symptom.UNKNOWN):
            found.append(OtherClient(who=who, client=str(other.client.ip), symptom=symptom, reason=reason))
    return tuple(found)


def _addresses(
    examiner: Examiner, service: Service, port: ServicePort, question: Question
) -> tuple[OtherAddress, ...]:
    """The same at each further address of the node."""
    found = []
    for other in examiner.at_further_addresses(question):
        symptom, reason = examiner.seen(service, port, other)
        found.append(OtherAddress(address=str(other.front_end.ip), symptom=symptom, reason=reason))
    return tuple(found)


def front_end_title(front_end: FrontEnd, port: ServicePort) -> str:
    """What a front end is called in reports: `nodePort 31015/TCP`, `loadBalancer 10.99.0.10:80/TCP`."""
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
    if state.cilium is not None and state.cilium.is_readable:
        version = state.cilium.config.version
        out.append("Cilium's maps" if version is None else f"maps of Cilium {version[0]}.{version[1]}")
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
                evidence=[Evidence(basis.kind.value, basis.node, basis.rule)] if basis is not None else [],
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
    for entry in case.whole:
        heads.setdefault(entry.title, _matrix_head(entry.front_end, entry.port))
        grouped.setdefault(entry.title, {}).setdefault(entry.node, []).append(entry)
    out = []
    for title, by_node in grouped.items():
        rows = []
        for node in names:
            entries = by_node.get(node)
            if not entries:
                continue
            cells = {e.vantage.value: _told(case, e, causes.get(e.key)) for e in entries}
            first = entries[0]
            addresses = [
                str(a) for a in case.examiner.addresses(node) if a.version == first.front_end.ip_version
            ]
            rows.append(
                NodeRow(
                    node=node,
                    addresses=tuple(addresses),
                    local_endpoints=_local_count(selection_of(case, first))
                    if case.examiner.index.knows(case.service)
                    else None,
                    cells=cells,
                    evidence=evidence_of(case.snapshot, node),
                )
            )
        out.append(replace(heads[title], nodes=tuple(rows)))
    return out


def _told(case: Case, entry: Entry, cause: str | None) -> Cell:
    """The cell with what the checks found of it."""
    first = case.alike.twin_of.get(entry.node, entry.node)
    hang = case.hangs.get((entry.title, first, entry.vantage.value))
    return entry.cell if cause is None and hang is None else replace(entry.cell, cause=cause, hang=hang)


def _local_count(selection: EndpointSelection) -> int:
    """How many endpoints of the node could be chosen there."""
    here = [*(e for e in selection.usable if e.is_local), *selection.local]
    return len({(e.ip, e.port) for e in here})


def _remedy_of_plane(state: NodeState) -> str:
    if is_readable_plane(state):
        return "let ktp read them through the agent's pod: --node-access agent"
    return "its own tool prints them there (KTP403 has the command)"


def _gaps(snapshot: Snapshot, names: Iterable[str], versions: Iterable[int]) -> tuple[EvidenceGap, ...]:
    known = {(g.kind, g.subject) for g in snapshot.gaps}
    extra: list[EvidenceGap] = []
    for name in names:
        state = snapshot.nodes.get(name)

        def lacks(kind: str, words: str, remedy: str, name: str = name) -> None:
            extra.append(EvidenceGap(kind, name, words, remedy=remedy))

        if state is not None and state.data_plane_unread:
            words = f"the tables of {state.data_plane} on {name} were not read"
            lacks("data-plane", words, _remedy_of_plane(state))
            continue
        for version in versions:
            if state is not None and state.has_rules and not state.knows_rules_of(version):
                words = f"the IPv{version} rules of {name} were not read"
                command = "ip6tables-save" if version == 6 else "iptables-save"
                lacks("node-rules", words, f"save {command} of the node too, or let ktp read the node")
        if state is None or not state.has_rules:
            if ("node-rules", name) not in known:
                words = f"the rules of {name} were not read"
                lacks("node-rules", words, "run ktp on the node, or use --node-access ssh or agent")
        elif state.sockets is None and ("node-sockets", name) not in known:
            words = f"the listening sockets of {name} were not read (no ss.txt)"
            lacks("node-sockets", words, "save `ss -lntuH` of the node")
    served = {g.subject for g in extra if g.kind == "data-plane"}
    told = [g for g in snapshot.gaps if g.kind != "node-rules" or g.subject not in served]
    return (*told, *extra)
