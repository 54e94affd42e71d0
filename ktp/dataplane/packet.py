"""The packet, its connection tracking entry, and the state of one walk."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from ktp.model.xfrm import SecurityState

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "tcp": 6,
    "egp": 8,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "mh": 135,
    "mobility-header": 135,
    "udplite": 136,
}
PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
TCP, UDP, SCTP, ICMP, ICMP6, ESP = 6, 17, 132, 1, 58, 50

# Bits of ctstate (xt_conntrack.h order is not kept; these are ktp's own).
NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED, SNAT_BIT, DNAT_BIT = 1, 2, 4, 8, 16, 32, 64

SYN, RST, ACK = 2, 4, 16  # bits of the TCP header

# A port, or the range of which a kernel has drawn an ephemeral one.
Port = int | tuple[int, int]
# Linux draws from 32768-60999 (net.ipv4.ip_local_port_range), Windows and the BSDs from 49152-65535.
CLIENT_PORTS = (32768, 65535)
LOCAL_PORTS = (32768, 60999)
# What `MASQUERADE --random-fully` draws from for a port above 1023 (nf_nat_l4proto_unique_tuple).
RANDOM_PORTS = (1024, 65535)


@lru_cache(maxsize=65536)
def to_int(text: str) -> tuple[int, int]:
    """Address text → (family 4 or 6, number). Raises ValueError."""
    if ":" in text:
        return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text.partition("%")[0]), "big")
    return 4, int(IPv4Address(text))


@lru_cache(maxsize=65536)
def to_text(family: int, number: int) -> str:
    """(family, number) → address text."""
    return str(IPv4Address(number)) if family == 4 else str(IPv6Address(number))


class Conn:
    """A conntrack entry as one node holds it: the tuple of each direction, status, mark.

    A port is a range where an ephemeral port stands. `o*` is the original direction as it arrived,
    `src`…`dport` the packet's addresses after translation: the reply tuple is their inverse.
    """

    __slots__ = (
        "confirmed",
        "dnat",
        "dport",
        "dst",
        "dst_done",
        "helper",
        "mark",
        "node",
        "observed",
        "odport",
        "odst",
        "osport",
        "osrc",
        "proto",
        "seen_reply",
        "snat",
        "sport",
        "src",
        "src_done",
        "state",
    )

    def __init__(self, node: str, p: Packet) -> None:
        self.node = node
        self.proto = p.proto
        self.osrc = self.src = p.src
        self.odst = self.dst = p.dst
        self.osport = self.sport = p.sport
        self.odport = self.dport = p.dport
        self.mark = 0
        self.snat = self.dnat = False
        self.src_done = self.dst_done = False
        self.confirmed = False
        self.observed = False  # read on the node, not made by this packet
        self.seen_reply = False
        self.helper: str | None = None
        self.state = NEW

    def copy(self) -> Conn:
        """The same entry, to go its own way."""
        new = object.__new__(Conn)
        new.confirmed = self.confirmed
        new.dnat = self.dnat
        new.dport = self.dport
        new.dst = self.dst
        new.dst_done = self.dst_done
        new.helper = self.helper
        new.mark = self.mark
        new.node = self.node
        new.observed = self.observed
        new.odport = self.odport
        new.odst = self.odst
        new.osport = self.osport
        new.osrc = self.osrc
        new.proto = self.proto
        new.seen_reply = self.seen_reply
        new.snat = self.snat
        new.sport = self.sport
        new.src = self.src
        new.src_done = self.src_done
        new.state = self.state
        return new

    def is_original(self, p: Packet) -> bool:
        """Whether `p` is of the direction that opened the connection, before this node translates it."""
        return (
            p.src == self.osrc
            and p.dst == self.odst
            and p.dport == self.odport
            and p.sport == self.osport
            and p.proto == self.proto
        )

    def is_reply(self, p: Packet) -> bool:
        """Whether `p` is of the other direction, before this node translates it back."""
        return (
            p.src == self.dst
            and p.dst == self.src
            and p.sport == self.dport
            and p.dport == self.sport
            and p.proto == self.proto
        )


class IpvsConn(NamedTuple):
    """IPVS's connection of a request (struct ip_vs_conn): the client, what it dialled, and the real server."""

    client: tuple[int, Port]
    virtual: tuple[int, Port]
    real: tuple[int, Port]
    method: str
    persistent: bool


