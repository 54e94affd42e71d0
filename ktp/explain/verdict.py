"""Where a packet ends and why, in a sentence or two. The fate is the walker's; the words are made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.explain.front_end import NodePortRules
from ktp.explain.kube import explain_rule, is_kube_chain, is_service_chain, service_of
from ktp.explain.tree import request_steps
from ktp.explain.words import percent
from ktp.kubeproxy.names import (
    FW_PREFIX,
    KUBE_EXTERNAL_SERVICES,
    KUBE_FIREWALL,
    KUBE_MARK_DROP,
    KUBE_NODEPORTS,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
    SEP_PREFIX,
)
from ktp.model.explanation import EndpointShare, Verdict
from ktp.model.ruleset import Rule
from ktp.model.trace import Disposition, FlowAnswer, Path, StepKind, Symptom

if TYPE_CHECKING:
    from ktp.explain.nft_kube import NftNodePort
    from ktp.explain.nft_verdict import Decided
    from ktp.model.cilium import LbFrontend
    from ktp.model.nftables import NftRuleset

_SYMPTOM_WORDS = {
    Symptom.CONNECTS: "the client connects",
    Symptom.TIMES_OUT: "the client's connection attempts time out",
    Symptom.REFUSED: "the client sees 'connection refused'",
    Symptom.UNREACHABLE: "the client sees 'host unreachable'",
    Symptom.INTERMITTENT: "some connections work and some do not",
    Symptom.UNKNOWN: "what the client sees is not known",
}
_HEADS = {
    Disposition.DROPPED: "dropped",
    Disposition.REJECTED: "rejected",
    Disposition.DELIVERED: "delivered",
    Disposition.HOST_PROCESS: "taken by a process of the node",
    Disposition.NO_LISTENER: "refused by the node itself",
    Disposition.LOST: "lost",
    Disposition.UNDETERMINED: "undetermined",
}


def verdict_of(
    answer: FlowAnswer,
    node: str,
    names: Mapping[str, str],
    rules: NodePortRules | NftNodePort | None = None,
    *,
    by_node: bool = False,
    nft: NftRuleset | None = None,
    service: str | None = None,
    front_ends: Sequence[LbFrontend] | None = None,
) -> Verdict:
    """The verdict on a flow that reached the cluster, or was sent, at `node`.

    `names` says what to call addresses that stand for unknown ones; `rules` are those that the node port has here;
    `by_node` tells that a process of the node itself asks; `nft` is the node's native nftables ruleset;
    `service` names the Service where no rule on the packet's way does; `front_ends` are Cilium's on the node.
    """
    endpoints = _endpoints(answer, names)
    worst = _worst(answer)
    decided = worst.decided_by if worst is not None else answer.decided_by
    steps = request_steps(worst, node) if worst is not None else []
    by = _deciding_rule(worst)
    in_nft = _decided_by_nft(worst, nft, answer)
    if answer.disposition is Disposition.UNDETERMINED:
        why = "; ".join(dict.fromkeys(u.why for u in answer.unknowns)) or answer.reason
    elif answer.symptom is Symptom.CONNECTS and answer.disposition is not Disposition.HOST_PROCESS:
        why = _delivered(
            answer, endpoints, node, by_node=by_node, placeholders=bool(names), native=nft is not None
        )
    else:
        why = _failed(worst, by, steps, rules, answer, node, nft, in_nft, service, front_ends)
    head = _HEADS[answer.disposition]
    if answer.symptom is Symptom.INTERMITTENT:
        head = f"sometimes {head}"
    source = ""
    if answer.source_preserved is not None and not (by_node and names):
        source = "kept" if answer.source_preserved else "replaced"
    return Verdict(
        disposition=answer.disposition.value,
        symptom=answer.symptom.value,
        headline=f"{head}: {_SYMPTOM_WORDS[answer.symptom]}",
        why=shown(why, names),
        node=decided.node if decided is not None else "",
        table=decided.table if decided is not None else "",
        chain=decided.chain if decided is not None else "",
        rule=decided.rule if decided is not None and decided.kind in (StepKind.RULE, StepKind.POLICY) else "",
        position=by.position if by is not None else in_nft.position if in_nft is not None else 0,
        line=by.line if by is not None else decided.line if decided is not None else 0,
        lookup=in_nft.lookup if in_nft is not None else "",
        element=in_nft.element if in_nft is not None else "",
        endpoints=endpoints,
        client_source=source,
        assumptions=tuple(replace(a, taken=shown(a.taken, names)) for a in answer.assumptions),
    )


def shown(text: str, names: Mapping[str, str]) -> str:
    """`text` with the placeholders called by their names."""
    for address, name in names.items():
        text = text.replace(address, name)
    return text


def is_fine(verdict: Verdict) -> bool:
    """Whether nothing is wrong: every connection reaches an endpoint."""
    return verdict.symptom == Symptom.CONNECTS.value and verdict.disposition == Disposition.DELIVERED.value


def _worst(answer: FlowAnswer) -> Path | None:
    """The path that stands for the answer: of several the likeliest that does not connect."""
    if not answer.paths:
        return None
    bad = [p for p in answer.paths if p.symptom is not Symptom.CONNECTS]
    return max(bad or answer.paths, key=lambda p: p.probability)


def _deciding_rule(path: Path | None) -> Rule | None:
    """The rule that decided, found again among the steps."""
    if path is None or path.decided_by is None or path.decided_by.kind is not StepKind.RULE:
        return None
    d = path.decided_by
    for hop in reversed(path.hops):
        for step in reversed(hop.steps):
            if step.rule is not None and (step.table, step.chain, step.text) == (d.table, d.chain, d.rule):
                return step.rule
    return None


def _decided_by_nft(path: Path | None, nft: NftRuleset | None, answer: FlowAnswer) -> Decided | None:
    if path is None or path.decided_by is None or path.decided_by.backend != "nftables":
        return None
    from ktp.explain.nft_verdict import stopped_by

    return stopped_by(path, nft, answer)


def _endpoints(answer: FlowAnswer, names: Mapping[str, str]) -> tuple[EndpointShare, ...]:
    found: dict[tuple[str, str, str | None, str | None], float] = {}
    for path in answer.paths:
        if path.endpoint_ip is None:
            continue
        host = f"[{path.endpoint_ip}]" if ":" in path.endpoint_ip else path.endpoint_ip
        address = f"{host}:{path.endpoint_port}" if path.endpoint_port is not None else host
        key = (shown(address, names), path.symptom.value, path.endpoint_name, path.endpoint_node)
        found[key] = found.get(key, 0.0) + path.probability
    return tuple(
        EndpointShare(address=address, share=share, symptom=symptom, pod=pod, node=where)
        for (address, symptom, pod, where), share in found.items()
    )


def _delivered(
    answer: FlowAnswer,
    endpoints: tuple[EndpointShare, ...],
    node: str,
    *,
    by_node: bool,
    placeholders: bool,
    native: bool,
) -> str:
    strange = [
        (rule.chain, rule.table)
        for path in answer.paths
        for rule in _foreign_translations(request_steps(path, node))
    ]
    if native:
        from ktp.explain.nft_verdict import foreign_translations

        strange += [(s.chain, s.table) for path in answer.paths for s in foreign_translations(path, node)]
    if len(endpoints) == 1:
        words = f"all connections go to {_endpoint_words(endpoints[0])}"
    elif len({round(e.share, 4) for e in endpoints}) == 1:
        words = f"balanced over {len(endpoints)} endpoints, {percent(endpoints[0].share)} each"
    else:
        words = f"balanced over {len(endpoints)} endpoints"
    if strange:
        words += (
            f"; by a rule that is not kube-proxy's, in chain {strange[0][0]} of table {strange[0][1]}, which "
            "comes before kube-proxy's"
        )
    if by_node and placeholders:
        words += "; the endpoint sees an address of this node"
    elif answer.source_preserved is True:
        words += "; the endpoint sees the client's own address"
    elif answer.source_preserved is False:
        seen = "an address of this node" if placeholders else ", ".join(answer.sources_seen[:3])
        words += f"; the client's address is replaced: the endpoint sees {seen}"
    return words


def _foreign_translations(steps: list[tuple[str, Rule]]) -> list[Rule]:
    """The rules on the way that gave the packet another destination and are not kube-proxy's."""
    return [
        rule
        for _, rule in steps
        if rule.target is not None
        and rule.target.name in ("DNAT", "REDIRECT")
        and not rule.chain.startswith(SEP_PREFIX)
    ]


