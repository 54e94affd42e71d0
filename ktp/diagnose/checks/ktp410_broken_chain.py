"""One of kube-proxy's own chains is missing, empty, or holds a rule that kube-proxy did not write.

# What it means
KUBE-POSTROUTING, KUBE-MARK-MASQ, KUBE-FORWARD or the jump to KUBE-NODEPORTS lacks what every kube-proxy writes there;
or a rule was put into one of the KUBE- chains by somebody else.

# Why traffic fails
Without KUBE-MARK-MASQ and KUBE-POSTROUTING packets keep their source, and the endpoint's answer goes past the node.
Without KUBE-FORWARD a FORWARD policy of DROP has no exception. Without the last jump of KUBE-SERVICES no node port is
translated. kube-proxy from 1.27 on mends such things at its next full sync only.

# Evidence
The chain as it is, and that the cells connect with what kube-proxy writes there, or without the foreign rule.

# Confirm by hand
    iptables -t nat -S KUBE-POSTROUTING; iptables -t nat -S KUBE-MARK-MASQ; iptables -t filter -S KUBE-FORWARD
    iptables -t nat -S KUBE-SERVICES | tail -1

# Fix
Restart kube-proxy on the node: it writes its chains anew and removes what is not its own. Then find who wrote there.

# Example
Somebody blocked an address with `iptables -I KUBE-FORWARD -s ... -j DROP`, or flushed a chain "to see what happens".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rules_renewed, with_state
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.kube_common import restart_command
from ktp.diagnose.checks.rule_common import RuleInPlace, stopped
from ktp.explain.kube import purpose_of
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState
from ktp.model.ruleset import Chain, EditedRuleset, Ruleset
from ktp.model.snapshot import Snapshot

# What kube-proxy writes there whatever its version: (table, chain, what must stand in a rule, the rules).
_STATIC: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("nat", "KUBE-MARK-MASQ", "MARK", ("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",)),
    (
        "nat",
        "KUBE-POSTROUTING",
        "MASQUERADE",
        (
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE',
        ),
    ),
    (
        "filter",
        "KUBE-FORWARD",
        "ACCEPT",
        (
            '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
            '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack '
            "--ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
    ),
)
_NODE_PORTS = (
    '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule '
    'in this chain" '
    "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
)


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which restoring a chain, or removing a foreign rule from one, mends a failing cell."""
    for node in case.involved_nodes():
        state = case.state(node)
        broken = [(r, *gap) for r in state.rulesets for gap in _gaps(r)] if state is not None else []
        if state is None or not broken:
            continue
        failing = [e for e in case.failing() if e.asked.fact is not None]
        mended = case.mended(failing, f"chains of {node} restored", partial(_restored, case.snapshot, state))
        if not mended:
            continue
        names = listed(dict.fromkeys(f"{table} {chain}" for _, table, chain, _, _ in broken))
        yield CHECK.finding(
            f"on {node} {names} {'lacks' if ' and ' not in names else 'lack'} what kube-proxy writes there",
            node=node,
            evidence=[
                *(
                    Evidence("rule", f"{node} {ruleset.backend.value} {table}", f"{chain}: {why}")
                    for ruleset, table, chain, why, _ in broken
                ),
                *mending("with kube-proxy's rules there", mended),
            ],
            fix=_restart(node, f"{len(mended)} of {len(failing)} failing ways in then connect"),
            cells=mended,
        )
    yield from _foreign_rules(case)


def _restart(node: str, outcome: str) -> Fix:
    return Fix(
        f"restart kube-proxy on {node}: it writes its chains anew",
        command=restart_command(node),
        verified=True,
        outcome=outcome,
    )


def _foreign_rules(case: Case) -> Iterable[Finding]:
    found: dict[RuleInPlace, list[Entry]] = {}
    for entry in case.failing():
        for _, rule in stopped(entry):
            if rule is not None and not rule.is_nft and rule.chain.startswith("KUBE-") and not _is_own(rule):
                found.setdefault(rule, []).append(entry)
    for rule, entries in found.items():
        mended = case.mended(dict.fromkeys(entries), rule.label, partial(rule.removed, case.snapshot))
        # What writing the Service's rules anew mends as well is rules behind the API: KTP401.
        renewed = case.mended(
            mended, f"rules of {rule.node} renewed", partial(rules_renewed, case, rule.node)
        )
        if not mended or len(renewed) == len(mended):
            continue
        yield CHECK.finding(
            f"on {rule.node} a rule in kube-proxy's chain {rule.chain} ({rule.table}) is not kube-proxy's "
            f"and {rule.verb} "
            f"{listed(dict.fromkeys(e.title for e in mended))}",
            node=rule.node,
            evidence=[
                rule.evidence(),
                *mending("without this rule", mended),
            ],
            fix=_restart(rule.node, f"without the rule {len(mended)} failing ways in connect"),
            cells=mended,
        )


def _is_own(rule: RuleInPlace) -> bool:
    owned = rule.chain.startswith(("KUBE-ROUTER", "KUBE-NWPLCY", "KUBE-POD-FW"))
    purpose = purpose_of(rule.parsed) if rule.parsed is not None else None
    return owned or (purpose is not None and purpose.aim.stops)


def _gaps(ruleset: Ruleset) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """(table, chain, what is wrong, the rules to write) for a ruleset that kube-proxy programs in iptables mode."""
    services = ruleset.chain("nat", "KUBE-SERVICES")
    if services is None or not len(services):
        return []
    out = []
    for table, name, target, rules in _STATIC:
        chain = ruleset.chain(table, name)
        if chain is None:
            out.append((table, name, "the chain does not exist", rules))
        elif not chain.has_target(target):
            out.append(
                (table, name, f"no rule with -j {target}" if len(chain) else "the chain is empty", rules)
            )
    if ruleset.chain("nat", "KUBE-NODEPORTS") is not None and not services.has_target("KUBE-NODEPORTS"):
        out.append(("nat", "KUBE-SERVICES", "no jump to KUBE-NODEPORTS", (_NODE_PORTS,)))
    forward = ruleset.chain("filter", "FORWARD")
    if forward is not None and not forward.has_target("KUBE-FORWARD"):
        line = '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'
        out.append(("filter", "FORWARD", "no jump to KUBE-FORWARD", (line,)))
    return out


def _restored(snapshot: Snapshot, state: NodeState) -> Snapshot:
    rulesets = []
    for ruleset in state.rulesets:
        chains: dict[tuple[str, str], Chain] = {}
        services = ruleset.chain("nat", "KUBE-SERVICES")
        for table, name, _, rules in _gaps(ruleset):
            old = ruleset.chain(table, name)
            if services is None:
                continue
            kept = list(old.raw_lines()) if old is not None else []
            lines = [*rules, *kept] if name == "FORWARD" else [*kept, *rules]
            chains[table, name] = Chain(
                table, name, lines, services.parser, policy=old.policy if old is not None else None
            )
        rulesets.append(EditedRuleset(ruleset, chains) if chains else ruleset)
    return with_state(snapshot, replace(state, rulesets=tuple(rulesets)))


CHECK = Check("KTP410", "BrokenChain", Severity.ERROR, run)
