"""All source ports that a node may give to masqueraded connections towards one endpoint are taken.

# What it means
A connection that is masqueraded gets an address of the node and a source port that no other connection has towards the
same endpoint and port. There are 64,512 of them (1024 to 65535) for each address of the node and each endpoint, or as
many as the rule's --to-ports names.

# Why traffic fails
The kernel drops the first packet of a connection for which it finds none: the client's attempt times out, while open
connections go on, and those to other endpoints open. It does not look at all of a large range: from some 98 % on it
misses the last ones now and then.

# Evidence
The connections that the node tracks (`conntrack.txt`): those of UDP are read of each asked port, those of TCP with
`ktp diagnose --counters SECONDS`. It may be over since. TCP connections that have ended hold their port for
nf_conntrack_tcp_timeout_time_wait (120 seconds); newer kernels give such a port again, if sequence numbers allow it.
Where all are taken, but some so, what becomes of a new connection is not known; there, and where more than nine of ten
are taken, it is told only if insert_failed grew meanwhile, as a warning.

# Confirm by hand
    conntrack -L -p tcp --src-nat --reply-src POD-IP --reply-dst NODE-IP | wc -l
    conntrack -S                                  # insert_failed grows

# Fix
See who opens so many connections, and let clients keep theirs open and use them again. externalTrafficPolicy: Local
masquerades nothing from outside; more endpoints have as many ports each.

# Example
A load test through one node against a Service with a single pod, each request a connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import connections_ended
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.passing_common import growing, growth
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.effect import PortsTaken
from ktp.model.passing import TrackedConnection
from ktp.model.record import dataclass
from ktp.model.trace import Path

_FAILED = "nf_conntrack.insert_failed"
_SHOWN = 2


@dataclass(slots=True)
class _Taken:
    effect: PortsTaken
    cells: dict[Entry, None] = field(default_factory=dict)


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node, address of it and endpoint of which no port is left, or few while entries fail."""
    found: dict[tuple[str, str, str, str, int | None], _Taken] = {}
    for entry in case.entries:
        fact = entry.asked.fact
        for path in fact.paths if fact is not None else ():
            for node, effect in _taken(path):
                if effect.may_be_left and not growth(case.state(node), (_FAILED,)):
                    continue
                key = node, effect.protocol, effect.source, effect.to.ip, effect.to.port
                found.setdefault(key, _Taken(effect)).cells.setdefault(entry)
    for (node, *_), taken in found.items():
        yield _finding(case, node, taken)


def _taken(path: Path) -> Iterable[tuple[str, PortsTaken]]:
    return (
        (hop.node, effect)
        for hop in path.hops
        for step in hop.steps
        for effect in step.effects
        if isinstance(effect, PortsTaken)
    )


def _finding(case: Case, node: str, taken: _Taken) -> Finding:
    effect, cells = taken.effect, list(taken.cells)
    state = case.state(node)
    mine = [c for c in (state.tracked if state is not None else None) or () if _is_of(c, effect)]
    evidence = [Evidence("conntrack", node, c.text) for c in mine[:_SHOWN]]
    evidence += growing(state, _FAILED)
    summary = f"see who opens so many connections through {node}, and let clients use theirs again"
    if effect.may_be_left:
        fate = "new connections may find none, and are dropped then"
        fixes = [Fix(summary)]
    else:
        fate = "a new connection is dropped"
        after = case.mended(
            cells,
            f"connections of {node} ended",
            partial(connections_ended, case.snapshot, (node,)),
            changed=node,
        )
        if after:
            evidence.append(
                counterfactual(f"once they have ended, {after[0].title} on {after[0].node} connects")
            )
        fixes = [Fix(summary, cures=after.cures(cells), outcome="once they have ended")]
    return CHECK.finding(
        f"{node}: {effect.words} ({effect.protocol}): {fate}",
        node=node,
        evidence=evidence,
        fixes=fixes,
        cells=cells,
        severity=Severity.WARNING if effect.may_be_left else None,
    )


def _is_of(connection: TrackedConnection, effect: PortsTaken) -> bool:
    back = connection.reply
    return (connection.protocol, str(back.dst), str(back.src), back.sport) == (
        effect.protocol,
        effect.source,
        effect.to.ip,
        effect.to.port,
    )


CHECK = Check("KTP223", "PortsUsedUp", Severity.ERROR, run)
