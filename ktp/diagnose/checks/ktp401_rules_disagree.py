"""The rules on the node are not what kube-proxy would write from the API objects.

# What it means
For this Service the node's rules and the API objects say different things: endpoints are missing from the rules, or
rules lead to endpoints that are gone.

# Why traffic fails
The kernel follows the rules. kube-proxy may be stopped, unable to reach the API server, running under a name that is
no Node's, or have failed to load its rules.

# Evidence
The rules of the Service beside those that kube-proxy would write; with the latter the cell answers as the API says.

# Confirm by hand
    kubectl get pods -n kube-system -l k8s-app=kube-proxy -o wide
    kubectl logs -n kube-system KUBE-PROXY-POD | tail
    curl -s http://NODE-IP:10256/healthz

# Fix
Make kube-proxy run and sync on this node; restarting its pod makes it write all rules anew.

# Example
kube-proxy on node-b has been stopped for an hour; a pod that started there since gets no traffic.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case, Entry, decided_evidence, share
from ktp.diagnose.changes import rules_renewed
from ktp.diagnose.checks.base import Check, counterfactual, listed
from ktp.diagnose.checks.kube_common import kube_proxy_evidence, restart_command
from ktp.kubeproxy.synthesis import has_same_rules
from ktp.model.diagnosis import Cell, Evidence, Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose rules, written anew from the API objects, answer a cell differently."""
    if not case.examiner.index.knows(case.service):
        return
    for node, state in case.by_kube_proxy():
        if not state.has_rules:
            continue
        changed = changed_cells(case, node)
        if not changed:
            continue
        worse = [e for e in changed if share(renewed(case, e, node)) > share(e.cell) + 1e-9]
        first = (worse or changed)[0]
        after = renewed(case, first, node)
        evidence: list[Evidence] = [
            Evidence("field", f"API objects of {case.service.key}", answer_words(after)),
            Evidence("rule", f"rules of {node}", answer_words(first.cell)),
            *decided_evidence(first.cell),
            counterfactual(
                f"with the rules that kube-proxy would write, {first.title} on {node}: {after.symptom.value}"
            ),
        ]
        evidence += kube_proxy_evidence(case, node)
        synced = case.mended(worse or changed, f"rules of {node} renewed", partial(rules_renewed, case, node))
        cures = synced.cures(worse or changed)
        then = "kube-proxy there has not synced"
        if cures.lost and not worse:
            nodes = listed(dict.fromkeys(at for _, at, _ in cures.lost))
            then += f", and clients who connect on {nodes} today lose once it has: see why the API has it so"
        yield CHECK.finding(
            f"the rules on {node} disagree with the API objects of {case.service.key}: "
            f"by the API {answer_words(after)}, by the rules {answer_words(first.cell)}; {then}",
            node=node,
            evidence=evidence,
            severity=Severity.ERROR if worse else Severity.WARNING,
            fix=None
            if cures.lost and not worse
            else Fix(
                f"make kube-proxy on {node} sync (is it running, can it reach the API server?)",
                command=restart_command(node),
                verified=True,
                outcome=f"{node} then answers as the API says",
                cures=cures if worse else None,
            ),
            cells=worse or changed,
        )


def changed_cells(case: Case, node: str) -> list[Entry]:
    """The cells of a node that its rules, written anew from the API objects, answer differently."""
    try:
        changed = rules_renewed(case, node)
    except ValueError:
        return []
    if has_same_rules(case.snapshot.nodes[node], changed.nodes[node]):
        return []  # as on most nodes: nothing is to be asked again
    entries = [e for e in case.on(node) if e.asked.fact is not None]
    return [e for e in entries if _differs(e, renewed(case, e, node))]


def renewed(case: Case, entry: Entry, node: str) -> Cell:
    """A cell as it would be with the node's rules (or maps) written anew."""
    return case.ask_again(entry, f"rules of {node} renewed", partial(rules_renewed, case, node))


def _differs(entry: Entry, after: Cell) -> bool:
    before = entry.cell
    if after.symptom is Symptom.UNKNOWN:
        return False
    drawn = {(e.ip, e.port) for e in before.endpoints}
    meant = {(e.ip, e.port) for e in after.endpoints}
    if before.symptom is Symptom.UNKNOWN:
        # What becomes of the packet is not known, and yet it is sent where the API has no endpoint.
        return not drawn <= meant and entry.asked.is_certain_of_endpoints
    return before.symptom is not after.symptom or drawn != meant


def answer_words(cell: Cell) -> str:
    """What a cell says, in short."""
    words = {
        Symptom.CONNECTS: "it connects",
        Symptom.TIMES_OUT: "it times out",
        Symptom.REFUSED: "it is refused",
        Symptom.UNREACHABLE: "it is unreachable",
        Symptom.INTERMITTENT: "it connects now and then",
    }.get(cell.symptom, "it is not known what happens")
    if cell.endpoints:
        words += " (" + ", ".join(f"{e.ip}:{e.port}" for e in cell.endpoints[:4]) + ")"
    return words


CHECK = Check("KTP401", "RulesDisagreeWithApi", Severity.ERROR, run)
