"""nft expressions compiled to what they yield for a packet (net/netfilter/nft_{payload,meta,ct}.c, nft_fib*.c).

A getter takes (packet, host, hook) and gives a number or word, a tuple for a concatenation, or one of three marks:
BREAK where the kernel leaves the rule (NFT_BREAK: there is no such header, no connection, no element), UNKNOWN where
a snapshot cannot tell. A port that a kernel draws is a `Span`: one of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ktp.dataplane import packet as pk
from ktp.dataplane.packet import ICMP, ICMP6, PROTOCOLS, Packet, Port, to_int
from ktp.model.assumption import Assumption
from ktp.model.host import UNNAMED_DEVICES
from ktp.model.nftables import (
    Binary,
    Concat,
    Ct,
    Expression,
    ExtensionHeader,
    Fib,
    Flags,
    Immediate,
    Ipsec,
    Jhash,
    Meta,
    Numgen,
    Osf,
    Payload,
    Prefix,
    Range,
    RawPayload,
    Rt,
    Socket,
    Symhash,
    Wildcard,
    datatype_of,
)
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


class Mark(Enum):
    """What a getter gives where there is no value."""

    BREAK = "break"
    UNKNOWN = "unknown"


BREAK: Final = Mark.BREAK
_NO_IPSEC = "the packet did not come out of an IPsec tunnel, but where that was read"
UNKNOWN: Final = Mark.UNKNOWN

Getter = Callable[[Packet, "Host", str], Any]


@dataclass(frozen=True, slots=True)
class Draw:
    """A number drawn from `count` ones from `offset` on, each as likely; `assumption` what is taken for granted."""

    count: int
    offset: int
    assumption: Assumption | None = None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled expression.

    Where `draw` is set, `given(number)` is the getter once that number was drawn, and `get` is not to be used.
    """

    get: Getter
    why: str = "a snapshot cannot tell"
    assumption: Assumption | None = None
    draw: Draw | None = None
    given: Callable[[int], Getter] | None = None


# -------------------------------------------------------------------------------------------------- constants

CT_NEW, CT_ESTABLISHED, CT_RELATED, CT_INVALID, CT_UNTRACKED = 8, 2, 4, 1, 64
_CT_STATES = {
    "invalid": CT_INVALID,
    "established": CT_ESTABLISHED,
    "related": CT_RELATED,
    "new": CT_NEW,
    "untracked": CT_UNTRACKED,
}
_CT_STATUS = {
    "expected": 1,
    "seen-reply": 2,
    "assured": 4,
    "confirmed": 8,
    "snat": 16,
    "dnat": 32,
    "dying": 512,
}
_TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
_ICMP_TYPES = {
    "echo-reply": 0,
    "destination-unreachable": 3,
    "source-quench": 4,
    "redirect": 5,
    "echo-request": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "parameter-problem": 12,
    "timestamp-request": 13,
    "timestamp-reply": 14,
    "info-request": 15,
    "info-reply": 16,
    "address-mask-request": 17,
    "address-mask-reply": 18,
}
_ICMP6_TYPES = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "echo-reply": 129,
    "mld-listener-query": 130,
    "mld-listener-report": 131,
    "mld-listener-done": 132,
    "mld-listener-reduction": 132,
    "nd-router-solicit": 133,
    "nd-router-advert": 134,
    "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136,
    "nd-redirect": 137,
    "router-renumbering": 138,
    "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142,
    "mld2-listener-report": 143,
}
_ICMP_CODES = {
    "net-unreachable": 0,
    "host-unreachable": 1,
    "prot-unreachable": 2,
    "port-unreachable": 3,
    "frag-needed": 4,
    "net-prohibited": 9,
    "host-prohibited": 10,
    "admin-prohibited": 13,
}
_ICMP6_CODES = {
    "no-route": 0,
    "admin-prohibited": 1,
    "addr-unreachable": 3,
    "port-unreachable": 4,
    "policy-fail": 5,
    "reject-route": 6,
}
_DSCP = {
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{a}{b}": 8 * a + 2 * b for a in range(1, 5) for b in range(1, 4)},
    "df": 0,
    "be": 0,
    "ef": 46,
    "lephb": 1,
    "va": 44,
}
_WORDS: Final[Mapping[str, Mapping[str, int]]] = {
    "inet_proto": PROTOCOLS,
    "ct_state": _CT_STATES,
    "ct_status": _CT_STATUS,
    "ct_dir": {"original": 0, "reply": 1},
    "tcp_flag": _TCP_FLAGS,
    "icmp_type": _ICMP_TYPES,
    "icmpv6_type": _ICMP6_TYPES,
    "icmp_code": _ICMP_CODES,
    "icmpv6_code": _ICMP6_CODES,
    "dscp": _DSCP,
    "ecn": {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3},
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "ether_type": {
        "ip": 0x0800,
        "arp": 0x0806,
        "ip6": 0x86DD,
        "vlan": 0x8100,
        "8021q": 0x8100,
        "8021ad": 0x88A8,
    },
    "pkt_type": {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3, "otherhost": 3},
    "realm": {"cosmos": 0},
    "inet_service": {"http": 80, "https": 443, "ssh": 22, "domain": 53, "ntp": 123, "smtp": 25, "telnet": 23},
}
# Types whose values are compared as words.
_WORD_TYPES = frozenset({"ifname", "iface_index", "ifkind", "iface_type", "fib_addrtype", "string"})


