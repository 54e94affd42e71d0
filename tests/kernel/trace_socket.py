"""The kernel's own account of a packet's way through nf_tables, in this process's network namespace.

`nft monitor trace` prints these netlink messages (NFNLGRP_NFTRACE, net/netfilter/nf_tables_trace.c). They are read here
where they come from: one socket for all cases, no text to parse, and every rule by its handle.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

_NETLINK_NETFILTER, _GROUP_TRACE = 12, 1 << 8
_SOL_NETLINK_RCVBUFFORCE = 33
_TRACE_MESSAGE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _NETWORK, _TRANSPORT, _POLICY = 1, 2, 3, 4, 5, 6, 8, 9, 16
_TYPES = {1: "policy", 2: "return", 3: "rule"}
_CODES = {-1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58


class TraceSocket:
    """Open from when it is made; what it has heard is handed out once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SOL_NETLINK_RCVBUFFORCE, 1 << 24)
        self._socket.bind((0, _GROUP_TRACE))
        self._socket.setblocking(False)

    def read(self) -> list[dict[str, Any]]:
        """Every event since the last time, first first."""
        out: list[dict[str, Any]] = []
        kinds: dict[tuple[Any, ...], str] = {}
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return out
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _TRACE_MESSAGE:
                    out.append(_event(data[16:length], kinds))
                data = data[(length + 3) & ~3 :]


def _event(message: bytes, kinds: dict[tuple[Any, ...], str]) -> dict[str, Any]:
    """One event. Only the first of a base chain's run brings the packet: the others get its kind from there."""
    found = _attributes(message[4:])
    family = _FAMILIES.get(message[0], str(message[0]))
    verdict = _attributes(found.get(_VERDICT, b""))
    word = ""
    if 1 in verdict:
        (code,) = struct.unpack(">i", verdict[1])
        word = _CODES.get(code, "") if code < 0 else ""
        word = word or ("accept" if code & 0xFF == 1 else "drop" if code & 0xFF == 0 else str(code))
        if 2 in verdict:
            word += f" {_text(verdict[2])}"
    elif _POLICY in found:
        word = "accept" if struct.unpack(">I", found[_POLICY])[0] == 1 else "drop"
    number = found.get(_ID, b"")
    if _NETWORK in found:
        kinds[(number,)] = _packet_kind(found[_NETWORK], found.get(_TRANSPORT, b""))
    handle = found.get(_HANDLE)
    return {
        "table": f"{family} {_text(found.get(_TABLE, b''))}",
        "chain": _text(found.get(_CHAIN, b"")),
        "type": _TYPES.get(struct.unpack(">I", found[_TYPE])[0], ""),
        "handle": struct.unpack(">Q", handle)[0] if handle is not None else 0,
        "verdict": word,
        "packet": kinds.get((number,), ""),
    }


def _packet_kind(network: bytes, transport: bytes) -> str:
    protocol = network[9] if network[0] >> 4 == 4 else network[6]
    if protocol == _TCP and len(transport) > 13:
        flags = transport[13] & 0x17
        return {0x02: "syn", 0x12: "syn-ack"}.get(flags, "reset" if flags & 4 else "tcp")
    return {_UDP: "udp", _ICMP: "icmp", _ICMP6: "icmp"}.get(protocol, str(protocol))


def _attributes(data: bytes) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        out[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return out


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
