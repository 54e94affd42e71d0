"""Use cases: the one place that joins collecting, parsing, asking and showing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktp.errors import EvidenceError, ExitCode, NotFoundError, UsageError
from ktp.model.trace import Flow, Symptom

if TYPE_CHECKING:
    from ktp.dataplane.walk import Walker
    from ktp.model.capture import Capture
    from ktp.model.cluster import Cluster, Service
    from ktp.model.diagnosis import ServiceDiagnosis
    from ktp.model.snapshot import Snapshot
    from ktp.model.trace import FlowAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The common options of the command line."""

    snapshot: str | None = None
    demo: bool = False
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    nodes: tuple[str, ...] = ()
    node_access: str = "auto"
    output: str = "text"
    color: str = "auto"
    verbose: bool = False


def demo_path() -> Path:
    """The folder of the packaged snapshot."""
    return Path(__file__).parent / "demo" / "article"


def offline(settings: Settings) -> bool:
    """Whether the question goes to a snapshot and not to a live cluster."""
    return settings.demo or settings.snapshot is not None


def open_offline(settings: Settings) -> Capture:
    """The capture of --demo or --snapshot. Raises SnapshotError."""
    from ktp.collect.snapshot import open_snapshot

    if settings.demo and settings.snapshot is not None:
        raise UsageError("--demo and --snapshot are two different snapshots; give one of them")
    return open_snapshot(demo_path() if settings.demo else Path(settings.snapshot or ""))


def split_name(text: str, settings: Settings, default_namespace: str = "default") -> tuple[str, str]:
    """`[NAMESPACE/]NAME` → (namespace, name); -n fills the namespace in."""
    namespace, slash, name = text.rpartition("/")
    if slash and (not namespace or not name or "/" in namespace):
        raise UsageError(f"{text!r} is not a Service name; write NAMESPACE/NAME or NAME with -n NAMESPACE")
    if not name:
        raise UsageError("the name of the Service is empty; write NAMESPACE/NAME")
    return namespace or settings.namespace or default_namespace, name


def snapshot_for_service(settings: Settings, text: str) -> tuple[Snapshot, Service]:
    """The snapshot that answers questions to one Service, live or not, and that Service."""
    from ktp.parse.snapshot import parse_snapshot

    if offline(settings):
        snapshot = parse_snapshot(open_offline(settings), nodes=settings.nodes or None)
        namespace, name = split_name(text, settings)
        return _check_nodes(snapshot, settings), find_service(snapshot.cluster, namespace, name)
    capture = _collect_one(settings, text)
    snapshot = _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)
    namespace, name = split_name(text, settings, _default_namespace(settings))
    return snapshot, find_service(snapshot.cluster, namespace, name)


def snapshot_for_all(settings: Settings, namespace: str | None) -> Snapshot:
    """The snapshot that answers questions to all Services (of one namespace), live or not."""
    from ktp.parse.snapshot import parse_snapshot

    if offline(settings):
        return _check_nodes(parse_snapshot(open_offline(settings), nodes=settings.nodes or None), settings)
    from ktp.collect.cluster import collect_services
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    capture = _with_nodes(settings, collect_services(api, namespace))
    return _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)


def _default_namespace(settings: Settings) -> str:
    from ktp.collect.kube_config import load_configuration

    return load_configuration(settings.kubeconfig, settings.context).default_namespace or "default"


def _collect_one(settings: Settings, text: str) -> Capture:
    from ktp.collect.cluster import collect_service
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    namespace, name = split_name(text, settings, api.default_namespace)
    return _with_nodes(settings, collect_service(api, namespace, name))


def _with_nodes(settings: Settings, capture: Capture) -> Capture:
    """Join what the nodes themselves say, by --node-access."""
    from ktp.collect.local_node import collect_local_node, local_node_name
    from ktp.model.capture import merge_captures

    if settings.node_access == "none":
        return capture
    if settings.node_access in ("auto", "local"):
        name = local_node_name(capture)
        if name is None and settings.node_access == "local":
            if len(settings.nodes) != 1:
                raise EvidenceError(
                    "this machine is none of the cluster's nodes",
                    hint="say which one it is with --node NAME, or run ktp on the node",
                )
            name = settings.nodes[0]
        if name is None or (settings.nodes and name not in settings.nodes):
            return capture
        return merge_captures(capture, collect_local_node(name))
    raise UsageError(f"--node-access {settings.node_access} is not available in this version")


def _check_nodes(snapshot: Snapshot, settings: Settings) -> Snapshot:
    known = set(snapshot.nodes) | set(snapshot.cluster.nodes or {})
    for name in settings.nodes:
        if known and name not in known:
            raise NotFoundError(
                f"there is no node {name!r} in the {'snapshot' if offline(settings) else 'cluster'}"
                + _near(name, known)
            )
    return snapshot


