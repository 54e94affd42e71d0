"""What the annotations of the larger providers say about which nodes (or pods) a load balancer sends traffic to.

Facts: the providers' public documentation of TKE, ACK, the AWS Load Balancer Controller, GKE, cloud-provider-azure,
cloud-provider-openstack (expose-applications-using-loadbalancer-type-service.md), hcloud-cloud-controller-manager
(internal/annotation), MetalLB, kube-vip (pkg/kubevip/annotations.go) and Cilium's LB IPAM. Values are compared as they
are written: providers read them case-sensitively.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from ktp.model.cluster import Service
from ktp.model.record import dataclass

TKE_BIND = "service.kubernetes.io/local-svc-only-bind-node-with-pod"
TKE_WEIGHT = "service.cloud.tencent.com/local-svc-weighted-balance"
TKE_DIRECT = "service.cloud.tencent.com/direct-access"
TKE_LABEL = "service.kubernetes.io/qcloud-loadbalancer-backends-label"
_BETA = "service.beta.kubernetes.io/"
_ACK = f"{_BETA}alibaba-cloud-loadbalancer-"
ACK_LABEL = f"{_ACK}backend-label"
ACK_SCHEDULER = f"{_ACK}scheduler"
ACK_UNSCHEDULED = f"{_ACK}remove-unscheduled-backend"
ACK_TYPE = f"{_BETA}backend-type"
AWS_TYPE = f"{_BETA}aws-load-balancer-type"
AWS_TARGET = f"{_BETA}aws-load-balancer-nlb-target-type"
AWS_LABELS = f"{_BETA}aws-load-balancer-target-node-labels"
AWS_CLASS = "service.k8s.aws/nlb"
GKE_WEIGHT = "networking.gke.io/weighted-load-balancing"
GKE_INTERNAL = "networking.gke.io/load-balancer-type"
GKE_RBS = "cloud.google.com/l4-rbs"
GKE_TIER = "cloud.google.com/network-tier"
GKE_NEG = "cloud.google.com/neg"
AZURE_INTERNAL = f"{_BETA}azure-load-balancer-internal"
AZURE_PROBE = f"{_BETA}azure-load-balancer-health-probe-protocol"
AZURE_PATH = f"{_BETA}azure-load-balancer-health-probe-request-path"
AZURE_FLOATING = f"{_BETA}azure-disable-load-balancer-floating-ip"
KUBE_VIP_HOST = "kube-vip.io/vipHost"  # the node that has the address
_OPENSTACK = "loadbalancer.openstack.org/"
OPENSTACK_MONITOR = f"{_OPENSTACK}enable-health-monitor"
_HETZNER = "load-balancer.hetzner.cloud/"
METALLB_SHARED = ("metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip")
# Labels of the pods of k3s's ServiceLB: whose they are.
SERVICE_LB_NAME = "svccontroller.k3s.cattle.io/svcname"
SERVICE_LB_NAMESPACE = "svccontroller.k3s.cattle.io/svcnamespace"
METALLB_POOL = ("metallb.io/address-pool", "metallb.universe.tf/address-pool")
METALLB_IPS = ("metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs")
_METALLB = ("metallb.io/", "metallb.universe.tf/")

_BOOLEAN = ("true", "false")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation: who reads it, which values it takes (none: any), what each value says."""

    provider: str
    key: str
    values: tuple[str, ...] = ()
    says: Mapping[str, str] = field(default_factory=dict)  # "*" for any value
    selects_nodes: bool = False


