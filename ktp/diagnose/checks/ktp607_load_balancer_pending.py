"""The Service has no load-balancer address yet.

# What it means
spec.type is LoadBalancer and status.loadBalancer.ingress is empty: EXTERNAL-IP stays <pending>. No controller has taken
the Service, or the one that did could not make a load balancer.

# Why traffic fails
There is no address that clients could dial, apart from the node ports.

# Evidence
The Service's type, class and status; whether another Service of that class has an address; where MetalLB or Cilium's LB
IPAM gives addresses, its pools, and why none of them serves this Service, or what Cilium says of it; on k3s the pods of
ServiceLB and what keeps them from the port.

# Confirm by hand
    kubectl describe svc -n NAMESPACE NAME          # events of the controller

# Fix
Look at the Service's events and at the log of the controller (cloud-controller-manager, MetalLB, kube-vip). On bare
metal one has to be installed; spec.loadBalancerClass must name one that runs.

# Example
A kubeadm cluster without any load balancer controller.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.provider_annotations import (
    METALLB_IPS,
    METALLB_POOL,
    METALLB_SHARED,
    SERVICE_LB_NAME,
    SERVICE_LB_NAMESPACE,
    uses_metallb,
)
from ktp.model.announcing import CILIUM_CLASSES, AddressPool, Provider, selectable_labels
from ktp.model.cluster import Condition, Pod, ip_of
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires on the fields alone."""
    service = case.service
    if service.type != "LoadBalancer" or service.ingress:
        return
    wanted = f"; spec.loadBalancerClass: {service.load_balancer_class}" if service.load_balancer_class else ""
    ports = ", ".join(str(p.node_port) for p in service.ports if p.node_port)
    for reason in (_by_service_lb, _by_cilium, _by_metallb, _by_class):
        why, proof = reason(case)
        if why:
            break
    yield CHECK.finding(
        f"{service.key} has no load-balancer address: no controller has given it one"
        + (f" (node ports: {ports})" if ports else "")
        + (f"; {why}" if why else ""),
        evidence=[
            field(
                f"Service {service.key}",
                f"spec.type: LoadBalancer{wanted}; status.loadBalancer.ingress: empty",
            ),
            *proof,
        ],
        fix=Fix(
            "see the Service's events and the load balancer controller's log",
            command=f"kubectl describe svc -n {service.namespace} {service.name}",
        ),
    )


def _by_service_lb(case: Case) -> tuple[str, list[Evidence]]:
    """Why the pods of k3s's ServiceLB, which take the Service's ports on the nodes, do not run; empty where they do.

    They have the Service's ports as hostPorts (k3s, pkg/cloudprovider/servicelb.go): one pod has a port of a node.
    """
    service, pods = case.service, case.snapshot.cluster.pods or ()
    mine = [
        p
        for p in pods
        if p.labels.get(SERVICE_LB_NAME) == service.name
        and p.labels.get(SERVICE_LB_NAMESPACE, service.namespace) == service.namespace
    ]
    if not mine or any(p.is_ready for p in mine):
        return "", []
    wanted = {(port.protocol, port.port) for port in service.ports}
    holders = sorted(
        f"{p.key} holds port {each.host_port}/{each.protocol}" + (f" of {p.node_name}" if p.node_name else "")
        for p in pods
        if p not in mine and p.phase == "Running"
        for each in p.ports
        if (each.protocol, each.host_port) in wanted
    )
    proof = [
        field(
            f"pod {p.key}",
            f"phase: {p.phase}" + "".join(f"; {c.type} {c.status}: {c.message}" for c in _unmet(p)),
        )
        for p in mine[:4]
    ]
    why = f"no pod of ServiceLB is ready ({listed(p.key for p in mine)})"
    return why + (f": {listed(holders)}" if holders else ""), proof


def _by_class(case: Case) -> tuple[str, list[Evidence]]:
    """Whether anything here serves the Service's loadBalancerClass; empty where it has none.

    Controllers that were not told to serve a class leave its Services alone (Kubernetes: "Specifying class of load
    balancer implementation"), and the field cannot be changed once it is set.
    """
    wanted = case.service.load_balancer_class
    if not wanted:
        return "", []
    served = sorted(
        service.key
        for service in case.snapshot.cluster.services.values()
        if service.load_balancer_class == wanted and service.ingress
    )
    why = f"only a controller of class {wanted} takes it"
    if served:
        return f"{why}, as it did {listed(served)}", [
            field(f"Service {served[0]}", f"spec.loadBalancerClass: {wanted}")
        ]
    if not case.snapshot.cluster.has_all("services"):
        return why, []
    return f"{why}, and no Service of that class has an address here", []


def _unmet(pod: Pod) -> list[Condition]:
    return [c for c in pod.conditions if c.type == "PodScheduled" and c.status != "True" and c.message]


