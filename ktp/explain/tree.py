"""The rules that a packet meets, as a tree: which chains, which rules, whom each concerns, which the packet takes.

The walker decides what is taken; the chains show what else is there and why it does not matter to this packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.dataplane.hooks import FORWARD, HOOKS, INPUT, OUTPUT, POSTROUTING, PREROUTING
from ktp.dataplane.packet import PROTOCOLS, Packet, to_int
from ktp.dataplane.walk import Walker
from ktp.dataplane.xtables import Program
from ktp.explain.kube import (
    explain_chain,
    explain_rule,
    is_kube_chain,
    is_service_chain,
)
from ktp.kubeproxy.names import (
    KUBE_EXTERNAL_SERVICES,
    KUBE_MARK_DROP,
    KUBE_MARK_MASQ,
    KUBE_NODEPORTS,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
)
from ktp.model.explanation import ChainNode, LookupNode, RuleNode, StageNode
from ktp.model.reading import Reading
from ktp.model.ruleset import Chain, Rule, Ruleset
from ktp.model.trace import FlowAnswer, Path

if TYPE_CHECKING:
    from ktp.dataplane.host import Host
    from ktp.explain.nft_tree import NftStages

# Chains that hold rules of every Service: only those that may concern the packet are shown.
_DISPATCH = frozenset((KUBE_SERVICES, KUBE_NODEPORTS, KUBE_EXTERNAL_SERVICES, KUBE_PROXY_FIREWALL))
_MARKS = frozenset((KUBE_MARK_MASQ, KUBE_MARK_DROP))
_LARGE = 64  # rules; a longer chain is shown as far as the packet takes it
_DEPTH = 24
_HOOK_WORDS = {
    PREROUTING: "as the packet arrives",
    OUTPUT: "as this node's own process sends it",
    INPUT: "on its way to this node's own processes",
    FORWARD: "on its way through this node",
    POSTROUTING: "as it leaves",
}

Taken = Mapping[tuple[str, int], float]


def stages_of(
    walker: Walker, node: str, answer: FlowAnswer, *, every_rule: bool = False
) -> tuple[StageNode, ...]:
    """The tables that the flow's request meets on `node`, in the kernel's order."""
    family, dst = to_int(answer.flow.dst)
    taken, hooks = _taken(answer, node)
    heads = _packets(answer, node)
    packet_in = Packet(family, PROTOCOLS[answer.flow.protocol.lower()], 0, dst, 0, answer.flow.port)
    host = walker.host(node)
    nft: NftStages | None = None
    stages: list[StageNode] = []
    if host is not None and host.cilium is not None:
        from ktp.explain.cilium import cilium_stages

        stages += cilium_stages(host.state, answer, node)
        if _is_past_rules(answer, node):
            return tuple(stages)
    for hook in hooks:
        # Over loopback, or on from IPVS: translated already, no nat rule sees it.
        again = hook in (PREROUTING, OUTPUT) and hook != hooks[0]
        for group in walker.groups(node, family, hook):
            if group.kind == "ipvs" and host is not None and not again:
                from ktp.explain.ipvs import ipvs_stage

                before, _ = packets_of(answer, node)
                stage = ipvs_stage(host, hook, _HOOK_WORDS[hook], answer, node, before, group.priority)
                stages += [stage] if stage is not None else []
            for program in group.programs:
                if again and group.kind == "nat":
                    continue
                if not isinstance(program, Program):
                    if nft is None:
                        from ktp.explain.nft_tree import NftStages

                        nft = NftStages(answer, node, *packets_of(answer, node), every_rule=every_rule)
                    if host is not None:
                        late = again or hook not in (PREROUTING, OUTPUT)
                        stage = nft.stage(program, host, hook, _HOOK_WORDS[hook], translated=late)
                        stages += [stage] if stage is not None else []
                    continue
                early = hook in (PREROUTING, OUTPUT) and program.table != "filter" and not again
                early = early or (
                    hook == INPUT and OUTPUT in hooks[1:]
                )  # IPVS translates behind INPUT's rules
                packets = [packet_in] if early or not heads else heads
                base = program.chain(hook)
                if base is None or _is_assumed(base.source):
                    continue
                builder = _Builder(
                    program, hook, taken, packets, every_rule, _ipsets_of(host, answer, node, early)
                )
                stages.append(
                    StageNode(
                        hook=hook,
                        words=_HOOK_WORDS[hook],
                        backend=program.backend,
                        chain=builder.chain(base.source, 0),
                        priority=group.priority,
                    )
                )
    return tuple(stages)


def _is_past_rules(answer: FlowAnswer, node: str) -> bool:
    """Whether no request of the node met a rule: a program ended it, or sent it on by itself."""
    hops = [h for p in answer.paths for h in p.hops if h.is_of(node) and h.direction == "request"]
    return bool(hops) and not any(s.hook in HOOKS for h in hops for s in h.steps)


def packets_of(answer: FlowAnswer, node: str) -> tuple[list[Packet], list[Packet]]:
    """The packets before and behind the translation of their destination on `node`, with the client's source."""
    number = PROTOCOLS[answer.flow.protocol.lower()]
    found: tuple[dict[tuple[str, int], Packet], dict[tuple[str, int], Packet]] = ({}, {})
    for path in answer.paths:
        for hop in path.hops:
            if not hop.is_of(node) or hop.direction != "request":
                continue
            family, src = to_int(hop.arrived.src)
            for packets, head in zip(found, (hop.arrived, hop.left), strict=True):
                dst = to_int(head.dst)[1]
                sport = max(hop.arrived.sport, 0)
                packets.setdefault(
                    (head.dst, head.dport), Packet(family, number, src, dst, sport, head.dport)
                )
    return list(found[0].values()), list(found[1].values())


