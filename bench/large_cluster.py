#!/usr/bin/env python3
"""Writes the snapshot of a large cluster: `bench/large_cluster.py OUT [--nodes N] [--services N] [--endpoints N]`.

The shapes are those that a real API server sends: one EndpointSlice for up to 100 endpoints, a Pod for each endpoint,
every twentieth Service of type NodePort or LoadBalancer, a quarter of those with externalTrafficPolicy Local. No node
was read: the answers come from the API objects alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

POD = {
    "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "priority": 0,
    "terminationGracePeriodSeconds": 30, "serviceAccountName": "default", "enableServiceLinks": True,
    "tolerations": [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for key in ("not-ready", "unreachable")
    ],
}  # fmt: skip
TIME = "2026-01-01T00:00:00Z"


def main() -> None:
    """Write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=100_000)
    arguments = parser.parse_args()
    write_cluster(arguments.out, arguments.nodes, arguments.services, arguments.endpoints)


def write_cluster(out: Path, nodes: int, services: int, endpoints: int) -> None:
    """A snapshot folder at `out` with so many nodes, Services and endpoints."""
    draw = random.Random(1)
    placed = [place(number, draw.randrange(nodes), services) for number in range(endpoints)]
    by_service: dict[int, list[dict[str, Any]]] = {}
    for endpoint in placed:
        by_service.setdefault(endpoint["service"], []).append(endpoint)
    folder = out / "cluster"
    folder.mkdir(parents=True)
    write_list(folder / "nodes.json", (node(number) for number in range(nodes)))
    write_list(folder / "services.json", (service(number) for number in range(services)))
    write_list(folder / "endpointslices.json", slices(by_service))
    write_list(folder / "pods.json", (pod(endpoint) for endpoint in placed))
    (folder / "version.json").write_text(json.dumps({"major": "1", "minor": "33", "gitVersion": "v1.33.1"}))


