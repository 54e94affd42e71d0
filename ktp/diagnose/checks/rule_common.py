"""Rules that findings name, xtables and nft alike: which one stopped a packet, what it does, who likely wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import field
from functools import lru_cache

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rule_removed
from ktp.explain.kube import purpose_of
from ktp.kubeproxy.owners import (
    DOCKER,
    FIREWALLD,
    HOST_PORTS,
    KUBE,
    UFW,
    Owner,
    owner_of_chain,
    owner_of_comment,
    owner_of_table,
)
from ktp.model.diagnosis import Evidence
from ktp.model.effect import Refuse
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Rule
from ktp.model.snapshot import Snapshot
from ktp.model.trace import DecidedBy, Path, Step, StepKind, Symptom

NOBODY = "somebody by hand, or a tool that leaves no name"


def owner_of(chain: str, target: str = "", table: str = "") -> Owner | None:
    """Whose a rule is by its names; None where nothing tells. `table` counts for native nft ("inet NAME")."""
    found = owner_of_chain(chain) or (owner_of_table(table) if table else None)
    led = owner_of_chain(target)
    return found or (led if led is not KUBE else None)


def author_of(owner: Owner | None, comment: str | None = None) -> str:
    """Who likely wrote a rule, in words: its owner, else who its comment speaks of; `NOBODY` where nothing tells.

    Many write rules for Kubernetes and say so: such a comment tells nothing.
    """
    named = owner_of_comment(comment) if comment is not None else None
    owner = owner or (named if named is not KUBE else None)
    return owner.name if owner is not None else NOBODY


@dataclass(frozen=True, slots=True)
class RuleInPlace:
    """A rule on a node that a packet met: enough to show it, to name its author and to take it away."""

    node: str
    backend: str
    table: str
    chain: str
    position: int
    text: str
    line: int = 0
    comment: str | None = None
    packets: int | None = None
    refuses: bool = False
    parsed: Rule | None = field(default=None, compare=False)

    @property
    def owner(self) -> Owner | None:
        """Whose it is by its names."""
        target = self.parsed.target.name if self.parsed is not None and self.parsed.target is not None else ""
        return owner_of(self.chain, target, self.table if self.is_nft else "")

    @property
    def author(self) -> str:
        """Who likely wrote it, in words."""
        return author_of(self.owner, self.comment)

    @property
    def is_nft(self) -> bool:
        """Whether it is a native nft rule."""
        return self.backend == "nftables"

    @property
    def is_kube(self) -> bool:
        """Whether it is in a chain of kube-proxy's or the kubelet's."""
        return self.owner in (KUBE, HOST_PORTS)

    @property
    def verb(self) -> str:
        """`drops` or `rejects`."""
        return "rejects" if self.refuses else "drops"

    @property
    def place(self) -> str:
        """`filter FORWARD`, `inet site forward`."""
        return f"{self.table} {self.chain}"

    @property
    def label(self) -> str:
        """A name for the world without it."""
        return f"without {self.backend} {self.place} {self.position} on {self.node}"

    def evidence(self) -> Evidence:
        """The rule with its place and counter."""
        where = f"{self.node} {self.backend} {self.place}" + (f" line {self.line}" if self.line else "")
        count = f" [{self.packets} packets so far]" if self.packets is not None else ""
        return Evidence("rule", where, self.text + count)

    def removed(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without it. Raises ValueError where that cannot be made up."""
        return rule_removed(
            snapshot, self.node, self.backend, self.table, self.chain, self.position, self.text
        )


def command_of(owner: Owner | None, case: Case) -> str | None:
    """How the tool that wrote a rule is told to let Services' traffic pass; None where ktp does not know it."""
    if owner is UFW:
        setting = 's/^DEFAULT_FORWARD_POLICY=.*/DEFAULT_FORWARD_POLICY="ACCEPT"/'
        return f"sed -i '{setting}' /etc/default/ufw && ufw reload"
    networks = [text for node in (case.snapshot.cluster.nodes or {}).values() for text in node.pod_cidrs]
    if owner is FIREWALLD and networks:
        sources = " ".join(f"--add-source={text}" for text in dict.fromkeys(networks))
        return f"firewall-cmd --permanent --zone=trusted {sources} && firewall-cmd --reload"
    return None


def rule_of_step(node: str, step: Step) -> RuleInPlace | None:
    """The rule that a step met, or None where the step is of another kind."""
    if step.kind is not StepKind.RULE or not step.position:
        return None
    rule = step.rule
    comment = (
        rule.comment if rule is not None else step.nft_rule.comment if step.nft_rule is not None else None
    )
    counters = rule.counters if rule is not None else None
    return RuleInPlace(
        node=node, backend=step.backend, table=step.table, chain=step.chain, position=step.position, text=step.text,
        line=step.line, comment=comment, packets=counters.packets if counters is not None else None,
        refuses=any(isinstance(e, Refuse) for e in step.effects),
        parsed=rule,
    )  # fmt: skip


def stopped(entry: Entry) -> Iterator[tuple[Path, RuleInPlace | None]]:
    """The ways of a cell that do not end well, each with the rule that ended it."""
    for path in entry.paths:
        if path.symptom is not Symptom.CONNECTS:
            yield path, deciding_rule(path)


def deciding_rule(path: Path) -> RuleInPlace | None:
    """The rule that dropped, rejected or lost the packet of a way."""
    decided = path.decided_by
    if decided is None or decided.step is None:
        return None
    return rule_of_step(decided.node, decided.step)


def marking_rule(entry: Entry, node: str | None = None) -> RuleInPlace | None:
    """The rule (of `node`) that marked a packet of a cell for a drop later on, as kube-proxy up to 1.24 does."""
    for path in entry.paths:
        for hop in path.hops:
            for step in hop.steps if node in (None, hop.node) else ():
                if step.rule is not None and _marks_for_drop(step.rule):
                    return rule_of_step(hop.node, step)
    return None


@lru_cache(maxsize=4096)
def _marks_for_drop(rule: Rule) -> bool:
    purpose = purpose_of(rule)
    return purpose is not None and purpose.aim.marks_for_drop


def decided_here(case: Case, node: str, is_it: Callable[[DecidedBy], bool]) -> list[Entry]:
    """Failing cells of which some way was ended on `node` by a thing that `is_it` tells."""
    return [
        entry
        for entry in case.failing()
        if any(
            path.decided_by is not None and path.decided_by.node == node and is_it(path.decided_by)
            for path, _ in stopped(entry)
        )
    ]


def merged(first: Iterable[Entry], more: Iterable[Entry]) -> list[Entry]:
    """The cells of both, once each."""
    return list({e.key: e for e in (*first, *more)}.values())


def owner_of_policy(state: NodeState, table: str, chain: str) -> Owner | None:
    """Whose chains a base chain jumps to, where they are of one tool that sets policies; None where nothing tells."""
    for ruleset in state.rulesets:
        found = ruleset.chain(table, chain)
        for rule in found if found is not None else ():
            owner = owner_of_chain(rule.target.name) if rule.target is not None else None
            if owner in (UFW, DOCKER, FIREWALLD):
                return owner
    return None
