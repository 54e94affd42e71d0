"""MetalLB has given the Service an address, and no node announces it.

# What it means
An IPAddressPool only gives addresses out. For packets to find a node it takes an L2Advertisement (one node answers ARP
or NDP for the address) or a BGPAdvertisement (nodes tell routers of it) that is of this pool, and a node to be from.

# Why traffic fails
Without an announcement nobody on the network knows where the address is: clients get no answer, or "no route to host"
from their own router. Nothing in the cluster sees their packets.

# Evidence
The pool that the address is from, the advertisements, their nodeSelectors beside the nodes' labels, and under policy
Local the nodes that hold a usable endpoint: only those announce it then.

# Confirm by hand
    kubectl get ipaddresspools,l2advertisements,bgpadvertisements -A
    kubectl get servicel2statuses -A            # who answers now, MetalLB 0.14 and later
    kubectl describe svc -n NAMESPACE NAME      # an event nodeAssigned names the node

# Fix
Add an advertisement for the pool, or correct its selectors; under Local run a pod on a node that may announce. A node
with the label node.kubernetes.io/exclude-from-external-load-balancers announces nothing, unless the speakers run with
--ignore-exclude-lb.

# Example
Somebody adds a second IPAddressPool; the one L2Advertisement names the first, and Services of the new pool are dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import holders
from ktp.model.cluster import Node, ip_of
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import IPAddress
from ktp.model.metallb import AddressPool, Advertisement, MetalLB

_EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


def run(case: Case) -> Iterable[Finding]:
    """Fires for each address of the Service that is from a pool and that no node may announce, or a wrong one does."""
    service, metallb = case.service, case.snapshot.cluster.metallb
    if metallb is None or service.type != "LoadBalancer":
        return
    yield from _from_a_wrong_node(case, metallb)
    if not metallb.advertisements_known or any(key == service.key for key, _ in metallb.announcers):
        return  # somebody does announce it, or there may be advertisements that nobody read
    for ip in [address for each in service.ingress if each.ip and (address := ip_of(each.ip)) is not None]:
        pool = metallb.pool_of(ip)
        if pool is None:
            continue  # another controller's address
        mine = [a for a in metallb.advertisements if a.is_of(pool)]
        if not mine:
            yield _unadvertised(case, metallb, pool, ip)
            continue
        yield from _from_no_node(case, mine, ip)


def _unadvertised(case: Case, metallb: MetalLB, pool: AddressPool, ip: IPAddress) -> Finding:
    others = [f"{a.kind} {a.name}" for a in metallb.advertisements]
    return CHECK.finding(
        f"{ip} of {case.service.key} is from MetalLB's pool {pool.name}, which no advertisement announces"
        + (f" ({listed(others)} {'is' if len(others) == 1 else 'are'} of other pools)" if others else ""),
        evidence=[
            field(f"IPAddressPool {pool.name}", "addresses: " + _ranges(pool)),
            *(field(f"{a.kind} {a.name}", _of(a)) for a in metallb.advertisements[:4]),
        ],
        fixes=[
            Fix(
                summary=f"add an L2Advertisement or BGPAdvertisement whose spec.ipAddressPools has {pool.name}",
                cost="its addresses become known on the network",
            )
        ],
    )


def _from_no_node(case: Case, mine: list[Advertisement], ip: IPAddress) -> Iterable[Finding]:
    """Advertisements are of the pool, and no node may announce by them."""
    cluster = case.snapshot.cluster
    if not cluster.has_all("nodes") or not case.examiner.index.knows(case.service):
        return
    nodes = cluster.nodes or {}
    selected = {name for name, node in nodes.items() if any(a.is_from(node.labels) for a in mine)}
    able = {name for name in selected if not _is_out(nodes[name])}
    local = case.service.external_traffic_policy == "Local"
    held = holders(case)
    if not held:
        return  # KTP101 and its like: without an endpoint nobody announces, and nobody would answer
    if (able & held) if local else able:
        return
    announcing = ", ".join(f"{a.kind} {a.name}" for a in mine)
    evidence: list[Evidence] = [field(f"{a.kind} {a.name}", _of(a)) for a in mine[:4]]
    if not selected:
        why = f"no node has the labels that {announcing} asks for"
    elif not able:
        why = (
            f"{listed(sorted(selected))}, from which {announcing} may announce, {_keep(selected)} out of load "
            "balancers by a label (unless the speakers run with --ignore-exclude-lb), or without a network"
        )
        evidence += [
            field(f"Node {name}", f"metadata.labels: {_EXCLUDED}")
            for name in sorted(selected)[:4]
            if _EXCLUDED in nodes[name].labels
        ]
    else:
        why = (
            f"the policy is Local, its pods run on {listed(sorted(held))}, and {announcing} may announce from "
            f"{listed(sorted(able))} only"
        )
        evidence += [field(f"EndpointSlices of {case.service.key}", f"usable on {listed(sorted(held))}")]
    yield CHECK.finding(
        f"no node announces {ip} of {case.service.key}: {why}",
        evidence=evidence,
        nodes=sorted(selected)[:8],
        severity=Severity.WARNING if selected and not able else Severity.ERROR,
        fixes=[
            Fix(
                summary="let the advertisement be from nodes that hold a pod (spec.nodeSelectors)",
                cost="none",
            )
            if able
            else Fix(summary="correct spec.nodeSelectors, or the nodes' labels", cost="none"),
            *(
                [Fix(summary=f"run a ready pod on {listed(sorted(able))}", cost="pods on more nodes")]
                if able
                else []
            ),
        ],
    )


def _from_a_wrong_node(case: Case, metallb: MetalLB) -> Iterable[Finding]:
    """The node that answers for the address holds no endpoint, under policy Local."""
    service = case.service
    now = sorted({node for key, node in metallb.announcers if key == service.key})
    held = holders(case)
    if service.external_traffic_policy != "Local" or not case.examiner.index.knows(service) or not held:
        return
    wrong = [node for node in now if node not in held]
    if not wrong:
        return
    yield CHECK.finding(
        f"{listed(wrong)} answers for the address of {service.key} (ServiceL2Status) and holds no usable endpoint: "
        "under policy Local its clients get no answer",
        nodes=wrong,
        evidence=[
            *(field("ServiceL2Status", f"{service.key}: status.node: {node}") for node in wrong),
            field(f"EndpointSlices of {service.key}", f"usable on {listed(sorted(held))}"),
        ],
        fixes=[
            Fix(summary=f"see the log of MetalLB's speaker on {wrong[0]}: it has not followed", cost="none")
        ],
    )


def _is_out(node: Node) -> bool:
    """Whether speakers of that node announce nothing (speaker/layer2_controller.go, speakersForPool)."""
    unavailable = any(c.type == "NetworkUnavailable" and c.status == "True" for c in node.conditions)
    return unavailable or _EXCLUDED in node.labels


def _keep(names: set[str]) -> str:
    return "is kept" if len(names) == 1 else "are kept"


def _ranges(pool: AddressPool) -> str:
    return ", ".join(f"{first}-{last}" for first, last in pool.ranges)


def _of(a: Advertisement) -> str:
    pools = ", ".join(a.pools) or ("by selector" if a.pool_selectors else "all pools")
    words = "; ".join(
        " ".join(
            f"{r.key} {r.operator} {','.join(r.values)}".rstrip() for r in selector.requirements
        ) or "all"
        for selector in a.node_selectors
    )  # fmt: skip
    return f"ipAddressPools: {pools}; nodeSelectors: {words or 'none, all nodes'}"


CHECK = Check(code="KTP608", name="NotAnnounced", severity=Severity.ERROR, page=__doc__ or "", run=run)
