"""Scenarios of the catalogue of issue 5: code → (a cluster in which it is found, a healthy twin)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from ktp.kubeproxy.names import service_chains
from ktp.model.announcing import AddressPool, Advertisement, Announcing, Provider
from ktp.model.cluster import (
    Cluster,
    Condition,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
)
from ktp.model.policy import Block, IngressRule, NetworkPolicy
from ktp.model.selector import LabelSelector
from ktp.model.snapshot import Snapshot
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    NFT,
    RECORDED,
    Asked,
    Edit,
    Objects,
    both,
    demo,
    first_rule,
    only_nodes,
    programmed,
    recorded,
    service_with,
    sysctl,
    with_objects,
    without_rules,
)

Ask = Callable[[], Asked]
LB = "edge/local-lb"  # Local, two pods on node-b, one on node-c; node port 30006, health check port
NAMED = "edge/named-local"
_EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
_PROXY_NAME = "service.kubernetes.io/service-proxy-name"


# ----------------------------------------------------------------------------------------------------- API objects


def slices_with(
    key: str, change: Callable[[EndpointSlice], EndpointSlice], *, kinds: str = "slices endpoints"
) -> Objects:
    """The Service's slices (and Endpoints) in another form."""
    mine = tuple(key.split("/"))

    def edit(cluster: Cluster) -> Cluster:
        for kind in kinds.split():
            parts = getattr(cluster, kind)
            if parts is not None:
                new = tuple(change(p) if (p.namespace, p.service_name) == mine else p for p in parts)
                changed: dict[str, Any] = {kind: new}
                cluster = replace(cluster, **changed)
        return cluster

    return edit


def endpoints_with(change: Callable[[Endpoint], Endpoint]) -> Callable[[EndpointSlice], EndpointSlice]:
    return lambda s: replace(s, endpoints=tuple(change(e) for e in s.endpoints))


def node_with(name: str, **fields: object) -> Objects:
    def edit(cluster: Cluster) -> Cluster:
        nodes = dict(cluster.nodes or {})
        nodes[name] = replace(nodes[name], **fields)  # type: ignore[arg-type]
        return replace(cluster, nodes=nodes)

    return edit


def metallb(*advertisements: Advertisement) -> Objects:
    """MetalLB's pool with the recorded load-balancer addresses, and what announces it."""
    pool = AddressPool(name="first", ranges=((ip_address("10.99.0.1"), ip_address("10.99.0.99")),))
    return lambda cluster: replace(
        cluster,
        announcing=Announcing(
            pools=(pool,), advertisements=advertisements, advertisements_known=frozenset({Provider.METALLB})
        ),
    )


def closed(*cidrs: str, read: bool = False) -> Ask:
    """A policy that selects the Service's pods and lets in these addresses; without `read` no node's rules are there."""

    def asked() -> Asked:
        snapshot = recorded()
        namespace = LB.partition("/")[0]
        rules = (IngressRule(blocks=tuple(Block(cidr=ip_network(text)) for text in cidrs)),) if cidrs else ()
        policy = NetworkPolicy(namespace=namespace, name="deny", pods=LabelSelector(), rules=rules)
        cluster = replace(snapshot.cluster, policies=(policy,))
        return Asked(replace(snapshot, cluster=cluster, nodes=snapshot.nodes if read else {}), LB)

    return asked


def in_step(key: str, change: Objects, base: Callable[[], Snapshot] = recorded) -> Ask:
    """Other API objects, with kube-proxy's rules in step."""
    return lambda: Asked(programmed(base(), key, change), key)


def objects(key: str, change: Objects, base: Callable[[], Snapshot] = recorded) -> Ask:
    """Other API objects that no rule depends on."""
    return lambda: Asked(with_objects(base(), change), key)


def same(key: str, base: Callable[[], Snapshot] = recorded) -> Ask:
    return lambda: Asked(base(), key)


def edited(key: str, *edits: tuple[str, str, Edit], base: Callable[..., Snapshot] = demo) -> Ask:
    return lambda: Asked(base({(node, file): edit for node, file, edit in edits}), key)


def annotated(key: str, **annotations: str) -> Ask:
    """Annotations, spelled as Python can: `a_b__c_d` is `a.b/c-d`."""
    parts = {k.partition("__"): v for k, v in annotations.items()}
    values = {f"{a.replace('_', '.')}/{b.replace('_', '-')}": v for (a, _, b), v in parts.items()}
    return objects(key, service_with(key, annotations=values))