def find_service(cluster: Cluster, namespace: str, name: str) -> Service:
    """The Service, or NotFoundError with the names that come near."""
    found = cluster.services.get(f"{namespace}/{name}")
    if found is not None:
        return found
    names = sorted(s.name for s in cluster.services.values() if s.namespace == namespace)
    if not names:
        namespaces = sorted({s.namespace for s in cluster.services.values()})
        raise NotFoundError(f"there is no Service in namespace {namespace!r}" + _near(namespace, namespaces))
    elsewhere = sorted(s.key for s in cluster.services.values() if s.name == name)
    if elsewhere:
        raise NotFoundError(
            f"there is no Service {name!r} in namespace {namespace!r}; there is {', '.join(elsewhere[:3])}"
        )
    raise NotFoundError(f"there is no Service {name!r} in namespace {namespace!r}" + _near(name, names))


def _near(name: str, names: set[str] | list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(names)[:8])}"


def walker_for(snapshot: Snapshot) -> Walker:
    """The packet walker over a snapshot."""
    from ktp.dataplane.walk import Walker
    from ktp.diagnose.topology import topology_of

    return Walker(topology_of(snapshot))


# ------------------------------------------------------------------------------------------------------ trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """One flow's answer.

    `sender` says who sends; `sources` where the rules of (node, back end) were read; `pods` which endpoint names are
    pods (None: not known).
    """

    answer: FlowAnswer
    sender: str
    sources: Mapping[tuple[str, str], str]
    pods: frozenset[str] | None
    status: ExitCode


def trace_flow(settings: Settings, source: str, target: str, via: str | None) -> Traced:
    """`ktp trace --from SOURCE --to TARGET [--via VIA]`: one flow with every step."""
    from ktp.dataplane.answer import answer_flow
    from ktp.parse.flows import parse_source, parse_target

    sender, host = parse_source(source), parse_target(target)
    snapshot = snapshot_for_all(settings, None)
    flow = _flow_asked(snapshot, sender, host, via)
    answer = answer_flow(walker_for(snapshot), flow)
    nodes = [hop.node for path in answer.paths for hop in path.hops]
    first = nodes[0] if nodes else next((u.node for u in answer.unknowns if u.node), None)
    state = snapshot.nodes.get(first) if first is not None else None
    if state is not None and not state.has_rules:
        raise EvidenceError(
            f"no packet filter rules of {first} were read, so what it does with the packet is not known",
            hint="let ktp read the node, or add its iptables-save.txt to the snapshot",
        )
    status = {Symptom.CONNECTS: ExitCode.OK, Symptom.UNKNOWN: ExitCode.UNDETERMINED}.get(
        answer.symptom, ExitCode.FINDINGS
    )
    if not nodes and first is not None and state is None:
        status = ExitCode.EVIDENCE
    family = "ip6" if ":" in flow.dst else "ip"
    sources = {
        (name, ruleset.backend.value): ruleset.source
        for name, state in snapshot.nodes.items()
        for ruleset in state.rulesets_of(family)
    }
    return Traced(
        answer=answer,
        sender=_sender(snapshot, answer),
        sources=sources,
        pods=_pod_names(snapshot),
        status=status,
    )


class FlowBatch:
    """`ktp trace --batch`: answers lines one at a time (design §5).

    `remember` keeps the answers of flows that come again. After the last line, `status` is the exit status.
    """

    def __init__(self, snapshot: Snapshot, *, remember: bool = True) -> None:
        """Answers flows through the nodes of `snapshot`."""
        self.bad_lines = 0
        self.bugs = 0
        self._walker = walker_for(snapshot)
        self._nodes = frozenset((*snapshot.nodes, *(snapshot.cluster.nodes or ())))
        self._pods = _pod_names(snapshot)
        self._known: dict[Flow, str] = {}
        self._limit = 1 << 16 if remember else 0
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    @property
    def status(self) -> ExitCode:
        """BUG where ktp failed on a line, USAGE where a line was no flow, else OK, whatever the answers say."""
        return ExitCode.BUG if self.bugs else ExitCode.USAGE if self.bad_lines else ExitCode.OK

    def answer(self, line: bytes) -> str:
        """The answer to one line, without its end of line. Never raises for what the line holds."""
        from ktp.parse.flows import FlowLineError, parse_flow_line

        try:
            number, flow = parse_flow_line(line, self._nodes)
        except FlowLineError as error:
            return self._refused(error.id, str(error))
        try:
            answer = self._known.get(flow) or self._answer(flow)
            return f'{{"id":{self._encode(number)},{answer}'
        except ValueError as error:
            return self._refused(number, str(error))
        except Exception as error:
            if os.environ.get("KTP_DEBUG"):
                raise
            self.bugs += 1
            return self._encode(
                {"id": number, "error": f"this is a bug of ktp: {type(error).__name__}: {error}"}
            )

    def _answer(self, flow: Flow) -> str:
        from ktp.dataplane.answer import answer_flow
        from ktp.render.trace_json import answer_object

        fields = self._encode(answer_object(answer_flow(self._walker, flow, trace=False), self._pods))[1:]
        if self._limit:
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[flow] = fields
        return fields

    def _refused(self, number: Any, why: str) -> str:
        self.bad_lines += 1
        try:
            return self._encode({"id": number, "error": why})
        except ValueError:  # an id such as 1e999 that JSON cannot hold
            return self._encode({"id": None, "error": why})


def _pod_names(snapshot: Snapshot) -> frozenset[str] | None:
    cluster = snapshot.cluster
    if cluster.pods is None:
        return None
    targets = (
        f"{e.target_namespace or part.namespace}/{e.target_name}"
        for part in (*(cluster.slices or ()), *(cluster.endpoints or ()))
        for e in part.endpoints
        if e.target_kind == "Pod"
    )
    return frozenset((*(pod.key for pod in cluster.pods), *targets))


def _flow_asked(
    snapshot: Snapshot, sender: tuple[str | None, str | None], target: tuple[str, int, str], via: str | None
) -> Flow:
    """The flow that the command line means, names resolved to addresses."""
    who, node = sender
    host, port, protocol = target
    src: str | None = None
    if (
        who is not None
        and "/" not in who
        and not _is_address(who)
        and node is None
        and who in _node_names(snapshot)
    ):
        who, node = None, who  # `node-a` for `@node-a`
    for name in (node, via):
        if name is not None:
            _known_node(snapshot, name)
    if who is not None and not _is_address(who):
        src, node = _pod_sender(snapshot, who, node, host)
    elif who is not None:
        src = str(ip_address(who))
        node = node or _node_of(snapshot, src)
    dst = _address_of(snapshot, host, src)
    if src is not None and (":" in src) != (":" in dst):
        raise UsageError(f"{src} and {dst} are of different address families")
    if via is not None and node is not None:
        raise UsageError(
            f"--via is where a packet from outside reaches the cluster, but this sender runs on {node}"
        )
    return Flow(dst=dst, port=port, protocol=protocol, src=src, from_node=node, via=via)


def _is_address(text: str) -> bool:
    from ktp.parse.flows import is_address

    return is_address(text)


def _node_names(snapshot: Snapshot) -> set[str]:
    return {*snapshot.nodes, *(snapshot.cluster.nodes or ())}


def _known_node(snapshot: Snapshot, name: str) -> None:
    known = _node_names(snapshot)
    if name not in known:
        raise NotFoundError(f"there is no node {name!r}" + _near(name, known))


def _pod_sender(
    snapshot: Snapshot, name: str, node: str | None, target: str
) -> tuple[str | None, str | None]:
    """(source address, node) of the pod NAMESPACE/NAME; a pod of the host's network is a process of its node."""
    pod = next((p for p in snapshot.cluster.pods or () if p.key == name), None)
    if pod is None:
        if "/" not in name:
            raise UsageError(
                f"{name!r} is no IP address and no node", hint="write IP, IP@NODE, @NODE or NAMESPACE/POD"
            )
        raise NotFoundError(
            f"there is no pod {name!r}" + _near(name, {p.key for p in snapshot.cluster.pods or ()})
        )
    if node is not None and node != pod.node_name:
        raise UsageError(f"pod {name} runs on {pod.node_name}, not on {node}")
    if pod.host_network:
        return None, pod.node_name
    wants_v6 = ":" in target
    fitting = [ip for ip in pod.pod_ips if (":" in ip) == wants_v6] or list(pod.pod_ips)
    if not fitting or pod.node_name is None:
        raise UsageError(f"pod {name} has no address yet")
    return fitting[0], pod.node_name


