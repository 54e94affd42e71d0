"""One diagnosis under way: the cells that were asked, and the same questions asked again of a changed snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from ktp.diagnose.alike import Alike
from ktp.diagnose.examine import Asked, Examiner
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind
from ktp.kubeproxy.outcome import Vantage
from ktp.model.cluster import Service, ServicePort
from ktp.model.diagnosis import Cell, Cures, Evidence, Hang
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import DecidedBy, Disposition, Path, Symptom

EXTERNAL_KINDS = frozenset((FrontEndKind.NODE_PORT, FrontEndKind.LOAD_BALANCER, FrontEndKind.EXTERNAL_IP))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A cell of the matrix with its question and answers; there is one of each, compared by identity."""

    port: ServicePort
    front_end: FrontEnd
    title: str
    asked: Asked
    cell: Cell

    @property
    def node(self) -> str:
        """The node that is dialled."""
        return self.asked.question.node

    @property
    def vantage(self) -> Vantage:
        """The kind of client."""
        return self.asked.question.vantage

    @property
    def key(self) -> tuple[str, str, str]:
        """(front end, node, vantage)."""
        return self.title, self.node, self.vantage.value

    @property
    def paths(self) -> tuple[Path, ...]:
        """The ways that the rules lead it; none where they were not read."""
        return self.asked.fact.paths if self.asked.fact is not None else ()

    @property
    def is_swallowed(self) -> bool:
        """Whether a socket of the dialled node takes the connection, so that it never reaches the Service."""
        return self.cell.disposition is Disposition.HOST_PROCESS and self.cell.symptom is Symptom.CONNECTS

    @property
    def is_external(self) -> bool:
        """Whether the front end is one for clients outside the cluster."""
        return self.front_end.kind in EXTERNAL_KINDS

    @property
    def fails(self) -> bool:
        """Whether the client does not (always) get through to the Service: also where another socket takes it."""
        return self.is_swallowed or self.cell.symptom not in (Symptom.CONNECTS, Symptom.UNKNOWN)


_MOST_WORLDS = 64


class Mended(list[Entry]):
    """Cells that a change mends, wholly (`cured`) or in part."""

    def __init__(
        self,
        better: Iterable[Entry],
        cured: Iterable[Entry],
        harmed: Callable[[], Iterable[Entry]] = tuple,
        alike: Callable[[str], Iterable[str]] = lambda node: (node,),
    ) -> None:
        """`harmed` asks which cells connect today and no longer would: it is called where a fix is offered.

        `alike` names the nodes for which a cell of one stands.
        """
        super().__init__(better)
        self.cured = tuple(cured)
        self._harmed = harmed
        self._alike = alike

    def also(self, other: Mended) -> Mended:
        """With what another change mends."""
        both = (self._harmed, other._harmed)
        return Mended(
            [*self, *other],
            [*self.cured, *other.cured],
            lambda: [e for harmed in both for e in harmed()],
            self._alike,
        )

    def cures(self, tried: Iterable[Entry] | None = None) -> Cures:
        """What the change does to the cells that it was `tried` on; without, to these."""
        every = list(self if tried is None else tried)
        cured = self._everywhere(e for e in every if e in self.cured)
        left = self._everywhere(e for e in every if e not in self.cured)
        return Cures(
            tried=len(cured) + len(left),
            cured=len(cured),
            better=len(self._everywhere(e for e in every if e in self and e not in self.cured)),
            left=left,
            lost=tuple(dict.fromkeys(self._everywhere(self._harmed()))),
        )

    def _everywhere(self, entries: Iterable[Entry]) -> tuple[tuple[str, str, str], ...]:
        return tuple((e.title, node, e.vantage.value) for e in entries for node in self._alike(e.node))


