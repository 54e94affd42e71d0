"""A load-balancer address that no node announces, or that a node without an endpoint answers for.

# What it means
What gives addresses out (an IPAddressPool of MetalLB, a CiliumLoadBalancerIPPool) does not announce them. For packets
to find a node it takes an L2Advertisement or CiliumL2AnnouncementPolicy (one node answers ARP or NDP for the address),
or an advertisement over BGP (nodes tell routers of it), that is of this address, and a node to be from.

# Why traffic fails
Without an announcement nobody on the network knows where the address is: clients get no answer, or "no route to host"
from their own router. Nothing in the cluster sees their packets. Under policy Local the node that answers for the
address must hold an endpoint. MetalLB sees to that; Cilium's L2 announcements elect a node without looking; kube-vip
sees to it where each Service has an election of its own (svc_election).

# Evidence
The pool that the address is from, the advertisements, their selectors beside the labels of nodes and Service; who
announces now: ServiceL2Status of MetalLB, the Lease cilium-l2announce-NAMESPACE-NAME, kube-vip's annotation vipHost;
and under policy Local the nodes that hold a usable endpoint.

# Confirm by hand
    kubectl get ipaddresspools,l2advertisements,bgpadvertisements -A
    kubectl get servicel2statuses -A            # who answers now, MetalLB 0.14 and later
    kubectl get leases -n kube-system           # cilium-l2announce-…: the holder answers
    kubectl describe svc -n NAMESPACE NAME      # an event nodeAssigned names the node

# Fix
Add an advertisement for the pool or the Service, or correct its selectors; under Local run a pod on a node that may
announce. With MetalLB a node with the label node.kubernetes.io/exclude-from-external-load-balancers announces nothing,
unless the speakers run with --ignore-exclude-lb.

# Example
Somebody adds a second IPAddressPool; the one L2Advertisement names the first, and Services of the new pool are dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import holders
from ktp.diagnose.checks.provider_annotations import KUBE_VIP_HOST
from ktp.model.announcing import (
    AddressPool,
    Advertisement,
    Announcer,
    Announcing,
    Provider,
    selectable_labels,
)
from ktp.model.cluster import Node, ip_of
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import IPAddress

_EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


def run(case: Case) -> Iterable[Finding]:
    """Fires for each address of the Service that is from a pool and that no node may announce, or a wrong one does."""
    service, announcing = case.service, case.snapshot.cluster.announcing
    if service.type != "LoadBalancer" or not service.ingress:
        return
    announcers = _announcers(case, announcing)
    yield from _from_a_wrong_node(case, announcers)
    if announcing is None or announcers:
        return  # somebody does announce it
    for ip in [address for each in service.ingress if each.ip and (address := ip_of(each.ip)) is not None]:
        pool = announcing.pool_of(ip)
        if pool is None or pool.provider not in announcing.advertisements_known:
            continue  # another controller's address, or there may be advertisements that nobody read
        of_pool = [a for a in announcing.advertisements if a.is_of(pool)]
        mine = [a for a in of_pool if _is_for(a, case)]
        if not mine:
            yield _unadvertised(case, announcing, pool, of_pool, ip)
            continue
        yield from _from_no_node(case, mine, ip)


def _announcers(case: Case, announcing: Announcing | None) -> tuple[Announcer, ...]:
    """Who announces the Service's addresses now, as far as objects tell."""
    service = case.service
    found = announcing.announcers_of(service.namespace, service.name) if announcing is not None else ()
    if node := service.annotations.get(KUBE_VIP_HOST):
        found = (*found, Announcer(Provider.KUBE_VIP, node, f"annotation {KUBE_VIP_HOST}"))
    return found


def _is_for(a: Advertisement, case: Case) -> bool:
    service = case.service
    labels = selectable_labels(service.namespace, service.name, service.labels)
    return a.of_load_balancers and a.takes(labels, service.load_balancer_class)


