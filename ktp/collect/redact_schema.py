"""What redaction keeps: words that every cluster has, and the fields of objects with what becomes of each.

Tables only; ktp.collect.redact reads them. A rule is "keep", or the name of what is done with a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ktp.model.announcing import (
    BGP,
    CILIUM_BGP,
    CILIUM_L2,
    CILIUM_PEERING,
    CILIUM_POOLS,
    L2,
    L2_STATUSES,
    LEASES,
    POOLS,
    RESOURCES,
)

Schema = Mapping[str, Any]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _kept(text: str) -> dict[str, str]:
    """Fields that stay as they are."""
    return dict.fromkeys(text.split(), "keep")


# Names that every cluster has; they tell nothing and other programs look for them.
PUBLIC_NAMES = _word_set(
    """default kube-system kube-public kube-node-lease kubernetes kube-dns coredns kube-proxy kube-router
    metrics-server calico calico-system calico-node calico-kube-controllers cilium cilium-agent cilium-
    operator canal flannel kube-flannel kube-flannel-ds aws-node azure-cns weave-net antrea-agent ovn-
    kubernetes metallb metallb-system ingress-nginx istio-system localhost local cluster svc internal
    kube-proxy-windows kube-proxy-ds kube-apiserver apiserver component"""
)
PUBLIC_PORT_NAMES = _word_set(
    """http https http2 grpc dns dns-tcp tcp udp sctp metrics web ssh mysql redis smtp ldap ftp amqp admin
    api health healthz probe status port main default http-metrics prometheus webhook grpc-web http-web
    tls peer client server postgres postgresql mongodb kafka nfs ws wss https-webhook"""
)
# Domains of labels and annotations that are part of a public API.
PUBLIC_DOMAINS = (
    "kubernetes.io", "k8s.io", "metallb.universe.tf", "metallb.io", "cilium.io", "projectcalico.org",
    "openshift.io", "kube-vip.io",
)  # fmt: skip
PUBLIC_KEYS = frozenset(
    (
        "k8s-app", "component", "pod-template-hash", "controller-revision-hash",
        # of Cilium's selectors of Services
        "io.kubernetes.service.namespace", "io.kubernetes.service.name",
    )
)  # fmt: skip
KEPT_LABEL_VALUES = frozenset(
    ("kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch")
)
PUBLIC_VALUES = frozenset(("", "true", "false", "auto", "enabled", "disabled", "none", "local", "cluster"))
CONDITIONS = _word_set(
    """Ready ContainersReady PodScheduled Initialized PodReadyToStartContainers DisruptionTarget
    MemoryPressure DiskPressure PIDPressure NetworkUnavailable"""
)
# Words of the comments that kube-proxy, the kubelet and network plugins write, and of conditions' messages.
VOCABULARY = _word_set(
    """a abolish accept accepted accepting active addresses adopt affinity all allow allowed an and any are
    as at balancer balancing be been block by cali calico chain chains check cidr cilium cluster
    clusterip clusterips cni condition conditions connections conntrack container containers dest
    destination destinations dnat dns docker drop dropped dropping endpoint endpoints established
    exceeded exists external externalip externally fail failed failing filter firewall flannel flanneld
    for forward forwarding from has have health host hostport hostports if in incoming interface
    internal invalid ip ipam ips ipvs is jump kubelet kubernetes last lb loadbalancer
    loadbalancersourceranges local localnet loopback mark marked marking masq masquerade matched
    metadata must namespace nat network no node nodeport nodeports nodes not note of on only or other
    outgoing packets pod pods policies policy port portals ports posting postrouting prerouting preserve
    probe protect proxy purpose ready redirect reach reject rejected related requiring return route
    router rule rules running service services set short-circuit snat source start starting state static
    status subject such table tcp that the their this to traffic trying udp unknown unready unreachable
    used via vip visible vmap vxlan wildcard will with local-with-fallback externally-visible subset
    kube-dns loadbalancerip hairpin spec kube-firewall"""
)
FREE_TEXT = frozenset(
    ("--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--label")
)
NAMED = frozenset(("--name", "--hashlimit-name", "--nfacct-name", "--led-trigger-id"))
SET_OPTIONS = frozenset(("--match-set", "--add-set", "--del-set", "--map-set"))
INTERFACES = frozenset(
    (
        "-i",
        "-o",
        "--in-interface",
        "--out-interface",
        "--physdev-in",
        "--physdev-out",
        "--oif",
        "--gateway-dev",
    )
)
ADDRESSES = frozenset(("-s", "-d", "--source", "--destination", "--src", "--dst"))
BUILT_IN_CHAINS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "BROUTING"))
PUBLIC_CHAIN = re.compile(
    r"(?:KUBE-|cali-|CILIUM_|OLD_CILIUM_|CNI-|FLANNEL-|DOCKER|ufw6?-|f2b-|LIBVIRT_|WEAVE|ANTREA-|AWS-|AZURE|IP-MASQ"
    r"|OVN-KUBE-|INPUT_|FWD[IO]?_|FORWARD_|OUTPUT_|PRE_|POST_|IN_|SERVICE-|NETAVARK)"
)
PUBLIC_SET = re.compile(r"(?:KUBE-|kube-router-|cali|cilium_|weave-|ANTREA-|f2b-|docker-)")
PUBLIC_NFT_NAMES = _word_set(
    """filter nat mangle raw security kube-proxy inet firewalld docker-bridges services masquerading
    reject-chain cluster-ips nodeport-ips no-endpoint-services no-endpoint-nodeports firewall-ips
    service-ips service-nodeports firewall-check cluster-ips-check nodeport-endpoints-check service-
    endpoints-check hairpin-connections filter-prerouting filter-prerouting-pre-dnat filter-output-pre-
    dnat filter-input filter-forward filter-output filter-output-post-dnat nat-prerouting nat-output
    nat-postrouting mark-for-masquerade input forward output prerouting postrouting ingress egress
    firewall firewall-allow firewall-allow-check"""
)

METADATA_TIMES = {
    "creationTimestamp": "keep",
    "deletionTimestamp": "keep",
    "deletionGracePeriodSeconds": "keep",
}
TARGET = {"kind": "keep", "namespace": "name:namespace", "name": "name:pod"}
CONDITION = {
    "type": "condition", "status": "keep", "reason": "keep", "message": "text", "lastTransitionTime": "keep",
    "lastProbeTime": "keep", "lastHeartbeatTime": "keep",
}  # fmt: skip
CONTAINER_STATE = {
    "waiting": {"reason": "keep"}, "running": {"startedAt": "keep"},
    "terminated": {"reason": "keep", "exitCode": "keep", "signal": "keep", "startedAt": "keep", "finishedAt": "keep"},
}  # fmt: skip
CONTAINER_STATUS = {
    "name": "name:container", "ready": "keep", "started": "keep", "restartCount": "keep", "state": CONTAINER_STATE,
    "lastState": CONTAINER_STATE, "image": "image",
}  # fmt: skip
PROBE_TIMES = _kept("""initialDelaySeconds periodSeconds timeoutSeconds successThreshold failureThreshold""")
PROBE = {
    **PROBE_TIMES,
    "httpGet": {"path": "path", "port": "port", "scheme": "keep", "host": "host"},
    "tcpSocket": {"port": "port", "host": "host"},
    "grpc": {"port": "port"},
    "exec": {"command": "command"},
}
CONTAINER = {
    "name": "name:container", "image": "image", "restartPolicy": "keep", "readinessProbe": PROBE,
    "ports": {
        "name": "port", "containerPort": "keep", "protocol": "keep", "hostPort": "keep", "hostIP": "address",
    },
}  # fmt: skip
SUBSET_ADDRESS = {"ip": "address", "nodeName": "name:node", "hostname": "name:pod", "targetRef": TARGET}
PORT = {"name": "port", "port": "keep", "protocol": "keep", "appProtocol": "key"}
KINDS: dict[str, Schema] = {
    "Service": {
        "spec": {
            "type": "keep", "clusterIP": "address", "clusterIPs": "address", "externalIPs": "address",
            "ports": {**PORT, "targetPort": "port", "nodePort": "keep"}, "selector": "labels",
            "externalTrafficPolicy": "keep", "internalTrafficPolicy": "keep", "sessionAffinity": "keep",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": "keep"}}, "healthCheckNodePort": "keep",
            "loadBalancerIP": "address", "loadBalancerSourceRanges": "address", "loadBalancerClass": "key",
            "allocateLoadBalancerNodePorts": "keep", "publishNotReadyAddresses": "keep", "ipFamilies": "keep",
            "ipFamilyPolicy": "keep", "trafficDistribution": "keep", "externalName": "host",
        },
        "status": {
            "loadBalancer": {"ingress": {"ip": "address", "hostname": "host", "ipMode": "keep"}},
            "conditions": CONDITION,
        },
    },
    "EndpointSlice": {
        "addressType": "keep",
        "ports": PORT,
        "endpoints": {
            "addresses": "address", "conditions": {"ready": "keep", "serving": "keep", "terminating": "keep"},
            "nodeName": "name:node", "zone": "name:zone", "hostname": "name:pod", "targetRef": TARGET,
            "hints": {"forZones": {"name": "name:zone"}, "forNodes": {"name": "name:node"}},
            "topology": "labels", "deprecatedTopology": "labels",
        },
    },
    "Endpoints": {
        "subsets": {"addresses": SUBSET_ADDRESS, "notReadyAddresses": SUBSET_ADDRESS, "ports": PORT},
    },
    "Pod": {
        "spec": {
            "nodeName": "name:node", "hostNetwork": "keep", "restartPolicy": "keep", "nodeSelector": "labels",
            "terminationGracePeriodSeconds": "keep", "containers": CONTAINER, "initContainers": CONTAINER,
            "readinessGates": {"conditionType": "condition"}, "hostname": "name:pod", "subdomain": "name:service",
        },
        "status": {
            "phase": "keep", "reason": "keep", "qosClass": "keep", "startTime": "keep", "podIP": "address",
            "podIPs": {"ip": "address"}, "hostIP": "address", "hostIPs": {"ip": "address"},
            "conditions": CONDITION, "containerStatuses": CONTAINER_STATUS,
            "initContainerStatuses": CONTAINER_STATUS,
        },
    },
    "Node": {
        "spec": {
            "podCIDR": "address", "podCIDRs": "address", "providerID": "provider", "unschedulable": "keep",
            "taints": {"key": "key", "value": "value", "effect": "keep", "timeAdded": "keep"},
        },
        "status": {
            "addresses": {"type": "keep", "address": "address"}, "conditions": CONDITION,
            "nodeInfo": _kept(
        """kubeProxyVersion kubeletVersion kernelVersion osImage operatingSystem architecture
        containerRuntimeVersion"""
    ),
        },
    },
}  # fmt: skip
# Selectors of labels, and the kinds that tell who may connect and who announces an address.
SELECTOR: Schema = {
    "matchLabels": "labels",
    "matchExpressions": {"key": "key", "operator": "keep", "values": "value"},
}
_PEER: Schema = {
    "podSelector": SELECTOR, "namespaceSelector": SELECTOR, "ipBlock": {"cidr": "address", "except": "address"},
}  # fmt: skip
_POLICY_PORT: Schema = {"protocol": "keep", "port": "port", "endPort": "keep"}
_ADVERTISED: Schema = {
    "spec": {"ipAddressPools": "name:pool", "ipAddressPoolSelectors": SELECTOR, "nodeSelectors": SELECTOR},
}
KINDS |= {
    "NetworkPolicy": {
        "spec": {
            "podSelector": SELECTOR, "policyTypes": "keep", "ingress": {"from": _PEER, "ports": _POLICY_PORT},
            "egress": {"to": _PEER, "ports": _POLICY_PORT},
        },
    },
    POOLS.kind: {
        "spec": {
            "addresses": "address", "autoAssign": "keep",
            "serviceAllocation": {
                "priority": "keep", "namespaces": "name:namespace", "namespaceSelectors": SELECTOR,
                "serviceSelectors": SELECTOR,
            },
        },
    },
    L2.kind: _ADVERTISED,
    BGP.kind: _ADVERTISED,
    L2_STATUSES.kind: {
        "status": {"node": "name:node", "serviceName": "name:service", "serviceNamespace": "name:namespace"},
    },
    CILIUM_POOLS.kind: {
        "spec": {
            "blocks": "block", "cidrs": "block",
            "serviceSelector": SELECTOR, "disabled": "keep", "allowFirstLastIPs": "keep",
        },
        "status": {"conditions": CONDITION},
    },
    CILIUM_L2.kind: {
        "spec": {
            "serviceSelector": SELECTOR, "nodeSelector": SELECTOR, "externalIPs": "keep", "loadBalancerIPs": "keep",
        },
    },
    CILIUM_BGP.kind: {
        "spec": {
            "advertisements": {
                "advertisementType": "keep", "service": {"addresses": "keep"}, "selector": SELECTOR,
            },
        },
    },
    CILIUM_PEERING.kind: {
        "spec": {"nodeSelector": SELECTOR, "virtualRouters": {"serviceSelector": SELECTOR}},
    },
    LEASES.kind: {"spec": {"holderIdentity": "name:node"}},
}  # fmt: skip
OWN_NAME = {
    **dict.fromkeys((r.kind for r in RESOURCES), "object"), POOLS.kind: "pool", CILIUM_POOLS.kind: "pool",
    LEASES.kind: "lease", "NetworkPolicy": "policy",
    "Service": "service", "EndpointSlice": "slice", "Endpoints": "service", "Pod": "pod", "Node": "node",
}  # fmt: skip
FILE_KINDS = {
    "cluster/services.json": "Service",
    "cluster/endpointslices.json": "EndpointSlice",
    "cluster/endpoints.json": "Endpoints",
    "cluster/pods.json": "Pod",
    "cluster/nodes.json": "Node",
    "cluster/networkpolicies.json": "NetworkPolicy",
    **{resource.file: resource.kind for resource in (*RESOURCES, LEASES)},
}
VERSION = _kept("major minor gitVersion platform goVersion compiler")
KUBE_PROXY_CONFIG: Schema = {
    "apiVersion": "keep", "kind": "keep", "mode": "keep", "clusterCIDR": "addresses", "hostnameOverride": "host",
    "bindAddress": "address", "healthzBindAddress": "scrub", "metricsBindAddress": "scrub",
    "nodePortAddresses": "address", "detectLocalMode": "keep", "portRange": "keep", "oomScoreAdj": "keep",
    "bindAddressHardFail": "keep", "showHiddenMetricsForVersion": "keep",
    "detectLocal": {"bridgeInterface": "interface", "interfaceNamePrefix": "keep", "clusterCIDRs": "address"},
    "iptables": {
        "masqueradeAll": "keep", "masqueradeBit": "keep", "minSyncPeriod": "keep", "syncPeriod": "keep",
        "localhostNodePorts": "keep",
    },
    "ipvs": {
        "excludeCIDRs": "address", "minSyncPeriod": "keep", "scheduler": "keep", "strictARP": "keep",
        "syncPeriod": "keep", "tcpFinTimeout": "keep", "tcpTimeout": "keep", "udpTimeout": "keep",
    },
    "nftables": {
        "masqueradeAll": "keep", "masqueradeBit": "keep", "minSyncPeriod": "keep", "syncPeriod": "keep",
    },
    "conntrack": _kept(
        """maxPerCore min tcpBeLiberal tcpCloseWaitTimeout tcpEstablishedTimeout udpStreamTimeout
        udpTimeout"""
    ),
    "featureGates": "flags",
}  # fmt: skip
LINK: Schema = {
    **_kept(
        """ifindex link_index flags mtu qdisc operstate group txqlen link_type link_netnsid promiscuity"""
    ),
    "ifname": "interface", "master": "interface", "link": "interface", "address": "scrub", "broadcast": "scrub",
    "linkinfo": {"info_kind": "keep", "info_slave_kind": "keep"},
    "addr_info": {
        **_kept(
        """family prefixlen scope dynamic secondary deprecated noprefixroute mngtmpaddr temporary tentative
        dadfailed nodad metric protocol valid_life_time preferred_life_time"""
    ),
        "local": "address", "address": "address", "broadcast": "address", "anycast": "address",
        "label": "interface",
    },
}  # fmt: skip
HOP: Schema = {
    "dev": "interface", "gateway": "address", "via": {"family": "keep", "host": "address"}, "weight": "keep",
    "flags": "keep", "encap": "scrub", "onlink": "keep",
}  # fmt: skip
ROUTE: Schema = {
    **HOP,
    **_kept(
        """type table protocol scope metric pref tos expires error mtu advmss metrics nhid realms ttl-
        propagate"""
    ),
    "dst": "address", "from": "address", "prefsrc": "address", "nexthops": HOP,
}  # fmt: skip