KNOWN: tuple[Annotation, ...] = (
    Annotation("TKE", TKE_BIND, _BOOLEAN, says={
        "true": "under Local only nodes that hold a pod are bound to the load balancer",
        "false": "every node is bound to the load balancer, also under Local those without a pod",
    }),
    Annotation("TKE", TKE_WEIGHT, _BOOLEAN, says={
        "true": "each node's weight is the number of its pods",
        "false": "all bound nodes have the same weight, whatever the number of their pods",
    }),
    Annotation("TKE", TKE_DIRECT, _BOOLEAN, says={
        "true": "the load balancer sends traffic to the pods directly, past node ports",
    }),
    Annotation("TKE", TKE_LABEL, selects_nodes=True, says={
        "*": "only nodes that this selector matches are bound to the load balancer",
    }),
    Annotation("ACK", ACK_LABEL, selects_nodes=True, says={
        "*": "only nodes with these labels are backends of the load balancer",
    }),
    Annotation("ACK", ACK_SCHEDULER, ("wrr", "wlc", "rr", "sch", "tch", "qch", "iqch"), says={
        "wrr": "connections go round the backends by their weights",
        "wlc": "connections go to the backend with the fewest for its weight",
        "rr": "connections go round the backends, whatever their weights",
        "sch": "a client's address always leads to the same backend",
    }),
    Annotation("ACK", ACK_UNSCHEDULED, ("on", "off"), says={
        "on": "cordoned nodes are taken out of the load balancer",
        "off": "cordoned nodes stay in the load balancer",
    }),
    Annotation("ACK", ACK_TYPE, ("eni", "ecs"), says={
        "eni": "the load balancer sends traffic to the pods directly, past node ports",
        "ecs": "the load balancer sends traffic to node ports",
    }),
    Annotation("AWS", AWS_TYPE, ("external", "nlb", "nlb-ip"), says={
        "external": "the AWS Load Balancer Controller makes a Network Load Balancer",
        "nlb": "the controller in the cloud provider makes a Network Load Balancer to node ports",
        "nlb-ip": "a Network Load Balancer sends traffic to the pods directly (an old spelling of external with "
        "target type ip)",
    }),
    Annotation("AWS", AWS_TARGET, ("instance", "ip"), says={
        "instance": "traffic goes to the node ports of all nodes; health checks tell which answer",
        "ip": "traffic goes to the pods directly, past node ports",
    }),
    Annotation("AWS", AWS_LABELS, selects_nodes=True, says={
        "*": "only nodes with these labels are targets (target type instance)",
    }),
    Annotation("GKE", GKE_WEIGHT, ("pods-per-node",), says={
        "pods-per-node": "each node's weight is the number of its serving pods",
    }),
    Annotation("GKE", GKE_INTERNAL, ("Internal",), says={
        "Internal": "an internal load balancer: clients of the VPC network only",
    }),
    Annotation("GKE", GKE_RBS, ("enabled",), says={
        "enabled": "a load balancer of the kind with backend services, chosen when the Service is made",
    }),
    Annotation("GKE", GKE_TIER, ("Standard", "Premium")),
    Annotation("GKE", GKE_NEG, says={"*": "Ingress and Gateway send traffic to the pods directly"}),
    Annotation("AKS", AZURE_INTERNAL, _BOOLEAN, says={
        "true": "an internal load balancer: clients of the virtual network only",
    }),
    Annotation("AKS", AZURE_PROBE, ("tcp", "http", "https", "Tcp", "Http", "Https"), says={
        "*": "the health probe asks by this protocol",
    }),
    Annotation("AKS", AZURE_PATH, says={"*": "the health probe asks for this path"}),
    Annotation("AKS", AZURE_FLOATING, _BOOLEAN, says={
        "true": "the load balancer dials node address and node port, not its own address: the nodes' rules for it "
        "are not met",
    }),
    Annotation("OpenStack", f"{_BETA}openstack-internal-load-balancer", _BOOLEAN, says={
        "true": "the load balancer gets no floating IP: clients of the cloud's own networks only",
    }),
    Annotation("OpenStack", OPENSTACK_MONITOR, _BOOLEAN, says={
        "true": "a health monitor takes nodes that do not answer out of the pool",
        "false": "no health monitor: every node stays in the pool, whether it answers or not",
    }),
    Annotation("OpenStack", f"{_OPENSTACK}proxy-protocol", says={
        "true": "the load balancer speaks the PROXY protocol, which the program in the pod must read",
    }),
    Annotation("OpenStack", f"{_OPENSTACK}node-selector", selects_nodes=True, says={
        "*": "only nodes with these labels are members of the pool",
    }),
    Annotation("Hetzner", f"{_HETZNER}node-selector", selects_nodes=True, says={
        "*": "only nodes that this selector matches are targets",
    }),
    Annotation("Hetzner", f"{_HETZNER}algorithm-type", ("round_robin", "least_connections"), says={
        "round_robin": "connections go round the targets",
        "least_connections": "connections go to the target with the fewest",
    }),
    Annotation("Hetzner", f"{_HETZNER}use-private-ip", _BOOLEAN, says={
        "true": "nodes are dialled at their private addresses",
        "false": "nodes are dialled at their public addresses",
    }),
    Annotation("Hetzner", f"{_HETZNER}disable-public-network", _BOOLEAN, says={
        "true": "the load balancer is in the private network only",
    }),
    Annotation("Hetzner", f"{_HETZNER}uses-proxyprotocol", _BOOLEAN, says={
        "true": "the load balancer speaks the PROXY protocol, which the program in the pod must read",
    }),
    Annotation("Hetzner", f"{_HETZNER}health-check-protocol", ("tcp", "http", "https"), says={
        "*": "the health check asks by this protocol",
    }),
    Annotation("kube-vip", "kube-vip.io/loadbalancerIPs", says={"*": "it asks for these addresses"}),
    Annotation("kube-vip", KUBE_VIP_HOST, says={"*": "this node took the address last"}),
    Annotation("kube-vip", "kube-vip.io/ignore", _BOOLEAN, says={"true": "kube-vip leaves the Service alone"}),
    Annotation("Cilium", "lbipam.cilium.io/ips", says={"*": "it asks LB IPAM for these addresses"}),
    Annotation("Cilium", "io.cilium/lb-ipam-ips", says={"*": "it asks LB IPAM for these addresses"}),
    Annotation("Cilium", "lbipam.cilium.io/sharing-key", says={
        "*": "Services with the same key share their addresses",
    }),
)  # fmt: skip
_BY_KEY = {a.key: a for a in KNOWN}


