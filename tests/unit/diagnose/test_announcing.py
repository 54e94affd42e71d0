"""MetalLB, Cilium, kube-vip: addresses that no node announces, and why one is not given, by it or by k3s's ServiceLB.

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
from ktp.diagnose.case import Case
from ktp.diagnose.checks import ALL_CHECKS
from ktp.diagnose.examine import Examiner
from ktp.errors import EvidenceError
from ktp.model.announcing import (
    BGP,
    L2,
    L2_STATUSES,
    LEASES,
    POOLS,
    RESOURCES,
    AddressPool,
    Provider,
    Resource,
)
from ktp.model.cluster import Condition, ContainerPort, LoadBalancerIngress, Pod
from ktp.model.diagnosis import Finding, Severity
from ktp.model.snapshot import Snapshot
from ktp.parse.announcing import Announced, announcing_of, parse_announced
from ktp.parse.manifests import gathered
from ktp.parse.snapshot import parse_snapshot

CASE = Path(__file__).resolve().parents[2] / "data" / "cases" / "core-1.36-iptables-nft"
KEY = "edge/local-lb"  # type LoadBalancer, policy Local, 10.99.0.10
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
    announcing = announcing_of(parsed([POOLS, L2, BGP, L2_STATUSES], objects), unread)
    return replace(snapshot, cluster=replace(snapshot.cluster, announcing=announcing, services=services))


def parsed(
    kinds: Collection[Resource], objects: Collection[dict[str, Any]]
) -> dict[Resource, tuple[Announced, ...]]:
    return {
        kind: parse_announced(json.dumps({"items": [o for o in objects if o["kind"] == kind.kind]}), kind)
        for kind in kinds
    }


def labelled(snapshot: Snapshot, **labels: dict[str, str]) -> Snapshot:
    nodes = {
        n: replace(node, labels={**node.labels, **labels.get(n.replace("-", "_"), {})})
        for n, node in (snapshot.cluster.nodes or {}).items()
    }
    return replace(snapshot, cluster=replace(snapshot.cluster, nodes=nodes))


def findings(snapshot: Snapshot, code: str) -> list[Finding]:
    """What one check says; it asks for no packets."""
    case = Case(Examiner(snapshot), snapshot.cluster.services[KEY], (), tuple(snapshot.cluster.nodes or ()))
    (check,) = [each for each in ALL_CHECKS if each.code == code]
    return list(check.run(case))


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
    assert recorded.cluster.announcing is None
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
    assert "under policy Local clients who come there fail" in found.message


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
    text = json.dumps([pool("a", "192.0.2.10-192.0.2.20", "2001:db8::/126"), {"kind": "BFDProfile"}])
    (only,) = parse_announced(text, POOLS)
    assert isinstance(only, AddressPool)
    for text, inside in (
        ("192.0.2.10", True), ("192.0.2.20", True), ("192.0.2.21", False), ("2001:db8::3", True), ("2001:db8::4", False),
    ):  # fmt: skip
        assert only.holds(ip_address(text)) is inside
    with pytest.raises(EvidenceError, match=f"IPAddressPool a of {POOLS.file} is not usable"):
        parse_announced(json.dumps({"items": [pool("a", "no address")]}), POOLS)
    near = advertisement(nodeSelectors=[{"matchExpressions": [{"key": "k", "operator": "Near"}]}])
    with pytest.raises(EvidenceError, match="there is no operator 'Near'"):
        parse_announced(json.dumps({"items": [near]}), L2)


def test_of_a_kind_that_was_not_read_nothing_is_concluded(recorded: Snapshot) -> None:
    """Somebody posts the pools alone, or some advertisements: others may announce the address."""
    for unread in ([L2.file], [BGP.file]):
        assert findings(with_metallb(recorded, pool(), unread=unread), "KTP608") == []
    (found,) = findings(
        with_metallb(recorded, pool("first", "192.0.2.0/24"), unread=[POOLS.file], ingress=()), "KTP607"
    )
    assert "MetalLB" not in found.message
    alone = announcing_of({POOLS: parse_announced(json.dumps([pool()]), POOLS)})
    assert alone is not None
    assert not alone.advertisements_known
    snapshot = replace(recorded, cluster=replace(recorded.cluster, announcing=alone))
    assert findings(snapshot, "KTP608") == []
    assert announcing_of({}) is None


def test_objects_of_several_kinds_may_have_one_name() -> None:
    """As in a folder that a collector left, or what `kubectl get` printed of several kinds at once."""
    same = [{**pool("main"), "metadata": {"name": "main", "namespace": "metallb-system"}}]
    same.append({**advertisement(), "metadata": {"name": "main", "namespace": "metallb-system"}})
    files, kinds, useless = gathered({"all.json": json.dumps({"kind": "List", "items": same}).encode()})
    assert (kinds, useless) == ({"IPAddressPool": 1, "L2Advertisement": 1}, [])
    assert {POOLS.file, L2.file} <= files.keys()
    assert BGP.file not in files


# ------------------------------------------------------------------------------------------------------- Cilium

CILIUM = [each for each in RESOURCES if each.provider is Provider.CILIUM] + [LEASES]
ALL_SERVICES = {"matchExpressions": [{"key": "no", "operator": "NotIn", "values": ["never"]}]}


def cilium_pool(name: str = "blue", **spec: Any) -> dict[str, Any]:
    whole = {"blocks": [{"cidr": "10.99.0.0/24"}], **spec}
    return {"kind": "CiliumLoadBalancerIPPool", "metadata": {"name": name}, "spec": whole}


def l2_policy(**spec: Any) -> dict[str, Any]:
    spec = {"loadBalancerIPs": True, **spec}
    return {"kind": "CiliumL2AnnouncementPolicy", "metadata": {"name": "lan"}, "spec": spec}


def bgp(*addresses: str, selector: dict[str, Any] | None) -> dict[str, Any]:
    own: dict[str, Any] = {"advertisementType": "Service", "service": {"addresses": list(addresses)}}
    if selector is not None:
        own["selector"] = selector
    spec = {"advertisements": [{"advertisementType": "PodCIDR"}, own]}
    return {"kind": "CiliumBGPAdvertisement", "metadata": {"name": "bgp"}, "spec": spec}


def lease(node: str, name: str = "cilium-l2announce-edge-local-lb") -> dict[str, Any]:
    return {"kind": "Lease", "metadata": {"name": name}, "spec": {"holderIdentity": node}}


def with_cilium(
    snapshot: Snapshot, *objects: dict[str, Any], unread: Collection[Resource] = (), **service: Any
) -> Snapshot:
    services = {**snapshot.cluster.services, KEY: replace(snapshot.cluster.services[KEY], **service)}
    announcing = announcing_of(parsed([kind for kind in CILIUM if kind not in unread], objects))
    return replace(snapshot, cluster=replace(snapshot.cluster, announcing=announcing, services=services))


def on(*nodes: str) -> dict[str, Any]:
    values = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    return {"matchExpressions": [values]}


def hosts(snapshot: Snapshot) -> Snapshot:
    return labelled(
        snapshot,
        **{n.replace("-", "_"): {"kubernetes.io/hostname": n} for n in snapshot.cluster.nodes or {}},
    )


def test_cilium_announces_by_policies_and_over_bgp(recorded: Snapshot) -> None:
    cluster: dict[str, Any] = {"external_traffic_policy": "Cluster"}
    for objects in (
        [l2_policy()],
        [l2_policy(serviceSelector={"matchLabels": {"io.kubernetes.service.namespace": "edge"}})],
        [bgp("LoadBalancerIP", selector=ALL_SERVICES)],
        [
            {
                "kind": "CiliumBGPPeeringPolicy",
                "metadata": {"name": "old"},
                "spec": {"virtualRouters": [{"serviceSelector": ALL_SERVICES}]},
            }
        ],
    ):
        assert findings(with_cilium(recorded, cilium_pool(), *objects, **cluster), "KTP608") == []


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ([], "which no advertisement announces"),
        ([l2_policy(loadBalancerIPs=False)], "(CiliumL2AnnouncementPolicy lan is of no load-balancer addresses)"),
        (
            [l2_policy(serviceSelector={"matchLabels": {"io.kubernetes.service.name": "another"}})],
            "(CiliumL2AnnouncementPolicy lan selects other Services)",
        ),
        ([bgp("LoadBalancerIP", selector=None)], "(CiliumBGPAdvertisement bgp selects other Services)"),
        ([bgp("ClusterIP", selector=ALL_SERVICES)], "(CiliumBGPAdvertisement bgp is of no load-balancer addresses)"),
    ],
)  # fmt: skip
def test_an_address_of_cilium_that_nothing_announces(
    recorded: Snapshot, objects: list[dict[str, Any]], why: str
) -> None:
    (found,) = findings(with_cilium(recorded, cilium_pool(), *objects), "KTP608")
    assert found.severity is Severity.WARNING
    assert found.message.startswith(f"10.99.0.10 of {KEY} is from Cilium's pool blue, which no advertisement")
    assert found.message.endswith(why)
    # Of a kind that was not read nothing is concluded, nor where kube-vip says that it has the address.
    for unread in CILIUM[1:4]:
        assert findings(with_cilium(recorded, cilium_pool(), *objects, unread=[unread]), "KTP608") == []
    vip: dict[str, Any] = {"annotations": {"kube-vip.io/vipHost": next(iter(holders(recorded)))}}
    assert findings(with_cilium(recorded, cilium_pool(), *objects, **vip), "KTP608") == []
    # A policy of the other class does not take a Service with one.
    other: dict[str, Any] = {
        "load_balancer_class": "io.cilium/bgp-control-plane",
        "external_traffic_policy": "Cluster",
    }
    assert findings(with_cilium(recorded, cilium_pool(), l2_policy(), **other), "KTP608") != []


def test_cilium_elects_a_node_without_looking_for_endpoints(recorded: Snapshot) -> None:
    recorded = hosts(recorded)
    held = sorted(holders(recorded))
    (empty,) = set(recorded.cluster.nodes or {}) - set(held)
    (may,) = findings(with_cilium(recorded, cilium_pool(), l2_policy()), "KTP608")
    assert (may.severity, may.nodes) == (Severity.WARNING, (empty,))
    assert f"may announce 10.99.0.10 of {KEY} from {empty} too" in may.message
    assert findings(with_cilium(recorded, cilium_pool(), l2_policy(nodeSelector=on(*held))), "KTP608") == []
    (only,) = findings(with_cilium(recorded, cilium_pool(), l2_policy(nodeSelector=on(empty))), "KTP608")
    assert only.message.startswith(f"no node with a pod announces 10.99.0.10 of {KEY}: the policy is Local")
    # Over BGP only nodes with a pod announce it.
    over_bgp = bgp("LoadBalancerIP", selector=ALL_SERVICES)
    assert findings(with_cilium(recorded, cilium_pool(), l2_policy(), over_bgp), "KTP608") == []
    # The lease says who won.
    (wrong,) = findings(with_cilium(recorded, cilium_pool(), l2_policy(), lease(empty)), "KTP608")
    assert (wrong.severity, wrong.nodes) == (Severity.ERROR, (empty,))
    assert "(Lease cilium-l2announce-edge-local-lb)" in wrong.message
    assert findings(with_cilium(recorded, cilium_pool(), l2_policy(), lease(held[0])), "KTP608") == []
    for policy in ("Local", "Cluster"):
        others = with_cilium(
            recorded, cilium_pool(), l2_policy(nodeSelector=on(*held)), lease(empty, "cilium-l2announce-edge-other"),
            external_traffic_policy=policy,
        )  # fmt: skip
        assert findings(others, "KTP608") == []


def test_kube_vip_says_who_has_the_address(recorded: Snapshot) -> None:
    held = sorted(holders(recorded))
    (empty,) = set(recorded.cluster.nodes or {}) - set(held)

    def vip_on(node: str, **service: Any) -> list[Finding]:
        own = {"annotations": {"kube-vip.io/vipHost": node}, **service}
        services = {**recorded.cluster.services, KEY: replace(recorded.cluster.services[KEY], **own)}
        return findings(replace(recorded, cluster=replace(recorded.cluster, services=services)), "KTP608")

    (wrong,) = vip_on(empty)
    assert (wrong.severity, wrong.nodes) == (Severity.WARNING, (empty,))
    assert vip_on(held[0]) == vip_on(empty, external_traffic_policy="Cluster") == vip_on("gone") == []


@pytest.mark.parametrize(
    ("objects", "service", "why"),
    [
        (
            [cilium_pool(serviceSelector={"matchLabels": {"color": "red"}})],
            {},
            "no pool of Cilium selects it (blue)",
        ),
        ([cilium_pool(disabled=True)], {}, "blue, of Cilium's pools those for it, give nothing out"),
        ([], {"load_balancer_class": "io.cilium/l2-announcer"}, "Cilium has no CiliumLoadBalancerIPPool"),
        (
            [cilium_pool()],
            {
                "conditions": (
                    Condition(
                        type="cilium.io/IPAMRequestSatisfied",
                        status="False",
                        reason="out_of_ips",
                        message="All enabled pools are full",
                    ),
                )
            },
            'Cilium says "All enabled pools are full"',
        ),
    ],
)
def test_why_cilium_gives_no_address(
    recorded: Snapshot, objects: list[dict[str, Any]], service: dict[str, Any], why: str
) -> None:
    (found,) = findings(with_cilium(recorded, *objects, ingress=(), **service), "KTP607")
    assert found.message.endswith(f"; {why}")


def test_cilium_is_not_blamed_for_what_it_may_not_have_to_do_with(recorded: Snapshot) -> None:
    """Pools that serve it, none at all, a class of somebody else's, pools that were not read."""
    closed = cilium_pool(disabled=True)
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        ([cilium_pool()], {}),
        ([], {}),
        ([closed], {"load_balancer_class": "example.com/cloud"}),
    ]
    for objects, service in cases:
        (found,) = findings(with_cilium(recorded, *objects, ingress=(), **service), "KTP607")
        assert "Cilium" not in found.message
    (found,) = findings(with_cilium(recorded, closed, ingress=(), unread=CILIUM[:1]), "KTP607")
    assert "Cilium" not in found.message


def test_blocks_and_conflicts_of_cilium_pools() -> None:
    spec: dict[str, Any] = {
        "blocks": [{"start": "192.0.2.10", "stop": "192.0.2.20"}, {"start": "192.0.2.30"}]
    }
    status = {"conditions": [{"type": "cilium.io/PoolConflict", "status": "True", "message": "overlaps red"}]}
    text = json.dumps([{**cilium_pool(**spec), "status": status}])
    (only,) = parse_announced(text, CILIUM[0])
    assert isinstance(only, AddressPool)
    assert only.conflict == "overlaps red"
    for address, inside in (("192.0.2.10", True), ("192.0.2.20", True), ("192.0.2.21", False), ("192.0.2.30", True)):  # fmt: skip
        assert only.holds(ip_address(address)) is inside
