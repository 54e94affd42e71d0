"""Asking both sides: what the API objects call for (intent) and what the nodes do (fact), for every cell."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from heapq import nsmallest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.questions import (
    FAR_CLIENTS,
    PodsByNode,
    Question,
    external_client,
    further_addresses,
    has_default_route,
    near_client,
    node_addresses,
    taken_addresses,
    with_supposed_pods,
)
from ktp.diagnose.topology import topology_of
from ktp.kubeproxy.data_planes import with_data_planes
from ktp.kubeproxy.endpoints import SliceIndex, index_slices
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, FrontEnds, front_ends
from ktp.kubeproxy.intent import Intent, PortOnNode
from ktp.kubeproxy.node import ALL_MODES, ProxyMode, ProxyNode, default_mode, detect_modes, proxy_node
from ktp.kubeproxy.outcome import HERE, Client, IntendedEndpoint, Vantage
from ktp.kubeproxy.synthesis import reprogram
from ktp.kubeproxy.version import proxy_version
from ktp.model.assumption import PROGRAM_LISTENS, Assumption, EvidenceKind
from ktp.model.cilium import LOCAL_IDENTITIES
from ktp.model.cluster import EndpointSlice, Service, ServicePort, ip_of
from ktp.model.diagnosis import Cell, CellEndpoint
from ktp.model.host import IPAddress, IPNetwork, NodeState
from ktp.model.reading import Reading, TableReading
from ktp.model.record import dataclass
from ktp.model.ruleset import Backend, Chain
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_NODE_PORT_VANTAGES = tuple(Vantage)
# Virtual addresses are captured on the client's own node: clients of other nodes are in their own rows.
_VIP_VANTAGES = (Vantage.EXTERNAL, Vantage.NODE, Vantage.POD_SAME_NODE)
_CLUSTER_IP_VANTAGES = (Vantage.NODE, Vantage.POD_SAME_NODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question with both answers. `fact` is None where the node's rules were not read."""

    question: Question
    intent: Intent
    fact: FlowAnswer | None

    @property
    def is_certain_of_endpoints(self) -> bool:
        """Whether it is known where packets are sent to, though perhaps not what becomes of them there."""
        return self.fact is not None and not any(unknown.forks for unknown in self.fact.unknowns)


def _sharing(prepared: Snapshot, given: Snapshot, like: Examiner) -> Snapshot:
    """A prepared snapshot with the objects of another that was made of the same ones, in place of its equal ones."""
    nodes = {
        name: like.snapshot.nodes[name] if given.nodes.get(name) is like.original.nodes.get(name) else state
        for name, state in prepared.nodes.items()
    }
    return replace(prepared, cluster=like.snapshot.cluster, nodes=nodes)


