"""Rules that findings name, xtables and nft alike: which one stopped a packet, what it does, who likely wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rule_removed
from ktp.model.diagnosis import Evidence
from ktp.model.effect import Refuse
from ktp.model.host import NodeState
from ktp.model.ruleset import Rule
from ktp.model.snapshot import Snapshot
from ktp.model.trace import DecidedBy, Path, Step, StepKind, Symptom

KUBE = "kube-proxy or kubelet"
NOBODY = "somebody by hand, or a tool that leaves no name"

# Marks at the beginning of a chain's or nft table's name, or anywhere in a comment; longer ones first.
_AUTHORS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("KUBE-ROUTER", "KUBE-NWPLCY", "KUBE-POD-FW", "KUBE-SRC-DST", "kube-router"), "kube-router"),
    (("KUBE-", "kubernetes", "kube-proxy"), KUBE),
    (("DOCKER", "docker"), "docker"),
    (("ufw", "UFW"), "ufw"),
    (("cali-", "cali:", "calico", "felix"), "calico"),
    (("CILIUM", "OLD_CILIUM", "cilium"), "cilium"),
    (("FLANNEL", "flannel"), "flannel"),
    (("WEAVE",), "weave"),
    (("ANTREA", "antrea"), "antrea"),
    (("OVN-KUBE", "OVNKUBE", "ovn-kubernetes"), "ovn-kubernetes"),
    (("CNI-", "cnifw", "cni_hostport"), "a CNI plugin (portmap, firewall)"),
    (("LIBVIRT", "libvirt"), "libvirt"),
    (("f2b-", "fail2ban"), "fail2ban"),
    (("crowdsec", "CROWDSEC"), "crowdsec"),
    (("sshguard",), "sshguard"),
    (("IN_", "FWD_", "FWDI_", "FWDO_", "POST_", "PRE_", "INPUT_ZONES", "FORWARD_ZONES", "FORWARD_IN_ZONES",
      "FORWARD_OUT_ZONES", "POSTROUTING_ZONES", "firewalld", "filter_IN_", "filter_FWD", "filter_FORWARD",
      "filter_INPUT", "nat_POST", "nat_PRE"), "firewalld"),
    (("AWS-SNAT", "AWS-CONNMARK", "AWS, "), "the AWS VPC CNI"),
    (("ISTIO",), "istio"),
    (("kindnet", "KIND-MASQ"), "kindnet"),
    (("IP-MASQ", "ip-masq-agent"), "ip-masq-agent"),
    (("TRAEFIK", "CNI-HOSTPORT"), "a CNI plugin (portmap, firewall)"),
    (("nixos-fw",), "NixOS's firewall"),
    (("zone_", "fw4", "OPENWRT"), "OpenWrt's firewall"),
    (("shorewall", "SHOREWALL"), "shorewall"),
    (("net-fw", "loc-fw", "fw-net", "~excl"), "shorewall"),
)  # fmt: skip
BANNING = frozenset(("fail2ban", "crowdsec", "sshguard"))
"""Tools that keep single clients out on purpose."""


def author_of(chain: str, text: str, comment: str | None = None, table: str = "") -> str:
    """Who likely wrote a rule, in words; `NOBODY` where nothing tells. `table` counts for native nft ("inet NAME")."""
    name = table.partition(" ")[2]
    for marks, author in _AUTHORS:
        if any(chain.startswith(m) or name.startswith(m) for m in marks):
            return author
        if comment is not None and any(m in comment for m in marks):
            return author
    target = text.rpartition(" -j ")[2].partition(" ")[0] if " -j " in text else ""
    for marks, author in _AUTHORS:
        if target and author != KUBE and any(target.startswith(m) for m in marks):
            return author
    return NOBODY


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
    def author(self) -> str:
        """Who likely wrote it."""
        return author_of(self.chain, self.text, self.comment, self.table if self.is_nft else "")

    @property
    def is_nft(self) -> bool:
        """Whether it is a native nft rule."""
        return self.backend == "nftables"

    @property
    def is_kube(self) -> bool:
        """Whether kube-proxy or the kubelet wrote it."""
        return self.author == KUBE

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
        return Evidence(kind="rule", source=where, text=self.text + count)

    def removed(self, snapshot: Snapshot) -> Snapshot | None:
        """The snapshot without it."""
        return rule_removed(
            snapshot, self.node, self.backend, self.table, self.chain, self.position, self.text
        )


def command_of(author: str, case: Case) -> str | None:
    """How the tool that wrote a rule is told to let Services' traffic pass; None where ktp does not know it."""
    if author == "ufw":
        setting = 's/^DEFAULT_FORWARD_POLICY=.*/DEFAULT_FORWARD_POLICY="ACCEPT"/'
        return f"sed -i '{setting}' /etc/default/ufw && ufw reload"
    networks = [text for node in (case.snapshot.cluster.nodes or {}).values() for text in node.pod_cidrs]
    if author == "firewalld" and networks:
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
    fact = entry.asked.fact
    for path in fact.paths if fact is not None else ():
        if path.symptom is not Symptom.CONNECTS:
            yield path, deciding_rule(path)


def deciding_rule(path: Path) -> RuleInPlace | None:
    """The rule that dropped, rejected or lost the packet of a way."""
    decided = path.decided_by
    if decided is None or decided.step is None:
        return None
    return rule_of_step(decided.node, decided.step)


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


def author_of_policy(state: NodeState, table: str, chain: str) -> str:
    """Whose chains a base chain jumps to, where they are of one tool that sets policies; "" where nothing tells."""
    for ruleset in state.rulesets:
        found = ruleset.chain(table, chain)
        for rule in found if found is not None else ():
            if rule.target is not None:
                author = author_of(rule.target.name, "")
                if author in ("ufw", "docker", "firewalld"):
                    return author
    return ""
