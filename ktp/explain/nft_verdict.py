"""Why a packet ends where it does on a node with nftables rules: the part of `ktp.explain.verdict` for these."""

from __future__ import annotations

from dataclasses import dataclass

from ktp.explain.nft_kube import (
    CLUSTER_IPS_CHECK,
    FIREWALL_ALLOW_CHECK,
    REJECT_CHAIN,
    NftNodePort,
    WithoutEndpoint,
    element_words,
    explain_nft_rule,
    generation_of,
    is_kube_table,
    node_port_addresses,
    owner_of,
    service_of_chain,
    service_of_element,
    without_endpoint,
)
from ktp.explain.nft_tree import nft_steps
from ktp.kubeproxy.names import NFT_FIREWALL_PREFIX
from ktp.model.explanation import Verdict
from ktp.model.nftables import (
    Concat,
    Immediate,
    NftRule,
    NftRuleset,
    NftTable,
    SetElement,
    SetReference,
    Vmap,
    render_element,
)
from ktp.model.trace import Disposition, FlowAnswer, Path, Step, StepKind, Symptom


@dataclass(frozen=True, slots=True)
class Decided:
    """What stopped a packet: words, and the map's element behind the rule, where one decided."""

    words: str
    position: int = 0
    lookup: str = ""
    element: str = ""


def service_in(path: Path | None, node: str) -> str | None:
    """The Service whose chains the packet met."""
    for step in nft_steps(path, node) if path is not None else ():
        for name in (step.chain, *step.leads_to):
            if (service := service_of_chain(name)) is not None:
                return service
    return None


def stopped_by(path: Path, ruleset: NftRuleset | None, answer: FlowAnswer) -> Decided | None:
    """Why the rule that decided `path` stopped it; None where no nftables rule did."""
    d = path.decided_by
    if d is None or d.backend != "nftables" or d.kind is not StepKind.RULE:
        return None
    steps = nft_steps(path, d.node)
    last = next((s for s in reversed(steps) if s == d.step), None)
    table = _table(ruleset, d.table)
    if last is None or table is None:
        return Decided(f"a rule of table {d.table}, chain {d.chain}, stops it")
    rule = _rule(table, last)
    if not is_kube_table(table.family, table.name):
        owner = owner_of(table)
        words = explain_nft_rule(table, last.chain, rule) if rule is not None else last.text
        by = f"in chain {d.chain} of table {d.table}" + ("" if owner.startswith("table ") else f" ({owner})")
        return Decided(f"a rule that is not kube-proxy's, {by}: {words}", last.position)
    asking = last
    if last.chain == REJECT_CHAIN:
        at = steps.index(last)
        asking = next((s for s in reversed(steps[:at]) if REJECT_CHAIN in s.leads_to), last)
    found = _element(table, asking, answer)
    if found is not None:
        name, element = found
        item = table.maps[name]
        service = service_of_element(element) or "the Service"
        words = _front_end_words(table, name, element, service)
        text = render_element(element, item.key_types, item.value_types)
        return Decided(words, last.position, name, text)
    if last.chain.startswith(NFT_FIREWALL_PREFIX) or last.chain == FIREWALL_ALLOW_CHECK:
        service = service_of_chain(last.chain) or "the Service"
        return Decided(f"loadBalancerSourceRanges of {service} do not allow this client", last.position)
    words = explain_nft_rule(table, last.chain, rule) if rule is not None else last.text
    if last.chain == CLUSTER_IPS_CHECK:
        words = f"no Service has this address and port: {words}"
    return Decided(words, last.position)


def _front_end_words(table: NftTable, name: str, element: SetElement, service: str) -> str:
    why = without_endpoint(table, name, element)
    if why is None:
        return element_words(table, name, element)
    if why is WithoutEndpoint.ANYWHERE:
        return f"{service} has {why.value}"
    return f"{why.value} of {service} is Local, and no usable endpoint of it runs on this node"


