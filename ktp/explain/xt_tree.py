"""The chains of iptables as a tree."""

from __future__ import annotations

from collections.abc import Sequence

from ktp.dataplane.packet import PROTOCOL_NAMES, Packet, to_int
from ktp.dataplane.xtables import Program, is_target
from ktp.explain.kube import explain_chain, explain_rule
from ktp.explain.tree import LARGE, Tree, Way
from ktp.kubeproxy.names import ChainRole, role_of_chain
from ktp.model.explanation import ChainNode, LookupNode, RuleNode
from ktp.model.reading import Reading
from ktp.model.ruleset import Chain, Rule, Ruleset

_MOST_PACKETS = 4  # of different destinations, by which the rules of a long chain are found


class XtTree(Tree[Chain, Rule]):
    """The tree behind a chain of one table of a ruleset."""

    dispatch = frozenset(
        (
            ChainRole.SERVICES_NAT,
            ChainRole.SERVICES_FILTER,
            ChainRole.NODEPORTS_NAT,
            ChainRole.NODEPORTS_FILTER,
            ChainRole.EXTERNAL_SERVICES,
            ChainRole.PROXY_FIREWALL,
        )
    )

    def __init__(
        self,
        ruleset: Ruleset,
        table: str,
        way: Way | None = None,
        program: Program | None = None,
        *,
        every_rule: bool = False,
    ) -> None:
        """`program` is the table of `ruleset` as the packets of `way` meet it."""
        self._ruleset = ruleset
        self._program = program
        self.backend = program.backend if program is not None else ""
        super().__init__(table, way, every_rule=every_rule)

    def find(self, name: str) -> Chain | None:
        """The chain of that name; where not all was read, a name in capitals is a target's.

        A rule that names a target means it, whatever chains there are (do_command4 looks for targets first).
        """
        if is_target(name):
            return None
        if (
            name.isalnum()
            and name.isupper()
            and self._ruleset.reading(self.table).reading is not Reading.WHOLE
        ):
            return None
        return self._ruleset.chain(self.table, name)

    def role(self, name: str) -> ChainRole | None:
        """By name."""
        return role_of_chain(self.table, name)

    def chain_node(self, chain: Chain) -> tuple[ChainNode, int]:
        """With what it is for."""
        words = explain_chain(chain.table, chain.name)
        return ChainNode(table=chain.table, name=chain.name, words=words, policy=chain.policy), len(chain)

    def rules_of(self, chain: Chain) -> Sequence[Rule]:
        """All, of a long chain those that the packets take, of a list of front ends those that may concern them."""
        role = self.role(chain.name)
        is_list = role in self.dispatch
        if self.way is None:
            return [chain.rule(i) for i in range(len(chain) if self.every_rule else min(len(chain), LARGE))]
        own = role is not None or chain.policy is not None
        compiled = self._program.chain(chain.name) if self._program is not None else None
        if compiled is None or (not is_list and (self.every_rule or (own and len(chain) <= LARGE))):
            return list(chain)
        found: dict[int, Rule] = {}
        for packet in self.way.packets[:_MOST_PACKETS]:
            for candidate in compiled.candidates(packet):
                rule = candidate.rule
                if self.share(chain.name, rule.position) or (is_list and _may_concern(rule, packet)):
                    found[rule.position] = rule
        return [found[position] for position in sorted(found)]

    def rule_node(self, chain: str, rule: Rule, *, brief: bool = False) -> RuleNode:  # noqa: ARG002 (the rule has it)
        """With its words and counters."""
        return rule_node(rule, explain_rule(rule, self._ruleset, brief=brief))

    def lookups(
        self,
        chain: str,  # noqa: ARG002
        rule: Rule,
        share: float | None,  # noqa: ARG002
        depth: int,  # noqa: ARG002
    ) -> tuple[LookupNode, ...]:
        """What its ipsets have for the packets."""
        if self.way is None or self.way.host is None or not any(m.name == "set" for m in rule.matches):
            return ()
        from ktp.explain.ipvs import ipset_lookups

        return ipset_lookups(rule, self.way.host, self.way.packets)


def chain_tree(ruleset: Ruleset, table: str, chain: Chain, *, every_rule: bool = False) -> ChainNode:
    """A chain and all that it leads to, without a packet."""
    return XtTree(ruleset, table, every_rule=every_rule).chain(chain)


def rule_node(rule: Rule, words: str) -> RuleNode:
    """A rule without what lies behind it."""
    target = rule.target
    return RuleNode(
        position=rule.position,
        line=rule.line,
        text=rule.text,
        words=words,
        packets=rule.counters.packets if rule.counters is not None else None,
        bytes=rule.counters.bytes if rule.counters is not None else None,
        goes_to=target.name if target is not None else None,
    )


def _may_concern(rule: Rule, packet: Packet) -> bool:
    """Whether the rule's destination, protocol and port leave room for the packet: it may match for other clients."""
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
