"""All Services at a glance: who answers outside clients, on how many nodes, worst first.

Nodes that kube-proxy treats alike are asked once for all of them: with 5,000 nodes and 10,000 Services the matrix would
have 50 million rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import field, replace
from itertools import islice
from time import monotonic

from ktp.diagnose.checks.health_common import has_health_check
from ktp.diagnose.examine import Examiner
from ktp.diagnose.questions import node_addresses
from ktp.diagnose.service import diagnose_service
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason
from ktp.kubeproxy.node import ProxyNode
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.model.cluster import Service, ServicePort
from ktp.model.diagnosis import ServiceDiagnosis, Severity
from ktp.model.host import IPAddress
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Flow, Symptom

_NAMED = 20  # failing nodes that a row names
_EXTERNAL = (FrontEndKind.NODE_PORT, FrontEndKind.LOAD_BALANCER, FrontEndKind.EXTERNAL_IP)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyRow:
    """One front end of one Service. `symptoms` counts the nodes by what an outside client gets there.

    `host_process` among them are nodes of which a socket takes the connection, so that it never reaches the Service.
    `silent` of those that fail hold no endpoint, and the load balancer's health check keeps clients off them.
    `severity` is that of the gravest finding of the whole Service, where it was diagnosed.
    """

    namespace: str
    name: str
    type: str
    policy: str
    front_end: str
    symptoms: dict[str, int] = field(default_factory=dict)
    failing_nodes: tuple[str, ...] = ()
    silent: int = 0
    cause: str | None = None
    reason: str = ""
    basis: str = "api"
    severity: Severity | None = None

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def total(self) -> int:
        """How many nodes were asked for."""
        return sum(self.symptoms.values())

    @property
    def failing(self) -> int:
        """Nodes on which outside clients do not (always) get through, but for those that are silent by design."""
        fine = (Symptom.CONNECTS.value, Symptom.UNKNOWN.value)
        return sum(n for s, n in self.symptoms.items() if s not in fine) - self.silent

    @property
    def unknown(self) -> int:
        """Nodes of which it is not known."""
        return self.symptoms.get(Symptom.UNKNOWN.value, 0)


def survey(
    snapshot: Snapshot, *, namespace: str | None = None, nodes: Collection[str] = ()
) -> list[SurveyRow]:
    """Every front end for outside clients, worst first."""
    examiner = Examiner(snapshot, suppose_pods=False)
    names = [n for n in examiner.node_names() if not nodes or n in nodes]
    asked = [n for n in names if examiner.has_rules(n)]
    classes = _classes(examiner, [n for n in names if not examiner.has_rules(n)])
    rows: list[SurveyRow] = []
    for service in snapshot.cluster.services.values():
        if (namespace is not None and service.namespace != namespace) or ignored_reason(service):
            continue
        for port in service.ports:
            for front_end in examiner.front_ends(service, port).programmed:
                if front_end.kind in _EXTERNAL:
                    rows.append(_row(examiner, service, port, front_end, asked, classes))
    return sorted(rows, key=_badness)


def surveyed(snapshot: Snapshot, *, namespace: str | None = None) -> list[str]:
    """The Services ("namespace/name") that have a front end for outside clients."""
    examiner = Examiner(snapshot, suppose_pods=False)
    return [
        key
        for key, service in snapshot.cluster.services.items()
        if (namespace is None or service.namespace == namespace) and not ignored_reason(service)
        if any(
            f.kind in _EXTERNAL
            for port in service.ports
            for f in examiner.front_ends(service, port).programmed
        )
    ]


def rows_of(diagnoses: Iterable[ServiceDiagnosis]) -> list[SurveyRow]:
    """The same rows from whole diagnoses, worst first: they say what these say."""
    return sorted((row for d in diagnoses for row in _rows_of(d)), key=_badness)


def with_causes(
    snapshot: Snapshot, rows: list[SurveyRow], *, nodes: Collection[str] = (), seconds: float
) -> tuple[list[SurveyRow], dict[str, ServiceDiagnosis]]:
    """The rows with those of whole diagnoses in place of what is not well, and these diagnoses by Service.

    They are made worst first, for about so many seconds; the rows of the other Services stay as they are.
    """
    until = monotonic() + seconds
    examiner = Examiner(snapshot)
    reports: dict[str, ServiceDiagnosis] = {}
    for key in dict.fromkeys(row.key for row in rows if row.failing or row.unknown):
        if monotonic() >= until:
            break
        service = snapshot.cluster.services[key]
        reports[key] = diagnose_service(snapshot, service, nodes=nodes, examiner=examiner)
    kept = [row for row in rows if row.key not in reports]
    return sorted([*kept, *rows_of(reports.values())], key=_badness), reports


def _rows_of(d: ServiceDiagnosis) -> Iterable[SurveyRow]:
    silent = {(group.frontend, node) for group in d.silent for node in group.nodes}
    worst = min((f.severity for f in d.findings), key=lambda s: s.rank, default=None)
    for matrix in d.frontends:
        cells = {row.node: row.cells["external"] for row in matrix.nodes if "external" in row.cells}
        if matrix.kind == FrontEndKind.CLUSTER_IP.value or not cells:
            continue
        groups = [g for g in d.headline if g.frontend == matrix.title and g not in d.silent]
        symptoms = Counter(
            Disposition.HOST_PROCESS.value if c.disposition is Disposition.HOST_PROCESS
            and c.symptom is Symptom.CONNECTS else c.symptom.value
            for c in cells.values()
        )  # fmt: skip
        failing = [node for group in groups for node in group.nodes]
        bases = {c.basis for c in cells.values()} - {"none"}
        main = next((f.code for f in d.findings if f.severity in (Severity.ERROR, Severity.WARNING)), None)
        yield SurveyRow(
            namespace=d.namespace,
            name=d.name,
            type=d.type,
            policy=d.external_traffic_policy,
            front_end=matrix.title,
            symptoms=dict(symptoms),
            failing_nodes=tuple(failing),
            silent=sum((matrix.title, node) in silent for node in cells),
            cause=groups[0].cause if groups else main,
            reason=cells[failing[0]].reason if failing else "",
            basis="rules and api" if len(bases) > 1 else next(iter(bases), "api"),
            severity=worst,
        )


def _badness(row: SurveyRow) -> tuple[float, int, bool, str, str]:
    share = row.failing / row.total if row.total else 0
    rank = row.severity.rank if row.severity is not None else 9
    return -share, rank, row.unknown == 0, row.key, row.front_end


class _Class:
    """Nodes that differ in name only, in order."""

    __slots__ = ("members", "ordered")

    def __init__(self) -> None:
        self.ordered: list[str] = []
        self.members: set[str] = set()


def _classes(examiner: Examiner, names: Iterable[str]) -> list[_Class]:
    found: dict[object, _Class] = {}
    for name in names:
        key = (_without_identity(examiner.proxy(name)), examiner.data_plane(name))
        if key not in found:
            found[key] = _Class()
        found[key].members.add(name)
        found[key].ordered.append(name)
    return list(found.values())


def _without_identity(proxy: ProxyNode) -> object:
    own = proxy.proxy_name not in ("", proxy.name)
    return (
        proxy.versions, proxy.modes, proxy.detectors, proxy.node_port_addresses, proxy.masquerade_all,
        proxy.localhost_node_ports, proxy.route_localnet, tuple(sorted(proxy.feature_gates.items())),
        tuple(sorted({ip.version for ip in proxy.primary_ips})), proxy.name if own else "",
    )  # fmt: skip


def _row(
    examiner: Examiner,
    service: Service,
    port: ServicePort,
    front_end: FrontEnd,
    asked: list[str],
    classes: list[_Class],
) -> SurveyRow:
    symptoms: dict[str, int] = {}
    failing: list[str] = []
    silent = 0
    designed = has_health_check(service) and front_end.kind is not FrontEndKind.EXTERNAL_IP
    reason = ""
    cause: str | None = None
    holders = {
        e.node_name
        for s in examiner.slices_of(service)
        for e in s.endpoints
        if e.node_name is not None and (e.is_ready or e.is_serving)
    }
    for name in asked:
        question = next(
            (q for q in examiner.questions(service, front_end, name) if q.vantage is Vantage.EXTERNAL), None
        )
        if question is None:
            continue
        both = examiner.ask(service, port, question)
        cell = examiner.cell(both)
        swallowed = cell.disposition is Disposition.HOST_PROCESS and cell.symptom is Symptom.CONNECTS
        what = cell.disposition.value if swallowed else cell.symptom.value
        symptoms[what] = symptoms.get(what, 0) + 1
        if swallowed or cell.symptom not in (Symptom.CONNECTS, Symptom.UNKNOWN):
            if (
                designed
                and not swallowed
                and both.intent.symptom in (cell.symptom, Symptom.UNKNOWN)
                and _is_local_elsewhere(examiner, service, port, front_end, name)
            ):
                silent += 1
                continue
            failing.append(name)
            if not reason or cause is None:
                reason = cell.reason
                cause = _cause(examiner, service, port, front_end, name)
    for each in classes:
        holding = each.members & holders
        for members in (
            sorted(holding),
            islice((n for n in each.ordered if n not in holding), _NAMED),
        ):
            some = list(members)
            if not some:
                continue
            first = some[0]
            count = len(some) if first in holding else len(each.ordered) - len(holding)
            symptom, why = _intended(examiner, service, port, front_end, first)
            if symptom is None:
                continue
            symptoms[symptom.value] = symptoms.get(symptom.value, 0) + count
            if symptom not in (Symptom.CONNECTS, Symptom.UNKNOWN):
                if (
                    designed
                    and first not in holding
                    and _is_local_elsewhere(examiner, service, port, front_end, first)
                ):
                    silent += count
                    continue
                failing += some[: max(0, _NAMED - len(failing))]
                reason = reason or why
                cause = cause or _cause(examiner, service, port, front_end, first)
    return SurveyRow(
        namespace=service.namespace,
        name=service.name,
        type=service.type,
        policy=service.external_traffic_policy,
        front_end=_title(front_end),
        symptoms=symptoms,
        failing_nodes=tuple(failing),
        silent=silent,
        cause=cause,
        reason=reason,
        basis="rules" if asked and not classes else "rules and api" if asked else "api",
    )


def _is_local_elsewhere(
    examiner: Examiner, service: Service, port: ServicePort, front_end: FrontEnd, node: str
) -> bool:
    """Whether the Service has endpoints, and none on this node: policy Local keeps it silent there (KTP501)."""
    selection = examiner.port_on(service, port, node).selection(ip_version=front_end.ip_version)
    return selection.has_endpoints and not selection.local


def _intended(
    examiner: Examiner, service: Service, port: ServicePort, front_end: FrontEnd, node: str
) -> tuple[Symptom | None, str]:
    dialled = front_end
    if front_end.kind is FrontEndKind.NODE_PORT:
        address = _address(examiner, node, front_end.ip_version)
        if address is None:
            return None, ""
        dialled = front_end.on(address)
    client = Client(vantage=Vantage.EXTERNAL, ip=_inside(service, front_end))
    flow = Flow(
        dst=str(dialled.ip),
        port=dialled.port,
        protocol=dialled.protocol.lower(),
        src=str(client.ip),
        via=node,
    )
    intent = examiner.intent(service, port, dialled, client, node, flow=flow)
    return intent.symptom, intent.decided_by


def _inside(service: Service, front_end: FrontEnd) -> IPAddress:
    from ktp.diagnose.questions import FAR_CLIENTS, client_within

    if front_end.kind is FrontEndKind.LOAD_BALANCER and service.load_balancer_source_ranges:
        found = client_within(service.load_balancer_source_ranges, front_end.ip_version, set())
        if found is not None:
            return found
    return FAR_CLIENTS[front_end.ip_version]


def _address(examiner: Examiner, node: str, family: int) -> IPAddress | None:
    return next((a for a in node_addresses(examiner.snapshot, node) if a.version == family), None)


def _cause(
    examiner: Examiner, service: Service, port: ServicePort, front_end: FrontEnd, node: str
) -> str | None:
    """The code that `diagnose svc NAME` would likely name; the survey itself runs no counterfactual but this one."""
    selection = examiner.port_on(service, port, node).selection(ip_version=front_end.ip_version)
    if not examiner.index.knows(service):
        return None
    if not selection.has_endpoints:
        pods = examiner.snapshot.cluster.pods
        if pods is not None and service.selector:
            mine = [
                p
                for p in examiner.pods.in_namespace(service.namespace)
                if all(p.labels.get(k) == v for k, v in service.selector.items())
            ]
            if not mine:
                return "KTP103"
            if not any(p.is_ready for p in mine):
                return "KTP102"
        return "KTP101"
    if service.external_traffic_policy == "Local" and not selection.local:
        cluster = replace(service, external_traffic_policy="Cluster")
        symptom, _ = _intended(examiner, cluster, port, front_end, node)
        return "KTP501" if symptom is Symptom.CONNECTS else None
    return None


def _title(front_end: FrontEnd) -> str:
    if front_end.kind is FrontEndKind.NODE_PORT:
        return f"nodePort {front_end.port}/{front_end.protocol}" + (
            " (IPv6)" if front_end.ip_version == 6 else ""
        )
    where = f"[{front_end.ip}]" if front_end.ip_version == 6 else str(front_end.ip)
    return f"{front_end.kind.value} {where}:{front_end.port}/{front_end.protocol}"
