"""Use cases: the one place that joins collecting, parsing, asking and showing."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktp.errors import EvidenceError, ExitCode, NotFoundError, UsageError
from ktp.model.trace import Flow, Symptom

if TYPE_CHECKING:
    from ktp.collect.auth import Allowed, Permission
    from ktp.collect.kube_api import KubeApi
    from ktp.collect.nft_chains import Reach
    from ktp.collect.prober import ProbeSettings
    from ktp.collect.redact import ChainNaming
    from ktp.dataplane.walk import Walker
    from ktp.diagnose.probing import Predictor
    from ktp.diagnose.survey import SurveyRow
    from ktp.diagnose.whatif import Change
    from ktp.model.capture import Capture, EvidenceGap
    from ktp.model.cluster import Cluster, Service
    from ktp.model.diagnosis import ServiceDiagnosis
    from ktp.model.explanation import Explanation
    from ktp.model.host import NodeState
    from ktp.model.probing import HealthAnswer, MovedRule, ProbeRow, WitnessRow
    from ktp.model.snapshot import Snapshot
    from ktp.model.trace import FlowAnswer
    from ktp.parse.rules import RulesDump


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
    fail_on: str = "warning"
    ssh_user: str | None = None
    ssh_options: tuple[str, ...] = ()
    sudo: bool = False
    parallel: int = 16
    timeout: float = 120.0
    # Told (nodes done, nodes in all, node) while nodes are read.
    progress: Callable[[int, int, str], None] | None = None


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
    capture = _with_nodes(settings, collect_services(api, namespace), api=api)
    return _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)


def _default_namespace(settings: Settings) -> str:
    from ktp.collect.kube_config import load_configuration

    return load_configuration(settings.kubeconfig, settings.context).namespace or "default"


def _collect_one(settings: Settings, text: str) -> Capture:
    from ktp.collect.cluster import collect_service
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    namespace, name = split_name(text, settings, api.default_namespace)
    capture = collect_service(api, namespace, name)
    return _with_nodes(settings, capture, api=api, reach=_reach(capture))


def _reach(capture: Capture) -> Reach:
    """The rules that packets to the Services of `capture` can meet, and the chains that kube-proxy would give them."""
    from ktp.collect.nft_chains import Reach, service_destinations
    from ktp.kubeproxy.names import KUBE_MARK_DROP, KUBE_MARK_MASQ, service_chains, service_port_strings
    from ktp.parse.kubernetes import parse_cluster_with_gaps

    cluster, _ = parse_cluster_with_gaps(capture)
    chains = [
        ("nat", chain)
        for service in cluster.services.values()
        for port in service.ports
        for name in service_port_strings(service, port)
        for own in (service_chains(name, port.protocol),)
        for chain in (own.svc, own.svl, own.ext, own.xlb, own.fw)
    ]
    # What-if questions give rules to Services that have none now, and those lead here.
    chains += [("nat", KUBE_MARK_MASQ), ("nat", KUBE_MARK_DROP)]
    return Reach(destinations=service_destinations(capture), chains=tuple(dict.fromkeys(chains)))


def _with_nodes(
    settings: Settings, capture: Capture, *, api: KubeApi | None = None, reach: Reach | None = None
) -> Capture:
    """Join what the nodes themselves say, by --node-access; with `reach`, of large ones only the rules it reaches."""
    from ktp.collect.children import ending_children
    from ktp.model.capture import merge_captures

    _require_nodes(settings, capture)
    if settings.node_access == "none":
        return capture
    with ending_children():
        if settings.node_access == "ssh":
            read = _nodes_by_ssh(settings, capture, reach)
        elif settings.node_access == "kube-proxy":
            read = _nodes_by_kube_proxy(settings, capture, api, reach)
        else:
            read = _this_node(settings, capture, reach)
    return merge_captures(capture, read, source=capture.source if not read.node_names() else None)


def _require_nodes(settings: Settings, capture: Capture) -> None:
    """NotFoundError for a --node that the cluster does not have: nobody logs in to a machine of a mistyped name."""
    from ktp.collect.ssh import node_addresses

    known = set(node_addresses(capture))
    for name in settings.nodes:
        if known and name not in known:
            raise NotFoundError(f"there is no node {name!r} in the cluster" + _near(name, known))


def _this_node(settings: Settings, capture: Capture, reach: Reach | None) -> Capture:
    """--node-access local, and auto, which reads nothing where this machine is no node and says how it could."""
    from ktp.collect.local_node import collect_local_node, local_node_name
    from ktp.collect.ssh import all_nodes
    from ktp.model.capture import EvidenceGap, MemoryCapture, merge_captures

    name = local_node_name(capture)
    if name is None and settings.node_access == "local":
        if len(settings.nodes) != 1:
            raise EvidenceError(
                "this machine is none of the cluster's nodes",
                hint="say which one it is with --node NAME, or run ktp on the node",
            )
        name = settings.nodes[0]
    if name is not None and settings.nodes and name not in settings.nodes:
        name = None
    others = [node for node in all_nodes(capture, settings.nodes) if node != name]
    gaps = []
    if others:
        count = f"node {others[0]}" if len(others) == 1 else f"{len(others)} nodes"
        message = (
            f"the rules of {count} were not read, since ktp does not run there"
            if name is not None
            else f"this machine is no node of the question, and so the rules of {count} were not read"
        )
        remedy = "--node-access ssh reads them by SSH, --node-access kube-proxy through kube-proxy's pods"
        gaps.append(EvidenceGap(kind="node-access", subject="nodes", message=message, remedy=remedy))
    unread = MemoryCapture(files={}, gaps=tuple(gaps), source=capture.source)
    if name is None:
        return unread
    read = collect_local_node(name, reach=reach)
    return merge_captures(read, unread, source=read.source)


def _nodes_by_ssh(settings: Settings, capture: Capture, reach: Reach | None) -> Capture:
    from ktp.collect.ssh import SshSettings, all_nodes, collect_over_ssh

    ssh = SshSettings(
        user=settings.ssh_user,
        options=settings.ssh_options,
        sudo=settings.sudo,
        parallel=settings.parallel,
        timeout=settings.timeout,
    )
    nodes = all_nodes(capture, settings.nodes)
    if not nodes:
        return _no_node_known(capture)
    return collect_over_ssh(capture, nodes, ssh, reach=reach, on_progress=settings.progress)


def _nodes_by_kube_proxy(
    settings: Settings, capture: Capture, api: KubeApi | None, reach: Reach | None
) -> Capture:
    from ktp.collect.kube_api import connect
    from ktp.collect.kube_proxy_exec import collect_through_kube_proxy
    from ktp.collect.ssh import all_nodes

    nodes = all_nodes(capture, settings.nodes)
    if not nodes:
        return _no_node_known(capture)
    return collect_through_kube_proxy(
        api or connect(settings.kubeconfig, settings.context),
        nodes,
        capture,
        parallel=settings.parallel,
        timeout=settings.timeout,
        reach=reach,
        on_progress=settings.progress,
    )


def _no_node_known(capture: Capture) -> Capture:
    from ktp.model.capture import EvidenceGap, MemoryCapture

    gap = EvidenceGap(
        kind="node-access",
        subject="nodes",
        message="no node is known by name, and so none was read",
        remedy="name them with --node, or get the right to list nodes",
    )
    return MemoryCapture(files={}, gaps=(gap,), source=capture.source)


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
    if near or not names:
        return f"; did you mean {' or '.join(near)}?" if near else ""
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(sorted(names)[:8])}"


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
    pods (None: not known). `remedy` is what would give the evidence that lacks.
    """

    answer: FlowAnswer
    sender: str
    sources: Mapping[tuple[str, str], str]
    pods: frozenset[str] | None
    status: ExitCode
    remedy: str | None = None


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
            hint="let ktp read the node (--node-access ssh or kube-proxy), or add its iptables-save.txt to the "
            "snapshot",
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
        remedy=_remedy_for(snapshot, first) if status is ExitCode.EVIDENCE else None,
    )


