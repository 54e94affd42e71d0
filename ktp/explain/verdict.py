"""Where a packet ends and why, in a sentence or two. The fate is the walker's; the words are made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ktp.explain.front_end import NodePortRules
from ktp.explain.kube import purpose_of
from ktp.explain.purpose import Aim
from ktp.explain.steps import (
    is_of_rule,
    owner_words,
    purpose_of_step,
    request_steps,
    role_of_step,
    rule_words,
    table_of,
)
from ktp.explain.words import percent
from ktp.kubeproxy.names import ChainRole, role_of_chain, role_of_nft_chain
from ktp.model.explanation import EndpointShare, Verdict
from ktp.model.host import NodeState
from ktp.model.trace import Disposition, FlowAnswer, Path, Step, StepKind, Symptom

if TYPE_CHECKING:
    from ktp.explain.nft_kube import NftNodePort
    from ktp.model.nftables import NftRuleset, NftTable, SetElement

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
    nodes: Mapping[str, NodeState],
    names: Mapping[str, str],
    rules: NodePortRules | NftNodePort | None = None,
    *,
    by_node: bool = False,
    service: str | None = None,
) -> Verdict:
    """The verdict on a flow that reached the cluster, or was sent, at `node`.

    `nodes` are all that were read; `names` says what to call addresses that stand for unknown ones; `rules` are those
    that the node port has here; `by_node` tells that a process of the node itself asks; `service` names the Service
    where no rule on the packet's way does.
    """
    endpoints = _endpoints(answer, names)
    worst = _worst(answer)
    decided = worst.decided_by if worst is not None else answer.decided_by
    stop: _Stop | None = None
    if answer.disposition is Disposition.UNDETERMINED:
        why = "; ".join(dict.fromkeys(u.why for u in answer.unknowns)) or answer.reason
    elif answer.symptom is Symptom.CONNECTS and answer.disposition is not Disposition.HOST_PROCESS:
        why = _delivered(answer, endpoints, node, by_node=by_node, placeholders=bool(names))
    elif worst is None:
        why = answer.reason
    else:
        service = _service_met(worst, node) or (rules.service if rules is not None else None) or service
        why, stop = _failed(worst, rules, answer, node, nodes, service or "the Service")
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
        position=decided.step.position if decided is not None and decided.step is not None else 0,
        line=decided.line if decided is not None else 0,
        lookup=stop.lookup if stop is not None else "",
        element=stop.element if stop is not None else "",
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
) -> str:
    strange = [step for path in answer.paths for step in _foreign_translations(path, node)]
    if len(endpoints) == 1:
        words = f"all connections go to {_endpoint_words(endpoints[0])}"
    elif len({round(e.share, 4) for e in endpoints}) == 1:
        words = f"balanced over {len(endpoints)} endpoints, {percent(endpoints[0].share)} each"
    else:
        words = f"balanced over {len(endpoints)} endpoints"
    if strange:
        words += (
            f"; by a rule that is not kube-proxy's, in chain {strange[0].chain} of table {strange[0].table}, which "
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


def _foreign_translations(path: Path, node: str) -> list[Step]:
    """The rules on the way that gave the packet another destination and are not kube-proxy's."""
    return [
        step
        for step in request_steps(path, node)
        if any(t.kind.of_destination for t in step.translations) and role_of_step(step) is None
    ]


def _astray(path: Path, node: str) -> str:
    """The start of a sentence about a packet that somebody else's rule sent where it is lost."""
    found = _foreign_translations(path, node)
    if not found:
        return ""
    where = f" to {path.endpoint_ip}" if path.endpoint_ip is not None else ""
    place = f"chain {found[0].chain} of table {found[0].table}"
    return f"a rule that is not kube-proxy's, in {place}, sends the packet{where}; "


def _endpoint_words(endpoint: EndpointShare) -> str:
    where = [w for w in (endpoint.pod, f"on {endpoint.node}" if endpoint.node else None) if w]
    return endpoint.address + (f" ({' '.join(where)})" if where else "")


def _service_met(path: Path, node: str) -> str | None:
    """The Service whose rules the packet met."""
    for step in request_steps(path, node):
        if step.rule is not None:
            purpose = purpose_of(step.rule)
            found = purpose.service if purpose is not None else None
        else:
            from ktp.explain.nft_kube import service_of_chain

            found = next((s for c in (step.chain, *step.leads_to) if (s := service_of_chain(c))), None)
        if found is not None:
            return found
    return None