def _ipsets_of(
    host: Host | None, answer: FlowAnswer, node: str, early: bool
) -> Callable[[Rule], tuple[LookupNode, ...]]:
    """What a rule's ipsets have for the packets; asked of rules that have such a match."""

    def lookups(rule: Rule) -> tuple[LookupNode, ...]:
        from ktp.explain.ipvs import ipset_lookups

        before, after = packets_of(answer, node)
        return ipset_lookups(rule, host, before if early else after) if host is not None else ()

    return lookups


def _is_assumed(chain: Chain) -> bool:
    """Whether nothing was read of the chain, and it is taken not to concern the packet."""
    unread = chain.rule(0).unread if chain.reading is Reading.NOT_READ else None
    return unread is not None and unread.assumed


def quiet_tables(
    walker: Walker, node: str, answer: FlowAnswer, stages: Sequence[StageNode]
) -> tuple[str, ...]:
    """Tables of the node that have nothing to say on the packet's way, in the kernel's order."""
    state = walker.topology.nodes.get(node)
    word = "ip6" if ":" in answer.flow.dst else "ip"
    rulesets = state.rulesets_of(word) if state is not None else ()
    tables = {t for r in rulesets for t in r.tables() if r.reading(t).reading is Reading.WHOLE}
    tables -= {s.chain.table for s in stages}
    return tuple(t for t in ("raw", "mangle", "nat", "filter", "security") if t in tables)


def chain_tree(ruleset: Ruleset, table: str, chain: Chain, *, every_rule: bool = False) -> ChainNode:
    """A chain and all that it leads to, without a packet."""
    return _Bare(ruleset, table, every_rule).chain(chain, 0)


def rule_node(rule: Rule, words: str, share: float | None = None) -> RuleNode:
    """A rule without what lies behind it."""
    target = rule.target
    return RuleNode(
        position=rule.position,
        line=rule.line,
        text=rule.text,
        words=words,
        packets=rule.counters.packets if rule.counters is not None else None,
        bytes=rule.counters.bytes if rule.counters is not None else None,
        share=share,
        goes_to=target.name if target is not None else None,
    )


def request_steps(path: Path, node: str) -> list[tuple[str, Rule]]:
    """(hook, rule) of every rule that the request took on `node`, in order."""
    return [
        (step.hook, step.rule)
        for hop in path.hops
        if hop.is_of(node) and hop.direction == "request"
        for step in hop.steps
        if step.rule is not None
    ]


