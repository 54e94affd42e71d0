"""What the provider's annotations say about the nodes that get traffic, and where they contradict themselves.

# What it means
The Service carries annotations by which a cloud (TKE, ACK, AWS, GKE, AKS) or MetalLB decides which nodes or pods its
load balancer sends traffic to, and with which weight. As information, ktp says what they ask for; a value that the
provider does not know, a selector that matches no node, and annotations that work only together are warnings.

# Why traffic fails
An unknown value is ignored in silence, and the default applies. A node selector that matches no node empties the load
balancer; one that leaves out nodes with pods starves those pods under Local. Under Local a load balancer that binds
every node depends on its health checks to find those that hold a pod.

# Evidence
The annotations, the policy, and the nodes that a selector matches beside those that hold endpoints.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.metadata.annotations}'
    kubectl get nodes -l SELECTOR

# Fix
Correct the value, or set what belongs together; see the provider's documentation for the version that you run.

# Example
TKE: local-svc-weighted-balance is "true" and local-svc-only-bind-node-with-pod is not set, so that nothing is weighed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import holders
from ktp.diagnose.checks.provider_annotations import (
    CONFLICTS,
    METALLB_SHARED,
    TKE_BIND,
    Annotation,
    known_annotations,
    selects,
    uses_metallb,
)
from ktp.model.cluster import Service
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires on annotations of the providers that ktp knows."""
    service = case.service
    found = list(known_annotations(service))
    for annotation, value in found:
        if annotation.values and value not in annotation.values:
            yield CHECK.finding(
                f"{annotation.provider} does not know the value {value!r} of {annotation.key}: it takes "
                f"{listed(annotation.values, 8)}",
                evidence=[_evidence(service, annotation.key, value)],
                fix=Fix(f"write one of {listed(annotation.values, 8)}"),
                severity=Severity.WARNING,
            )
        elif annotation.selects_nodes:
            yield from _selector(case, annotation, value)
    for conflict in CONFLICTS:
        if conflict.holds(service):
            yield CHECK.finding(
                f"{conflict.key} on {service.key} {conflict.words}",
                evidence=[
                    *(_evidence(service, a.key, v) for a, v in found),
                    field(
                        f"Service {service.key}",
                        f"spec.externalTrafficPolicy: {service.external_traffic_policy}",
                    ),
                ],
                fix=Fix(conflict.cure),
                severity=Severity.WARNING,
            )
    yield from _summaries(case, found)
    if uses_metallb(service):
        yield from _metallb(case)


def _evidence(service: Service, key: str, value: str) -> Evidence:
    return field(f"Service {service.key}", f"metadata.annotations: {key}={value}")


def _selector(case: Case, annotation: Annotation, value: str) -> Iterable[Finding]:
    """A selector of nodes that matches none, or under Local leaves out some that hold endpoints."""
    known = case.snapshot.cluster.nodes
    if not known or not case.snapshot.cluster.has_all("nodes") or case.service.type != "LoadBalancer":
        return
    answers = {name: selects(value, node.labels) for name, node in known.items()}
    if any(a is None for a in answers.values()):
        return
    chosen = [n for n, a in answers.items() if a]
    left_out = sorted(n for n in holders(case) if n in answers and not answers[n])
    if chosen and (case.service.external_traffic_policy != "Local" or not left_out):
        return
    effect = (
        f"matches no node: {annotation.provider} empties the load balancer"
        if not chosen
        else f"leaves out {listed(left_out)}, which hold{'s' * (len(left_out) == 1)} endpoints: under "
        f"Local they get no traffic"
    )
    yield CHECK.finding(
        f"{annotation.key} of {case.service.key} ({value}) {effect}",
        nodes=[] if not chosen else left_out,
        evidence=[
            _evidence(case.service, annotation.key, value),
            field("Nodes that it matches", listed(chosen, 8) or "none"),
        ],
        fix=Fix(
            "label the nodes so, or correct the selector",
            cost="these nodes get traffic of the load balancer",
        ),
        severity=Severity.ERROR if not chosen else Severity.WARNING,
    )


def _summaries(case: Case, found: list[tuple[Annotation, str]]) -> Iterable[Finding]:
    """One finding a provider: what the annotations with known values ask for."""
    service = case.service
    for provider in dict.fromkeys(a.provider for a, _ in found):
        said = [
            (a, v, words)
            for a, v in found
            if a.provider == provider
            and (not a.values or v in a.values)
            and (words := a.says.get(v) or a.says.get("*"))
        ]
        if not said:
            continue
        text = "; ".join(words for _, _, words in said)
        if service.type != "LoadBalancer":
            text = f"they act on load balancers, and do nothing on a Service of type {service.type}"
        elif (
            provider == "TKE"
            and service.external_traffic_policy == "Local"
            and service.annotations.get(TKE_BIND) != "true"
        ):
            text += "; under Local its health check has to find the nodes that hold a pod"
        elif provider == "ACK" and service.external_traffic_policy == "Local":
            text += "; under Local only nodes with pods are backends, weighed by their number"
        yield CHECK.finding(
            f"{provider}'s annotations on {service.key}: {text}",
            evidence=[_evidence(service, a.key, v) for a, v, _ in said],
        )


def _metallb(case: Case) -> Iterable[Finding]:
    service = case.service
    shared = next((service.annotations[k] for k in METALLB_SHARED if k in service.annotations), None)
    mine = {i.ip for i in service.ingress if i.ip}
    for other in case.snapshot.cluster.services.values() if shared is not None else ():
        if other.key == service.key or not any(other.annotations.get(k) == shared for k in METALLB_SHARED):
            continue
        if {"Local"} & {
            service.external_traffic_policy,
            other.external_traffic_policy,
        } and other.selector != service.selector:
            together = mine & {i.ip for i in other.ingress if i.ip}
            yield CHECK.finding(
                f"{service.key} and {other.key} ask MetalLB to share an address under policy Local with "
                f"different selectors: "
                "MetalLB shares one only if both have policy Cluster or the same pods"
                + (f" (they share {listed(sorted(together))} now)" if together else ""),
                evidence=[
                    *(
                        _evidence(service, k, shared or "")
                        for k in METALLB_SHARED
                        if k in service.annotations
                    ),
                    field(
                        f"Service {other.key}", f"spec.externalTrafficPolicy: {other.external_traffic_policy}"
                    ),
                ],
                fix=Fix("give each Service an address of its own", cost="one address more"),
                severity=Severity.WARNING,
            )
    if service.external_traffic_policy != "Local":
        text = (
            "in L2 mode one node announces the address and passes traffic on to all pods; in BGP mode "
            "every node does"
        )
    else:
        held = sorted(holders(case))
        text = (
            "under Local only nodes that hold a usable endpoint announce it "
            f"({listed(held) or 'none does now'}): in L2 mode one of them takes all traffic for its own "
            f"pods, in BGP mode the "
            "router spreads over them, each getting the same however many pods it holds"
        )
    yield CHECK.finding(
        f"MetalLB announces the address of {service.key}: {text}",
        nodes=[],
        evidence=[
            *(
                _evidence(service, k, v)
                for k, v in service.annotations.items()
                if k.startswith(("metallb.io/", "metallb.universe.tf/"))
            ),
            *(
                [field(f"Service {service.key}", f"spec.loadBalancerClass: {service.load_balancer_class}")]
                if service.load_balancer_class
                else []
            ),
        ],
    )


CHECK = Check("KTP606", "ProviderAnnotations", Severity.INFO, run)
