"""An nftables ruleset: tables, chains, sets, maps, stateful objects, and rules made of statements and expressions.

The names are those of nft(8) and libnftables-json(5). `str()` of an expression, a statement or a rule is its text
as `nft list ruleset` prints it. What the parsers do not know is kept as `UnsupportedExpression` or
`UnsupportedStatement` with its source, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

# ------------------------------------------------------------------------------------------------- data types

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
_BARE_META = frozenset({"iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup"})

Value: TypeAlias = "int | str | bool"


def _duration(seconds: int) -> str:
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
        return _duration(value)
    if isinstance(value, str) and datatype in _QUOTED_TYPES and value != "*":
        return f'"{value}"'
    return str(value)


# ------------------------------------------------------------------------------------------------ expressions


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant: a number, a boolean (`exists`, `missing`), or a word as nft prints it (address, protocol, flag)."""

    value: Value

    def __str__(self) -> str:
        return render_value(self.value, None)


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`*`: in a set the element that takes what no other takes; as a range, every value."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True, slots=True)
class SetReference:
    """`@name`: a named set or map of the same table."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, slots=True)
class Prefix:
    """`addr/len`."""

    address: Expression
    length: int

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


@dataclass(frozen=True, slots=True)
class Range:
    """`low-high`, both included."""

    low: Expression
    high: Expression

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class Concat:
    """`a . b . c`."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class Flags:
    """Several constants of a bitmask type, `syn,ack` or `syn | ack`: the bits of all of them."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class Binary:
    """A bitwise operation: `operator` is one of `& | ^ << >>`."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class Payload:
    """A field of a packet header, `tcp dport`; `th` is whatever transport header there is."""

    protocol: str
    field: str

    def __str__(self) -> str:
        return f"{self.protocol} {self.field}"


@dataclass(frozen=True, slots=True)
class RawPayload:
    """`@base,offset,length` in bits; `base` is ll, nh, th or ih."""

    base: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"@{self.base},{self.offset},{self.length}"


@dataclass(frozen=True, slots=True)
class ExtensionHeader:
    """An IPv6 extension header, or an option or chunk of IP, TCP, DCCP, SCTP; without `field` its presence.

    `kind` is "exthdr", "tcp option", "ip option", "sctp chunk" or "dccp option".
    """

    kind: str
    name: str
    field: str | None = None

    def __str__(self) -> str:
        if self.kind == "exthdr":
            return f"exthdr {self.name}" if self.field is None else f"{self.name} {self.field}"
        return f"{self.kind} {self.name}" if self.field is None else f"{self.kind} {self.name} {self.field}"


@dataclass(frozen=True, slots=True)
class Meta:
    """`meta key`."""

    key: str

    def __str__(self) -> str:
        return self.key if self.key in _BARE_META else f"meta {self.key}"


@dataclass(frozen=True, slots=True)
class Ct:
    """`ct [original|reply] key` of the packet's connection; the family is part of the key: `ip saddr`."""

    key: str
    direction: str | None = None

    def __str__(self) -> str:
        return f"ct {self.direction} {self.key}" if self.direction else f"ct {self.key}"


@dataclass(frozen=True, slots=True)
class Fib:
    """`fib FLAGS result`: a route lookup; `flags` of saddr, daddr, mark, iif, oif, `result` oif, oifname or type."""

    result: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"fib {' . '.join(self.flags)} {self.result}"


@dataclass(frozen=True, slots=True)
class Socket:
    """`socket key`: of the socket that would take the packet; `level` is of `cgroupv2`."""

    key: str
    level: int | None = None

    def __str__(self) -> str:
        return f"socket {self.key}" if self.level is None else f"socket {self.key} level {self.level}"


@dataclass(frozen=True, slots=True)
class Rt:
    """`rt [family] key`: of the route that the packet takes."""

    key: str
    family: str | None = None

    def __str__(self) -> str:
        return f"rt {self.family} {self.key}" if self.family else f"rt {self.key}"


