"""iptables rules out of nf_tables' own messages: the few kinds that kube-proxy writes by the hundred thousand.

`iptables-nft-save` takes minutes for what the kernel tells in seconds. This puts what iptables-nft 1.8 makes of
jumps, addresses, ports, comments, `statistic`, `addrtype` and DNAT into the words of `iptables -S`, and nothing else: a
rule of any other kind is None, and its chain is read by the command. The words of each kind of rule
(`Decoded.shape`) are to be compared once with those of the node's own iptables, so that another version of it is
noticed (`ktp.collect.nft_whole` does so).

Sources: include/uapi/linux/netfilter/nf_tables.h and xt_*.h for the bytes; iptables/nft-shared.c, xshared.c and
extensions/libxt_*.c for the words.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import field

from ktp.model.record import dataclass

_NLA = struct.Struct("=HH")
_TYPE = 0x3FFF
# enum nft_rule_attributes, nft_list_attributes, nft_expr_attributes
RULE_EXPRESSIONS, RULE_USERDATA = 4, 7
_EXPR_NAME, _EXPR_DATA = 1, 2
# Names that are written without quotes (xtables_save_string).
_PLAIN = frozenset("_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ESCAPED = str.maketrans({'"': '\\"', "\\": "\\\\", "'": "\\'"})
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_META_L4PROTO = 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_CMP_EQ, _CMP_NEQ = 0, 1
_VERDICTS = {0: "DROP", 1: "ACCEPT", -5: "RETURN"}
_JUMP, _GOTO = -3, -4
# RTN_… of addresses as bits, and their names (libxt_addrtype.c).
_ADDRESS_TYPES = {1 << 1: "UNICAST", 1 << 2: "LOCAL", 1 << 3: "BROADCAST"}
_NAT_MAPS_ADDRESS_AND_PORT = 3


@dataclass(frozen=True, slots=True)
class Decoded:
    """A rule in words: its conditions, what it counted, what it does; and of which kind it is."""

    matches: str
    packets: int
    size: int
    target: str
    shape: tuple[str, ...]

    def line(self, chain: str) -> str:
        """The rule as `iptables -S CHAIN -v` prints it."""
        return f"-A {chain}{self.matches} -c {self.packets} {self.size}{self.target}"


class UndecodedError(Exception):
    """A rule of a kind that is not decoded here."""


@dataclass(slots=True)
class _Reading:
    """A rule on its way: what the expressions so far have put into the register."""

    family: str
    # The IP header's conditions stand first, whatever their order in the kernel (save_ipv4_addr and what follows).
    source: str = ""
    destination: str = ""
    words: list[str] = field(default_factory=list)
    shape: list[str] = field(default_factory=list)
    target: str = ""
    packets: int = 0
    size: int = 0
    protocol: str | None = None
    loaded: tuple[str, int, int] | None = None
    mask: bytes | None = None
    matched_protocol: bool = False

    def add(self, shape: str, words: str) -> None:
        if self.target:
            raise UndecodedError("a match behind the target")
        self.shape.append(shape)
        self.words.append(words)


def decode_rule(family: str, expressions: bytes) -> Decoded | None:
    """NFTA_RULE_EXPRESSIONS of a rule in a table of `family` (ip, ip6); None for a rule of another kind."""
    reading = _Reading(family)
    at, end = 0, len(expressions)
    try:
        while at < end:
            length, _ = _NLA.unpack_from(expressions, at)
            name, data = _expression(expressions, at + 4, at + length)
            _READERS[name](reading, data)
            at += (length + 3) & ~3
    except (KeyError, struct.error, IndexError, UndecodedError, UnicodeDecodeError):
        return None
    if reading.loaded is not None:
        return None
    protocol = f" -p {reading.protocol}" if reading.protocol is not None else ""
    matches = "".join((reading.source, reading.destination, protocol, *reading.words))
    return Decoded(matches, reading.packets, reading.size, reading.target, tuple(reading.shape))


def _expression(text: bytes, at: int, end: int) -> tuple[str, bytes]:
    name, data = "", b""
    while at < end:
        length, kind = _NLA.unpack_from(text, at)
        if kind & _TYPE == _EXPR_NAME:
            name = text[at + 4 : at + length - 1].decode()
        elif kind & _TYPE == _EXPR_DATA:
            data = text[at + 4 : at + length]
        at += (length + 3) & ~3
    return name, data


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at, end = {}, 0, len(data)
    while at < end:
        length, kind = _NLA.unpack_from(data, at)
        found[kind & _TYPE] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


# ------------------------------------------------------------------------------------------------- expressions


def _meta(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_META_DREG, KEY
    if reading.loaded is not None or _number(found[2]) != _META_L4PROTO:
        raise UndecodedError
    reading.loaded = ("protocol", 0, 1)


def _payload(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_PAYLOAD_DREG, BASE, OFFSET, LEN
    if reading.loaded is not None or 5 in found:  # NFTA_PAYLOAD_SREG: it writes
        raise UndecodedError
    base, offset, length = (_number(found[kind]) for kind in (2, 3, 4))
    if base == _NETWORK_HEADER:
        reading.loaded = ("address", offset, length)
    elif base == _TRANSPORT_HEADER and length == 2 and offset in (0, 2):
        reading.loaded = ("port", offset, length)
    else:
        raise UndecodedError


def _bitwise(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_BITWISE_SREG, DREG, LEN, MASK, XOR
    if (
        reading.loaded is None
        or reading.loaded[0] != "address"
        or reading.mask is not None
        or set(found) - {1, 2, 3, 4, 5, 6}
    ):
        raise UndecodedError
    if _number(found.get(6, b"")) != 0 or any(_attributes(found[5])[1]):  # NFTA_BITWISE_OP: mask and xor
        raise UndecodedError
    reading.mask = _attributes(found[4])[1]


def _cmp(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_CMP_SREG, OP, DATA
    if reading.loaded is None:
        raise UndecodedError
    operation, value = _number(found[2]), _attributes(found[3])[1]
    if operation not in (_CMP_EQ, _CMP_NEQ):
        raise UndecodedError
    (what, offset, length), mask = reading.loaded, reading.mask
    reading.loaded = reading.mask = None
    negated = " !" if operation == _CMP_NEQ else ""
    if what == "protocol":
        if negated or reading.protocol is not None:
            raise UndecodedError
        reading.protocol = _PROTOCOLS[value[0]]
        reading.add("-p", "")
    elif what == "port":
        if reading.protocol is None or reading.matched_protocol:
            raise UndecodedError  # a second port belongs to the `-m` of the first
        reading.matched_protocol = True
        option = "--dport" if offset == 2 else "--sport"
        words = f"-m {reading.protocol}{negated} {option} {_number(value)}"
        reading.add(f"{option}{negated}", f" {words}")
    else:
        _address(reading, offset, length, value, mask, negated)


def _address(
    reading: _Reading, offset: int, length: int, value: bytes, mask: bytes | None, negated: str
) -> None:
    """A whole address, one with a mask of leading ones, or only its first bytes, which says the same."""
    size, source = (4, 12) if reading.family == "ip" else (16, 8)
    if offset not in (source, source + size) or length > size or len(value) != length:
        raise UndecodedError
    bits = length * 8
    if mask is not None:
        ones = int.from_bytes(mask, "big")
        bits = ones.bit_count()
        if len(mask) != length or ones != ((1 << bits) - 1) << (length * 8 - bits):
            raise UndecodedError
    option = "-s" if offset == source else "-d"
    text = socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, value.ljust(size, b"\0"))
    words = f"{negated} {option} {text}/{bits}"
    if offset == source and not reading.source:
        reading.source = words
    elif offset != source and not reading.destination:
        reading.destination = words
    else:
        raise UndecodedError
    kind = "whole" if bits == size * 8 else "mask" if mask is not None else "bytes"
    reading.add(f"{option}{negated} {kind}", "")


def _counter(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_COUNTER_BYTES, PACKETS
    reading.size, reading.packets = _number(found[1]), _number(found[2])
    reading.shape.append("counter")


def _immediate(reading: _Reading, data: bytes) -> None:
    verdict = _attributes(_attributes(_attributes(data)[2])[2])  # NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT
    code = struct.unpack(">i", verdict[1])[0]  # NFTA_VERDICT_CODE, CHAIN
    if code in (_JUMP, _GOTO):
        option = "-j" if code == _JUMP else "-g"
        _set_target(reading, option, f" {option} {verdict[2].rstrip(bytes(1)).decode()}")
    else:
        _set_target(reading, _VERDICTS[code], f" -j {_VERDICTS[code]}")


def _set_target(reading: _Reading, shape: str, words: str) -> None:
    if reading.target:
        raise UndecodedError
    reading.shape.append(shape)
    reading.target = words


# -------------------------------------------------------------------------------------------- matches and targets


def _match(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)  # NFTA_MATCH_NAME, REV, INFO
    _MATCHES[found[1].rstrip(b"\0").decode(), _number(found[2])](reading, found[3])


def _target(reading: _Reading, data: bytes) -> None:
    found = _attributes(data)
    _TARGETS[found[1].rstrip(b"\0").decode(), _number(found[2])](reading, found[3])


def _comment(reading: _Reading, info: bytes) -> None:
    text = info.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if text and _PLAIN.issuperset(text):
        reading.add("comment", f" -m comment --comment {text}")
    else:
        escaped = text.translate(_ESCAPED)
        kind = "comment in quotes" if escaped == text else "comment with escapes"
        reading.add(kind, f' -m comment --comment "{escaped}"')


def _statistic(reading: _Reading, info: bytes) -> None:
    mode, flags, probability = struct.unpack_from("=HHI", info)  # struct xt_statistic_info
    if mode != 0 or flags > 1:
        raise UndecodedError
    negated = " !" if flags else ""
    words = f" -m statistic --mode random{negated} --probability {probability / 0x80000000:.11f}"
    reading.add(f"statistic{negated}", words)


def _addrtype(reading: _Reading, info: bytes) -> None:
    source, destination, flags = struct.unpack_from("=HHI", info)  # struct xt_addrtype_info_v1
    if flags & ~3 or bool(source) == bool(destination):
        raise UndecodedError
    option = "--src-type" if source else "--dst-type"
    negated = " !" if flags & (1 if source else 2) else ""
    kind = _ADDRESS_TYPES[source or destination]
    reading.add(f"addrtype{negated} {option} {kind}", f" -m addrtype{negated} {option} {kind}")


def _protocol_match(reading: _Reading, info: bytes) -> None:
    """`-m tcp` or `-m udp` that asks for nothing, as kube-proxy writes before DNAT."""
    if reading.protocol == "tcp":  # struct xt_tcp
        plain = struct.pack("=HHHHBBBB", 0, 0xFFFF, 0, 0xFFFF, 0, 0, 0, 0)
    elif reading.protocol == "udp":  # struct xt_udp
        plain = struct.pack("=HHHHBB", 0, 0xFFFF, 0, 0xFFFF, 0, 0)
    else:
        raise UndecodedError
    if reading.matched_protocol or not info.startswith(plain) or any(info[len(plain) :]):
        raise UndecodedError
    reading.matched_protocol = True
    reading.add("-m protocol", f" -m {reading.protocol}")


def _dnat(reading: _Reading, info: bytes) -> None:
    flags, first, last, port, last_port = struct.unpack_from("=I16s16sHH", info)  # struct nf_nat_range2
    if flags != _NAT_MAPS_ADDRESS_AND_PORT or first != last or port != last_port:
        raise UndecodedError
    number = socket.ntohs(port)
    if reading.family == "ip":
        to = f"{socket.inet_ntop(socket.AF_INET, first[:4])}:{number}"
    else:
        to = f"[{socket.inet_ntop(socket.AF_INET6, first)}]:{number}"
    _set_target(reading, "DNAT", f" -j DNAT --to-destination {to}")


_READERS: dict[str, Callable[[_Reading, bytes], None]] = {
    "meta": _meta,
    "payload": _payload,
    "bitwise": _bitwise,
    "cmp": _cmp,
    "counter": _counter,
    "immediate": _immediate,
    "match": _match,
    "target": _target,
}
_MATCHES: dict[tuple[str, int], Callable[[_Reading, bytes], None]] = {
    ("comment", 0): _comment,
    ("statistic", 0): _statistic,
    ("addrtype", 1): _addrtype,
    ("tcp", 0): _protocol_match,
    ("udp", 0): _protocol_match,
}
_TARGETS: dict[tuple[str, int], Callable[[_Reading, bytes], None]] = {("DNAT", 2): _dnat}