def _taken(answer: FlowAnswer, node: str) -> tuple[Taken, list[str]]:
    """Which rules are taken by which part of the packets, and which hooks are passed."""
    taken: dict[tuple[str, int], float] = {}
    hooks: set[str] = set()
    local = ipvs = False
    for path in answer.paths:
        for hook, rule in dict.fromkeys((hook, id(rule)) for hook, rule in request_steps(path, node)):
            taken[hook, rule] = taken.get((hook, rule), 0.0) + path.probability
        for hop in path.hops:
            if not hop.is_of(node) or hop.direction != "request":
                continue
            hooks.update(s.hook for s in hop.steps if s.hook in HOOKS)
            local = local or hop.in_interface is None
            by_ipvs = hop.in_interface is not None and any(s.table == "ipvs" for s in hop.steps)
            ipvs = ipvs or by_ipvs
            stopped = path.decided_by.hook if path.decided_by is not None and not _arrived(path) else ""
            if stopped in HOOKS:
                continue
            if by_ipvs:
                hooks.update((INPUT, OUTPUT, POSTROUTING))
            elif hop.out_interface is not None or _arrived(path):
                hooks.update((FORWARD, POSTROUTING) if hop.in_interface is not None else (POSTROUTING,))
            else:
                hooks.add(INPUT)
    if local:
        order: tuple[str, ...] = (OUTPUT, POSTROUTING, PREROUTING, INPUT)
        hooks.add(OUTPUT)
    else:
        # What IPVS takes in INPUT goes out by OUTPUT: it never sees FORWARD.
        order = (PREROUTING, INPUT, OUTPUT if ipvs else FORWARD, POSTROUTING)
        hooks.add(PREROUTING)
    return taken, [h for h in order if h in hooks]


def _arrived(path: Path) -> bool:
    return path.source_seen is not None


def _packets(answer: FlowAnswer, node: str) -> list[Packet]:
    """The packets as they are after translation, one for each different destination (a few of them)."""
    found: dict[tuple[str, int], Packet] = {}
    number = PROTOCOLS[answer.flow.protocol.lower()]
    for path in answer.paths:
        for hop in path.hops:
            if hop.is_of(node) and hop.direction == "request" and len(found) < 4:
                family, dst = to_int(hop.left.dst)
                found.setdefault(
                    (hop.left.dst, hop.left.dport), Packet(family, number, 0, dst, 0, hop.left.dport)
                )
    return list(found.values())


class _Builder:
    """The tree of one table at one hook."""

    def __init__(
        self,
        program: Program,
        hook: str,
        taken: Taken,
        packets: Sequence[Packet],
        every_rule: bool,
        ipsets: Callable[[Rule], tuple[LookupNode, ...]],
    ) -> None:
        self._ipsets = ipsets
        self._program = program
        self._hook = hook
        self._taken = taken
        self._packets = packets
        self._every_rule = every_rule
        self._shown: set[str] = set()
        self._reached: set[str] | None = None

    def chain(self, chain: Chain, depth: int) -> ChainNode:
        """`chain` with its rules, each with what lies behind it."""
        self._shown.add(chain.name)
        rules = self._rules_of(chain)
        nodes = tuple(self._rule(rule, depth) for rule in rules)
        left_out = len(chain) - len(rules)
        return ChainNode(
            table=chain.table,
            name=chain.name,
            words=explain_chain(chain.table, chain.name),
            policy=chain.policy,
            rules=nodes,
            left_out=left_out,
            left_out_words=_left_out_words(chain, left_out),
        )

    def _rules_of(self, chain: Chain) -> list[Rule]:
        """Those rules of the chain that the tree shows."""
        dispatch = chain.name in _DISPATCH
        if not dispatch and (self._every_rule or (_is_own(chain) and len(chain) <= _LARGE)):
            return list(chain)
        compiled = self._program.chain(chain.name)
        if compiled is None:
            return list(chain)
        found: dict[int, Rule] = {}
        for packet in self._packets:
            for candidate in compiled.candidates(packet):
                rule = candidate.rule
                if self._share(rule) or (dispatch and _may_concern(rule, packet)):
                    found[rule.position] = rule
        return [found[position] for position in sorted(found)]

    def _share(self, rule: Rule) -> float:
        return min(1.0, self._taken.get((self._hook, id(rule)), 0.0))

    def _rule(self, rule: Rule, depth: int) -> RuleNode:
        share = self._share(rule)
        node = rule_node(rule, explain_rule(rule, self._program.ruleset), share)
        if any(m.name == "set" for m in rule.matches):
            node = replace(node, lookups=self._ipsets(rule))
        name = node.goes_to
        if name is None or rule.target is None or (rule.target.options and not rule.target.goto):
            return node
        expands = share > 0 or (is_service_chain(name) and name not in self._reached_chains())
        if not expands and not is_service_chain(name):
            return node
        found = self._program.ruleset.chain(self._program.table, name)
        if found is None:
            return node
        if not expands or name in self._shown or depth >= _DEPTH:
            return replace(node, shown=_place(name, self._shown))
        brief = explain_rule(rule, self._program.ruleset, brief=True)
        return replace(node, words=brief, chain=self.chain(found, depth + 1))

    def _reached_chains(self) -> set[str]:
        """Chains that the packet gets to in this table: shown where it does, not where it does not."""
        if self._reached is None:
            self._reached = set()
            names = [self._hook]
            while names:
                compiled = self._program.chain(names.pop())
                if compiled is None:
                    continue
                for packet in self._packets:
                    for candidate in compiled.candidates(packet):
                        target = candidate.rule.target
                        if (
                            target is not None
                            and self._share(candidate.rule)
                            and target.name not in self._reached
                        ):
                            if self._program.ruleset.chain(self._program.table, target.name) is not None:
                                self._reached.add(target.name)
                                names.append(target.name)
        return self._reached