@dataclass(frozen=True, slots=True)
class Numgen:
    """`numgen inc|random mod N offset M`."""

    mode: str
    mod: int
    offset: int = 0

    def __str__(self) -> str:
        return f"numgen {self.mode} mod {self.mod}" + (f" offset {self.offset}" if self.offset else "")


@dataclass(frozen=True, slots=True)
class Jhash:
    """`jhash EXPR mod N seed S offset M`."""

    expression: Expression
    mod: int
    seed: int | None = None
    offset: int = 0

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed 0x{self.seed:x}"
        return f"jhash {self.expression} mod {self.mod}{seed}" + (
            f" offset {self.offset}" if self.offset else ""
        )


@dataclass(frozen=True, slots=True)
class Symhash:
    """`symhash mod N offset M`: a hash that is the same in both directions."""

    mod: int
    offset: int = 0

    def __str__(self) -> str:
        return f"symhash mod {self.mod}" + (f" offset {self.offset}" if self.offset else "")


@dataclass(frozen=True, slots=True)
class Osf:
    """`osf [ttl T] name|version`: passive fingerprint of the sender's operating system."""

    key: str = "name"
    ttl: str | None = None

    def __str__(self) -> str:
        return f"osf ttl {self.ttl} {self.key}" if self.ttl else f"osf {self.key}"


@dataclass(frozen=True, slots=True)
class Ipsec:
    """`ipsec in|out [spnum N] [family] key` of the packet's IPsec state."""

    key: str
    direction: str
    spnum: int = 0
    family: str | None = None

    def __str__(self) -> str:
        words = ["ipsec", self.direction]
        if self.spnum:
            words += ["spnum", str(self.spnum)]
        if self.family:
            words.append(self.family)
        return " ".join([*words, self.key])


@dataclass(frozen=True, slots=True)
class SetElement:
    """An element of a set (`value` None) or map; `statements` are those it carries, such as a counter of its own."""

    key: Expression
    value: MapValue | None = None
    timeout: int | None = None
    expires: int | None = field(default=None, compare=False)
    comment: str | None = None
    statements: tuple[Statement, ...] = ()

    def __str__(self) -> str:
        return render_element(self, (), ())


@dataclass(frozen=True, slots=True)
class AnonymousSet:
    """`{ a, b }`, or `{ a : x, b : y }` where the elements have values."""

    elements: tuple[SetElement, ...]

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class MapLookup:
    """`key map @name` or `key map { … }`: the value that the map has for the key."""

    key: Expression
    data: SetReference | AnonymousSet

    def __str__(self) -> str:
        return render(self, None)


@dataclass(frozen=True, slots=True)
class UnsupportedExpression:
    """An expression that ktp does not know, in its source's words (nft text, or JSON)."""

    raw: str

    def __str__(self) -> str:
        return self.raw


Expression: TypeAlias = (
    "Immediate | Wildcard | SetReference | Prefix | Range | Concat | Flags | Binary | Payload | RawPayload"
    " | ExtensionHeader | Meta | Ct | Fib | Socket | Rt | Numgen | Jhash | Symhash | Osf | Ipsec | AnonymousSet"
    " | MapLookup | UnsupportedExpression"
)


def datatype_of(expression: Expression) -> str | None:
    """The nft data type of what the expression yields ("ipv4_addr", "mark", "inet_service"), None if it has none."""
    match expression:
        case Payload(protocol, name):
            if name in ("dport", "sport") and protocol in PORT_PROTOCOLS:
                return "inet_service"
            return PAYLOAD_TYPES.get((protocol, name))
        case Meta(key):
            return META_TYPES.get(key)
        case Ct(key):
            return CT_TYPES.get(key)
        case Fib(result):
            return {"oif": "iface_index", "oifname": "ifname", "type": "fib_addrtype"}.get(result)
        case Socket("mark"):
            return "mark"
        case Rt("nexthop", family):
            return "ipv6_addr" if family == "ip6" else "ipv4_addr"
        case Rt("classid"):
            return "realm"
        case Osf():
            return "string"
        case Binary(_, left, right):
            return datatype_of(left) or datatype_of(right)
        case _:
            return None


