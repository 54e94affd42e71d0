"""A jump into kube-proxy's chains is missing.

# What it means
kube-proxy's chains are there, but PREROUTING, OUTPUT or POSTROUTING of nat no longer lead to them.

# Why traffic fails
Packets are not translated: they end at the node itself, where nothing listens on the port ("refused"), or go astray.
kube-proxy 1.27 and later restores the jumps only at a full sync.

# Evidence
The base chain without the jump, and that the cell connects with it.

# Confirm by hand
    iptables -t nat -S PREROUTING | grep KUBE-SERVICES

# Fix
Restart kube-proxy on the node: it makes the jumps anew. Find what flushed the chain (a firewall script with
`iptables -t nat -F`).

# Example
A firewall was restarted on the node and flushed nat PREROUTING.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rules_renewed, with_state
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.kube_common import restart_command
from ktp.diagnose.checks.rule_common import merged
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState
from ktp.model.ruleset import Chain, EditedRuleset, Ruleset, like
from ktp.model.snapshot import Snapshot
from ktp.model.trace import StepKind

_JUMPS = (
    ("PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    ("OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    ("POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
)


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which restored jumps mend a failing cell."""
    for node, state in case.by_kube_proxy():
        missing = _missing(state)
        if not missing:
            continue
        failing = [e for e in case.failing() if e.asked.fact is not None]
        mended = case.mended(failing, f"jumps on {node}", partial(_restored, case.snapshot, state))
        # A restarted kube-proxy also writes the Service's rules anew.
        rest = [e for e in failing if e not in mended and e.node == node]
        mended = mended.also(
            case.mended(rest, f"kube-proxy of {node} restarted", partial(_restarted, case, node))
        )
        if not mended:
            continue
        words = listed(f"{base} → {chain}" for _, base, chain, _ in missing)
        yield CHECK.finding(
            f"on {node} nat lacks the jump {words}: packets never reach kube-proxy's rules",
            node=node,
            evidence=[
                *(
                    Evidence(
                        "rule",
                        f"{node} {ruleset.backend.value} nat",
                        f"no rule of {base} jumps to {chain}, though {chain} exists",
                    )
                    for ruleset, base, chain, _ in missing
                ),
                *mending("with the jump", mended),
            ],
            fix=Fix(
                f"restart kube-proxy on {node}: it makes the jumps anew at its start",
                command=restart_command(node),
                cures=mended.cures(),
            ),
            cells=merged(mended, _elsewhere(case, failing, state)),
        )


def _elsewhere(case: Case, failing: list[Entry], state: NodeState) -> list[Entry]:
    """Cells of the node that with the jumps meet kube-proxy's rules, though these do not let them through either."""
    out = []
    for entry in failing:
        before = entry.cell.decided_by
        if entry.node == state.name and before is not None and before.kind is StepKind.SOCKET:
            after = case.ask_again(
                entry, f"jumps on {state.name}", partial(_restored, case.snapshot, state)
            ).decided_by
            if after is not None and after.kind != before.kind:
                out.append(entry)
    return out


def _restarted(case: Case, node: str) -> Snapshot:
    renewed = rules_renewed(case, node)
    return _restored(renewed, renewed.nodes[node])


def _missing(state: NodeState) -> list[tuple[Ruleset, str, str, str]]:
    out = []
    for ruleset in state.rulesets:
        if ruleset.chain("nat", "KUBE-SERVICES") is None or not len(
            ruleset.chain("nat", "KUBE-SERVICES") or ()
        ):
            continue
        for base, target, comment in _JUMPS:
            chain = ruleset.chain("nat", base)
            if ruleset.chain("nat", target) is not None and not (
                chain is not None and chain.has_target(target)
            ):
                out.append((ruleset, base, target, comment))
    return out


def _restored(snapshot: Snapshot, state: NodeState) -> Snapshot:
    chains: dict[int, dict[tuple[str, str], Chain]] = {}
    for ruleset, base, target, comment in _missing(state):
        chain = ruleset.chain("nat", base)
        if chain is None:
            continue
        line = f'-A {base} -m comment --comment "{comment}" -j {target}'
        chains.setdefault(id(ruleset), {})["nat", base] = like(chain, [line, *chain.raw_lines()])
    rulesets = tuple(EditedRuleset(r, chains[id(r)]) if id(r) in chains else r for r in state.rulesets)
    return with_state(snapshot, replace(state, rulesets=rulesets))


CHECK = Check("KTP404", "MissingJump", Severity.ERROR, run)
