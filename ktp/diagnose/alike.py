"""Nodes that must have the same answers: none was read, and to kube-proxy they differ in names and addresses only.

Exchanging two such nodes, with the endpoints that they hold, leaves everything that the answers are made from as it
was. So the answers of one are those of the other with names and addresses exchanged, and of each class two nodes are
examined: two, since a change may concern one of them, and the other then stands for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ktp.diagnose.examine import Asked, Examiner, reason_of
from ktp.diagnose.questions import Question
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.intent import Intent
from ktp.kubeproxy.node import ProxyNode
from ktp.kubeproxy.outcome import IntendedEndpoint, Vantage
from ktp.model.assumption import Assumption
from ktp.model.cluster import Endpoint, EndpointSlice, Service, ip_of, networks_of
from ktp.model.diagnosis import Cell, CellEndpoint
from ktp.model.host import IPAddress, IPNetwork, NodeState
from ktp.model.record import dataclass

E = TypeVar("E", IntendedEndpoint, CellEndpoint)

FEW = 8
"""Classes up to this size are examined node by node: there is nothing to gain."""

_EXAMINED = 2
_READS_SLICES_ONLY = 22  # before, kube-proxy may read Endpoints, which need not agree
_EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


@dataclass(frozen=True, slots=True)
class Held:
    """One endpoint of the Service, as the node that holds it has it."""

    ip: str
    pod: str | None
    kind: Hashable  # equal for endpoints that can be exchanged


class Alike:
    """`twin_of` names for each node that is not examined the one whose answers it has; `held` each node's endpoints."""

    def __init__(
        self, classes: Sequence[Sequence[str]] = (), held: Mapping[str, tuple[Held, ...]] | None = None
    ) -> None:
        """Of each class the first two are examined, and the first stands for those after them."""
        self.held = held or {}
        self.twin_of = {name: those[0] for those in classes for name in those[_EXAMINED:]}
        self._places: dict[int, tuple[object, Mapping[str, Sequence[int]]]] = {}
        self._classes = {name: those for those in classes for name in those[:_EXAMINED]}

    def places(self, endpoints: tuple[E, ...]) -> Mapping[str, Sequence[int]]:
        """Where each address stands among the endpoints of an answer, which many twins share."""
        found = self._places.get(id(endpoints))
        if found is None:
            where: dict[str, list[int]] = {}
            for place, endpoint in enumerate(endpoints):
                where.setdefault(endpoint.ip, []).append(place)
            found = self._places[id(endpoints)] = (endpoints, where)
        return found[1]

    def everywhere(self, names: Iterable[str]) -> list[str]:
        """These nodes and those that they stand for."""
        return list(dict.fromkeys(each for name in names for each in self.of(name)))

    def of(self, name: str, changed: str = "") -> tuple[str, ...]:
        """The nodes that an examined one stands for, itself too, where one node, `changed`, is other than it was."""
        those = self._classes.get(name, ())
        if name == changed or not those:
            return (name,)
        if changed in those:
            return tuple(n for n in those if n != changed)
        return (name, *those[_EXAMINED:]) if name == those[0] else (name,)


def alike_nodes(
    examiner: Examiner, service: Service, questions: Mapping[str, Sequence[Question]], few: int = FEW
) -> Alike:
    """The classes of nodes that answer these questions (each node's, in one order) alike."""
    slices = examiner.slices_of(service)
    candidates = [name for name in questions if _is_unread(examiner.snapshot.nodes.get(name))]
    if len(candidates) <= few or any(e.hints_for_nodes for s in slices for e in s.endpoints):
        return Alike()
    held, odd = _held(examiner, slices, candidates)
    zoned = any(e.hints_for_zones for s in slices for e in s.endpoints)
    odd |= _with_host_port(examiner, service)
    endpoints = {e.ip for those in held.values() for e in those}
    both_read = examiner.index.slices is not None and examiner.index.endpoints is not None
    ranges = networks_of(service.load_balancer_source_ranges)
    classes: dict[Hashable, list[str]] = {}
    for name in candidates:
        proxy = examiner.proxy(name)
        if name in odd or (both_read and proxy.versions.minors()[0] < _READS_SLICES_ONLY):
            continue
        own = {e.ip: place for place, e in enumerate(held.get(name, ()))}
        key = (
            _of_proxy(proxy, zoned=zoned),
            _of_node(examiner, name),
            tuple(e.kind for e in held.get(name, ())),
            tuple(_of_question(q, proxy, own, endpoints, ranges) for q in questions[name]),
            tuple(_is_in(ip, ranges) for ip in proxy.primary_ips),
        )
        classes.setdefault(key, []).append(name)
    return Alike([names for names in classes.values() if len(names) > few], held)