class _Bare:
    """The tree behind a chain, without a packet."""

    def __init__(self, ruleset: Ruleset, table: str, every_rule: bool) -> None:
        self._ruleset = ruleset
        self._table = table
        self._every_rule = every_rule
        self._shown: set[str] = set()

    def chain(self, chain: Chain, depth: int) -> ChainNode:
        self._shown.add(chain.name)
        size = len(chain)
        # A chain with rules of every Service is a list of them; what lies behind each is asked for by its own name.
        listed = size if self._every_rule else min(size, _LARGE)
        nodes = tuple(self._rule(chain.rule(i), depth, chain.name not in _DISPATCH) for i in range(listed))
        return ChainNode(
            table=chain.table,
            name=chain.name,
            words=explain_chain(chain.table, chain.name),
            policy=chain.policy,
            rules=nodes,
            left_out=size - listed,
            left_out_words="more rules (-v shows them)" if size > listed else "",
        )

    def _rule(self, rule: Rule, depth: int, deeper: bool) -> RuleNode:
        node = rule_node(rule, explain_rule(rule, self._ruleset))
        name = node.goes_to
        if name is None or rule.target is None or rule.target.options or not deeper or depth >= _DEPTH:
            return node
        if name in _DISPATCH:
            return node
        found = (
            self._ruleset.chain(self._table, name)
            if not name.isupper() or "-" in name or "_" in name
            else None
        )
        if found is None:
            return node
        if name in self._shown:
            return replace(node, shown=_place(name, self._shown))
        brief = explain_rule(rule, self._ruleset, brief=True)
        return replace(node, words=brief, chain=self.chain(found, depth + 1))


def _place(name: str, shown: set[str]) -> str:
    """Where the tree has a chain that is not shown here; the one rule of the marking chains needs no pointer."""
    return "" if name in _MARKS else "above" if name in shown else "below"


def _is_own(chain: Chain) -> bool:
    return is_kube_chain(chain.name) or chain.policy is not None


def _may_concern(rule: Rule, packet: Packet) -> bool:
    """Whether the rule's destination, protocol and port leave room for the packet: it may match for other clients."""
    from ktp.dataplane.packet import PROTOCOL_NAMES

    for match in rule.matches:
        for option in match.options:
            if option.negated or len(option.args) != 1:
                continue
            value = option.args[0]
            if option.flag == "-p" and value != PROTOCOL_NAMES.get(packet.proto):
                return False
            if option.flag == "--dport" and value.isdigit() and int(value) != packet.dport:
                return False
            if option.flag == "-d" and not _covers(value, packet):
                return False
    return True


def _covers(network: str, packet: Packet) -> bool:
    address, _, bits = network.partition("/")
    try:
        family, number = to_int(address)
    except (ValueError, OSError):
        return True
    width = 32 if family == 4 else 128
    if bits and bits != str(width):
        return True  # a network: the rule concerns other addresses of this node, such as 127.0.0.0/8
    return family == packet.family and number == packet.dst


def _left_out_words(chain: Chain, count: int) -> str:
    if not count:
        return ""
    if chain.name in _DISPATCH:
        return "rules of other ports, addresses and Services"
    return "rules that this packet does not take (-v shows them)"


def chains_of(nodes: Iterable[ChainNode]) -> Iterable[ChainNode]:
    """All chains of a tree, each once."""
    for node in nodes:
        yield node
        yield from chains_of(rule.chain for rule in node.rules if rule.chain is not None)
