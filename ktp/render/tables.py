"""Matrices as people read them: in a large one rows alike are one row, and front ends with equal tables share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from ktp.model.diagnosis import Cell, FrontEndMatrix, NodeRow
from ktp.model.record import dataclass
from ktp.model.trace import Disposition, Symptom

FEW_ROWS = 12
"""Up to so many nodes each has a row of its own."""

_FEW_ALIKE = 2
_MOST_TITLES = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: the first of the nodes that it is about stands for all."""

    label: str
    nodes: tuple[NodeRow, ...]

    @property
    def first(self) -> NodeRow:
        """The node whose cells are shown."""
        return self.nodes[0]

    @property
    def pods(self) -> str:
        """The number of endpoints on the node, "?" where that is not known."""
        return "?" if self.first.local_endpoints is None else str(self.first.local_endpoints)


@dataclass(frozen=True, slots=True)
class Table:
    """One table, of one front end or of several."""

    titles: tuple[str, ...]
    matrix: FrontEndMatrix
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The front ends by name, of many the first."""
        shown, more = self.titles[:_MOST_TITLES], len(self.titles) - _MOST_TITLES
        return ", ".join(shown) + (f" and {more} more front ends alike (-v names them)" if more > 0 else "")

    def joined(self) -> list[tuple[str, tuple[str, ...]]]:
        """The rows that are about several nodes, each with their names."""
        return [(row.label, tuple(n.node for n in row.nodes)) for row in self.rows if len(row.nodes) > 1]


def tables_of(matrices: Iterable[FrontEndMatrix], *, every: bool = False) -> list[Table]:
    """The tables of a report; with `every` one for each front end, with a row for each node."""
    alike: dict[Hashable, list[FrontEndMatrix]] = {}
    for m in matrices:
        key = m.title if every else (m.ip_version, tuple((row.node, _face(row)) for row in m.nodes))
        alike.setdefault(key, []).append(m)
    return [
        Table(
            titles=tuple(m.title for m in those),
            matrix=those[0],
            rows=tuple(_rows(those[0].nodes, joined=not every and len(those[0].nodes) > FEW_ROWS)),
        )
        for those in alike.values()
    ]


def _rows(nodes: Sequence[NodeRow], *, joined: bool) -> list[Row]:
    if not joined:
        return [Row(n.node, (n,)) for n in nodes]
    groups: dict[Hashable, list[NodeRow]] = {}
    for node in nodes:
        groups.setdefault(_face(node), []).append(node)
    sizes = Counter(len(those) for those in groups.values())
    used: Counter[int] = Counter()
    out = []
    for those in groups.values():
        size = len(those)
        if size <= _FEW_ALIKE:
            out += [Row(n.node, (n,)) for n in those]
            continue
        letter = f" ({chr(ord('a') + used[size] % 26)})" if sizes[size] > 1 else ""
        used[size] += 1
        out.append(Row(f"{size} nodes{letter}", tuple(those)))
    return out


def _face(row: NodeRow) -> Hashable:
    """Everything of a row that a table shows, but for the node."""
    return row.local_endpoints, tuple((vantage, _face_of(cell)) for vantage, cell in row.cells.items())


def _face_of(cell: Cell) -> Hashable:
    share = 0.0
    if cell.symptom is Symptom.INTERMITTENT:
        share = sum(e.probability or 0 for e in cell.endpoints if e.symptom is Symptom.CONNECTS)
    return (
        cell.symptom, cell.disposition is Disposition.HOST_PROCESS, cell.source_kept, f"{share:.0%}",
        cell.basis == "api", bool(cell.rests_on), cell.cause,
    )  # fmt: skip


def short_names(names: Sequence[str], room: int) -> dict[str, str]:
    """The names in at most `room` characters: without the domain that all share, then without their middle."""
    if max((len(name) for name in names), default=0) <= room:
        return {name: name for name in names}
    domains = {name.partition(".")[2] for name in names}
    cut = {name: name.partition(".")[0] if len(domains) == 1 and len(names) > 1 else name for name in names}
    return {name: _without_middle(short, room) for name, short in cut.items()}


def _without_middle(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    kept = max(room - 1, 2)
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