def datatypes_of(expression: Expression) -> tuple[str | None, ...]:
    """The data types of the parts of a concatenation, or the one of anything else."""
    if isinstance(expression, Concat):
        return tuple(datatype_of(part) for part in expression.parts)
    return (datatype_of(expression),)


_PRECEDENCE = {"|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4}


def render(expression: Expression, datatype: str | None) -> str:
    """The expression in nft's syntax; `datatype` is what its constants are of."""
    match expression:
        case Immediate(value):
            return render_value(value, datatype)
        case Range(low, high):
            return f"{render(low, datatype)}-{render(high, datatype)}"
        case Flags(parts):
            return ",".join(render(part, datatype) for part in parts)
        case Concat(parts):
            return " . ".join(render(part, datatype) for part in parts)
        case Binary(operator, left, right):
            own = datatype_of(expression) or datatype
            return f"{_operand(left, operator, own)} {operator} {_operand(right, operator, own, right=True)}"
        case AnonymousSet(elements):
            return f"{{ {', '.join(render_element(e, (datatype,), ()) for e in elements)} }}"
        case MapLookup(key, data):
            if isinstance(data, SetReference):
                return f"{key} map {data}"
            return f"{key} map {_render_map(data, datatypes_of(key), (datatype,))}"
        case _:
            return str(expression)


def _operand(expression: Expression, operator: str, datatype: str | None, *, right: bool = False) -> str:
    if isinstance(expression, Flags):
        return f"({' | '.join(render(part, datatype) for part in expression.parts)})"
    text = render(expression, datatype)
    if isinstance(expression, Binary):
        own, outer = _PRECEDENCE[expression.operator], _PRECEDENCE[operator]
        if own < outer or (right and own == outer):
            return f"({text})"
    return text


def _render_typed(expression: Expression, datatypes: tuple[str | None, ...]) -> str:
    """A key or value of a set, part by part."""
    if isinstance(expression, Concat):
        padded = datatypes + (None,) * (len(expression.parts) - len(datatypes))
        return " . ".join(
            _render_typed(part, (t,)) for part, t in zip(expression.parts, padded, strict=False)
        )
    if isinstance(expression, Flags):
        return " | ".join(_render_typed(part, datatypes) for part in expression.parts)
    return render(expression, datatypes[0] if datatypes else None)


def render_element(
    element: SetElement,
    key_types: tuple[str | None, ...],
    value_types: tuple[str | None, ...],
    *,
    updating: bool = False,
) -> str:
    """A set element with its options, and its value after `:` where it has one.

    `updating`: as `add @set { … }` spells it, with the timeout first and statements that have not counted yet.
    """
    words = []
    if element.timeout is not None:
        words.append(f"timeout {_duration(element.timeout)}")
    if element.expires is not None:
        words.append(f"expires {_duration(element.expires)}")
    if updating:
        words += [str(statement).removesuffix(" packets 0 bytes 0") for statement in element.statements]
    else:
        words[:0] = [str(statement) for statement in element.statements]
    words.insert(0, _render_typed(element.key, key_types))
    if element.comment is not None:
        words.append(f'comment "{element.comment}"')
    if element.value is not None:
        value = element.value
        words += [":", str(value) if isinstance(value, Verdict) else _render_typed(value, value_types)]
    return " ".join(words)


def _render_map(
    data: AnonymousSet, key_types: tuple[str | None, ...], value_types: tuple[str | None, ...]
) -> str:
    return f"{{ {', '.join(render_element(e, key_types, value_types) for e in data.elements)} }}"


# ------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accept`, `drop`, `continue`, `return`, `jump TARGET`, `goto TARGET`; also as a value of a verdict map."""

    kind: str
    target: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.target}" if self.target is not None else self.kind


