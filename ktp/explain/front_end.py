"""What a ruleset knows of a front end: its rules, the Services near it, the node's address, the pods' network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktp.explain.kube import (
    destination_port,
    explain_chain,
    is_service_chain,
    protocol_of,
    purpose_of,
    service_of,
)
from ktp.explain.purpose import Aim
from ktp.kubeproxy.names import (
    EXT_PREFIX,
    KUBE_EXTERNAL_SERVICES,
    KUBE_NODE_PORT,
    KUBE_NODEPORTS,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
    SVC_PREFIX,
    SVL_PREFIX,
    XLB_PREFIX,
)
from ktp.model.reading import Reading
from ktp.model.record import dataclass
from ktp.model.ruleset import Rule, Ruleset, has_chain

_PLACES = (("nat", KUBE_NODEPORTS), ("filter", KUBE_EXTERNAL_SERVICES))
_NEAR = 3
_MOST_NAMING = 8
_PORT_FLAGS = ("--dport", "--dports", "--destination-port", "--destination-ports", "--ports")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePortRules:
    """The rules of one node port. `nat` leads to endpoints, `refusing` are those of the filter table."""

    nat: tuple[Rule, ...] = ()
    refusing: tuple[Rule, ...] = ()

    @property
    def service(self) -> str | None:
        """`namespace/name:port`, where a rule's comment tells it."""
        return next((s for r in (*self.nat, *self.refusing) if (s := service_of(r)) is not None), None)

    def __bool__(self) -> bool:
        return bool(self.nat or self.refusing)


def node_port_rules(ruleset: Ruleset, protocol: str, port: int) -> NodePortRules:
    """The rules that name this node port."""
    nat, refusing = (tuple(_with_port(ruleset, table, name, protocol, port)) for table, name in _PLACES)
    return NodePortRules(nat=nat, refusing=refusing)


def _with_port(ruleset: Ruleset, table: str, name: str, protocol: str, port: int) -> Iterable[Rule]:
    chain = ruleset.chain(table, name)
    for index in chain.containing(f"--dport {port} ") if chain is not None else ():
        rule = chain.rule(index) if chain is not None else None
        if rule is None or destination_port(rule) != port or protocol_of(rule) != protocol:
            continue
        if table == "nat" or any(m.name == "addrtype" for m in rule.matches):
            yield rule


def rules_naming(ruleset: Ruleset, protocol: str, port: int) -> list[Rule]:
    """Every rule that asks for this destination port, whoever wrote it."""
    found: list[Rule] = []
    for table in ruleset.tables():
        for name in ruleset.chain_names(table):
            chain = ruleset.chain(table, name)
            for index in chain.containing(str(port)) if chain is not None else ():
                rule = chain.rule(index) if chain is not None else None
                if rule is not None and protocol_of(rule) in (protocol, None) and _names_port(rule, port):
                    found.append(rule)
    return found


def _names_port(rule: Rule, port: int) -> bool:
    options = [o for m in rule.matches for flag in _PORT_FLAGS if (o := m.option(flag)) is not None]
    return any(str(port) in word.split(",") for option in options for word in option.args)


def naming_notes(rules: Sequence[Rule]) -> list[str]:
    """Whose port it is that these rules name, and the rules."""
    first = rules[0]
    head = f"no node port of kube-proxy's: named in {first.chain} ({explain_chain(first.table, first.chain)})"
    lines = [f"{rule.table} {rule.text}" for rule in rules[:_MOST_NAMING]]
    more = [f"and {len(rules) - len(lines)} more rules that name it"] if len(rules) > len(lines) else []
    return [head, *lines, *more]


def node_ports(ruleset: Ruleset) -> list[tuple[int, str, str]]:
    """Every (port, protocol, Service or "") that the ruleset has, sorted."""
    out: dict[tuple[int, str], str] = {}
    for table, name in _PLACES:
        chain = ruleset.chain(table, name)
        for rule in chain or ():
            port, protocol = destination_port(rule), protocol_of(rule)
            if port is None or protocol is None:
                continue
            if table == "nat" or any(m.name == "addrtype" for m in rule.matches):
                out[port, protocol] = out.get((port, protocol)) or service_of(rule) or ""
    return sorted((port, protocol, service) for (port, protocol), service in out.items())


