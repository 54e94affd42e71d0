"""The program behind the Service takes no connections: as many as its socket may hold wait for it already.

# What it means
A TCP socket that listens holds connections until the program accepts them, up to the backlog that the program asked for
and net.core.somaxconn allows. More wait there than that.

# Why traffic fails
The kernel drops the SYN of every further client, without an answer: their connections time out. Those that wait are
established to their clients, and get no answer either, until the program accepts them.

# Evidence
Recv-Q and Send-Q of the socket in the endpoint's network namespace (of a host-network pod the node's own), when it was
read: connections that wait, and how many may. It may be over since.

# Confirm by hand
    ss -lnt                            # in the pod's network namespace, or on the node: Recv-Q above Send-Q
    nstat -az TcpExtListenOverflows    # there: grows while clients try

# Fix
See why the program does not accept: it hangs, or has too few workers. A larger backlog only helps against bursts.

# Example
An application server whose workers all wait for a database that does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import queues_empty
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.passing_common import growing
from ktp.kubeproxy.names import host_port
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import ListeningSocket
from ktp.model.record import dataclass
from ktp.model.trace import Disposition, Header, StepKind


@dataclass(slots=True)
class _Full:
    """Sockets of one port that are full, by node and pod ("" for the node's own network), and the cells they stop."""

    sockets: dict[tuple[str, str], ListeningSocket] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    cells: dict[Entry, None] = field(default_factory=dict)


def run(case: Case) -> Iterable[Finding]:
    """Fires for each port on which a full accept queue stops a cell."""
    found: dict[int, _Full] = {}
    for entry in case.entries:
        for path in entry.paths:
            decided = path.decided_by
            if (
                decided is None
                or decided.kind is not StepKind.SOCKET
                or path.disposition is not Disposition.DROPPED
            ):
                continue
            # Where the packet is when it is dropped, also where nothing has translated it on its way.
            last = next((h.left for h in reversed(path.hops) if h.direction == "request"), None)
            state = case.state(decided.node)
            inside = state.pods.get(decided.pod) if state is not None and decided.pod else state
            if last is None or inside is None:
                continue
            full_ones = (
                s
                for s in inside.sockets or ()
                if s.is_full
                and s.protocol == "tcp"
                and s.port == last.dport
                and str(s.ip or last.dst) == last.dst
            )
            socket = next(full_ones, None)
            if socket is None:
                continue
            full = found.setdefault(last.dport, _Full())
            full.sockets[decided.node, decided.pod] = socket
            full.names[decided.node, decided.pod] = decided.pod or _host_network_pod(case, decided.node, last)
            full.cells[entry] = None
    for port, full in found.items():
        yield _finding(case, port, full)


def _host_network_pod(case: Case, node: str, to: Header) -> str:
    """Whose socket it is in a node's own network: the Service's pod with that address and port, where one has them."""
    names = (
        f"{e.target_namespace}/{e.target_name}"
        for s in case.examiner.slices_of(case.service)
        if any(p.port == to.dport for p in s.ports)
        for e in s.endpoints
        if to.dst in e.addresses and e.node_name == node and e.target_name
    )
    pod = next(iter(names), None)
    return f"{pod} (in the network of {node})" if pod is not None else f"a process of {node}"


def _finding(case: Case, port: int, full: _Full) -> Finding:
    cells = list(full.cells)
    who = listed(full.names.values())
    nodes = sorted({node for node, _ in full.sockets})
    taken = case.mended(
        cells,
        f"accept queues of {port} empty",
        partial(queues_empty, case.snapshot, tuple(full.sockets), port),
    )
    first = next(iter(full.sockets.values()))
    evidence = [
        Evidence(
            "socket",
            f"{node} {pod}".rstrip(),
            f"{host_port(str(s.ip), s.port) if s.ip is not None else f'*:{s.port}'}"
            f"{f' ({s.process})' if s.process else ''}: Recv-Q {s.waiting}, Send-Q {s.backlog}",
        )
        for (node, pod), s in full.sockets.items()
    ][:4]
    # A pod's counters are of its own network namespace, and were not read.
    for node in [node for node, pod in full.sockets if not pod]:
        evidence += growing(case.state(node), "TcpExt.ListenOverflows")
    evidence += mending("with its queue empty", taken)
    return CHECK.finding(
        f"{who} accepts no connections on port {port}: {first.waiting} wait, {first.backlog} may, and the kernel "
        "drops new ones",
        node=nodes[0],
        nodes=nodes,
        evidence=evidence,
        fix=Fix(
            f"see why {who} does not accept: its log, its workers, what it waits for",
            cures=taken.cures(cells),
            outcome="once it accepts again",
        ),
        cells=cells,
    )


CHECK = Check("KTP215", "AcceptQueueFull", Severity.ERROR, run)
