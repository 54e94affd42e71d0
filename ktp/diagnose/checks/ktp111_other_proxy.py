"""The Service carries the label that tells kube-proxy to leave it alone.

# What it means
The label service.kubernetes.io/service-proxy-name, with any value, hands the Service to another proxy.

# Why traffic fails
kube-proxy writes no rule for it on any node. Unless the proxy that the label names is there and serves it, cluster IP,
node ports and load-balancer IP answer nowhere.

# Evidence
The label, and what kube-proxy would do without it.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME --show-labels
    iptables-save | grep NAMESPACE/NAME         # on a node: nothing

# Fix
    kubectl label svc -n NAMESPACE NAME service.kubernetes.io/service-proxy-name-

# Example
A chart for a service mesh was tried out, and its label was left on the Service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case
from ktp.diagnose.changes import reprogrammed
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.kubeproxy.changes import with_service
from ktp.kubeproxy.frontends import SERVICE_PROXY_NAME_LABEL, FrontEndKind
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires where the label is there."""
    service = case.service
    value = service.labels.get(SERVICE_PROXY_NAME_LABEL)
    if value is None:
        return
    connects = _without_label(case)
    evidence = [field(f"Service {service.key}", f"metadata.labels: {SERVICE_PROXY_NAME_LABEL}={value}")]
    if connects:
        evidence.append(counterfactual(f"without the label, {connects}"))
    yield CHECK.finding(
        f'kube-proxy ignores {service.key}: its label {SERVICE_PROXY_NAME_LABEL} hands it to the proxy "{value}"',
        evidence=evidence,
        fix=Fix(
            "remove the label, if kube-proxy is to serve the Service",
            cost="two proxies serve it, where the other one is there",
            patch={"metadata": {"labels": {SERVICE_PROXY_NAME_LABEL: None}}},
            command=f"kubectl label svc -n {service.namespace} {service.name} {SERVICE_PROXY_NAME_LABEL}-",
            verified=bool(connects),
            outcome=connects,
        ),
    )


def _without_label(case: Case) -> str:
    """A front end that answers once the label is gone, in words; "" where there is none."""
    labels = {k: v for k, v in case.service.labels.items() if k != SERVICE_PROXY_NAME_LABEL}
    service = replace(case.service, labels=labels)
    cluster = with_service(case.snapshot.cluster, service)
    world = case.world("without the proxy label", lambda: reprogrammed(case.snapshot, cluster, service.key))
    if world is None:
        return ""
    for port in service.ports:
        for front_end in sorted(
            world.front_ends(service, port).programmed, key=lambda f: f.kind is FrontEndKind.CLUSTER_IP
        ):
            for node in case.nodes[:3]:
                for question in world.questions(service, front_end, node):
                    if world.cell(world.ask(service, port, question)).symptom is Symptom.CONNECTS:
                        return f"{question.client_name} reaches {question.front_end} on {node}"
    return ""


CHECK = Check("KTP111", "LeftToOtherProxy", Severity.WARNING, run)