class Case:
    """What the checks look at."""

    def __init__(
        self,
        examiner: Examiner,
        service: Service,
        entries: Iterable[Entry],
        nodes: Iterable[str],
        alike: Alike | None = None,
    ) -> None:
        """`nodes` are those that the diagnosis is about, and `entries` their cells.

        Of nodes alike `entries` and `nodes` hold two, which a check examines; `whole` and `every_node` hold all.
        """
        self.examiner = examiner
        self.service = service
        self.alike = alike or Alike()
        self.whole = tuple(entries)
        self.every_node = tuple(nodes)
        self.entries = tuple(e for e in self.whole if e.node not in self.alike.twin_of)
        self.nodes = tuple(n for n in self.every_node if n not in self.alike.twin_of)
        self.unhealthy: frozenset[str] | None = None  # nodes on which the health check is stopped, once asked
        self.hangs: dict[tuple[str, str, str], Hang] = {}  # of cells, once asked
        self._by_node: dict[str, tuple[Entry, ...]] | None = None
        self._worlds: dict[str, Examiner | None] = {}
        self._harm: dict[str, list[Entry]] = {}
        self._answers: dict[str, dict[tuple[str, str, str], Cell]] = {}  # by world and cell

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot as it was given."""
        return self.examiner.original

    def state(self, node: str) -> NodeState | None:
        """What was read of a node."""
        return self.snapshot.nodes.get(node)

    def by_kube_proxy(self) -> Iterator[tuple[str, NodeState]]:
        """The dialled nodes of which something was read, save those that another data plane serves."""
        for node in self.nodes:
            state = self.state(node)
            if state is not None and not state.data_plane:
                yield node, state

    def failing(self, node: str | None = None) -> Iterator[Entry]:
        """Cells that do not connect."""
        return (e for e in (self.entries if node is None else self.on(node)) if e.fails)

    def on(self, node: str) -> tuple[Entry, ...]:
        """The cells of the node that is dialled."""
        if self._by_node is None:
            found: dict[str, list[Entry]] = {}
            for entry in self.entries:
                found.setdefault(entry.node, []).append(entry)
            self._by_node = {name: tuple(entries) for name, entries in found.items()}
        return self._by_node.get(node, ())

    @cached_property
    def outside(self) -> dict[tuple[str, int, str], list[Entry]]:
        """The cells of outside clients of all nodes, by the service port's protocol, number and name."""
        found: dict[tuple[str, int, str], list[Entry]] = {}
        for e in self.whole:
            if e.is_external and e.vantage is Vantage.EXTERNAL:
                found.setdefault((e.port.protocol, e.port.port, e.port.name), []).append(e)
        return found

    def involved_nodes(self) -> list[str]:
        """Nodes whose state can explain a failing cell: those dialled, those of clients, those of endpoints."""
        names: dict[str, None] = {}
        for entry in self.failing():
            names.setdefault(entry.node)
            for path in entry.paths:
                for hop in path.hops:
                    names.setdefault(hop.node)
        return [n for n in names if self.state(n) is not None]

    # -- counterfactuals

    def world(self, label: str, make: Callable[[], Snapshot]) -> Examiner | None:
        """An examiner over a changed snapshot, made once per label; None where the change cannot be made up.

        Of very many the last ones are kept: each of a large cluster's holds megabytes.
        """
        if label not in self._worlds:
            if len(self._worlds) >= _MOST_WORLDS:
                oldest = next(iter(self._worlds))
                del self._worlds[oldest]
                self._answers.pop(oldest, None)
            try:
                changed = make()
            except ValueError:  # e.g. no podCIDR is known to take a pod's address from
                self._worlds[label] = None
            else:
                self._worlds[label] = Examiner(changed, client=self.examiner.client, beside=self.examiner)
        return self._worlds[label]

    def ask_again(self, entry: Entry, label: str, make: Callable[[], Snapshot]) -> Cell:
        """The same cell in the changed snapshot; as it is where the change cannot be made up."""
        answers = self._answers.setdefault(label, {})
        found = answers.get(entry.key)
        if found is None:
            world = self.world(label, make)
            if world is None:
                return entry.cell
            service = world.original.cluster.services.get(self.service.key, self.service)
            port = next(
                (
                    p
                    for p in service.ports
                    if (p.name, p.port, p.protocol) == (entry.port.name, entry.port.port, entry.port.protocol)
                ),
                entry.port,
            )
            found = answers[entry.key] = world.bare_cell(service, port, entry.asked.question)
        return found

    def gets_further(self, entry: Entry, label: str, make: Callable[[], Snapshot]) -> bool:
        """Whether in the changed snapshot something else stops the packet: what was changed stops it now."""
        before, after = entry.cell.decided_by, self.ask_again(entry, label, make).decided_by
        return before is not None and after is not None and _place(before) != _place(after)

    def mended(
        self, entries: Iterable[Entry], label: str, make: Callable[[], Snapshot], changed: str = ""
    ) -> Mended:
        """Those of the cells that connect (more often) in the changed snapshot.

        `changed` names the node that was changed, where it is one.
        """
        after = {e: self.ask_again(e, label, make) for e in entries}
        better = [e for e, cell in after.items() if is_better(e.cell, cell)]
        return Mended(
            better,
            [e for e in better if share(after[e]) >= 1],
            lambda: self._harmed(label, make),
            lambda node: self.alike.of(node, changed),
        )

    def _harmed(self, label: str, make: Callable[[], Snapshot]) -> list[Entry]:
        """The ways in, for any client, that connect today and in the changed snapshot do not, or not always."""
        if label not in self._harm:
            touched = self._touched(label, make)
            today = (
                e for e in self.entries if e.is_external and share(e.cell) >= 1 and _may_differ(e, touched)
            )
            self._harm[label] = [
                e for e in today if share(after := self.ask_again(e, label, make)) < 1 and is_known(after)
            ]
        return self._harm[label]

    def _touched(self, label: str, make: Callable[[], Snapshot]) -> frozenset[str] | None:
        """The nodes that a change changes, where it changes nothing else; None where it may."""
        world = self.world(label, make)
        if world is None or world.original.cluster is not self.snapshot.cluster:
            return None
        before, after = self.snapshot.nodes, world.original.nodes
        return frozenset(name for name in {*before, *after} if before.get(name) is not after.get(name))


