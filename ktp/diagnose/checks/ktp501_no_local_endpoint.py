"""externalTrafficPolicy is Local and no usable endpoint runs on this node.

# What it means
The Service asks nodes to hand external traffic to their own pods only, so that the pods see the client's address. This
node has no usable endpoint of it.

# Why traffic fails
kube-proxy drops the packet on such a node (it does not send it on to another): the client gets no answer and times
out. Processes of the node itself and, in ClusterCIDR mode, pods are exempt: a curl on the node proves nothing. Cilium
in kube-proxy's place refuses the packet from 1.15 on, and exempts every client inside the cluster.

# Evidence
spec.externalTrafficPolicy, the EndpointSlices' nodeName, and the rule that drops: "has no local endpoints" in
KUBE-EXTERNAL-SERVICES (kube-proxy 1.25 and later), KUBE-MARK-DROP in KUBE-XLB-… or KUBE-SVL-… (before), the element
of the map no-endpoint-nodeports (nftables mode), or Cilium's front end without a backend (slot 0, flag Local).

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.externalTrafficPolicy}'
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o jsonpath='{..nodeName} {..ready}'
    iptables-save -c | grep 'NAMESPACE/NAME.*has no local endpoints'     # on the node
    cilium-dbg bpf lb list | grep NODE-PORT                              # with Cilium, in the agent's pod there

# Fix
Send traffic only to nodes that hold a pod (a load balancer learns them from healthCheckNodePort); or run a pod on
every node that gets traffic (DaemonSet, topologySpreadConstraints); or set externalTrafficPolicy: Cluster, which
costs the client's address and adds a hop.

# Example
One pod on node-a, node port 31015: node-a answers, node-b and node-c time out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from functools import partial

from ktp.diagnose.case import Case, Entry, Mended, decided_evidence
from ktp.diagnose.changes import pod_added, policy_changed
from ktp.diagnose.checks.base import Check, a_try, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import honours_local, selection_of
from ktp.diagnose.checks.health_common import is_kept_off
from ktp.diagnose.checks.ktp304_cilium_policy import is_front_end
from ktp.diagnose.checks.policy_common import policies_of_pods
from ktp.diagnose.checks.rule_common import marking_rule
from ktp.explain.steps import is_kube_proxys_stop
from ktp.kubeproxy.endpoints import EndpointSelection
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.names import host_port
from ktp.kubeproxy.outcome import Vantage
from ktp.model.change import Change
from ktp.model.diagnosis import Cell, Evidence, Finding, Fix, Severity
from ktp.model.trace import DecidedBy, Symptom

_MOST_TRIED = 3
"""On so many nodes that fail alike a pod is tried: each costs a walk from everywhere."""


def run(case: Case) -> Iterable[Finding]:
    """Fires for each port and node on which both counterfactuals, or one of them, mend a failing cell."""
    if case.service.external_traffic_policy != "Local" or not case.examiner.index.knows(case.service):
        return
    # Of nodes that fail alike: on how many a pod was tried, and whether it ever mended what the policy does not.
    tried: Counter[Hashable] = Counter()
    needed: set[Hashable] = set()
    for node in case.nodes:
        kept_off = is_kept_off(case, node)
        by_port: dict[tuple[str, int, bool], list[Entry]] = {}
        for entry in case.failing(node):
            if entry.is_external and honours_local(case, entry):
                selection = selection_of(case, entry)
                if selection.has_endpoints and not selection.local and not _is_misnamed(case, entry):
                    # No balancer stands before an external IP.
                    designed = kept_off and entry.front_end.kind is not FrontEndKind.EXTERNAL_IP
                    by_port.setdefault((entry.port.protocol, entry.port.port, designed), []).append(entry)
        for (_, _, designed), entries in by_port.items():
            face = tuple(_face(e) for e in entries)
            by_policy = case.mended(entries, "policy Cluster", lambda: policy_changed(case, "Cluster"))
            by_pod = None
            everywhere = tried[face] < _MOST_TRIED
            if everywhere or face in needed or not by_policy:
                by_pod = case.mended(entries, f"pod on {node}", partial(pod_added, case, node), node)
                tried[face] += 1
                if any(e not in by_policy for e in by_pod):
                    needed.add(face)
            yield from _explain(
                case, node, entries, by_policy, by_pod, designed=designed, everywhere=everywhere
            )


def _face(entry: Entry) -> Hashable:
    """What a failing cell has in common with that of another node."""
    decided = entry.cell.decided_by
    return (
        entry.title, entry.vantage, entry.cell.symptom,
        # Of what is no rule the words name addresses.
        decided and (decided.kind, decided.table, decided.chain, decided.rule if decided.backend else ""),
    )  # fmt: skip


def _is_misnamed(case: Case, entry: Entry) -> bool:
    """Whether the node has endpoints that its kube-proxy takes for remote ones: KTP406."""
    name = case.examiner.proxy(entry.node).known_as
    return name != entry.node and any(e.node_name == entry.node for e in selection_of(case, entry).usable)


def _explain(
    case: Case,
    node: str,
    entries: list[Entry],
    by_policy: Mended,
    by_pod: Mended | None,
    *,
    designed: bool,
    everywhere: bool,
) -> Iterable[Finding]:
    """The finding of one node, where another policy mends it or a pod there; None for what was not tried.

    `everywhere` tells that who would lose by a pod there is asked for on all other nodes.
    """
    service = case.service
    cells = [e for e in entries if e in by_policy or e in (by_pod or ())]
    # Where something else would stop the packet next, the drop is still what stops it now.
    further = {
        e.key: how
        for e in entries
        if e not in cells and (how := _gets_further(case, e, node, try_pod=by_pod is not None))
    }
    cells += [e for e in entries if e.key in further]
    if not cells:
        return
    selection = selection_of(case, entries[0])
    there = sorted({e.node_name or "no node" for e in selection.usable})
    first = next((e for e in cells if e.vantage is Vantage.EXTERNAL), cells[0])
    evidence: list[Evidence] = [
        field(
            f"EndpointSlices of {service.key}",
            f"{len(selection.usable)} usable, on {listed(there)}; none with "
            f"nodeName={case.examiner.proxy(node).known_as}"
            + _not_ready_here(selection, case.examiner.proxy(node).known_as),
        ),
        field(f"Service {service.key}", "spec.externalTrafficPolicy: Local"),
        *_marked(first),
        *_virtual_server(first),
        *decided_evidence(first.cell),
    ]
    if by_policy:
        evidence.append(
            counterfactual(f"with externalTrafficPolicy: Cluster, {first.title} on {node} connects")
        )
    if by_pod:
        evidence.append(counterfactual(f"with a ready pod on {node}, {first.title} on {node} connects"))
    if not by_policy and not by_pod:
        change, why = further.get(first.key) or (
            f"a ready pod on {node}",
            _with_pod(case, first, node).reason,
        )
        evidence.append(counterfactual(f"with {change} the packet gets further, and then: {why}"))
    who = {
        Vantage.EXTERNAL: "clients outside",
        Vantage.OTHER_NODE: "processes of other nodes",
        Vantage.POD_OTHER_NODE: "pods of other nodes",
    }.get(first.vantage, "clients on the node")
    symptom = {
        Symptom.TIMES_OUT: "time out",
        Symptom.REFUSED: "are refused",
        Symptom.CONNECTS: "end at a socket of the node",
    }.get(first.cell.symptom, "fail")
    curl = [e for e in case.on(node) if e.vantage is Vantage.NODE and e.is_external and not e.fails]
    message = (
        f"externalTrafficPolicy is Local and no usable endpoint runs on {node}: "
        f"{who} {symptom} at {first.title}"
    )
    if curl and first.vantage is Vantage.EXTERNAL:
        message += f"; {a_try(entries[0])} on the node itself connects and proves nothing"
    if designed:
        message = (
            f"as the policy means it: {node} holds no usable endpoint, healthCheckNodePort "
            f"{service.health_check_node_port} keeps the load balancer off, and {first.title} there is silent"
        )
    yield CHECK.finding(
        message,
        node=node,
        evidence=evidence,
        fixes=_fixes(case, node, cells, by_policy, by_pod if everywhere else None),
        cells=cells,
        severity=Severity.INFO if designed else None,
    )


def _virtual_server(entry: Entry) -> list[Evidence]:
    """IPVS mode has no rule for it: up to 1.23 a virtual server has nothing behind it, since 1.24 every endpoint.

    `syncEndpoint` of ipvs/proxier.go. Then the packet goes to another node with its own source, and the answer is lost.
    """
    steps = [
        (hop.node, step)
        for path in entry.paths
        for hop in path.hops
        for step in hop.steps
        if step.backend == "ipvs" and hop.node == entry.node and hop.direction == "request"
    ]
    if not steps:
        return []
    node, step = steps[0]
    servers = sorted({host_port(t.after.ip, t.after.port or 0) for _, s in steps for t in s.translations})
    behind = (
        f"leads to {listed(servers)}, on other nodes"
        if servers
        else "has no real server that takes connections"
    )
    return [Evidence("rule", f"{node} ipvs", f"{step.text}: {behind}")]


def _with_pod(case: Case, entry: Entry, node: str) -> Cell:
    return case.ask_again(entry, f"pod on {node}", lambda: pod_added(case, node))


def _gets_further(case: Case, entry: Entry, node: str, *, try_pod: bool) -> tuple[str, str] | None:
    """With which change something else ends the packet than kube-proxy's drop (or Cilium's), and why; None for none."""
    before = entry.cell.decided_by
    if before is None or before.node != node:
        return None
    if not is_kube_proxys_stop(before.step) and not is_front_end(before):
        return None
    if try_pod and _is_other((after := _with_pod(case, entry, node)).decided_by, before):
        return f"a ready pod on {node}", after.reason
    after = case.ask_again(entry, "policy Cluster", lambda: policy_changed(case, "Cluster"))
    if _is_other(after.decided_by, before):
        return "externalTrafficPolicy: Cluster", after.reason
    return None


def _is_other(after: DecidedBy | None, before: DecidedBy) -> bool:
    return after is not None and (after.kind, after.table, after.chain, after.rule) != (
        before.kind, before.table, before.chain, before.rule,
    )  # fmt: skip


def _marked(entry: Entry) -> list[Evidence]:
    """kube-proxy up to 1.24 marks the packet in nat and leaves the drop to KUBE-FIREWALL: the rule that marks it."""
    rule = marking_rule(entry)
    if rule is None:
        return []
    where = f"{rule.node} {rule.backend} {rule.table}" + (f" line {rule.line}" if rule.line else "")
    return [Evidence("rule", where, rule.text)]


def _not_ready_here(selection: EndpointSelection, name: str) -> str:
    here = [e for e in selection.listed if e.node_name == name and e not in selection.usable]
    leaving = [e for e in here if e.is_usable_when_terminating]
    if leaving:
        return f" ({len(leaving)} there terminating: kube-proxy uses such endpoints from 1.26 on, and if none is ready)"
    return f" ({len(here)} there not ready)" if here else ""


def _fixes(case: Case, node: str, cells: list[Entry], by_policy: Mended, by_pod: Mended | None) -> list[Fix]:
    service = case.service
    titles = {e.title for e in cells}
    asked = [e for e in case.whole if e.title in titles and e.vantage is Vantage.EXTERNAL]
    # Nodes on which clients outside connect at every one of the front ends that fail here.
    good = sorted({e.node for e in asked} - {e.node for e in asked if e.cell.symptom is not Symptom.CONNECTS})
    fixes = []
    if good:
        check = (
            f"; the load balancer learns them from healthCheckNodePort {service.health_check_node_port}"
            if service.health_check_node_port
            else ""
        )
        fixes.append(
            Fix(
                f"send traffic only to the nodes that hold a pod: {listed(good)}{check}",
                cost="none; the client's address stays",
                verified=True,
                outcome="clients outside connect",
            )
        )
    policies = policies_of_pods(case)
    fixes.append(
        Fix(
            f"run a ready pod on {node} (a DaemonSet, or topologySpreadConstraints over the hostname)",
            cost="pods on more nodes; the client's address stays",
            # A new pod meets what the policies that select it say, and its rules cannot be foretold.
            cures=None if policies or by_pod is None else by_pod.cures(cells),
            outcome=f"NetworkPolicy {listed(policies)} would select the new pod as well"
            if policies
            else "tried on other nodes that answer alike"
            if by_pod is None
            else "",
            change=Change(kind="pod-on", value=node),
        )
    )
    fixes.append(
        Fix(
            "set externalTrafficPolicy: Cluster",
            cost="the pods see a node's address, not the client's; perhaps one hop more",
            patch={"spec": {"externalTrafficPolicy": "Cluster"}},
            command=(
                f"kubectl patch service -n {service.namespace} {service.name} "
                '-p \'{"spec":{"externalTrafficPolicy":"Cluster"}}\''
            ),
            cures=by_policy.cures(cells),
            change=Change(kind="policy", value="Cluster"),
        )
    )
    return fixes


CHECK = Check("KTP501", "NoLocalEndpoint", Severity.ERROR, run)
