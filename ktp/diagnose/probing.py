"""What to dial for real, what ktp predicts for exactly that, and where the two differ.

The prediction is made for the machine that dials: by the address that it sends from it is a node, a pod or a client
outside. Nothing is dialled here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from ktp.dataplane.answer import answer_flow
from ktp.diagnose.checks import ALL_CHECKS
from ktp.diagnose.checks.base import listed
from ktp.diagnose.checks.ktp217_pods_of_other_nodes import CHECK as NOT_CARRIED
from ktp.diagnose.checks.ktp220_too_long import CHECK as TOO_LONG
from ktp.diagnose.checks.ktp902_probe_disagrees import CHECK as DISAGREES
from ktp.diagnose.checks.offload_common import WORDS, deferring, shown, trial
from ktp.diagnose.examine import Examiner
from ktp.diagnose.questions import Question, node_addresses
from ktp.diagnose.service import front_end_title
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.model.cluster import Endpoint, Service, ServicePort, ip_of
from ktp.model.diagnosis import (
    Cell,
    Evidence,
    Finding,
    Fix,
    ServiceDiagnosis,
    Severity,
)
from ktp.model.host import IPAddress
from ktp.model.probing import (
    LengthRow,
    LengthTarget,
    MovedRule,
    Observation,
    Prediction,
    ProbeRow,
    ProbeTarget,
)
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow, Symptom

# Pods of other nodes that each node dials directly.
_MOST_PODS = 8
# Nodes that are dialled of a large cluster; --node names others.
MOST_NODES = 50

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who dials: a process of `node`, or `pod` on it; outside where neither is set."""

    node: str | None = None
    pod: str | None = None

    @property
    def words(self) -> str:
        """The sender in words."""
        if self.pod is not None:
            return f"pod {self.pod} on {self.node}"
        return f"node {self.node}" if self.node is not None else "outside the cluster"


def sender_of(snapshot: Snapshot, source: str | None) -> Sender:
    """Who has the address that ktp sends from. An address that several nodes have tells nothing."""
    ip = ip_of(source) if source is not None else None
    if ip is None or ip.is_loopback:
        return Sender()
    for pod in snapshot.cluster.pods or ():
        if not pod.host_network and pod.phase not in ("Succeeded", "Failed") and str(ip) in pod.pod_ips:
            return Sender(node=pod.node_name, pod=pod.key)
    for node in (snapshot.cluster.nodes or {}).values():
        if any(ip_of(a) == ip for kind, a in node.addresses if kind in ("InternalIP", "ExternalIP")):
            return Sender(node=node.name)
    owners = {
        name
        for name, state in snapshot.nodes.items()
        for interface in state.interfaces or ()
        if any(a.ip == ip for a in interface.addresses)
    }
    return Sender(node=owners.pop()) if len(owners) == 1 else Sender()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialled:
    """What stands behind a target: its port and front end, and where a node port is dialled the address."""

    port: ServicePort
    front_end: FrontEnd | None