def write_list(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """A v1 List, one object a line."""
    with path.open("w") as file:
        file.write('{"apiVersion":"v1","kind":"List","items":[\n')
        for number, item in enumerate(items):
            file.write(",\n" * bool(number) + json.dumps(item, separators=(",", ":")))
        file.write("\n]}\n")


def node_name(number: int) -> str:
    """The name of a node."""
    return f"worker-{number:04}.example.net"


def node_ip(number: int) -> str:
    """The address of a node."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def namespace(service_number: int) -> str:
    """The namespace of a Service."""
    return f"team-{service_number % 100:02}"


def place(number: int, on: int, services: int) -> dict[str, Any]:
    """One endpoint: which Service it serves, where it runs, its address."""
    # Some Services have many endpoints, most few, as in life.
    owner = number % services if number < services * 5 else (number * number) % max(services // 10, 1)
    return {
        "service": owner,
        "node": on,
        "ip": f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
        "name": f"app-{owner:05}-{number:06x}",
        "ready": number % 97 != 0,
    }


def service(number: int) -> dict[str, Any]:
    """A Service; every twentieth has an external front end."""
    spec: dict[str, Any] = {
        "type": "ClusterIP", "clusterIP": (ip := f"10.100.{number >> 8 & 255}.{number & 255}"), "clusterIPs": [ip],
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
            {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": "metrics"},
        ],
        "selector": {"app": f"app-{number:05}"}, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
    }  # fmt: skip
    status: dict[str, Any] = {"loadBalancer": {}}
    if number % 20 == 0:
        spec["type"] = "LoadBalancer" if number % 100 == 0 else "NodePort"
        spec["externalTrafficPolicy"] = "Local" if number % 80 == 0 else "Cluster"
        for place_, port in enumerate(spec["ports"]):
            port["nodePort"] = 30000 + number // 20 * 2 + place_
        if spec["type"] == "LoadBalancer":
            status["loadBalancer"] = {
                "ingress": [{"ip": f"203.0.113.{number // 100 % 250 + 1}", "ipMode": "VIP"}]
            }
            spec["allocateLoadBalancerNodePorts"] = True
            if spec["externalTrafficPolicy"] == "Local":
                spec["healthCheckNodePort"] = 32000 + number // 400
    metadata = {
        "name": f"app-{number:05}", "namespace": namespace(number), "creationTimestamp": TIME,
        "resourceVersion": str(number), "uid": uid(number), "labels": {"app": f"app-{number:05}"},
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def uid(number: int) -> str:
    """An object's identity."""
    return f"{number:08x}-0000-4000-8000-{number:012x}"


def slices(by_service: dict[int, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The EndpointSlices of all Services, 100 endpoints each as the controller cuts them."""
    for owner in sorted(by_service):
        found = by_service[owner]
        for start in range(0, len(found), 100):
            name = f"app-{owner:05}"
            yield {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": f"{name}-{start:05x}", "namespace": namespace(owner), "creationTimestamp": TIME,
                    "generateName": f"{name}-", "resourceVersion": "1", "uid": uid(owner),
                    "labels": {
                        "kubernetes.io/service-name": name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "ports": [
                    {"name": "http", "port": 8080, "protocol": "TCP"},
                    {"name": "metrics", "port": 9100, "protocol": "TCP"},
                ],
                "endpoints": [endpoint(each) for each in found[start : start + 100]],
            }  # fmt: skip


def endpoint(placed: dict[str, Any]) -> dict[str, Any]:
    """One endpoint of a slice."""
    return {
        "addresses": [placed["ip"]],
        "conditions": {"ready": placed["ready"], "serving": placed["ready"], "terminating": False},
        "nodeName": node_name(placed["node"]), "zone": f"zone-{placed['node'] % 3}",
        "targetRef": {
            "kind": "Pod", "name": placed["name"], "namespace": namespace(placed["service"]),
            "uid": uid(placed["service"]),
        },
    }  # fmt: skip


def pod(placed: dict[str, Any]) -> dict[str, Any]:
    """The pod behind an endpoint."""
    label, ready = f"app-{placed['service']:05}", str(placed["ready"])
    conditions = [
        {"type": kind, "status": ready if kind.endswith("Ready") else "True", "lastProbeTime": None,
         "lastTransitionTime": TIME}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]  # fmt: skip
    container = {
        "name": "main", "image": f"registry.example.net/{label}:1.{placed['service'] % 9}",
        "imagePullPolicy": "IfNotPresent", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "ports": [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9100, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10,
            "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        },
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    }  # fmt: skip
    status = {
        "name": "main", "ready": placed["ready"], "started": True, "restartCount": 0, "image": container["image"],
        "imageID": "registry.example.net/x@sha256:" + "0" * 64, "containerID": "containerd://" + "0" * 64,
        "state": {"running": {"startedAt": TIME}}, "lastState": {},
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": placed["name"], "namespace": namespace(placed["service"]), "creationTimestamp": TIME,
            "generateName": f"{label}-", "resourceVersion": "1", "uid": uid(placed["service"]),
            "labels": {"app": label, "pod-template-hash": "5d4f8c9b7d"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{label}-5d4f8c9b7d", "controller": True,
                 "blockOwnerDeletion": True, "uid": uid(placed["service"])}
            ],
        },
        "spec": {**POD, "nodeName": node_name(placed["node"]), "containers": [container]},
        "status": {
            "phase": "Running", "hostIP": node_ip(placed["node"]), "hostIPs": [{"ip": node_ip(placed["node"])}],
            "podIP": placed["ip"], "podIPs": [{"ip": placed["ip"]}], "startTime": TIME, "qosClass": "Burstable",
            "conditions": conditions, "containerStatuses": [status],
        },
    }  # fmt: skip


def node(number: int) -> dict[str, Any]:
    """A Node."""
    name, address = node_name(number), node_ip(number)
    labels = {
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": f"zone-{number % 3}", "node.kubernetes.io/instance-type": "m5.2xlarge",
    }  # fmt: skip
    conditions = [
        {"type": kind, "status": status, "reason": "KubeletHasIt", "message": "kubelet says so",
         "lastHeartbeatTime": TIME, "lastTransitionTime": TIME}
        for kind, status in (
            ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True"),
        )
    ]  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels, "uid": uid(number), "creationTimestamp": TIME},
        "spec": {
            "podCIDR": (cidr := f"100.{64 + (number >> 8)}.{number & 255}.0/24"), "podCIDRs": [cidr],
            "providerID": f"example:///zone-{number % 3}/i-{number:08x}",
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
            ],
            "conditions": conditions,
            "images": [
                {"names": [f"registry.example.net/image-{i}@sha256:" + "0" * 64], "sizeBytes": 1 << 24}
                for i in range(20)
            ],
            "nodeInfo": {
                "kubeletVersion": "v1.33.1", "kubeProxyVersion": "", "osImage": "Linux", "architecture": "amd64",
                "kernelVersion": "6.1.0", "operatingSystem": "linux", "containerRuntimeVersion": "containerd://2.0.0",
            },
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
