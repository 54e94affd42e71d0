"""Whose NetworkPolicies a rule enforces: the rules that Calico's felix and kube-router write for each pod.

Both give a pod a chain that jumps to one chain a policy and stops what none of them let pass. Felix: `cali-tw-DEVICE`,
`cali-fw-DEVICE` and `cali-pi-…`, `cali-po-…` (felix/rules/endpoints.go, policy.go); kube-router: `KUBE-POD-FW-…` and
`KUBE-NWPLCY-…` (pkg/controllers/netpol/pod.go, policy.go). Each writes the policy's name in its rules' comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ktp.diagnose.case import Case
from ktp.diagnose.checks.rule_common import RuleInPlace
from ktp.diagnose.supposed import pod_device
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Chain, Match, Rule, Ruleset

_POD_CHAINS = ("cali-tw-", "cali-fw-", "KUBE-POD-FW-")
_POLICY_CHAINS = ("cali-pi-", "cali-po-", "KUBE-NWPLCY-")
_SHARED = ("KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-DEFAULT")
_NAMED = re.compile(
    r"(?:Kubernetes|Global)?NetworkPolicy (\S+)|^(\S+/\S+) policy$|^(\S+/\S+) (?:ingress|egress)\b"
)


@dataclass(frozen=True, slots=True)
class Enforced:
    """The policies of a pod, by name (NAMESPACE/NAME), and the networks that they let in, as far as rules tell."""

    policies: tuple[str, ...]
    allowed: tuple[str, ...] = ()


def enforced_by(state: NodeState | None, rule: RuleInPlace) -> Enforced | None:
    """The policies of which none let a packet pass that this rule stops; None where it is no such rule.

    The rule may stand in the pod's chain or, where a policy denies by itself, in that policy's.
    """
    if state is None:
        return None
    if rule.is_nft:
        return _in_nft(state, rule)
    for ruleset in state.rulesets:
        chain = ruleset.chain(rule.table, rule.chain) if ruleset.backend.value == rule.backend else None
        if chain is None or rule.position > len(chain) or chain.rule(rule.position - 1).text != rule.text:
            continue
        if rule.chain.startswith(_POD_CHAINS):
            return _of_pod(state, ruleset, chain)
        if rule.chain.startswith(_POLICY_CHAINS) and rule.chain not in _SHARED:
            return _merged(state, [chain], ())
    return None


def policies_of_pods(case: Case) -> tuple[str, ...]:
    """The policies that the rules of any node enforce on a pod of the Service."""
    found: dict[str, None] = {}
    ips = {a for s in case.examiner.slices_of(case.service) for e in s.endpoints for a in e.addresses}
    pods = [p for p in case.snapshot.cluster.pods or () if not ips.isdisjoint(p.pod_ips)]
    for state in case.snapshot.nodes.values():
        device = pod_device(state)
        mine = {f"cali-tw-{device(pod)}" for pod in pods if pod.node_name == state.name}
        for ruleset in state.rulesets:
            names = {*mine, *_kube_router_chains(ruleset, ips)}
            for chain in (ruleset.chain("filter", name) for name in names):
                if chain is not None:
                    found |= dict.fromkeys(_of_pod(state, ruleset, chain).policies)
    return tuple(found)


def _kube_router_chains(ruleset: Ruleset, ips: set[str]) -> Iterator[str]:
    """Of kube-router the chains of pods with these addresses: its forward chain sends each pod's packets to its own."""
    forward = ruleset.chain("filter", "KUBE-ROUTER-FORWARD")
    for rule in forward or ():
        if rule.target is None or not rule.target.name.startswith("KUBE-POD-FW-"):
            continue
        to = {a.partition("/")[0] for m in rule.matches for o in m.options if o.flag == "-d" for a in o.args}
        if not to.isdisjoint(ips):
            yield rule.target.name


def _of_pod(state: NodeState, ruleset: Ruleset, chain: Chain) -> Enforced:
    jumps = [r for r in chain if r.target is not None and r.target.name.startswith(_POLICY_CHAINS)]
    names = dict.fromkeys(
        r.target.name for r in jumps if r.target is not None and r.target.name not in _SHARED
    )
    chains = [found for name in names if (found := ruleset.chain(chain.table, name)) is not None]
    comments = [
        c for r in jumps if r.target is not None and r.target.name in names for c in _comments(r.matches)
    ]
    return _merged(state, chains, comments)


def _merged(state: NodeState, chains: Iterable[Chain], comments: Iterable[str]) -> Enforced:
    policies: dict[str, None] = dict.fromkeys(_policies(comments))
    allowed: dict[str, None] = {}
    for chain in chains:
        for rule in chain:
            policies |= dict.fromkeys(_policies(_comments(rule.matches)))
            if _sets_a_mark(rule):
                allowed |= dict.fromkeys(_sources(state, rule.matches))
    return Enforced(tuple(policies), tuple(allowed))


def _sets_a_mark(rule: Rule) -> bool:
    """Whether a rule lets a packet pass: both agents mark it, and go on."""
    mark = (
        rule.target.value("--set-xmark") if rule.target is not None and rule.target.name == "MARK" else None
    )
    return mark is not None and int(mark.partition("/")[0], 0) != 0


def _comments(matches: Iterable[Match]) -> Iterator[str]:
    for match in matches:
        if match.name == "comment":
            for option in match.options:
                yield from option.args


def _policies(comments: Iterable[str]) -> Iterator[str]:
    for comment in comments:
        if (m := _NAMED.search(comment)) is not None:
            yield next(name for name in m.groups() if name is not None)


def _sources(state: NodeState, matches: Iterable[Match]) -> Iterator[str]:
    """The networks that a rule asks a packet to come from: of `-s`, and of the sets asked for its source alone."""
    for match in matches:
        for option in match.options:
            if option.negated:
                continue
            if option.flag == "-s":
                yield from option.args
            elif option.flag == "--match-set" and option.args[1:] == ("src",):
                found = (state.ipsets or {}).get(option.args[0])
                yield from (
                    (entry for entry, options in found.entries if "nomatch" not in options) if found else ()
                )


def _in_nft(state: NodeState, rule: RuleInPlace) -> Enforced | None:
    from ktp.model.nftables import Verdict

    family, _, name = rule.table.partition(" ")
    table = state.nft.table(family, name) if state.nft is not None else None
    chain = table.chains.get(rule.chain) if table is not None else None
    if (
        table is None
        or chain is None
        or not any(mark in rule.chain for mark in (*_POD_CHAINS, *_POLICY_CHAINS))
    ):
        return None
    chains = [chain]
    if any(mark in rule.chain for mark in _POD_CHAINS):
        targets = [
            s.target
            for each in chain.rules
            for s in each.statements
            if isinstance(s, Verdict) and s.target is not None and any(m in s.target for m in _POLICY_CHAINS)
        ]
        chains = [table.chains[target] for target in dict.fromkeys(targets) if target in table.chains]
    comments = [each.comment for one in chains for each in one.rules if each.comment is not None]
    return Enforced(tuple(dict.fromkeys(_policies(comments))))