@dataclass(frozen=True, slots=True)
class Span:
    """The numbers from `low` to `high`: of a constant all of them (`prefix` its length), of a packet one of them."""

    low: int
    high: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class NamePrefix:
    """An interface name that ends in `*`."""

    start: str


def matches(wanted: Any, value: Any) -> bool | None:
    """Whether a packet's `value` is the constant `wanted`; None where it is not known well enough."""
    if isinstance(wanted, EveryValue):
        return True
    if value is UNKNOWN:
        return None
    if isinstance(value, Span):
        low, high = (wanted.low, wanted.high) if isinstance(wanted, Span) else (wanted, wanted)
        if not isinstance(low, int):
            return None
        if low <= value.low and high >= value.high:
            return True
        return None if low <= value.high and high >= value.low else False
    if isinstance(wanted, Span):
        return isinstance(value, int) and wanted.low <= value <= wanted.high
    if isinstance(wanted, NamePrefix):
        return isinstance(value, str) and value.startswith(wanted.start)
    return bool(wanted == value)


class EveryValue:
    """`*` as one part of a key."""


EVERY: Final = EveryValue()


def constant(expression: Expression, datatype: str | None) -> Any:
    """A constant expression as a number, word, Span, NamePrefix, EVERY or tuple of those; ValueError for others."""
    match expression:
        case Immediate(value):
            return _immediate(value, datatype)
        case Prefix(Immediate(str(address)), length):
            family, number = to_int(address)
            bits = 32 if family == 4 else 128
            size = (1 << (bits - length)) - 1
            return Span(number & ~size, number | size, length)
        case Range(low, high):
            first, last = constant(low, datatype), constant(high, datatype)
            # nft 1.0.6 lists `meta length < 2000 meta mark > 1` as `meta mark != 2000-1`: such a range tells nothing
            if isinstance(first, int) and isinstance(last, int) and first <= last:
                return Span(first, last)
        case Flags(parts):
            bits = 0
            for part in parts:
                one = constant(part, datatype)
                if not isinstance(one, int):
                    raise ValueError(str(expression))
                bits |= one
            return bits
        case Wildcard():
            return EVERY
        case Binary(operator, left, right):
            a, b = constant(left, datatype), constant(right, datatype)
            if isinstance(a, int) and isinstance(b, int):
                return _OPERATIONS[operator](a, b)
        case _:
            pass
    raise ValueError(str(expression))


def _immediate(value: int | str | bool, datatype: str | None) -> Any:
    if isinstance(value, int):  # and bool
        return value
    if datatype in ("ipv4_addr", "ipv6_addr"):
        return to_int(value)[1]
    if datatype in _WORD_TYPES:
        if datatype == "ifname" and value.endswith("*") and not value.endswith("\\*"):
            return NamePrefix(value[:-1])
        return value
    known = _WORDS.get(datatype or "")
    if known is not None and value in known:
        return known[value]
    if datatype == "ether_addr":
        return int(value.replace(":", ""), 16)
    if datatype is None and ("." in value or ":" in value):
        return to_int(value)[1]
    return int(value, 0)


