"""A NetworkPolicy lets no client outside in to the Service's pods, and its enforcement was not read.

# What it means
Policies select the pods; what none of them lets in is dropped by the network plugin (Calico, Cilium, kube-router,
Antrea, OVN-Kubernetes, a cloud's). Some plugins (flannel) enforce none. Here the rules or maps of the pods' nodes were
not read, and so ktp cannot tell: where they are read, the walk meets them, and this finding is not given.

# Why traffic fails
Under policy Local the pod sees the client's own address, and no ipBlock holds it. Otherwise it sees the address of the
node that was dialled: plugins let in what comes from the pod's own node, and differ in what they make of other nodes.

# Evidence
The policies that select the pods, whom they let in at the pods' port, and the address that the pods see.

# Confirm by hand
    kubectl get networkpolicies -n NAMESPACE
    kubectl describe networkpolicy -n NAMESPACE POLICY

# Fix
If these clients should get in, add an ingress rule with an ipBlock that holds them, or one without `from`.

# Example
A namespace has a policy default-deny; a NodePort Service in it answers nobody outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, field, listed
from ktp.kubeproxy.outcome import Vantage
from ktp.model.cluster import Pod
from ktp.model.diagnosis import CellEndpoint, Finding, Fix, Severity
from ktp.model.host import IPAddress
from ktp.model.policy import IngressRule, NetworkPolicy
from ktp.model.record import dataclass
from ktp.model.trace import Symptom


@dataclass(frozen=True, slots=True)
class _Stopped:
    """A pod that lets an outside client in by no policy: the address that it sees, and the rules about its port."""

    entry: Entry
    pod: Pod
    port: int
    seen: IPAddress
    policies: tuple[NetworkPolicy, ...]
    rules: tuple[IngressRule, ...]

    @property
    def is_kept(self) -> bool:
        """Whether the pod sees the client's own address."""
        return bool(self.entry.cell.source_kept)

    @property
    def admits_somebody(self) -> bool:
        """Whether clients outside of other addresses get in."""
        return any(rule.blocks for rule in self.rules)


def run(case: Case) -> Iterable[Finding]:
    """Fires once for each set of policies that selects pods of the Service, on nodes whose rules were not read."""
    if not case.snapshot.cluster.policies:
        return
    groups: dict[tuple[bool, tuple[str, ...]], list[_Stopped]] = {}
    for stopped in _stopped(case):
        groups.setdefault((stopped.is_kept, tuple(p.key for p in stopped.policies)), []).append(stopped)
    for (is_kept, names), members in groups.items():
        first = members[0]
        pods = list(dict.fromkeys(s.pod.key for s in members))
        clients = list(dict.fromkeys(str(s.seen) for s in members))
        some = any(s.admits_somebody for s in members)
        whom = f"nobody at {listed(clients)}" if some or not is_kept else "no client outside"
        yield CHECK.finding(
            f"NetworkPolicy {listed(names)} lets {whom} in to {listed(pods)} at port {first.port}"
            + ("" if is_kept else ", and as such the pods see outside clients that dial another node")
            + f": a network plugin that enforces policies {'stops' if is_kept else 'may stop'} them "
            "(whether one does was not read)",
            nodes=list(dict.fromkeys(s.entry.node for s in members)),
            evidence=[
                *(field(f"NetworkPolicy {p.key}", _words(p, first)) for p in first.policies[:4]),
                field(f"pod {first.pod.key}", f"sees these clients as {listed(clients)}"),
            ],
            fix=Fix(
                f"if these clients should get in, add an ingress rule with an ipBlock to {names[0]}",
                cost="whoever has an address in it gets in",
            ),
            severity=Severity.INFO if some or not is_kept else Severity.WARNING,
        )


def _stopped(case: Case) -> Iterator[_Stopped]:
    pods = {ip: pod for pod in case.snapshot.cluster.pods or () if not pod.host_network for ip in pod.pod_ips}
    for entry in case.entries:
        if (
            entry.vantage is not Vantage.EXTERNAL
            or not entry.is_external
            or entry.cell.symptom is Symptom.UNKNOWN
        ):
            continue
        for endpoint in entry.cell.endpoints:
            pod = pods.get(endpoint.ip)
            if pod is None or endpoint.symptom is not Symptom.CONNECTS:
                continue
            if pod.node_name is None or case.examiner.has_rules(pod.node_name, entry.front_end.ip_version):
                continue
            seen = _seen(case, entry, endpoint)
            if (
                seen is not None
                and (found := _by_policies(case, entry, pod, endpoint.port, seen)) is not None
            ):
                yield found


def _seen(case: Case, entry: Entry, endpoint: CellEndpoint) -> IPAddress | None:
    """The client's address as the pod sees it; None where that is its own node's, which plugins let in."""
    if entry.cell.source_kept:
        return entry.asked.question.client.ip
    if endpoint.node == entry.node:
        return None
    return next(
        (a for a in case.examiner.addresses(entry.node) if a.version == entry.front_end.ip_version), None
    )


def _by_policies(case: Case, entry: Entry, pod: Pod, port: int, seen: IPAddress) -> _Stopped | None:
    isolating = [
        p
        for p in case.snapshot.cluster.policies or ()
        if p.isolates and p.namespace == pod.namespace and p.pods.selects(pod.labels)
    ]
    names = {each.name: each.container_port for each in pod.ports if each.name}
    rules = [rule for p in isolating for rule in p.rules if rule.is_for(entry.port.protocol, port, names)]
    if not isolating or any(rule.admits(seen) for rule in rules):
        return None
    return _Stopped(entry, pod, port, seen, tuple(isolating), tuple(rules))


def _words(policy: NetworkPolicy, stopped: _Stopped) -> str:
    labels = ", ".join(
        f"{r.key} {r.operator} {','.join(r.values)}".rstrip() for r in policy.pods.requirements
    )
    mine = [rule for rule in policy.rules if rule in stopped.rules]
    blocks = [str(block.cidr) for rule in mine for block in rule.blocks]
    whom = [f"ipBlock {listed(blocks)}"] if blocks else []
    if any(rule.has_pods for rule in mine):
        whom.append("pods by labels")
    return f"podSelector: {labels or 'all pods'}; lets in at port {stopped.port}: {' and '.join(whom) or 'nobody'}"


CHECK = Check("KTP305", "NetworkPolicyMayDrop", Severity.WARNING, run)
