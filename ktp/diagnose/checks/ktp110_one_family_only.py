"""A dual-stack Service has endpoints of one address family only.

# What it means
The Service has cluster IPs of both families; its EndpointSlices list usable endpoints of one of them alone.

# Why traffic fails
kube-proxy serves each family by itself and never translates between them. In the family without endpoints it rejects
the traffic: "connection refused". A client that prefers IPv6 fails where IPv4 works.

# Evidence
The Service's families, the addresses of its pods, and that the cells connect with a pod that has both.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.ipFamilies} {.spec.clusterIPs}'
    kubectl get pods -n NAMESPACE -l SELECTOR -o jsonpath='{.items[*].status.podIPs}'

# Fix
Restart pods that are older than the cluster's second family, so that they get an address of each; give the nodes a
podCIDR of both; or make the Service SingleStack.

# Example
The cluster became dual-stack last month; pods that started before have an IPv4 address only.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Mended
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import family_without_endpoints, selected_pods, without_endpoints
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where one family of a dual-stack Service has usable endpoints and the other has none."""
    version = family_without_endpoints(case)
    if version is None:
        return
    cells = [e for e in without_endpoints(case) if e.front_end.ip_version == version]
    node = cells[0].node if cells else ""
    mended = (
        case.mended(cells, f"pod on {node}", lambda: pod_added(case, node), node) if cells else Mended((), ())
    )
    service = case.service
    pods = selected_pods(case) or []
    evidence = [
        field(f"Service {service.key}", f"spec.clusterIPs: {', '.join(service.cluster_ips)}"),
        field(f"EndpointSlices of {service.key}", f"no usable IPv{version} endpoint"),
        *(field(f"Pod {p.key}", f"status.podIPs: {', '.join(p.pod_ips)}") for p in pods[:3]),
    ]
    if mended:
        evidence.append(counterfactual(f"with a pod of both families on {node}, {mended[0].title} connects"))
    one = sum(1 for p in pods if len({":" in a for a in p.pod_ips}) == 1)
    who = (
        f"; {one} of {len(pods)} pods {'has' if one == 1 else 'have'} an address of one family only"
        if one
        else ""
    )
    yield CHECK.finding(
        f"{service.key} is dual-stack and has no IPv{version} endpoint: "
        f"IPv{version} clients are refused{who}",
        evidence=evidence,
        fixes=[
            Fix(
                f"give the pods an IPv{version} address (restart those that are older than the second family)",
                cost="a restart of the pods",
                cures=mended.cures() if mended else None,
            ),
            Fix(
                "make the Service SingleStack",
                cost=f"no IPv{version} address any more: clients use the other family at once"
                + (f" ({listed(service.ip_families)} today)" if service.ip_families else ""),
                patch={"spec": {"ipFamilyPolicy": "SingleStack"}},
            ),
        ],
        cells=cells,
        severity=Severity.ERROR if mended else Severity.WARNING,
    )


CHECK = Check("KTP110", "OneFamilyOnly", Severity.ERROR, run)