def _wrong_target_name() -> Asked:
    """targetPort names a port that no container has: the controller's slices then list no port."""
    change = both(
        lambda c: service_with(NAMED, ports=(replace(c.services[NAMED].ports[0], target_port="wbe"),))(c),
        slices_with(NAMED, lambda s: replace(s, ports=())),
    )
    return Asked(programmed(recorded(), NAMED, change), NAMED)


def _other_port_name(protocol: str = "TCP") -> Objects:
    return slices_with(
        CLUSTER, lambda s: replace(s, ports=(EndpointPort(name="http", protocol=protocol, port=80),))
    )


def _dual(one_family: bool) -> Asked:
    """A dual-stack Service, by the API alone."""
    change = service_with(
        CLUSTER, cluster_ips=("172.16.9.9", "fd00:10::9"), ip_families=("IPv4", "IPv6"),
    )  # fmt: skip
    if not one_family:
        more = EndpointSlice(
            namespace="test", name="nginx-log-6", service_name="nginx-log", address_type="IPv6",
            ports=(EndpointPort(name="80-80-tcp", port=80),),
            endpoints=(Endpoint(addresses=("fd00:244:1::12",), ready=True, node_name="node-a"),),
        )  # fmt: skip
        change = both(change, lambda c: replace(c, slices=(*(c.slices or ()), more)))
    return Asked(with_objects(only_nodes(recorded()), change), CLUSTER)


# ----------------------------------------------------------------------------------------------------------- nodes


def appended(*lines: str) -> Edit:
    return lambda text: text.rstrip("\n") + "\n" + "\n".join(lines) + "\n"


def configured(**fields: object) -> Edit:
    """Other fields of kube-proxy's configuration."""
    return lambda text: json.dumps({**json.loads(text), **fields})


def replaced(text: str) -> Edit:
    return lambda _: text


def _host_port(port: int) -> Asked:
    """Pod edge/ext-0 on node-b asks for a hostPort, and the CNI's rule stands before kube-proxy's."""
    rule = f"-A PREROUTING -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.244.2.26:80"
    snapshot = recorded({("node-b", NFT): first_rule("nat", rule)})
    wanted = ContainerPort(container="c0", name="http", container_port=80, host_port=port)

    def edit(cluster: Cluster) -> Cluster:
        pods = tuple(replace(p, ports=(wanted,)) if p.key == "edge/ext-0" else p for p in cluster.pods or ())
        return replace(cluster, pods=pods)

    return Asked(with_objects(snapshot, edit), CLUSTER)


_EMPTY = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
_CILIUM = "*filter\n:INPUT ACCEPT [0:0]\n:CILIUM_INPUT - [0:0]\n-A INPUT -j CILIUM_INPUT\nCOMMIT\n"


def with_device(name: str) -> Edit:
    device = {
        "ifindex": 77,
        "ifname": name,
        "flags": ["UP"],
        "mtu": 1500,
        "link_type": "ether",
        "addr_info": [],
    }
    return lambda text: json.dumps([*json.loads(text), device])


def _leftover(text: str) -> str:
    """A chain of local endpoints that nothing jumps to any more, with an endpoint that is gone."""
    old = service_chains("test/nginx-log:80-80-tcp", "tcp").svl
    rules = (
        f":{old} - [0:0]\n:KUBE-SEP-OLDOLDOLDOLDOLD1 - [0:0]\n-A {old} -j KUBE-SEP-OLDOLDOLDOLDOLD1\n"
        "-A KUBE-SEP-OLDOLDOLDOLDOLD1 -p tcp -m tcp -j DNAT --to-destination 10.244.9.9:80\n"
    )
    head, mark, tail = text.partition("*nat\n")
    return head + mark + tail.replace("COMMIT\n", rules + "COMMIT\n", 1)


def _large() -> Asked:
    """1,100 endpoints of another Service, and rules without comments."""

    def bare(text: str) -> str:
        return re.sub(r'(-A KUBE-SEP-\S+ .*?)-m comment --comment "[^"]*" ', r"\1", text)

    many = EndpointSlice(
        namespace="test", name="many", service_name="many", ports=(EndpointPort(name="p", port=80),),
        endpoints=tuple(Endpoint(addresses=(f"10.200.{i // 200}.{i % 200 + 1}",), ready=True) for i in range(1100)),
    )  # fmt: skip
    snapshot = recorded({("node-b", NFT): bare})
    return Asked(with_objects(snapshot, lambda c: replace(c, slices=(*(c.slices or ()), many))), CLUSTER)


