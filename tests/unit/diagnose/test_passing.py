"""Entries that outlived their endpoint (KTP218): whose they are, what becomes of the client's next packet, the cure."""

from __future__ import annotations

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.topology import topology_of
from ktp.model.trace import Flow, Symptom
from tests.unit.diagnose.scenarios_catalogue import edited, replaced
from tests.unit.diagnose.worlds import findings, recorded

UDP = "edge/udp-local"  # node port 30011, cluster IP 172.16.48.251:53, one pod 10.244.2.29:5353 on node-b
CLIENT, NODE, LIVE, GONE, OTHER_POD = "10.0.0.100", "10.0.0.10", "10.244.2.29", "10.244.2.99", "10.244.2.14"
UNANSWERED = "[UNREPLIED] "


def entry(
    to: str, dialled: str = f"{NODE}:30011", client: str = CLIENT, port: int = 5353, flag: str = ""
) -> str:
    ip, _, number = dialled.partition(":")
    return (
        f"udp      17 22 src={client} dst={ip} sport=40053 dport={number} {flag}"
        f"src={to} dst={client} sport={port} dport=40053 mark=0 use=1\n"
    )


@pytest.mark.parametrize(
    ("lines", "severity", "evidence", "commands"),
    [
        ([entry(GONE, flag=UNANSWERED)], "warning", "nobody that ktp knows answers there", 1),
        ([entry(NODE, port=30011, flag=UNANSWERED)], "warning", f"nothing on node-b listens on {NODE}:30011/udp", 1),
        ([entry(OTHER_POD)], "info", "it gets to test/nginx-0", 1),
        ([entry(GONE, "172.16.48.251:53", OTHER_POD)], "warning", "nobody that ktp knows answers there", 1),
        # Another address of the node is a front end of it, too.
        ([entry(GONE, "10.0.0.110:30011")], "warning", "nobody that ktp knows answers there", 1),
        ([entry(OTHER_POD), entry(GONE)], "warning", "nobody that ktp knows answers there", 2),
        ([entry(LIVE)], None, "", 0),
        ([entry(GONE, "10.0.0.99:30011")], None, "", 0),  # forwarded to somebody else
        ([entry(GONE, f"{NODE}:30012")], None, "", 0),
        ([entry(GONE).replace("udp      17 22", "tcp      6 22 TIME_WAIT")], None, "", 0),
        ([entry(GONE).replace("udp      17 22", "tcp      6 99 ESTABLISHED")], None, "", 0),
    ],
)  # fmt: skip
def test_where_the_next_packet_goes(
    lines: list[str], severity: str | None, evidence: str, commands: int
) -> None:
    said = edited(UDP, ("node-b", "conntrack.txt", replaced("".join(lines))), base=recorded)().diagnosis()
    found = findings(said, "KTP218")
    assert [f.severity.value for f in found] == ([severity] if severity else [])
    for finding in found:
        assert any(evidence in each.text for each in finding.evidence)
        assert len({fix.command for fix in finding.fixes}) == commands


@pytest.mark.parametrize(
    ("source_port", "expected"),
    [(40053, Symptom.TIMES_OUT), (40054, Symptom.CONNECTS), (None, Symptom.CONNECTS)],
    ids=["tracked", "another port", "a new connection"],
)
def test_an_entry_decides_of_its_own_connection_alone(source_port: int | None, expected: Symptom) -> None:
    snapshot = recorded({("node-b", "conntrack.txt"): replaced(entry(GONE))})
    flow = Flow(dst=NODE, port=30011, protocol="udp", src=CLIENT, via="node-b", source_port=source_port)
    assert answer_flow(Walker(topology_of(snapshot)), flow).symptom is expected


def test_an_answer_by_an_entry_is_translated_back() -> None:
    snapshot = recorded({("node-b", "conntrack.txt"): replaced(entry(LIVE))})
    flow = Flow(dst=NODE, port=30011, protocol="udp", src=CLIENT, via="node-b", source_port=40053)
    (path,) = answer_flow(Walker(topology_of(snapshot)), flow).paths
    assert (path.symptom, path.endpoint_ip, path.source_seen) == (Symptom.CONNECTS, LIVE, CLIENT)
