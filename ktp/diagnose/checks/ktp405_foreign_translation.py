"""A translation that is not kube-proxy's takes the Service's port.

# What it means
A DNAT or REDIRECT rule in nat stands before kube-proxy's and matches the same address and port: a hostPort of a pod,
docker's published port, a hand-written rule.

# Why traffic fails
The first rule to translate a connection wins; kube-proxy's is never asked.

# Evidence
The rule, and that the Service answers without it.

# Confirm by hand
    iptables -t nat -S | grep -n 'DNAT\\|REDIRECT' | grep -v KUBE-

# Fix
Remove the rule in what owns it, or give the Service another node port.

# Example
An older port forwarding to a machine that no longer exists took port 31465.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual, listed
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.diagnose.checks.rule_common import RuleInPlace, rule_of_step
from ktp.model.cluster import ContainerPort, Pod
from ktp.model.diagnosis import Cell, Finding, Fix, Severity
from ktp.model.effect import Endpoint
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each foreign translation whose removal mends a cell, or leads it to the Service's endpoints."""
    for rule, entries in foreign_translations(case).items():
        if any(pod_of_host_port(case, rule, e) is not None for e in entries):
            continue  # KTP206
        mended = led_to_service(case, rule, entries)
        if not mended:
            continue
        first = mended[0]
        yield CHECK.finding(
            f"on {rule.node} a rule of {rule.chain} translates {listed(dict.fromkeys(e.title for e in mended))} before "
            f"kube-proxy's rules do (written by {rule.author})",
            node=rule.node,
            evidence=[
                rule.evidence(),
                counterfactual(
                    f"without this rule, {first.title} on {first.node} "
                    + ("connects" if first.fails else "leads to the Service's endpoints")
                ),
            ],
            fix=Fix(
                f"remove the rule where it is configured ({rule.author}), or choose another node port",
                cost="whatever used the rule loses it",
                verified=True,
                outcome=f"{len(mended)} ways in then lead to the Service",
            ),
            cells=mended,
        )


def foreign_translations(case: Case) -> dict[RuleInPlace, list[Entry]]:
    """The rules that translate the destination and are not kube-proxy's, with the cells whose packets met them."""
    found: dict[RuleInPlace, list[Entry]] = {}
    for entry in case.entries:
        fact = entry.asked.fact
        if fact is None or not (entry.fails or _is_astray(case, entry, entry.cell)):
            continue
        for rule in _translations(entry):
            mine = found.setdefault(rule, [])
            if entry not in mine:
                mine.append(entry)
    return found


def _translations(entry: Entry) -> Iterator[RuleInPlace]:
    for path in entry.paths:
        for hop in path.hops:
            for step in hop.steps:
                translates = any(not t.kind.of_source for t in step.translations)
                rule = rule_of_step(hop.node, step) if translates else None
                if rule is not None and not rule.is_kube:
                    yield rule


def _is_astray(case: Case, entry: Entry, cell: Cell) -> bool:
    """Whether connections succeed with somebody who is no endpoint of the Service."""
    if cell.symptom is not Symptom.CONNECTS or not case.examiner.index.knows(case.service):
        return False
    listed_there = {e.ip for e in selection_of(case, entry).listed}
    return (
        bool(listed_there) and bool(cell.endpoints) and all(e.ip not in listed_there for e in cell.endpoints)
    )


def is_mended(case: Case, entry: Entry, after: Cell) -> bool:
    """Whether the changed snapshot leads the client to the Service's endpoints where it did not."""
    if after.symptom is not Symptom.CONNECTS:
        return False
    return (entry.fails or _is_astray(case, entry, entry.cell)) and not _is_astray(case, entry, after)


def led_to_service(case: Case, rule: RuleInPlace, entries: Iterable[Entry]) -> list[Entry]:
    """The cells that without the rule lead to the Service's endpoints, where they did not."""
    without = partial(rule.removed, case.snapshot)
    return [e for e in entries if is_mended(case, e, case.ask_again(e, rule.label, without))]


def pod_of_host_port(case: Case, rule: RuleInPlace, entry: Entry) -> tuple[Pod, ContainerPort] | None:
    """The pod whose hostPort is the dialled port and to whose address the rule leads."""
    led_to = {
        t.after
        for path in entry.paths
        for hop in path.hops
        for step in hop.steps
        if rule_of_step(hop.node, step) == rule
        for t in step.translations
    }
    for pod in case.snapshot.cluster.pods or ():
        if pod.node_name != rule.node or pod.host_network:
            continue
        for port in pod.ports:
            if (
                port.host_port == entry.front_end.port
                and port.protocol.upper() == entry.front_end.protocol.upper()
            ):
                if not led_to.isdisjoint(Endpoint(ip, port.container_port) for ip in pod.pod_ips):
                    return pod, port
    return None


CHECK = Check("KTP405", "ForeignTranslation", Severity.ERROR, run)
