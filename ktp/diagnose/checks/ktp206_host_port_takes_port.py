"""A pod's hostPort takes the node port.

# What it means
A pod on the node asks for a hostPort of the same number and protocol as the Service's node port. Nothing in Kubernetes
prevents that.

# Why traffic fails
The CNI's portmap plugin translates the port to the pod. Whichever rule of nat PREROUTING comes first wins: before
kube-proxy's, clients of the Service get the wrong pod; after it, clients of the hostPort do.

# Evidence
The pod's hostPort, the rule that translates, and where the packets go without it.

# Confirm by hand
    kubectl get pods -A -o custom-columns='POD:.metadata.name,PORTS:.spec.containers[*].ports[*].hostPort'
    iptables -t nat -S | grep -n 'CNI-\\|KUBE-SERVICES'

# Fix
Give the pod another hostPort, outside 30000 to 32767, or the Service another node port.

# Example
An ingress controller's DaemonSet with hostPort 30080, and a Service that was given node port 30080.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.diagnose.checks.ktp405_foreign_translation import (
    foreign_translations,
    led_to_service,
    pod_of_host_port,
)
from ktp.diagnose.checks.rule_common import RuleInPlace
from ktp.model.cluster import ContainerPort, Pod
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a hostPort is a node port of the Service: an error where its rule comes first."""
    taken: set[str] = set()
    for rule, entries in foreign_translations(case).items():
        found = [(e, p) for e in entries if (p := pod_of_host_port(case, rule, e)) is not None]
        if not found:
            continue
        mended = led_to_service(case, rule, [e for e, _ in found])
        if not mended:
            continue
        pod, port = found[0][1]
        taken.add(pod.key)
        yield _finding(pod, port, rule, mended)
    ports = {(p.node_port, p.protocol.upper()) for p in case.service.ports if p.node_port}
    nodes = frozenset(case.every_node)
    for pod in case.snapshot.cluster.pods or ():
        if (
            pod.key in taken
            or pod.host_network
            or pod.node_name not in nodes
            or pod.phase in ("Succeeded", "Failed")
        ):
            continue
        for port in pod.ports:
            if (port.host_port, port.protocol.upper()) in ports:
                yield CHECK.finding(
                    f"pod {pod.key} asks for hostPort {port.host_port}/{port.protocol} on {pod.node_name}, "
                    f"a node port of "
                    f"{case.service.key}: only one of the two can have it there",
                    node=pod.node_name,
                    evidence=[
                        field(
                            f"Pod {pod.key}", f"containers[{port.container}].ports: hostPort {port.host_port}"
                        )
                    ],
                    fix=Fix(
                        "give the pod another hostPort, or the Service another node port",
                        cost="a restart of the pod",
                    ),
                    severity=Severity.WARNING,
                )


def _finding(pod: Pod, port: ContainerPort, rule: RuleInPlace, mended: list[Entry]) -> Finding:
    first = mended[0]
    return CHECK.finding(
        f"hostPort {port.host_port} of pod {pod.key} takes {first.title} on {rule.node}: its rule comes "
        f"before kube-proxy's",
        node=rule.node,
        evidence=[
            field(
                f"Pod {pod.key} on {rule.node}",
                f"containers[{port.container}].ports: hostPort {port.host_port}",
            ),
            rule.evidence(),
            counterfactual(
                f"without this rule, {first.title} on {first.node} leads to the Service's endpoints"
            ),
        ],
        fix=Fix(
            "give the pod another hostPort, or the Service another node port",
            cost="clients of the hostPort must use the new number",
            verified=True,
            outcome=f"without the rule {len(mended)} ways in lead to the Service",
        ),
        cells=mended,
    )


CHECK = Check("KTP206", "HostPortTakesPort", Severity.ERROR, run)
