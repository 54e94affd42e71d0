"""The reports of many nodes put together: where each front end is not well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from ktp.model.capture import EvidenceGap
from ktp.model.fleet import Fleet, FleetRow, NodeReport
from ktp.model.node_check import CheckedFrontEnd, FrontEndState

STALE = 900.0  # seconds: fifteen looks, and several bookmarks of the API server
_LOOK = "see the log of that pod: it cannot read its node, or does not hear of the API server"


def merge_reports(
    reports: Iterable[NodeReport],
    gaps: Iterable[EvidenceGap],
    *,
    services: Collection[str] = (),
    namespace: str | None = None,
    source: str = "",
) -> Fleet:
    """One fleet; of `services` ("namespace/name") or one `namespace` alone, where given. Worst rows first.

    A report that is too old to say anything of now is a gap.
    """
    gaps = list(gaps)
    told: list[str] = []
    counts: Counter[FrontEndState] = Counter()
    found: dict[tuple[str, str], list[tuple[str, CheckedFrontEnd]]] = {}
    messages: dict[tuple[str, str], str] = {}
    oldest = 0.0
    for report in reports:
        if report.age > STALE:
            message = f"what ktp on {report.node} says is {report.age:.0f} s old"
            gaps.append(EvidenceGap("node-report", report.node, message, remedy=_LOOK))
            continue
        told.append(report.node)
        counts.update(report.counts)
        oldest = max(oldest, report.age)
        for (key, code), message in report.messages.items():
            messages.setdefault((key, code), message)
        for each in report.not_well:
            if (not services or each.key in services) and namespace in (None, each.namespace):
                found.setdefault((each.key, each.title), []).append((report.node, each))
    rows = [_row(members, messages) for members in found.values()]
    return Fleet(
        told=tuple(told),
        counts={state: counts[state] for state in FrontEndState},
        rows=tuple(sorted(rows, key=_badness)),
        gaps=tuple(gaps),
        oldest=oldest,
        services=tuple(services),
        namespace=namespace,
        source=source,
    )


def _row(members: list[tuple[str, CheckedFrontEnd]], messages: dict[tuple[str, str], str]) -> FleetRow:
    first = members[0][1]
    nodes: dict[FrontEndState, list[str]] = {}
    for node, each in members:
        nodes.setdefault(each.state, []).append(node)
    causes = Counter(each.cause for _, each in members if each.cause is not None)
    main = causes.most_common(1)[0][0] if causes else ""
    return FleetRow(
        namespace=first.namespace,
        name=first.name,
        title=first.title,
        nodes={state: tuple(names) for state, names in nodes.items()},
        causes=dict(causes.most_common()),
        message=messages.get((first.key, main), ""),
    )


def _badness(row: FleetRow) -> tuple[int, int, int, str, str]:
    return (
        -row.count(FrontEndState.FAILS),
        -row.count(FrontEndState.DEVIATES),
        -row.count(FrontEndState.UNKNOWN),
        row.key,
        row.title,
    )
