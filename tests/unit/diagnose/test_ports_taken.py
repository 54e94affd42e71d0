"""Source ports of masqueraded connections: when none is left, and what is said where few are (KTP223)."""

from __future__ import annotations

import pytest

from ktp.dataplane.conntrack import _given_ports
from ktp.dataplane.packet import CLIENT_PORTS, RANDOM_PORTS, TCP, Conn, Packet, Port
from ktp.model.diagnosis import Severity
from ktp.model.trace import Symptom
from tests.unit.diagnose.scenarios_catalogue import FOUR_PORTS, edited, ports_taken, replaced
from tests.unit.diagnose.worlds import CLUSTER, NFT, cell, findings, recorded

OPEN, ENDED = "ESTABLISHED", "TIME_WAIT"
COUNTED = "100.00 1.00\nentries  insert_failed clashres\n0000000a 00000010 0\n105.00 1.00\nentries  insert_failed clashres\n0000000a {} 0\n"
TWENTY = ("node-b", NFT, lambda text: text.replace("-j MASQUERADE --random-fully", "-j MASQUERADE --to-ports 5000-5019"))  # fmt: skip


@pytest.mark.parametrize(
    ("ports", "states", "failed", "severity"),
    [
        (FOUR_PORTS, [OPEN] * 4, "00000010", Severity.ERROR),
        (FOUR_PORTS, [OPEN] * 3, "00000012", None),
        # A newer kernel may take the port of a connection that has ended.
        (FOUR_PORTS, [OPEN] * 3 + [ENDED], "00000010", None),
        (FOUR_PORTS, [OPEN] * 3 + [ENDED], "00000012", Severity.WARNING),
        (TWENTY, [OPEN] * 19, "00000010", None),
        (TWENTY, [OPEN] * 19, "00000012", Severity.WARNING),
        (TWENTY, [OPEN] * 18, "00000012", None),
        (TWENTY, [OPEN] * 25, "00000010", Severity.ERROR),  # five of them have other ports
    ],
)
def test_where_few_ports_are_left(ports: tuple[str, str, object], states: list[str], failed: str, severity: Severity | None) -> None:  # fmt: skip
    edits = (
        ("node-b", "conntrack.txt", ports_taken(states)),
        ("node-b", "netstat.txt", replaced(COUNTED.format(failed))),
    )
    said = edited(CLUSTER, ports, *edits, base=recorded)().diagnosis()  # type: ignore[arg-type]
    assert [f.severity for f in findings(said, "KTP223")] == ([] if severity is None else [severity])
    expected = Symptom.INTERMITTENT if severity is Severity.ERROR else Symptom.CONNECTS
    if ENDED in states:
        expected = Symptom.UNKNOWN
    assert cell(said, "node-b").symptom is expected
    assert cell(said, "node-a").symptom is Symptom.CONNECTS


@pytest.mark.parametrize("other", ["endpoint", "udp", "address", "port"])
def test_ports_towards_others_do_not_count(other: str) -> None:
    """A port is taken for one endpoint and port, one address and one protocol alone."""
    text = ports_taken([OPEN] * 4)("")
    changed = {
        "endpoint": text.replace("src=10.244.1.12", "src=10.244.1.13"),
        "udp": text.replace("tcp      6 100 ESTABLISHED", "udp      17 100"),
        "address": text.replace("dst=10.0.0.10 sport=80", "dst=10.0.0.110 sport=80"),
        "port": text.replace("sport=80 ", "sport=81 "),
    }[other]
    assert changed != text
    said = edited(
        CLUSTER, FOUR_PORTS, ("node-b", "conntrack.txt", replaced(changed)), base=recorded
    )().diagnosis()
    assert not findings(said, "KTP223")
    assert cell(said, "node-b").symptom is Symptom.CONNECTS


@pytest.mark.parametrize(
    ("had", "given", "expected"),
    [
        (CLIENT_PORTS, CLIENT_PORTS, (1024, 65535)), (CLIENT_PORTS, RANDOM_PORTS, (1024, 65535)),
        (CLIENT_PORTS, (5000, 5003), (5000, 5003)), (CLIENT_PORTS, 5000, (5000, 5000)), (40000, 40000, (1024, 65535)),
        (111, 111, (1, 511)), (511, 511, (1, 511)), (512, 512, (600, 1023)), (1023, 1023, (600, 1023)),
    ],
)  # fmt: skip
def test_the_ports_that_nat_may_give(had: Port, given: Port, expected: tuple[int, int]) -> None:
    """nf_nat_l4proto_unique_tuple."""
    conn = Conn("node-a", Packet(4, TCP, 1, 2, had, 80))
    conn.sport = given
    assert _given_ports(conn) == expected
