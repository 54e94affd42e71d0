"""What if: the matrix before and after one or several changes, and what they change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import share
from ktp.diagnose.changes import policy_accepts, reprogrammed
from ktp.diagnose.service import diagnose_service
from ktp.errors import NotFoundError, UsageError
from ktp.kubeproxy.changes import (
    cordoned,
    drained,
    schedulable_nodes,
    with_policy,
    with_ready_pod_on,
    with_scaled,
    with_target_port,
    without_pod,
)
from ktp.model.change import Change
from ktp.model.cluster import Service, ServicePort
from ktp.model.diagnosis import Cell, ServiceDiagnosis
from ktp.model.host import IPAddress
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """A cell that the changes alter. `effect` names how: "newly reachable", "newly dark", "source lost" …"""

    front_end: str
    node: str
    vantage: str
    before: Cell
    after: Cell
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The answer to a what-if question."""

    changes: tuple[Change, ...]
    before: ServiceDiagnosis
    after: ServiceDiagnosis
    altered: tuple[CellChange, ...]
    notes: tuple[str, ...] = ()

    @property
    def darkens(self) -> bool:
        """Whether some client that got through no longer does, or not as often."""
        return any(c.effect in ("newly dark", "less reliable") for c in self.altered)


def what_if(
    snapshot: Snapshot,
    service: Service,
    changes: Iterable[Change],
    *,
    nodes: Iterable[str] = (),
    client: IPAddress | None = None,
) -> WhatIf:
    """Apply the changes in turn, let kube-proxy write its rules anew, and ask everything again.

    Raises UsageError or NotFoundError for a change that makes no sense here.
    """
    made = tuple(changes)
    if not made:
        raise UsageError("nothing to change: say for instance --policy Cluster, --drain NODE or --scale N")
    chosen = tuple(nodes)
    before = diagnose_service(snapshot, service, nodes=chosen, client=client)
    changed, notes = changed_by(snapshot, service, made)
    after = diagnose_service(changed, changed.cluster.services[service.key], nodes=chosen, client=client)
    return WhatIf(
        changes=made, before=before, after=after, altered=tuple(_altered(before, after)), notes=tuple(notes)
    )


def changed_by(snapshot: Snapshot, service: Service, changes: Iterable[Change]) -> tuple[Snapshot, list[str]]:
    """The snapshot after the changes, and what is to be said about how they were made."""
    notes: list[str] = []
    for change in changes:
        snapshot, more = _apply(snapshot, service, change)
        notes += more
    return snapshot, notes


def _apply(snapshot: Snapshot, service: Service, change: Change) -> tuple[Snapshot, list[str]]:
    key = service.key
    cluster = snapshot.cluster
    notes: list[str] = []
    if change.kind == "forward-policy":
        if change.value != "ACCEPT":
            raise UsageError(f"--forward-policy {change.value!r}: the policy that can be asked for is ACCEPT")
        for name in snapshot.nodes:
            snapshot = policy_accepts(snapshot, name, "filter", "FORWARD")
        return snapshot, notes
    if change.kind in ("drain", "cordon", "pod-on"):
        _known_node(snapshot, change.value)
    try:
        if change.kind == "policy":
            if change.value not in ("Cluster", "Local"):
                raise UsageError(f"--policy {change.value!r}: externalTrafficPolicy is Cluster or Local")
            changed = replace(snapshot, cluster=with_policy(cluster, key, change.value))
        elif change.kind == "target-port":
            port, number = _target_port(service, change.value)
            changed = replace(snapshot, cluster=with_target_port(cluster, key, port, number))
        elif change.kind == "drain":
            changed = replace(snapshot, cluster=drained(cluster, change.value))
            notes.append(
                f"evicted pods are taken as gone; where they start again is the scheduler's choice"
                f" ({len(schedulable_nodes(changed.cluster))} nodes take pods)"
            )
        elif change.kind == "cordon":
            changed = replace(snapshot, cluster=cordoned(cluster, change.value))
            notes.append("cordoning changes no rule: it only keeps new pods away")
        elif change.kind == "scale":
            if not change.value.isdigit():
                raise UsageError(f"--scale {change.value!r} is no number of pods")
            changed = with_scaled(snapshot, key, int(change.value))
            notes.append(
                "where new pods run is the scheduler's choice: ktp puts each on the node with the fewest"
            )
        elif change.kind == "pod-on":
            changed = with_ready_pod_on(snapshot, key, change.value)
        elif change.kind == "delete-pod":
            name = change.value if "/" in change.value else f"{service.namespace}/{change.value}"
            if all(p.key != name for p in cluster.pods or ()):
                raise NotFoundError(f"there is no pod {name} in the snapshot")
            changed = replace(snapshot, cluster=without_pod(cluster, name))
        else:
            raise UsageError(f"unknown change {change.kind}")
    except ValueError as e:
        raise UsageError(f"{change.words} cannot be made up: {e}") from None
    before_rules = replace(changed, cluster=cluster)
    return reprogrammed(before_rules, changed.cluster, key), notes


def _target_port(service: Service, text: str) -> tuple[ServicePort, int]:
    """The service port that --target-port means, and the number."""
    which, _, number = text.rpartition("=")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise UsageError(f"--target-port {text!r}: it is a port's number, or PORT=NUMBER")
    ports = [p for p in service.ports if not which or which in (p.name, str(p.port))]
    if not ports:
        raise NotFoundError(f"{service.key} has no port {which!r}")
    if len(ports) > 1:
        names = ", ".join(p.name or str(p.port) for p in ports)
        raise UsageError(
            f"--target-port {text!r}: {service.key} has the ports {names}",
            hint="say which: --target-port PORT=NUMBER",
        )
    return ports[0], int(number)


def _known_node(snapshot: Snapshot, name: str) -> None:
    known = {*(snapshot.cluster.nodes or {}), *snapshot.nodes}
    if name not in known:
        raise NotFoundError(f"there is no node {name!r}; there are {', '.join(sorted(known)[:6])}")


def _altered(before: ServiceDiagnosis, after: ServiceDiagnosis) -> Iterable[CellChange]:
    new = {(m.title, r.node, v): c for m in after.frontends for r in m.nodes for v, c in r.cells.items()}
    for m in before.frontends:
        for r in m.nodes:
            for v, old in r.cells.items():
                cell = new.get((m.title, r.node, v))
                if cell is None:
                    continue
                effect = _effect(old, cell)
                if effect:
                    yield CellChange(
                        front_end=m.title, node=r.node, vantage=v, before=old, after=cell, effect=effect
                    )


def _effect(old: Cell, new: Cell) -> str:
    if share(new) > share(old) + 1e-9:
        return "newly reachable" if share(old) == 0 else "more reliable"
    if share(new) < share(old) - 1e-9:
        return "newly dark" if share(new) == 0 else "less reliable"
    if old.symptom is not new.symptom:
        return "fails in another way"
    if new.symptom is Symptom.CONNECTS and old.source_kept is not new.source_kept:
        return "source lost" if old.source_kept and new.source_kept is False else "source kept"
    got_through = share(new) > 0
    if got_through and {(e.ip, e.port) for e in old.endpoints} != {(e.ip, e.port) for e in new.endpoints}:
        return "other endpoints"
    return ""