def _is_unread(state: NodeState | None) -> bool:
    return state is None or state == NodeState(name=state.name, data_plane=state.data_plane)


def _held(
    examiner: Examiner, slices: Iterable[EndpointSlice], candidates: Iterable[str]
) -> tuple[dict[str, tuple[Held, ...]], set[str]]:
    """The endpoints of each node, in the order in which they can be exchanged, and the nodes with odd ones."""
    owners: dict[IPAddress, str] = {ip: name for name in candidates for ip in examiner.proxy(name).addresses}
    found: dict[str, list[tuple[IPAddress, Held]]] = {}
    seen: dict[str, str | None] = {}
    odd: set[str] = set()
    for part in slices:
        ports = tuple((p.name, p.protocol, p.port) for p in part.ports)
        for endpoint in part.endpoints:
            home, ip = endpoint.node_name, ip_of(endpoint.addresses[0]) if endpoint.addresses else None
            if ip is None:
                continue
            owner, twice = owners.get(ip), seen.setdefault(str(ip), home)
            if twice != home:
                odd |= {name for name in (twice, home) if name is not None}
            if owner is not None and owner != home:
                odd.add(owner)
            if home is None:
                continue
            kind = (ip.version, ports, owner is not None, *_of_endpoint(endpoint))
            found.setdefault(home, []).append((ip, Held(ip=str(ip), pod=_pod_of(endpoint), kind=kind)))
    for home, those in found.items():
        if len({ip for ip, _ in those}) < len(those):
            odd.add(home)  # listed twice: which of them counts is kube-proxy's business
    return {
        home: tuple(e for _, e in sorted(those, key=lambda each: (repr(each[1].kind), each[1].ip)))
        for home, those in found.items()
    }, odd


def _of_endpoint(endpoint: Endpoint) -> tuple[Hashable, ...]:
    return (
        endpoint.is_ready, endpoint.serving, endpoint.is_terminating, endpoint.hints_for_zones,
        _pod_of(endpoint) is None,
    )  # fmt: skip


def _pod_of(endpoint: Endpoint) -> str | None:
    if endpoint.target_kind != "Pod" or not endpoint.target_name:
        return None
    return f"{endpoint.target_namespace}/{endpoint.target_name}"


def _with_host_port(examiner: Examiner, service: Service) -> set[str]:
    """Nodes on which a pod claims a port of the Service for itself."""
    ports = {n for p in service.ports for n in (p.node_port, p.port) if n}
    return {
        pod.node_name
        for pod in examiner.snapshot.cluster.pods or ()
        if pod.node_name is not None and any(port.host_port in ports for port in pod.ports)
    }


def _of_proxy(proxy: ProxyNode, *, zoned: bool) -> Hashable:
    """What kube-proxy's answers depend on, but for the node's names and addresses."""
    return (
        proxy.versions, proxy.modes, proxy.detectors, proxy.node_port_addresses, proxy.masquerade_all,
        proxy.localhost_node_ports, proxy.route_localnet, tuple(sorted(proxy.feature_gates.items())),
        proxy.cluster_cidrs, proxy.proxy_name in ("", proxy.name), proxy.zone if zoned else None,
        tuple(sorted(a.version for a in proxy.addresses)), tuple(ip.version for ip in proxy.primary_ips),
        tuple(net.version for net in proxy.pod_cidrs),
    )  # fmt: skip


def _of_node(examiner: Examiner, name: str) -> Hashable:
    node = (examiner.snapshot.cluster.nodes or {}).get(name)
    return (
        examiner.data_plane(name),
        node is not None and node.is_ready,
        node is not None and node.unschedulable,
        node is not None and _EXCLUDED in node.labels,
    )


