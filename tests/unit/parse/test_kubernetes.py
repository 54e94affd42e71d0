from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.errors import EvidenceError
from ktp.model.capture import MemoryCapture
from ktp.model.cluster import ContainerStatus, Endpoint, EndpointPort, LoadBalancerIngress, ServicePort
from ktp.parse import kubernetes as k8s
from tests.support.clusters import parse_cluster

PARSERS = {
    "Service": k8s.parse_services,
    "EndpointSlice": k8s.parse_endpoint_slices,
    "Endpoints": k8s.parse_endpoints,
    "Pod": k8s.parse_pods,
    "Node": k8s.parse_nodes,
}


def a_list(kind: str, *items: dict[str, Any]) -> bytes:
    return json.dumps({"kind": "List", "items": [{"kind": kind, **item} for item in items]}).encode()


META = {"namespace": "test", "name": "web"}


# ------------------------------------------------------------------------------------------------------- Services


def test_a_service_with_everything() -> None:
    services = k8s.parse_services(
        a_list(
            "Service",
            {
                "metadata": {**META, "labels": {"a": "b"}, "annotations": {"c": "d"}},
                "spec": {
                    "type": "LoadBalancer",
                    "clusterIP": "10.96.0.1",
                    "clusterIPs": ["10.96.0.1", "fd00::1"],
                    "externalIPs": ["192.0.2.1"],
                    "ports": [
                        {
                            "name": "http",
                            "port": 80,
                            "targetPort": "web",
                            "nodePort": 31015,
                            "appProtocol": "h2c",
                        },
                        {"port": "53", "protocol": "UDP", "targetPort": 5353},
                    ],
                    "selector": {"app": "web"},
                    "externalTrafficPolicy": "Local",
                    "internalTrafficPolicy": "Local",
                    "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                    "healthCheckNodePort": 32000,
                    "loadBalancerSourceRanges": ["10.0.0.0/8"],
                    "loadBalancerClass": "example.com/lb",
                    "loadBalancerIP": "192.0.2.9",
                    "allocateLoadBalancerNodePorts": False,
                    "publishNotReadyAddresses": True,
                    "ipFamilies": ["IPv4", "IPv6"],
                    "ipFamilyPolicy": "PreferDualStack",
                    "trafficDistribution": "PreferClose",
                },
                "status": {
                    "loadBalancer": {"ingress": [{"ip": "192.0.2.9", "ipMode": "VIP"}, {"hostname": "lb"}]}
                },
            },
        )
    )
    service = services["test/web"]
    assert service.type == "LoadBalancer"
    assert service.cluster_ips == ("10.96.0.1", "fd00::1")
    assert service.ports == (
        ServicePort(name="http", port=80, target_port="web", node_port=31015),
        ServicePort(port=53, protocol="UDP", target_port=5353),
    )
    assert (service.external_traffic_policy, service.internal_traffic_policy) == ("Local", "Local")
    assert (service.session_affinity, service.session_affinity_timeout) == ("ClientIP", 60)
    assert service.health_check_node_port == 32000
    assert not service.allocate_load_balancer_node_ports
    assert service.publish_not_ready_addresses
    assert service.ingress == (
        LoadBalancerIngress(ip="192.0.2.9", ip_mode="VIP"),
        LoadBalancerIngress(hostname="lb"),
    )
    assert service.load_balancer_source_ranges == ("10.0.0.0/8",)
    assert service.labels == {"a": "b"}
    assert service.annotations == {"c": "d"}


@pytest.mark.parametrize(
    "item",
    [
        {"metadata": {"name": "web"}},
        {"metadata": {"name": "web", "namespace": None, "labels": None}, "spec": None, "status": None},
        {
            "metadata": {"name": "web"},
            "spec": {"ports": None, "clusterIPs": None, "type": "", "selector": None},
        },
    ],
    ids=["bare", "null", "null fields"],
)
def test_what_a_service_does_not_say_is_the_api_default(item: dict[str, Any]) -> None:
    service = k8s.parse_services(a_list("Service", item))["default/web"]
    assert service == type(service)(namespace="default", name="web")


