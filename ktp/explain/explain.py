"""One front end, asked by one client at one node, or one chain → the whole explanation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Topology, Walker
from ktp.explain.front_end import NodePortRules, generation_of, is_ipvs, node_address, pod_network
from ktp.explain.kube import explain_rule
from ktp.explain.stages import quiet_tables, stages_of
from ktp.explain.verdict import verdict_of, verdict_on_fragment
from ktp.explain.xt_tree import chain_tree, rule_node
from ktp.kubeproxy.names import KUBE_NODEPORTS, KUBE_SERVICES, host_port
from ktp.model.explanation import ChainNode, Explanation, RuleNode
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Chain, Rule, Ruleset
from ktp.model.trace import Disposition, Flow

if TYPE_CHECKING:
    from ktp.explain.nft_kube import NftNodePort
    from ktp.model.nftables import NftTable

# A dump tells no addresses. These stand for them (RFC 5737, RFC 3849) and are shown by name only.
NODE_IP = {4: "192.0.2.253", 6: "2001:db8:fd:1::253"}
CLIENT_IP = {4: "198.51.100.253", 6: "2001:db8:fd:2::253"}
POD_IP = {4: "203.0.113.253", 6: "2001:db8:fd:3::253"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}

MOST_CALLERS = 20  # of a chain's, that are shown
EXTERNAL, NODE, LOCALHOST, POD = "external", "node", "localhost", "pod"
PROCESS = "process"  # NODE, where it is not the node's own address that is dialled
VANTAGE_WORDS = {
    EXTERNAL: "a client outside the cluster",
    NODE: "a process of the node itself, to the node's own address",
    PROCESS: "a process of the node itself",
    LOCALHOST: "a process of the node itself, to a loopback address",
    POD: "a pod on this node",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question. `names` says what to call addresses that only stand for unknown ones.

    `rules` are those that the node port has here, `service` is the Service where more than rules tell it.
    """

    subject: str
    node: str
    vantage: str
    flow: Flow
    source: str = ""
    rules_of: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    rules: NodePortRules | NftNodePort | None = None
    service: str | None = None
    notes: tuple[str, ...] = ()


@runtime_checkable
class Searchable(Protocol):
    """A ruleset that finds the rules that lead to a chain faster than by looking at all of them."""

    def jumps_to(self, table: str, name: str) -> Sequence[Rule]:
        """Every rule of `table` whose target is `name`, in the source's order."""
        ...


def explain_flow(walker: Walker, asked: Asked, *, every_rule: bool = False) -> Explanation:
    """The rules that the flow meets on the asked node, and where it ends."""
    answer = answer_flow(walker, asked.flow)
    stages = stages_of(walker, asked.node, answer, every_rule=every_rule)
    quiet = quiet_tables(walker, asked.node, answer, stages)
    state = walker.topology.nodes.get(asked.node)
    notes = asked.notes
    if asked.vantage in (NODE, LOCALHOST):
        notes = (
            *notes,
            "what a process of the node sees proves nothing about clients outside: other rules meet them",
        )
    if quiet:
        notes = (*notes, f"no rules on this packet's way in table{'s' * (len(quiet) > 1)} {', '.join(quiet)}")
    verdict = verdict_of(
        answer,
        asked.node,
        walker.topology.nodes,
        asked.names,
        asked.rules,
        by_node=asked.vantage in (NODE, LOCALHOST),
        service=asked.service,
    )
    chains: tuple[ChainNode, ...] = ()
    fragment = _fragment(state, asked)
    if fragment is not None:
        verdict = verdict_on_fragment(*fragment)
    elif answer.disposition is Disposition.UNDETERMINED and state is not None and state.rulesets:
        from ktp.explain.partial import with_what_is_known

        rules = asked.rules if isinstance(asked.rules, NodePortRules) else None
        verdict, chains = with_what_is_known(verdict, answer, state.rulesets, rules, stages)
    return Explanation(
        subject=asked.subject,
        node=asked.node,
        vantage=VANTAGE_WORDS[asked.vantage],
        source=asked.source,
        rules_of=asked.rules_of,
        verdict=verdict,
        stages=stages,
        chains=chains,
        notes=notes,
    )


def _fragment(state: NodeState | None, asked: Asked) -> tuple[NftTable, NftNodePort] | None:
    """kube-proxy's nftables table where elements of it were read, and no base chain that leads to them."""
    rules = asked.rules
    if state is None or state.nft is None or rules is None or isinstance(rules, NodePortRules):
        return None
    from ktp.explain.nft_kube import kube_table

    table = kube_table(state.nft, "ip6" if ":" in asked.flow.dst else "ip")
    return None if table is None or table.base_chains else (table, rules)