def _node_of(snapshot: Snapshot, address: str) -> str | None:
    """The node that a sender of this address runs on: of a pod its node, of a node itself; None: outside."""
    for pod in snapshot.cluster.pods or ():
        if address in pod.pod_ips and not pod.host_network and pod.phase not in ("Succeeded", "Failed"):
            return pod.node_name
    wanted = ip_address(address)
    owners = {
        name
        for name, state in snapshot.nodes.items()
        for interface in state.interfaces or ()
        for a in interface.addresses
        if a.ip == wanted and not interface.is_loopback
    }
    owners |= {
        node.name
        for node in (snapshot.cluster.nodes or {}).values()
        for _, a in node.addresses
        if a == address
    }
    return owners.pop() if len(owners) == 1 else None


def _address_of(snapshot: Snapshot, host: str, src: str | None) -> str:
    """The address that HOST of `--to` means: an address, `localhost`, or a node's InternalIP."""
    if _is_address(host):
        return str(ip_address(host))
    v6 = src is not None and ":" in src
    if host == "localhost":
        return "::1" if v6 else "127.0.0.1"
    node = (snapshot.cluster.nodes or {}).get(host)
    if node is None:
        raise NotFoundError(
            f"{host!r} is no IP address and no node of the cluster"
            + _near(host, set(snapshot.cluster.nodes or ()))
        )
    addresses = [a for kind, a in node.addresses if kind == "InternalIP" and _is_address(a)]
    fitting = addresses if src is None else [a for a in addresses if (":" in a) == v6]
    if len(fitting) != 1:
        raise UsageError(
            f"node {host} has no one internal address to dial: {', '.join(addresses) or 'none'}",
            hint="write the address instead of the name",
        )
    return fitting[0]


