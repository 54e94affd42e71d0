"""Nodes through the pod of kube-proxy, or of Cilium's agent, that already runs on each: exec by the API server.

Both have the host's network. Cilium's has a shell and iproute2, and tells its own tables besides; where both run, what
kube-proxy's image tells of the rules counts, since it wrote them.

Where the image has a shell, one exec runs the script that SSH would run. The usual image has none
(registry.k8s.io/kube-proxy is distroless: iptables, ipset, nft, conntrack and no more), and then each command is
an exec of its own. What cannot be looked at in such an image is not guessed: no file is read there.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import CommandResult
from ktp.collect.objects import items_of
from ktp.collect.pod_exec import NOT_FOUND, Container, ExecResult, exec_in_pod
from ktp.collect.remote_script import Conversation, build_script, collect_recorded, parse_stream
from ktp.collect.ssh import read_each
from ktp.errors import ApiError
from ktp.model.capture import Capture, EvidenceGap, GapCause, MemoryCapture, merge_captures
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi
    from ktp.collect.nft_chains import Reach
    from ktp.collect.parallel import OnProgress

NAMESPACE = "kube-system"
PARALLEL = 16
TIMEOUT = 120.0
# Pods that do kube-proxy's work, or hold it in another process, by the label that names them.
_KUBE_PROXY, _CILIUM = "kube-proxy", "Cilium"
_AGENT = "cilium-agent"
_INSTEAD = {
    ("k8s-app", "cilium"): "Cilium",
    ("k8s-app", "calico-node"): "Calico",
    ("app", "ovnkube-node"): "OVN-Kubernetes",
    ("app", "antrea"): "Antrea",
    ("k8s-app", "kube-router"): "kube-router",
}
# Distributions whose agent holds kube-proxy in its own process, by what their kubelet's version ends in.
_WITHIN_AGENT = {"+k3s": "k3s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    pod: Container | None
    cilium: Container | None
    instead: str | None


def collect_through_kube_proxy(
    api: KubeApi,
    nodes: Sequence[str],
    capture: Capture,
    *,
    parallel: int = PARALLEL,
    timeout: float = TIMEOUT,
    reach: Reach | None = None,
    on_progress: OnProgress | None = None,
) -> MemoryCapture:
    """What `nodes` say about themselves through their kube-proxy pods; all that fails is a gap.

    `capture` has the Node objects, which tell what runs kube-proxy where no pod does.
    """
    try:
        pods = [json.loads(item) for item in api.list_pages(f"/api/v1/namespaces/{NAMESPACE}/pods").items]
    except ApiError as error:
        message = f"{error.message}; no kube-proxy pod can be found to read the nodes through"
        gap = EvidenceGap("api-forbidden", "kube-system/pods", message, remedy=error.hint)
        return MemoryCapture(files={}, gaps=(gap,), source="no node")
    versions = _kubelet_versions(capture)
    reader = _PodReader(api, timeout, reach)
    found = {
        node: _Node(pod=kube_proxy_of(pods, node), cilium=cilium_of(pods, node), instead=_instead(pods, node))
        for node in nodes
    }

    def visit(node: str) -> MemoryCapture:
        pod, agent = found[node].pod, found[node].cilium
        if agent is not None:
            read = reader.read(node, agent, _CILIUM)
            return read if pod is None else _with_rules_of(read, reader.read(node, pod, _KUBE_PROXY), node)
        if pod is not None:
            return reader.read(node, pod, _KUBE_PROXY)
        return _without_kube_proxy(node, found[node].instead, versions.get(node, ""))

    how = f"through {_agents(found.values())} pods"
    return read_each(nodes, visit, parallel=parallel, on_progress=on_progress, how=how)


def _agents(nodes: Iterable[_Node]) -> str:
    """Whose pods were asked."""
    whose = [
        name
        for name, is_there in (
            (_KUBE_PROXY, any(n.pod for n in nodes)),
            (_CILIUM, any(n.cilium for n in nodes)),
        )
        if is_there
    ]
    return " and ".join(f"{name}'s" for name in whose or [_KUBE_PROXY])


def _with_rules_of(read: MemoryCapture, rules: MemoryCapture, node: str) -> MemoryCapture:
    """What Cilium's container tells, and of kube-proxy's the rules."""
    known = {gap.kind for gap in read.gaps}
    lacks = [gap for gap in rules.gaps if gap.kind != "node-state" or "node-addresses" in known]
    has_rules = any("tables" in name or "nft" in name for name in rules.files)
    gaps = [
        gap
        for gap in read.gaps
        if not has_rules or gap.kind not in ("node-rules", "nft", "iptables-nft", "ipset")
    ]
    merged = merge_captures(read, rules, source=f"node {node} (exec in pods)")
    return MemoryCapture(files=merged.files, gaps=(*gaps, *lacks), source=merged.source)


# ------------------------------------------------------------------------------------------------- which pod


def kube_proxy_of(pods: Sequence[dict[str, Any]], node: str) -> Container | None:
    """The running kube-proxy pod of a node, by what kubeadm, EKS, TKE (k8s-app=kube-proxy), AKS, GKE and RKE2
    (component=kube-proxy) label it, else by its name; None if there is none.

    Only a pod with the host's network sees the node's rules.
    """
    for matches in (_is_labelled, _is_named):
        for pod in pods:
            spec = pod.get("spec") or {}
            if (
                spec.get("nodeName") == node
                and spec.get("hostNetwork") is True
                and (pod.get("status") or {}).get("phase") == "Running"
                and not (pod.get("metadata") or {}).get("deletionTimestamp")
                and matches(pod)
                and (container := _container(spec)) is not None
            ):
                return Container(namespace=NAMESPACE, pod=str(pod["metadata"]["name"]), container=container)
    return None


def cilium_of(pods: Sequence[dict[str, Any]], node: str) -> Container | None:
    """The running pod of Cilium's agent on a node, GKE's Dataplane V2 (`anetd`) among them; None if there is none."""
    for pod in pods:
        spec, meta = pod.get("spec") or {}, pod.get("metadata") or {}
        if (
            spec.get("nodeName") == node
            and spec.get("hostNetwork") is True
            and (pod.get("status") or {}).get("phase") == "Running"
            and not meta.get("deletionTimestamp")
            and (meta.get("labels") or {}).get("k8s-app") == "cilium"
            and any(c.get("name") == _AGENT for c in spec.get("containers") or ())
        ):
            return Container(namespace=NAMESPACE, pod=str(meta["name"]), container=_AGENT)
    return None


def _is_labelled(pod: dict[str, Any]) -> bool:
    labels = (pod.get("metadata") or {}).get("labels") or {}
    return "kube-proxy" in {
        labels.get(key) for key in ("k8s-app", "component", "app", "app.kubernetes.io/name")
    }


def _is_named(pod: dict[str, Any]) -> bool:
    return str((pod.get("metadata") or {}).get("name", "")).startswith("kube-proxy-")


def _container(spec: dict[str, Any]) -> str | None:
    """The container called kube-proxy, else the one whose image or command is, else the only one."""
    containers = spec.get("containers") or []
    for container in containers:
        if container.get("name") == "kube-proxy":
            return "kube-proxy"
    for container in containers:
        words = [container.get("image") or "", *(container.get("command") or ())]
        if any("kube-proxy" in word for word in words):
            return str(container["name"])
    return str(containers[0]["name"]) if len(containers) == 1 else None


def _instead(pods: Sequence[dict[str, Any]], node: str) -> str | None:
    for pod in pods:
        if (pod.get("spec") or {}).get("nodeName") == node:
            labels = (pod.get("metadata") or {}).get("labels") or {}
            for (key, value), name in _INSTEAD.items():
                if labels.get(key) == value:
                    return name
    return None


def _kubelet_versions(capture: Capture) -> dict[str, str]:
    try:
        return {
            str(node["metadata"]["name"]): str(node["status"]["nodeInfo"]["kubeletVersion"])
            for node in items_of(capture, "cluster/nodes.json")
        }
    except (KeyError, TypeError):
        return {}


def _without_kube_proxy(node: str, instead: str | None, kubelet_version: str) -> MemoryCapture:
    agent = next((name for mark, name in _WITHIN_AGENT.items() if mark in kubelet_version), None)
    why = f"no kube-proxy pod runs on node {node}"
    if agent:
        why += f": {agent} runs kube-proxy within its own process"
    elif instead:
        why += f"; {instead} runs there, and may do its work"
    return _gap(node, why, "read the node with --node-access ssh, or run ktp on it")


# ------------------------------------------------------------------------------------------------ one node


class _PodReader:
    """Reads nodes, one at a call, from several threads."""

    def __init__(self, api: KubeApi, timeout: float, reach: Reach | None) -> None:
        self._api = api
        self._timeout = timeout
        self._reach = reach

    def read(self, node: str, pod: Container, whose: str) -> MemoryCapture:
        """What one node says through the pod of `whose`, or the gap that says why not."""
        source = f"node {node} (exec in pod {pod.pod})"
        deadline = time.monotonic() + self._timeout
        not_root = (
            f"{whose}'s pod {pod.pod} is not root, and so the packet rules of node {node} cannot be read",
            "use --node-access ssh",
        )
        script = build_script(sudo=False, reach=self._reach, command_timeout=max(1.0, self._timeout - 5))
        talk = Conversation(node, script, self._reach).answer if self._reach is not None else None
        left = deadline - time.monotonic()
        try:
            answer = exec_in_pod(self._api, pod, ("sh", "-s"), timeout=left, stdin=script.text, answer=talk)
            recording = parse_stream(answer.stdout, script.mark)
            if recording.started:
                why = "broke off" if answer.status is not None else f"took longer than {self._timeout:g} s"
                return collect_recorded(
                    node, recording, reach=self._reach, source=source, not_root=not_root, why_cut=why
                )
            # What began with 127 has no shell; a shell that fails otherwise is no better.
            runner = ExecRunner(self._api, pod, deadline)
            blind = not runner.can_look()
            read = collect_local_node(
                node, runner, reach=self._reach, source=source, not_root=not_root, blind=blind
            )
            return _in_image(read, node) if blind else read
        except ApiError as error:
            message = f"{error.message}; node {node} cannot be read through its {whose} pod"
            return _gap(node, message, error.hint)


class ExecRunner:
    """A `ktp.collect.machine.CommandRunner` whose commands are execs in a container without a shell.

    Nothing can be looked at first, so nothing is run that could change the node where it finds nothing: the
    kernel's modules are taken to be there (kube-proxy itself asked for them when it started), a legacy table is
    read by `iptables-legacy-save` without `-t`, which reads /proc/net/ip_tables_names for itself, and `ipvsadm`
    is run only where rules ask kube-proxy's sets (`collect_local_node(…, blind=True)`).
    """

    def __init__(self, api: KubeApi, pod: Container, deadline: float) -> None:
        self._api = api
        self._pod = pod
        self._deadline = deadline
        self._known: dict[str, bool] = {}
        self._files: dict[str, CommandResult] = {}
        self._lock = threading.Lock()

    def can_look(self) -> bool:
        """Whether files can be read in this container."""
        with contextlib.suppress(OSError):
            self.read_file("/proc/net/ip_tables_names")
        return self.has_command("cat")

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        """What the command printed; status 1 and the API server's words where the exec cannot begin."""
        left = min(timeout, self._deadline - time.monotonic())
        if left <= 0:
            return CommandResult(status=None)
        try:
            answer: ExecResult = exec_in_pod(self._api, self._pod, command, timeout=left)
        except ApiError as error:
            return CommandResult(status=1, stderr=error.message.encode())
        with self._lock:
            self._known[command[0]] = answer.status != NOT_FOUND
        if not answer.complete:
            return CommandResult(status=1, stderr=b"the connection ended before the command did")
        return CommandResult(status=answer.status, stdout=answer.stdout, stderr=answer.stderr)

    def namespaces(self, addresses: Sequence[str]) -> dict[str, int]:  # noqa: ARG002 - the protocol's
        """None: a container sees no processes but its own."""
        return {}

    def agents_command(self) -> str:
        """None: what has the command is the agent's container itself."""
        return ""

    def has_command(self, name: str) -> bool:
        """Whether the image has the command; asked by its --version where that does nothing else."""
        with self._lock:
            if name in self._known:
                return self._known[name]
        if "tables" not in name:
            return True  # the attempt will tell
        self.run((name, "--version"), timeout=30.0)
        return self._known.get(name, True)

    def read_file(self, path: str) -> bytes:
        """The content of a file, by `cat` where the image has it; OSError where that fails."""
        with self._lock:
            known = self._files.get(path)
        if known is None:
            known = (
                self.run(("cat", path), timeout=30.0)
                if self.has_command("cat")
                else CommandResult(status=NOT_FOUND)
            )
            with self._lock:
                self._files[path] = known
        if known.status == 0:
            return known.stdout
        if b"No such file" in known.stderr:
            raise FileNotFoundError(2, "No such file or directory")
        raise OSError(13, "there is no way to look into it in kube-proxy's image")

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder, by `ls` where the image has it."""
        answer = (
            self.run(("ls", path), timeout=30.0)
            if self.has_command("ls")
            else CommandResult(status=NOT_FOUND)
        )
        return sorted(answer.stdout.decode(errors="replace").split()) if answer.status == 0 else []

    def exists(self, path: str) -> bool:
        """True where that cannot be told."""
        try:
            self.read_file(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def hostnames(self) -> tuple[str, ...]:
        """None: the node is known by the pod's spec."""
        return ()

    def is_root(self) -> bool:
        """kube-proxy's container is privileged, or could not do its work."""
        return True