_INPUT = "-A INPUT -p tcp -m tcp --dport {ports} -j DROP"
_NAT = "-A POSTROUTING {match} -j MASQUERADE"

_LOCALLY = "-s 10.244.0.0/16 ! -d 10.244.0.0/16"


def of_case(name: str, key: str, *edits: tuple[str, str, Edit]) -> Ask:
    """A recorded cluster of another data plane than the usual."""
    folder = RECORDED.parent / name
    return lambda: Asked(demo({(node, file): edit for node, file, edit in edits}, folder=folder), key)


def in_ipvs(key: str, *edits: tuple[str, str, Edit]) -> Ask:
    """A recorded cluster whose kube-proxy runs in IPVS mode."""
    return of_case("ipvs-1.36-legacy", key, *edits)


def tunnelled(neighbours: str) -> Ask:
    """Node-b reaches the pods of node-a through a vxlan that learns nothing, with these entries."""

    def routes(text: str) -> str:
        far = {"dst": "10.244.1.0/24", "gateway": "10.244.1.0", "dev": "flannel.1", "flags": ["onlink"]}
        return json.dumps([*(r for r in json.loads(text) if not r["dst"].startswith("10.244.1.")), far])

    said = {"id": 1, "local": "10.0.0.10", "port": 8472, "learning": False}
    link = [{"ifname": "flannel.1", "flags": ["UP"], "linkinfo": {"info_kind": "vxlan", "info_data": said}}]
    return edited(
        CLUSTER, ("node-b", "ip-route.json", routes), ("node-b", "ip-link.json", replaced(json.dumps(link))),
        ("node-b", "ip-neigh.json", replaced(neighbours)), ("node-b", "ip-addr.json", with_device("flannel.1")),
    )  # fmt: skip


def through_wireguard(allowed: str, endpoint: str = "10.0.0.3", mtu: int = 1500) -> Ask:
    """Node-b, whose network has this MTU, reaches node-a's pods through WireGuard, with this peer there."""

    def links(text: str) -> str:
        found = json.loads(with_device("wg0")(text))
        return json.dumps([{**link, "mtu": mtu} if link["ifname"] == "eth0" else link for link in found])

    def routes(text: str) -> str:
        far = {"dst": "10.244.1.0/24", "dev": "wg0", "scope": "link"}
        return json.dumps([*(r for r in json.loads(text) if not r["dst"].startswith("10.244.1.")), far])

    link = replaced(json.dumps([{"ifname": "wg0", "flags": ["UP"], "linkinfo": {"info_kind": "wireguard"}}]))
    dumps = {
        "node-a": "wg0\t(hidden)\tA\t51820\toff\nwg0\tB\t(hidden)\t(none)\t10.0.0.0/8\t0\t0\t0\toff\n",
        "node-b": f"wg0\t(hidden)\tB\t51820\toff\nwg0\tA\t(hidden)\t{endpoint}:51820\t{allowed}\t0\t0\t0\toff\n",
    }
    return edited(
        CLUSTER, ("node-b", "ip-route.json", routes),
        ("node-a", "ip-addr.json", with_device("wg0")), ("node-b", "ip-addr.json", links),
        *((node, "ip-link.json", link) for node in dumps),
        *((node, "wg.txt", replaced(text)) for node, text in dumps.items()),
    )  # fmt: skip


def _without_backends(text: str) -> str:
    """The maps of an agent that has not heard of the Services' pods."""
    return json.dumps({k: v for k, v in json.loads(text).items() if k.endswith("(0)")})


_TO_SIDECAR = """\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j REDIRECT --to-ports 15006
COMMIT
"""
DEADPORT, DEADPORT_SOCKETS = "edge/deadport-local", "pods/edge_deadport-0/ss.txt"
POLICY, LEFT_OVER = "cilium-1.19.4-policy", "cilium-1.19.4-tunnel-leftover-kube-proxy"


def _tracked(count: str) -> Callable[[str], str]:
    def more(text: str) -> str:
        return f"{text}net.netfilter.nf_conntrack_count = {count}\nnet.netfilter.nf_conntrack_max = 262144\n"

    return more


def _udp_entry(endpoint: str) -> Edit:
    return replaced(
        "udp      17 22 src=10.0.0.100 dst=10.0.0.10 sport=40053 dport=30011 [UNREPLIED] "
        f"src={endpoint} dst=10.0.0.100 sport=5353 dport=40053 mark=0 use=1\n"
    )