def _sender(snapshot: Snapshot, answer: FlowAnswer) -> str:
    flow = answer.flow
    hops = answer.paths[0].hops if answer.paths else ()
    src = flow.src or (hops[0].arrived.src if hops else "")
    if flow.from_node is None:
        return f"{src} (outside the cluster)"
    for pod in snapshot.cluster.pods or ():
        if flow.src in pod.pod_ips and not pod.host_network:
            return f"{src} (pod {pod.key} on {flow.from_node})"
    owner = _node_of(snapshot, src) if src else flow.from_node
    what = "a process of" if flow.src is None or owner == flow.from_node else "behind"
    return f"{src} ({what} {flow.from_node})" if src else f"{what} {flow.from_node}"


# -- ktp diagnose svc


def diagnose_services(settings: Settings, names: tuple[str, ...], client: str | None) -> ExitCode:
    """Diagnose the named Services and write the report to stdout; the exit status."""
    from ktp.diagnose.service import diagnose_service

    outside = _client_address(client)
    reports = []
    for name in names:
        snapshot, service = snapshot_for_service(settings, name)
        reports.append(diagnose_service(snapshot, service, nodes=settings.nodes, client=outside))
    _write_diagnoses(settings, reports)
    return _status_of(reports)


def _client_address(text: str | None) -> IPv4Address | IPv6Address | None:
    if text is None:
        return None
    try:
        return ip_address(text)
    except ValueError:
        raise UsageError(f"--client {text!r} is no IP address") from None


def _write_diagnoses(settings: Settings, reports: list[ServiceDiagnosis]) -> None:
    if settings.output != "text":
        from ktp.render.diagnosis_json import diagnosis_list, diagnosis_object
        from ktp.render.structured import dump

        data = diagnosis_object(reports[0]) if len(reports) == 1 else diagnosis_list(reports)
        dump(data, settings.output, sys.stdout)
        return
    from ktp.render.diagnosis_text import print_diagnosis
    from ktp.render.terminal import make_console

    console = make_console(settings.color, sys.stdout)
    for number, report in enumerate(reports):
        if number:
            console.print()
        print_diagnosis(report, console, verbose=settings.verbose)


def _status_of(reports: list[ServiceDiagnosis]) -> ExitCode:
    from ktp.model.diagnosis import Severity

    if any(f.severity is not Severity.INFO for r in reports for f in r.findings):
        return ExitCode.FINDINGS
    if any(r.undetermined for r in reports):
        return ExitCode.UNDETERMINED
    return ExitCode.OK


def survey_services(settings: Settings, namespace: str | None) -> ExitCode:
    """Every Service with an external front end, worst first; the exit status."""
    from ktp.diagnose.survey import survey

    snapshot = snapshot_for_all(settings, namespace)
    if namespace is not None and not any(s.namespace == namespace for s in snapshot.cluster.services.values()):
        find_service(snapshot.cluster, namespace, "")
    rows = survey(snapshot, namespace=namespace, nodes=settings.nodes)
    if settings.output != "text":
        from ktp.render.structured import dump
        from ktp.render.survey import survey_object

        dump(survey_object(rows, snapshot), settings.output, sys.stdout)
    else:
        from ktp.render.survey import print_survey
        from ktp.render.terminal import make_console

        print_survey(rows, make_console(settings.color, sys.stdout), verbose=settings.verbose)
    if any(r.failing for r in rows):
        return ExitCode.FINDINGS
    return ExitCode.UNDETERMINED if any(r.unknown for r in rows) else ExitCode.OK