class Packet:
    """A packet on its way through one node. Addresses are numbers, a port may be the range of an ephemeral one.

    `reply` is set for the way back; an ICMP error carries in `inner` the (src, sport, dst, dport, proto) of the
    packet that it speaks about, as that packet looked where the error now is.
    """

    __slots__ = (
        "bridged",
        "ct",
        "ctstate",
        "dport",
        "dst",
        "family",
        "from_far",
        "icmp",
        "iif",
        "inner",
        "ipvs",
        "ipvs_property",
        "length",
        "local",
        "locks_mtu",
        "mark",
        "oif",
        "physin",
        "physout",
        "pkttype",
        "proto",
        "reply",
        "secured",
        "sport",
        "src",
        "tcp_flags",
        "tos",
        "ttl",
    )

    def __init__(self, family: int, proto: int, src: int, dst: int, sport: Port, dport: Port) -> None:
        self.family = family
        self.proto = proto
        self.src = src
        self.dst = dst
        self.sport = sport
        self.dport = dport
        self.iif: str | None = None
        self.oif: str | None = None
        self.physin: str | None = None
        self.physout: str | None = None
        self.bridged = False
        self.mark = 0
        self.ct: Conn | None = None
        self.ctstate = INVALID
        self.icmp: tuple[int, int] | None = None
        self.inner: tuple[int, Port, int, Port, int] | None = None
        self.tcp_flags = SYN
        self.ttl = 64
        self.from_far = False  # routers may have counted its TTL down before it came into sight
        self.tos = 0
        self.length: int | None = None
        # Its sender's route has a locked MTU: of IPv4 it may be cut (ip_dont_fragment).
        self.locks_mtu = False
        self.pkttype = "unicast"
        self.local = False  # made by a process of the node it is on
        self.reply = False
        self.secured: SecurityState | None = None  # of IPsec, that it came out of on this node
        self.ipvs: IpvsConn | None = None  # the connection that IPVS made of it
        self.ipvs_property = False  # skb->ipvs_property: IPVS gave it to a server, or made an answer of it

    def copy(self) -> Packet:
        """The same packet, with an entry of its own."""
        new = object.__new__(Packet)
        new.bridged = self.bridged
        new.ctstate = self.ctstate
        new.dport = self.dport
        new.dst = self.dst
        new.family = self.family
        new.from_far = self.from_far
        new.icmp = self.icmp
        new.iif = self.iif
        new.inner = self.inner
        new.ipvs = self.ipvs
        new.ipvs_property = self.ipvs_property
        new.length = self.length
        new.local = self.local
        new.locks_mtu = self.locks_mtu
        new.mark = self.mark
        new.oif = self.oif
        new.physin = self.physin
        new.physout = self.physout
        new.pkttype = self.pkttype
        new.proto = self.proto
        new.reply = self.reply
        new.secured = self.secured
        new.sport = self.sport
        new.src = self.src
        new.tcp_flags = self.tcp_flags
        new.tos = self.tos
        new.ttl = self.ttl
        new.ct = self.ct.copy() if self.ct is not None else None
        return new

    def come_in(self, iif: str, mark: int = 0) -> None:
        """In another kernel, by its device `iif`: what the last one noted beside it is gone (skb_scrub_packet)."""
        self.iif, self.oif, self.mark, self.local = iif, None, mark, False
        self.physin, self.physout, self.bridged = None, None, False
        self.ct, self.ctstate = None, INVALID
        self.ipvs, self.ipvs_property, self.secured = None, False, None

    def flow_key(self) -> tuple[Any, ...]:
        """What a match can see of the packet: equal keys give equal answers."""
        return (
            self.proto, self.src, self.dst, self.sport, self.dport, self.iif, self.oif, self.mark,
            self.ctstate, self.reply, self.physin, self.physout, self.ipvs,
            self.ipvs_property, self.secured,
        )  # fmt: skip

    def words(self) -> str:
        """`10.0.0.1:* → 10.0.0.2:80` for people."""
        f = self.family
        return f"{endpoint_text(f, self.src, self.sport)} → {endpoint_text(f, self.dst, self.dport)}"


def endpoint_text(family: int, ip: int, port: Port) -> str:
    """`10.0.0.1:80`, `[fd00::1]:80`; `*` for an ephemeral port; no port where it is 0."""
    text = to_text(family, ip)
    if port == 0:
        return text
    shown = str(port) if isinstance(port, int) else "*"
    return f"[{text}]:{shown}" if family == 6 else f"{text}:{shown}"


def some(names: Sequence[str], most: int = 6) -> str:
    """The names, of many the first and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
