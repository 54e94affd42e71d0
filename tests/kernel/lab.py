"""A laboratory in network namespaces: two nodes, their pods, clients on two LANs, a router, an outside server.

    c1 .50  srv .60                       10.1.0.0/24  fd00:1::/64   eth0 of both nodes
    c2 .50                                10.2.0.0/24  fd00:2::/64   eth1 of both nodes
    rt .1 on both                         routes between them, and nothing else
    a .11 (.21)  b .12 (.22)              also 10.99.0.11 / .12 on dummy0
    pa1 pa2 | qa1 qa2 on a, pb1 | qb1 on b    p*: a veth each; q*: behind the bridge cni0

Addresses 10.96.1.0/24 are led to a, 10.96.2.0/24 to b; nobody owns them. The snapshot is taken by ktp's own collector.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Topology
from ktp.model.capture import MemoryCapture
from ktp.model.host import NodeState
from ktp.parse.snapshot import parse_snapshot

NODES = ("a", "b")
PODS = {"pa1": "a", "pa2": "a", "qa1": "a", "qa2": "a", "pb1": "b", "qb1": "b"}
OUTSIDE = ("c1", "c2", "srv")
HOSTS = ("rt", *NODES, *OUTSIDE, *PODS)

# name → (IPv4, IPv6); names with a dot are further addresses of a node
ADDRESSES = {
    "rt": ("10.1.0.1", "fd00:1::1"),
    "c1": ("10.1.0.50", "fd00:1::50"),
    "c2": ("10.2.0.50", "fd00:2::50"),
    "srv": ("10.1.0.60", "fd00:1::60"),
    "a": ("10.1.0.11", "fd00:1::11"),
    "a.second": ("10.1.0.21", "fd00:1::21"),
    "a.eth1": ("10.2.0.11", "fd00:2::11"),
    "a.dummy": ("10.99.0.11", "fd00:99::11"),
    "b": ("10.1.0.12", "fd00:1::12"),
    "b.second": ("10.1.0.22", "fd00:1::22"),
    "b.eth1": ("10.2.0.12", "fd00:2::12"),
    "b.dummy": ("10.99.0.12", "fd00:99::12"),
    "pa1": ("10.244.1.10", "fd00:244:1::10"),
    "pa2": ("10.244.1.11", "fd00:244:1::11"),
    "qa1": ("10.244.11.10", "fd00:244:11::10"),
    "qa2": ("10.244.11.11", "fd00:244:11::11"),
    "pb1": ("10.244.2.10", "fd00:244:2::10"),
    "qb1": ("10.244.12.10", "fd00:244:12::10"),
    "vip.a": ("10.96.1.10", "fd00:96:1::10"),
    "vip.a2": ("10.96.1.11", "fd00:96:1::11"),
    "vip.b": ("10.96.2.10", "fd00:96:2::10"),
    "dead": ("10.1.0.99", "fd00:1::99"),
    "far": ("203.0.113.9", "fd00:113::9"),
    "localhost": ("127.0.0.1", "::1"),
}
NETS = {"a": (1, 11), "b": (2, 12)}  # node → its pod networks: veth pods, bridge pods

POD_PORTS = (80, 443, 8080, 8081, 8082, 8083, 30080, 30081, 5353)
# What listens on a node: (address name or "" for every address, port)
NODE_PORTS = (
    ("", 8080),
    ("", 30081),
    ("localhost", 8081),
    ("a", 8082),
    ("b", 8082),
    ("a.dummy", 5353),
    ("b.dummy", 5353),
)

_SYSCTLS = {
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv4/icmp_msgs_per_sec": "1000000",
    "net/ipv4/icmp_msgs_burst": "1000000",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv6/conf/all/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # An answer that was lost is not sent again while the next packet's counters are read.
    "net/ipv4/tcp_synack_retries": "0",
}
# What a test may change on a node, and what it is set back to.
NODE_DEFAULTS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/eth0/rp_filter": "0",
    "net/ipv4/conf/eth1/rp_filter": "0",
    "net/ipv4/conf/all/route_localnet": "0",
    "net/ipv4/conf/eth0/route_localnet": "0",
    "net/ipv4/conf/all/src_valid_mark": "0",
    "net/ipv4/conf/all/accept_local": "0",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
}
# What IPVS has beside them (Documentation/networking/ipvs-sysctl.rst), where the kernel has it.
_IPVS_DEFAULTS = {
    "net/ipv4/vs/conntrack": "0",
    "net/ipv4/vs/snat_reroute": "1",
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
}
COMMANDS = ("ip", "nft", "ipset", "conntrack", "iptables-nft-restore", "ip6tables-nft-restore")
SAVE = {4: "iptables", 6: "ip6tables"}


class LabError(Exception):
    """The laboratory did not do what it was told."""


class Agent:
    """The process in one namespace."""

    def __init__(self, namespace: str, name: str) -> None:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self.name, self.namespace = name, namespace
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("agent.py")), namespace, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the agent of {self.name} ended")
        reply = json.loads(line)
        if "error" in reply:
            raise LabError(f"{self.name}: {reply['error']}")
        return reply["answer"]

    def ask(self, **request: Any) -> Any:
        self.send(**request)
        return self.receive()

    def run(self, *argv: str, text: str | None = None, check: bool = True) -> dict[str, Any]:
        done = self.ask(do="run", argv=list(argv), text=text)
        if check and done["status"] != 0:
            raise LabError(f"{self.name}: {' '.join(argv)}: {done['stderr']}")
        return dict(done)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=5)


class Lab:
    """The namespaces, built when made, gone when closed."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex[:6]
        self.agents: dict[str, Agent] = {}
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
        try:
            for host in HOSTS:
                _run("ip", "netns", "add", self.namespace(host))
            self.agents = {host: Agent(self.namespace(host), host) for host in HOSTS}
            self._settings()
            self._wire()
            self._serve()
            self.backends = self._find_backends()
            self.ipvs = Path("/proc/net/ip_vs").exists() and shutil.which("ipvsadm") is not None
        except BaseException:
            self.close()
            raise

    def namespace(self, host: str) -> str:
        return f"ktp-{self._id}-{host}"

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        for host in reversed(HOSTS):
            subprocess.run(["ip", "netns", "delete", self.namespace(host)], capture_output=True, check=False)

    # -- building

    def _settings(self) -> None:
        for agent in self.agents.values():
            agent.send(do="write", values=[(f"/proc/sys/{k}", v) for k, v in _SYSCTLS.items()])
        for agent in self.agents.values():
            agent.receive()

    def _wire(self) -> None:
        commands: dict[str, list[str]] = {host: ["link set lo up"] for host in HOSTS}
        for lan, dev in ((1, "eth0"), (2, "eth1")):
            bridge = f"lan{lan}"
            commands["rt"] += [f"link add {bridge} type bridge", f"link set {bridge} up"]
            for host in (*NODES, "c1", "srv", "c2"):
                if host not in NODES and (host == "c2") != (lan == 2):
                    continue
                name = dev if host in NODES else "eth0"
                commands["rt"] += [
                    f"link add {host}-{lan} type veth peer name {name} netns {self.namespace(host)}",
                    f"link set {host}-{lan} master {bridge} up",
                ]
                commands[host].append(f"link set {name} up")
            commands["rt"] += [
                f"addr add 10.{lan}.0.1/24 dev {bridge}",
                f"addr add fd00:{lan}::1/64 dev {bridge} nodad",
            ]
        for node in NODES:
            commands[node] += self._node_commands(node)
        for pod, node in PODS.items():
            commands[node] += self._pod_link(pod, node)
        for host in OUTSIDE:
            net = 2 if host == "c2" else 1
            v4, v6 = ADDRESSES[host]
            commands[host] += [f"addr add {v4}/24 dev eth0", f"addr add {v6}/64 dev eth0 nodad"]
            commands[host] += [f"route add default via 10.{net}.0.1", f"route add default via fd00:{net}::1"]
            commands[host] += self._cluster_routes(net, NODES)
        # The router knows the LANs and the nodes' further addresses; what else it gets it swallows.
        commands["rt"] += ["route add blackhole default", "-6 route add blackhole default metric 1"]
        for node in NODES:
            for version, prefix in ((0, 32), (1, 128)):
                dummy, via = ADDRESSES[f"{node}.dummy"][version], ADDRESSES[node][version]
                commands["rt"].append(f"route add {dummy}/{prefix} via {via}")
        order = ["rt", *(h for h in HOSTS if h != "rt" and h not in PODS), *PODS]
        for host in order:
            self._batch(host, commands[host])
        for pod, node in PODS.items():
            self._batch(pod, self._pod_commands(pod, node))
        self._write(("rt",), {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
        for node in NODES:
            self._write((node,), NODE_DEFAULTS)
        # A dead neighbour is given up after 0.15 s and not after 3 s.
        hurry = "for f in /proc/sys/net/ipv[46]/neigh/*/retrans_time_ms; do echo 50 > $f; done"
        for agent in self.agents.values():
            agent.run("sh", "-c", hurry)
        self._neighbours()

    def _node_commands(self, node: str) -> list[str]:
        number = 11 if node == "a" else 12
        other = "b" if node == "a" else "a"
        out = [
            "link add dummy0 type bridge",
            "link set dummy0 up",
            "link add cni0 type bridge",
            "link set cni0 up",
        ]
        for lan in (1, 2):
            dev = f"eth{lan - 1}"
            out += [
                f"addr add 10.{lan}.0.{number}/24 dev {dev}",
                f"addr add fd00:{lan}::{number}/64 dev {dev} nodad",
            ]
        out += [
            f"addr add 10.1.0.{number + 10}/24 dev eth0",
            f"addr add fd00:1::{number + 10}/64 dev eth0 nodad",
        ]
        out += [
            f"addr add 10.99.0.{number}/32 dev dummy0",
            f"addr add fd00:99::{number}/128 dev dummy0 nodad",
        ]
        out += [
            f"addr add 10.244.{NETS[node][1]}.1/24 dev cni0",
            f"addr add fd00:244:{NETS[node][1]}::1/64 dev cni0 nodad",
        ]
        out += ["route add default via 10.1.0.1", "route add default via fd00:1::1"]
        out += self._cluster_routes(1, (other,), vips=False)
        return out

    @staticmethod
    def _cluster_routes(lan: int, nodes: Iterable[str], *, vips: bool = True) -> list[str]:
        out = []
        for node in nodes:
            number = 11 if node == "a" else 12
            for net in NETS[node]:
                out.append(f"route add 10.244.{net}.0/24 via 10.{lan}.0.{number}")
                out.append(f"route add fd00:244:{net}::/64 via fd00:{lan}::{number}")
            if vips:
                out.append(f"route add 10.96.{NETS[node][0]}.0/24 via 10.{lan}.0.{number}")
                out.append(f"route add fd00:96:{NETS[node][0]}::/64 via fd00:{lan}::{number}")
        return out

    def _pod_link(self, pod: str, node: str) -> list[str]:
        veth = f"v{pod[0]}-{pod}"
        out = [f"link add {veth} type veth peer name eth0 netns {self.namespace(pod)}"]
        if pod.startswith("q"):
            # hairpin: a pod's packet for itself, translated on the bridge, goes back by the port it came in by
            return [*out, f"link set {veth} master cni0 up", f"link set {veth} type bridge_slave hairpin on"]
        out.append(f"link set {veth} up")
        if pod != "pa2":  # pa2's veth has no address, as Calico's; the others' have the gateway's
            out += [f"addr add 10.244.{NETS[node][0]}.1/32 dev {veth}"]
            out += [f"addr add fd00:244:{NETS[node][0]}::1/128 dev {veth} nodad"]
        out += [
            f"route add {ADDRESSES[pod][0]}/32 dev {veth}",
            f"route add {ADDRESSES[pod][1]}/128 dev {veth}",
        ]
        return out

    @staticmethod
    def _pod_commands(pod: str, node: str) -> list[str]:
        v4, v6 = ADDRESSES[pod]
        if pod.startswith("q"):
            net = NETS[node][1]
            return [
                "link set lo up", "link set eth0 up", f"addr add {v4}/24 dev eth0", f"addr add {v6}/64 dev eth0 nodad",
                f"route add default via 10.244.{net}.1", f"route add default via fd00:244:{net}::1",
            ]  # fmt: skip
        gateway = "169.254.1.1" if pod == "pa2" else f"10.244.{NETS[node][0]}.1"
        return [
            "link set lo up", "link set eth0 up", f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad",
            f"route add {gateway} dev eth0 scope link", f"route add default via {gateway}",
            "route add fe80::1 dev eth0", "route add default via fe80::1 dev eth0",
        ]  # fmt: skip

    def _batch(self, host: str, commands: Sequence[str]) -> None:
        kinds: tuple[tuple[str, list[str]], ...] = (("-4", []), ("-6", []))
        for version, wanted in kinds:
            lines = []
            for command in commands:
                six = command.startswith("-6 ") or (
                    ":" in command and not command.startswith(("link", "neigh"))
                )
                if six == (version == "-6"):
                    lines.append(command.removeprefix("-6 "))
            if lines:
                done = subprocess.run(
                    ["ip", "-n", self.namespace(host), version, "-batch", "-"],
                    input="\n".join([*wanted, *lines]) + "\n", capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode != 0:
                    raise LabError(f"{host}: {done.stderr}")

    def _neighbours(self) -> None:
        """Neighbours are told and not asked for. Discovery in IPv6 would pass the rules under test, and an ARP request
        whose source rp_filter does not like gets no answer.

        So is pa2's gateway, an address that nobody has (Calico's 169.254.1.1).
        """
        macs: dict[tuple[str, str], str] = {}
        for host in HOSTS:
            done = self.agents[host].run("ip", "-j", "link")
            for link in json.loads(done["stdout"]):
                macs[host, link["ifname"]] = link.get("address", "")
        lines: dict[str, list[str]] = {host: [] for host in HOSTS}

        def tell(host: str, dev: str, ip: str, mac: str) -> None:
            lines[host].append(f"neigh replace {ip} dev {dev} lladdr {mac} nud permanent")

        for lan in (1, 2):
            here = [("rt", f"lan{lan}", [f"fd00:{lan}::1", f"10.{lan}.0.1"])]
            for node in NODES:
                number = 11 if node == "a" else 12
                ips = [f"fd00:{lan}::{number}", f"10.{lan}.0.{number}"]
                if lan == 1:
                    ips += ADDRESSES[f"{node}.second"]
                here.append((node, f"eth{lan - 1}", ips))
            here += [(h, "eth0", list(ADDRESSES[h])) for h in OUTSIDE if (h == "c2") == (lan == 2)]
            for host, dev, _ in here:
                for other, other_dev, ips in here:
                    if other != host:
                        for ip in ips:
                            tell(host, dev, ip, macs[other, other_dev])
        for pod, node in PODS.items():
            veth = f"v{pod[0]}-{pod}"
            if pod.startswith("q"):
                tell(node, "cni0", ADDRESSES[pod][1], macs[pod, "eth0"])
                tell(pod, "eth0", f"fd00:244:{NETS[node][1]}::1", macs[node, "cni0"])
                for mate, home in PODS.items():
                    if mate != pod and home == node and mate.startswith("q"):
                        tell(pod, "eth0", ADDRESSES[mate][1], macs[mate, "eth0"])
            else:
                tell(node, veth, ADDRESSES[pod][1], macs[pod, "eth0"])
                tell(pod, "eth0", "fe80::1", macs[node, veth])
                if pod == "pa2":
                    tell(pod, "eth0", "169.254.1.1", macs[node, veth])
        for host, wanted in lines.items():
            if wanted:
                self._batch(host, [line if "." in line else f"-6 {line}" for line in wanted])

    def _serve(self) -> None:
        for host in (*PODS, "srv"):
            servers = [
                (p, ip, port) for p in ("tcp", "udp") for ip in ("0.0.0.0", "::") for port in POD_PORTS
            ]
            self.agents[host].send(do="serve", servers=servers)
        for node in NODES:
            servers = []
            for name, port in NODE_PORTS:
                if name and name != "localhost" and name.partition(".")[0] != node:
                    continue
                for proto in ("tcp", "udp"):
                    servers += [(proto, ip, port) for ip in (ADDRESSES[name] if name else ("0.0.0.0", "::"))]
            self.agents[node].send(do="serve", servers=servers)
        for host in (*PODS, "srv", *NODES):
            self.agents[host].receive()

    def _write(self, hosts: Iterable[str], values: dict[str, str]) -> None:
        for host in hosts:
            self.agents[host].ask(do="write", values=[(f"/proc/sys/{k}", v) for k, v in values.items()])

    def _find_backends(self) -> tuple[str, ...]:
        """Newer kernels are built without legacy tables, and newer systems without their command; user-mode Linux has
        no nf_tables.
        """
        found = []
        for backend in ("nft", "legacy"):
            done = [
                self.agents["a"].run(
                    f"{SAVE[f]}-{backend}-restore", text=_empty_tables(("filter", "nat")), check=False
                )
                for f in (4, 6)
            ]
            if all(each["status"] == 0 for each in done):
                found.append(backend)
        if not found:
            raise LabError(done[0]["stderr"])
        return tuple(found)

    # -- using

    def sysctl(self, node: str, values: dict[str, str]) -> None:
        """Set sysctls of a node, written with slashes."""
        self._write((node,), values)

    def restore(self, node: str, family: int, backend: str, text: str) -> None:
        """Load an iptables-save text. Raises LabError with what iptables-restore says."""
        self.agents[node].run(f"{SAVE[family]}-{backend}-restore", text=text)

    def counters(self, node: str, family: int, backend: str) -> str:
        """The node's iptables-save with counters."""
        return str(self.agents[node].run(f"{SAVE[family]}-{backend}-save", "-c")["stdout"])

    def clear(self, node: str) -> None:
        """Take every rule, set, policy route, and connection from a node, and set its sysctls back."""
        agent = self.agents[node]
        if "nft" in self.backends:
            agent.run("nft", "flush", "ruleset")
        for family in (4, 6):
            path = "ip" if family == 4 else "ip6"
            done = agent.run("cat", f"/proc/net/{path}_tables_names", check=False)
            tables = done["stdout"].split()
            if tables:
                agent.run(f"{SAVE[family]}-legacy-restore", text=_empty_tables(tables))
        agent.run("ipset", "flush", check=False)
        agent.run("ipset", "destroy", check=False)
        for version in ("-4", "-6"):
            agent.run("ip", version, "rule", "flush", check=False)
            defaults = (
                "add pref 0 lookup local",
                "add pref 32766 lookup main",
                "add pref 32767 lookup default",
            )
            for words in defaults:
                agent.run("ip", version, "rule", *words.split(), check=False)
            for table in ("100", "101"):
                agent.run("ip", version, "route", "flush", "table", table, check=False)
        self._write((node,), NODE_DEFAULTS)
        if self.ipvs:
            agent.run("ipvsadm", "-C")
            self._write((node,), _IPVS_DEFAULTS)
        agent.run("conntrack", "-F", check=False)

    def capture(self, nodes: Sequence[str] = NODES) -> MemoryCapture:
        """What ktp's own collector reads on the nodes."""
        files: dict[str, bytes] = {}
        for node in nodes:
            self.agents[node].send(do="collect", node=node)
        for node in nodes:
            for name, text in self.agents[node].receive().items():
                # iptables-nft-save prints nothing at all where nf_tables holds no table of its own
                files[name] = text.encode("latin-1") or (
                    b"# no tables\n" if "-save.txt" in name and "tables" in name else b""
                )
        return MemoryCapture(files={**files, "cluster/services.json": b'{"items": []}'}, source="laboratory")

    def probe(self, probes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Probes `{host, src?, dst, port, proto}`, all at once; what came of each, in order."""
        by_host: dict[str, list[int]] = {}
        for number, each in enumerate(probes):
            by_host.setdefault(each["host"], []).append(number)
        for host, numbers in by_host.items():
            self.agents[host].send(do="probe", probes=[probes[n] for n in numbers])
        out: list[dict[str, Any]] = [{} for _ in probes]
        for host, numbers in by_host.items():
            for number, answer in zip(numbers, self.agents[host].receive(), strict=True):
                out[number] = answer
        return out


def _empty_tables(tables: Iterable[str]) -> str:
    hooks = {
        "filter": "INPUT FORWARD OUTPUT", "security": "INPUT FORWARD OUTPUT", "raw": "PREROUTING OUTPUT",
        "nat": "PREROUTING INPUT OUTPUT POSTROUTING", "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    }  # fmt: skip
    return "".join(
        f"*{t}\n" + "".join(f":{h} ACCEPT [0:0]\n" for h in hooks[t].split()) + "COMMIT\n" for t in tables
    )


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def topology_of_lab(capture: MemoryCapture) -> Topology:
    """The laboratory as ktp sees it: the nodes from their own words, the pods and the outside server by address."""
    return topology_of_nodes(dict(parse_snapshot(capture).nodes))


def topology_of_nodes(nodes: dict[str, NodeState]) -> Topology:
    """The same, from nodes that are parsed already."""
    attached = {}
    for name in (*PODS, "srv"):
        for text in ADDRESSES[name]:
            attached[to_int(text)] = Attached(name=name, node=PODS.get(name))
    return Topology(nodes=nodes, attached=attached)