_OPERATIONS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b & 0xFFFFFFFF,
    ">>": lambda a, b: a >> b,
}


# ---------------------------------------------------------------------------------------------------- headers

_TRANSPORT = {"tcp": pk.TCP, "udp": pk.UDP, "sctp": pk.SCTP, "dccp": 33, "udplite": 136}
_WITH_PORTS = frozenset(_TRANSPORT.values())
_OTHER_PROTOCOLS = {"icmp": ICMP, "icmpv6": ICMP6, "igmp": 2, "esp": 50, "ah": 51, "comp": 108, "gre": 47}


def _port(port: Port) -> Any:
    return port if isinstance(port, int) else Span(port[0], port[1])


def _transport(name: str, proto: int) -> Getter | None:
    if name == "dport":
        return lambda p, h, hook: _port(p.dport) if p.proto == proto else BREAK
    if name == "sport":
        return lambda p, h, hook: _port(p.sport) if p.proto == proto else BREAK
    if name == "flags" and proto == pk.TCP:
        return lambda p, h, hook: p.tcp_flags if p.proto == proto else BREAK
    return lambda p, h, hook: UNKNOWN if p.proto == proto else BREAK


def _any_dport(p: Packet, h: Host, hook: str) -> Any:
    return _port(p.dport) if p.proto in _WITH_PORTS else UNKNOWN


def _any_sport(p: Packet, h: Host, hook: str) -> Any:
    return _port(p.sport) if p.proto in _WITH_PORTS else UNKNOWN


def _saddr(family: int) -> Getter:
    return lambda p, h, hook: p.src if p.family == family else BREAK


def _daddr(family: int) -> Getter:
    return lambda p, h, hook: p.dst if p.family == family else BREAK


def _of_family(family: int, get: Callable[[Packet], Any]) -> Getter:
    return lambda p, h, hook: get(p) if p.family == family else BREAK


_NO_DSCP = Assumption("the packet comes with DSCP 0, as most programs send it")


_NO_TTL = Assumption(
    "a packet from outside comes with a TTL of 33 to 64: Linux sends 64, and not many routers lie behind it"
)
_MOST_ROUTERS = 31


def _ttl(p: Packet) -> Any:
    return Span(p.ttl - _MOST_ROUTERS, p.ttl) if p.from_far else p.ttl


def _internet(family: int, name: str) -> tuple[Getter, Assumption | None]:
    if name == "saddr":
        return _saddr(family), None
    if name == "daddr":
        return _daddr(family), None
    if name in ("protocol", "nexthdr"):
        return _of_family(family, lambda p: p.proto), None
    if name == "version":
        return _of_family(family, lambda p: family), None
    if name in ("ttl", "hoplimit"):
        return _of_family(family, _ttl), _NO_TTL
    if name == "dscp":
        return _of_family(family, lambda p: p.tos >> 2), _NO_DSCP
    if name == "ecn":
        return _of_family(family, lambda p: p.tos & 3), _NO_DSCP
    if name == "length" and family == 4:
        return _of_family(family, lambda p: UNKNOWN if p.length is None else p.length), None
    return _of_family(family, lambda p: UNKNOWN), None


def _payload(protocol: str, name: str) -> Compiled:
    if protocol in ("ip", "ip6"):
        get, assumption = _internet(4 if protocol == "ip" else 6, name)
        return Compiled(get, f"{protocol} {name} of a packet is not known beforehand", assumption)
    if protocol == "th":
        return Compiled(_any_dport if name == "dport" else _any_sport)
    proto = _TRANSPORT.get(protocol)
    if proto is not None:
        found = _transport(name, proto)
        assert found is not None
        return Compiled(found, f"{protocol} {name} of a packet is not known beforehand")
    if protocol in ("icmp", "icmpv6"):
        number = _OTHER_PROTOCOLS[protocol]
        index = {"type": 0, "code": 1}.get(name)

        def icmp(p: Packet, h: Host, hook: str) -> Any:
            if p.proto != number:
                return BREAK
            return UNKNOWN if index is None or p.icmp is None else p.icmp[index]

        return Compiled(icmp)
    if protocol in _OTHER_PROTOCOLS:
        number = _OTHER_PROTOCOLS[protocol]
        return Compiled(lambda p, h, hook: UNKNOWN if p.proto == number else BREAK)
    if protocol == "ether" and name == "type":
        return Compiled(_ether_type, "the interfaces of the node were not read")
    if protocol == "arp":
        return Compiled(lambda p, h, hook: BREAK)
    return Compiled(_unknown, f"the link-layer header ({protocol} {name}) is not modelled")