@dataclass(frozen=True, slots=True)
class Match:
    """A condition. `operator` is `== != < > <= >=`, `in` (any of the bits) or `!` (none of the bits)."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        types = datatypes_of(self.left)
        left, operator, right = self.left, self.operator, self.right
        if isinstance(right, AnonymousSet):
            value = _render_map(right, types, ())
        elif isinstance(right, Flags) and operator in ("==", "!="):
            value = " | ".join(render(part, types[0]) for part in right.parts)
        else:
            value = render(right, types[0]) if len(types) == 1 else _render_typed(right, types)
        if (
            isinstance(left, Binary)
            and left.operator == "&"
            and types[0] == "tcp_flag"
            and operator in ("==", "!=")
        ):
            # `tcp flags syn / syn,ack`: the value, then the mask (nft(8), "Tcp header expression").
            mask = left.right
            if (
                isinstance(mask, Immediate | Flags)
                and isinstance(right, Immediate | Flags)
                and right != Immediate(0)
            ):
                shown = "!= " if operator == "!=" else ""
                return f"{left.left} {shown}{render(right, types[0])} / {render(mask, types[0])}"
        implied = operator == "in" or (
            operator == "=="
            and not isinstance(left, Binary)
            and not (types[0] in BITMASK_TYPES and not isinstance(right, AnonymousSet | SetReference))
        )
        return f"{left} {value}" if implied else f"{left} {operator} {value}"


@dataclass(frozen=True, slots=True)
class Vmap:
    """`key vmap @name` or `key vmap { … }`: the verdict that the map has for the key, if it has one."""

    key: Expression
    data: SetReference | AnonymousSet | UnsupportedExpression

    def __str__(self) -> str:
        if isinstance(self.data, AnonymousSet):
            return f"{self.key} vmap {_render_map(self.data, datatypes_of(self.key), ())}"
        return f"{self.key} vmap {self.data}"


@dataclass(frozen=True, slots=True)
class Reject:
    """`type` is icmp, icmpv6, icmpx or "tcp reset"; `code` the ICMP code's name; `bare` where nft prints none."""

    type: str
    code: Expression | None = None
    bare: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.bare:
            return "reject"
        return f"reject with {self.type}" if self.code is None else f"reject with {self.type} {self.code}"


@dataclass(frozen=True, slots=True)
class Nat:
    """`dnat`, `snat`, `masquerade` or `redirect` (`kind`).

    `type_flags` are "interval", "prefix" and "concat" (the map behind `address` yields `addr . port`; old nft does
    not say so).
    """

    kind: str
    family: str | None = None
    address: Expression | None = None
    port: Expression | None = None
    flags: tuple[str, ...] = ()
    type_flags: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        words = [self.kind]
        if self.family:
            words.append(self.family)
        data = self.address.data if isinstance(self.address, MapLookup) else None
        if "concat" in self.type_flags or (
            isinstance(data, AnonymousSet) and any(isinstance(e.value, Concat) for e in data.elements)
        ):
            words.append("addr . port")
        words += [flag for flag in self.type_flags if flag != "concat"]
        if self.address is not None or self.port is not None:
            words.append("to")
            address = "" if self.address is None else self._address()
            words.append(address if self.port is None else f"{address}:{self.port}")
        if self.flags:
            words.append(",".join(self.flags))
        return " ".join(words)

    def _address(self) -> str:
        address = self.address
        if self.port is not None and isinstance(address, Immediate | Range) and ":" in str(address):
            if isinstance(address, Range):
                return f"[{address.low}]-[{address.high}]"
            return f"[{address}]"
        return str(address)


@dataclass(frozen=True, slots=True)
class Mangle:
    """`KEY set VALUE`: changes a header field, the packet's mark, its connection's mark …"""

    key: Expression
    value: Expression

    def __str__(self) -> str:
        return f"{self.key} set {render(self.value, datatype_of(self.key))}"


@dataclass(frozen=True, slots=True)
class SetUpdate:
    """`add|update|delete @set { key … [: data] }`: the packet writes to a set or map."""

    operation: str
    set: str
    element: SetElement

    def __str__(self) -> str:
        types = datatypes_of(self.element.key)
        return f"{self.operation} @{self.set} {{ {render_element(self.element, types, (), updating=True)} }}"