class Examiner:
    """Answers questions about one snapshot; keeps what it has computed."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        client: IPAddress | None = None,
        suppose_pods: bool = True,
        beside: Examiner | None = None,
    ) -> None:
        """`client` is the outside client to ask for, where the user named one.

        `suppose_pods` puts a plain pod on every node that has none, for the vantages of pods. `beside` is an examiner
        made the same way of a snapshot that this one is a change of: what follows from the very same objects is shared.
        """
        snapshot = with_data_planes(snapshot)
        self.original = snapshot
        self.client = client
        self._like = beside if beside is not None and beside.original.cluster is snapshot.cluster else None
        self.pods: PodsByNode = PodsByNode(snapshot.cluster) if self._like is None else self._like.pods
        self.supposed4: dict[str, IPAddress] = {}
        self.supposed6: dict[str, IPAddress] = {}
        prepared = snapshot
        if suppose_pods:
            prepared, self.supposed4 = with_supposed_pods(prepared, self.pods, 4)
            prepared, self.supposed6 = with_supposed_pods(prepared, self.pods, 6)
        self.snapshot = prepared if self._like is None else _sharing(prepared, snapshot, self._like)
        names = dict.fromkeys(snapshot.cluster.nodes or {})
        names.update(dict.fromkeys(snapshot.nodes))
        self._names = tuple(names)
        self.index: SliceIndex = index_slices(snapshot.cluster) if self._like is None else self._like.index
        self._near: dict[tuple[str, int], IPAddress | None] = {}
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}
        self._taken_addresses: frozenset[IPAddress] | None = None
        self._clients: dict[tuple[str, str, int], tuple[str, IPAddress] | None] = {}
        self._homes: dict[tuple[str, str], list[str]] = {}
        self._avoided: dict[str, frozenset[str]] = {}
        self._walker: Walker | None = None
        self._meant: dict[tuple[str, str] | None, Walker] = {}
        self._proxies: dict[str, ProxyNode] = {}
        self._ports: dict[tuple[str, str, str, int, str, str], PortOnNode] = {}

    @property
    def walker(self) -> Walker:
        """The packet walker, made when first needed."""
        if self._walker is None:
            beside = None if self._like is None else self._like.walker
            like = None if self._like is None or beside is None else (self._like.snapshot, beside.topology)
            self._walker = Walker(topology_of(self.snapshot, self.original.cluster, like=like), beside)
        return self._walker

    def node_names(self) -> tuple[str, ...]:
        """All nodes that the API or the snapshot names."""
        return self._names

    def proxy(self, name: str) -> ProxyNode:
        """What is known of the node's kube-proxy."""
        if self._like is not None and self.snapshot.nodes.get(name) is self._like.snapshot.nodes.get(name):
            return self._like.proxy(name)
        found = self._proxies.get(name)
        if found is None:
            cluster = replace(self.snapshot.cluster, pods=self.pods.kube_proxies(name))
            found = self._proxies[name] = proxy_node(replace(self.snapshot, cluster=cluster), name)
        return found

    @cached_property
    def usual_mode(self) -> tuple[ProxyMode, str]:
        """How kube-proxy is taken to run on a node that does not tell, and why: as on the others, or by default."""
        told: dict[ProxyMode, str] = {}
        for name, state in self.snapshot.nodes.items():
            modes = detect_modes(state)
            if len(modes) == 1:
                told.setdefault(modes[0], name)
        if len(told) == 1:
            mode, name = next(iter(told.items()))
            return mode, f"kube-proxy runs in {mode.value} mode, as on {name}"
        usual = default_mode(proxy_version(self.snapshot.cluster, ""))
        return usual, f"kube-proxy runs in {usual.value} mode, its default; nothing that was read tells"

    def port_on(self, service: Service, port: ServicePort, node: str) -> PortOnNode:
        """One service port on one node, as kube-proxy means it."""
        key = _key(service, port, node)
        found = self._ports.get(key)
        if found is None:
            found = self._ports[key] = PortOnNode(self.index, service, port, self.proxy(node))
        return found

    def data_plane(self, node: str) -> str:
        """What serves Services on the node in kube-proxy's place; "" where kube-proxy does, as far as is known."""
        state = self.snapshot.nodes.get(node)
        return state.data_plane if state is not None else ""

    def front_ends(self, service: Service, port: ServicePort) -> FrontEnds:
        """The front ends of a service port, as the first node's kube-proxy has them."""
        names = self.node_names()
        return front_ends(service, port, self.proxy(names[0]) if names else ProxyNode(name=""))

    def slices_of(self, service: Service) -> tuple[EndpointSlice, ...]:
        """The Service's EndpointSlices, or its Endpoints in their place."""
        key = (service.namespace, service.name)
        found = (self.index.slices or {}).get(key) or (self.index.endpoints or {}).get(key) or ()
        return tuple(found)

    def addresses(self, node: str) -> tuple[IPAddress, ...]:
        """The addresses of a node that a client would dial."""
        found = self._addresses.get(node)
        if found is None:
            found = self._addresses[node] = node_addresses(self.snapshot, node)
        return found

    def has_rules(self, node: str, version: int = 4) -> bool:
        """Whether the node's rules (of IPv4 or 6) were read."""
        state = self.snapshot.nodes.get(node)
        return state is not None and state.knows_rules_of(version)

    # -- questions

    def questions(self, service: Service, front_end: FrontEnd, node: str) -> list[Question]:
        """The questions of one row of the matrix."""
        if front_end.kind is FrontEndKind.NODE_PORT:
            address = next((a for a in self.addresses(node) if a.version == front_end.ip_version), None)
            if address is None:
                return []
            vantages = _NODE_PORT_VANTAGES
            front_end = front_end.on(address)
        else:
            vantages = _CLUSTER_IP_VANTAGES if front_end.kind is FrontEndKind.CLUSTER_IP else _VIP_VANTAGES
        out = []
        for vantage in vantages:
            question = self._question(service, front_end, node, vantage)
            if question is not None:
                out.append(question)
        return out

    def _question(
        self, service: Service, front_end: FrontEnd, node: str, vantage: Vantage
    ) -> Question | None:
        family = front_end.ip_version
        dialled = front_end
        source: str | None = None
        home: str | None = None
        ip: IPAddress | None
        if vantage is Vantage.EXTERNAL:
            ip = external_client(self.snapshot, service, front_end, node, self.client, self._taken)
            source = str(ip)
            name = f"a client at {source}"
        elif vantage is Vantage.NODE:
            ip, home = None, node
            name = f"a process on {node}"
        elif vantage is Vantage.LOCALHOST:
            ip = ip_of(_LOOPBACK[family])
            assert ip is not None
            dialled, home = front_end.on(ip), node
            name = f"a process on {node} by {ip}"
        elif vantage in (Vantage.POD_SAME_NODE, Vantage.POD_OTHER_NODE):
            home = node if vantage is Vantage.POD_SAME_NODE else self._other_node(service, node)
            pod = self._pod_of(home, family, service) if home is not None else None
            if pod is None or home is None:
                return None
            name, ip = pod
            source = str(ip)
        else:
            home = self._other_node(service, node)
            if home is None:
                return None
            ip = next((a for a in self.addresses(home) if a.version == family), None)
            if ip is None:
                return None
            if not self.has_rules(home, family):
                source = str(ip)
            name = f"a process on {home}"
        return Question(
            front_end=dialled,
            node=node,
            vantage=vantage,
            client=Client(vantage=vantage, ip=ip),
            flow=Flow(
                src=source,
                dst=str(dialled.ip),
                port=front_end.port,
                protocol=front_end.protocol.lower(),
                from_node=home,
                via=node if vantage is Vantage.EXTERNAL else None,
            ),
            client_name=name,
        )

    def others_alike(self, service: Service, question: Question) -> list[tuple[str, Question]]:
        """The same question of other clients of its kind, each with its class in words.

        Outside: one on the node's own network, one far away. Of other nodes: processes and pods of each, of the first
        few. Empty where the user named the client, or source ranges choose it.
        """
        node, family, vantage = question.node, question.front_end.ip_version, question.vantage
        found: list[tuple[str, Question]] = []
        if vantage is Vantage.EXTERNAL:
            if self.client is not None or (
                question.front_end.kind is FrontEndKind.LOAD_BALANCER and service.load_balancer_source_ranges
            ):
                return []
            near = self._near_client(node, family)
            far = FAR_CLIENTS[family] if has_default_route(self.snapshot.nodes.get(node), family) else None
            for words, ip in (("clients on the nodes' own network", near), ("clients elsewhere", far)):
                if ip is not None and ip != question.client.ip:
                    found.append((words, _asked_by(question, ip, replace(question.flow, src=str(ip)))))
            for network in self._named_networks(node, family)[:_MOST_OTHERS]:
                ip = network.network_address + (1 if network.num_addresses > 2 else 0)
                words = f"clients in {network}, which a policy names"
                found.append((words, _asked_by(question, ip, replace(question.flow, src=str(ip)))))
            return found
        if vantage not in (Vantage.OTHER_NODE, Vantage.POD_OTHER_NODE):
            return []
        for home in [n for n in self._names if n not in (node, question.flow.from_node)][:_MOST_OTHERS]:
            if not self.has_rules(home, family):
                continue
            if vantage is Vantage.OTHER_NODE:
                ip = next((a for a in self.addresses(home) if a.version == family), None)
                if ip is not None:
                    flow = replace(question.flow, from_node=home, src=None)
                    found.append((f"processes of {home}", _asked_by(question, ip, flow)))
            elif (pod := self._pod_of(home, family, service)) is not None:
                flow = replace(question.flow, from_node=home, src=str(pod[1]))
                found.append((f"pods of {home}", _asked_by(question, pod[1], flow)))
        return found

    def at_further_addresses(self, question: Question) -> list[Question]:
        """An outside client's question about a node port, at the node's other addresses."""
        if question.front_end.kind is not FrontEndKind.NODE_PORT or question.vantage is not Vantage.EXTERNAL:
            return []
        return [
            replace(
                question,
                front_end=question.front_end.on(address),
                flow=replace(question.flow, dst=str(address)),
            )
            for address in further_addresses(self.snapshot, question.node)
            if address.version == question.front_end.ip_version
        ][:_MOST_ADDRESSES]

    def _named_networks(self, node: str, family: int) -> list[IPNetwork]:
        """Networks outside that a policy which Cilium enforces names: each has an identity of its own."""
        state = self.snapshot.nodes.get(node)
        cilium = state.cilium if state is not None else None
        if cilium is None or not cilium.config.enforces_policy:
            return []
        return [
            e.network
            for e in cilium.ipcache or ()
            if e.network.version == family and e.identity is not None and e.identity >= LOCAL_IDENTITIES
        ]

    def _near_client(self, node: str, family: int) -> IPAddress | None:
        key = (node, family)
        if key not in self._near:
            self._near[key] = near_client(self.snapshot, node, family, self._taken())
        return self._near[key]

    def _taken(self) -> frozenset[IPAddress]:
        if self._taken_addresses is None:
            self._taken_addresses = frozenset(taken_addresses(self.snapshot))
        return self._taken_addresses

    def _other_node(self, service: Service, node: str) -> str | None:
        """Another node to ask from: one with rules read and without endpoints of the Service, if possible."""
        key = (service.namespace, service.name)
        found = self._homes.get(key)
        if found is None:
            holders = {
                e.node_name for s in self.slices_of(service) for e in s.endpoints if e.node_name is not None
            }
            ranked = [
                (not self.has_rules(name), name in holders, name)
                for name in self._names
                if self.addresses(name)
            ]
            found = self._homes[key] = [name for _, _, name in nsmallest(2, ranked)]
        return next((name for name in found if name != node), None)

    def _pod_of(self, node: str, family: int, service: Service) -> tuple[str, IPAddress] | None:
        key = (service.key, node, family)
        if key not in self._clients:
            self._clients[key] = self._chosen_pod(node, family, service)
        return self._clients[key]

    def _chosen_pod(self, node: str, family: int, service: Service) -> tuple[str, IPAddress] | None:
        supposed = (self.supposed4 if family == 4 else self.supposed6).get(node)
        if supposed is not None:
            return f"a pod on {node}", supposed
        avoid = self._avoided.get(service.key)
        if avoid is None:
            avoid = self._avoided[service.key] = frozenset(
                a for s in self.slices_of(service) for e in s.endpoints for a in e.addresses
            )
        found = self.pods.client(node, family, avoid)
        return (f"pod {found[0]}", found[1]) if found is not None else None

    # -- answers

    def ask(self, service: Service, port: ServicePort, question: Question) -> Asked:
        """Both answers to one question."""
        intent = self.intent(
            service, port, question.front_end, question.client, question.node, flow=question.flow
        )
        return Asked(question=question, intent=intent, fact=self.fact(question))

    def fact(self, question: Question, *, trace: bool = True) -> FlowAnswer | None:
        """What the nodes do, its ways without hops where `trace` is False; None where their rules were not read."""
        version = question.front_end.ip_version
        dialled, home = question.node, question.flow.from_node
        if not self.has_rules(dialled, version) and (home is None or not self.has_rules(home, version)):
            return None
        fact = answer_flow(self.walker, question.flow, trace=trace)
        if fact.symptom is Symptom.UNKNOWN and not self.has_rules(dialled, version):
            return (
                None  # the walk ended where nothing was read: what should happen there is the better answer
            )
        return fact

    def seen(self, service: Service, port: ServicePort, question: Question) -> tuple[Symptom, str]:
        """What the client of a question sees, and why, as the cell of both answers would say."""
        cell = self.bare_cell(service, port, question)
        return cell.symptom, cell.reason

    def intent(
        self,
        service: Service,
        port: ServicePort,
        front_end: FrontEnd,
        client: Client,
        node: str,
        *,
        flow: Flow,
    ) -> Intent:
        """What the API objects call for; `flow` is the same question for the walker.

        Where that hangs on kube-proxy's mode and nothing tells it, that of the other nodes or the default is assumed.
        """
        intent = self._intent(service, port, front_end, client, node)
        plane = self.data_plane(node)
        state = self.snapshot.nodes.get(node)
        if not plane or state is None:
            return intent
        if not state.data_plane_unread:
            return self._meant_by_cilium(service, intent, flow)
        why = f"{plane} serves Services on {HERE}, and its tables were not read"
        return replace(
            intent, symptom=Symptom.UNKNOWN, disposition=Disposition.UNDETERMINED, because=why, endpoints=(),
            source_kept=None, assumptions=(), depends_on=(), should=intent,
        )  # fmt: skip

    def _meant_by_cilium(self, service: Service, intent: Intent, flow: Flow) -> Intent:
        """What Cilium does where its maps are as the objects call for, without policies and without a rule.

        Cilium's own tables are asked, since there are no others to compare with.
        """
        changed = self.snapshot.cluster.services.get(service.key) != service
        key = (service.key, service.external_traffic_policy) if changed else None
        walker = self._meant.get(key)
        if walker is None:
            cluster = self.snapshot.cluster
            if key is not None:
                cluster = replace(cluster, services={**cluster.services, service.key: service})
            meant = reprogram(self.snapshot, cluster, services=None if key is None else {service.key})
            nodes = {name: _bare(state) for name, state in meant.nodes.items()}
            walker = Walker(topology_of(replace(meant, nodes=nodes), self.original.cluster))
            self._meant[key] = walker
        answer = answer_flow(walker, flow, trace=False)
        endpoints = tuple(
            IntendedEndpoint(
                ip=p.endpoint_ip, port=p.endpoint_port or 0, node=p.endpoint_node, pod=p.endpoint_name,
                probability=p.probability, disposition=p.disposition, symptom=p.symptom,
                source_kept=answer.source_preserved,
            )
            for p in answer.paths
            if p.endpoint_ip is not None
        )  # fmt: skip
        return replace(
            intent, symptom=answer.symptom, disposition=answer.disposition, because=answer.reason,
            endpoints=endpoints, source_kept=answer.source_preserved,
            passes=answer.disposition is Disposition.LOST and not endpoints, depends_on=(),
            assumptions=answer.assumptions,
        )  # fmt: skip

    def _intent(
        self, service: Service, port: ServicePort, front_end: FrontEnd, client: Client, node: str
    ) -> Intent:
        intent = self.port_on(service, port, node).outcome(front_end, client)
        proxy = self.proxy(node)
        if intent.symptom is not Symptom.UNKNOWN or proxy.modes != ALL_MODES:
            return intent
        mode, why = self.usual_mode
        key = _key(service, port, f"{node} in its usual mode")
        found = self._ports.get(key)
        if found is None:
            usual = replace(proxy, modes=(mode,))
            found = self._ports[key] = PortOnNode(self.index, service, port, usual)
        assumed = found.outcome(front_end, client)
        if assumed.symptom is Symptom.UNKNOWN:
            return intent
        taken = Assumption(
            why,
            EvidenceKind.PROXY_CONFIG,
            node,
            "it depends on " + " and on ".join(intent.depends_on) if intent.depends_on else "",
        )
        return replace(assumed, assumptions=(*assumed.assumptions, taken))

    def bare_cell(self, service: Service, port: ServicePort, question: Question) -> Cell:
        """The cell of a question; where the fact is known without what is intended, which a change is not asked for."""
        fact = self.fact(question, trace=False)
        if fact is not None:
            return _fact_cell(question, fact)
        intent = self.intent(
            service, port, question.front_end, question.client, question.node, flow=question.flow
        )
        return self.cell(Asked(question=question, intent=intent, fact=None))

    def cell(self, asked: Asked) -> Cell:
        """The answers as a cell: the fact where it is known, else the intent."""
        question, intent, fact = asked.question, asked.intent, asked.fact
        if fact is not None:
            return replace(
                _fact_cell(question, fact),
                intended=None if intent.passes else intent.symptom,
                intended_by=intent.decided_by,
            )
        return Cell(
            vantage=question.vantage.value,
            symptom=intent.symptom,
            disposition=intent.disposition,
            reason=reason_of(intent),
            basis="api" if intent.symptom is not Symptom.UNKNOWN else "none",
            endpoints=endpoints_of(intent),
            source_kept=intent.source_kept,
            client=question.client_name,
            intended=(intent.should or intent).symptom,
            intended_by=(intent.should or intent).decided_by,
            assumptions=(*intent.assumptions, *((PROGRAM_LISTENS,) if intent.endpoints else ())),
        )