def _ether_type(p: Packet, h: Host, hook: str) -> Any:
    # nft puts `meta iiftype ether` before it; what the node itself sends has no link-layer header yet.
    link = BREAK if p.iif is None else _in_type(p, h, hook)
    if link is BREAK or link is UNKNOWN:
        return link
    return (0x0800 if p.family == 4 else 0x86DD) if link == "ether" else BREAK


def _unknown(p: Packet, h: Host, hook: str) -> Any:
    return UNKNOWN


def _break(p: Packet, h: Host, hook: str) -> Any:
    return BREAK


def _raw_payload(expression: RawPayload) -> Compiled:
    match expression:
        case RawPayload("th", 0, 16):
            return Compiled(_any_sport)
        case RawPayload("th", 16, 16):
            return Compiled(_any_dport)
        case RawPayload("nh", 96, 32):
            return Compiled(lambda p, h, hook: p.src if p.family == 4 else UNKNOWN)
        case RawPayload("nh", 128, 32):
            return Compiled(lambda p, h, hook: p.dst if p.family == 4 else UNKNOWN)
        case RawPayload("nh", 64, 128):
            return Compiled(lambda p, h, hook: p.src if p.family == 6 else UNKNOWN)
        case RawPayload("nh", 192, 128):
            return Compiled(lambda p, h, hook: p.dst if p.family == 6 else UNKNOWN)
        case _:
            return Compiled(_unknown, "raw bytes of the packet are not modelled")


def _extension(expression: ExtensionHeader) -> Compiled:
    if expression.kind == "exthdr":
        answer: Any = False if expression.field is None else BREAK
        return Compiled(
            lambda p, h, hook: answer, assumption=Assumption("the packet has no IPv6 extension headers")
        )
    if expression.kind == "ip option":
        answer = False if expression.field is None else BREAK
        return Compiled(lambda p, h, hook: answer, assumption=Assumption("the packet has no IP options"))
    proto = {"tcp option": pk.TCP, "sctp chunk": pk.SCTP}.get(expression.kind)
    absent: Any = False if expression.field is None else BREAK
    return Compiled(
        lambda p, h, hook: UNKNOWN if proto is None or p.proto == proto else absent,
        f"the packet's {expression.kind}s are not known beforehand",
    )


# ------------------------------------------------------------------------------------------------------- meta


def _interface(name: str | None) -> Any:
    if name in UNNAMED_DEVICES:
        return UNKNOWN
    return name or ""


def _in_interface(p: Packet, h: Host, hook: str) -> Any:
    # br_nf_post_routing hands over no incoming device for what stays on a bridge
    return "" if p.bridged and hook == "POSTROUTING" else _interface(p.iif)


def _sender_of_node(p: Packet, h: Host, hook: str) -> Any:
    """Of the socket that sent the packet: only what a process of this node sends has one (nft_meta_get_eval_skugid)."""
    return UNKNOWN if p.iif is None and hook in ("OUTPUT", "POSTROUTING") else BREAK


def _packet_type(p: Packet, h: Host, hook: str) -> Any:
    return {"unicast": 0, "host": 0, "broadcast": 1, "multicast": 2}.get(p.pkttype, 3)


def _link(name: str | None, h: Host, what: str) -> Any:
    if name is None:
        return BREAK
    interface = h.interfaces.get(name)
    if interface is None:
        return UNKNOWN
    found = interface.link_type if what == "type" else interface.kind
    return UNKNOWN if found is None else found


def _realm(p: Packet, h: Host, hook: str) -> Any:
    # Of the route, which a packet has none of before it is routed.
    return BREAK if hook == "PREROUTING" and p.iif != "lo" else 0