def near_node_ports(
    known: list[tuple[int, str, str]], protocol: str, port: int
) -> list[tuple[int, str, str]]:
    """The node ports that one may have meant: the same number, a swapped or mistyped digit, then the next numbers."""

    def distance(item: tuple[int, str, str]) -> tuple[int, int, int]:
        number, its_protocol, _ = item
        text, asked = str(number), str(port)
        alike = sorted(text) == sorted(asked) or (
            len(text) == len(asked) and sum(a != b for a, b in zip(text, asked, strict=True)) == 1
        )
        return (0 if number == port else 1 if alike else 2, abs(number - port), int(its_protocol != protocol))

    return sorted(known, key=distance)[:_NEAR]


def generation_of(ruleset: Ruleset, rules: Iterable[Rule] = ()) -> tuple[str, str] | None:
    """The versions of kube-proxy that write such rules, and what tells it; None where nothing does.

    Asks for few chains, as a ruleset may be huge, and concludes nothing from what was not read.
    """
    chain = ruleset.chain("nat", KUBE_NODEPORTS)
    sample = [*rules, *(chain.rule(i) for i in range(min(len(chain), 64)))] if chain is not None else [*rules]
    targets = {r.target.name for r in sample if r.target is not None}
    if any(t.startswith(XLB_PREFIX) for t in targets):
        return "1.23 or older", "KUBE-XLB chains"
    if has_chain(ruleset, "filter", KUBE_PROXY_FIREWALL):
        return "1.25 or newer", f"chain {KUBE_PROXY_FIREWALL}"
    if any(
        r.chain == KUBE_EXTERNAL_SERVICES and r.target is not None and r.target.name == "DROP" for r in sample
    ):
        return "1.25 or newer", f"{KUBE_EXTERNAL_SERVICES} drops"
    if any(t.startswith((EXT_PREFIX, SVL_PREFIX)) for t in targets):
        if ruleset.reading("filter").reading is Reading.WHOLE:
            return "1.24", f"KUBE-EXT chains without {KUBE_PROXY_FIREWALL}"
        return "1.24 or newer", "KUBE-EXT chains"
    if any(t.startswith(SVC_PREFIX) for t in targets):
        return "1.23 or older", "node ports lead to KUBE-SVC chains"  # since 1.24 to KUBE-EXT
    return None


def is_ipvs(ruleset: Ruleset) -> bool:
    """Whether kube-proxy runs in IPVS mode here: then ipsets and IPVS, not rules, hold the node ports."""
    return ruleset.chain("nat", KUBE_NODE_PORT) is not None


def node_address(ruleset: Ruleset) -> str | None:
    """The node's address where the rules say it: with nodePortAddresses node ports hang on single addresses."""
    chain = ruleset.chain("nat", KUBE_SERVICES)
    if chain is None:
        return None
    for index in chain.containing(f"-j {KUBE_NODEPORTS}"):
        purpose = purpose_of(chain.rule(index))
        if purpose is not None and purpose.aim is Aim.SEEK_NODE_PORT_AT and purpose.front is not None:
            return purpose.front.address
    return None


def pod_network(ruleset: Ruleset, rules: Iterable[Rule]) -> str | None:
    """The network of the pods as kube-proxy detects it (`-s CIDR` before KUBE-SVC), for the chains of these rules."""
    for rule in rules:
        if rule.target is None or not is_service_chain(rule.target.name):
            continue
        for name in (rule.target.name, SVC_PREFIX + rule.target.name.rpartition("-")[2]):
            chain = ruleset.chain("nat", name)
            for own in chain or ():
                purpose = purpose_of(own)
                if purpose is not None and purpose.pod_network:
                    return purpose.pod_network
    return None
