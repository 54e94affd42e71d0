"""Expressions of nft rules: constants, fields of the packet and the connection, sets and maps."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, TypeAlias

from ktp.model.nftables.types import (
    BARE_META,
    CT_TYPES,
    META_TYPES,
    PAYLOAD_TYPES,
    PORT_PROTOCOLS,
    Value,
    duration,
    render_value,
)
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.model.nftables.statements import Statement


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
        return self.key if self.key in BARE_META else f"meta {self.key}"


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accept`, `drop`, `continue`, `return`, `jump TARGET`, `goto TARGET`; also as a value of a verdict map."""

    kind: str
    target: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.target}" if self.target is not None else self.kind


Expression: TypeAlias = (
    "Immediate | Wildcard | SetReference | Prefix | Range | Concat | Flags | Binary | Payload | RawPayload"
    " | ExtensionHeader | Meta | Ct | Fib | Socket | Rt | Numgen | Jhash | Symhash | Osf | Ipsec | AnonymousSet"
    " | MapLookup | UnsupportedExpression"
)
MapValue: TypeAlias = "Expression | Verdict"


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
            return f"{key} map {render_map(data, datatypes_of(key), (datatype,))}"
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


def render_typed(expression: Expression, datatypes: tuple[str | None, ...]) -> str:
    """A key or value of a set, part by part."""
    if isinstance(expression, Concat):
        padded = datatypes + (None,) * (len(expression.parts) - len(datatypes))
        return " . ".join(render_typed(part, (t,)) for part, t in zip(expression.parts, padded, strict=False))
    if isinstance(expression, Flags):
        return " | ".join(render_typed(part, datatypes) for part in expression.parts)
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
        words.append(f"timeout {duration(element.timeout)}")
    if element.expires is not None:
        words.append(f"expires {duration(element.expires)}")
    if updating:
        words += [str(statement).removesuffix(" packets 0 bytes 0") for statement in element.statements]
    else:
        words[:0] = [str(statement) for statement in element.statements]
    words.insert(0, render_typed(element.key, key_types))
    if element.comment is not None:
        words.append(f'comment "{element.comment}"')
    if element.value is not None:
        value = element.value
        words += [":", str(value) if isinstance(value, Verdict) else render_typed(value, value_types)]
    return " ".join(words)


def render_map(
    data: AnonymousSet, key_types: tuple[str | None, ...], value_types: tuple[str | None, ...]
) -> str:
    """`{ key : value, … }`, keys and values as their data types are printed."""
    return f"{{ {', '.join(render_element(e, key_types, value_types) for e in data.elements)} }}"
