"""One node judged by its own evidence: what every front end for outside clients is meant to do there, and does.

Only the client outside is asked for, on the one node, so that a look at ten thousand Services takes seconds; the few
Services that are not well are then diagnosed whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from typing import NamedTuple

from ktp.diagnose.case import EXTERNAL_KINDS
from ktp.diagnose.examine import Asked, Examiner
from ktp.diagnose.service import diagnose_service, evidence_of, front_end_title
from ktp.kubeproxy.frontends import FrontEnd, ignored_reason
from ktp.kubeproxy.outcome import Vantage
from ktp.model.cluster import EndpointSlice, Service, ServicePort
from ktp.model.diagnosis import Cell, Finding, ServiceDiagnosis
from ktp.model.node_check import CheckedFrontEnd, FrontEndState, NodeCheck
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Symptom

MOST_DIAGNOSED = 12
"""Services diagnosed in one look; each takes a tenth of a second or more."""
_OF_EACH = 3
"""Services diagnosed of those that suffer alike: one fault of the node hits hundreds."""


class _Objects(NamedTuple):
    """All that the API says of one Service."""

    service: Service
    slices: tuple[EndpointSlice, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was found of one Service, and of which objects."""

    objects: _Objects
    checked: tuple[CheckedFrontEnd, ...]
    strangers: tuple[str, ...] = ()
    findings: tuple[Finding, ...] | None = None  # None: not diagnosed

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, and nothing unknown."""
        return all(e.state.is_well for e in self.checked)


def _asked_again(before: _Kept | None, now: _Kept) -> _Kept:
    """With what was found of the Service before, where the answers are the same: its causes are, too."""
    if before is None or before.objects != now.objects or before.findings is None:
        return now
    if now.checked != tuple(replace(e, cause=None) for e in before.checked):
        return now
    return before


class NodeChecker:
    """Looks at a node again and again, and asks only what may have changed since the last look.

    Where the node's evidence is the same as before, a Service of which the objects are the same is as it was.
    """

    def __init__(self, node: str, *, most: int = MOST_DIAGNOSED) -> None:
        """`most` limits how many Services are diagnosed in one look."""
        self._node = node
        self._most = most
        self._kept: dict[str, _Kept] = {}
        self._same: object = None
        self.strangers: frozenset[str] = frozenset()
        """Addresses that packets of unknown fate are sent to, and that the API does not have there."""

    def check(self, snapshot: Snapshot, *, same_node: bool = False) -> NodeCheck:
        """The state of every front end. `same_node`: the node's evidence is that of the last look."""
        node = self._node
        cluster = snapshot.cluster
        surroundings = (cluster.nodes, cluster.version, cluster.slices is None, cluster.endpoints is None)
        if not same_node or surroundings != self._same:
            self._kept = {}
        self._same = surroundings
        examiner = Examiner(snapshot, suppose_pods=False)
        found: dict[str, _Kept] = {}
        for key, service in cluster.services.items():
            if not may_be_external(service) or ignored_reason(service):
                continue
            objects = _Objects(service, examiner.slices_of(service))
            kept = self._kept.get(key)
            if kept is None or kept.objects != objects or not kept.is_well:
                kept = _asked_again(kept, _Kept(objects, *_checked(examiner, service, node)))
            if kept.checked:
                found[key] = kept
        self.strangers = frozenset(ip for kept in found.values() for ip in kept.strangers)
        self._diagnose(snapshot, found)
        self._kept = found
        every = [each for kept in found.values() for each in kept.checked]
        counts = Counter(each.state for each in every)
        return NodeCheck(
            node=node,
            counts={state: counts[state] for state in FrontEndState},
            not_well=tuple(sorted((e for e in every if not e.state.is_well), key=_badness)),
            findings={key: kept.findings for key, kept in found.items() if kept.findings is not None},
            undiagnosed=sum(_is_suspect(kept) and kept.findings is None for kept in found.values()),
            evidence=evidence_of(snapshot, node),
            gaps=snapshot.gaps,
            source=snapshot.source,
        )

    def _diagnose(self, snapshot: Snapshot, found: dict[str, _Kept]) -> None:
        """Seek the cause of what is not well: first one of each kind of trouble, then the others, up to the limit."""
        waiting: dict[object, list[str]] = {}
        for key, kept in sorted(found.items(), key=lambda item: item[1].findings is None):
            if _is_suspect(kept):
                waiting.setdefault(_trouble(kept.checked), []).append(key)
        for key in _in_turn(waiting.values(), self._most):
            kept = found[key]
            if kept.findings is not None:
                continue
            diagnosis = diagnose_service(snapshot, kept.objects.service, nodes=(self._node,))
            found[key] = _explained(kept, diagnosis, self._node)


def may_be_external(service: Service) -> bool:
    """Whether the Service may have a front end for outside clients."""
    return bool(service.type in ("NodePort", "LoadBalancer") or service.external_ips or service.ingress)