def _counted(clashed: int) -> Edit:
    table = "entries  insert_failed clashres\n0000000a {:08x} 00000000\n0000000a 00000001 00000000\n"
    return replaced(f"100.00 1.00\n{table.format(16)}105.00 1.00\n{table.format(clashed)}")


FOUR_PORTS = (
    "node-b", NFT, lambda text: text.replace("-j MASQUERADE --random-fully", "-j MASQUERADE --to-ports 5000-5003")
)  # fmt: skip


def ports_taken(states: Iterable[str], *, endpoint: str = "10.244.1.12") -> Edit:
    """A masqueraded connection through node-b to an endpoint from each port from 5000 on, in these states of TCP."""
    return replaced(
        "".join(
            f"tcp      6 100 {state} src=10.0.0.100 dst=10.0.0.10 sport={40000 + number} dport=31000 "
            f"src={endpoint} dst=10.0.0.10 sport=80 dport={5000 + number} [ASSURED] mark=0 use=1\n"
            for number, state in enumerate(states)
        )
    )


def _with_mtu(mtu: int) -> Ask:
    """node-b has another MTU at its network, and no node has a tunnel."""

    def edit(text: str) -> str:
        links = json.loads(text)
        (uplink,) = (link for link in links if link["ifname"] == "eth0")
        return json.dumps([{**link, "mtu": mtu} if link is uplink else link for link in links])

    links = [(node, "ip-link.json", replaced("[]\n")) for node in ("node-a", "node-b", "node-c")]
    return edited(CLUSTER, ("node-b", "ip-addr.json", edit), *links, base=recorded)


def _invalid(grown: int, liberal: str = "0") -> Ask:
    """A node on which packets fit no connection, that many more each five seconds."""
    table = "entries  clashres invalid\n0000000a 00000000 {:08x}\n"
    text = f"100.00 1.00\n{table.format(16)}105.00 1.00\n{table.format(16 + grown)}"
    strict = sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", liberal)
    return edited(CLUSTER, ("node-b", "netstat.txt", replaced(text)), ("node-b", "sysctl.txt", strict))


def _narrow_route(rule: str) -> Ask:
    """node-a's routes to other nodes' pods have a smaller MTU; and it has this rule, too."""

    def edit(text: str) -> str:
        routes = json.loads(text)
        return json.dumps(
            [
                {**r, "metrics": [{"mtu": 1400}]} if r["dst"].startswith("10.244.") and "gateway" in r else r
                for r in routes
            ]
        )

    links = [(node, "ip-link.json", replaced("[]\n")) for node in ("node-a", "node-b", "node-c")]
    first = "-A OUTPUT -j KUBE-FIREWALL"
    rules_of = ("node-a", "iptables-nft-save.txt", lambda text: text.replace(first, f"{rule}\n{first}"))
    return edited(CLUSTER, ("node-a", "ip-route.json", edit), rules_of, *links, base=recorded)