def _unadvertised(
    case: Case, announcing: Announcing, pool: AddressPool, of_pool: list[Advertisement], ip: IPAddress
) -> Finding:
    of_cilium = pool.provider is Provider.CILIUM
    others = [a for a in announcing.advertisements if a.provider is pool.provider]
    silent = [a for a in of_pool if not a.of_load_balancers]
    if of_cilium and silent:
        why = f" ({_names(silent)} {_is(silent)} of no load-balancer addresses)"
    elif of_cilium and of_pool:
        why = f" ({_names(of_pool)} {'selects' if len(of_pool) == 1 else 'select'} other Services)"
    else:
        why = f" ({_names(others)} {_is(others)} of other pools)" if others else ""
    wanted = (
        "let a CiliumL2AnnouncementPolicy with loadBalancerIPs: true, or a CiliumBGPAdvertisement of LoadBalancerIP, "
        "select the Service"
        if of_cilium
        else f"add an L2Advertisement or BGPAdvertisement whose spec.ipAddressPools has {pool.name}"
    )
    kind = "CiliumLoadBalancerIPPool" if of_cilium else "IPAddressPool"
    return CHECK.finding(
        f"{ip} of {case.service.key} is from {pool.provider.value}'s pool {pool.name}, which no advertisement "
        f"announces{why}",
        evidence=[
            field(f"{kind} {pool.name}", "addresses: " + _ranges(pool)),
            *(field(f"{a.kind} {a.name}", _of(a)) for a in others[:4]),
        ],
        fix=Fix(wanted, cost="its addresses become known on the network"),
        # Addresses of Cilium's pools may be announced by others, a static route among them.
        severity=Severity.WARNING if of_cilium else Severity.ERROR,
    )


def _from_no_node(case: Case, mine: list[Advertisement], ip: IPAddress) -> Iterable[Finding]:
    """Advertisements are of the address, and no node may announce by them, or under Local one without an endpoint."""
    cluster = case.snapshot.cluster
    if not cluster.has_all("nodes") or not case.examiner.index.knows(case.service):
        return
    nodes = cluster.nodes or {}
    selected = {name for name, node in nodes.items() if any(a.is_from(node.labels) for a in mine)}
    able = {
        name
        for name in selected
        if not any(a.provider is Provider.METALLB for a in mine) or not _is_out(nodes[name])
    }
    local = case.service.external_traffic_policy == "Local"
    held = holders(case)
    if not held:
        return  # KTP101 and its like: without an endpoint nobody announces, and nobody would answer
    announcing = _names(mine)
    evidence: list[Evidence] = [field(f"{a.kind} {a.name}", _of(a)) for a in mine[:4]]
    usable = field(f"EndpointSlices of {case.service.key}", f"usable on {listed(sorted(held))}")
    if (able & held) if local else able:
        if local and all(a.elects for a in mine) and able - held:
            yield _may_be_wrong(case, able - held, ip, [*evidence, usable], announcing)
        return
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
        evidence.append(usable)
    nobody = (
        "no node announces" if not able or not all(a.elects for a in mine) else "no node with a pod announces"
    )
    yield CHECK.finding(
        f"{nobody} {ip} of {case.service.key}: {why}",
        evidence=evidence,
        nodes=sorted(selected)[:8],
        severity=Severity.WARNING if selected and not able else Severity.ERROR,
        fixes=[
            Fix(f"let the advertisement be from nodes that hold a pod (spec.{_selector(mine)})")
            if able
            else Fix(f"correct spec.{_selector(mine)}, or the nodes' labels"),
            *([Fix(f"run a ready pod on {listed(sorted(able))}", cost="pods on more nodes")] if able else []),
        ],
    )


def _may_be_wrong(
    case: Case, empty: set[str], ip: IPAddress, evidence: list[Evidence], announcing: str
) -> Finding:
    """Cilium elects among nodes of which some hold no endpoint; which one it took was not read."""
    return CHECK.finding(
        f"{announcing} may announce {ip} of {case.service.key} from {listed(sorted(empty))} too, which "
        f"hold{'s' * (len(empty) == 1)} no usable endpoint: Cilium elects a node without looking, and under policy "
        "Local clients who come there fail",
        nodes=sorted(empty)[:8],
        evidence=evidence,
        severity=Severity.WARNING,
        fixes=_by_cilium(),
    )


