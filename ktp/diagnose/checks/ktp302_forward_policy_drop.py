"""The FORWARD chain's policy is DROP and nothing lets the Service's traffic through.

# What it means
What no rule of FORWARD accepts is dropped. In iptables mode kube-proxy accepts only what it marked for masquerading; in
nftables mode nothing that its table accepts is safe from the policy of another table's chain.

# Why traffic fails
Under externalTrafficPolicy Local packets are not marked, so nothing accepts them: "Cluster works, Local does not".
The same holds for pods that dial a Service; in nftables mode policy Cluster fails as well. Docker sets this policy when
it starts and has to switch net.ipv4.ip_forward on itself.

# Evidence
The chain's policy, and that the packet passes with policy ACCEPT.

# Confirm by hand
    iptables -S FORWARD | head -1
    nft list chains | grep 'hook forward'

# Fix
    iptables -P FORWARD ACCEPT          # or let the CNI add its accept rules for the pod network

# Example
Docker was installed on the node; its policy DROP stays although Kubernetes uses containerd.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.dataplane.hooks import FORWARD
from ktp.diagnose.case import Case
from ktp.diagnose.changes import dropping_nft_chains, policy_accepts
from ktp.diagnose.checks.base import Check, mending
from ktp.diagnose.checks.rule_common import command_of, decided_here, merged, owner_of, owner_of_policy
from ktp.kubeproxy.owners import FIREWALLD, UFW, Owner
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState
from ktp.model.trace import StepKind


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which policy ACCEPT mends a failing cell."""
    for node in case.involved_nodes():
        state = case.state(node)
        dropping = _dropping(state) if state is not None else []
        if state is None or not dropping:
            continue
        failing = [e for e in case.failing() if e.asked.fact is not None]
        mended = case.mended(
            failing,
            f"FORWARD accepts on {node}",
            partial(policy_accepts, case.snapshot, node, "filter", "FORWARD"),
        )
        if not mended:
            continue
        what, owner, evidence, command = dropping[0]
        excepted = any(r.chain("filter", "KUBE-FORWARD") is not None for r in state.rulesets)
        note = (
            "; masqueraded traffic (policy Cluster) is accepted by KUBE-FORWARD and passes"
            if case.service.external_traffic_policy == "Local" and excepted and what.endswith("of FORWARD")
            else ""
        )
        by = f" (set by {owner.name})" if owner is not None else ""
        yield CHECK.finding(
            f"{what} on {node}{by} drops the Service's traffic: no rule accepts it{note}",
            node=node,
            evidence=[
                evidence,
                *mending("with policy ACCEPT", mended),
            ],
            fix=Fix(
                _cure(node, owner),
                cost="the node forwards what no rule forbids",
                command=command_of(owner, case) or command,
                cures=mended.cures(),
            ),
            cells=merged(
                mended,
                decided_here(case, node, lambda d: d.kind is StepKind.POLICY and d.hook == FORWARD),
            ),
        )


def _dropping(state: NodeState) -> list[tuple[str, Owner | None, Evidence, str]]:
    """(what, who set it, evidence, command) for each base chain at the forward hook whose policy is drop."""
    out = []
    for ruleset in state.rulesets:
        chain = ruleset.chain("filter", "FORWARD")
        if chain is None or chain.policy != "DROP":
            continue
        count = f" [{chain.counters.packets}:{chain.counters.bytes}]" if chain.counters is not None else ""
        where = f"{state.name} {ruleset.backend.value} filter"
        out.append(
            (
                "policy DROP of FORWARD",
                owner_of_policy(state, "filter", "FORWARD"),
                Evidence("policy", where, f":FORWARD DROP{count}"),
                ("iptables" if ruleset.family == "ip" else "ip6tables") + " -P FORWARD ACCEPT",
            )
        )
    for table, nft_chain in dropping_nft_chains(state, "forward"):
        place = f"{table.family} {table.name}"
        out.append(
            (
                f"policy drop of the chain {nft_chain.name} (table {place}, hook forward)",
                owner_of(nft_chain.name, table=place),
                Evidence(
                    "policy",
                    f"{state.name} nftables {place}",
                    f"chain {nft_chain.name} "
                    f"{{ type filter hook forward priority {nft_chain.priority}; policy drop; }}",
                ),
                f"nft chain {place} {nft_chain.name} '{{ policy accept ; }}'",
            )
        )
    return out


def _cure(node: str, owner: Owner | None) -> str:
    if owner is UFW:
        return (
            f"set DEFAULT_FORWARD_POLICY=ACCEPT in /etc/default/ufw on {node} and reload ufw, "
            "or let `ufw route allow` pass the pod network"
        )
    if owner is FIREWALLD:
        return f"put the pod network into firewalld's trusted zone on {node}"
    return f"set the policy of FORWARD to ACCEPT on {node}, or accept the pod network there"


CHECK = Check("KTP302", "ForwardPolicyDrop", Severity.ERROR, run)