def _in_type(p: Packet, h: Host, hook: str) -> Any:
    # Of skb->dev, which is the outgoing device already after routing.
    return _link(p.oif if hook == "POSTROUTING" else p.iif, h, "type")


_META: Final[Mapping[str, Compiled]] = {
    "mark": Compiled(lambda p, h, hook: p.mark),
    "iif": Compiled(_in_interface, "the interfaces of the node were not read"),
    "oif": Compiled(lambda p, h, hook: _interface(p.oif), "the interfaces of the node were not read"),
    "iifname": Compiled(_in_interface, "the interfaces of the node were not read"),
    "oifname": Compiled(lambda p, h, hook: _interface(p.oif), "the interfaces of the node were not read"),
    "iiftype": Compiled(_in_type, "the interfaces of the node were not read"),
    "oiftype": Compiled(lambda p, h, hook: _link(p.oif, h, "type")),
    "iifkind": Compiled(lambda p, h, hook: _link(_in_interface(p, h, hook) or None, h, "kind")),
    "oifkind": Compiled(lambda p, h, hook: _link(p.oif, h, "kind")),
    "l4proto": Compiled(lambda p, h, hook: p.proto),
    "nfproto": Compiled(lambda p, h, hook: 2 if p.family == 4 else 10),
    "protocol": Compiled(lambda p, h, hook: 0x0800 if p.family == 4 else 0x86DD),
    "pkttype": Compiled(_packet_type),
    "skuid": Compiled(_sender_of_node, "which user the sending process runs as is not known"),
    "skgid": Compiled(_sender_of_node, "which group the sending process runs as is not known"),
    "ipsec": Compiled(
        lambda p, h, hook: p.secured is not None,
        assumption=Assumption(_NO_IPSEC),
    ),
    "length": Compiled(lambda p, h, hook: UNKNOWN if p.length is None else p.length),
    "rtclassid": Compiled(_realm, assumption=Assumption("no routing realms are in use")),
    "nftrace": Compiled(lambda p, h, hook: 0),
}


# --------------------------------------------------------------------------------------------------------- ct


def _ct_state(p: Packet, h: Host, hook: str) -> Any:
    state = p.ctstate
    if state & pk.UNTRACKED:
        return CT_UNTRACKED
    if p.ct is None or state & pk.INVALID:
        return CT_INVALID
    bits = 0
    if state & pk.NEW:
        bits |= CT_NEW
    if state & pk.ESTABLISHED:
        bits |= CT_ESTABLISHED
    if state & pk.RELATED:
        bits |= CT_RELATED
    return bits or CT_INVALID


def _ct_status(p: Packet, h: Host, hook: str) -> Any:
    ct = p.ct
    if ct is None:
        return BREAK
    return (
        (2 if ct.seen_reply else 0)
        | (8 if ct.confirmed else 0)
        | (16 if ct.snat else 0)
        | (32 if ct.dnat else 0)
        | (128 if ct.src_done else 0)
        | (256 if ct.dst_done else 0)
    )


def _is_reply(p: Packet) -> bool:
    return p.reply and not p.ctstate & pk.NEW


def _tuple_part(direction: str, part: str, family: int | None) -> Getter:
    def get(p: Packet, h: Host, hook: str) -> Any:
        ct = p.ct
        if ct is None or (family is not None and p.family != family):
            return BREAK
        if direction == "original":
            found: Port = {
                "saddr": ct.osrc,
                "daddr": ct.odst,
                "proto-src": ct.osport,
                "proto-dst": ct.odport,
            }[part]
        else:
            found = {"saddr": ct.dst, "daddr": ct.src, "proto-src": ct.dport, "proto-dst": ct.sport}[part]
        return _port(found)

    return get


def _of_ct(get: Callable[[Packet], Any]) -> Getter:
    return lambda p, h, hook: BREAK if p.ct is None else get(p)