def _astray(steps: list[tuple[str, Rule]], path: Path) -> str:
    """The start of a sentence about a packet that somebody else's rule sent where it is lost."""
    found = _foreign_translations(steps)
    if not found:
        return ""
    rule = found[0]
    where = f" to {path.endpoint_ip}" if path.endpoint_ip is not None else ""
    return f"a rule that is not kube-proxy's, in chain {rule.chain} of table {rule.table}, sends the packet{where}; "


def _endpoint_words(endpoint: EndpointShare) -> str:
    where = [w for w in (endpoint.pod, f"on {endpoint.node}" if endpoint.node else None) if w]
    return endpoint.address + (f" ({' '.join(where)})" if where else "")


def _failed(
    path: Path | None,
    by: Rule | None,
    steps: list[tuple[str, Rule]],
    rules: NodePortRules | NftNodePort | None,
    answer: FlowAnswer,
    node: str,
    nft: NftRuleset | None,
    in_nft: Decided | None,
    named: str | None,
    front_ends: Sequence[LbFrontend] | None,
) -> str:
    service = next((s for _, rule in steps if (s := service_of(rule)) is not None), None)
    if nft is not None and service is None:
        from ktp.explain.nft_verdict import service_in

        service = service_in(path, node)
    service = service or (rules.service if rules is not None else None) or named or "the Service"
    if path is None:
        return answer.reason
    lead = ""
    if answer.symptom is Symptom.INTERMITTENT and path.endpoint_ip is not None:
        good = sum(p.probability for p in answer.paths if p.symptom is Symptom.CONNECTS)
        lead = f"connects in {percent(good)} of tries; those that draw {path.endpoint_ip} fail: "
    if by is not None and path.disposition in (Disposition.DROPPED, Disposition.REJECTED):
        words = _by_rule(by, steps, service)
        if path.decided_by is not None and path.decided_by.node != node:
            words = f"on {path.decided_by.node}: {words}"
        return lead + words
    if in_nft is not None and path.disposition in (Disposition.DROPPED, Disposition.REJECTED):
        from ktp.explain.nft_verdict import early_check_words

        words = in_nft.words + (early_check_words(path, nft) if in_nft.element else "")
        if path.decided_by is not None and path.decided_by.node != node:
            words = f"on {path.decided_by.node}: {words}"
        return lead + words
    if path.decided_by is not None and path.decided_by.backend == "cilium" and front_ends is not None:
        from ktp.explain.cilium import failed_words

        by_text = next((f for f in front_ends if f.text == path.decided_by.rule), None)
        if by_text is not None and not by_text.backends and by_text.port:
            return lead + failed_words(by_text, service)
    if path.decided_by is not None and path.decided_by.backend == "ipvs":
        return (
            f"{lead}the virtual server has no real server that takes connections: {service} has no usable endpoint, or "
            "(kube-proxy up to 1.23, externalTrafficPolicy Local) none on this node"
        )
    if (
        path.disposition is Disposition.DROPPED
        and path.decided_by is not None
        and path.decided_by.kind is StepKind.POLICY
    ):
        d = path.decided_by
        return f"{lead}no rule of table {d.table} accepts the packet, and {d.rule} applies"
    untouched = path.endpoint_ip in (None, answer.flow.dst)
    if path.disposition in (Disposition.NO_LISTENER, Disposition.HOST_PROCESS) and untouched:
        by_whom = f" ({path.reason})" if path.disposition is Disposition.HOST_PROCESS else ""
        return lead + _stays(path, steps, rules, service, answer, node, nft) + by_whom
    if path.disposition is Disposition.LOST and path.endpoint_node != node and _by_ipvs(path, node):
        from ktp.explain.ipvs import keeps_source

        if keeps_source([rule for _, rule in steps]):
            lead += (
                f"externalTrafficPolicy of {service} is Local, and no usable endpoint of it runs on this node: "
                "kube-proxy since 1.24 then gives the virtual server all endpoints of the cluster, and the client's "
                "address stays; "
            )
    return lead + _astray(steps, path) + path.reason


