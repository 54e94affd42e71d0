"""Statements of nft rules: conditions and actions."""

from __future__ import annotations

from dataclasses import field
from typing import TypeAlias

from ktp.model.nftables.expressions import (
    AnonymousSet,
    Binary,
    Concat,
    Expression,
    Flags,
    Immediate,
    MapLookup,
    Range,
    SetElement,
    SetReference,
    UnsupportedExpression,
    Verdict,
    datatype_of,
    datatypes_of,
    render,
    render_element,
    render_map,
    render_typed,
)
from ktp.model.nftables.types import BITMASK_TYPES, duration
from ktp.model.record import dataclass


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
            value = render_map(right, types, ())
        elif isinstance(right, Flags) and operator in ("==", "!="):
            value = " | ".join(render(part, types[0]) for part in right.parts)
        else:
            value = render(right, types[0]) if len(types) == 1 else render_typed(right, types)
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
            return f"{self.key} vmap {render_map(self.data, datatypes_of(self.key), ())}"
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
        timeout = "" if self.timeout is None else f" timeout {duration(self.timeout)}"
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