def _remedy_for(snapshot: Snapshot, node: str | None) -> str | None:
    gaps = sorted(snapshot.gaps, key=lambda gap: gap.kind != "node-access")
    subjects = (node, "nodes")
    return next(
        (f"{gap.message}; {gap.remedy}" for gap in gaps if gap.subject in subjects and gap.remedy), None
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


def diagnose_services(
    settings: Settings,
    names: tuple[str, ...],
    client: str | None,
    *,
    probing: Probing | None = None,
    health: bool = False,
) -> ExitCode:
    """Diagnose the named Services and write the report to stdout; the exit status.

    With `probing` their front ends are dialled too, with `health` their health checks are asked.
    """
    from ktp.diagnose.service import diagnose_service

    outside = _client_address(client)
    reports = []
    for name in names:
        snapshot, service = snapshot_for_service(settings, name)
        _require_family(service, outside)
        said = _health_answers(settings, snapshot, service, probing) if health else None
        report = diagnose_service(snapshot, service, nodes=settings.nodes, client=outside, health=said)
        if probing is not None:
            from ktp.diagnose.probing import with_probes

            report = with_probes(report, _dial(settings, snapshot, service, probing).rows)
        reports.append(report)
    _write_diagnoses(settings, reports)
    return _status_of(reports, settings.fail_on)


def _client_address(text: str | None) -> IPv4Address | IPv6Address | None:
    if text is None:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise UsageError(f"--client {text!r} is no IP address") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise UsageError(f"--client {text} is no address that a client outside the cluster can have")
    return address


def _require_family(service: Service, client: IPv4Address | IPv6Address | None) -> None:
    from ktp.kubeproxy.frontends import ip_versions_of

    versions = ip_versions_of(service)
    if client is not None and versions and client.version not in versions:
        raise UsageError(
            f"--client {client} cannot dial {service.key}, which has no IPv{client.version} address"
        )


def _write_diagnoses(settings: Settings, reports: list[ServiceDiagnosis], *, as_list: bool = False) -> None:
    """Write the reports; as data one alone is no list, unless `as_list`."""
    if settings.output == "markdown":
        from ktp.render.report_markdown import markdown_report

        sys.stdout.write("\n".join(markdown_report(r) for r in reports))
        return
    if settings.output == "html":
        from ktp.render.report_html import html_report

        sys.stdout.write(html_report(reports))
        return
    if settings.output == "junit":
        from ktp.model.diagnosis import Severity
        from ktp.render.report_junit import junit_report

        sys.stdout.write(junit_report(reports, Severity(settings.fail_on)))
        return
    if settings.output != "text":
        from ktp.render.diagnosis_json import diagnosis_list, diagnosis_object
        from ktp.render.structured import dump

        data = diagnosis_list(reports) if as_list or len(reports) != 1 else diagnosis_object(reports[0])
        dump(data, settings.output, sys.stdout)
        return
    from ktp.render.diagnosis_text import print_diagnosis
    from ktp.render.terminal import make_console

    console = make_console(settings.color, sys.stdout)
    for number, report in enumerate(reports):
        if number:
            console.print()
        print_diagnosis(report, console, verbose=settings.verbose)


def _status_of(reports: list[ServiceDiagnosis], fail_on: str = "warning") -> ExitCode:
    from ktp.model.diagnosis import Severity

    limit = Severity(fail_on).rank
    if any(f.severity.rank <= limit for r in reports for f in r.findings):
        return ExitCode.FINDINGS
    if any(r.undetermined for r in reports):
        return ExitCode.UNDETERMINED
    return ExitCode.OK


def survey_services(settings: Settings, namespace: str | None) -> ExitCode:
    """Every Service with an external front end, worst first; the exit status."""
    from ktp.diagnose.survey import survey

    snapshot = snapshot_for_all(settings, namespace)
    if namespace is not None and not any(
        s.namespace == namespace for s in snapshot.cluster.services.values()
    ):
        find_service(snapshot.cluster, namespace, "")
    rows = survey(snapshot, namespace=namespace, nodes=settings.nodes)
    if settings.output == "text":
        from ktp.render.survey import print_survey
        from ktp.render.terminal import make_console

        print_survey(rows, make_console(settings.color, sys.stdout), verbose=settings.verbose)
    else:
        _write_survey(settings, snapshot, rows)
    if any(r.failing for r in rows):
        return ExitCode.FINDINGS
    return ExitCode.UNDETERMINED if any(r.unknown for r in rows) else ExitCode.OK


# Beyond so many Services times nodes `-A -o json` prints summaries: whole diagnoses would take minutes.
_WHOLE_DIAGNOSES = 3000


def _write_survey(settings: Settings, snapshot: Snapshot, rows: list[SurveyRow]) -> None:
    """Whole diagnoses of all Services in the survey, in its order; summaries where there are too many."""
    from ktp.diagnose.service import diagnose_service

    keys = list(dict.fromkeys(row.key for row in rows))
    nodes = settings.nodes or _node_names(snapshot)
    if len(keys) * len(nodes) <= _WHOLE_DIAGNOSES:
        services = snapshot.cluster.services
        reports = [diagnose_service(snapshot, services[key], nodes=settings.nodes) for key in keys]
        _write_diagnoses(settings, reports, as_list=True)
        return
    if settings.output not in ("json", "yaml"):
        raise UsageError(
            f"{len(keys)} Services on {len(nodes)} nodes are too many for one {settings.output} report",
            hint="narrow it with -n NAMESPACE or --node NODE, or use -o json, which prints a summary of each",
        )
    from ktp.render.structured import dump
    from ktp.render.survey import survey_object

    dump(survey_object(rows, snapshot), settings.output, sys.stdout)


# ---------------------------------------------------------------------------------------------- explain-rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What `ktp explain-rules` shows, and its exit status."""

    explanations: tuple[Explanation, ...]
    status: ExitCode


def open_rules(file: str | None, stdin: Any) -> RulesDump | None:
    """The dump of `--rules`, "-" being standard input; None where the option is not given."""
    if file is None:
        return None
    # Imported before the pipe is read: its writer is at work meanwhile.
    import ktp.explain.explain  # noqa: F401
    from ktp.parse.rules import open_rules_dump

    if file == "-":
        if stdin.isatty():
            raise UsageError("nothing is piped in", hint="iptables-save | ktp explain-rules … --rules -")
        return open_rules_dump(stdin.buffer.read(), "standard input")
    return open_rules_dump(Path(file), file)


def explain_node_port(settings: Settings, text: str, vantage: str, dump: RulesDump | None) -> Explained:
    """`ktp explain-rules --node-port`: from a dump, a snapshot, or this machine."""
    port, protocol = _node_port(text)
    if dump is None:
        from ktp.diagnose.explain_rules import explain_port

        snapshot = _rules_snapshot(settings, _port_reach(port, protocol))
        return _explained(
            explain_port(snapshot, protocol, port, vantage, settings.nodes, every_rule=settings.verbose)
        )
    from ktp.explain.explain import ask_dump, explain_flow
    from ktp.explain.front_end import node_port_rules

    node = settings.nodes[0] if settings.nodes else "this node"
    if dump.xtables is not None and (rules := node_port_rules(dump.xtables, protocol, port)):
        walker, asked = ask_dump(dump.xtables, node, protocol, port, vantage, rules)
        return _explained([explain_flow(walker, asked, every_rule=settings.verbose)])
    if dump.nft is not None:
        from ktp.explain.nft_explain import ask_nft_dump

        questions = ask_nft_dump(dump.nft, node, protocol, port, vantage)
        if questions:
            return _explained([explain_flow(w, a, every_rule=settings.verbose) for w, a in questions])
    if dump.ipvs is not None:
        from ktp.explain.ipvs import explain_ipvs_dump

        found = explain_ipvs_dump(dump.ipvs, node, protocol, port)
        if found is not None:
            return _explained([found])
    from ktp.explain.find import no_such_node_port

    raise no_such_node_port([_dump_as_node(dump, node)], protocol, port)


def explain_chain(settings: Settings, name: str, dump: RulesDump | None) -> Explained:
    """`ktp explain-rules --chain`: from a dump, a snapshot, or this machine."""
    from ktp.explain.find import explain_chains

    if dump is not None and dump.ipvs is not None:
        raise UsageError(
            f"{dump.source} is of ipvsadm: it has virtual servers, and no chains",
            hint="ask for --node-port N",
        )
    if dump is not None:
        states = [_dump_as_node(dump, settings.nodes[0] if settings.nodes else "this node")]
    else:
        from ktp.diagnose.explain_rules import nodes_with_rules, require_rules

        snapshot = _rules_snapshot(settings)
        require_rules(snapshot, settings.nodes)
        states = [snapshot.nodes[n] for n in nodes_with_rules(snapshot, settings.nodes)]
    places = [(s.name, r, None) for s in states for r in s.rulesets]
    native = [(s.name, None, s.nft) for s in states if s.nft is not None]
    explanations = explain_chains([*places, *native], name, every_rule=settings.verbose)
    return Explained(explanations=tuple(explanations), status=ExitCode.OK)


def explain_service(settings: Settings, text: str, vantage: str) -> Explained:
    """`ktp explain-rules NAMESPACE/NAME`: every front end on each node with rules."""
    from ktp.diagnose.explain_rules import explain_service_ends

    snapshot, service = snapshot_for_service(settings, text)
    return _explained(
        explain_service_ends(snapshot, service, vantage, settings.nodes, every_rule=settings.verbose)
    )


def _dump_as_node(dump: RulesDump, name: str) -> NodeState:
    from ktp.model.host import NodeState

    rulesets = (dump.xtables,) if dump.xtables is not None else ()
    return NodeState(name=name, rulesets=rulesets, nft=dump.nft, ipvs=dump.ipvs)


def _node_port(text: str) -> tuple[int, str]:
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"{text!r} is not a node port; write 31015 or 31015/udp")
    return int(number), protocol