def _ct(expression: Ct) -> Compiled:
    key, direction = expression.key, expression.direction
    if key == "state":
        return Compiled(_ct_state)
    if key == "status":
        return Compiled(_ct_status)
    if key == "mark":
        return Compiled(_of_ct(lambda p: p.ct.mark if p.ct else 0))
    if key == "direction":
        return Compiled(_of_ct(lambda p: int(_is_reply(p))))
    if key == "l3proto":
        return Compiled(_of_ct(lambda p: 2 if p.family == 4 else 10))
    if key == "protocol":
        return Compiled(_of_ct(lambda p: p.ct.proto if p.ct else 0))
    if key == "zone":
        return Compiled(_of_ct(lambda p: 0), assumption=Assumption("connections are tracked in zone 0"))
    if key == "helper":
        return Compiled(_break)
    family = {"ip": 4, "ip6": 6}.get(key.partition(" ")[0])
    part = key.rpartition(" ")[2]
    if direction is not None and part in ("saddr", "daddr", "proto-src", "proto-dst"):
        return Compiled(_tuple_part(direction, part, family))
    return Compiled(
        lambda p, h, hook: BREAK if p.ct is None else UNKNOWN,
        f"ct {key} of a connection is not in a snapshot",
    )


# ------------------------------------------------------------------------------------------------ fib, socket


def _fib(expression: Fib) -> Compiled:
    flags = frozenset(expression.flags)
    why = "the node's routes were not read"
    source = "saddr" in flags
    if expression.result == "type":

        def address_type(p: Packet, h: Host, hook: str) -> Any:
            dev = p.iif if "iif" in flags else p.oif if "oif" in flags else None
            if dev in UNNAMED_DEVICES:
                return UNKNOWN
            if p.family == 6:
                kind = h.fib_type6(p, source=source, mark="mark" in flags, dev=dev)
                return UNKNOWN if kind is None else kind
            found = h.address_type(p.family, p.src if source else p.dst, dev)
            return UNKNOWN if found is None else found.lower()

        return Compiled(address_type, why)

    def out_interface(p: Packet, h: Host, hook: str) -> Any:
        # nft_fib4_eval, nft_fib6_eval: the interface by which the address is reached, 0 where there is none.
        if not h.has_network:
            return UNKNOWN
        if p.iif == "lo" and hook in ("PREROUTING", "INPUT"):
            # nft_fib_can_skip; kernels before 6.16 skip the lookup in prerouting only
            return "lo" if hook == "PREROUTING" else UNKNOWN
        wanted = p.oif if "oif" in flags else p.iif if "iif" in flags else None
        target, other = (p.src, p.dst) if source else (p.dst, p.src)
        found = h.fib[p.family].lookup(
            target,
            src=other,
            mark=p.mark if "mark" in flags else 0,
            iif="lo",
            tos=p.tos & 0x1C,
            proto=p.proto,  # and no ports
        )
        if found.type == "unknown" or wanted in UNNAMED_DEVICES:
            return UNKNOWN
        if found.type != "unicast" or found.route is None:
            return ""
        if wanted is None:
            return found.hops[0].dev or "" if found.hops else ""
        return wanted if any(hop.dev == wanted for hop in found.route.nexthops) else ""

    return Compiled(out_interface, why)


def _socket(expression: Socket) -> Compiled:
    def get(p: Packet, h: Host, hook: str) -> Any:
        if p.reply or hook not in ("PREROUTING", "INPUT"):
            return UNKNOWN
        found = h.listener(p.family, p.proto, p.dst, p.dport, p.iif)
        return BREAK if found is False else UNKNOWN

    return Compiled(get, "the options of the node's sockets are not in a snapshot")


# ---------------------------------------------------------------------------------------------- compositions


def unknown_value(why: str) -> Compiled:
    """An expression whose value nobody knows."""
    return Compiled(_unknown, why)


def _concat_of(getters: tuple[Getter, ...]) -> Getter:
    if len(getters) == 2:
        one, two = getters

        def pair(p: Packet, h: Host, hook: str) -> Any:
            a, b = one(p, h, hook), two(p, h, hook)
            return BREAK if a is BREAK or b is BREAK else (a, b)

        return pair

    def get(p: Packet, h: Host, hook: str) -> Any:
        found = tuple([g(p, h, hook) for g in getters])
        return BREAK if BREAK in found else found

    return get