def _from_a_wrong_node(case: Case, announcers: tuple[Announcer, ...]) -> Iterable[Finding]:
    """The node that answers for the address holds no endpoint, under policy Local."""
    service, nodes = case.service, case.snapshot.cluster.nodes
    held = holders(case)
    if service.external_traffic_policy != "Local" or not case.examiner.index.knows(service) or not held:
        return
    for provider in Provider:
        wrong = [
            each
            for each in announcers
            if each.provider is provider and each.node not in held and (nodes is None or each.node in nodes)
        ]
        if not wrong:
            continue
        names = sorted({each.node for each in wrong})
        yield CHECK.finding(
            f"{listed(names)} answers for the address of {service.key} ({wrong[0].source}) and holds no usable "
            "endpoint: under policy Local clients who come there fail",
            nodes=names,
            evidence=[
                *(field(each.source, f"{service.key}: announced by {each.node}") for each in wrong),
                field(f"EndpointSlices of {service.key}", f"usable on {listed(sorted(held))}"),
            ],
            fixes=_WHO_MOVES[provider](names[0]),
            # kube-vip's annotation is of the node that took the address last; with BGP there may be others.
            severity=Severity.WARNING if provider is Provider.KUBE_VIP else Severity.ERROR,
        )


def _by_cilium() -> list[Fix]:
    return [
        Fix(
            "let the CiliumL2AnnouncementPolicy be from nodes that hold a pod (spec.nodeSelector)",
            cost="the address moves to another node: connections of now end",
        ),
        Fix(
            "announce the address over BGP (CiliumBGPAdvertisement): under Local only nodes with a pod do",
            cost="routers that speak BGP",
        ),
    ]


_WHO_MOVES: Mapping[Provider, Callable[[str], list[Fix]]] = {
    Provider.METALLB: lambda node: [Fix(f"see the log of MetalLB's speaker on {node}: it has not followed")],
    Provider.CILIUM: lambda _node: _by_cilium(),
    Provider.KUBE_VIP: lambda _node: [
        Fix(
            "give each Service an election of its own (kube-vip's svc_election): nodes with a pod take part",
            cost="a Lease a Service",
        )
    ],
}


def _is_out(node: Node) -> bool:
    """Whether speakers of that node announce nothing (speaker/layer2_controller.go, speakersForPool)."""
    unavailable = any(c.type == "NetworkUnavailable" and c.status == "True" for c in node.conditions)
    return unavailable or _EXCLUDED in node.labels


def _keep(names: set[str]) -> str:
    return "is kept" if len(names) == 1 else "are kept"


def _ranges(pool: AddressPool) -> str:
    return ", ".join(f"{first}-{last}" for first, last in pool.ranges)


def _of(a: Advertisement) -> str:
    words = "; ".join(selector.text or "all" for selector in a.node_selectors)
    nodes = f"{_selector([a])}: {words or 'none, all nodes'}"
    if a.provider is Provider.CILIUM:
        services = "; ".join(selector.text or "all" for selector in a.services)
        balancers = str(a.of_load_balancers).lower()
        return f"Services: {services or 'none'}; of load-balancer addresses: {balancers}; {nodes}"
    pools = ", ".join(a.pools) or ("by selector" if a.pool_selectors else "all pools")
    return f"ipAddressPools: {pools}; {nodes}"


def _names(found: list[Advertisement]) -> str:
    return ", ".join(f"{a.kind} {a.name}" for a in found)


def _is(found: list[Advertisement]) -> str:
    return "is" if len(found) == 1 else "are"


def _selector(found: list[Advertisement]) -> str:
    """The field that chooses nodes."""
    return "nodeSelector" if all(a.provider is Provider.CILIUM for a in found) else "nodeSelectors"


CHECK = Check("KTP608", "NotAnnounced", Severity.ERROR, run)