@dataclass(frozen=True, slots=True)
class Counter:
    """`counter`, or `counter name …` where `name` is set: a name, or a map lookup of one. Counts do not compare."""

    packets: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)
    name: Expression | None = None

    def __str__(self) -> str:
        if self.name is not None:
            return f"counter name {render(self.name, 'counter')}"
        return f"counter packets {self.packets} bytes {self.bytes}"


@dataclass(frozen=True, slots=True)
class Limit:
    """`limit rate [over] N/UNIT burst B`, or `limit name …`."""

    rate: int = 0
    per: str = "second"
    burst: int = 5
    rate_unit: str = "packets"
    burst_unit: str = "packets"
    over: bool = False
    name: Expression | None = None

    def __str__(self) -> str:
        if self.name is not None:
            return f"limit name {render(self.name, 'limit')}"
        return f"limit {self.body()}"

    def body(self, *, default_burst: bool = False) -> str:
        """The words after `limit`; with the burst also where it is the usual one, if `default_burst`."""
        unit = "" if self.rate_unit == "packets" else f" {self.rate_unit}"
        text = f"rate {'over ' if self.over else ''}{self.rate}{unit}/{self.per}"
        if self.rate_unit == "packets":
            return text if self.burst == 5 and not default_burst else f"{text} burst {self.burst} packets"
        return text if not self.burst else f"{text} burst {self.burst} {self.burst_unit}"


@dataclass(frozen=True, slots=True)
class Quota:
    """`quota [over] N bytes [used M bytes]`, or `quota name …`. Both numbers are bytes."""

    value: int = 0
    used: int = field(default=0, compare=False)
    over: bool = False
    name: Expression | None = None

    def __str__(self) -> str:
        if self.name is not None:
            return f"quota name {render(self.name, 'quota')}"
        return f"quota {self.body()}"

    def body(self) -> str:
        """The words after `quota`."""
        used = f" used {_in_units(self.used)}" if self.used else ""
        return f"{'over ' if self.over else ''}{_in_units(self.value)}{used}"


def _in_units(number: int) -> str:
    """`25 mbytes`: the largest unit that divides it (src/rule.c, get_rate)."""
    unit = 0
    while number and number % 1024 == 0 and unit < 2:
        number //= 1024
        unit += 1
    return f"{number} {('bytes', 'kbytes', 'mbytes')[unit]}"


@dataclass(frozen=True, slots=True)
class CtCount:
    """`ct count [over] N`: connections that match this rule (or element)."""

    value: int
    over: bool = False

    def __str__(self) -> str:
        return f"ct count {'over ' if self.over else ''}{self.value}"


@dataclass(frozen=True, slots=True)
class CtObject:
    """`ct helper|timeout|expectation set NAME`: attaches a named object to the connection."""

    kind: str
    name: Expression

    def __str__(self) -> str:
        return f"ct {self.kind} set {render(self.name, f'ct {self.kind}')}"


@dataclass(frozen=True, slots=True)
class Log:
    """`log` with its options. No effect on the packet, except that it is logged."""

    prefix: str | None = None
    level: str | None = None
    group: int | None = None
    snaplen: int | None = None
    queue_threshold: int | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = ["log"]
        if self.prefix is not None:
            words.append(f'prefix "{self.prefix}"')
        if self.group is not None:
            words.append(f"group {self.group}")
        if self.snaplen is not None:
            words.append(f"snaplen {self.snaplen}")
        if self.queue_threshold is not None:
            words.append(f"queue-threshold {self.queue_threshold}")
        if self.level is not None:
            words.append(f"level {self.level}")
        tcp = [flag[4:] for flag in self.flags if flag.startswith("tcp ")]
        if tcp:
            words.append(f"flags tcp {','.join(tcp)}")
        words += [f"flags {flag}" for flag in self.flags if not flag.startswith("tcp ")]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Queue:
    """`queue [flags bypass,fanout] [to N|N-M|expr]`: a program in user space decides."""

    number: Expression | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        flags = f" flags {','.join(self.flags)}" if self.flags else ""
        return f"queue{flags}" + ("" if self.number is None else f" to {self.number}")


