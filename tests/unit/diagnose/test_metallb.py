"""MetalLB: addresses that no node announces, and why one is not given, by it or by k3s's ServiceLB.

The objects are written after metallb's api/v1beta1; who announces, after speaker/layer2_controller.go and
speaker/bgp_controller.go.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.errors import EvidenceError
from ktp.model.cluster import Condition, ContainerPort, LoadBalancerIngress, Pod
from ktp.model.diagnosis import Finding, Severity
from ktp.model.snapshot import Snapshot
from ktp.parse.manifests import gathered
from ktp.parse.metallb import BGP, L2, POOLS, metallb_of, parse_bgp, parse_l2, parse_l2_statuses, parse_pools
from ktp.parse.snapshot import parse_snapshot

CASE = Path(__file__).resolve().parents[2] / "data" / "cases" / "core-1.36-iptables-nft"
KEY = "edge/local-lb"  # type LoadBalancer, policy Local, 10.99.0.10
KINDS = ("IPAddressPool", "L2Advertisement", "BGPAdvertisement", "ServiceL2Status")
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


def pool(name: str = "first", *addresses: str, **spec: Any) -> dict[str, Any]:
    return {
        "kind": "IPAddressPool",
        "metadata": {"name": name, "labels": {"tier": name}},
        "spec": {"addresses": list(addresses) or ["10.99.0.0/24"], **spec},
    }


def advertisement(kind: str = "L2Advertisement", **spec: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "all"}, "spec": spec}


def announced_by(node: str) -> dict[str, Any]:
    namespace, _, name = KEY.partition("/")
    return {
        "kind": "ServiceL2Status",
        "metadata": {"name": "l2-abc"},
        "status": {"node": node, "serviceName": name, "serviceNamespace": namespace},
    }


@pytest.fixture(scope="module")
def recorded() -> Snapshot:
    return parse_snapshot(open_snapshot(CASE))


def with_metallb(
    snapshot: Snapshot, *objects: dict[str, Any], unread: Collection[str] = (), **service: Any
) -> Snapshot:
    services = {**snapshot.cluster.services, KEY: replace(snapshot.cluster.services[KEY], **service)}
    lists = {kind: json.dumps({"items": [o for o in objects if o["kind"] == kind]}) for kind in KINDS}
    metallb = metallb_of(
        parse_pools(lists["IPAddressPool"]),
        parse_l2(lists["L2Advertisement"]),
        parse_bgp(lists["BGPAdvertisement"]),
        parse_l2_statuses(lists["ServiceL2Status"]),
        unread,
    )
    return replace(snapshot, cluster=replace(snapshot.cluster, metallb=metallb, services=services))


def labelled(snapshot: Snapshot, **labels: dict[str, str]) -> Snapshot:
    nodes = {
        n: replace(node, labels={**node.labels, **labels.get(n.replace("-", "_"), {})})
        for n, node in (snapshot.cluster.nodes or {}).items()
    }
    return replace(snapshot, cluster=replace(snapshot.cluster, nodes=nodes))


def findings(snapshot: Snapshot, code: str) -> list[Finding]:
    return [f for f in diagnose_service(snapshot, snapshot.cluster.services[KEY]).findings if f.code == code]


def holders(snapshot: Snapshot) -> set[str]:
    namespace, _, name = KEY.partition("/")
    return {
        e.node_name
        for s in snapshot.cluster.slices or ()
        if (s.namespace, s.service_name) == (namespace, name)
        for e in s.endpoints
        if e.node_name
    }


def test_an_address_that_is_announced_is_no_finding(recorded: Snapshot) -> None:
    for objects in (
        [pool(), advertisement()],
        [pool(), advertisement("BGPAdvertisement", ipAddressPools=["first"])],
        [pool(), advertisement(ipAddressPoolSelectors=[{"matchLabels": {"tier": "first"}}])],
        [pool("first", "10.99.0.5-10.99.0.15"), advertisement()],
        # Not from a pool of MetalLB's: another controller gave it.
        [pool("first", "192.0.2.0/24")],
    ):
        assert findings(with_metallb(recorded, *objects), "KTP608") == []
    assert recorded.cluster.metallb is None
    assert findings(recorded, "KTP608") == []


def test_a_pool_without_an_advertisement(recorded: Snapshot) -> None:
    (alone,) = findings(with_metallb(recorded, pool()), "KTP608")
    assert alone.severity is Severity.ERROR
    assert (
        alone.message == f"10.99.0.10 of {KEY} is from MetalLB's pool first, which no advertisement announces"
    )
    (other,) = findings(
        with_metallb(
            recorded, pool(), pool("second", "192.0.2.0/24"), advertisement(ipAddressPools=["second"])
        ),
        "KTP608",
    )
    assert other.message.endswith("which no advertisement announces (L2Advertisement all is of other pools)")


@pytest.mark.parametrize("kind", ["L2Advertisement", "BGPAdvertisement"])
def test_no_node_is_selected(recorded: Snapshot, kind: str) -> None:
    lost = advertisement(
        kind, nodeSelectors=[{"matchExpressions": [{"key": "rack", "operator": "In", "values": ["9"]}]}]
    )
    (found,) = findings(with_metallb(recorded, pool(), lost), "KTP608")
    assert f"no node has the labels that {kind} all asks for" in found.message
    some = {"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}
    assert findings(with_metallb(recorded, pool(), advertisement(kind, nodeSelectors=[some])), "KTP608") == []


def test_under_local_the_selected_nodes_must_hold_a_pod(recorded: Snapshot) -> None:
    held = holders(recorded)
    free = next(n for n in recorded.cluster.nodes or {} if n not in held)
    snapshot = labelled(recorded, **{free.replace("-", "_"): {"edge": "yes"}})
    edge = advertisement(nodeSelectors=[{"matchLabels": {"edge": "yes"}}])
    (found,) = findings(with_metallb(snapshot, pool(), edge), "KTP608")
    assert f"the policy is Local, its pods run on {sorted(held)[0]}" in found.message
    assert f"may announce from {free} only" in found.message
    # Under Cluster any of them announces, and passes packets on.
    assert findings(with_metallb(snapshot, pool(), edge, external_traffic_policy="Cluster"), "KTP608") == []
    # Two advertisements: one of them is enough.
    assert findings(with_metallb(snapshot, pool(), edge, advertisement()), "KTP608") == []


def test_nodes_kept_out_of_load_balancers(recorded: Snapshot) -> None:
    every = {n.replace("-", "_"): {EXCLUDED: ""} for n in recorded.cluster.nodes or {}}
    (found,) = findings(with_metallb(labelled(recorded, **every), pool(), advertisement()), "KTP608")
    assert found.severity is Severity.WARNING  # the speakers may be told to ignore it
    assert "--ignore-exclude-lb" in found.message


def test_what_was_not_read_is_not_empty(recorded: Snapshot) -> None:
    lost = advertisement(nodeSelectors=[{"matchLabels": {"rack": "9"}}])
    snapshot = with_metallb(recorded, pool(), lost)
    for less in ({"nodes": None}, {"slices": None, "endpoints": None}):
        assert findings(replace(snapshot, cluster=replace(snapshot.cluster, **less)), "KTP608") == []  # type: ignore[arg-type]


def test_the_node_that_answers_now(recorded: Snapshot) -> None:
    held = sorted(holders(recorded))
    free = next(n for n in recorded.cluster.nodes or {} if n not in held)
    assert findings(with_metallb(recorded, pool(), announced_by(held[0])), "KTP608") == []
    (found,) = findings(with_metallb(recorded, pool(), advertisement(), announced_by(free)), "KTP608")
    assert found.nodes == (free,)
    assert "under policy Local its clients get no answer" in found.message


@pytest.mark.parametrize(
    ("objects", "service", "said"),
    [
        ([], {}, "MetalLB has no IPAddressPool"),
        ([pool()], {"annotations": {"metallb.io/address-pool": "gold"}}, "it asks for the pool gold, and there is first"),
        ([pool()], {"load_balancer_ip": "192.0.2.9"}, "it asks for 192.0.2.9, which is in no pool of MetalLB"),
        ([pool()], {"annotations": {"metallb.universe.tf/loadBalancerIPs": "10.99.0.11"}}, "it asks for 10.99.0.11, which edge/"),
        ([pool(autoAssign=False)], {}, "no pool of MetalLB gives addresses out by itself"),
        ([pool(serviceAllocation={"namespaces": ["shop"]})], {}, "no pool of MetalLB serves the namespace edge"),
    ],
)  # fmt: skip
def test_why_no_address_is_given(
    recorded: Snapshot, objects: list[dict[str, Any]], service: dict[str, Any], said: str
) -> None:
    if "10.99.0.11" in said:
        other = next(k for k, s in recorded.cluster.services.items() if s.type == "LoadBalancer" and k != KEY)
        taken = replace(recorded.cluster.services[other], ingress=(LoadBalancerIngress(ip="10.99.0.11"),))
        services = {**recorded.cluster.services, other: taken}
        recorded = replace(recorded, cluster=replace(recorded.cluster, services=services))
    (found,) = findings(with_metallb(recorded, *objects, ingress=(), **service), "KTP607")
    assert said in found.message


def test_a_free_pool_explains_nothing(recorded: Snapshot) -> None:
    (found,) = findings(with_metallb(recorded, pool(), ingress=()), "KTP607")
    assert "MetalLB" not in found.message
    (other,) = findings(with_metallb(recorded, ingress=(), load_balancer_class="example.com/cloud"), "KTP607")
    assert "MetalLB" not in other.message


@pytest.mark.parametrize("served", [False, True])
def test_a_class_that_another_service_got_an_address_by(recorded: Snapshot, served: bool) -> None:
    name = "example.com/cloud"
    snapshot = with_metallb(recorded, ingress=(), load_balancer_class=name)
    services = dict(snapshot.cluster.services)
    other = next(k for k, s in services.items() if s.type == "LoadBalancer" and k != KEY and s.ingress)
    if served:
        services[other] = replace(services[other], load_balancer_class=name)
    snapshot = replace(snapshot, cluster=replace(snapshot.cluster, services=services))
    (found,) = findings(snapshot, "KTP607")
    assert f"only a controller of class {name} takes it" in found.message
    assert (f"as it did {other}" in found.message) is served
    assert ("no Service of that class has an address here" in found.message) is not served


def service_lb(port: int = 80, *, ready: bool = False, name: str = "local-lb") -> Pod:
    return Pod(
        namespace="kube-system",
        name=f"svclb-{name}-x",
        node_name="node-a" if ready else None,
        phase="Running" if ready else "Pending",
        labels={
            "svccontroller.k3s.cattle.io/svcname": name,
            "svccontroller.k3s.cattle.io/svcnamespace": "edge",
        },
        ports=(ContainerPort(container="lb", container_port=port, host_port=port),),
        conditions=(
            Condition(type="Ready", status="True")
            if ready
            else Condition(type="PodScheduled", status="False", message="1 node(s) had no free ports"),
        ),
    )


def test_the_pods_of_service_lb(recorded: Snapshot) -> None:
    def pending(*pods: Pod) -> str:
        snapshot = with_metallb(recorded, pool(), ingress=())
        all_pods = (*(snapshot.cluster.pods or ()), *pods)
        snapshot = replace(snapshot, cluster=replace(snapshot.cluster, pods=all_pods))
        (found,) = findings(snapshot, "KTP607")
        return found.message + "".join(e.text for e in found.evidence)

    said = pending(service_lb(), service_lb(name="traefik", ready=True))
    assert "no pod of ServiceLB is ready (kube-system/svclb-local-lb-x)" in said
    assert "kube-system/svclb-traefik-x holds port 80/TCP of node-a" in said
    assert "PodScheduled False: 1 node(s) had no free ports" in said
    assert "holds port" not in pending(service_lb(), service_lb(8080, name="traefik", ready=True))
    assert "ServiceLB" not in pending(service_lb(ready=True))
    assert "ServiceLB" not in pending(service_lb(name="another"))


def test_ranges_and_selectors() -> None:
    (only,) = parse_pools(
        json.dumps([pool("a", "192.0.2.10-192.0.2.20", "2001:db8::/126"), {"kind": "BFDProfile"}])
    )
    for text, inside in (
        ("192.0.2.10", True), ("192.0.2.20", True), ("192.0.2.21", False), ("2001:db8::3", True), ("2001:db8::4", False),
    ):  # fmt: skip
        assert only.holds(ip_address(text)) is inside
    with pytest.raises(EvidenceError, match=f"IPAddressPool a of {POOLS} is not usable"):
        parse_pools(json.dumps({"items": [pool("a", "no address")]}))
    near = advertisement(nodeSelectors=[{"matchExpressions": [{"key": "k", "operator": "Near"}]}])
    with pytest.raises(EvidenceError, match="there is no operator 'Near'"):
        parse_l2(json.dumps({"items": [near]}))


def test_of_a_kind_that_was_not_read_nothing_is_concluded(recorded: Snapshot) -> None:
    """Somebody posts the pools alone, or some advertisements: others may announce the address."""
    for unread in ([L2], [BGP]):
        assert findings(with_metallb(recorded, pool(), unread=unread), "KTP608") == []
    (found,) = findings(
        with_metallb(recorded, pool("first", "192.0.2.0/24"), unread=[POOLS], ingress=()), "KTP607"
    )
    assert "MetalLB" not in found.message
    pools = parse_pools(json.dumps([pool()]))
    alone = metallb_of(pools, None, None, None, ())
    assert alone is not None
    assert not alone.advertisements_known
    snapshot = replace(recorded, cluster=replace(recorded.cluster, metallb=alone))
    assert findings(snapshot, "KTP608") == []
    assert metallb_of(None, None, None, None, ()) is None


def test_objects_of_several_kinds_may_have_one_name() -> None:
    """As in a folder that a collector left, or what `kubectl get` printed of several kinds at once."""
    same = [{**pool("main"), "metadata": {"name": "main", "namespace": "metallb-system"}}]
    same.append({**advertisement(), "metadata": {"name": "main", "namespace": "metallb-system"}})
    files, kinds, useless = gathered({"all.json": json.dumps({"kind": "List", "items": same}).encode()})
    assert (kinds, useless) == ({"IPAddressPool": 1, "L2Advertisement": 1}, [])
    assert {POOLS, L2} <= files.keys()
    assert BGP not in files