def _fact_cell(question: Question, fact: FlowAnswer) -> Cell:
    return Cell(
        vantage=question.vantage.value,
        symptom=fact.symptom,
        disposition=fact.disposition,
        reason=fact.reason,
        basis="rules",
        endpoints=_fact_endpoints(fact),
        source_kept=fact.source_preserved,
        sources_seen=fact.sources_seen,
        decided_by=fact.decided_by,
        client=question.client_name,
        assumptions=fact.assumptions,
    )


class _NoRules:
    """A ruleset without a table: what is meant is meant without rules."""

    backend = Backend.UNKNOWN
    source = ""

    def __init__(self, family: str) -> None:
        self.family = family

    def tables(self) -> tuple[str, ...]:
        return ()

    def chain_names(self, table: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def chain(self, table: str, name: str) -> Chain | None:  # noqa: ARG002
        return None

    def reading(self, table: str) -> TableReading:  # noqa: ARG002
        return TableReading(reading=Reading.WHOLE, names_known=True)


def _bare(state: NodeState) -> NodeState:
    """The node with what Cilium holds, and no rules or policies."""
    cilium = state.cilium
    if cilium is None or not state.data_plane or state.data_plane_unread:
        return state
    config = replace(cilium.config, enforces_policy=False)
    return replace(
        state, rulesets=(_NoRules("ip"), _NoRules("ip6")), nft=None, cilium=replace(cilium, config=config)
    )


def _key(service: Service, port: ServicePort, node: str) -> tuple[str, str, str, int, str, str]:
    """What PortOnNodes are kept by; the policy, because the survey asks for the same Service with another."""
    return service.key, service.external_traffic_policy, port.name, port.port, port.protocol, node


_MOST_ADDRESSES = 16  # of one node, that are asked beside its own
_MOST_OTHERS = 4


def _asked_by(question: Question, ip: IPAddress, flow: Flow) -> Question:
    client = Client(vantage=question.vantage, ip=ip)
    return replace(question, client=client, flow=flow, client_name=f"a client at {ip}")


def reason_of(intent: Intent) -> str:
    """Why it is so, in words."""
    if intent.symptom is Symptom.CONNECTS:
        return intent.decided_by
    if intent.disposition is Disposition.UNDETERMINED and intent.depends_on:
        return "it depends on " + " and on ".join(intent.depends_on)
    return intent.decided_by


def endpoints_of(intent: Intent) -> tuple[CellEndpoint, ...]:
    """The endpoints of a cell of which the API objects alone tell."""
    return tuple(
        CellEndpoint(
            ip=e.ip, port=e.port, name=e.pod, node=e.node, probability=e.probability, symptom=e.symptom
        )
        for e in intent.endpoints
    )


def _fact_endpoints(fact: FlowAnswer) -> tuple[CellEndpoint, ...]:
    merged: dict[tuple[str, int, Symptom], CellEndpoint] = {}
    for path in fact.paths:
        if path.endpoint_ip is None or path.disposition is Disposition.HOST_PROCESS:
            continue
        key = (path.endpoint_ip, path.endpoint_port or 0, path.symptom)
        old = merged.get(key)
        merged[key] = CellEndpoint(
            ip=path.endpoint_ip,
            port=path.endpoint_port or 0,
            name=path.endpoint_name,
            node=path.endpoint_node,
            probability=path.probability + ((old.probability or 0) if old is not None else 0),
            symptom=path.symptom,
        )
    return tuple(merged.values())