def _failed(
    path: Path,
    rules: NodePortRules | NftNodePort | None,
    answer: FlowAnswer,
    node: str,
    nodes: Mapping[str, NodeState],
    service: str,
) -> tuple[str, _Stop | None]:
    lead = ""
    if answer.symptom is Symptom.INTERMITTENT and path.endpoint_ip is not None:
        good = sum(p.probability for p in answer.paths if p.symptom is Symptom.CONNECTS)
        lead = f"connects in {percent(good)} of tries; those that draw {path.endpoint_ip} fail: "
    decided = path.decided_by
    if decided is not None and path.disposition in (Disposition.DROPPED, Disposition.REJECTED):
        stop = _stopped(path, nodes.get(decided.node), answer, service)
        if stop is not None:
            where = f"on {decided.node}: " if decided.node != node else ""
            return f"{lead}{where}{stop.words}", stop
    if path.disposition is Disposition.DROPPED and decided is not None and decided.kind is StepKind.POLICY:
        return (
            f"{lead}no rule of table {decided.table} accepts the packet, and {decided.rule} applies",
            None,
        )
    untouched = path.endpoint_ip in (None, answer.flow.dst)
    if path.disposition in (Disposition.NO_LISTENER, Disposition.HOST_PROCESS) and untouched:
        by_whom = f" ({path.reason})" if path.disposition is Disposition.HOST_PROCESS else ""
        return lead + _stays(path, rules, service, answer, node, nodes) + by_whom, None
    if path.disposition is Disposition.LOST and path.endpoint_node != node and _by_ipvs(path, node):
        from ktp.explain.ipvs import keeps_source

        if keeps_source([step.rule for step in request_steps(path, node) if step.rule is not None]):
            lead += (
                f"externalTrafficPolicy of {service} is Local, and no usable endpoint of it runs on this node: "
                "kube-proxy since 1.24 then gives the virtual server all endpoints of the cluster, and the client's "
                "address stays; "
            )
    return lead + _astray(path, node) + path.reason, None


def _by_ipvs(path: Path, node: str) -> bool:
    return any(s.table == "ipvs" for hop in path.hops if hop.is_of(node) for s in hop.steps)


class _Stop(NamedTuple):
    """Why a rule stopped a packet, and the element that it found in a map, where that decided."""

    words: str
    lookup: str = ""
    element: str = ""


def _stopped(path: Path, state: NodeState | None, answer: FlowAnswer, service: str) -> _Stop | None:
    """Why the rule that decided `path` stopped it; None where no rule did. `state` is its node's."""
    decided = path.decided_by
    step = decided.step if decided is not None else None
    if decided is None or step is None or decided.kind is not StepKind.RULE:
        return None
    words, purpose = rule_words(step, state), purpose_of_step(step, state)
    if not is_of_rule(step):
        return _Stop(purpose.why(service, words)) if purpose is not None else None
    table = table_of(state, step)
    if step.nft_rule is not None and table is None:
        return _Stop(f"a rule of table {step.table}, chain {step.chain}, stops it")
    if purpose is None:
        place = f"in chain {step.chain} of table {step.table}{owner_words(step, state)}"
        return _Stop(f"a rule that is not kube-proxy's, {place}: {words}")
    before = request_steps(path, decided.node)
    before = before[: before.index(step)] if step in before else before
    if purpose.aim is Aim.DROP_MARKED:
        for earlier in reversed(before):
            marking = purpose_of_step(earlier, state)
            if marking is not None and marking.aim.marks_for_drop:
                why = marking.why(service, "")
                return _Stop(f"{why}: {earlier.chain} marks the packet, {step.chain} drops it")
    asking = step
    if purpose.aim is Aim.REFUSE:
        asking = next((s for s in reversed(before) if step.chain in s.leads_to), step)
    found = _element(table, asking, answer) if table is not None else None
    if table is None or found is None:
        return _Stop(purpose.why(service, words))
    return _stopped_by_element(table, *found, service, asking.hook)


def _stopped_by_element(
    table: NftTable, name: str, element: SetElement, service: str, hook: str = ""
) -> _Stop:
    from ktp.explain.nft_kube import element_words, purpose_of_element
    from ktp.model.nftables import render_element

    item = table.maps[name]
    words, purpose = element_words(table, name, element), purpose_of_element(table, name, element)
    if purpose is not None:
        words = purpose.why(service, words)
        if purpose.aim is Aim.NO_LOCAL_EARLY and hook == "OUTPUT":
            words += (
                f"; kube-proxy up to {purpose.until} checks this before it would send the node's own packets to an "
                "endpoint of another node"
            )
    return _Stop(words, name, render_element(element, item.key_types, item.value_types))