def _by_ipvs(path: Path, node: str) -> bool:
    return any(s.table == "ipvs" for hop in path.hops if hop.is_of(node) for s in hop.steps)


def _stays(
    path: Path,
    steps: list[tuple[str, Rule]],
    rules: NodePortRules | NftNodePort | None,
    service: str,
    answer: FlowAnswer,
    node: str,
    nft: NftRuleset | None,
) -> str:
    """Why the packet stays with the node itself."""
    if nft is None:
        return _untranslated(steps, rules if isinstance(rules, NodePortRules) else None, service)
    from ktp.explain.nft_kube import NftNodePort, kube_table
    from ktp.explain.nft_tree import nft_steps
    from ktp.explain.nft_verdict import untranslated

    table = kube_table(nft, "ip6" if ":" in answer.flow.dst else "ip")
    if table is None:
        return _untranslated(steps, rules if isinstance(rules, NodePortRules) else None, service)
    own = rules if isinstance(rules, NftNodePort) else None
    return untranslated(table, own, answer.flow.dst, nft_steps(path, node), service)


def _by_rule(by: Rule, steps: list[tuple[str, Rule]], service: str) -> str:
    name = service_of(by) or service
    if by.chain == KUBE_FIREWALL and by.table == "filter":
        marking = next(
            (r for _, r in reversed(steps) if r.target is not None and r.target.name == KUBE_MARK_DROP), None
        )
        if marking is not None and marking.chain.startswith(FW_PREFIX):
            return (
                f"loadBalancerSourceRanges of {name} do not allow this client: {marking.chain} marks the packet, "
                "KUBE-FIREWALL drops it"
            )
        if marking is not None:
            why = _no_local(service_of(marking) or name)
            return f"{why}: {marking.chain} marks the packet, KUBE-FIREWALL drops it"
    if by.chain == KUBE_EXTERNAL_SERVICES and by.target is not None:
        if by.target.name == "DROP":
            return _no_local(name)
        if by.target.name == "REJECT":
            return f"{name} has no usable endpoint on any node"
    if by.chain == KUBE_SERVICES and by.table == "filter" and by.target is not None:
        if by.target.name == "DROP":
            return f"internalTrafficPolicy of {name} is Local, and no usable endpoint of it runs on this node"
        if by.target.name == "REJECT":
            return f"{name} has no usable endpoint on any node"
    if by.chain == KUBE_PROXY_FIREWALL:
        return f"loadBalancerSourceRanges of {name} do not allow this client"
    words = explain_rule(by)
    if is_kube_chain(by.chain):
        return words
    return f"a rule that is not kube-proxy's, in chain {by.chain} of table {by.table}: {words}"