@dataclass(frozen=True, slots=True)
class AskedAddress:
    """An address that is asked about; `is_own` tells that it is taken for one of the node's own."""

    address: str
    is_own: bool

    def words(self, protocol: str, port: int) -> str:
        """`10.96.0.10:53/udp`."""
        return f"{host_port(self.address, port)}/{protocol}"

    def notes(self) -> tuple[str, ...]:
        """What was taken for granted of it."""
        return (
            f"{self.address} is taken for an address of this node, since its port is a node port",
        ) * self.is_own


def ask_dump(
    state: NodeState,
    ruleset: Ruleset,
    protocol: str,
    port: int,
    vantage: str,
    rules: NodePortRules,
    dialled: AskedAddress | None = None,
) -> tuple[Walker, Asked]:
    """The question to a dump alone.

    `ruleset` is the one of the node's that names the port. With `dialled` that address is asked about, else the node's.
    """
    told = node_address(ruleset)
    notes = []
    if vantage == LOCALHOST and ruleset.family == "ip":
        notes.append("needs net.ipv4.conf.all.route_localnet = 1 as well, which rules do not tell")
    return ask_rules(
        state,
        ruleset.family,
        protocol,
        port,
        vantage,
        rules,
        dialled,
        addresses=(told,) if told is not None else (),
        pod_network=pod_network(ruleset, rules.nat) if vantage == POD else None,
        source=ruleset.source,
        written_by=rules_of(ruleset, (*rules.nat, *rules.refusing)),
        notes=notes,
    )


def ask_rules(
    state: NodeState,
    family_name: str,
    protocol: str,
    port: int,
    vantage: str,
    rules: NodePortRules | NftNodePort,
    dialled: AskedAddress | None,
    *,
    addresses: Sequence[str],
    pod_network: str | None,
    source: str,
    written_by: str,
    notes: Sequence[str] = (),
) -> tuple[Walker, Asked]:
    """The question to rules alone: nothing else is known, so addresses that they do not tell are placeholders.

    `addresses` are those of the node that have node ports, `pod_network` that of the pods, as far as the rules tell.
    """
    node, family = state.name, 4 if family_name == "ip" else 6
    if dialled is not None and dialled.is_own:
        addresses = (dialled.address,)
    own = addresses[0] if addresses else NODE_IP[family]
    names: dict[str, str] = {}
    if not addresses:
        names[own] = "NODE-IP"
    elif vantage != EXTERNAL:
        names[own] = own  # told by the rules, but which address a process of the node sends from is not
    found: list[str] = []
    client: str | None = None
    if vantage == EXTERNAL:
        client = CLIENT_IP[family]
        names[client] = "CLIENT-IP"
    elif vantage == POD:
        client = address_in(pod_network) if pod_network is not None else POD_IP[family]
        names[client] = "POD-IP"
        found.append(
            "the rules do not tell the pods' network, so a pod is to them like any client from outside"
            if pod_network is None
            else f"the pod is taken to have an address of {pod_network}, the pods' network by these rules"
        )
    if dialled is not None:
        found += dialled.notes()
    here = vantage == LOCALHOST
    flow = Flow(
        dst=dialled.address if dialled is not None else LOOPBACK[family] if here else own,
        port=port,
        protocol=protocol,
        src=LOOPBACK[family] if here else client,
        from_node=node if vantage != EXTERNAL else None,
        via=node if vantage == EXTERNAL else None,
    )
    topology = Topology(
        nodes={node: state},
        node_addresses={to_int(own): node},
        assumed_local={node: frozenset(to_int(a) for a in (addresses or (own,)))},
    )
    subject = dialled.words(protocol, port) if dialled else node_port_words(protocol, port, rules)
    asked = Asked(
        subject=subject,
        node=node,
        vantage=vantage,
        flow=flow,
        source=source,
        rules_of=written_by,
        names=names,
        rules=rules if dialled is None or dialled.is_own else None,
        notes=(*found, *notes),
    )
    return Walker(topology), asked


def node_port_words(
    protocol: str, port: int, rules: NodePortRules | NftNodePort | None, service: str | None = None
) -> str:
    """`node port 31015/tcp of test/nginx:http`."""
    service = service or (rules.service if rules is not None else None)
    return f"node port {port}/{protocol}" + (f" of {service}" if service else "")


