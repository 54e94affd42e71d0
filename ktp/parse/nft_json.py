"""The JSON of `nft -j list ruleset` (libnftables-json(5)) → model.

Every version of nft writes a little differently; what the same rule gives in each is the same here, and the same as
from the text. An object that is not known becomes an `UnsupportedStatement` or `UnsupportedExpression` that holds it.
Known losses of the JSON itself (nft 1.0.6): the flags of a table, `dynamic` and `auto-merge` of a set, the devices
of a base chain, comments of tables and chains, and all of an x_tables match but its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ktp.errors import EvidenceError
from ktp.model.nftables import (
    AnonymousSet,
    Concat,
    Counter,
    Ct,
    CtCount,
    CtObject,
    Dup,
    Expression,
    ExtensionHeader,
    Fib,
    FlowOffload,
    Fwd,
    Immediate,
    Ipsec,
    Jhash,
    Last,
    Limit,
    Log,
    Mangle,
    MapLookup,
    MapValue,
    Match,
    Meta,
    Meter,
    Nat,
    NftChain,
    NftFlowtable,
    NftMap,
    NftObject,
    NftRule,
    NftRuleset,
    NftSet,
    NftTable,
    Notrack,
    Numgen,
    Osf,
    Payload,
    Prefix,
    Queue,
    Quota,
    Range,
    RawPayload,
    Reject,
    Rt,
    SetElement,
    SetReference,
    SetUpdate,
    Socket,
    Statement,
    Symhash,
    Synproxy,
    Tproxy,
    UnsupportedExpression,
    UnsupportedStatement,
    Verdict,
    Vmap,
    Wildcard,
    Xt,
    datatype_of,
    datatypes_of,
)
from ktp.parse.nft_text import binary, flags_of, make_reject, parse_nft_statements, parse_nft_type, typed

_BYTES: Final = {"bytes": 1, "kbytes": 1024, "mbytes": 1024**2}
_TABLE_FLAGS: Final = frozenset({"dormant", "owner", "persist"})
_VERDICTS: Final = frozenset({"accept", "drop", "continue", "return"})
_OBJECTS: Final = frozenset(
    {
        "counter",
        "quota",
        "limit",
        "ct helper",
        "ct timeout",
        "ct expectation",
        "synproxy",
        "secmark",
        "tunnel",
    }
)
_TABLE = re.compile(rb'\{\s*"table"\s*:\s*\{([^{}]*)\}')

Json = Any


def table_names(data: bytes) -> tuple[tuple[str, str], ...]:
    """(family, name) of the tables in the JSON, without reading the rest of it. Empty where there are none."""
    found: list[tuple[str, str]] = []
    for match in _TABLE.finditer(data):
        try:
            table = json.loads(b"{" + match[1] + b"}")
            found.append((str(table["family"]), str(table["name"])))
        except (ValueError, KeyError):
            continue
    return tuple(found)


# ------------------------------------------------------------------------------------------------- expressions


def _unsupported(value: Json) -> UnsupportedExpression:
    return UnsupportedExpression(json.dumps(value, sort_keys=True))


def _expression(value: Json) -> Expression:
    kind = type(value)
    if kind is str:
        if value[:1] == "@":
            return SetReference(value[1:])
        return Wildcard() if value == "*" else Immediate(value)
    if kind is int or kind is bool:
        return Immediate(value)
    if kind is list and value:
        return flags_of([_expression(item) for item in value])
    if kind is dict and len(value) == 1:
        ((name, body),) = value.items()
        parse = _EXPRESSIONS.get(name)
        if parse is not None:
            try:
                return parse(body)
            except (KeyError, TypeError, ValueError, AttributeError):
                return _unsupported(value)
    return _unsupported(value)


def _range(body: Json) -> Expression:
    low, high = body
    return Range(_expression(low), _expression(high))


def _payload(body: Json) -> Expression:
    if "protocol" in body and "tunnel" not in body:
        return Payload(body["protocol"], body["field"])
    if "tunnel" in body:
        return _unsupported({"payload": body})
    return RawPayload(body["base"], int(body["offset"]), int(body["len"]))


def _meta(body: Json) -> Expression:
    key = body["key"]
    return Meta("ipsec" if key == "secpath" else key)


def _ct(body: Json) -> Expression:
    key = body["key"]
    if "family" in body:
        key = f"{body['family']} {key}"
    return Ct(key, body.get("dir"))


def _words(value: Json) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def _option(kind: str) -> Callable[[Json], Expression]:
    def parse(body: Json) -> Expression:
        if "base" in body:
            return ExtensionHeader(kind, f"@{body['base']},{body['offset']},{body['len']}")
        name, key = body["name"], body.get("field")
        if key is not None and "offset" in body:
            key = f"{key}[{body['offset']}]"
        return ExtensionHeader(kind, str(name), key)

    return parse


def _jhash(body: Json) -> Expression:
    return Jhash(_expression(body["expr"]), int(body["mod"]), body.get("seed"), int(body.get("offset", 0)))


def _binary(operator: str) -> Callable[[Json], Expression]:
    def parse(body: Json) -> Expression:
        parts = [_expression(item) for item in body]
        found = parts[0]
        for part in parts[1:]:
            found = binary(operator, found, part)
        return found

    return parse


def _map_data(value: Json) -> SetReference | AnonymousSet:
    found = _expression(value)
    if isinstance(found, SetReference | AnonymousSet):
        return found
    raise ValueError(value)


_EXPRESSIONS: Final[Mapping[str, Callable[[Json], Expression]]] = {
    "prefix": lambda body: Prefix(_expression(body["addr"]), int(body["len"])),
    "range": _range,
    "concat": lambda body: Concat(tuple(_expression(item) for item in body)),
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": lambda body: Fib(body["result"], _words(body["flags"])),
    "set": lambda body: AnonymousSet(_elements(body)),
    "map": lambda body: MapLookup(_expression(body["key"]), _map_data(body["data"])),
    "numgen": lambda body: Numgen(body["mode"], int(body["mod"]), int(body.get("offset", 0))),
    "jhash": _jhash,
    "symhash": lambda body: Symhash(int(body["mod"]), int(body.get("offset", 0))),
    "socket": lambda body: Socket(body["key"], body.get("level")),
    "rt": lambda body: Rt(body["key"], body.get("family")),
    "osf": lambda body: Osf(body["key"], body.get("ttl")),
    "ipsec": lambda body: Ipsec(body["key"], body["dir"], int(body.get("spnum", 0)), body.get("family")),
    "exthdr": _option("exthdr"),
    "tcp option": _option("tcp option"),
    "ip option": _option("ip option"),
    "sctp chunk": _option("sctp chunk"),
    "dccp option": lambda body: ExtensionHeader("dccp option", str(body["type"])),
    **{operator: _binary(operator) for operator in ("&", "|", "^", "<<", ">>")},
}


# ---------------------------------------------------------------------------------------------------- elements


def _elements(value: Json) -> tuple[SetElement, ...]:
    if not isinstance(value, list):
        value = [value]
    return tuple(_element(item) for item in value)


def _element(item: Json) -> SetElement:
    if type(item) is not list:
        return _set_element(item, None)
    if len(item) != 2:
        raise ValueError(item)
    key, value = item
    return _set_element(key, _map_value(value))


def _set_element(item: Json, value: MapValue | None) -> SetElement:
    if type(item) is not dict or "elem" not in item:
        return SetElement(_expression(item), value)
    body = item["elem"]
    timeout = body.get("timeout")
    expires = body.get("expires")
    statements = tuple(
        _statement({name: body[name]}, "inet")
        for name in ("counter", "limit", "quota", "ct count", "last")
        if name in body
    )
    return SetElement(
        _expression(body["val"]),
        value,
        None if timeout is None else int(timeout),
        None if expires is None else int(expires),
        body.get("comment"),
        statements,
    )


def _map_value(value: Json) -> MapValue:
    if type(value) is dict and len(value) == 1:
        ((name, body),) = value.items()
        if name in _VERDICTS:
            return Verdict(name)
        if name in ("jump", "goto"):
            return Verdict(name, body["target"])
    return _expression(value)


# -------------------------------------------------------------------------------------------------- statements


def _statement(item: Json, family: str) -> Statement:
    if type(item) is dict and len(item) == 1:
        ((name, body),) = item.items()
        if name in _VERDICTS:
            return Verdict(name)
        parse = _STATEMENTS.get(name)
        if parse is not None:
            try:
                return parse(body, family)
            except (KeyError, TypeError, ValueError, AttributeError):
                pass
    return UnsupportedStatement(json.dumps(item, sort_keys=True))


def _match(body: Json, _: str) -> Statement:
    left, right = _expression(body["left"]), _expression(body["right"])
    operator = body.get("op", "==")
    if isinstance(left, Immediate):
        raise ValueError(body)
    return Match(operator, left, typed(right, datatype_of(left)))


def _counter(body: Json, _: str) -> Statement:
    if body is None:
        return Counter()
    if isinstance(body, dict) and "packets" in body:
        return Counter(int(body["packets"]), int(body.get("bytes", 0)))
    return Counter(name=_expression(body))


def _limit(body: Json, _: str) -> Limit:
    if not isinstance(body, dict) or "rate" not in body:
        return Limit(name=_expression(body))
    unit = body.get("rate_unit", "packets")
    packets = unit == "packets"
    return Limit(
        int(body["rate"]),
        body.get("per", "second"),
        int(body.get("burst", 5 if packets else 0)),
        unit,
        "packets" if packets else body.get("burst_unit", "bytes"),
        bool(body.get("inv", False)),
    )


def _quota(body: Json, _: str) -> Quota:
    if isinstance(body, dict) and "bytes" in body:
        return Quota(int(body["bytes"]), int(body.get("used", 0)), bool(body.get("inv", False)))
    if isinstance(body, dict) and "val" in body:
        return Quota(
            int(body["val"]) * _BYTES[body.get("val_unit", "bytes")],
            int(body.get("used", 0)) * _BYTES[body.get("used_unit", "bytes")],
            bool(body.get("inv", False)),
        )
    return Quota(name=_expression(body))


def _reject(body: Json, family: str) -> Reject:
    body = body or {}
    code = body.get("expr")
    return make_reject(family, body.get("type"), None if code is None else _expression(code))


def _nat(kind: str) -> Callable[[Json, str], Statement]:
    def parse(body: Json, _: str) -> Statement:
        body = body or {}
        types = _words(body.get("type_flags"))
        # "netmap" is how the kernel calls what the text calls "prefix".
        flags = tuple(flag for flag in _words(body.get("flags")) if flag != "netmap")
        address, port = body.get("addr"), body.get("port")
        return Nat(
            kind,
            body.get("family"),
            None if address is None else _expression(address),
            None if port is None else _expression(port),
            flags,
            types,
        )

    return parse


def _set_update(body: Json, family: str) -> Statement:
    element = _element(body["elem"])
    statements = tuple(_statement(item, family) for item in body.get("stmt", ()))
    value = _map_value(body["data"]) if "data" in body else None
    target = body["set"] if "set" in body else body["map"]
    return SetUpdate(
        body["op"],
        target.removeprefix("@"),
        SetElement(
            element.key,
            value,
            element.timeout,
            element.expires,
            element.comment,
            element.statements + statements,
        ),
    )


def _log(body: Json, _: str) -> Statement:
    body = body or {}
    return Log(
        body.get("prefix"),
        body.get("level"),
        body.get("group"),
        body.get("snaplen"),
        body.get("queue-threshold"),
        _words(body.get("flags")),
    )


def _ct_object(kind: str) -> Callable[[Json, str], Statement]:
    return lambda body, _: CtObject(kind, _expression(body))


def _queue(body: Json, _: str) -> Statement:
    body = body or {}
    number = body.get("num")
    return Queue(None if number is None else _expression(number), _words(body.get("flags")))


def _dup(body: Json, _: str) -> Statement:
    device = body.get("dev")
    return Dup(_expression(body["addr"]), None if device is None else _expression(device))


def _fwd(body: Json, _: str) -> Statement:
    address = body.get("addr")
    return Fwd(
        _expression(body["dev"]), body.get("family"), None if address is None else _expression(address)
    )


def _synproxy(body: Json, _: str) -> Synproxy:
    if body is not None and not isinstance(body, dict):
        return Synproxy(name=_expression(body))
    body = body or {}
    if "map" in body:
        return Synproxy(name=_expression(body))
    return Synproxy(body.get("mss"), body.get("wscale"), _words(body.get("flags")))


def _tproxy(body: Json, _: str) -> Statement:
    address, port = body.get("addr"), body.get("port")
    return Tproxy(
        body.get("family"),
        None if address is None else _expression(address),
        None if port is None else _expression(port),
    )


def _meter(body: Json, family: str) -> Statement:
    element = _element(body["key"])
    statement = body["stmt"]
    if isinstance(statement, list):
        (statement,) = statement
    return Meter(body["name"], element.key, _statement(statement, family), body.get("size"), element.timeout)


def _xt(body: Json, _: str) -> Statement:
    body = body or {}
    return Xt(body.get("type", ""), body.get("name", ""))


_STATEMENTS: Final[Mapping[str, Callable[[Json, str], Statement]]] = {
    "match": _match,
    "jump": lambda body, _: Verdict("jump", body["target"]),
    "goto": lambda body, _: Verdict("goto", body["target"]),
    "vmap": lambda body, _: Vmap(_expression(body["key"]), _map_data(body["data"])),
    "counter": _counter,
    "mangle": lambda body, _: Mangle(_expression(body["key"]), _expression(body["value"])),
    "limit": _limit,
    "quota": _quota,
    "reject": _reject,
    "dnat": _nat("dnat"),
    "snat": _nat("snat"),
    "masquerade": _nat("masquerade"),
    "redirect": _nat("redirect"),
    "set": _set_update,
    "map": _set_update,
    "log": _log,
    "ct helper": _ct_object("helper"),
    "ct timeout": _ct_object("timeout"),
    "ct expectation": _ct_object("expectation"),
    "ct count": lambda body, _: CtCount(int(body["val"]), bool(body.get("inv", False))),
    "queue": _queue,
    "notrack": lambda _body, _family: Notrack(),
    "dup": _dup,
    "fwd": _fwd,
    "synproxy": _synproxy,
    "tproxy": _tproxy,
    "flow": lambda body, _: FlowOffload(body["op"], body["flowtable"].removeprefix("@")),
    "meter": _meter,
    "last": lambda body, _: Last(str(body["used"])) if body else Last(),
    "xt": _xt,
}


# ----------------------------------------------------------------------------------------------------- objects


@dataclass
class _Chain:
    body: Json
    rules: list[NftRule] = field(default_factory=list)


@dataclass
class _Table:
    """A table while its objects come in."""

    family: str
    name: str
    body: Json
    chains: dict[str, _Chain] = field(default_factory=dict)
    sets: dict[str, NftSet] = field(default_factory=dict)
    maps: dict[str, NftMap] = field(default_factory=dict)
    objects: list[NftObject] = field(default_factory=list)
    flowtables: list[NftFlowtable] = field(default_factory=list)

    def finished(self) -> NftTable:
        flags = _words(self.body.get("flags"))
        if any(flag not in _TABLE_FLAGS for flag in flags):
            # nft up to 1.0.6 prints garbage where it should print the flag's name.
            flags = ("unreadable",)
        return NftTable(
            family=self.family,
            name=self.name,
            chains={name: _finished_chain(chain) for name, chain in self.chains.items()},
            sets=self.sets,
            maps=self.maps,
            objects=tuple(self.objects),
            flowtables=tuple(self.flowtables),
            flags=flags,
            comment=self.body.get("comment"),
            handle=self.body.get("handle", 0),
        )


def _finished_chain(chain: _Chain) -> NftChain:
    body = chain.body
    hook = body.get("hook")
    return NftChain(
        name=body["name"],
        rules=tuple(chain.rules),
        type=body.get("type"),
        hook=hook,
        priority=None if hook is None else int(body.get("prio", 0)),
        policy=body.get("policy", None if hook is None else "accept"),
        devices=_words(body.get("dev")),
        flags=_words(body.get("flags")),
        comment=body.get("comment"),
        handle=body.get("handle", 0),
    )


def _types(value: Json) -> tuple[tuple[str, ...], str | None]:
    """A set's or map's type, and its text where it was declared with `typeof`."""
    if isinstance(value, str):
        return parse_nft_type(value), None
    if isinstance(value, list):
        return tuple(value), None
    expression = _expression(value["typeof"])
    return tuple(datatype or "integer" for datatype in datatypes_of(expression)), str(expression)


def _named_set(body: Json, family: str, *, is_map: bool) -> NftSet:
    key_types, typeof = _types(body["type"])
    timeout, interval, size = body.get("timeout"), body.get("gc-interval"), body.get("size")
    common: dict[str, Any] = {
        "name": body["name"],
        "key_types": key_types,
        "elements": _elements(body["elem"]) if "elem" in body else (),
        "flags": _words(body.get("flags")),
        "timeout": None if timeout is None else int(timeout),
        "gc_interval": None if interval is None else int(interval),
        "size": None if size is None else int(size),
        "policy": body.get("policy"),
        "auto_merge": bool(body.get("auto-merge", False)),
        "statements": tuple(_statement(item, family) for item in body.get("stmt", ())),
        "comment": body.get("comment"),
        "handle": body.get("handle", 0),
    }
    if not is_map:
        return NftSet(**common, typeof=typeof)
    value_types, value_typeof = _types(body["map"])
    if typeof is not None:
        typeof = f"{typeof} : {value_typeof or ' . '.join(value_types)}"
    return NftMap(**common, typeof=typeof, value_types=value_types)


_NOT_OPTIONS: Final = frozenset({"family", "name", "table", "handle", "comment"})


def _object(kind: str, body: Json) -> NftObject:
    statement: Counter | Quota | Limit | Synproxy | None = None
    options: dict[str, str | int | Mapping[str, int]] = {}
    if kind == "counter":
        statement = Counter(int(body.get("packets", 0)), int(body.get("bytes", 0)))
    elif kind == "quota":
        statement = _quota(body, "")
    elif kind == "limit":
        statement = _limit(body, "")
    elif kind == "synproxy":
        statement = _synproxy(body, "")
    else:
        options = {key: value for key, value in body.items() if key not in _NOT_OPTIONS}
        if kind == "ct expectation" and isinstance(options.get("timeout"), int):
            options["timeout"] = int(body["timeout"]) // 1000  # milliseconds, unlike every other timeout
    return NftObject(
        kind=kind,
        name=body["name"],
        statement=statement,
        options=options,
        comment=body.get("comment"),
        handle=body.get("handle", 0),
    )


def _flowtable(body: Json) -> NftFlowtable:
    return NftFlowtable(
        name=body["name"],
        hook=body.get("hook"),
        priority=body.get("prio"),
        devices=_words(body.get("dev")),
        flags=_words(body.get("flags")),
        handle=body.get("handle", 0),
    )


def parse_nft_json(data: bytes, source: str, *, skip: Collection[tuple[str, str]] = ()) -> NftRuleset:
    """The JSON of `nft -j list ruleset` as a ruleset, without the tables (family, name) in `skip`.

    EvidenceError where it is something else, or breaks off.
    """
    try:
        document = json.loads(data)
        objects = document["nftables"]
        if not isinstance(objects, list):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise EvidenceError(
            f"{source} is not what `nft -j list ruleset` prints",
            hint="save it with `nft -j list ruleset > FILE`; was the command run as root?",
        ) from None
    tables: dict[tuple[str, str], _Table] = {}
    version: str | None = None
    for item in objects:
        try:
            ((kind, body),) = item.items()
            if kind == "add":
                ((kind, body),) = body.items()
            if kind == "metainfo":
                version = body.get("version")
            elif kind == "table":
                name = (body["family"], body["name"])
                if name not in skip:
                    tables.setdefault(name, _Table(body["family"], body["name"], body))
            else:
                name = (body["family"], body["table"])
                if name not in skip:
                    _place(tables.setdefault(name, _Table(*name, {})), kind, body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EvidenceError(
                f"{source} holds an object that `nft -j list ruleset` does not print: {json.dumps(item)[:200]}",
                hint="save it with `nft -j list ruleset > FILE`",
            ) from error
    return NftRuleset(
        tables=tuple(table.finished() for table in tables.values()), source=source, version=version
    )


def _place(table: _Table, kind: str, body: Json) -> None:
    """Puts one listed object in its table."""
    if kind == "rule":
        chain = table.chains.setdefault(body["chain"], _Chain({"name": body["chain"]}))
        family = table.family
        statements: list[Statement] = []
        for item in body["expr"]:
            if isinstance(item, str):
                # nft prints a statement that it has no JSON for as text.
                statements += parse_nft_statements(item, family)
            else:
                statements.append(_statement(item, family))
        chain.rules.append(
            NftRule(
                statements=tuple(statements),
                comment=body.get("comment"),
                index=len(chain.rules),
                handle=body.get("handle", 0),
            )
        )
    elif kind == "chain":
        table.chains.setdefault(body["name"], _Chain(body)).body = body
    elif kind in ("set", "meter"):
        table.sets[body["name"]] = _named_set(body, table.family, is_map=False)
    elif kind == "map":
        found = _named_set(body, table.family, is_map=True)
        assert isinstance(found, NftMap)
        table.maps[found.name] = found
    elif kind == "flowtable":
        table.flowtables.append(_flowtable(body))
    elif kind in _OBJECTS:
        table.objects.append(_object(kind, body))
    elif kind == "element":
        old = table.maps.get(body["name"]) or table.sets[body["name"]]
        _add_elements(table, old, _elements(body["elem"]))
    else:
        raise ValueError(kind)


def _add_elements(table: _Table, old: NftSet, elements: tuple[SetElement, ...]) -> None:
    new = replace(old, elements=old.elements + elements)
    if isinstance(new, NftMap):
        table.maps[new.name] = new
    else:
        table.sets[new.name] = new