def _binary_of(operator: str, left: Getter, right: Getter) -> Getter:
    operation = _OPERATIONS[operator]

    def get(p: Packet, h: Host, hook: str) -> Any:
        a = left(p, h, hook)
        if a is BREAK:
            return BREAK
        b = right(p, h, hook)
        if b is BREAK:
            return BREAK
        if isinstance(a, int) and isinstance(b, int):
            return operation(a, b)
        return UNKNOWN

    return get


def _given(parts: tuple[Compiled, ...], combine: Callable[[tuple[Getter, ...]], Getter]) -> Compiled:
    """Parts joined; of parts that draw numbers one is followed."""
    why = next((part.why for part in parts if part.get is _unknown), parts[0].why)
    assumption = next((part.assumption for part in parts if part.assumption is not None), None)
    drawing = [i for i, part in enumerate(parts) if part.draw is not None]
    if not drawing:
        return Compiled(combine(tuple(part.get for part in parts)), why, assumption)
    if len(drawing) > 1:
        return unknown_value("two numbers are drawn at once")
    at = drawing[0]
    drawer = parts[at].given
    assert drawer is not None

    def given(number: int) -> Getter:
        return combine(tuple(drawer(number) if i == at else part.get for i, part in enumerate(parts)))

    return Compiled(_unknown, why, assumption, parts[at].draw, given)


def compile_value(
    expression: Expression,
    datatype: str | None = None,
    lookup: Callable[[Expression], Compiled | None] | None = None,
) -> Compiled:
    """Expression → Compiled. `datatype` is what its constants are of; `lookup` compiles what needs sets."""
    if lookup is not None and (found := lookup(expression)) is not None:
        return found
    match expression:
        case Payload(protocol, name):
            return _payload(protocol, name)
        case Meta(key):
            return _META.get(key) or unknown_value(f"meta {key} is not in a snapshot")
        case Ct():
            return _ct(expression)
        case Fib():
            return _fib(expression)
        case Socket():
            return _socket(expression)
        case RawPayload():
            return _raw_payload(expression)
        case ExtensionHeader():
            return _extension(expression)
        case Concat(parts):
            return _given(tuple(compile_value(part, None, lookup) for part in parts), _concat_of)
        case Binary("&", Payload("ip", "frag-off"), Immediate(int(mask))) if not mask & 0xC000:
            # Neither a fragment nor followed by one; whether DF is set is not known.
            return Compiled(
                lambda p, h, hook: 0 if p.family == 4 else BREAK,
                assumption=Assumption("the packet is no fragment"),
            )
        case Binary(operator, left, right):
            own = datatype_of(expression) or datatype
            both = (compile_value(left, own, lookup), compile_value(right, own, lookup))
            return _given(both, partial(_joined, operator))
        case Numgen(mode, mod, offset):
            words = (
                None if mode == "random" else Assumption("`numgen inc` counts packets: it may stand anywhere")
            )
            return _drawn(Draw(mod, offset, words))
        case Jhash(hashed, mod, _, offset):
            return _drawn(Draw(mod, offset, _ANY_HASH), compile_value(hashed, None, lookup).get)
        case Symhash(mod, offset):
            return _drawn(Draw(mod, offset, _ANY_HASH))
        case Osf():
            return unknown_value("the sender's operating system is not known")
        case Ipsec():
            return Compiled(
                lambda p, h, hook: UNKNOWN if h.has_ipsec else BREAK, assumption=Assumption(_NO_IPSEC)
            )
        case Rt():
            return unknown_value("the route's options are not modelled")
        case _:
            pass
    try:
        value = constant(expression, datatype)
    except (ValueError, KeyError, OSError):
        return unknown_value(f"{expression} is not modelled")
    return Compiled(lambda p, h, hook: value)


def _joined(operator: str, getters: tuple[Getter, ...]) -> Getter:
    return _binary_of(operator, getters[0], getters[1])


_ANY_HASH = Assumption("the hash of the packet may be any: each value is as likely")


def _drawn(draw: Draw, needs: Getter | None = None) -> Compiled:
    """What a draw yields; the rule is left where what it `needs` is not there."""

    def given(number: int) -> Getter:
        if needs is None:
            return lambda p, h, hook: number
        return lambda p, h, hook: BREAK if needs(p, h, hook) is BREAK else number

    if draw.count == 1:
        return Compiled(given(draw.offset))
    return Compiled(_unknown, draw=draw, given=given)
