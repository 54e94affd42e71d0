"""Who wrote a rule, by its chain, comment and neighbours; and the rules that stop a cell's packets."""

from __future__ import annotations

from collections.abc import Iterator

from ktp.diagnose.case import Entry
from ktp.model.ruleset import Rule
from ktp.model.trace import Disposition, Path, Symptom

_AUTHORS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("KUBE-", "kubernetes"), "kube-proxy or kubelet"),
    (("DOCKER", "docker"), "docker"),
    (("ufw", "UFW"), "ufw"),
    (("cali-", "cali:", "felix"), "calico"),
    (("CILIUM", "OLD_CILIUM", "cilium"), "cilium"),
    (("FLANNEL", "flannel"), "flannel"),
    (("KUBE-ROUTER", "KUBE-NWPLCY", "KUBE-POD-FW"), "kube-router"),
    (("WEAVE",), "weave"),
    (("ANTREA",), "antrea"),
    (("OVN-KUBE", "OVNKUBE"), "ovn-kubernetes"),
    (("CNI-", "cnifw"), "a CNI plugin (portmap, firewall)"),
    (("LIBVIRT",), "libvirt"),
    (("f2b-",), "fail2ban"),
    (("IN_", "FWD_", "FWDI_", "FWDO_", "POST_", "PRE_", "INPUT_ZONES", "FORWARD_ZONES", "FORWARD_IN_ZONES"), "firewalld"),
    (("AWS-SNAT", "AWS-CONNMARK"), "the AWS VPC CNI"),
    (("ISTIO",), "istio"),
)


def author_of(chain: str, text: str, comment: str | None = None) -> str:
    """Who likely wrote a rule, in words; "somebody by hand" where nothing tells."""
    for marks, name in _AUTHORS:
        # kube-router's chains begin like kube-proxy's: the longer marks are looked at first below
        if name == "kube-proxy or kubelet" and chain.startswith(("KUBE-ROUTER", "KUBE-NWPLCY", "KUBE-POD-FW")):
            continue
        if any(chain.startswith(m) for m in marks):
            return name
        if comment is not None and any(m in comment for m in marks):
            return name
    if "-j DOCKER" in text:
        return "docker"
    return "somebody by hand, or a tool that leaves no name"


def is_kube_rule(chain: str, comment: str | None) -> bool:
    """Whether kube-proxy or the kubelet wrote it."""
    return author_of(chain, "", comment) == "kube-proxy or kubelet"


def stopped(entry: Entry) -> Iterator[tuple[Path, Rule | None]]:
    """The ways of a cell that do not end well, each with the rule that ended it."""
    fact = entry.asked.fact
    for path in fact.paths if fact is not None else ():
        if path.symptom is Symptom.CONNECTS:
            continue
        yield path, deciding_rule(path)


def deciding_rule(path: Path) -> Rule | None:
    """The rule that dropped, rejected or lost the packet of a way."""
    decided = path.decided_by
    if decided is None or decided.kind != "rule":
        return None
    for hop in reversed(path.hops):
        for step in reversed(hop.steps):
            if step.rule is not None and step.rule.text == decided.rule and step.chain == decided.chain:
                return step.rule
    return None


ENDED_BY_RULE = frozenset((Disposition.DROPPED, Disposition.REJECTED, Disposition.LOST))