def _of_question(
    question: Question,
    proxy: ProxyNode,
    own: Mapping[str, int],
    endpoints: set[str],
    ranges: Iterable[IPNetwork],
) -> Hashable:
    """What an answer depends on of who asks for what: all but the names and addresses of this very node."""
    front_end, ip = question.front_end, question.client.ip
    address = front_end.ip
    shared = front_end.kind is not FrontEndKind.NODE_PORT or (address is not None and address.is_loopback)
    client: Hashable = None
    if ip is not None:
        text = str(ip)
        # One of this node's own endpoints by its place, one of another's by its name.
        client = own.get(text, text if text in endpoints else None)
    return (
        front_end.kind, front_end.protocol, front_end.port, front_end.ip_version, question.vantage,
        address if shared else None, address is not None and proxy.owns(address), client,
        ip if question.vantage is Vantage.EXTERNAL else None,
        _is_in(ip, proxy.pod_cidrs), _is_in(ip, proxy.cluster_cidrs), _is_in(ip, ranges),
    )  # fmt: skip


def _is_in(ip: IPAddress | None, networks: Iterable[IPNetwork]) -> bool:
    return ip is not None and any(ip in net for net in networks if net.version == ip.version)


class Twin:
    """One node in the place of another: turns the answers of that one into its own."""

    def __init__(self, alike: Alike, name: str) -> None:
        """`name` is a node that `alike` has a twin of."""
        self.name = name
        self.twin = alike.twin_of[name]
        self._alike = alike
        self._pairs = tuple(zip(alike.held.get(self.twin, ()), alike.held.get(name, ()), strict=True))

    def asked(self, theirs: Asked, question: Question) -> Asked:
        """The answers to the twin's question as those to this node's own."""
        return Asked(question=question, intent=self._intent(theirs.intent, question), fact=None)

    def exchanges(self, ips: Collection[str]) -> bool:
        """Whether a set of endpoints is another one after the exchange."""
        return any((a.ip in ips) != (b.ip in ips) for a, b in self._pairs)

    def address(self, ip: str) -> str:
        """The address of the endpoint that is here what `ip` is on the twin."""
        return next((b.ip if ip == a.ip else a.ip for a, b in self._pairs if ip in (a.ip, b.ip)), ip)

    def cell(self, theirs: Cell, asked: Asked) -> Cell:
        """The twin's cell as this node's own, of which `asked` has the answers."""
        intent = asked.intent
        return replace(
            theirs,
            reason=reason_of(intent),
            endpoints=self._exchanged(theirs.endpoints, _as_cell_endpoint),
            client=asked.question.client_name,
            intended_by=(intent.should or intent).decided_by,
            assumptions=tuple(self._assumption(a) for a in theirs.assumptions),
        )

    def _intent(self, intent: Intent, question: Question) -> Intent:
        return replace(
            intent,
            node=self.name,
            known_as=self.name if intent.known_as == self.twin else intent.known_as,
            front_end=question.front_end,
            endpoints=self._exchanged(intent.endpoints, _as_endpoint),
            assumptions=tuple(self._assumption(a) for a in intent.assumptions),
            should=None if intent.should is None else self._intent(intent.should, question),
        )

    def _assumption(self, assumption: Assumption) -> Assumption:
        return replace(assumption, node=self.name) if assumption.node == self.twin else assumption

    def _exchanged(self, endpoints: tuple[E, ...], named: Callable[[E, str, Held], E]) -> tuple[E, ...]:
        """With the endpoints of the two nodes exchanged, in order; the very same where that makes no difference."""
        if not self._pairs or not endpoints:
            return endpoints
        places = self._alike.places(endpoints)
        changed: dict[int, E] = {}
        moved = False
        for theirs, mine in self._pairs:
            at, to = places.get(theirs.ip, ()), places.get(mine.ip, ())
            moved |= len(at) != len(to)
            for n, place in enumerate(at):
                changed[to[n] if n < len(to) else place] = named(endpoints[place], self.name, mine)
            for n, place in enumerate(to):
                changed[at[n] if n < len(at) else place] = named(endpoints[place], self.twin, theirs)
        if all(endpoints[place] == endpoint for place, endpoint in changed.items()):
            return endpoints
        out = list(endpoints)
        for place, endpoint in changed.items():
            out[place] = endpoint
        return tuple(sorted(out, key=lambda e: (e.ip, e.port)) if moved else out)


def _as_endpoint(endpoint: IntendedEndpoint, node: str, held: Held) -> IntendedEndpoint:
    return replace(endpoint, ip=held.ip, node=node, pod=held.pod)


def _as_cell_endpoint(endpoint: CellEndpoint, node: str, held: Held) -> CellEndpoint:
    return replace(endpoint, ip=held.ip, node=node, name=held.pod)
