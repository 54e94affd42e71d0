"""Tracked connections and counters, as the kernel and conntrack(8) print them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ktp.errors import EvidenceError
from ktp.parse.passing import parse_connections, parse_counters

ENDS = "src=10.0.0.9 dst=10.0.0.3 sport=4000 dport=31053 [UNREPLIED] src=10.1.0.7 dst=10.0.0.3 sport=53 dport=5001 mark=0"
NETSTAT = "TcpExt: ListenOverflows ListenDrops\nTcpExt: {} 2\nIpExt: InNoRoutes\nIpExt: 7\n"
TRACKING = (
    "entries  clashres found insert_failed\n0000000a 00000001 00000002 000000{:02x}\n0000000a 0 0 00000001\n"
)


@pytest.mark.parametrize(
    "line",
    [
        f"udp      17 29 {ENDS} use=1",
        f"ipv4     2 udp      17 29 {ENDS} zone=0 use=2",
        f"conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.\nudp 17 29 {ENDS}\nicmp 1 3 src=1.1.1.1 "
        "dst=2.2.2.2 type=8 code=0 id=1 src=2.2.2.2 dst=1.1.1.1 type=0 code=0 id=1 use=1",
    ],
    ids=["conntrack", "proc", "with others"],
)
def test_an_entry_in_each_form(line: str) -> None:
    (entry,) = parse_connections(line)
    assert (entry.protocol, entry.original.dport) == ("udp", 31053)
    assert (entry.reply.src, entry.reply.sport, entry.reply.dport) == (ip_address("10.1.0.7"), 53, 5001)
    assert entry.is_destination_translated


def test_tcp_names_its_state_and_ipv6_its_addresses() -> None:
    ends = "src=fd00::9 dst=fd00::3 sport=4000 dport=80 src=fd00::3 dst=fd00::9 sport=80 dport=4000 [ASSURED] use=1"
    (entry,) = parse_connections(f"tcp      6 431999 ESTABLISHED {ends}")
    assert entry.original.src == ip_address("fd00::9")
    assert not entry.is_destination_translated


@pytest.mark.parametrize(
    "line", ["no entry at all", "udp 17 29 src=10.0.0.9 dst=10.0.0.3 sport=4000", "udp 17 x src=1"]
)
def test_what_is_no_entry_is_named(line: str) -> None:
    with pytest.raises(EvidenceError, match="line 2 is no tracked connection"):
        parse_connections(f"udp 17 29 {ENDS}\n{line}\n")


def test_two_readings_with_their_times() -> None:
    text = "".join(
        f"{time} 9.0\n{NETSTAT.format(drops)}{TRACKING.format(failed)}"
        for time, drops, failed in (("100.50", 3, 16), ("105.75", 9, 19))
    )
    counters = parse_counters(text)
    assert counters is not None
    assert counters.seconds == 5.25
    assert counters.moved("TcpExt.ListenOverflows") == 6
    assert counters.moved("nf_conntrack.insert_failed") == 3  # of all CPUs, in hexadecimal
    assert counters.moved("IpExt.InNoRoutes") == counters.moved("Tcp.InCsumErrors") == 0


def test_a_table_that_comes_again_begins_the_next_reading() -> None:
    counters = parse_counters(NETSTAT.format(3) + TRACKING.format(1) + NETSTAT.format(4) + TRACKING.format(1))
    assert counters is not None
    assert counters.seconds is None
    assert counters.moved("TcpExt.ListenOverflows") == 1
    one = parse_counters(NETSTAT.format(3) + TRACKING.format(1))
    assert one is None  # which tells nothing of what grows


@pytest.mark.parametrize("text", ["TcpExt: A B\nTcpExt: 1\n", "what is this\n", "entries clashres\n00 zz\n"])
def test_what_is_no_table_is_named(text: str) -> None:
    with pytest.raises(EvidenceError, match="belongs to no table of counters"):
        parse_counters(text)