def test_an_old_service_has_one_cluster_ip() -> None:
    item = {"metadata": META, "spec": {"clusterIP": "None"}}
    assert k8s.parse_services(a_list("Service", item))["test/web"].cluster_ips == ("None",)


# --------------------------------------------------------------------------------------------- shapes of a document


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "Service", "metadata": META},
        {"metadata": META},
        [{"kind": "Service", "metadata": META}],
        {"kind": "ServiceList", "items": [{"metadata": META}]},
        {"items": [{"metadata": META}]},
        {"kind": "List", "items": [{"kind": "Pod", "metadata": META}, {"kind": "Service", "metadata": META}]},
    ],
    ids=["one object", "one without kind", "array", "typed list", "untyped list", "mixed list"],
)
def test_every_way_to_write_a_list(document: object) -> None:
    assert list(k8s.parse_services(json.dumps(document))) == ["test/web"]


def test_an_empty_list_is_no_objects() -> None:
    for text in ('{"kind": "List", "items": []}', '{"kind": "List", "items": null}', "[]"):
        assert k8s.parse_services(text) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "services.json is empty"),
        ('{"items": [', "services.json is not valid JSON"),
        ('"no"', "holds no Kubernetes objects"),
        ('{"items": {"a": 1}}', "items of .*services.json are not Kubernetes objects"),
        ('{"items": [null]}', "items of .*services.json are not Kubernetes objects"),
        (
            '{"kind": "PodList", "items": [{"metadata": {"name": "a"}}]}',
            "should hold Service .* holds PodList",
        ),
        ('{"kind": "Pod", "metadata": {"name": "a"}}', "should hold Service objects and holds Pod objects"),
        ('{"kind": "Status", "message": "Unauthorized"}', "an error of the API server: Unauthorized"),
        ('{"kind": "Service", "metadata": {}}', "item 1 of .*: it has no metadata.name"),
        ('{"metadata": {"name": "a"}, "spec": {"ports": [{}]}}', "default/a of .* has no number"),
        ('{"metadata": {"name": "a"}, "spec": {"ports": 80}}', "default/a of .* a list was expected"),
        ('{"metadata": {"name": "a"}, "spec": {"type": 1}}', "default/a of .* a string was expected"),
    ],
    ids=lambda value: value[:40],
)
def test_a_broken_file_is_named_with_the_command_that_writes_it(text: str, words: str) -> None:
    with pytest.raises(EvidenceError, match=words) as raised:
        k8s.parse_services(text)
    assert "cluster/services.json" in raised.value.message
    assert raised.value.hint == "write it again: kubectl get services -A -o json > cluster/services.json"


