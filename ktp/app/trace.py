"""`ktp trace`: one flow with every step, or many of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ktp.app.evidence import did_you_mean, node_names, snapshot_for_all, walker_for
from ktp.app.settings import Settings
from ktp.errors import EvidenceError, ExitCode, NotFoundError, UsageError
from ktp.model.cluster import is_address
from ktp.model.record import dataclass
from ktp.model.trace import Flow, Symptom

if TYPE_CHECKING:
    from ktp.model.snapshot import Snapshot
    from ktp.model.trace import FlowAnswer


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
    via: tuple[str, ...] = ()


def trace_flow(settings: Settings, source: str, target: str, via: str | None) -> list[Traced]:
    """`ktp trace --from SOURCE --to TARGET [--via VIA]`: one flow with every step.

    From outside to an address of a Service that no node owns, without `via`: by each node, those that end alike as one,
    of which `via` names the nodes.
    """
    from ktp.dataplane.answer import answer_flow
    from ktp.parse.flows import parse_source, parse_target

    sender, host = parse_source(source), parse_target(target)
    snapshot = snapshot_for_all(settings, None)
    flow = _flow_asked(snapshot, sender, host, via)
    walker = walker_for(snapshot)
    if flow.via is None and flow.from_node is None and _is_of_a_service(snapshot, flow.dst):
        groups: dict[object, list[FlowAnswer]] = {}
        for node in sorted(name for name, state in snapshot.nodes.items() if state.has_rules):
            answer = answer_flow(walker, replace(flow, via=node))
            ends = frozenset((path.endpoint_ip, path.symptom, path.disposition) for path in answer.paths)
            groups.setdefault((answer.symptom, answer.disposition, ends), []).append(answer)
        if groups:
            return [
                replace(_traced(snapshot, alike[0]), via=tuple(str(a.flow.via) for a in alike))
                for alike in groups.values()
            ]
    return [_traced(snapshot, answer_flow(walker, flow))]


def _is_of_a_service(snapshot: Snapshot, address: str) -> bool:
    """Whether the address is a load balancer's or an external IP, and no node has it."""
    from ktp.diagnose.dialled import node_of_address

    wanted = ip_address(address)
    addresses = {
        text
        for service in snapshot.cluster.services.values()
        for text in (*service.external_ips, *(entry.ip or "" for entry in service.ingress))
    }
    return str(wanted) in addresses and node_of_address(snapshot, wanted) is None


def _traced(snapshot: Snapshot, answer: FlowAnswer) -> Traced:
    flow = answer.flow
    nodes = [hop.node for path in answer.paths for hop in path.hops]
    first = nodes[0] if nodes else next((u.node for u in answer.unknowns if u.node), None)
    state = snapshot.nodes.get(first) if first is not None else None
    if state is not None and not state.has_rules:
        raise EvidenceError(
            f"no packet filter rules of {first} were read, so what it does with the packet is not known",
            hint="let ktp read the node (--node-access ssh or agent), or add its iptables-save.txt to the "
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
        and not is_address(who)
        and node is None
        and who in node_names(snapshot)
    ):
        who, node = None, who  # `node-a` for `@node-a`
    for name in (node, via):
        if name is not None:
            _known_node(snapshot, name)
    if who is not None and not is_address(who):
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


def _known_node(snapshot: Snapshot, name: str) -> None:
    known = node_names(snapshot)
    if name not in known:
        raise NotFoundError(f"there is no node {name!r}" + did_you_mean(name, known))


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
            f"there is no pod {name!r}" + did_you_mean(name, {p.key for p in snapshot.cluster.pods or ()})
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
    if is_address(host):
        return str(ip_address(host))
    v6 = src is not None and ":" in src
    if host == "localhost":
        return "::1" if v6 else "127.0.0.1"
    node = (snapshot.cluster.nodes or {}).get(host)
    if node is None:
        raise NotFoundError(
            f"{host!r} is no IP address and no node of the cluster"
            + did_you_mean(host, set(snapshot.cluster.nodes or ()))
        )
    addresses = [a for kind, a in node.addresses if kind == "InternalIP" and is_address(a)]
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