def _by_metallb(case: Case) -> tuple[str, list[Evidence]]:
    """Why MetalLB, where it is there, can give this Service no address, and the proof; empty where that is not seen."""
    service, announcing = case.service, case.snapshot.cluster.announcing
    if announcing is None or Provider.METALLB not in announcing.pools_known:
        return "", []
    if service.load_balancer_class and not uses_metallb(service):
        return "", []
    pools = {pool.name: pool for pool in announcing.pools if pool.provider is Provider.METALLB}
    if not pools:
        return "MetalLB has no IPAddressPool", []
    found = [field(f"IPAddressPool {name}", _words(pool)) for name, pool in list(pools.items())[:6]]
    for key in METALLB_POOL:
        if (asked := service.annotations.get(key)) and asked not in pools:
            return f"it asks for the pool {asked}, and there is {listed(pools)}", [
                field(f"Service {service.key}", f"metadata.annotations: {key}={asked}"), *found,
            ]  # fmt: skip
    wanted = [service.load_balancer_ip or ""]
    wanted += [ip for key in METALLB_IPS for ip in service.annotations.get(key, "").split(",")]
    for text in filter(None, (each.strip() for each in wanted)):
        ip = ip_of(text)
        if ip is not None and not any(pool.holds(ip) for pool in pools.values()):
            return f"it asks for {text}, which is in no pool of MetalLB", found
        holder = ip is not None and _holder(case, text)
        if holder:
            return f"it asks for {text}, which {holder} has", found
    if any(service.annotations.get(key) for key in METALLB_POOL) or any(filter(None, wanted)):
        return "", []
    may = [
        pool
        for pool in pools.values()
        if pool.is_selective or not pool.namespaces or service.namespace in pool.namespaces
    ]
    if not may:
        return f"no pool of MetalLB serves the namespace {service.namespace}", found
    if not any(pool.auto_assign for pool in may):
        return "no pool of MetalLB gives addresses out by itself (autoAssign is false)", found
    return "", []


# What LB IPAM writes into a Service's status, now and before 1.16.
_IPAM_CONDITIONS = frozenset(("cilium.io/IPAMRequestSatisfied", "io.cilium/lb-ipam-request-satisfied"))


def _by_cilium(case: Case) -> tuple[str, list[Evidence]]:
    """Why Cilium's LB IPAM gives this Service no address: what it says of it, else what its pools tell."""
    service, announcing = case.service, case.snapshot.cluster.announcing
    last = [c for c in service.conditions if c.type in _IPAM_CONDITIONS][-1:]
    if last and last[0].status == "False":
        said = last[0].message or last[0].reason
        words = f"status.conditions: {last[0].type} False, {last[0].reason}"
        return f'Cilium says "{said}"', [field(f"Service {service.key}", words)]
    if announcing is None or Provider.CILIUM not in announcing.pools_known:
        return "", []
    if service.load_balancer_class and service.load_balancer_class not in CILIUM_CLASSES:
        return "", []
    pools = [pool for pool in announcing.pools if pool.provider is Provider.CILIUM]
    if not pools:
        # LB IPAM sleeps until there is a pool; only a class of its own says that it was meant.
        return ("Cilium has no CiliumLoadBalancerIPPool", []) if service.load_balancer_class else ("", [])
    found = [field(f"CiliumLoadBalancerIPPool {pool.name}", _words(pool)) for pool in pools[:6]]
    labels = selectable_labels(service.namespace, service.name, service.labels)
    mine = [pool for pool in pools if pool.services.selects(labels)]
    if not mine:
        return f"no pool of Cilium selects it ({listed(pool.name for pool in pools)})", found
    if all(pool.is_closed or pool.conflict for pool in mine):
        return (
            f"{listed(pool.name for pool in mine)}, of Cilium's pools those for it, give nothing out",
            found,
        )
    return "", []


def _holder(case: Case, ip: str) -> str:
    """Another Service that has the address and does not share it."""
    for other in case.snapshot.cluster.services.values():
        shared = any(key in other.annotations for key in METALLB_SHARED)
        if other.key != case.service.key and not shared and ip in {each.ip for each in other.ingress}:
            return other.key
    return ""


def _words(pool: AddressPool) -> str:
    ranges = ", ".join(f"{first}-{last}" for first, last in pool.ranges)
    only = f"; serviceAllocation.namespaces: {', '.join(pool.namespaces)}" if pool.namespaces else ""
    closed = "; disabled: true" if pool.is_closed else ""
    conflict = f"; PoolConflict: {pool.conflict}" if pool.conflict else ""
    chosen = f"; serviceSelector: {pool.services.text}" if pool.services.requirements else ""
    return f"addresses: {ranges}{'' if pool.auto_assign else '; autoAssign: false'}{only}{chosen}{closed}{conflict}"


CHECK = Check("KTP607", "LoadBalancerPending", Severity.WARNING, run)