FIELDS = (
    *(
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "ports",
        "port",
        "items",
        "subsets",
        "addresses",
    ),
    *(
        "endpoints",
        "conditions",
        "containers",
        "readinessProbe",
        "httpGet",
        "state",
        "taints",
        "topology",
        "hints",
    ),
    *("forZones", "podIPs"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "a", "10.0.0.1", "80"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", PARSERS)
@given(
    item=st.dictionaries(st.sampled_from(["spec", "status", "subsets", "ports", "endpoints"]), json_values)
)
def test_no_shape_makes_a_parser_crash(kind: str, item: dict[str, Any]) -> None:
    with contextlib.suppress(EvidenceError):
        PARSERS[kind](a_list(kind, {"metadata": META, **item}))


# ------------------------------------------------------------------------------------------------------ endpoints


def test_a_slice_of_v1() -> None:
    (found,) = k8s.parse_endpoint_slices(
        a_list(
            "EndpointSlice",
            {
                "metadata": {**META, "labels": {"kubernetes.io/service-name": "svc"}},
                "addressType": "IPv4",
                "ports": [{"name": "", "port": 80}, {"name": "all", "port": None, "protocol": None}],
                "endpoints": [
                    {
                        "addresses": ["10.244.1.10"],
                        "conditions": {"ready": False, "serving": True, "terminating": True},
                        "nodeName": "node-b",
                        "zone": "z1",
                        "hostname": "h",
                        "targetRef": {"kind": "Pod", "namespace": "test", "name": "web-0"},
                        "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "node-b"}]},
                    },
                    {"addresses": ["10.244.1.11"], "conditions": {}},
                ],
            },
        )
    )
    assert (found.namespace, found.name, found.service_name, found.origin) == (
        "test",
        "web",
        "svc",
        "EndpointSlice",
    )
    assert found.ports == (EndpointPort(port=80), EndpointPort(name="all"))
    first, second = found.endpoints
    assert first == Endpoint(
        addresses=("10.244.1.10",),
        ready=False,
        serving=True,
        terminating=True,
        node_name="node-b",
        zone="z1",
        hostname="h",
        target_kind="Pod",
        target_namespace="test",
        target_name="web-0",
        hints_for_zones=("z1",),
        hints_for_nodes=("node-b",),
    )
    assert second == Endpoint(addresses=("10.244.1.11",))
    assert second.is_ready


def test_a_slice_of_v1beta1_names_the_node_in_its_topology() -> None:
    endpoint = {
        "addresses": ["10.244.1.10"],
        "topology": {"kubernetes.io/hostname": "node-b", "topology.kubernetes.io/zone": "z1"},
    }
    item = {"apiVersion": "discovery.k8s.io/v1beta1", "metadata": META, "endpoints": [endpoint]}
    (found,) = k8s.parse_endpoint_slices(a_list("EndpointSlice", item))
    assert (found.endpoints[0].node_name, found.endpoints[0].zone) == ("node-b", "z1")


def test_endpoints_become_slices() -> None:
    target = {"kind": "Pod", "namespace": "test", "name": "web-0"}
    item = {
        "metadata": META,
        "subsets": [
            {
                "addresses": [{"ip": "10.244.1.10", "nodeName": "node-b", "targetRef": target}],
                "notReadyAddresses": [{"ip": "10.244.1.11"}],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            },
            {"addresses": [{"ip": "fd00::1"}, {"ip": "10.244.1.12"}], "ports": None},
        ],
    }
    first, second, third = k8s.parse_endpoints(a_list("Endpoints", item))
    assert {piece.origin for piece in (first, second, third)} == {"Endpoints"}
    assert (first.service_name, first.name, first.address_type) == ("web", "web", "IPv4")
    assert first.ports == (EndpointPort(name="http", port=8080),)
    assert [(endpoint.addresses, endpoint.ready) for endpoint in first.endpoints] == [
        (("10.244.1.10",), True),
        (("10.244.1.11",), False),
    ]
    assert (first.endpoints[0].node_name, first.endpoints[0].target_name) == ("node-b", "web-0")
    assert (second.address_type, third.address_type) == ("IPv6", "IPv4")


def test_endpoints_without_addresses_are_still_there() -> None:
    (found,) = k8s.parse_endpoints(a_list("Endpoints", {"metadata": META, "subsets": None}))
    assert (found.service_name, found.endpoints) == ("web", ())


# ------------------------------------------------------------------------------------------------- pods and nodes


def test_a_pod() -> None:
    item = {
        "metadata": {
            **META,
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [
                {"kind": "Thing", "name": "x"},
                {"kind": "ReplicaSet", "name": "web-7", "controller": True},
            ],
        },
        "spec": {
            "nodeName": "node-a",
            "hostNetwork": True,
            "containers": [
                {
                    "name": "c0",
                    "image": "nginx",
                    "ports": [{"name": "web", "containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.3"}],
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": "web"}, "periodSeconds": 5},
                }
            ],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"containerPort": 9000}]},
                {"name": "setup", "ports": [{"containerPort": 1}]},
                {"name": "wait"},
            ],
        },
        "status": {
            "phase": "Running",
            "hostIP": "10.0.0.3",
            "podIP": "10.244.1.10",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [
                {
                    "name": "c0",
                    "ready": False,
                    "started": False,
                    "restartCount": 7,
                    "image": "nginx",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                }
            ],
            "initContainerStatuses": [
                {"name": "proxy", "ready": True, "state": {"running": {"startedAt": "x"}}},
                {"name": "setup", "ready": True, "state": {"terminated": {"reason": "Completed"}}},
                {"name": "wait", "ready": False, "state": {"running": {}}},
            ],
        },
    }
    (pod,) = k8s.parse_pods(a_list("Pod", item))
    assert (pod.key, pod.node_name, pod.host_network, pod.phase) == ("test/web", "node-a", True, "Running")
    assert (pod.pod_ips, pod.host_ip, pod.images) == (("10.244.1.10",), "10.0.0.3", ("nginx",))
    assert (pod.owner_kind, pod.owner_name) == ("ReplicaSet", "web-7")
    assert pod.deletion_timestamp == "2026-01-01T00:00:00Z"
    assert [(port.container, port.name, port.container_port, port.host_port) for port in pod.ports] == [
        ("c0", "web", 80, 8080),
        ("proxy", "", 9000, 0),
    ]
    assert pod.containers[0] == ContainerStatus(
        name="c0",
        ready=False,
        started=False,
        state="waiting",
        reason="CrashLoopBackOff",
        image="nginx",
    )
    assert [status.name for status in pod.containers] == ["c0", "proxy", "wait"]
    assert not pod.is_ready
    assert pod.readiness_probes == (
        ("c0", "HTTP GET /healthz on port web, every 5 s, timeout 1 s, 3 failures"),
    )


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"httpGet": {"port": 8443, "scheme": "HTTPS", "host": "h"}}, "HTTPS GET / on port 8443 of h"),
        ({"tcpSocket": {"port": 80}}, "TCP connect to port 80"),
        ({"grpc": {"port": 9000, "service": "s"}}, "gRPC health check of service s on port 9000"),
        ({"exec": {"command": ["cat", "/ready"]}}, "command `cat /ready`"),
        ({"new": {}}, "a probe of a kind that ktp does not know"),
    ],
    ids=["http", "tcp", "grpc", "exec", "unknown"],
)
def test_probes_in_words(probe: dict[str, Any], words: str) -> None:
    assert k8s.describe_probe(probe) == f"{words}, every 10 s, timeout 1 s, 3 failures"
    assert k8s.describe_probe({**probe, "initialDelaySeconds": 9}).endswith("3 failures, first after 9 s")