def _port_reach(port: int, protocol: str) -> Reach:
    from ktp.collect.nft_chains import Destination, Reach

    # One port's rules in words are wanted at once, and told apart from what else hooks in by `ktp diagnose`.
    asked = Destination(protocol=protocol, port=port)
    return Reach(destinations=(asked,), look_for_foreign_hooks=False)


def _rules_snapshot(settings: Settings, reach: Reach | None = None) -> Snapshot:
    """The snapshot, the cluster where one is named, else this machine alone: it needs no API server.

    With `reach`, of a large machine's rules in nf_tables only those that it reaches are read.
    """
    asks_cluster = (
        settings.kubeconfig is not None
        or settings.context is not None
        or settings.node_access not in {"auto", "local"}
    )
    if offline(settings) or asks_cluster:
        return snapshot_for_all(settings, None)
    import socket

    from ktp.collect.local_node import collect_local_node
    from ktp.parse.snapshot import parse_snapshot

    name = settings.nodes[0] if settings.nodes else socket.gethostname()
    # What explains is imported while the node's commands are at work.
    threading.Thread(target=importlib.import_module, args=("ktp.explain.explain",), daemon=True).start()
    return parse_snapshot(collect_local_node(name, reach=reach))


def _explained(explanations: list[Explanation]) -> Explained:
    from ktp.explain.verdict import is_fine

    if not explanations:
        raise EvidenceError("no node with rules has an address to ask about")
    verdicts = [e.verdict for e in explanations if e.verdict is not None]
    status = ExitCode.OK
    if any(v.symptom == Symptom.UNKNOWN.value for v in verdicts):
        status = ExitCode.UNDETERMINED
    if any(not is_fine(v) and v.symptom != Symptom.UNKNOWN.value for v in verdicts):
        status = ExitCode.FINDINGS
    return Explained(explanations=tuple(explanations), status=status)