def known_annotations(service: Service) -> Iterator[tuple[Annotation, str]]:
    """The annotations of a Service that are in the table, with their values; ACK's old spelling counts."""
    for key, value in service.annotations.items():
        found = _BY_KEY.get(key.replace("/alicloud-loadbalancer-", "/alibaba-cloud-loadbalancer-"))
        if found is not None:
            yield found, value


def uses_metallb(service: Service) -> bool:
    """Whether the Service carries annotations or a class of MetalLB's."""
    return any(k.startswith(_METALLB) for k in service.annotations) or "metallb" in (
        service.load_balancer_class or ""
    )


def direct_to_pods(service: Service) -> tuple[str, str, str] | None:
    """(annotation, value, provider) that makes the load balancer send traffic to the pods' own addresses."""
    for key, value, provider in (
        (TKE_DIRECT, "true", "TKE"),
        (ACK_TYPE, "eni", "ACK"),
        (AWS_TARGET, "ip", "AWS"),
        (AWS_TYPE, "nlb-ip", "AWS"),
    ):
        if service.annotations.get(key) == value:
            if key == AWS_TARGET and not _is_of_aws_controller(service):
                continue
            return key, value, provider
    return None


def _is_of_aws_controller(service: Service) -> bool:
    return (
        service.annotations.get(AWS_TYPE) in ("external", "nlb-ip")
        or service.load_balancer_class == AWS_CLASS
    )


def _neg_is_broken(service: Service) -> bool:
    try:
        return not isinstance(json.loads(service.annotations.get(GKE_NEG, "{}")), dict)
    except ValueError:
        return True


@dataclass(frozen=True, slots=True)
class Conflict:
    """Annotations, or an annotation and a field, that do not go together."""

    key: str
    holds: Callable[[Service], bool]
    words: str
    cure: str


def _is(key: str, *values: str) -> Callable[[Service], bool]:
    return lambda s: s.annotations.get(key) in values if values else key in s.annotations