def _checked(
    examiner: Examiner, service: Service, node: str
) -> tuple[tuple[CheckedFrontEnd, ...], tuple[str, ...]]:
    """The front ends of a Service on the node, and the strangers that packets to them are sent to."""
    checked: list[CheckedFrontEnd] = []
    strangers: list[str] = []
    for port in service.ports:
        for front_end in examiner.front_ends(service, port).programmed:
            if front_end.kind not in EXTERNAL_KINDS:
                continue
            question = next(
                (q for q in examiner.questions(service, front_end, node) if q.vantage is Vantage.EXTERNAL),
                None,
            )
            if question is None:
                continue
            asked = examiner.ask(service, port, question)
            cell = examiner.cell(asked)
            state = _state(examiner, service, port, front_end, asked, cell, node)
            if cell.symptom is Symptom.UNKNOWN:
                meant = {e.ip for e in asked.intent.endpoints}
                strangers += [e.ip for e in cell.endpoints if e.ip not in meant]
            checked.append(
                CheckedFrontEnd(
                    namespace=service.namespace,
                    name=service.name,
                    policy=service.external_traffic_policy,
                    title=front_end_title(front_end, port),
                    state=state,
                    symptom=cell.symptom,
                    intended=asked.intent.symptom,
                    reason=cell.reason,
                )
            )
    return tuple(checked), tuple(strangers)


def _state(
    examiner: Examiner,
    service: Service,
    port: ServicePort,
    front_end: FrontEnd,
    asked: Asked,
    cell: Cell,
    node: str,
) -> FrontEndState:
    if cell.symptom is Symptom.UNKNOWN or asked.fact is None:
        astray = {(e.ip, e.port) for e in cell.endpoints} - {(e.ip, e.port) for e in asked.intent.endpoints}
        if astray and asked.is_certain_of_endpoints and asked.intent.symptom is not Symptom.UNKNOWN:
            return FrontEndState.DEVIATES
        return FrontEndState.UNKNOWN
    if cell.symptom is Symptom.CONNECTS and cell.disposition is not Disposition.HOST_PROCESS:
        return FrontEndState.ANSWERS if _as_meant(asked, cell) else FrontEndState.DEVIATES
    selection = examiner.port_on(service, port, node).selection(ip_version=front_end.ip_version)
    meant = asked.intent.symptom is cell.symptom and cell.disposition is not Disposition.HOST_PROCESS
    return FrontEndState.SILENT if meant and selection.has_endpoints else FrontEndState.FAILS


def _as_meant(asked: Asked, cell: Cell) -> bool:
    """Whether a connection goes to the endpoints that the API has, with the source address that the policy asks for."""
    intent = asked.intent
    if intent.symptom is Symptom.UNKNOWN or intent.passes:
        return True
    if intent.symptom is not Symptom.CONNECTS:
        return False
    if {(e.ip, e.port) for e in cell.endpoints} != {(e.ip, e.port) for e in intent.endpoints}:
        return False
    return None in (cell.source_kept, intent.source_kept) or cell.source_kept is intent.source_kept


def _is_suspect(kept: _Kept) -> bool:
    return any(e.state in (FrontEndState.FAILS, FrontEndState.DEVIATES) for e in kept.checked)


def _trouble(checked: Iterable[CheckedFrontEnd]) -> object:
    """What Services that suffer from one and the same thing have in common."""
    return frozenset((e.state, e.symptom, e.intended) for e in checked if not e.state.is_well)


def _in_turn(groups: Iterable[list[str]], most: int) -> Iterator[str]:
    """The first of each group, then the second of each, and so on: `most` in all."""
    rounds = zip_longest(*(group[:_OF_EACH] for group in groups))
    return islice((key for turn in rounds for key in turn if key is not None), most)


def _explained(kept: _Kept, diagnosis: ServiceDiagnosis, node: str) -> _Kept:
    """With the causes of what is not well, and of the findings those that are about it."""
    cells = {m.title: row.cells for m in diagnosis.frontends for row in m.nodes if row.node == node}
    outside = Vantage.EXTERNAL.value
    bad = {(e.title, node, outside) for e in kept.checked if not e.state.is_well}
    findings = tuple(f for f in diagnosis.findings if not bad.isdisjoint(f.cells))

    def cause(checked: CheckedFrontEnd) -> str | None:
        cell = cells.get(checked.title, {}).get(outside)
        if cell is not None and cell.cause is not None:
            return cell.cause
        return next((f.code for f in findings if (checked.title, node, outside) in f.cells), None)

    checked = tuple(e if e.state.is_well else replace(e, cause=cause(e)) for e in kept.checked)
    return replace(kept, checked=checked, findings=findings)


def _badness(checked: CheckedFrontEnd) -> tuple[int, str, str]:
    return list(FrontEndState).index(checked.state), checked.key, checked.title