# --------------------------------------------------------------------------------------------------- snapshots

# Nodes that are read before anything is written: what an interrupted run loses at most.
_NODES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What `ktp snapshot` wrote. `nodes_with_rules` counts those whose packet filter rules are in it."""

    path: str
    services: int | None
    nodes: int
    nodes_with_rules: int
    resumed: int
    redacted: bool
    gaps: tuple[EvidenceGap, ...]


def take_snapshot(
    settings: Settings,
    out: str,
    *,
    resume: bool = False,
    redact: bool = False,
    redact_map: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Taken:
    """`ktp snapshot OUT`: collect a cluster, or take over --snapshot, and write it.

    `progress` is told in words what is going on. Raises EvidenceError where nothing could be had.
    """
    from ktp.collect.snapshot import is_archive_name, write_snapshot
    from ktp.collect.strip import strip_capture

    archive = is_archive_name(out)
    if redact_map is not None and not redact:
        raise UsageError("--redact-map says where to keep the pseudonyms of --redact; give both")
    if resume and (archive or redact or offline(settings)):
        what = "an archive" if archive else "a redacted snapshot" if redact else "a copy of a snapshot"
        raise UsageError(
            f"--resume takes up a folder that is read from a live cluster, and not {what}",
            hint="collect into a folder first, then convert it: ktp snapshot --snapshot FOLDER OUT",
        )
    if not offline(settings) and not archive and not redact:
        return _take_into_folder(settings, out, resume=resume, progress=progress)
    if offline(settings):
        capture: Capture = open_offline(settings)
        nodes = settings.nodes or None
        known = set(capture.node_names())
        for name in settings.nodes:
            if name not in known:
                raise NotFoundError(
                    f"there is nothing of a node {name!r} in the snapshot" + _near(name, known)
                )
        capture = strip_capture(capture, namespace=settings.namespace, nodes=nodes)
    else:
        progress("reading the API server")
        api, cluster = _cluster_capture(settings)
        progress("reading the nodes")
        asked = replace(settings, progress=_counting(progress))
        capture = strip_capture(_with_nodes(asked, cluster, api=api), nodes=settings.nodes or None)
    if redact:
        progress("replacing names and addresses")
        capture = _redacted(capture, redact_map)
    progress(f"writing {out}")
    write_snapshot(capture, out)
    return _taken(out, capture, redacted=redact)


def _cluster_capture(settings: Settings) -> tuple[KubeApi, Capture]:
    from ktp.collect.cluster import collect_services
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    return api, collect_services(api, settings.namespace)


def _counting(
    progress: Callable[[str], None], before: int = 0, total: int = 0
) -> Callable[[int, int, str], None]:
    """What is told of each node that was read, in words for `progress`."""
    return lambda done, asked, node: progress(f"reading nodes: {before + done} of {total or asked} ({node})")


def _take_into_folder(
    settings: Settings, out: str, *, resume: bool, progress: Callable[[str], None]
) -> Taken:
    """Node by node, so that what was read is kept where the run is interrupted."""
    from ktp.collect.snapshot import SnapshotFolder, open_snapshot
    from ktp.collect.strip import strip_capture

    progress("reading the API server")
    api, found = _cluster_capture(settings)
    cluster = strip_capture(found)
    _require_nodes(settings, cluster)
    folder = SnapshotFolder(out, resume=resume)
    files = {name: cluster.read(name) for name in cluster.names()}
    folder.write_cluster(files)
    in_cluster = {name.split("/")[1] for name in files if name.startswith("nodes/")} | _node_objects(files)
    wanted = sorted(settings.nodes or in_cluster)
    done = folder.complete_nodes()
    gaps = [*cluster.gaps, *(gap for gap in folder.gaps if gap.subject.partition("/")[0] in done)]
    left = [name for name in wanted if name not in done]
    for name in left:
        folder.write_node(name, files)
    remote = settings.node_access in {"ssh", "kube-proxy"}
    batches = (
        [left] if not remote else [left[i : i + _NODES_AT_ONCE] for i in range(0, len(left), _NODES_AT_ONCE)]
    )
    for number, batch in enumerate(batches):
        if wanted and not batch:
            continue  # every node is there already
        progress("reading the nodes" if remote else "reading this machine")
        asked = replace(
            settings,
            nodes=tuple(batch) if remote or resume or settings.nodes else (),
            progress=_counting(progress, number * _NODES_AT_ONCE, len(left)),
        )
        read = strip_capture(_with_nodes(asked, cluster, api=api))
        new = {name: read.read(name) for name in read.names() if name.startswith("nodes/")}
        # What the API says about all nodes is in each answer; only those of this turn were read.
        for name in batch if remote else read.node_names():
            if name not in done:
                folder.write_node(name, new)
        gaps += [gap for gap in read.gaps if gap not in gaps]
        folder.write_gaps(gaps)
    folder.write_gaps(gaps)
    return _taken(out, open_snapshot(out), resumed=len(done.intersection(wanted)))


def _node_objects(files: Mapping[str, bytes]) -> set[str]:
    if "cluster/nodes.json" not in files:
        return set()
    return {item["metadata"]["name"] for item in json.loads(files["cluster/nodes.json"])["items"]}


def _taken(out: str, capture: Capture, *, redacted: bool = False, resumed: int = 0) -> Taken:
    nodes = capture.node_names()
    rules = {name.split("/")[1] for name in capture.names() if "tables" in name or "nft-ruleset" in name}
    services = (
        json.loads(capture.read("cluster/services.json"))["items"]
        if capture.has("cluster/services.json")
        else None
    )
    return Taken(
        path=out,
        services=None if services is None else len(services),
        nodes=len(nodes),
        nodes_with_rules=len(rules.intersection(nodes)),
        resumed=resumed,
        redacted=redacted,
        gaps=tuple(capture.gaps),
    )


def _redacted(capture: Capture, redact_map: str | None) -> Capture:
    """The capture with pseudonyms; those of an existing `redact_map` are used again."""
    import secrets

    from ktp.collect.redact import redact_capture
    from ktp.collect.snapshot import write_private_file

    known: dict[str, Any] = {}
    if redact_map is not None and Path(redact_map).exists():
        try:
            known = json.loads(Path(redact_map).read_bytes())
            key, names = bytes.fromhex(known["key"]), dict(known["names"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"{redact_map} exists and is not a map that --redact-map wrote", hint="choose another name"
            ) from None
    else:
        key, names = secrets.token_bytes(32), {}
    redaction = redact_capture(capture, chain_naming(), key=key, known=names)
    if redact_map is not None:
        content = json.dumps(redaction.mapping(), indent=1, ensure_ascii=False).encode() + b"\n"
        write_private_file(redact_map, content)
    return redaction.capture


def chain_naming() -> ChainNaming:
    """How kube-proxy names chains, for the redactor: collect knows nothing of kube-proxy."""
    from ktp.collect.redact import ChainNaming
    from ktp.kubeproxy import names

    def nft_service(namespace: str, service: str, protocol: str, port: str) -> str:
        chains = names.nft_service_chains(namespace, service, protocol, port)
        return chains.service.removeprefix(names.NFT_SERVICE_PREFIX)

    def nft_endpoint(namespace: str, service: str, protocol: str, port: str, ip: str, number: int) -> str:
        found = names.nft_endpoint_names(namespace, service, protocol, port, ip, number)
        return found.chain.removeprefix(names.NFT_ENDPOINT_PREFIX)

    return ChainNaming(
        service_suffix=names.service_suffix,
        endpoint_suffix=names.endpoint_suffix,
        nft_service=nft_service,
        nft_endpoint=nft_endpoint,
    )


# -- ktp what-if


def what_if_service(settings: Settings, name: str, changes: list[Change]) -> ExitCode:
    """The matrix before and after the changes, to stdout; the exit status."""
    from ktp.diagnose.whatif import what_if

    snapshot, service = snapshot_for_service(settings, name)
    answer = what_if(snapshot, service, changes, nodes=settings.nodes)
    if settings.output != "text":
        from ktp.render.structured import dump
        from ktp.render.whatif import what_if_object

        dump(what_if_object(answer), settings.output, sys.stdout)
    else:
        from ktp.render.terminal import make_console
        from ktp.render.whatif import print_what_if

        print_what_if(answer, make_console(settings.color, sys.stdout))
    return ExitCode.FINDINGS if answer.darkens else ExitCode.OK


# ------------------------------------------------------------------------------------------------- credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the current user may do for ktp. `manifest` adds what is missing for the access mode asked about."""

    source: str
    user: str | None
    answers: tuple[Allowed, ...]
    missing: tuple[Permission, ...]
    manifest: tuple[dict[str, Any], ...]

    @property
    def status(self) -> ExitCode:
        """FINDINGS where something is missing without which ktp cannot answer, or says less."""
        return ExitCode.FINDINGS if self.missing else ExitCode.OK


