"""Cilium's load-balancing maps on the node are not what its agent would program from the API objects.

# What it means
For this Service the node's maps and the API objects say different things: backends are missing, gone ones are still
there, or the front end has another traffic policy.

# Why traffic fails
The programs follow the maps. The agent may be stopped (the maps stay and age), unable to reach the API server, or its
maps may be full.

# Evidence
The front end's entries beside those that the agent would write; with the latter the cell answers as the API says.

# Confirm by hand
    kubectl get pods -n kube-system -l k8s-app=cilium -o wide
    cilium-dbg status --brief                      # in the agent's pod on the node
    cilium-dbg service list                        # the agent's own view
    cilium-dbg bpf lb list                         # the maps

# Fix
Make the agent run and reach the API server; restarting its pod makes it write all maps anew.

# Example
The agent on node-b hangs; a pod that started there since gets no traffic, and node-b is refused under policy Local.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case, decided_evidence, share
from ktp.diagnose.changes import rules_renewed
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.ktp401_rules_disagree import answer_words, changed_cells, renewed
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose maps, written anew from the API objects, answer a cell differently."""
    if not case.examiner.index.knows(case.service):
        return
    for node in case.nodes:
        state = case.state(node)
        if state is None or not state.data_plane or state.data_plane_unread or not state.has_rules:
            continue
        changed = changed_cells(case, node)
        if not changed:
            continue
        worse = [e for e in changed if share(renewed(case, e, node)) > share(e.cell) + 1e-9]
        first = (worse or changed)[0]
        after = renewed(case, first, node)
        synced = case.mended(worse or changed, f"rules of {node} renewed", partial(rules_renewed, case, node))
        cures = synced.cures(worse or changed)
        yield CHECK.finding(
            f"Cilium's maps on {node} disagree with the API objects of {case.service.key}: by the API "
            f"{answer_words(after)}, by the maps {answer_words(first.cell)}; the agent there has not synced",
            node=node,
            evidence=[
                Evidence("field", f"API objects of {case.service.key}", answer_words(after)),
                Evidence("rule", f"maps of {node}", answer_words(first.cell)),
                *decided_evidence(first.cell),
                counterfactual(
                    f"with the maps that the agent would write, {first.title} on {node}: {after.symptom.value}"
                ),
            ],
            severity=Severity.ERROR if worse else Severity.WARNING,
            fix=Fix(
                f"make Cilium's agent on {node} sync (is it running, can it reach the API server?)",
                command="kubectl delete pod -n kube-system -l k8s-app=cilium "
                f"--field-selector spec.nodeName={node}",
                cures=cures,
            )
            if worse and not cures.lost
            else None,
            cells=worse or changed,
        )


CHECK = Check("KTP413", "CiliumMapsDisagree", Severity.ERROR, run)
