"""What a diagnosis says: cells of the matrix, findings with evidence and fixes, and the whole report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.capture import EvidenceGap
from ktp.model.change import Change
from ktp.model.record import dataclass
from ktp.model.trace import DecidedBy, Disposition, Hop, Symptom

if TYPE_CHECKING:
    from ktp.model.probing import ProbeRow, WitnessRow


class Severity(str, Enum):
    """How much a finding matters: `error` traffic fails, `warning` it may or loses something, `info` good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return ("error", "warning", "info").index(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEndpoint:
    """An endpoint that may be drawn, and what becomes of the client then."""

    ip: str
    port: int
    name: str | None
    node: str | None
    probability: float | None
    symptom: Symptom


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherClient:
    """A client of a cell's kind that sees another symptom than the one asked for: which they are, and what they see."""

    who: str
    client: str
    symptom: Symptom
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherAddress:
    """A further address of the node, which the API does not list, and what the cell's client sees there."""

    address: str
    symptom: Symptom
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Where a connection that opens stops: its longest packets do not get there. Lengths are in bytes, of IP packets.

    Of a `segment` that the sender makes `sent` bytes leave by `device` of node `sender` (through `tunnel`, with its
    headers), and `receiving_device` of `receiver` takes `taken`. Without a receiver `device` takes no more, and
    `stopped_by` is what keeps that from who made the segment. `certain` is False where a device may take more than its
    MTU says.
    """

    direction: str  # request reply
    segment: int
    sent: int
    taken: int
    sender: str
    device: str
    receiver: str = ""
    receiving_device: str = ""
    tunnel: str | None = None
    certain: bool = False
    stopped_by: DecidedBy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One answer of the matrix: a kind of client, a front end, a node.

    `basis` tells what it stands on: "rules" (fact, and the API agrees or was not there), "api" (intent alone), or
    "none". `source_kept` is None where nothing arrives. `intended` is the symptom that the API objects call for.
    """

    vantage: str
    symptom: Symptom
    disposition: Disposition
    reason: str
    basis: str
    endpoints: tuple[CellEndpoint, ...] = ()
    source_kept: bool | None = None
    sources_seen: tuple[str, ...] = ()
    decided_by: DecidedBy | None = None
    cause: str | None = None
    client: str | None = None
    intended: Symptom | None = None
    intended_by: str = ""
    assumptions: tuple[Assumption, ...] = ()
    others: tuple[OtherClient, ...] = ()
    addresses: tuple[OtherAddress, ...] = ()
    hang: Hang | None = None

    @property
    def rests_on(self) -> tuple[Assumption, ...]:
        """The assumptions that stand in for evidence, for an answer that there is.

        That a pod's program listens is told once of the whole report (`EvidenceKind.POD_NAMESPACE`).
        """
        if self.symptom is Symptom.UNKNOWN:
            return ()
        return tuple(a for a in self.assumptions if a.evidence not in (None, EvidenceKind.POD_NAMESPACE))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node of the matrix. `local_endpoints` counts the usable ones on it, None where that is not known."""

    node: str
    addresses: tuple[str, ...]
    local_endpoints: int | None
    cells: Mapping[str, Cell]
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndMatrix:
    """All nodes of one front end. `address` is None for a node port (each node has its own)."""

    kind: str
    protocol: str
    port: int
    port_name: str = ""
    node_port: int = 0
    address: str | None = None
    ip_version: int = 4
    nodes: tuple[NodeRow, ...] = ()

    @property
    def dialled(self) -> int:
        """The port that a client dials."""
        return self.node_port if self.kind == "nodePort" else self.port

    @property
    def title(self) -> str:
        """`nodePort 31015/TCP`, `nodePort 31015/TCP (IPv6)`, `loadBalancer 10.99.0.10:80/TCP`."""
        if self.kind == "nodePort":
            return f"nodePort {self.node_port}/{self.protocol}" + (" (IPv6)" if self.ip_version == 6 else "")
        where = f"[{self.address}]" if self.address and ":" in self.address else self.address
        return f"{self.kind} {where}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A piece of proof. `kind`: rule, field, sysctl, route, socket, policy, map-element, counterfactual, probe."""

    kind: str
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cures:
    """What a fix does to failing cells that it was tried on: so many then connect in every draw, so many more often.

    `left` names the (front end, node, vantage) of those that still fail, always or now and then; `lost` of those that
    connect today and then (sometimes) do not.
    """

    tried: int
    cured: int
    better: int = 0
    left: tuple[tuple[str, str, str], ...] = ()
    lost: tuple[tuple[str, str, str], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every cell that it was tried on then connects for every draw."""
        return 0 < self.tried == self.cured


@dataclass(frozen=True, slots=True)
class Fix:
    """A cure: what to do, what it costs, and, where it changes an object, the patch for kubectl.

    `verified` is True where the engine was asked about the snapshot with the fix applied and every cell concerned
    then connects; `cures` says how many do, `outcome` what else it answered, in words. `change` is the same for `ktp
    what-if`, where that can make it up.
    """

    summary: str
    _: KW_ONLY
    cost: str = "none"
    patch: Mapping[str, Any] | None = None
    command: str | None = None
    verified: bool = False
    outcome: str = ""
    cures: Cures | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        """What was tried on cells is verified by them alone."""
        if self.cures is not None:
            object.__setattr__(self, "verified", self.cures.is_whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A named cause with its proof.

    `cells` lists (front end title, node, vantage) of what it explains. Of `nodes`, on which it holds, `alike` are those
    that the message and the evidence do not name: they differ from `node` in nothing but their names and addresses.
    """

    code: str
    name: str
    severity: Severity
    message: str
    node: str | None = None
    nodes: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    fixes: tuple[Fix, ...] = ()
    cells: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodShare:
    """The share of outside connections that one endpoint gets (0 to 1)."""

    endpoint: str
    node: str | None
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShare:
    """How outside connections to a front end spread over its endpoints, for one way to spread them over the nodes.

    `balancer`: "all-nodes" equally over all nodes, "nodes-with-pods" equally over those that hold an endpoint (a load
    balancer with health checks), "by-pods" in proportion to each node's endpoints. `policy` is the
    externalTrafficPolicy that it holds for. `lost` is the share that reaches no endpoint; `ratio` that of the
    busiest endpoint to the idlest (None where there are none).
    """

    frontend: str
    policy: str
    balancer: str
    pods: tuple[PodShare, ...]
    lost: float
    ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way of one packet through the nodes, to be drawn: the hops of the likeliest path of a cell."""

    frontend: str
    node: str
    vantage: str
    client: str
    symptom: Symptom
    reason: str
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadlineGroup:
    """Nodes on which clients of one kind fail at a front end alike and for the same reason: `cause` is a code."""

    frontend: str
    nodes: tuple[str, ...]
    vantage: str
    symptom: Symptom
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDiagnosis:
    """The diagnosis of one Service."""

    namespace: str
    name: str
    type: str
    external_traffic_policy: str
    internal_traffic_policy: str
    verdict: str
    dialled: str = ""  # what was asked for by an address, and what it is
    headline: tuple[HeadlineGroup, ...] = ()
    frontends: tuple[FrontEndMatrix, ...] = ()
    findings: tuple[Finding, ...] = ()
    evidence_api: bool = True
    evidence_nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gaps: tuple[EvidenceGap, ...] = ()
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # node → kube-proxy version in words
    undetermined: bool = False
    shares: tuple[LoadShare, ...] = ()
    ways: tuple[Way, ...] = ()
    reconciliation: tuple[WitnessRow, ...] = ()
    probes: tuple[ProbeRow, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def silent(self) -> tuple[HeadlineGroup, ...]:
        """The groups of the headline that are as the Service's owner asked: what explains them is no fault."""
        return tuple(group for group in self.headline if is_designed(self.findings, group))


def is_designed(findings: Iterable[Finding], group: HeadlineGroup) -> bool:
    """Whether nothing graver than KTP501 as good to know explains the group."""
    cells = {(group.frontend, node, group.vantage) for node in group.nodes}
    found = next((f for f in findings if f.code == group.cause and not cells.isdisjoint(f.cells)), None)
    return found is not None and found.code == "KTP501" and found.severity is Severity.INFO
