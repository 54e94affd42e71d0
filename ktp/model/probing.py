"""Real connections and what was expected of them, and the witnesses of a Service port's endpoints on a node."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ktp.model.record import dataclass
from ktp.model.trace import DecidedBy, Symptom

if TYPE_CHECKING:
    from ktp.model.diagnosis import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """What is dialled. `node` is None for an address that no single node answers for (a balancer's).

    `host` is an IP address, or the name that a load balancer gave itself; `protocol` is "TCP", "UDP" or "SCTP". `pod`
    is the endpoint that is dialled past all front ends ("namespace/name"); None where a front end is.
    """

    frontend: str
    host: str
    port: int
    protocol: str
    node: str | None = None
    pod: str | None = None

    @property
    def dialled(self) -> str:
        """`10.0.0.3:31015`, `[fd00::3]:31015`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One connection, or one datagram and its answer. `http` is the status of an answered GET."""

    symptom: Symptom
    seconds: float
    detail: str = ""
    http: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What came of all tries of one target.

    `source` is the address that they were sent from, `sender` the node that sent them (None: this machine).
    `skipped` says why nothing was tried, "" where it was. `asked_http` tells whether a GET was sent on each.
    """

    target: ProbeTarget
    source: str | None = None
    sender: str | None = None
    attempts: tuple[Attempt, ...] = ()
    skipped: str = ""
    asked_http: bool = False

    @property
    def symptoms(self) -> Counter[Symptom]:
        """How often each symptom was seen."""
        return Counter(a.symptom for a in self.attempts)

    @property
    def symptom(self) -> Symptom:
        """What all tries saw, INTERMITTENT where they differ, UNKNOWN where there was none."""
        found = set(self.symptoms)
        if not found:
            return Symptom.UNKNOWN
        return found.pop() if len(found) == 1 else Symptom.INTERMITTENT

    @property
    def connected(self) -> int:
        """How many tries connected."""
        return self.symptoms[Symptom.CONNECTS]

    @property
    def answered_http(self) -> int:
        """How many tries got an HTTP answer of whatever status."""
        return sum(a.http is not None for a in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTarget:
    """A pod of another node ("namespace/name" on `node`), to which a packet of some length is sent.

    `is_full`: as long as the sender's route there takes; else of some 100 bytes.
    """

    pod: str
    node: str
    host: str
    is_full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthAttempt:
    """One packet of `size` bytes, from its IP header on (None: not told), and whether the pod answered it.

    `told` is the MTU that an ICMP error named: TCP then sends less. `problem` says why nothing was sent.
    """

    answered: bool
    size: int | None = None
    told: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthRow:
    """What came of short and of full packets from node `sender` to a pod on `node`."""

    sender: str
    pod: str
    node: str
    host: str
    small: tuple[LengthAttempt, ...] = ()
    full: tuple[LengthAttempt, ...] = ()

    @property
    def carries(self) -> bool | None:
        """Whether full packets get there, or their sender is told to send less; None where that is not known.

        Of a pod that does not answer the short ones either, nothing is known.
        """
        if any(a.answered or a.told is not None for a in self.full):
            return True
        if not self.full or any(a.problem for a in self.full) or not any(a.answered for a in self.small):
            return None
        return False

    @property
    def size(self) -> int | None:
        """How many bytes a full packet had."""
        return next((a.size for a in self.full if a.size is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What ktp says that a client like the sender sees.

    `symptoms` are those that may be seen: one, or several where it hangs on the endpoint or node that is drawn.
    `of` names them as the matrix does. `basis` is "rules", "api" or "none". `holders` are the nodes of the endpoints
    that may be drawn.
    """

    of: Symptom
    symptoms: frozenset[Symptom]
    vantage: str
    client: str
    basis: str
    reason: str = ""
    decided_by: DecidedBy | None = None
    holders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow:
    """A prediction beside what happened.

    `verdict`: "agrees", "differs", "silent" (UDP that should be answered and was not: lost, or the application says
    nothing), "unpredicted" (the evidence allows no prediction), "skipped" (nothing was tried).
    """

    observed: Observation
    predicted: Prediction
    verdict: str
    note: str = ""

    @property
    def fails(self) -> bool:
        """Whether some try did not get what it asked for."""
        o = self.observed
        if o.skipped or self.verdict == "silent":
            return False
        return o.connected < len(o.attempts) or (o.asked_http and o.answered_http < len(o.attempts))


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedRule:
    """A rule whose packet counter moved while ktp probed."""

    node: str
    backend: str
    table: str
    rule: str
    packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthTarget:
    """A healthCheckNodePort on an address of a node."""

    node: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthAnswer:
    """What a healthCheckNodePort said: its status and the endpoints that it counts, or the problem in words."""

    target: HealthTarget
    status: int | None = None
    local_endpoints: int | None = None
    proxy_healthy: bool | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessRow:
    """What three witnesses say of one service port on one node.

    `slices` are the endpoints that outside clients of this node should be led to by the EndpointSlices, `rules` those
    that the node's rules lead them to (None: not known). `local_ready` counts the ready addresses on the node, which
    is what the health check counts. `odd` names the witness that disagrees, "" where all that spoke agree.
    """

    frontend: str
    node: str
    slices: tuple[str, ...] | None
    rules: tuple[str, ...] | None
    local_ready: int | None
    health: HealthAnswer | None = None
    odd: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProbe:
    """What `ktp probe` says of one Service.

    `lengths` is None where no packets of some length were asked for. `left_out` counts the nodes that were not dialled
    because there are too many; `notes` are sentences about what could not be done.
    """

    namespace: str
    name: str
    rows: tuple[ProbeRow, ...]
    findings: tuple[Finding, ...] = ()
    reconciliation: tuple[WitnessRow, ...] = ()
    moved: tuple[MovedRule, ...] | None = None
    lengths: tuple[LengthRow, ...] | None = None
    left_out: int = 0
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"