def test_a_node() -> None:
    item = {
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {
            "podCIDR": "10.244.1.0/24",
            "providerID": "aws:///i-1",
            "unschedulable": True,
            "taints": [{"key": "k"}],
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.3"},
                {"type": "Hostname", "address": "node-a"},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "kubeProxyVersion": "v1.36.1"},
        },
    }
    node = k8s.parse_nodes(a_list("Node", item))["node-a"]
    assert node.addresses_of("InternalIP") == ("10.0.0.3",)
    assert (node.zone, node.is_ready, node.unschedulable) == ("z1", True, True)
    assert (node.pod_cidrs, node.provider_id) == (("10.244.1.0/24",), "aws:///i-1")
    assert (node.kubelet_version, node.kube_proxy_version) == ("v1.36.0", "v1.36.1")
    assert node.taints[0].key == "k"


@pytest.mark.parametrize(
    "text", ['{"gitVersion": "v1.30.2"}', '{"clientVersion": {}, "serverVersion": {"gitVersion": "v1.30.2"}}']
)
def test_versions(text: str) -> None:
    assert k8s.parse_version(text) == "v1.30.2"


def test_a_version_that_is_none() -> None:
    assert k8s.parse_version("{}") is None
    with pytest.raises(EvidenceError, match="version"):
        k8s.parse_version("[]")