@dataclass(frozen=True, slots=True)
class Notrack:
    """`notrack`: no connection tracking for this packet."""

    def __str__(self) -> str:
        return "notrack"


@dataclass(frozen=True, slots=True)
class Dup:
    """`dup to ADDR [device DEV]`: a copy goes elsewhere; the packet itself goes on."""

    address: Expression
    device: Expression | None = None

    def __str__(self) -> str:
        return f"dup to {_device(self.address)}" + (
            "" if self.device is None else f" device {_device(self.device)}"
        )


@dataclass(frozen=True, slots=True)
class Fwd:
    """`fwd [family] to …`: the packet leaves by another device, at ingress or egress of one."""

    device: Expression
    family: str | None = None
    address: Expression | None = None

    def __str__(self) -> str:
        if self.address is None:
            return f"fwd to {_device(self.device)}"
        return f"fwd {self.family or 'ip'} to {self.address} device {_device(self.device)}"


def _device(expression: Expression) -> str:
    if isinstance(expression, Immediate) and isinstance(expression.value, str):
        value = expression.value
        if "." not in value and ":" not in value:
            return f'"{value}"'
    return str(expression)


@dataclass(frozen=True, slots=True)
class Synproxy:
    """`synproxy …`, or `synproxy name …`."""

    mss: int | None = None
    wscale: int | None = None
    flags: tuple[str, ...] = ()
    name: Expression | None = None

    def __str__(self) -> str:
        if self.name is not None:
            return f"synproxy name {render(self.name, 'synproxy')}"
        return " ".join(["synproxy", *self.words()])

    def words(self) -> list[str]:
        """Its options."""
        words = []
        if self.mss is not None:
            words.append(f"mss {self.mss}")
        if self.wscale is not None:
            words.append(f"wscale {self.wscale}")
        if self.flags:
            words.append(" ".join(self.flags))
        return words


@dataclass(frozen=True, slots=True)
class Tproxy:
    """`tproxy [family] to [addr][:port]`: a local socket takes the packet, its addresses unchanged."""

    family: str | None = None
    address: Expression | None = None
    port: Expression | None = None

    def __str__(self) -> str:
        family = f"{self.family} " if self.family else ""
        address = "" if self.address is None else str(self.address)
        if self.port is not None and ":" in address:
            address = f"[{address}]"
        return f"tproxy {family}to {address}" + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True, slots=True)
class FlowOffload:
    """`flow add @table`: later packets of the connection pass by the flow table, not by the rules."""

    operation: str
    flowtable: str

    def __str__(self) -> str:
        return f"flow {self.operation} @{self.flowtable}"


@dataclass(frozen=True, slots=True)
class Meter:
    """`meter NAME size N { KEY STATEMENT }`: a statement with a state for each key."""

    name: str
    key: Expression
    statement: Statement
    size: int | None = None
    timeout: int | None = None

    def __str__(self) -> str:
        size = "" if self.size is None else f" size {self.size}"
        timeout = "" if self.timeout is None else f" timeout {_duration(self.timeout)}"
        return f"meter {self.name}{size} {{ {self.key}{timeout} {self.statement} }}"


@dataclass(frozen=True, slots=True)
class Last:
    """`last`: remembers when it was last met."""

    used: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return "last" if self.used is None else f"last used {self.used}"


@dataclass(frozen=True, slots=True)
class Xt:
    """An x_tables match, target or watcher (`type`) of an iptables-nft rule: nft lists no more than its name."""

    type: str
    name: str

    def __str__(self) -> str:
        return f"xt {self.type} {self.name}"