def ask_rights(settings: Settings) -> Rights:
    """`ktp auth`: the rights of the current user, for the API and for --node-access kube-proxy."""
    from ktp.collect.auth import ask_permissions, manifest, permissions, who_am_i
    from ktp.collect.kube_api import connect

    if offline(settings):
        raise UsageError("ktp auth asks an API server; a snapshot has none")
    api = connect(settings.kubeconfig, settings.context)
    user = who_am_i(api)
    answers = ask_permissions(api, permissions(settings.namespace))
    modes = {"api", settings.node_access}
    missing = tuple(a.permission for a in answers if not a.allowed and a.permission.mode in modes)
    return Rights(
        source=api.source,
        user=user.name,
        answers=answers,
        missing=missing,
        manifest=tuple(manifest(missing, user)),
    )


# ------------------------------------------------------------------------------------------------------- ktp probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """How `ktp probe` and `diagnose svc --probe` dial. `progress` is told (tries done, tries in all, address)."""

    tries: int = 5
    timeout: float = 2.0
    http: str | None = None
    data: str | None = None
    from_nodes: bool = False
    progress: Callable[[int, int, str], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialled:
    rows: tuple[ProbeRow, ...]
    left_out: int
    notes: tuple[str, ...] = ()
    moved: tuple[MovedRule, ...] | None = None


def probe_service(
    settings: Settings, name: str, probing: Probing, *, health: bool = False, counters: bool = False
) -> ExitCode:
    """`ktp probe`: dial the front ends of a Service, and write what came of it beside what was predicted."""
    from ktp.diagnose.probing import probe_findings
    from ktp.diagnose.service import diagnose_service
    from ktp.model.probing import ServiceProbe

    snapshot, service = snapshot_for_service(settings, name)
    dialled = _dial(settings, snapshot, service, probing, counters=counters)
    if not any(r.verdict != "skipped" for r in dialled.rows):
        why = next((f": {r.note}" for r in dialled.rows if r.note), "")
        raise EvidenceError(
            f"nothing of {service.key} can be dialled from here{why}",
            hint="an external front end is a node port, a load balancer IP or an external IP",
        )
    findings = list(probe_findings(dialled.rows))
    witnesses: tuple[WitnessRow, ...] = ()
    if health:
        said = _health_answers(settings, snapshot, service, probing)
        report = diagnose_service(snapshot, service, nodes=settings.nodes, health=said)
        witnesses = report.reconciliation
        findings += (f for f in report.findings if f.code == "KTP902")
    answer = ServiceProbe(
        namespace=service.namespace,
        name=service.name,
        rows=dialled.rows,
        findings=tuple(findings),
        reconciliation=witnesses,
        moved=dialled.moved,
        left_out=dialled.left_out,
        notes=dialled.notes,
        source=snapshot.source,
    )
    if settings.output == "text":
        from ktp.render.probe import print_probe
        from ktp.render.terminal import make_console

        print_probe(answer, make_console(settings.color, sys.stdout), verbose=settings.verbose)
    else:
        from ktp.render.probe import probe_object
        from ktp.render.structured import dump

        dump(probe_object(answer), settings.output, sys.stdout)
    if answer.findings or any(r.fails for r in answer.rows):
        return ExitCode.FINDINGS
    if any(r.verdict == "silent" for r in answer.rows):
        return ExitCode.UNDETERMINED
    return ExitCode.OK


def _dial(
    settings: Settings, snapshot: Snapshot, service: Service, probing: Probing, *, counters: bool = False
) -> _Dialled:
    """Dial from here, or from the nodes, and compare."""
    if settings.demo:
        raise UsageError(
            "--demo is a made-up cluster: its addresses may be somebody else's here, and are not dialled"
        )
    from ktp.collect.prober import ProbeSettings, probe_all, source_address
    from ktp.diagnose.probing import Predictor, Sender, compare, sender_of

    how = ProbeSettings(
        tries=probing.tries,
        parallel=settings.parallel,
        timeout=probing.timeout,
        http=probing.http,
        datagram=probing.data.encode() if probing.data is not None else None,
        dns_ports=frozenset(
            number for p in service.ports if p.port == 53 for number in (p.port, p.node_port) if number
        ),
    )
    predictor = Predictor(snapshot, service, nodes=settings.nodes)
    if probing.from_nodes:
        return _dial_from_nodes(settings, snapshot, predictor, how)
    here = Sender()
    for target in predictor.targets(here):
        here = sender_of(snapshot, source_address(target.host))
        if here.node is not None:
            break
    before = _counters(snapshot, here.node) if counters else {}
    observed = probe_all(predictor.targets(here), how, on_progress=probing.progress)
    rows = tuple(compare(predictor, observed, here))
    if not counters:
        return _Dialled(rows=rows, left_out=predictor.left_out)
    if here.node is None or here.pod is not None:
        note = "--counters reads the rules of the node that ktp runs on, and this machine is none"
        return _Dialled(rows=rows, left_out=predictor.left_out, notes=(note,))
    if not before:
        note = (
            f"the counters of {here.node} could not be read: they need root, and rules of iptables"
            " (kube-proxy's nftables mode counts nothing)"
        )
        return _Dialled(rows=rows, left_out=predictor.left_out, notes=(note,))
    from ktp.diagnose.probing import moved_rules

    moved = moved_rules(here.node, service, before, _counters(snapshot, here.node))
    return _Dialled(rows=rows, left_out=predictor.left_out, moved=tuple(moved))


# Nodes that dial with --from-nodes; --node names others.
_MOST_SENDERS = 10


def _dial_from_nodes(
    settings: Settings, snapshot: Snapshot, predictor: Predictor, how: ProbeSettings
) -> _Dialled:
    """Let the nodes dial, over SSH; a node that cannot be logged in to is a note."""
    from ktp.collect.remote_prober import probe_from_nodes
    from ktp.collect.ssh import SshSettings
    from ktp.diagnose.probing import Sender, compare

    if settings.node_access != "ssh":
        raise UsageError("--from-nodes dials from the nodes by SSH", hint="add --node-access ssh")
    ssh = SshSettings(
        user=settings.ssh_user,
        options=settings.ssh_options,
        parallel=settings.parallel,
        timeout=settings.timeout,
    )
    senders = predictor.nodes if settings.nodes else predictor.nodes[:_MOST_SENDERS]
    addresses = {
        node.name: tuple(a for kind, a in node.addresses if kind != "Hostname")
        for node in (snapshot.cluster.nodes or {}).values()
    }
    targets = {node: predictor.targets(Sender(node=node)) for node in senders}
    observed, gaps = probe_from_nodes(addresses, targets, how, ssh)
    notes = [f"{gap.message}" + (f" ({gap.remedy})" if gap.remedy else "") for gap in gaps]
    if len(senders) < len(predictor.nodes):
        notes.append(
            f"{len(predictor.nodes) - len(senders)} more nodes did not dial; --node names those that do"
        )
    return _Dialled(rows=tuple(compare(predictor, observed)), left_out=predictor.left_out, notes=tuple(notes))


def _counters(snapshot: Snapshot, node: str | None) -> dict[str, bytes]:
    """This machine's rules with counters, of the back ends that the node is known to have rules in."""
    from ktp.collect.prober import read_counters

    state = snapshot.nodes.get(node) if node is not None else None
    if state is None:
        return {}
    return read_counters(dict.fromkeys(r.backend.value for r in state.rulesets if r.tables()))


def _health_answers(
    settings: Settings, snapshot: Snapshot, service: Service, probing: Probing | None
) -> dict[str, HealthAnswer]:
    """What the healthCheckNodePort of each node says; nothing where the Service has none."""
    from ktp.collect.prober import ask_health
    from ktp.diagnose.reconcile import health_targets

    targets = health_targets(snapshot, service, settings.nodes)
    timeout = probing.timeout if probing is not None else 2.0
    answers = ask_health(targets, timeout=timeout, parallel=settings.parallel)
    return {answer.target.node: answer for answer in answers}
