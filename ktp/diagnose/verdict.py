"""The first line of a report: where clients outside get through, where not, and for which cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import listed
from ktp.diagnose.questions import FAR_CLIENTS
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.model.cluster import networks_of
from ktp.model.diagnosis import Finding, HeadlineGroup, Severity, is_designed
from ktp.model.host import IPAddress
from ktp.model.trace import Symptom

_MOST_FRONT_ENDS = 3
_MOST_NAMED = 8
# A second client from far away, for where the first is one of those let in.
_OTHER_CLIENTS = {4: ip_address("198.51.100.77"), 6: ip_address("2001:db8:ffff::77")}
# What clients get, as it is and as it should be.
_VERBS = {
    Symptom.TIMES_OUT: ("times out", "time out"),
    Symptom.REFUSED: ("is refused", "be refused"),
    Symptom.UNREACHABLE: ("is unreachable", "be unreachable"),
    Symptom.INTERMITTENT: ("fails now and then", "fail now and then"),
}
_CAUSES = {
    "KTP501": "the policy is Local and no usable endpoint runs there",
    "KTP101": "no usable endpoint anywhere",
    "KTP102": "pods exist, none is ready",
    "KTP103": "the selector matches no pod",
    "KTP401": "the node's rules disagree with the API",
    "KTP901": "no cause that ktp knows by name",
}


def headline_of(case: Case, causes: dict[tuple[str, str, str], str]) -> list[HeadlineGroup]:
    """The failing cells of outside clients, by front end, symptom and cause."""
    nodes: dict[tuple[str, Symptom, str], list[str]] = {}
    for e in case.whole:
        if e.fails and e.is_external and e.vantage is Vantage.EXTERNAL:
            nodes.setdefault((e.title, e.cell.symptom, causes[e.key]), []).append(e.node)
    return [
        HeadlineGroup(
            frontend=title, nodes=tuple(names), vantage=Vantage.EXTERNAL.value, symptom=symptom, cause=cause
        )
        for (title, symptom, cause), names in nodes.items()
    ]


def verdict_of(case: Case, findings: list[Finding], headline: list[HeadlineGroup], ignored: str) -> str:
    """The report in one sentence. `ignored` says why kube-proxy serves no front end of the Service, "" if it does."""
    service = case.service
    if ignored:
        return f"{service.key} has no front end for kube-proxy: {ignored}"
    external = [e for e in case.whole if e.is_external and e.vantage is Vantage.EXTERNAL]
    if not external:
        return _inside_alone(case)
    designed = {
        (group.frontend, node) for group in headline if is_designed(findings, group) for node in group.nodes
    }
    by_title: dict[str, list[Entry]] = {}
    for e in external:
        by_title.setdefault(e.title, []).append(e)
    alike: dict[str, list[str]] = {}
    for title, entries in by_title.items():
        alike.setdefault(_title_verdict(case, title, entries, designed), []).append(title)
    parts = []
    for of_one, titles in list(alike.items())[:_MOST_FRONT_ENDS]:
        words = of_one
        if len(titles) > 1:
            words = _title_verdict(case, titles[0], by_title[titles[0]], designed, several=True)
        parts.append(listed(titles) + words)
    left = sum(len(titles) for titles in list(alike.values())[_MOST_FRONT_ENDS:])
    more = f"; and {left} more front end{'s' * (left > 1)}" if left else ""
    said = "; ".join(parts)
    planes: dict[str, list[str]] = {}
    for node in case.every_node:
        state = case.state(node)
        if state is not None and state.data_plane_unread and (name := state.data_plane):
            planes.setdefault(name, []).append(node)
    if planes:
        who = "; ".join(f"{name} serves Services on {listed(nodes)}" for name, nodes in planes.items())
        return f"{said}. KTP403 {who}, and its tables were not read"
    faults = [g for g in headline if not designed.issuperset((g.frontend, node) for node in g.nodes)]
    if faults:
        return said + more + _causes_words(case, findings, faults)
    # An error may concern other clients, or the load balancer's health check, while outside clients get through.
    main = next((f for f in findings if f.severity is Severity.ERROR), None)
    return said + more + (f". But: {main.code} {_cause_words(main)}" if main is not None else "")


def _inside_alone(case: Case) -> str:
    """Of a Service that nothing outside can dial, or of which nothing is known."""
    service = case.service
    if not case.entries and case.snapshot.cluster.nodes is None:
        return f"where {service.key} answers is not known: the nodes were not read"
    if not case.entries:
        return f"{service.key} has no front end on any node that ktp knows"
    inside = any(e.fails for e in case.entries)
    state = "does not answer everywhere inside" if inside else "answers inside the cluster"
    return (
        f"{service.key} is of type {service.type} and has no external front end: nothing outside can dial it; "
        f"its cluster IP {state}"
    )


def _title_verdict(
    case: Case, title: str, entries: list[Entry], designed: set[tuple[str, str]], *, several: bool = False
) -> str:
    """What becomes of outside clients of a front end, as the rest of a sentence that it (or `several`) begins."""
    good = [e for e in entries if e.cell.symptom is Symptom.CONNECTS and not e.is_swallowed]
    taken = [e.node for e in entries if e.is_swallowed]
    silent = [e.node for e in entries if (title, e.node) in designed]
    bad = [e for e in entries if e.fails and not e.is_swallowed and e.node not in silent]
    unknown = [e.node for e in entries if e.cell.symptom is Symptom.UNKNOWN]
    whom, others = _clients(case, entries[0], good)
    if len(unknown) == len(entries):
        return f": what {whom} get is not known"
    should = all(e.cell.basis == "api" for e in entries if e.node not in unknown)
    bare = should or several  # the verbs without their -s
    said = []
    if good:
        kept = {e.cell.source_kept for e in good}
        source = {True: ", the client's address is kept", False: ", the client's address is rewritten"}
        how = (
            source.get(next(iter(kept)) or False, "")
            if len(good) == len(entries) and len(kept - {None}) == 1
            else ""
        )
        said.append(f"{'answer' if bare else 'answers'} {whom} on {_where(good, entries)}{how}{others}")
    by_symptom: dict[Symptom, list[Entry]] = {}
    for e in bad:
        by_symptom.setdefault(e.cell.symptom, []).append(e)
    for symptom, those in by_symptom.items():
        is_now, should_be = _VERBS.get(symptom, ("fails", "fail"))
        toward = "" if good or whom == _OUTSIDE else f" for {whom}"
        said.append(f"{should_be if bare else is_now}{toward} on {_where(those, entries)}")
    if silent:
        be = "be" if should else "are" if several else "is"
        said.append(f"{be} silent by design on {_some(silent, len(entries))} (KTP501)")
    if taken:
        said.append(
            f"{'end' if bare else 'ends'} at a socket of the node itself on {_some(taken, len(entries))}"
        )
    words = f" {'should ' if should else ''}{', '.join(said)}"
    return words + (f", is not known on {_some(unknown, len(entries))}" if unknown else "")


_OUTSIDE = "outside clients"


def _clients(case: Case, first: Entry, good: list[Entry]) -> tuple[str, str]:
    """Who is meant by a client outside, and what becomes of all others."""
    wanted = case.examiner.client
    if wanted is not None and wanted.version == first.front_end.ip_version:
        return f"the client {wanted}", ""
    ranges = case.service.load_balancer_source_ranges
    if first.front_end.kind is not FrontEndKind.LOAD_BALANCER or not ranges:
        return _OUTSIDE, ""
    allowed = networks_of(ranges)
    strangers = _strangers(first.front_end.ip_version)
    other = next((ip for ip in strangers if not any(ip in net for net in allowed)), None)
    if other is None or not good:
        return _OUTSIDE if other is None else f"clients in {listed(ranges)}", ""
    question = good[0].asked.question
    question = replace(
        question,
        client=Client(vantage=Vantage.EXTERNAL, ip=other),
        flow=replace(question.flow, src=str(other)),
        client_name=f"a client at {other}",
    )
    cell = case.examiner.cell(case.examiner.ask(case.service, good[0].port, question))
    verb = _VERBS.get(cell.symptom)
    if verb is None:
        return _OUTSIDE, ""
    return f"clients in {listed(ranges)}", f", every other client {verb[0]} (loadBalancerSourceRanges)"


def _strangers(version: int) -> tuple[IPAddress, IPAddress]:
    return FAR_CLIENTS[version], _OTHER_CLIENTS[version]


def _where(those: list[Entry], entries: list[Entry]) -> str:
    every = len(those) == len(entries) > 1
    return f"all {len(entries)} nodes" if every else _some([e.node for e in those], len(entries))


def _some(names: list[str], of: int) -> str:
    if len(names) > _MOST_NAMED:
        return f"{len(names)} of {of} nodes"
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more nodes"
    return ", ".join(names)


# -- causes


def _cause_of(findings: list[Finding], groups: Iterable[HeadlineGroup]) -> Finding | None:
    """The finding that explains cells of these groups, which have one cause."""
    cells = {(g.frontend, node, g.vantage) for g in groups for node in g.nodes}
    codes = {g.cause for g in groups}
    return next((f for f in findings if f.code in codes and not cells.isdisjoint(f.cells)), None)


def _causes_words(case: Case, findings: list[Finding], headline: list[HeadlineGroup]) -> str:
    """ ". Cause: …", with the nodes of each where there are several."""
    by_code: dict[str, list[HeadlineGroup]] = {}
    for group in headline:
        by_code.setdefault(group.cause, []).append(group)
    said: list[str] = []
    for code, groups in by_code.items():
        finding = _cause_of(findings, groups)
        words = f"{code} {_cause_words(finding)}" if finding is not None else code
        if len(by_code) > 1:
            nodes = list(dict.fromkeys(n for g in groups for n in g.nodes))
            words = f"{_some(nodes, len(case.every_node))}: {words}"
        said.append(words)
    return (". Causes: " if len(said) > 1 else ". Cause: ") + "; ".join(said)


def _cause_words(finding: Finding) -> str:
    return _CAUSES.get(finding.code, finding.message)