def verdict_on_fragment(table: NftTable, rules: NftNodePort) -> Verdict:
    """What elements of a node port say where the chains that ask them were not read: kube-proxy's table has them."""
    found = {"service-nodeports": rules.nat, "no-endpoint-nodeports": rules.refusing}
    service = rules.service or "the Service"
    said = [
        f"map {name} has it: {_front_end_words(table, name, element, service)}"
        for name, element in found.items()
        if element is not None
    ]
    name, element = next((n, e) for n, e in found.items() if e is not None)
    item = table.maps[name]
    return Verdict(
        disposition=Disposition.UNDETERMINED.value,
        symptom=Symptom.UNKNOWN.value,
        headline="UNDETERMINED: what the client sees is not known",
        why="; ".join(
            (*said, f"table {table.family} {table.name} was not read whole: the text is a fragment")
        ),
        lookup=name,
        element=render_element(element, item.key_types, item.value_types),
    )


def early_check_words(path: Path, ruleset: NftRuleset | None) -> str:
    """For a process of the node itself: that kube-proxy up to 1.32 asks for endpoints too early."""
    d = path.decided_by
    table = _table(ruleset, d.table) if d is not None else None
    if d is None or table is None or d.hook != "OUTPUT" or generation_of(table) is None:
        return ""
    base = next((c for c in table.base_chains if c.name == "filter-output"), None)
    if base is None or base.priority is None or base.priority > -100:
        return ""
    return (
        "; kube-proxy up to 1.32 checks this before it would send the node's own packets to an endpoint of "
        "another node"
    )


def untranslated(
    table: NftTable, rules: NftNodePort | None, dst: str, steps: list[Step], service: str
) -> str:
    """Why no rule of kube-proxy sent the packet to an endpoint, and the node itself answered."""
    addresses = node_port_addresses(table)
    if rules is not None and rules.nat is not None:
        looked = any(s.chain == "services" for s in steps)
        if not looked and not any("services" in s.leads_to for s in steps):
            return (
                "the node port has its element in map service-nodeports, but no packet gets to chain services: the "
                "base chain that jumps there is missing or empty"
            )
        if dst.startswith("127.") or dst == "::1":
            return (
                "kube-proxy's nftables mode serves node ports on no loopback address, so the packet stays with "
                "the node itself"
            )
        if addresses is not None and dst not in addresses:
            which = ", ".join(addresses) or "no address at all"
            return (
                f"kube-proxy serves node ports on {which} (set nodeport-ips), not on {dst}, so the packet "
                "stays with the node itself"
            )
        if any(service_of_chain(c) for s in steps for c in s.leads_to):
            return f"the chains of {service} lead to no endpoint, so the packet stays with the node itself"
    return "no rule sends the packet to an endpoint, so it stays with the node itself"


def foreign_translations(path: Path, node: str) -> list[Step]:
    """The rules on the way that gave the packet another destination and are not kube-proxy's."""
    return [
        s
        for s in nft_steps(path, node)
        if any(t.kind.of_destination for t in s.translations) and not is_kube_table(*(s.table.split(" ", 1)))
    ]


def _table(ruleset: NftRuleset | None, name: str) -> NftTable | None:
    family, _, table = name.partition(" ")
    return ruleset.table(family, table) if ruleset is not None else None


def _rule(table: NftTable, step: Step) -> NftRule | None:
    chain = table.chains.get(step.chain)
    return next((r for r in chain.rules if r.index + 1 == step.position), None) if chain is not None else None


def _element(table: NftTable, step: Step, answer: FlowAnswer) -> tuple[str, SetElement] | None:
    """The element of a `no-endpoint-…` map that the rule of `step` found for the dialled address and port."""
    rule = _rule(table, step)
    flow = answer.flow
    for statement in rule.statements if rule is not None else ():
        if isinstance(statement, Vmap) and isinstance(statement.data, SetReference):
            item = table.maps.get(statement.data.name)
            parts = (Immediate(flow.protocol.lower()), Immediate(flow.port))
            keys = (Concat(parts), Concat((Immediate(flow.dst), *parts)))
            found = next((e for e in item.elements if e.key in keys), None) if item is not None else None
            if found is not None:
                return statement.data.name, found
    return None