def _local(service: Service) -> bool:
    return service.external_traffic_policy == "Local"


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        TKE_WEIGHT,
        lambda s: _is(TKE_WEIGHT, "true")(s) and not _is(TKE_BIND, "true")(s),
        f"works only together with {TKE_BIND}: true; without it the weights are not set",
        f'set {TKE_BIND}: "true" as well',
    ),
    Conflict(
        TKE_BIND,
        lambda s: _is(TKE_BIND, "true")(s) and not _local(s),
        "has an effect with externalTrafficPolicy Local only; the policy is Cluster",
        "set externalTrafficPolicy: Local, or remove the annotation",
    ),
    Conflict(
        TKE_DIRECT,
        lambda s: (
            _is(TKE_DIRECT, "true")(s)
            and (_is(TKE_LABEL)(s) or _is(TKE_BIND, "true")(s) or _is(TKE_WEIGHT, "true")(s))
        ),
        "binds pods, so that the annotations that choose and weigh nodes have no effect",
        "remove the one or the others",
    ),
    Conflict(
        AWS_TARGET,
        lambda s: _is(AWS_TARGET)(s) and not _is_of_aws_controller(s),
        f"is read by the AWS Load Balancer Controller only, which takes Services with {AWS_TYPE}: external "
        f"or loadBalancerClass {AWS_CLASS}; this one it does not take",
        f"set {AWS_TYPE}: external when the Service is made (it must not be changed later)",
    ),
    Conflict(
        AWS_LABELS,
        lambda s: _is(AWS_LABELS)(s) and direct_to_pods(s) is not None,
        "chooses nodes, and the load balancer's targets are pods: it has no effect",
        "remove it, or use target type instance",
    ),
    Conflict(
        AWS_TARGET,
        lambda s: _is(AWS_TARGET, "instance")(s) and not any(p.node_port for p in s.ports),
        "needs node ports, and the Service has none (allocateLoadBalancerNodePorts is false): the load "
        "balancer cannot be made",
        "use target type ip, or give the ports node ports",
    ),
    Conflict(
        GKE_WEIGHT,
        lambda s: _is(GKE_WEIGHT, "pods-per-node")(s) and not _local(s),
        "works with externalTrafficPolicy Local only; the policy is Cluster",
        "set externalTrafficPolicy: Local, or remove the annotation",
    ),
    Conflict(
        GKE_NEG,
        lambda s: _is(GKE_NEG)(s) and _neg_is_broken(s),
        "is no JSON object, as it must be",
        """write for instance '{"ingress": true}'""",
    ),
    Conflict(
        AZURE_PATH,
        lambda s: _is(AZURE_PATH)(s) and _is(AZURE_PROBE, "tcp", "Tcp")(s),
        f"has no effect with {AZURE_PROBE}: tcp",
        "set the protocol to http or https, or remove the path",
    ),
    Conflict(
        OPENSTACK_MONITOR,
        lambda s: _is(OPENSTACK_MONITOR, "false")(s) and _local(s),
        "leaves nodes without a pod in the load balancer's pool: policy Local needs a health monitor, to find "
        "the others",
        f'set {OPENSTACK_MONITOR}: "true"',
    ),
)

_IN = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")


def selects(selector: str, labels: Mapping[str, str]) -> bool | None:
    """Whether a label selector matches; None where its syntax is not understood."""
    for raw in re.split(r",(?![^(]*\))", selector):
        part = raw.strip()
        if not part:
            continue
        found = _IN.match(part)
        if found is not None:
            values = {v.strip() for v in found.group(3).split(",")}
            if (labels.get(found.group(1)) in values) is (found.group(2) == "notin"):
                return False
        elif "!=" in part:
            key, _, value = part.partition("!=")
            if labels.get(key.strip()) == value.strip():
                return False
        elif "=" in part:
            key, _, value = part.replace("==", "=").partition("=")
            if labels.get(key.strip()) != value.strip():
                return False
        elif " " in part:
            return None
        elif part.startswith("!"):
            if part[1:] in labels:
                return False
        elif part not in labels:
            return False
    return True