# ---------------------------------------------------------------------------------------------------- the cluster


def test_a_list_that_was_not_read_is_not_an_empty_one() -> None:
    capture = MemoryCapture(files={k8s.SERVICES: b'{"items": []}', k8s.PODS: b'{"items": []}'})
    cluster = parse_cluster(capture)
    assert (cluster.services, cluster.pods) == ({}, ())
    assert (cluster.slices, cluster.endpoints, cluster.nodes, cluster.version) == (None, None, None, None)


def test_a_broken_list_is_a_gap_where_gaps_are_asked_for() -> None:
    capture = MemoryCapture(files={k8s.SERVICES: b'{"items": []}', k8s.PODS: b"{"})
    with pytest.raises(EvidenceError, match="pods"):
        parse_cluster(capture)
    cluster, (gap,) = k8s.parse_cluster_with_gaps(capture)
    assert cluster.pods is None
    assert (gap.kind, gap.subject) == ("cluster-file", "cluster/pods.json")
    assert gap.remedy is not None


def test_broken_services_are_an_error_anyway() -> None:
    with pytest.raises(EvidenceError, match=r"services\.json"):
        k8s.parse_cluster_with_gaps(MemoryCapture(files={k8s.SERVICES: b"{"}))


def test_recorded_clusters_lose_nothing(recorded_cases: tuple[Path, ...]) -> None:
    for folder in recorded_cases:
        files = {f"cluster/{path.name}": path.read_bytes() for path in (folder / "cluster").iterdir()}
        raw = {name: json.loads(text) for name, text in files.items()}
        cluster = parse_cluster(MemoryCapture(files=files))
        assert cluster.slices is not None
        assert cluster.pods is not None
        assert cluster.nodes is not None
        assert len(cluster.services) == len(raw[k8s.SERVICES]["items"])
        assert len(cluster.slices) == len(raw[k8s.ENDPOINT_SLICES]["items"])
        assert len(cluster.pods) == len(raw[k8s.PODS]["items"])
        assert len(cluster.nodes) == len(raw[k8s.NODES]["items"])
        assert cluster.version == raw[k8s.VERSION]["gitVersion"]
        node_ports = {
            port["nodePort"]
            for item in raw[k8s.SERVICES]["items"]
            for port in item["spec"].get("ports", ())
            if "nodePort" in port
        }
        assert {p.node_port for s in cluster.services.values() for p in s.ports if p.node_port} == node_ports
        addresses = [
            address
            for item in raw[k8s.ENDPOINT_SLICES]["items"]
            for endpoint in item["endpoints"] or ()
            for address in endpoint["addresses"]
        ]
        assert [a for piece in cluster.slices for e in piece.endpoints for a in e.addresses] == addresses


@pytest.mark.slow
def test_a_large_cluster_takes_seconds() -> None:
    import time

    endpoint = {
        "addresses": ["10.1.2.3"],
        "conditions": {"ready": True},
        "nodeName": "n",
        "targetRef": {"name": "p"},
    }
    labels = {"kubernetes.io/service-name": "s"}
    files = {
        k8s.SERVICES: a_list(
            "Service",
            *[
                {
                    "metadata": {"name": f"s{i}"},
                    "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
                }
                for i in range(10_000)
            ],
        ),
        k8s.ENDPOINT_SLICES: a_list(
            "EndpointSlice",
            *[
                {"metadata": {"name": f"s{i}", "labels": labels}, "endpoints": [endpoint] * 100}
                for i in range(1000)
            ],
        ),
    }
    start = time.process_time()
    parse_cluster(MemoryCapture(files=files))
    assert time.process_time() - start < 5