@dataclass(frozen=True, slots=True)
class UnsupportedStatement:
    """A statement that ktp does not know, in its source's words: what it asks and what it does are unknown."""

    raw: str

    def __str__(self) -> str:
        return self.raw


Statement: TypeAlias = (
    "Match | Verdict | Vmap | Reject | Nat | Mangle | SetUpdate | Counter | Limit | Quota | CtCount | CtObject | Log"
    " | Queue | Notrack | Dup | Fwd | Synproxy | Tproxy | FlowOffload | Meter | Last | Xt | UnsupportedStatement"
)
MapValue: TypeAlias = "Expression | Verdict"


# ---------------------------------------------------------------------------------------------------- objects


@dataclass(frozen=True, slots=True, kw_only=True)
class NftRule:
    """One rule. `index` is its place in the chain from 0; `handle` and `line` (of a text) are 0 where not known."""

    statements: tuple[Statement, ...]
    comment: str | None = None
    index: int = 0
    handle: int = field(default=0, compare=False)
    line: int = field(default=0, compare=False)
    source: str | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The rule as `nft list ruleset` prints it; verbatim where it was read from such a text."""
        if self.source is None:
            words = [str(statement) for statement in self.statements]
            if self.comment is not None:
                words.append(f'comment "{self.comment}"')
            object.__setattr__(self, "source", " ".join(words))
        return self.source or ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class NftChain:
    """A chain; a base chain has `type`, `hook`, `priority` and `policy`."""

    name: str
    rules: tuple[NftRule, ...] = ()
    type: str | None = None
    hook: str | None = None
    priority: int | None = None
    policy: str | None = None
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    comment: str | None = None
    handle: int = field(default=0, compare=False)

    @property
    def is_base(self) -> bool:
        """Whether the kernel calls it at a hook."""
        return self.hook is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class NftSet:
    """A named set. `key_types` has one data type for each part of the key.

    `flags` are of constant, interval, timeout, dynamic; nft 1.0.6 leaves "dynamic" out of its JSON. `typeof` is the
    declaration's text where the set was declared so.
    """

    name: str
    key_types: tuple[str, ...]
    elements: tuple[SetElement, ...] = ()
    flags: tuple[str, ...] = ()
    timeout: int | None = None
    gc_interval: int | None = None
    size: int | None = None
    policy: str | None = None
    auto_merge: bool = False
    statements: tuple[Statement, ...] = ()
    typeof: str | None = field(default=None, compare=False)
    comment: str | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftMap(NftSet):
    """A named map; `value_types` is ("verdict",), data types, or the kind of a stateful object ("counter")."""

    value_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NftObject:
    """A named stateful object.

    `kind` is counter, quota, limit, ct helper, ct timeout, ct expectation, synproxy or secmark. Counters, quotas,
    limits and synproxies have their statement in `statement`; the others their words in `options`.
    """

    kind: str
    name: str
    statement: Counter | Quota | Limit | Synproxy | None = None
    options: Mapping[str, str | int | Mapping[str, int]] = field(default_factory=dict)
    comment: str | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftFlowtable:
    """A flow table: connections in it pass by the rules from ingress on."""

    name: str
    hook: str | None = None
    priority: int | None = None
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    counter: bool = False
    handle: int = field(default=0, compare=False)


# Built-in chains of iptables-nft: table → (chain, type, hook, priority), iptables' nft.c (xtables_ipv4).
_XTABLES_CHAINS: Mapping[str, frozenset[tuple[str, str, str, int]]] = {
    "raw": frozenset({("PREROUTING", "filter", "prerouting", -300), ("OUTPUT", "filter", "output", -300)}),
    "mangle": frozenset(
        {
            ("PREROUTING", "filter", "prerouting", -150),
            ("INPUT", "filter", "input", -150),
            ("FORWARD", "filter", "forward", -150),
            ("OUTPUT", "route", "output", -150),
            ("POSTROUTING", "filter", "postrouting", -150),
        }
    ),
    "filter": frozenset(
        {
            ("INPUT", "filter", "input", 0),
            ("FORWARD", "filter", "forward", 0),
            ("OUTPUT", "filter", "output", 0),
        }
    ),
    "security": frozenset(
        {
            ("INPUT", "filter", "input", 150),
            ("FORWARD", "filter", "forward", 150),
            ("OUTPUT", "filter", "output", 150),
            ("INPUT", "filter", "input", 50),
            ("FORWARD", "filter", "forward", 50),
            ("OUTPUT", "filter", "output", 50),
        }
    ),
    "nat": frozenset(
        {
            ("PREROUTING", "nat", "prerouting", -100),
            ("INPUT", "nat", "input", 100),
            ("OUTPUT", "nat", "output", -100),
            ("POSTROUTING", "nat", "postrouting", 100),
        }
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NftTable:
    """A table. `flags` are of dormant, owner, persist, or "unreadable" where the listing has a flag it garbles."""

    family: str
    name: str
    chains: Mapping[str, NftChain] = field(default_factory=dict)
    sets: Mapping[str, NftSet] = field(default_factory=dict)
    maps: Mapping[str, NftMap] = field(default_factory=dict)
    objects: tuple[NftObject, ...] = ()
    flowtables: tuple[NftFlowtable, ...] = ()
    flags: tuple[str, ...] = ()
    comment: str | None = None
    handle: int = field(default=0, compare=False)

    @property
    def base_chains(self) -> tuple[NftChain, ...]:
        """The chains that the kernel calls."""
        return tuple(chain for chain in self.chains.values() if chain.hook is not None)

    @property
    def is_dormant(self) -> bool:
        """Whether the table's base chains are unhooked (`flags dormant`)."""
        return "dormant" in self.flags

    @property
    def is_xtables(self) -> bool:
        """Whether iptables-nft would take the table for its own: its name and base chains are those of iptables.

        Such a table is in `iptables-save` too, and there with its matches in full.
        """
        builtin = _XTABLES_CHAINS.get(self.name)
        if builtin is None or self.family not in ("ip", "ip6"):
            return False
        base = self.base_chains
        return bool(base) and all((c.name, c.type, c.hook, c.priority) in builtin for c in base)

    def set_or_map(self, name: str) -> NftSet | None:
        """The set or map of that name: they share one name space."""
        return self.sets.get(name) or self.maps.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftRuleset:
    """All nftables of one node, or those that were read. `source` names the file or command."""

    tables: tuple[NftTable, ...]
    source: str = field(default="", compare=False)
    version: str | None = field(default=None, compare=False)

    def table(self, family: str, name: str) -> NftTable | None:
        """The table or None."""
        for table in self.tables:
            if table.family == family and table.name == name:
                return table
        return None

    def base_chains(self) -> Iterator[tuple[NftTable, NftChain]]:
        """Every base chain with its table, in the listing's order."""
        for table in self.tables:
            for chain in table.base_chains:
                yield table, chain


# -------------------------------------------------------------------------------------------------- priorities

_INET_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}
# Names that nft prints only at these hooks (src/rule.c, std_prio_family_hook_compatible).
_PRIORITY_HOOKS = {
    "dstnat": frozenset({"prerouting"}),
    "srcnat": frozenset({"postrouting"}),
    "out": frozenset({"output"}),
}


def priority_names(family: str) -> Mapping[str, int]:
    """The names of standard priorities of a family (nft(8), "Standard priority names")."""
    if family == "bridge":
        return _BRIDGE_PRIORITIES
    if family in ("arp", "netdev"):
        return {"filter": 0}
    return _INET_PRIORITIES


def render_priority(family: str, hook: str | None, priority: int) -> str:
    """`filter`, `srcnat - 1`, `-400`: as nft prints a priority."""
    for name, standard in priority_names(family).items():
        if abs(standard - priority) <= 10 and hook in _PRIORITY_HOOKS.get(name, {hook}):
            offset = priority - standard
            if offset:
                return f"{name} {'+' if offset > 0 else '-'} {abs(offset)}"
            return name
    return str(priority)
