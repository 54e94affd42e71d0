"""A tracked UDP connection still goes to an address that is no endpoint any more.

# What it means
The kernel chooses an endpoint for the first packet of a connection, and remembers the choice for all that follow. Of
UDP every packet from the same address and port is of the same connection for as long as none is missing for more than
net.netfilter.nf_conntrack_udp_timeout (30 seconds; 120 once it was answered). The endpoint has gone, and a client goes
on sending. Or the connection is older than the Service's rules, and its packets are not translated at all.

# Why traffic fails
Those packets pass the rules without being asked about: they go where the entry says, where nobody takes them. Every new
client, and the same one from another port, is served. kube-proxy deletes such entries when it sees an endpoint go; it
misses those that are made in that very moment, and up to 1.31 those of a time when it did not run.

# Evidence
The entry of the connection table (`conntrack.txt`), and the endpoints that the API lists.

# Confirm by hand
    conntrack -L -p udp --orig-port-dst NODEPORT     # the second src is who is sent to
    kubectl get endpointslices -l kubernetes.io/service-name=SERVICE

# Fix
Delete the entry, as the fix says: the next packet is a new connection. Nothing else has to change. A client that opens
its socket anew does the same.

# Example
A DNS or syslog client that keeps one socket for days, and a server pod that was replaced while kube-proxy restarted.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.kubeproxy.names import host_port
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.passing import TrackedConnection
from ktp.model.trace import Symptom

_SHOWN = 3


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node and front end with an entry that leads to no endpoint of the Service."""
    for entry in case.entries:
        if entry.vantage is not Vantage.EXTERNAL or entry.port.protocol != "UDP":
            continue
        state = case.state(entry.node)
        if (
            state is None
            or not state.tracked
            or state.data_plane
            or state.ipvs is not None
            or state.ipvs_unread
        ):
            continue  # IPVS and others remember connections in tables of their own
        there = {(e.address, e.port) for e in selection_of(case, entry).listed}
        if not there:
            continue  # that is the reason, and not what is remembered
        stale = [c for c in state.tracked if _is_of(c, entry) and (c.reply.src, c.reply.sport) not in there]
        if stale:
            yield _finding(entry, stale)


def deletion(stale: TrackedConnection) -> str:
    """The command that deletes an entry, and all of the same front end that lead to the same address."""
    dialled = f"--orig-dst {stale.original.dst} --orig-port-dst {stale.original.dport}"
    return f"conntrack -D -p udp {dialled} --reply-src {stale.reply.src}"


def _is_of(connection: TrackedConnection, entry: Entry) -> bool:
    dialled = entry.asked.question.front_end
    return connection.protocol == "udp" and (connection.original.dst, connection.original.dport) == (
        dialled.ip,
        dialled.port,
    )


def _finding(entry: Entry, stale: list[TrackedConnection]) -> Finding:
    first = stale[0]
    clients = list(dict.fromkeys(host_port(str(c.original.src), c.original.sport) for c in stale))
    more = f" and {len(clients) - 1} more" if len(clients) > 1 else ""
    gone = host_port(str(first.reply.src), first.reply.sport)
    where = (
        f"to {gone}, which is no endpoint of it"
        if first.is_destination_translated
        else f"to {gone} untranslated: it is older than the Service's rules"
    )
    evidence = [Evidence(kind="conntrack", source=entry.node, text=c.text) for c in stale[:_SHOWN]]
    fact = entry.asked.fact
    reached = [
        path
        for path in (fact.paths if fact is not None else ())
        if path.symptom is Symptom.CONNECTS and path.endpoint_ip is not None
    ]
    if reached:
        evidence.append(
            counterfactual(
                f"without the entry, {entry.title} on {entry.node} leads to {reached[0].endpoint_ip}, and connects"
            )
        )
    return CHECK.finding(
        f"{entry.node} still sends packets of {clients[0]}{more} for {entry.title} {where}, as long as the client "
        "keeps its source port",
        node=entry.node,
        evidence=evidence,
        fixes=[
            Fix(
                summary=f"delete the entry on {entry.node}: the client's next packet is a new connection",
                cost="none: nobody answers on it",
                command=deletion(first),
            )
        ],
    )


CHECK = Check(code="KTP218", name="StaleEntry", severity=Severity.WARNING, page=__doc__ or "", run=run)