def _in_image(read: MemoryCapture, node: str) -> MemoryCapture:
    """The same, with one gap for everything that kube-proxy's image has no means to tell."""
    lacking = [gap for gap in read.gaps if gap.cause is GapCause.NOT_INSTALLED or gap.kind == "node-sysctl"]
    if not lacking:
        return read
    lost = {
        "node-addresses": "addresses",
        "node-routes": "routes",
        "node-sockets": "sockets",
        "node-sysctl": "sysctls",
        "nft": "nft tables",
        "ipset": "ipsets",
        "ipvs": "IPVS table",
        "node-rules": "rules of one back end",
        "iptables-nft": "rules of iptables-nft",
    }
    names = ", ".join(dict.fromkeys(lost.get(gap.kind, gap.kind) for gap in lacking))
    gap = EvidenceGap(
        "node-state",
        node,
        f"kube-proxy's image on node {node} has no commands for the node's {names}, and so they are not known",
        remedy="use --node-access ssh for these",
    )
    kept = tuple(gap for gap in read.gaps if gap not in lacking)
    return MemoryCapture(files=read.files, gaps=(*kept, gap), source=read.source)


def _gap(node: str, message: str, remedy: str | None) -> MemoryCapture:
    gap = EvidenceGap("node-rules", node, message, remedy=remedy)
    return MemoryCapture(files={}, gaps=(gap,), source=f"node {node} (kube-proxy's pod)")