def _may_differ(entry: Entry, touched: frozenset[str] | None) -> bool:
    """Whether an answer may be another where the nodes `touched` are: where a packet of it is on one of them.

    What is asked of a node's evidence is asked for packets that are there, and each such node is a hop.
    """
    fact = entry.asked.fact
    if touched is None or fact is None or entry.node in touched or fact.flow.from_node in touched:
        return True
    return any(hop.node in touched for path in fact.paths for hop in path.hops)


def _place(decided: DecidedBy | None) -> object:
    return decided and (decided.node, decided.kind, decided.table, decided.chain, decided.rule)


def goes_astray(entry: Entry, path: Path) -> bool:
    """Whether the answer comes back to the client's node by a way that misses the node which translated the request.

    There conntrack does not know it: it is lost, or a rule for such packets drops it first.
    """
    if path.endpoint_ip is None or not path.source_seen or path.symptom is Symptom.CONNECTS:
        return False
    asked = [h.node for h in path.hops if h.direction == "request"]
    answered = [h.node for h in path.hops if h.direction == "reply"]
    home = entry.asked.question.flow.from_node
    if home == entry.node or home not in answered:
        return False  # the answer was lost on its way, not because of its way
    if path.disposition is not Disposition.LOST and answered[-1] == path.endpoint_node:
        return False
    return entry.node in asked and entry.node not in answered and path.endpoint_node != entry.node


def is_better(before: Cell, after: Cell) -> bool:
    """Whether more of the client's connections succeed."""
    return share(after) > share(before) + 1e-9


def is_known(cell: Cell) -> bool:
    """Whether there is an answer at all."""
    return cell.symptom is not Symptom.UNKNOWN


def share(cell: Cell) -> float:
    """The share of connections that succeed; one that a socket of the node takes never reaches the Service."""
    if cell.disposition is Disposition.HOST_PROCESS:
        return 0.0
    if cell.symptom is Symptom.CONNECTS:
        return 1.0
    if cell.symptom is not Symptom.INTERMITTENT:
        return 0.0
    return sum(e.probability or 0 for e in cell.endpoints if e.symptom is Symptom.CONNECTS)


def decided_evidence(cell: Cell) -> tuple[Evidence, ...]:
    """The rule (or other thing) that decided a cell, as evidence."""
    d = cell.decided_by
    if d is None or not d.rule:
        return ()
    # IPVS and Cilium have one name for what answers and for its table.
    where = " ".join(
        part for part in dict.fromkeys((d.node, d.pod, *((d.backend, d.table) if d.table else ()))) if part
    )
    if d.line:
        where += f" line {d.line}"
    return (Evidence(d.kind.value, where, d.rule),)
