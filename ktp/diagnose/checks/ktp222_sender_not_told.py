"""A rule stops what would tell a sender that its packets are too long: it connects, then hangs.

# What it means
The packets that open a connection are short. Full segments are longer than a device on the way takes, most often a
tunnel's, whose MTU is smaller than the pods'. The node there sends an ICMP error, "fragmentation needed" (IPv6: "packet
too big"), from which the sender learns to send less. A rule drops that error.

# Why traffic fails
TCP sets "don't fragment": what is too long is dropped, and sent again as long as it was, for nobody says otherwise (a
"PMTU black hole"). Requests and answers of a few hundred bytes get through; a download stops after the first bytes.

# Evidence
MTUs of devices and routes (`ip-addr.json`, `ip-route.json`), and the rules that such an error meets on its way: OUTPUT
of the node that sends it, FORWARD of the next, the pod's own. Rules that lower the segment size (TCPMSS) are taken into
account. Of an outside client an MTU of 1500 is supposed, and that the network before the nodes lets the error through.
In JSON a cell has the numbers (`hang`).

A sender whose route has a locked MTU (`mtu lock`) sends IPv4 without "don't fragment", so that its packets are cut and
nothing is lost. `ip -j route` leaves the lock out, `ip route` does not: where it was not read, and the sender's route
has an MTU, this is a warning.

# Confirm by hand
    ip link show                                        # mtu of the pods' devices and of the tunnel
    nstat -az IcmpOutDestUnreachs                       # on the node: grows while it hangs
    tcpdump -ni any 'icmp[0] == 3 and icmp[1] == 4'     # the error: does it leave, does it come to the sender?

# Fix
Let ICMP errors pass, as every firewall should: `-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT` does. Or give the
pods the tunnel's MTU (the network plugin's setting), or lower the segment size:
`iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu`.

# Example
A hardened node that drops all ICMP in OUTPUT, and pods of MTU 1500 before a VXLAN of 1450.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import policy_accepts
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.rule_common import rule_of_step
from ktp.diagnose.examine import Examiner
from ktp.diagnose.sizes import Untold, hang_of, untold
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Path, StepKind

_SENT = {"request": "what clients send", "reply": "answers"}


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node and rule that keeps from an end of a connecting cell that its packets are too long."""
    found: dict[tuple[str, str, str], list[tuple[Untold, Entry, Path]]] = {}
    for entry in case.entries:
        fact = entry.asked.fact
        if entry.port.protocol != "TCP" or fact is None:
            continue
        for path, lost in _untold(case.examiner, entry, fact.paths):
            key = lost.node, lost.stopped_by.place, lost.stopped_by.rule
            found.setdefault(key, []).append((lost, entry, path))
            case.hangs.setdefault(entry.key, hang_of(lost))
    for all_lost in found.values():
        yield _finding(case, all_lost)


def _untold(examiner: Examiner, entry: Entry, paths: Iterable[Path]) -> Iterable[tuple[Path, Untold]]:
    outside = entry.vantage is Vantage.EXTERNAL
    return untold(examiner.walker, examiner.snapshot, entry.asked.question.flow, paths, from_outside=outside)


def _finding(case: Case, all_lost: list[tuple[Untold, Entry, Path]]) -> Finding:
    lost, entry, path = min(all_lost, key=lambda each: each[0].lock_unread)
    by = lost.stopped_by
    long = f"a full segment has {lost.segment} bytes, {lost.device} of {lost.node} takes {lost.limit}"
    evidence = []
    rule = rule_of_step(by.node, by.step) if by.step is not None else None
    if rule is not None:
        evidence.append(rule.evidence())
    else:
        evidence.append(Evidence(by.kind.value, f"{by.place} {by.table}".strip(), by.rule))
    without: Callable[[], Snapshot] | None = None
    if not by.pod and rule is not None:
        without = partial(rule.removed, case.snapshot)
    elif not by.pod and by.kind is StepKind.POLICY:
        without = partial(policy_accepts, case.snapshot, by.node, by.table, by.chain)
    if without is not None:
        world = case.world(f"{lost.node} may send errors: {by.rule}", without)
        if world is not None and not any(_untold(world, entry, (path,))):
            evidence.append(counterfactual("without it the sender is told, and sends less"))
    verb = "may then hang" if lost.lock_unread else "then hangs"
    unless = (
        ", unless the sender's route has `mtu lock`, of which `ip -j route` does not tell"
        if lost.lock_unread
        else ""
    )
    return CHECK.finding(
        f"{entry.title} on {entry.node} connects, and {verb}: {long}, and the ICMP error that says so is stopped in "
        f"{by.place}: {_SENT[lost.direction]} of that length are lost{unless}",
        node=lost.node,
        nodes=list(dict.fromkeys((lost.node, by.node))),
        evidence=evidence,
        fix=Fix(
            f"let ICMP errors pass there (packets RELATED to a connection), or give the pods an MTU of "
            f"{lost.limit}"
        ),
        cells=dict.fromkeys(e for _, e, _ in all_lost),
        severity=Severity.WARNING if lost.lock_unread else None,
    )


CHECK = Check("KTP222", "SenderNotTold", Severity.ERROR, run)
