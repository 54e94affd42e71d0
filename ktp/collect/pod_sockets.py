"""The listening sockets of pods, read by exec in their own containers: /proc/net, as `ss -lntuH` prints what listens.

Only where it is asked for (--pods exec), since it runs `cat` in a user's container; nothing else runs, and nothing is
written. Of a pod's network namespace that is less than its node can tell: no addresses, no routes, no rules.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from ktp.collect.objects import items_of
from ktp.collect.parallel import run_in_parallel
from ktp.collect.pod_exec import NOT_FOUND, Container, ExecResult, exec_in_pod
from ktp.collect.pod_namespaces import PodAddresses
from ktp.errors import ApiError
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi

READ = ("cat", "/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6")
"""Reading both in one exec costs one round trip; of a kernel without IPv6 `cat` prints the others, and complains."""
_TIMEOUT = 10.0
_LISTEN, _UNCONNECTED = "0A", "07"  # include/net/tcp_states.h
_BIG_ENDIAN = frozenset(("s390x", "ppc64", "mips", "mips64"))


def collect_pod_sockets(
    api: KubeApi, capture: Capture, pods: Mapping[str, PodAddresses], *, parallel: int = 8
) -> MemoryCapture:
    """`nodes/NODE/pods/NAMESPACE_POD/ss.txt` of each pod; of one that cannot be read a gap says why."""
    containers, odd = _containers(capture), _big_endian(capture)
    tasks: list[Callable[[], tuple[str, bytes | None, str]]] = []
    gaps: list[EvidenceGap] = []
    for node, addresses in pods.items():
        for folder in dict.fromkeys(addresses.values()):
            if node in odd:
                gaps.append(_gap(node, folder, "numbers are spelled the other way round on its node"))
                continue
            name = f"nodes/{node}/pods/{folder}/ss.txt"
            tasks.append(partial(_read, api, name, containers.get(folder, ())))
    files: dict[str, bytes] = {}
    for name, content, why in run_in_parallel(tasks, workers=parallel):
        if content is not None:
            files[name] = content
        else:
            _, node, _, folder, _ = name.split("/")
            gaps.append(_gap(node, folder, why))
    return MemoryCapture(files=files, gaps=tuple(gaps), source=api.source)


def _gap(node: str, folder: str, why: str) -> EvidenceGap:
    pod = folder.replace("_", "/", 1)
    return EvidenceGap(
        "pod-namespace",
        node,
        f"what pod {pod} listens on could not be read in its container: {why}",
        remedy="--node-access ssh as root reads it on the pod's node, without the container",
    )


def _read(api: KubeApi, name: str, containers: Iterable[Container]) -> tuple[str, bytes | None, str]:
    """By the first of the pod's containers that has `cat`: all of them are in one network namespace."""
    why = "none of its containers runs"
    for container in containers:
        try:
            answer: ExecResult = exec_in_pod(api, container, READ, timeout=_TIMEOUT)
        except ApiError as error:
            return name, None, error.message
        if answer.status == NOT_FOUND:
            why = "none of its containers has the command cat"
            continue
        if answer.status is None or not answer.complete:
            return name, None, "the answer did not come to its end"
        try:
            return name, sockets_text(answer.stdout.decode(errors="replace")).encode(), ""
        except ValueError as error:
            return name, None, str(error)
    return name, None, why


def sockets_text(text: str) -> str:
    """/proc/net/{tcp,tcp6,udp,udp6}, one after the other, as `ss -lntuH` prints what listens.

    Raises ValueError where it is none of that. Whether a wildcard socket of IPv6 takes IPv4 too is not told there: it
    does by default, and not where another has the port in IPv4. Nor is the backlog, so that nothing is said to wait.
    """
    found: list[tuple[str, str, int, bool]] = []  # protocol, address, port, whether IPv6
    protocol = ""
    tables: set[tuple[str, bool]] = set()  # protocol, and whether it is IPv6's
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["sl"]:
            protocol = "udp" if "drops" in words else "tcp"
            tables.add((protocol, "remote_address" in words))
            continue
        if not words:
            continue
        if not protocol or len(words) < 4 or not words[0].endswith(":"):
            raise ValueError("it is not what the kernel prints of its sockets")
        if words[3] != (_LISTEN if protocol == "tcp" else _UNCONNECTED):
            continue
        address, _, port = words[1].partition(":")
        found.append((protocol, _address(address), int(port, 16), len(address) == 32))
    # A kernel without IPv6 has two of them. Of one that could not be read nothing would seem to listen.
    if (
        {each for each, _ in tables} != {"tcp", "udp"}
        or len(tables) not in (2, 4)
        or ("tcp", False) not in tables
    ):
        raise ValueError("it is not all that the kernel prints of its sockets")
    four = {(protocol, port) for protocol, _, port, is_six in found if not is_six}
    return "".join(_lines(found, four))


def _lines(found: Iterable[tuple[str, str, int, bool]], four: set[tuple[str, int]]) -> Iterator[str]:
    for protocol, address, port, is_six in found:
        shown = f"[{address}]" if is_six else address
        if is_six and address == "::" and (protocol, port) not in four:
            shown = "*"
        state = "LISTEN" if protocol == "tcp" else "UNCONN"
        peer = "*" if shown == "*" else "[::]" if is_six else "0.0.0.0"
        yield f"{protocol} {state} 0 0 {shown}:{port} {peer}:*\n"


def _address(digits: str) -> str:
    """Each 32 bits of an address are a number of the machine's own order: here least significant byte first."""
    if len(digits) not in (8, 32):
        raise ValueError(f"{digits} is no address")
    raw = b"".join(bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _containers(capture: Capture) -> dict[str, tuple[Container, ...]]:
    """The running containers of each pod, by the pod's folder; those that declare ports first."""
    found: dict[str, tuple[Container, ...]] = {}
    for pod in items_of(capture, "cluster/pods.json"):
        meta, spec, status = (pod.get(part) or {} for part in ("metadata", "spec", "status"))
        running = {
            each.get("name")
            for each in status.get("containerStatuses") or ()
            if "running" in (each.get("state") or {})
        }
        declared = sorted(spec.get("containers") or (), key=lambda each: not each.get("ports"))
        namespace, name = str(meta.get("namespace", "")), str(meta.get("name", ""))
        found[f"{namespace}_{name}"] = tuple(
            Container(namespace=namespace, pod=name, container=str(each.get("name")))
            for each in declared
            if each.get("name") in running
        )
    return found


def _big_endian(capture: Capture) -> set[str]:
    return {
        str((node.get("metadata") or {}).get("name"))
        for node in items_of(capture, "cluster/nodes.json")
        if ((node.get("status") or {}).get("nodeInfo") or {}).get("architecture") in _BIG_ENDIAN
    }