def _no_local(service: str) -> str:
    return f"externalTrafficPolicy of {service} is Local, and no usable endpoint of it runs on this node"


def _untranslated(steps: list[tuple[str, Rule]], rules: NodePortRules | None, service: str) -> str:
    """Why no rule sent the packet to an endpoint, and the node itself answered."""
    taken = [rule for _, rule in steps]
    if any(r.target is not None and r.target.name == KUBE_MARK_DROP for r in taken):
        return (
            _no_local(service)
            + "; the packet is marked to be dropped, but no rule drops marked packets (the "
            "kubelet's in KUBE-FIREWALL is missing), so the node itself answers"
        )
    own = [r for r in taken if is_service_chain(r.chain)]
    if own:
        return f"the chains of {service} lead to no endpoint, so the packet stays with the node itself"
    entered = any(r.chain == KUBE_NODEPORTS and r.table == "nat" for r in taken)
    asked = any(r.chain == KUBE_SERVICES and r.table == "nat" for r in taken)
    if rules is not None and rules.nat and not entered:
        if not any(
            r.target is not None and r.target.name == KUBE_SERVICES and r.table == "nat" for r in taken
        ):
            return (
                "the node port has its rules, but no packet gets to them: the built-in nat chain does not jump to "
                "KUBE-SERVICES any more (something flushed it; kube-proxy puts it back when it restarts)"
            )
        if not asked:
            return (
                "the node port has its rules, but KUBE-SERVICES does not lead this packet to KUBE-NODEPORTS"
            )
    return "no rule sends the packet to an endpoint, so it stays with the node itself"


__all__ = ["is_fine", "shown", "verdict_of"]
