"""An endpoint has no nodeName, so a Local policy never uses it.

# What it means
externalTrafficPolicy or internalTrafficPolicy is Local, and an endpoint of the Service does not say on which node it
runs.

# Why traffic fails
kube-proxy takes an endpoint for local where its nodeName is the node's own name. One without a nodeName is local
nowhere: under Local no node hands traffic to it.

# Evidence
The EndpointSlice's endpoint, the node that holds it as far as the Pod or the node's podCIDR tell, and that the cells of
this node connect once the nodeName is there.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o yaml | grep -A8 addresses

# Fix
Write nodeName into the slice (made by hand, or by an operator of yours), or use policy Cluster.

# Example
An operator mirrors pods of another network into EndpointSlices and leaves nodeName out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

from ktp.diagnose.case import Case, Mended
from ktp.diagnose.changes import slices_changed
from ktp.diagnose.checks.base import Check, field, listed, mending
from ktp.model.cluster import Endpoint, EndpointSlice, ip_of
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a Local policy meets usable endpoints without nodeName."""
    service = case.service
    if "Local" not in (service.external_traffic_policy, service.internal_traffic_policy):
        return
    lost = [
        e
        for s in case.examiner.slices_of(service)
        for e in s.endpoints
        if e.node_name is None and e.addresses and (e.is_ready or e.is_serving)
    ]
    if not lost:
        return
    homes = {e.addresses[0]: home for e in lost if (home := _home(case, e)) is not None}

    def named(one: EndpointSlice) -> EndpointSlice:
        return replace(one, endpoints=tuple(_with_home(e, homes) for e in one.endpoints))

    failing = [e for e in case.failing() if e.node in homes.values()]
    mended = (
        case.mended(failing, "nodeName written", lambda: slices_changed(case, named))
        if homes
        else Mended((), ())
    )
    policy = (
        "externalTrafficPolicy" if service.external_traffic_policy == "Local" else "internalTrafficPolicy"
    )
    evidence = [
        field(f"EndpointSlices of {service.key}", f"no nodeName: {listed(e.addresses[0] for e in lost)}"),
        field(f"Service {service.key}", f"spec.{policy}: Local"),
        *(field("Pods and podCIDRs", f"{address} is on {home}") for address, home in list(homes.items())[:3]),
    ]
    evidence += mending("with nodeName", mended)
    yield CHECK.finding(
        f"{listed(e.addresses[0] for e in lost)} of {service.key} {'has' if len(lost) == 1 else 'have'} no nodeName: "
        f"{policy} Local never uses {'it' if len(lost) == 1 else 'them'}",
        nodes=list(dict.fromkeys(e.node for e in mended)),
        evidence=evidence,
        fixes=[
            Fix("write nodeName into the EndpointSlice", cures=mended.cures() if mended else None),
            Fix(
                f"set {policy}: Cluster",
                cost="the pods see a node's address instead of the client's, and packets may take one hop more",
                patch={"spec": {policy: "Cluster"}},
            ),
        ],
        cells=mended,
        severity=Severity.ERROR if mended else Severity.WARNING,
    )


def _with_home(endpoint: Endpoint, homes: dict[str, str]) -> Endpoint:
    home = homes.get(endpoint.addresses[0]) if endpoint.addresses and endpoint.node_name is None else None
    return endpoint if home is None else replace(endpoint, node_name=home)


def _home(case: Case, endpoint: Endpoint) -> str | None:
    """The node that the endpoint's Pod, or else its address, is on."""
    cluster = case.snapshot.cluster
    for pod in cluster.pods or ():
        if pod.node_name is not None and not pod.host_network and endpoint.addresses[0] in pod.pod_ips:
            return pod.node_name
    ip = ip_of(endpoint.addresses[0])
    for node in (cluster.nodes or {}).values():
        for text in node.pod_cidrs:
            network = ip_network(text, strict=False)
            if ip is not None and ip.version == network.version and ip in network:
                return node.name
    return None


CHECK = Check("KTP106", "EndpointWithoutNode", Severity.WARNING, run)