CATALOGUE: dict[str, tuple[Ask, Ask]] = {
    "KTP221": (_invalid(3), _invalid(3, liberal="1")),
    "KTP222": (_narrow_route("-A OUTPUT -p icmp -j DROP"), _narrow_route("-A OUTPUT -p igmp -j DROP")),
    "KTP223": (
        edited(CLUSTER, FOUR_PORTS, ("node-b", "conntrack.txt", ports_taken(["ESTABLISHED"] * 4)), base=recorded),
        edited(CLUSTER, FOUR_PORTS, ("node-b", "conntrack.txt", ports_taken(["ESTABLISHED"] * 3)), base=recorded),
    ),
    "KTP220": (_with_mtu(1400), _with_mtu(9000)),
    "KTP218": (
        edited("edge/udp-local", ("node-b", "conntrack.txt", _udp_entry("10.244.2.99")), base=recorded),
        edited("edge/udp-local", ("node-b", "conntrack.txt", _udp_entry("10.244.2.29")), base=recorded),
    ),
    "KTP219": (
        edited(CLUSTER, ("node-b", "netstat.txt", _counted(19))),
        edited(CLUSTER, ("node-b", "netstat.txt", _counted(16))),
    ),
    "KTP211": (
        in_ipvs("edge/cluster-two", ("node-b", "sysctl.txt", sysctl("net.ipv4.vs.conntrack", "0"))),
        # A Local Service is not masqueraded anyhow.
        in_ipvs("edge/local-two", ("node-b", "sysctl.txt", sysctl("net.ipv4.vs.conntrack", "0"))),
    ),
    "KTP113": (
        same(DEADPORT),
        # Where the pods' sockets were read, KTP212 says it, or nothing is wrong.
        edited(DEADPORT, ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 0 5 *:8081 *:*\n")), base=recorded),
    ),
    "KTP212": (
        edited(DEADPORT, ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 0 5 *:8080 *:*\n")), base=recorded),
        edited(DEADPORT, ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 0 5 *:8081 *:*\n")), base=recorded),
    ),
    "KTP216": (
        edited(CLUSTER, ("node-b", "sysctl.txt", _tracked("262144"))),
        edited(CLUSTER, ("node-b", "sysctl.txt", _tracked("262143"))),
    ),
    "KTP215": (
        edited(DEADPORT, ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 6 5 *:8081 *:*\n")), base=recorded),
        # At its limit it still takes one.
        edited(DEADPORT, ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 5 5 *:8081 *:*\n")), base=recorded),
    ),
    "KTP213": (
        edited(
            DEADPORT,
            ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 0 5 *:8081 *:*\n")),
            ("node-a", "pods/edge_deadport-0/iptables-nft-save.txt", replaced(_TO_SIDECAR)),
            base=recorded,
        ),
        edited(
            DEADPORT,
            ("node-a", DEADPORT_SOCKETS, replaced("tcp LISTEN 0 5 *:8081 *:*\ntcp LISTEN 0 5 *:15006 *:*\n")),
            ("node-a", "pods/edge_deadport-0/iptables-nft-save.txt", replaced(_TO_SIDECAR)),
            base=recorded,
        ),
    ),
    "KTP214": (tunnelled("[]"), tunnelled('[{"dst":"10.244.1.0","dev":"flannel.1","lladdr":"0a:00:00:00:00:01"}]')),
    "KTP304": (of_case(POLICY, LOCAL), of_case(LEFT_OVER, LOCAL)),
    "KTP413": (
        of_case(LEFT_OVER, CLUSTER, ("node-a", "cilium/bpf-lb-list.json", _without_backends)),
        of_case(LEFT_OVER, CLUSTER),
    ),
    "KTP104": (_wrong_target_name, same(NAMED)),
    "KTP105": (in_step(CLUSTER, _other_port_name()), same(CLUSTER)),
    "KTP106": (
        in_step(LOCAL, slices_with(LOCAL, endpoints_with(lambda e: replace(e, node_name=None)))),
        in_step(CLUSTER, slices_with(CLUSTER, endpoints_with(lambda e: replace(e, node_name=None)))),
    ),
    "KTP107": (
        in_step(LOCAL, slices_with(LOCAL, endpoints_with(lambda e: replace(e, node_name="node-gone")))),
        same(LOCAL),
    ),
    "KTP108": (
        objects(CLUSTER, slices_with(CLUSTER, lambda s: replace(s, endpoints=s.endpoints[:1]), kinds="endpoints")),
        same(CLUSTER),
    ),
    "KTP109": (
        same("edge/pub-local"),
        objects(CLUSTER, service_with(CLUSTER, publish_not_ready_addresses=True)),
    ),
    "KTP110": (lambda: _dual(one_family=True), lambda: _dual(one_family=False)),
    "KTP111": (
        objects(CLUSTER, service_with(CLUSTER, labels={_PROXY_NAME: "other"})),
        objects(CLUSTER, service_with(CLUSTER, labels={"app": "x"})),
    ),
    "KTP112": (same("edge/local-term"), same("edge/mixterm-local")),
    "KTP204": (
        edited(CLUSTER, ("node-a", "sysctl.txt", sysctl("net.ipv4.ip_local_port_range", "1024 65000"))),
        edited(
            CLUSTER,
            ("node-a", "sysctl.txt", lambda text: sysctl("net.ipv4.ip_local_reserved_ports", "8080,30000-32767")(
                sysctl("net.ipv4.ip_local_port_range", "1024 65000")(text)
            )),
        ),
    ),
    "KTP205": (
        edited(CLUSTER, ("node-b", "ss.txt", appended("tcp LISTEN 0 128 0.0.0.0:31465 0.0.0.0:*")), base=recorded),
        # kube-proxy 1.20 holds its node ports itself
        same(CLUSTER, demo),
    ),
    "KTP206": (lambda: _host_port(31465), lambda: _host_port(31466)),
    "KTP207": (
        edited(
            CLUSTER,
            ("node-b", "kube-proxy-config.json", configured(nodePortAddresses=["192.168.0.0/16"])),
            ("node-b", LEGACY, without_rules("-A KUBE-SERVICES", "-j KUBE-NODEPORTS")),
        ),
        edited(CLUSTER, ("node-b", "kube-proxy-config.json", configured(nodePortAddresses=["10.0.0.0/24"]))),
    ),
    "KTP208": (
        objects(CLUSTER, node_with("node-b", conditions=(Condition(type="Ready", status="Unknown"),))),
        same(CLUSTER),
    ),
    "KTP403": (
        edited(CLUSTER, ("node-b", LEGACY, replaced(_CILIUM)), ("node-b", "ip-addr.json", with_device("cilium_host"))),
        edited(CLUSTER, ("node-b", "ip-addr.json", with_device("antrea-gw0"))),  # beside kube-proxy's rules
    ),
    "KTP406": (
        edited(CLUSTER, ("node-b", "kube-proxy-config.json", configured(hostnameOverride="ip-10-0-0-10"))),
        edited(CLUSTER, ("node-b", "kube-proxy-config.json", configured(hostnameOverride=""))),
    ),
    "KTP407": (edited(CLUSTER, ("node-b", LEGACY, replaced(_EMPTY))), same(CLUSTER, demo)),
    "KTP408": (
        edited(LOCAL, ("node-b", LEGACY, without_rules("-A KUBE-FIREWALL", "0x8000"))),
        edited(CLUSTER, ("node-b", LEGACY, without_rules("-A KUBE-FIREWALL", "0x8000"))),
    ),
    "KTP409": (edited(CLUSTER, ("node-b", NFT, _leftover), base=recorded), same(CLUSTER)),
    "KTP410": (
        edited(CLUSTER, ("node-a", LEGACY, without_rules("-A KUBE-MARK-MASQ"))),
        edited(CLUSTER, ("node-a", LEGACY, without_rules("-A KUBE-FORWARD", "INVALID"))),
    ),
    "KTP411": (_large, same(CLUSTER)),
    "KTP412": (
        in_step(CLUSTER, service_with(CLUSTER, external_ips=("10.99.0.50",)), demo),
        in_step(CLUSTER, service_with(CLUSTER, external_ips=("10.99.0.50",))),
    ),
    "KTP506": (
        edited(LOCAL, ("node-a", NFT, first_rule("nat", _NAT.format(match="-d 10.244.0.0/16"))), base=recorded),
        edited(
            LOCAL, ("node-a", NFT, first_rule("nat", _NAT.format(match=_LOCALLY))), base=recorded
        ),
    ),
    "KTP507": (
        annotated(
            LB,
            service_beta_kubernetes_io__aws_load_balancer_type="external",
            service_beta_kubernetes_io__aws_load_balancer_nlb_target_type="ip",
        ),
        annotated(
            LB,
            service_beta_kubernetes_io__aws_load_balancer_type="external",
            service_beta_kubernetes_io__aws_load_balancer_nlb_target_type="instance",
        ),
    ),
    "KTP602": (objects(LB, service_with(LB, health_check_node_port=0)), same(LB)),
    "KTP603": (
        edited(LB, ("node-b", NFT, first_rule("filter", _INPUT.format(ports="30000:32767"))), base=recorded),
        edited(LB, ("node-b", NFT, first_rule("filter", _INPUT.format(ports="8080:9090"))), base=recorded),
    ),
    "KTP604": (
        objects(LB, node_with("node-b", labels={_EXCLUDED: ""})),
        # no endpoint there
        objects(LB, node_with("node-a", labels={_EXCLUDED: ""})),
    ),
    "KTP605": (
        in_step(LB, service_with(LB, ingress=(LoadBalancerIngress(hostname="lb.example.com"),))),
        same(LB),
    ),
    "KTP606": (annotated(LB, service_cloud_tencent_com__local_svc_weighted_balance="true"), same(LB)),
    "KTP607": (in_step(LB, service_with(LB, ingress=())), same(LB)),
    "KTP305": (closed(), closed(read=True)),
    "KTP608": (objects(LB, metallb()), objects(LB, metallb(Advertisement(kind="L2Advertisement", name="all")))),
}  # fmt: skip