class Predictor:
    """The targets of one Service, and what is to be expected of each."""

    def __init__(self, snapshot: Snapshot, service: Service, *, nodes: Collection[str] = ()) -> None:
        """`nodes` restricts the nodes that are dialled; of more than MOST_NODES, some of each kind are taken."""
        self.examiner = Examiner(snapshot)
        self.snapshot = snapshot
        self.service = service
        wanted = [n for n in self.examiner.node_names() if not nodes or n in nodes]
        self.nodes = wanted if nodes else self._some(wanted)
        self.left_out = len(wanted) - len(self.nodes)
        self._behind: dict[ProbeTarget, _Dialled] = {}

    def _some(self, names: list[str]) -> list[str]:
        """At most MOST_NODES, half of them with endpoints where there are such."""
        if len(names) <= MOST_NODES:
            return names
        holders = {e.node_name for s in self.examiner.slices_of(self.service) for e in s.endpoints}
        with_pods = [n for n in names if n in holders]
        without = [n for n in names if n not in holders]
        room = max(MOST_NODES // 2, MOST_NODES - len(without))
        chosen = {*with_pods[:room]}
        chosen |= {*without[: MOST_NODES - len(chosen)]}
        return [n for n in names if n in chosen]

    def targets(self, here: Sender) -> list[ProbeTarget]:
        """Every address of every front end that can be dialled from `here`."""
        out: dict[ProbeTarget, _Dialled] = {}
        if ignored_reason(self.service):
            return []
        for port in self.service.ports:
            ends = self.examiner.front_ends(self.service, port)
            for end in ends.programmed:
                if end.kind is FrontEndKind.NODE_PORT:
                    self._node_ports(out, port, end, here)
                elif end.kind is not FrontEndKind.CLUSTER_IP or here.node is not None:
                    _add(out, port, end, front_end_title(end, port), str(end.ip), here.node)
            for left in ends.unprogrammed:
                if left.kind is FrontEndKind.LOAD_BALANCER and left.what:
                    title = f"loadBalancer {left.what}:{port.port}/{port.protocol}"
                    _add(out, port, None, title, left.what, None)
        self._behind |= out
        return list(out)

    def _node_ports(
        self, out: dict[ProbeTarget, _Dialled], port: ServicePort, end: FrontEnd, here: Sender
    ) -> None:
        title = front_end_title(end, port)
        for node in self.nodes:
            for address in node_addresses(self.snapshot, node):
                if address.version == end.ip_version:
                    _add(out, port, end.on(address), title, str(address), node)
            if node == here.node and here.pod is None and end.ip_version == 4:
                loopback = ip_of(_LOOPBACK[4])
                assert loopback is not None
                _add(out, port, end.on(loopback), title, str(loopback), node)

    def pods(self, here: Sender) -> tuple[list[ProbeTarget], list[LengthTarget]]:
        """The Service's endpoints on other nodes than `here`, to be dialled directly; a few, of each node at first one.

        As connections, and of pods in networks of their own also as packets of some length.
        """
        own = {a for node in (self.snapshot.cluster.nodes or {}).values() for _, a in node.addresses}
        by_node: dict[str, dict[str, str]] = {}
        dialled: dict[str, dict[ProbeTarget, _Dialled]] = {}
        for port, number, e in self._endpoints():
            if e.node_name in (None, here.node) or not e.is_ready:
                continue
            for address in e.addresses:
                name = f"{e.target_namespace or self.service.namespace}/{e.target_name or address}"
                by_node.setdefault(e.node_name or "", {})[address] = name
                target = ProbeTarget(
                    frontend=f"pods, port {number}/{port.protocol}", host=address, port=number,
                    protocol=port.protocol, node=e.node_name, pod=name,
                )  # fmt: skip
                dialled.setdefault(address, {})[target] = _Dialled(port=port, front_end=None)
        turns = zip_longest(*([(n, *pod) for pod in pods.items()] for n, pods in by_node.items()))
        chosen = [pod for turn in turns for pod in turn if pod is not None][:_MOST_PODS]
        connections = {t: behind for _, address, _ in chosen for t, behind in dialled[address].items()}
        self._behind |= connections
        return list(connections), [
            LengthTarget(pod=name, node=node, host=address, is_full=is_full)
            for node, address, name in chosen
            if address not in own
            for is_full in (False, True)
        ]

    def _endpoints(self) -> Iterator[tuple[ServicePort, int, Endpoint]]:
        """Each endpoint of each port of the Service, with the number that its port has there."""
        for port in self.service.ports:
            for found in self.examiner.slices_of(self.service):
                number = next((p.port for p in found.ports if p.name == port.name), None)
                for e in found.endpoints if number is not None else ():
                    yield port, number or 0, e

    # -- predictions

    def _predict_pod(self, target: ProbeTarget, sender: Sender) -> Prediction:
        """What a process of a node sees that dials a pod."""
        flow = Flow(
            dst=target.host, port=target.port, protocol=target.protocol.lower(), from_node=sender.node
        )
        answer = answer_flow(self.examiner.walker, flow)
        node = sender.node or ""
        return Prediction(
            of=answer.symptom,
            symptoms=frozenset(path.symptom for path in answer.paths) or frozenset((answer.symptom,)),
            vantage=Vantage.NODE.value,
            client=sender.words,
            basis="rules" if self.examiner.has_rules(node) else "api",
            reason=answer.reason,
            decided_by=answer.decided_by,
            holders=frozenset((target.node,)) if target.node is not None else frozenset(),
        )

    def predict(self, target: ProbeTarget, source: str | None, sender: Sender) -> Prediction:
        """What a client at `source`, which is `sender`, sees at a target of `targets`."""
        if target.pod is not None:
            return self._predict_pod(target, sender)
        behind = self._behind[target]
        end = behind.front_end
        if end is None:
            return _no_prediction("kube-proxy does not program this address: the load balancer alone decides")
        ip = ip_of(source) if source is not None else None
        if target.node is None and sender.node is None:
            cells = [self._cell(behind.port, end, node, ip, sender) for node in self.nodes]
        else:
            cells = [self._cell(behind.port, end, target.node or sender.node or "", ip, sender)]
        return _merged([c for c in cells if c is not None])

    def _cell(
        self, port: ServicePort, end: FrontEnd, node: str, source: IPAddress | None, sender: Sender
    ) -> Cell | None:
        if end.ip is None:
            return None
        vantage = _vantage(end, node, sender)
        dialled = end
        if end.kind is FrontEndKind.NODE_PORT and vantage is not Vantage.LOCALHOST:
            dialled = end.on(self._inside(node, end.ip))
        flow = Flow(dst=str(dialled.ip), port=end.port, protocol=end.protocol.lower())
        client = source
        if sender.pod is not None:
            flow = replace(flow, src=str(source), from_node=sender.node)
        elif sender.node is not None:
            flow = replace(flow, from_node=sender.node)
            if vantage is Vantage.LOCALHOST:
                client = dialled.ip
            elif vantage is Vantage.NODE:
                client = None
            if not self.examiner.has_rules(sender.node) and source is not None:
                flow = replace(flow, src=str(source))
        else:
            if source is None:
                return None
            flow = replace(flow, src=str(source), via=node)
        question = Question(
            front_end=dialled,
            node=node,
            vantage=vantage,
            client=Client(vantage=vantage, ip=client),
            flow=flow,
            client_name=f"{source} ({sender.words})" if source is not None else sender.words,
        )
        return self.examiner.cell(self.examiner.ask(self.service, port, question))

    def address_of(self, o: Observation) -> str | None:
        """The address that a node which dials is taken to send from."""
        wanted = ip_of(o.target.host)
        version = wanted.version if wanted is not None else 4
        own = node_addresses(self.snapshot, o.sender) if o.sender is not None else ()
        return next((str(a) for a in own if a.version == version), None)

    def _inside(self, node: str, address: IPAddress) -> IPAddress:
        """The node's own address behind one that a cloud translates: what its rules see."""
        state = self.snapshot.nodes.get(node)
        if state is None or not state.interfaces:
            return address
        own = {a.ip for i in state.interfaces for a in i.addresses}
        if address in own:
            return address
        return next(
            (a for a in node_addresses(self.snapshot, node) if a in own and a.version == address.version),
            address,
        )


def _add(
    out: dict[ProbeTarget, _Dialled],
    port: ServicePort,
    end: FrontEnd | None,
    title: str,
    host: str,
    node: str | None,
) -> None:
    number = end.port if end is not None else port.port
    target = ProbeTarget(frontend=title, host=host, port=number, protocol=port.protocol, node=node)
    out.setdefault(target, _Dialled(port=port, front_end=end))


def _vantage(end: FrontEnd, node: str, sender: Sender) -> Vantage:
    if sender.node is None:
        return Vantage.EXTERNAL
    if sender.pod is not None:
        return Vantage.POD_SAME_NODE if node == sender.node else Vantage.POD_OTHER_NODE
    if node != sender.node:
        return Vantage.OTHER_NODE
    return Vantage.LOCALHOST if end.ip is not None and end.ip.is_loopback else Vantage.NODE


def _no_prediction(why: str) -> Prediction:
    return Prediction(
        of=Symptom.UNKNOWN, symptoms=frozenset(), vantage="external", client="", basis="none", reason=why
    )


def _merged(cells: Sequence[Cell]) -> Prediction:
    """One prediction of several cells: of each node that a balancer may choose."""
    if not cells:
        return _no_prediction("ktp knows no node that this could reach")
    symptoms: set[Symptom] = set()
    for cell in cells:
        if cell.symptom is Symptom.INTERMITTENT:
            symptoms |= {e.symptom for e in cell.endpoints} or {Symptom.CONNECTS, Symptom.TIMES_OUT}
        else:
            symptoms.add(cell.symptom)
    of = {c.symptom for c in cells}
    if Symptom.UNKNOWN in of:
        one = Symptom.UNKNOWN
    else:
        one = of.pop() if len(of) == 1 else Symptom.INTERMITTENT
    first = next((c for c in cells if c.symptom is not Symptom.CONNECTS), cells[0])
    bases = {c.basis for c in cells}
    return Prediction(
        of=one,
        symptoms=frozenset(symptoms),
        vantage=first.vantage,
        client=first.client or "",
        basis=bases.pop() if len(bases) == 1 else "api",
        reason=first.reason,
        decided_by=first.decided_by,
        holders=frozenset(e.node for c in cells for e in c.endpoints if e.node is not None),
    )


# ------------------------------------------------------------------------------------------------ beside each other


def compare(
    predictor: Predictor, observations: Iterable[Observation], here: Sender | None = None
) -> list[ProbeRow]:
    """Each observation with the prediction for its sender: a node, or this machine, `here` if that is known."""
    out = []
    for o in observations:
        if o.sender is not None:
            sender = Sender(node=o.sender)
        elif here is not None and here.node is not None:
            sender = here
        else:
            sender = sender_of(predictor.snapshot, o.source)
        if ip_of(o.target.host) == ip_of(_LOOPBACK[4]):
            sender = Sender(node=o.target.node)
        if o.skipped:
            predicted = _no_prediction(o.skipped)
        else:
            predicted = predictor.predict(o.target, o.source or predictor.address_of(o), sender)
        verdict, note = _verdict(o, predicted)
        out.append(ProbeRow(observed=o, predicted=predicted, verdict=verdict, note=note))
    return out


def _verdict(o: Observation, p: Prediction) -> tuple[str, str]:
    if o.skipped:
        return "skipped", o.skipped
    if not p.symptoms or Symptom.UNKNOWN in p.symptoms:
        return "unpredicted", p.reason
    seen = set(o.symptoms)
    if seen <= p.symptoms:
        if p.of is Symptom.INTERMITTENT and len(seen) == 1 and len(p.symptoms) > 1:
            return "agrees", "it may differ from try to try, by the endpoint or node that is drawn"
        return "agrees", ""
    more = seen - p.symptoms
    if o.target.protocol == "UDP" and seen == {Symptom.TIMES_OUT} and Symptom.CONNECTS in p.symptoms:
        return (
            "silent",
            "no answer: it was lost on the way, or the application does not answer such a datagram",
        )
    if more == {Symptom.TIMES_OUT} and seen & {Symptom.REFUSED, Symptom.UNREACHABLE}:
        # net.ipv4.icmp_ratelimit: about one error a second and destination, behind a first handful.
        return "agrees", "some tries got no error message: the kernel limits how many it sends"
    return "differs", ""


def probe_findings(rows: Iterable[ProbeRow], snapshot: Snapshot | None = None) -> list[Finding]:
    """KTP902 for what differs: one finding for a front end, a prediction and what happened instead.

    KTP217 for a front end that only nodes with an endpoint answer, though each should, and for nodes that get nothing
    of another's pods directly. Of the `snapshot` it names what may explain it.
    """
    groups: dict[tuple[str, Symptom, Symptom, str | None], list[ProbeRow]] = {}
    rows = list(rows)
    found = []
    explained: set[int] = set()
    for frontend in dict.fromkeys(r.observed.target.frontend for r in rows):
        lost, well = _only_with_pods([r for r in rows if r.observed.target.frontend == frontend])
        if lost:
            found.append(_nothing_carried(frontend, lost, well, snapshot))
            explained |= {id(row) for row in lost}
    for (sender, node), pods in _silent_pods(rows).items():
        found.append(_not_carried_directly(sender, node, pods, snapshot))
        explained |= {id(row) for row in pods}
    for row in rows:
        if row.verdict == "differs" and id(row) not in explained:
            key = (row.observed.target.frontend, row.predicted.of, row.observed.symptom, row.observed.sender)
            groups.setdefault(key, []).append(row)
    return [*found, *(_finding(group) for group in groups.values())]


def length_findings(rows: Iterable[LengthRow]) -> list[Finding]:
    """KTP220 for each pair of nodes between which short packets pass, and full ones do not."""
    pairs: dict[tuple[str, str], list[LengthRow]] = {}
    for row in rows:
        if row.carries is False:
            pairs.setdefault((row.sender, row.node), []).append(row)
    return [_too_long(sender, node, lost) for (sender, node), lost in pairs.items()]


def _too_long(sender: str, node: str, lost: list[LengthRow]) -> Finding:
    return TOO_LONG.finding(
        f"{sender} reaches {listed(row.pod for row in lost)} on {node} with short packets, and not with those of "
        f"{lost[0].size} bytes, and nobody tells it so: connections open, and may then hang",
        node=sender,
        nodes=[sender, node],
        evidence=[
            Evidence(
                "probe",
                f"{sender} to {row.host}",
                f"{sum(a.answered for a in row.small)} of {len(row.small)} short packets are answered, none of "
                f"{len(row.full)} of {row.size} bytes",
            )
            for row in lost[:4]
        ],
        fixes=[
            Fix(
                f"compare the MTU of the devices between {sender} and {node}, and of the tunnel with them; let "
                "ICMP errors pass",
            )
        ],
    )


def _only_with_pods(rows: list[ProbeRow]) -> tuple[list[ProbeRow], list[ProbeRow]]:
    """Tries of nodes without an endpoint, which all time out, and of nodes with one, which do not: or none.

    Only what should connect wherever an endpoint is counts: under policy Local such nodes are predicted to be silent.
    """
    asked = [
        r
        for r in rows
        if r.predicted.symptoms == {Symptom.CONNECTS} and r.predicted.holders and r.observed.attempts
        and r.observed.target.node is not None and r.observed.target.protocol == "TCP"
    ]  # fmt: skip
    lost = [r for r in asked if r.observed.target.node not in r.predicted.holders]
    well = [r for r in asked if r.observed.target.node in r.predicted.holders]
    if (
        well
        and all(r.observed.symptom is Symptom.TIMES_OUT for r in lost)
        and all(r.observed.connected for r in well)
    ):
        return lost, well
    return [], []


def _nothing_carried(
    frontend: str, lost: list[ProbeRow], well: list[ProbeRow], snapshot: Snapshot | None
) -> Finding:
    without, holding = (
        list(dict.fromkeys(str(r.observed.target.node) for r in rows)) for rows in (lost, well)
    )
    named, offloads, fixes = _suspicion(snapshot, [*without, *holding])
    return NOT_CARRIED.finding(
        f"only nodes that hold a pod answer {frontend} ({listed(holding)}), though {listed(without)} should send "
        "packets to the pods there: unless nothing from here comes to them, the suspicion is what carries packets "
        f"between nodes to pods, a tunnel or routes{named}",
        nodes=without,
        evidence=[*(_of_tries(r) for r in (*lost[:2], *well[:2])), *offloads],
        fixes=fixes,
    )


def _silent_pods(rows: Iterable[ProbeRow]) -> dict[tuple[str, str], list[ProbeRow]]:
    """By the two nodes: tries of pods, past all front ends, that should connect, and to which nobody answers.

    Where the sender asks through a tunnel who has an address, some are unreachable: ARP (and NDP) gave up.
    """
    pairs: dict[tuple[str, str], list[ProbeRow]] = {}
    for r in rows:
        o = r.observed
        if (
            o.target.pod is not None and o.target.protocol == "TCP" and o.attempts
            and r.predicted.symptoms == {Symptom.CONNECTS}
        ):  # fmt: skip
            pairs.setdefault((o.sender or "", o.target.node or ""), []).append(r)
    return {
        pair: mine
        for pair, mine in pairs.items()
        if all(
            r.observed.symptoms[Symptom.TIMES_OUT]
            and set(r.observed.symptoms) <= {Symptom.TIMES_OUT, Symptom.UNREACHABLE}
            for r in mine
        )
    }


def _not_carried_directly(sender: str, node: str, lost: list[ProbeRow], snapshot: Snapshot | None) -> Finding:
    named, offloads, fixes = _suspicion(snapshot, [sender, node])
    pods = listed(dict.fromkeys(str(r.observed.target.pod) for r in lost))
    return NOT_CARRIED.finding(
        f"{sender} gets no answer of {pods} on {node}, dialled directly, though by its rules it should: no front end "
        f"is to blame, and the suspicion is what carries packets between nodes to pods, a tunnel or routes{named}",
        node=sender,
        nodes=[sender, node],
        evidence=[*map(_of_tries, lost[:4]), *offloads],
        fixes=fixes,
    )


def _suspicion(snapshot: Snapshot | None, nodes: Iterable[str]) -> tuple[str, list[Evidence], list[Fix]]:
    """What may keep packets from pods of other nodes: words behind a message, evidence, what to try."""
    fixes = [
        Fix(
            "see on both nodes whether the tunnel's packets leave and arrive; open its port between nodes",
            command="tcpdump -ni any 'udp port 8472 or udp port 4789 or udp port 6081 or proto 4'",
        )
    ]
    suspects = deferring(snapshot, nodes)[:4] if snapshot is not None else []
    offload = trial(suspects)
    if snapshot is None or offload is None:
        return "", [], fixes
    named = WORDS.format(listed(name for name, _ in suspects))
    return f"; {named}", shown(snapshot, suspects), [*fixes, offload]


def _of_tries(row: ProbeRow) -> Evidence:
    o = row.observed
    return Evidence("probe", f"{o.source or o.sender} to {o.target.dialled}", _tries(o))


def _finding(group: list[ProbeRow]) -> Finding:
    first = group[0]
    o, p = first.observed, first.predicted
    nodes = list(dict.fromkeys(r.observed.target.node for r in group if r.observed.target.node is not None))
    where = f" on {listed(nodes)}" if nodes else ""
    sender = o.sender if o.sender is not None else o.source
    evidence = [*map(_of_tries, group[:4])]
    if p.decided_by is not None and p.decided_by.rule:
        evidence.append(Evidence("rule", f"prediction, {p.decided_by.node}", p.decided_by.rule))
    elif p.reason:
        evidence.append(Evidence("field", f"prediction by {_basis(p)}", p.reason))
    return DISAGREES.finding(
        f"{o.target.frontend}{where}: ktp predicts {_word(p.of)} for a client at {sender}, and {_tries(o)}",
        node=nodes[0] if nodes else None,
        nodes=nodes,
        evidence=evidence,
        fix=Fix(_advice(o, p)),
        severity=Severity.WARNING,
    )


def _basis(p: Prediction) -> str:
    return {"rules": "the node's rules", "api": "the API objects alone"}.get(p.basis, "nothing")


def _advice(o: Observation, p: Prediction) -> str:
    if o.symptom is Symptom.CONNECTS:
        return "collect the evidence anew and probe again: rules or endpoints have changed since, or ktp is wrong"
    if Symptom.CONNECTS not in p.symptoms:
        return "compare the evidence with the node: something else than ktp predicts turns the packet away"
    if o.symptom is Symptom.REFUSED:
        return "see whether the application listens on the endpoint's port, or a firewall on the way rejects"
    return (
        f"see whether the packet arrives at the node (tcpdump -ni any port {o.target.port}): if not, look between "
        "this machine and the node for a security group, firewall or route"
    )


def _word(symptom: Symptom) -> str:
    return {
        Symptom.CONNECTS: "a connection",
        Symptom.TIMES_OUT: "a time-out",
        Symptom.REFUSED: "a refusal",
        Symptom.UNREACHABLE: "an unreachable host",
        Symptom.INTERMITTENT: "now this, now that",
    }.get(symptom, symptom.value)


_SEEN = {
    Symptom.CONNECTS: ("connects", "connect"),
    Symptom.TIMES_OUT: ("times out", "time out"),
    Symptom.REFUSED: ("is refused", "are refused"),
    Symptom.UNREACHABLE: ("is unreachable", "are unreachable"),
    Symptom.UNKNOWN: ("fails otherwise", "fail otherwise"),
    Symptom.INTERMITTENT: ("differs", "differ"),
}


def _tries(o: Observation) -> str:
    total = len(o.attempts)
    said = [f"{n} of {total} tries {_SEEN[s][n != 1]}" for s, n in o.symptoms.most_common()]
    details = list(dict.fromkeys(a.detail for a in o.attempts if a.detail and a.http is None))
    return ", ".join(said) + (f" ({'; '.join(details[:2])})" if details else "")


def with_probes(
    report: ServiceDiagnosis, rows: Sequence[ProbeRow], snapshot: Snapshot | None = None
) -> ServiceDiagnosis:
    """The diagnosis with what the probe saw, and a finding of each difference."""
    order = {check.code: i for i, check in enumerate(ALL_CHECKS)}
    new = probe_findings(rows, snapshot)
    findings = sorted((*report.findings, *new), key=lambda f: (f.severity.rank, order.get(f.code, 99)))
    # What is read first is what the rules say: that tries met something else stands beside it.
    tried = f". Tried: {new[0].code} {new[0].message}" if new else ""
    return replace(report, verdict=report.verdict + tried, probes=tuple(rows), findings=tuple(findings))


# ------------------------------------------------------------------------------------------------------ counters

_COUNTED = re.compile(r"^\[(\d+):\d+\] (-A (\S+) .*)$")


def moved_rules(
    node: str, service: Service, before: Mapping[str, bytes], after: Mapping[str, bytes]
) -> list[MovedRule]:
    """The Service's rules whose packet counters moved between two dumps with counters, by "BACKEND/FAMILY".

    A Service's rules are those that name it in their comment, and all of the chains that these lead to.
    """
    out = []
    for key, text in after.items():
        old = _counters(before.get(key, b""), service)
        for (table, rule), packets in _counters(text, service).items():
            moved = packets - old.get((table, rule), 0)
            if moved > 0:
                out.append(
                    MovedRule(node=node, backend=key.partition("/")[0], table=table, rule=rule, packets=moved)
                )
    return out


def _counters(dump: bytes, service: Service) -> dict[tuple[str, str], int]:
    named = re.compile(rf'"?{re.escape(service.key)}(?:[:" ]|$)')
    lines: list[tuple[str, str, str, int]] = []
    table = ""
    for line in dump.decode(errors="replace").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif (found := _COUNTED.match(line)) is not None:
            lines.append((table, found.group(3), found.group(2), int(found.group(1))))
    chains: set[tuple[str, str]] = set()
    for table, _, rule, _ in lines:
        target = re.search(r" -[jg] (KUBE-(?:SVC|SVL|EXT|XLB|FW|SEP)-\S+)", rule)
        if target is not None and named.search(rule):
            chains.add((table, target.group(1)))
    counted: dict[tuple[str, str], int] = {}
    for table, chain, rule, packets in lines:
        if named.search(rule) or (table, chain) in chains:
            counted[table, rule] = counted.get((table, rule), 0) + packets
    return counted