def _element(table: NftTable, step: Step, answer: FlowAnswer) -> tuple[str, SetElement] | None:
    """The element of a map that the rule of `step` found for the dialled address and port."""
    from ktp.model.nftables import Concat, Immediate, SetReference, Vmap

    flow = answer.flow
    for statement in step.nft_rule.statements if step.nft_rule is not None else ():
        if isinstance(statement, Vmap) and isinstance(statement.data, SetReference):
            item = table.maps.get(statement.data.name)
            parts = (Immediate(flow.protocol.lower()), Immediate(flow.port))
            keys = (Concat(parts), Concat((Immediate(flow.dst), *parts)))
            found = next((e for e in item.elements if e.key in keys), None) if item is not None else None
            if found is not None:
                return statement.data.name, found
    return None


def verdict_on_fragment(table: NftTable, rules: NftNodePort) -> Verdict:
    """What elements of a node port say where the chains that ask them were not read: kube-proxy's table has them."""
    elements = {"service-nodeports": rules.nat, "no-endpoint-nodeports": rules.refusing}
    found = [
        _stopped_by_element(table, name, element, rules.service or "the Service")
        for name, element in elements.items()
        if element is not None
    ]
    said = [f"map {stop.lookup} has it: {stop.words}" for stop in found]
    return Verdict(
        disposition=Disposition.UNDETERMINED.value,
        symptom=Symptom.UNKNOWN.value,
        headline="UNDETERMINED: what the client sees is not known",
        why="; ".join(
            (*said, f"table {table.family} {table.name} was not read whole: the text is a fragment")
        ),
        lookup=found[0].lookup,
        element=found[0].element,
    )


def _stays(
    path: Path,
    rules: NodePortRules | NftNodePort | None,
    service: str,
    answer: FlowAnswer,
    node: str,
    nodes: Mapping[str, NodeState],
) -> str:
    """Why no rule sent the packet to an endpoint, and the node itself answered."""
    state = nodes.get(node)
    steps = request_steps(path, node)
    for step in steps:
        purpose = purpose_of_step(step, state)
        if purpose is not None and purpose.aim.marks_for_drop:
            return (
                f"{purpose.why(service, '')}; the packet is marked to be dropped, but no rule drops marked packets "
                "(the kubelet's in KUBE-FIREWALL is missing), so the node itself answers"
            )
    if any((role := role_of_step(step)) is not None and role.is_per_service for step in steps):
        return f"the chains of {service} lead to no endpoint, so the packet stays with the node itself"
    unreached = ""
    if isinstance(rules, NodePortRules) and rules.nat:
        unreached = _unreached(steps)
    elif rules and rules.nat and state is not None and not isinstance(rules, NodePortRules):
        unreached = _unreached_nft(state.nft, steps, answer.flow.dst)
    return unreached or "no rule sends the packet to an endpoint, so it stays with the node itself"


def _roles(steps: Sequence[Step]) -> set[ChainRole | None]:
    """What the chains are for that the packet got to."""
    return {role_of_step(s) for s in steps} | {
        role_of_chain(s.table, c) if s.nft_rule is None else role_of_nft_chain(c)
        for s in steps
        for c in s.leads_to
    }


def _unreached(steps: Sequence[Step]) -> str:
    """Why the packet did not get to the rules of the node port; "" where it did."""
    roles = _roles(steps)
    if ChainRole.SERVICES_NAT not in roles:
        return (
            "the node port has its rules, but no packet gets to them: the built-in nat chain does not jump to "
            "KUBE-SERVICES any more (something flushed it; kube-proxy puts it back when it restarts)"
        )
    if ChainRole.NODEPORTS_NAT not in roles:
        return "the node port has its rules, but KUBE-SERVICES does not lead this packet to KUBE-NODEPORTS"
    return ""


def _unreached_nft(nft: NftRuleset | None, steps: Sequence[Step], dst: str) -> str:
    """As `_unreached`, of kube-proxy's nftables mode."""
    from ktp.explain.nft_kube import kube_table, node_port_addresses

    table = kube_table(nft, "ip6" if ":" in dst else "ip")
    if ChainRole.SERVICES_NAT not in _roles(steps):
        return (
            "the node port has its element in map service-nodeports, but no packet gets to chain services: the "
            "base chain that jumps there is missing or empty"
        )
    if dst.startswith("127.") or dst == "::1":
        return (
            "kube-proxy's nftables mode serves node ports on no loopback address, so the packet stays with "
            "the node itself"
        )
    addresses = node_port_addresses(table) if table is not None else None
    if addresses is not None and dst not in addresses:
        which = ", ".join(addresses) or "no address at all"
        return (
            f"kube-proxy serves node ports on {which} (set nodeport-ips), not on {dst}, so the packet "
            "stays with the node itself"
        )
    return ""
