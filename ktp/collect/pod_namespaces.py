"""The network namespaces of pods on a node: which are read, how they are found, and by which commands of the node.

Nothing runs in a container: a namespace is entered by `nsenter --net`, and the programs, files and the user stay the
node's. A pod's namespace is told by its address in /proc/PID/net/fib_trie and if_inet6, whatever runtime made it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from ktp.collect.objects import items_of
from ktp.model.capture import Capture

MOST_PODS = 64
"""Pods of one node that are read: each costs some 30 ms there."""

PodAddresses = Mapping[str, str]
"""Address → folder of the snapshot ("NAMESPACE_POD")."""

_SYSCTLS = (
    "net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter net.ipv4.conf.all.route_localnet "
    "net.ipv4.conf.eth0.route_localnet net.ipv4.ip_local_port_range net.ipv6.conf.all.forwarding"
)
# (file, command, whether the pod is not read without it). Those of nf_tables only where the kernel has it.
POD_READS = (
    ("ss.txt", "ss -lntuH", True),
    ("ip-addr.json", "ip -j addr", True),
    ("ip-rule.json", "ip -j rule", False),
    ("ip-route.json", "ip -j route show table all", True),
    ("ip6-rule.json", "ip -6 -j rule", False),
    ("ip6-route.json", "ip -6 -j route show table all", False),
    ("ip-neigh.json", "ip -j neigh", False),
    ("sysctl.txt", f"sysctl -e {_SYSCTLS}", False),
)
POD_RULES = (
    ("nft-ruleset.json", "nft -j list ruleset"),
    ("iptables-nft-save.txt", "iptables-nft-save -c"),
    ("ip6tables-nft-save.txt", "ip6tables-nft-save -c"),
)
POD_LEGACY = (
    ("iptables-legacy-save.txt", "iptables-legacy-save -c", "ip_tables_names"),
    ("ip6tables-legacy-save.txt", "ip6tables-legacy-save -c", "ip6_tables_names"),
)


def enter(pid: int) -> str:
    """What a command is run by in the network namespace of a process."""
    return f"nsenter --net=/proc/{pid}/ns/net"


def enter_container(pid: int) -> str:
    """What a program of a container's own files is run by, in its network namespace."""
    return f"nsenter --mount=/proc/{pid}/ns/mnt --net=/proc/{pid}/ns/net"


def pods_to_read(capture: Capture, *, every: bool, most: int = MOST_PODS) -> dict[str, dict[str, str]]:
    """For each node the pods to read there: those that endpoints name, or `every` one; at most `most` a node.

    Pods in the node's own network are none of them, and neither are those that have ended.
    """
    named = None if every else _named_by_endpoints(capture)
    found: dict[str, dict[str, str]] = {}
    count: dict[str, int] = {}
    for pod in items_of(capture, "cluster/pods.json"):
        meta, spec, status = (pod.get(part) or {} for part in ("metadata", "spec", "status"))
        node, key = spec.get("nodeName"), (meta.get("namespace", ""), meta.get("name", ""))
        if not node or spec.get("hostNetwork") or status.get("phase") in {"Succeeded", "Failed"}:
            continue
        if (named is not None and key not in named) or count.get(node, 0) >= most:
            continue
        count[node] = count.get(node, 0) + 1
        for entry in status.get("podIPs") or [{"ip": status.get("podIP")}]:
            if entry.get("ip"):
                found.setdefault(node, {})[str(entry["ip"])] = "_".join(key)
    return found


def _named_by_endpoints(capture: Capture) -> set[tuple[str, str]]:
    targets = [
        endpoint.get("targetRef") or {}
        for one in items_of(capture, "cluster/endpointslices.json")
        for endpoint in one.get("endpoints") or ()
    ]
    targets += [
        address.get("targetRef") or {}
        for one in items_of(capture, "cluster/endpoints.json")
        for subset in one.get("subsets") or ()
        for address in (*(subset.get("addresses") or ()), *(subset.get("notReadyAddresses") or ()))
    ]
    return {(t.get("namespace", ""), t.get("name", "")) for t in targets if t.get("kind", "Pod") == "Pod"}


def in_proc(address: str) -> str:
    """An address as /proc/net spells it: IPv4 as it is, IPv6 as 32 hexadecimal digits."""
    ip = ip_address(address)
    return f"{int(ip):032x}" if ip.version == 6 else str(ip)


def addresses_of(fib_trie: str, if_inet6: str) -> set[str]:
    """The addresses of a network namespace, spelled as by `in_proc`."""
    found = {line.split()[0] for line in if_inet6.splitlines() if line.strip()}
    last = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if words[-2:] == ["host", "LOCAL"]:
            found.add(last)
        elif len(words) > 1:
            last = words[1]
    return found


def local_namespaces(addresses: Iterable[str], proc: Path = Path("/proc")) -> dict[str, int]:
    """For each address that a network namespace of this machine has, a process in it. Without root it finds none."""
    wanted = {in_proc(address): address for address in addresses}
    found: dict[str, int] = {}
    seen = {_namespace(proc / "self")}
    for entry in os.scandir(proc):
        if not entry.name.isdigit() or len(found) == len(wanted):
            continue
        folder = proc / entry.name
        namespace = _namespace(folder)
        if namespace is None or namespace in seen:
            continue
        try:
            own = addresses_of(
                (folder / "net/fib_trie").read_text(),
                (folder / "net/if_inet6").read_text() if (folder / "net/if_inet6").exists() else "",
            )
        except OSError:
            continue  # it has ended meanwhile; another process may be in the same namespace
        seen.add(namespace)
        found |= {wanted[address]: int(entry.name) for address in own & wanted.keys()}
    return found


def _namespace(folder: Path) -> str | None:
    try:
        return os.readlink(folder / "ns/net")
    except OSError:
        return None
