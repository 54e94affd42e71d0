from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.errors import EvidenceError
from ktp.parse.sysctl import normalise_key, parse_sysctls


def test_every_way_to_write_a_line() -> None:
    text = (
        "net.ipv4.ip_forward = 1\r\n"
        "net/ipv4/conf/eth0.100/rp_filter=2\n"
        "net.ipv4.ip_local_port_range = 32768\t60999\n"
        "net.ipv4.ip_local_reserved_ports = \n"
        "\n# a comment\n"
        'sysctl: cannot stat /proc/sys/net/bridge: No such file or directory\nerror: "x" is an unknown key\n'
    )
    assert parse_sysctls(text.encode()) == {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.eth0/100.rp_filter": "2",
        "net.ipv4.ip_local_port_range": "32768\t60999",
        "net.ipv4.ip_local_reserved_ports": "",
    }


@pytest.mark.parametrize(
    "complaint",
    [
        "sysctl: cannot stat /proc/sys/net/bridge/bridge-nf-call-iptables: No such file or directory",
        'error: "net.bridge.bridge-nf-call-iptables" is an unknown key',
        "sysctl: error: 'net.bridge.bridge-nf-call-iptables' is an unknown key",
    ],
    ids=["procps", "older procps", "busybox"],
)
def test_that_there_is_no_key_for_bridged_packets_means_off(complaint: str) -> None:
    assert parse_sysctls(f"a = 1\n{complaint}\n") == {"a": "1", "net.bridge.bridge-nf-call-iptables": "0"}
    assert parse_sysctls(f"# {complaint}\n") == {}
    assert parse_sysctls("sysctl: permission denied on key 'net.bridge.bridge-nf-call-iptables'\n") == {}


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
        ("/proc/sys/net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
    ],
)
def test_spellings(written: str, key: str) -> None:
    assert normalise_key(written) == key


@given(st.lists(st.from_regex(r"[a-z0-9_.-]+", fullmatch=True), min_size=2, max_size=5))
def test_paths_and_keys_are_the_same(parts: list[str]) -> None:
    parts[0] = "net"
    path = "/".join(parts)
    key = ".".join(part.replace(".", "/") for part in parts)
    assert normalise_key(path) == normalise_key(key) == key


@pytest.mark.parametrize("text", ["net.ipv4.ip_forward 1", "= 1", "a b = 1", "<html>"])
def test_garbled_lines_are_named(text: str) -> None:
    with pytest.raises(EvidenceError, match=r"line 2 of s\.txt"):
        parse_sysctls(f"a = 1\n{text}\n", source="s.txt")
