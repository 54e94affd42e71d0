"""What the checks on kube-proxy itself share: whether its rules are on a node, and what is known of its pod."""

from __future__ import annotations

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import field
from ktp.diagnose.checks.endpoints_common import why_not_ready
from ktp.model.diagnosis import Evidence
from ktp.model.host import NodeState

_HEALTHZ = 10256


def kube_proxy_evidence(case: Case, node: str) -> list[Evidence]:
    """What shows whether kube-proxy runs on the node: its pod's state, and its healthz socket."""
    out = [
        field(f"Pod {pod.key} on {node}", why_not_ready(pod))
        for pod in case.examiner.pods.kube_proxies(node)
        if not pod.is_ready
    ]
    state = case.state(node)
    if state is not None and state.sockets is not None:
        port = _healthz_port(state)
        if port and not any(s.protocol == "tcp" and s.port == port for s in state.sockets):
            out.append(
                Evidence("socket", f"{node} ss -lntu", f"nothing listens on kube-proxy's healthz port {port}")
            )
    return out


def _healthz_port(state: NodeState) -> int:
    """The port of healthzBindAddress; 10256 where it is not set, 0 where it is turned off or cannot be read."""
    address = state.kube_proxy.healthz_bind_address if state.kube_proxy is not None else None
    if address is None:
        return _HEALTHZ if state.kube_proxy is None else 0
    _, colon, port = address.rpartition(":")
    return int(port) if colon and port.isdigit() else (_HEALTHZ if address else 0)


def restart_command(node: str) -> str:
    """What restarts kube-proxy on a node of a kubeadm cluster."""
    return f"kubectl delete pod -n kube-system -l k8s-app=kube-proxy --field-selector spec.nodeName={node}"
