"""Data types of nft: what the constants beside an expression are, and how nft prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

PAYLOAD_TYPES: Mapping[tuple[str, str], str] = {
    ("ip", "saddr"): "ipv4_addr",
    ("ip", "daddr"): "ipv4_addr",
    ("ip", "protocol"): "inet_proto",
    ("ip", "dscp"): "dscp",
    ("ip", "ecn"): "ecn",
    ("ip6", "saddr"): "ipv6_addr",
    ("ip6", "daddr"): "ipv6_addr",
    ("ip6", "nexthdr"): "inet_proto",
    ("ip6", "dscp"): "dscp",
    ("ip6", "ecn"): "ecn",
    ("tcp", "flags"): "tcp_flag",
    ("icmp", "type"): "icmp_type",
    ("icmp", "code"): "icmp_code",
    ("icmp", "gateway"): "ipv4_addr",
    ("igmp", "type"): "igmp_type",
    ("igmp", "group"): "ipv4_addr",
    ("icmpv6", "type"): "icmpv6_type",
    ("icmpv6", "code"): "icmpv6_code",
    ("icmpv6", "taddr"): "ipv6_addr",
    ("icmpv6", "daddr"): "ipv6_addr",
    ("ether", "saddr"): "ether_addr",
    ("ether", "daddr"): "ether_addr",
    ("ether", "type"): "ether_type",
    ("vlan", "type"): "ether_type",
    ("arp", "operation"): "arp_op",
    ("arp", "ptype"): "ether_type",
    ("arp", "saddr ip"): "ipv4_addr",
    ("arp", "daddr ip"): "ipv4_addr",
    ("arp", "saddr ether"): "ether_addr",
    ("arp", "daddr ether"): "ether_addr",
    ("ah", "nexthdr"): "inet_proto",
    ("comp", "nexthdr"): "inet_proto",
    ("dccp", "type"): "dccp_pkttype",
    ("gre", "protocol"): "ether_type",
}
META_TYPES: Mapping[str, str] = {
    "mark": "mark",
    "iif": "iface_index",
    "oif": "iface_index",
    "sdif": "iface_index",
    "iifname": "ifname",
    "oifname": "ifname",
    "sdifname": "ifname",
    "ibrname": "ifname",
    "obrname": "ifname",
    "ibriport": "ifname",
    "obriport": "ifname",
    "ibridgename": "ifname",
    "obridgename": "ifname",
    "iifkind": "ifkind",
    "oifkind": "ifkind",
    "iiftype": "iface_type",
    "oiftype": "iface_type",
    "iifgroup": "devgroup",
    "oifgroup": "devgroup",
    "skuid": "uid",
    "skgid": "gid",
    "l4proto": "inet_proto",
    "nfproto": "nf_proto",
    "protocol": "ether_type",
    "ibrvproto": "ether_type",
    "pkttype": "pkt_type",
    "priority": "classid",
    "rtclassid": "realm",
    "cgroup": "cgroupsv1",
    "time": "time",
    "day": "day",
    "hour": "hour",
    "ipsec": "boolean",
    "secmark": "secmark",
}
CT_TYPES: Mapping[str, str] = {
    "state": "ct_state",
    "direction": "ct_dir",
    "status": "ct_status",
    "mark": "mark",
    "expiration": "interval_time",
    "helper": "string",
    "label": "ct_label",
    "l3proto": "nf_proto",
    "protocol": "inet_proto",
    "event": "ct_event",
    "proto-src": "inet_service",
    "proto-dst": "inet_service",
    "ip saddr": "ipv4_addr",
    "ip daddr": "ipv4_addr",
    "ip6 saddr": "ipv6_addr",
    "ip6 daddr": "ipv6_addr",
    "secmark": "secmark",
}
PORT_PROTOCOLS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "th"})
# Types whose values are sets of bits: without an operator a match asks for any of the bits (nft(8), "BITMASK TYPE").
BITMASK_TYPES = frozenset({"tcp_flag", "ct_state", "ct_status", "ct_label", "ct_event"})
_QUOTED_TYPES = frozenset(
    {"ifname", "iface_index", "ifkind", "string", "time", "day", "hour", "counter", "quota", "limit", "secmark",
     "ct helper", "ct timeout", "ct expectation", "synproxy"}
)  # fmt: skip
# Keys of `meta` that `nft list` prints without the word `meta` (src/meta.c, meta_key_is_unqualified).
BARE_META = frozenset({"iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup"})

Value: TypeAlias = "int | str | bool"


def duration(seconds: int) -> str:
    """`1d2h3m4s`, as nft prints times."""
    if seconds <= 0:
        return "0s"
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def render_value(value: Value, datatype: str | None) -> str:
    """A constant as nft prints one of that data type."""
    if isinstance(value, bool):
        return "exists" if value else "missing"
    if datatype == "mark" and isinstance(value, int):
        return f"0x{value:08x}"
    if datatype == "interval_time" and isinstance(value, int):
        return duration(value)
    if isinstance(value, str) and datatype in _QUOTED_TYPES and value != "*":
        return f'"{value}"'
    return str(value)
