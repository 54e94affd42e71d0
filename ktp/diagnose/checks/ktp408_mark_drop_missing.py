"""The kubelet's rule that drops marked packets is missing, so the port connects and hangs.

# What it means
kube-proxy up to 1.24 does not drop by itself: it marks a packet (KUBE-MARK-DROP, 0x8000) and leaves the drop to a rule
of the kubelet's in KUBE-FIREWALL. On this node the mark is set and nothing drops it.

# Why traffic fails
A packet that should be dropped, for want of a local endpoint or for its source, goes on untranslated. Up to 1.23
kube-proxy itself holds the node port open and never answers: the client *connects*, sends its request, and waits for
ever. Health checks that only connect take the node for good. Without such a socket the client is refused.

# Evidence
The rule that marks, the chain without the drop, and that the cell answers as it should with the rule.

# Confirm by hand
    iptables -t filter -S KUBE-FIREWALL | grep 0x8000
    iptables -t nat -S KUBE-MARK-DROP

# Fix
The kubelet writes the rule (up to 1.26; makeIPTablesUtilChains must be true): restart it. A kubelet of 1.27 or later
beside a kube-proxy of 1.24 or earlier never does: upgrade kube-proxy.

# Example
A firewall script flushed filter INPUT and KUBE-FIREWALL; the load balancer keeps sending a third of the clients to a
node that takes their connections and never answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ktp.diagnose.case import Case, Entry, decided_evidence
from ktp.diagnose.changes import with_state
from ktp.diagnose.checks.base import Check, counterfactual, listed
from ktp.diagnose.checks.rule_common import RuleInPlace, marking_rule
from ktp.model.diagnosis import Cell, Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState
from ktp.model.ruleset import Chain, EditedRuleset, Ruleset, like
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition

_DROP = (
    '-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" '
    "-m mark --mark 0x8000/0x8000 -j DROP"
)
_MARK = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000"


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which a packet is marked for dropping and not dropped, and the missing rule drops it."""
    for node, state in case.by_kube_proxy():
        marked = [(e, rule) for e in case.on(node) if (rule := marking_rule(e, node)) is not None]
        cells = [e for e, _ in marked if e.cell.disposition is not Disposition.DROPPED]
        if not cells:
            continue
        label = f"marked packets dropped on {node}"
        changed = [
            e for e in cells if _dropped(case.ask_again(e, label, partial(_restored, case.snapshot, state)))
        ]
        if not changed:
            continue
        yield _finding(node, state, changed, next(r for e, r in marked if e is changed[0]))


def _finding(node: str, state: NodeState, cells: list[Entry], rule: RuleInPlace) -> Finding:
    first = cells[0]
    hangs = any(e.is_swallowed for e in cells)
    what = (
        "clients connect to a socket of the node that never answers, and hang"
        if hangs
        else f"such packets go on untranslated ({first.cell.reason})"
    )
    return CHECK.finding(
        f"on {node} nothing drops the packets that kube-proxy marks for dropping: at "
        f"{listed(dict.fromkeys(e.title for e in cells))} {what}",
        node=node,
        evidence=[
            rule.evidence(),
            *(
                Evidence("rule", f"{node} {r.backend.value} {table}", text)
                for r in state.rulesets
                for table, text in _missing(r)
            ),
            *decided_evidence(first.cell),
            counterfactual(
                f"with the kubelet's rule, {first.title} on {node} ({first.vantage.value}) is dropped, as it should be"
            ),
        ],
        fix=Fix(
            f"restart the kubelet on {node}: up to 1.26 it writes the rule anew",
            cost="none; the clients time out then, and health checks see it",
            command="systemctl restart kubelet",
            verified=True,
            outcome=f"{len(cells)} ways in are then dropped as kube-proxy means it",
        ),
        cells=cells,
    )


def _dropped(cell: Cell) -> bool:
    return cell.disposition is Disposition.DROPPED


def _missing(ruleset: Ruleset) -> list[tuple[str, str]]:
    """(table, what is missing there) of a ruleset whose rules jump to KUBE-MARK-DROP."""
    mark = ruleset.chain("nat", "KUBE-MARK-DROP")
    if mark is None:
        return []
    out = []
    if not len(mark):
        out.append(("nat", "KUBE-MARK-DROP is empty: nothing is marked"))
    firewall = ruleset.chain("filter", "KUBE-FIREWALL")
    if firewall is None:
        out.append(("filter", "there is no chain KUBE-FIREWALL"))
    elif not any("0x8000" in line and "-j DROP" in line for line in firewall.raw_lines()):
        out.append(("filter", "KUBE-FIREWALL holds no rule that drops the mark 0x8000"))
    for base in ("INPUT", "OUTPUT"):
        chain = ruleset.chain("filter", base)
        if firewall is not None and not (chain is not None and chain.containing("-j KUBE-FIREWALL")):
            out.append(("filter", f"{base} does not jump to KUBE-FIREWALL"))
    return out


def _restored(snapshot: Snapshot, state: NodeState) -> Snapshot:
    rulesets = []
    for ruleset in state.rulesets:
        mark = ruleset.chain("nat", "KUBE-MARK-DROP")
        if mark is None:
            rulesets.append(ruleset)
            continue
        chains: dict[tuple[str, str], Chain] = {}
        if not len(mark):
            chains["nat", "KUBE-MARK-DROP"] = like(mark, [_MARK])
        firewall = ruleset.chain("filter", "KUBE-FIREWALL")
        lines = [*firewall.raw_lines()] if firewall is not None else []
        chains["filter", "KUBE-FIREWALL"] = Chain("filter", "KUBE-FIREWALL", [*lines, _DROP], mark.parser)
        for base in ("INPUT", "OUTPUT"):
            chain = ruleset.chain("filter", base)
            if chain is not None and not chain.containing("-j KUBE-FIREWALL"):
                chains["filter", base] = like(chain, [f"-A {base} -j KUBE-FIREWALL", *chain.raw_lines()])
        rulesets.append(EditedRuleset(ruleset, chains))
    return with_state(snapshot, replace(state, rulesets=tuple(rulesets)))


CHECK = Check("KTP408", "MarkDropMissing", Severity.ERROR, run, of_cells=True)