def rules_of(ruleset: Ruleset, rules: Iterable[Rule] = ()) -> str:
    """Who wrote the rules, and in which back end they are."""
    generation = generation_of(ruleset, rules)
    if ruleset.chain("nat", KUBE_NODEPORTS) is None and is_ipvs(ruleset):
        from ktp.explain.ipvs import ipvs_generation

        words = ipvs_generation(ruleset)
    elif generation is not None:
        words = f"kube-proxy {generation[0]} ({generation[1]})"
    elif ruleset.chain("nat", KUBE_SERVICES) is not None:
        words = "kube-proxy, of a version that these rules do not tell"
    else:
        words = "no kube-proxy"
    return f"{words}, {ruleset.backend.value}" + (", IPv6" if ruleset.family == "ip6" else "")


def explain_chain_alone(
    ruleset: Ruleset, node: str, name: str, *, every_rule: bool = False
) -> Explanation | None:
    """What a chain is, who jumps to it, and its rules; None where no table of the ruleset has it."""
    chains: list[Chain] = [c for t in ruleset.tables() if (c := ruleset.chain(t, name)) is not None]
    callers: list[Rule] = [r for c in chains for r in jumps_to(ruleset, c.table, name)]
    shown = callers if every_rule else callers[:MOST_CALLERS]
    return chain_alone(
        name,
        node,
        ruleset.source,
        rules_of(ruleset),
        [chain_tree(ruleset, c.table, c, every_rule=every_rule) for c in chains],
        [
            rule_node(r, f"{r.table} {r.chain}, rule {r.position}: {explain_rule(r, ruleset, brief=True)}")
            for r in shown
        ],
        len(callers) - len(shown),
        is_base=any(c.policy is not None for c in chains),
    )


def chain_alone(
    name: str,
    node: str,
    source: str,
    written_by: str,
    chains: Sequence[ChainNode],
    callers: Sequence[RuleNode],
    more: int,
    *,
    is_base: bool,
    what: tuple[str, str] = ("rule", "rules"),
    emptied: str = "",
    notes: Iterable[str] = (),
) -> Explanation | None:
    """A chain without a packet: `callers` lead to it, and `more` that are not shown. None where there is no chain.

    `what` leads to chains in its back end, `emptied` says why one may be there to which nothing leads.
    """
    if not chains:
        return None
    found: list[str] = []
    if more:
        found.append(f"{more} more {what[1]} lead here (-v shows them)")
    if not callers and not is_base:
        found.append(f"no {what[0]} leads here: no packet gets to this chain{emptied}")
    if not any(c.rules or c.left_out for c in chains):
        found.append("the chain is empty")
    return Explanation(
        subject=f"chain {name}",
        node=node,
        vantage="",
        source=source,
        rules_of=written_by,
        chains=tuple(chains),
        jumps_here=tuple(callers),
        notes=(*found, *notes),
    )


def jumps_to(ruleset: Ruleset, table: str, name: str) -> Sequence[Rule]:
    """The rules of `table` that lead to chain `name`."""
    if isinstance(ruleset, Searchable):
        return ruleset.jumps_to(table, name)
    found: list[Rule] = []
    for other in ruleset.chain_names(table):
        chain = ruleset.chain(table, other)
        for index in chain.containing(f" {name}") if chain is not None else ():
            rule = chain.rule(index) if chain is not None else None
            if rule is not None and rule.target is not None and rule.target.name == name:
                found.append(rule)
    return found


def near_chains(ruleset: Ruleset, name: str) -> tuple[str, ...]:
    """Chains with names like `name`. Of a huge ruleset only those that begin alike are compared."""
    from difflib import get_close_matches

    upper = name.upper()
    head = upper[:10]
    names = list(dict.fromkeys(n for t in ruleset.tables() for n in ruleset.chain_names(t)))
    alike = [n for n in names if n.upper().startswith(head)] if len(names) > 2000 else names
    exact = [n for n in names if n.upper() == upper]
    if exact:
        return tuple(exact)
    if upper in (KUBE_NODEPORTS + "S", "KUBE-NODEPORT"):
        return (KUBE_NODEPORTS,)
    return tuple(get_close_matches(upper, alike[:5000], n=3, cutoff=0.5))


def address_in(network: str) -> str:
    """An address near the end of a network."""
    from ipaddress import ip_network

    net = ip_network(network, strict=False)
    return str(net[max(0, net.num_addresses - 2)])
