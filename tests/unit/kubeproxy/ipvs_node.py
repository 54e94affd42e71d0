"""A node in IPVS mode as kube-proxy 1.23 and 1.30 would leave it, for the Service of `objects`.

Written by hand after kube-proxy's source, ipvsadm(8) and ipset(8), in the form that the commands print: no kernel ran
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.cluster import Endpoint
from ktp.model.host import Interface, InterfaceAddress, NextHop, NodeState, Route
from ktp.parse.ipset import parse_ipsets
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.ipvs import parse_ipvs
from tests.unit.kubeproxy.objects import LOCAL_IP, REMOTE_IP

NODE_IPS = ("10.0.0.3", "10.0.0.103")
LB_IP, EXTERNAL_IP, CLUSTER_IP = "10.99.0.10", "10.99.0.20", "172.16.0.10"
VIPS = (CLUSTER_IP, LB_IP, EXTERNAL_IP)
PODS = {"10.244.1.50": "node-a", LOCAL_IP: "node-a", REMOTE_IP: "node-b", "10.244.3.50": "node-c"}
NODES = {"node-a": "10.0.0.3", "node-b": "10.0.0.10", "node-c": "10.0.0.13"}

_DATA = Path(__file__).resolve().parents[2] / "data" / "kubeproxy" / "ipvs"


def rules(minor: int) -> bytes:
    """`iptables-save` of kube-proxy 1.23 or 1.30."""
    return (_DATA / f"iptables-save-1.{minor}.txt").read_bytes()


def sets(minor: int, *, local: bool) -> str:
    """`ipset save` for the Service under policy Local or Cluster."""
    names = {
        "KUBE-CLUSTER-IP": [f"{CLUSTER_IP},tcp:80"],
        "KUBE-LOAD-BALANCER": [f"{LB_IP},tcp:80"],
        "KUBE-LOAD-BALANCER-LOCAL": [f"{LB_IP},tcp:80"] if local else [],
        "KUBE-LOAD-BALANCER-FW": [],
        "KUBE-EXTERNAL-IP": [] if local else [f"{EXTERNAL_IP},tcp:80"],
        "KUBE-EXTERNAL-IP-LOCAL": [f"{EXTERNAL_IP},tcp:80"] if local else [],
    }
    lines = []
    for name, entries in names.items():
        lines.append(f"create {name} hash:ip,port family inet hashsize 1024 maxelem 65536")
        lines += [f"add {name} {entry}" for entry in entries]
    lines.append("create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536")
    lines.append(f"add KUBE-LOOP-BACK {LOCAL_IP},tcp:8080,{LOCAL_IP}")
    for name in ("KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-HEALTH-CHECK-NODE-PORT"):
        lines.append(f"create {name} bitmap:port range 0-65535")
    lines.append("add KUBE-NODE-PORT-TCP 30080")
    if local:
        lines.append("add KUBE-NODE-PORT-LOCAL-TCP 30080")
    if minor >= 26:
        lines.append("create KUBE-IPVS-IPS hash:ip family inet hashsize 1024 maxelem 65536")
        lines += [f"add KUBE-IPVS-IPS {ip}" for ip in VIPS]
    return "\n".join(lines) + "\n"


def servers(minor: int, endpoints: Sequence[Endpoint], *, local: bool, persistent: bool = False) -> str:
    """`ipvsadm -Sn`: under Local the local endpoints; where there are none, none (1.23) or all (since 1.24)."""
    everywhere = [e.addresses[0] for e in endpoints if e.ready]
    here = [e.addresses[0] for e in endpoints if e.ready and e.node_name == "node-a"]
    outside = (here if here or minor <= 23 else everywhere) if local else everywhere
    fronts = [(f"{ip}:30080", outside) for ip in NODE_IPS]
    fronts += [(f"{LB_IP}:80", outside), (f"{EXTERNAL_IP}:80", outside), (f"{CLUSTER_IP}:80", everywhere)]
    lines = []
    for front, behind in fronts:
        lines.append(f"-A -t {front} -s rr" + (" -p 10800" if persistent else ""))
        lines += [f"-a -t {front} -r {ip}:8080 -m -w 1" for ip in behind]
    return "\n".join(lines) + "\n"


def _interface(name: str, index: int, *addresses: str) -> Interface:
    return Interface(
        name=name,
        index=index,
        flags=frozenset({"UP", *(["LOOPBACK"] if name == "lo" else [])}),
        link_type="loopback" if name == "lo" else "ether",
        addresses=tuple(
            InterfaceAddress(
                ip=ip_address(a.split("/")[0]),
                prefixlen=int(a.split("/")[1]),
                scope="host" if name == "lo" else "global",
            )
            for a in addresses
        ),
    )


def _route(dst: str, dev: str, via: str | None = None, *, local: bool = False) -> Route:
    return Route(
        dst=ip_network(dst),
        type="local" if local else "unicast",
        table="local" if local else "main",
        nexthops=(NextHop(dev=dev, gateway=ip_address(via) if via else None),),
        scope="global" if via else "link",
    )


def _state(name: str, vips: Sequence[str], **more: object) -> NodeState:
    own = NODE_IPS if name == "node-a" else (NODES[name],)
    pods = [ip for ip, where in PODS.items() if where == name]
    return NodeState(
        name=name,
        interfaces=(
            _interface("lo", 1, "127.0.0.1/8"),
            _interface("eth0", 2, *(f"{ip}/24" for ip in own)),
            *(_interface(f"veth{i}", 10 + i) for i in range(len(pods))),
            *([_interface("kube-ipvs0", 4, *(f"{v}/32" for v in vips))] if vips else []),
        ),
        routes=(
            _route("0.0.0.0/0", "eth0", "10.0.0.1"),
            _route("10.0.0.0/24", "eth0"),
            *(_route(f"{ip}/32", f"veth{i}") for i, ip in enumerate(pods)),
            *(
                _route(f"10.244.{n}.0/24", "eth0", NODES[other])
                for n, other in ((1, "node-a"), (2, "node-b"), (3, "node-c"))
                if other != name
            ),
            _route("127.0.0.0/8", "lo", local=True),
            *(_route(f"{a}/32", "eth0", local=True) for a in own),
            *(_route(f"{v}/32", "kube-ipvs0", local=True) for v in vips),
        ),
        sysctls={"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.route_localnet": "0"},
        sockets=(),
        **more,  # type: ignore[arg-type]
    )


def ipvs_state(minor: int, endpoints: Sequence[Endpoint], *, local: bool) -> NodeState:
    """node-a."""
    return _state(
        "node-a",
        VIPS,
        rulesets=(open_ruleset(rules(minor), source="iptables-save.txt"),),
        ipsets=parse_ipsets(sets(minor, local=local), source="ipset-save.txt"),
        ipvs=parse_ipvs(servers(minor, endpoints, local=local), source="ipvsadm.txt"),
    )


def walker(minor: int, endpoints: Sequence[Endpoint], *, local: bool) -> Walker:
    """node-a in IPVS mode, and two nodes without rules, which hold the Services' addresses as every node does."""
    nothing = open_ruleset(b"# Generated by iptables-save v1.8.9\n", source="none")
    nodes = {"node-a": ipvs_state(minor, endpoints, local=local)}
    for name in ("node-b", "node-c"):
        nodes[name] = _state(name, VIPS, rulesets=(nothing,))
    attached = {
        (4, int(ip_address(ip))): Attached(name=f"pod {ip}", node=where) for ip, where in PODS.items()
    }
    return Walker(Topology(nodes=nodes, attached=attached))
