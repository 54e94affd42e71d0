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
The entry of the connection table (`conntrack.txt`), the endpoints that the API lists, and what becomes of the client's
next packet with the entry. Where a pod answers there all the same, it is but good to know.

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
from dataclasses import replace

from ktp.dataplane.answer import answer_flow
from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.names import host_port
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.passing import TrackedConnection
from ktp.model.trace import FlowAnswer, Symptom

_SHOWN = 3


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node and front end with an entry that leads to no endpoint of the Service."""
    asked: dict[tuple[str, str], Entry] = {}
    for entry in case.entries:
        if entry.port.protocol == "UDP":
            asked.setdefault((entry.node, entry.title), entry)
    for entry in asked.values():
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
        stale = [
            c for c in state.tracked if _is_of(case, c, entry) and (c.reply.src, c.reply.sport) not in there
        ]
        if stale:
            yield _finding(case, entry, stale)


def deletion(stale: TrackedConnection) -> str:
    """The command that deletes an entry, and all of the same front end that lead to the same address."""
    dialled = f"--orig-dst {stale.original.dst} --orig-port-dst {stale.original.dport}"
    return f"conntrack -D -p udp {dialled} --reply-src {stale.reply.src}"


def _is_of(case: Case, connection: TrackedConnection, entry: Entry) -> bool:
    front_end, dialled = entry.asked.question.front_end, connection.original
    if connection.protocol != "udp" or dialled.dport != front_end.port:
        return False
    if front_end.kind is not FrontEndKind.NODE_PORT or dialled.dst == front_end.ip:
        return dialled.dst == front_end.ip
    # kube-proxy takes a node port on every address of the node, if not told which.
    state = case.state(entry.node)
    own = {a.ip for i in (state.interfaces if state is not None else None) or () for a in i.addresses}
    return dialled.dst.version == front_end.ip_version and dialled.dst in own


def _walked(case: Case, entry: Entry, connection: TrackedConnection) -> FlowAnswer:
    """The client's next packet, of which the entry decides."""
    source, dialled = connection.original.src, connection.original
    topology = case.examiner.walker.topology
    key = (source.version, int(source))
    pod = topology.attached.get(key)
    home = pod.node if pod is not None else topology.node_addresses.get(key)
    flow = replace(
        entry.asked.question.flow, dst=str(dialled.dst), port=dialled.dport, src=str(source), from_node=home,
        via=None if home is not None else entry.node, source_port=dialled.sport,
    )  # fmt: skip
    return answer_flow(case.examiner.walker, flow)


def _finding(case: Case, entry: Entry, stale: list[TrackedConnection]) -> Finding:
    # Those that get no answer first: an address that is no endpoint may be a pod's that answers all the same.
    walked = [(c, _walked(case, entry, c)) for c in _one_of_each(stale)]
    walked.sort(key=lambda pair: pair[1].symptom is Symptom.CONNECTS)
    first, next_packet = walked[0]
    answers = next_packet.symptom is Symptom.CONNECTS
    clients = list(dict.fromkeys(host_port(str(c.original.src), c.original.sport) for c in [first, *stale]))
    more = f" and {len(clients) - 1} more" if len(clients) > 1 else ""
    gone = host_port(str(first.reply.src), first.reply.sport)
    where = (
        f"to {gone}, which is no endpoint of it"
        if first.is_destination_translated
        else f"to {gone} untranslated: it is older than the Service's rules"
    )
    shown = list(dict.fromkeys([c for c, _ in walked] + stale))[:_SHOWN]
    evidence = [Evidence("conntrack", entry.node, c.text) for c in shown]
    if next_packet.symptom is not Symptom.UNKNOWN:
        path = next_packet.paths[0] if next_packet.paths else None
        said = (
            f"it gets to {path.endpoint_name or gone}" if answers and path is not None else next_packet.reason
        )
        evidence.append(counterfactual(f"with the entry, the next packet of {clients[0]}: {said}"))
    reached = [
        path for path in entry.paths if path.symptom is Symptom.CONNECTS and path.endpoint_ip is not None
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
                f"delete the entry on {entry.node}: the client's next packet is a new connection",
                cost="that client meets another pod" if answer.symptom is Symptom.CONNECTS else "none",
                command=deletion(c),
            )
            for c, answer in walked[:_SHOWN]
        ],
        severity=Severity.INFO if answers else None,
    )


def _one_of_each(stale: Iterable[TrackedConnection]) -> list[TrackedConnection]:
    """An entry for each command that deletes."""
    found: dict[str, TrackedConnection] = {}
    for connection in stale:
        found.setdefault(deletion(connection), connection)
    return list(found.values())


CHECK = Check("KTP218", "StaleEntry", Severity.WARNING, run)
