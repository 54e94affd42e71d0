"""Output of iproute2's `ip -j addr`, `ip -j route show table all` and `ip -j rule` → model.

Sources: ip-address(8), ip-route(8), ip-rule(8), and iproute2's ipaddress.c, iproute.c, iprule.c, which print more
than the pages tell. Numeric output (`ip -N`) is understood too. Every function raises EvidenceError naming the file
where the text is not such output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, TypeVar

from ktp.errors import EvidenceError
from ktp.model.host import Interface, InterfaceAddress, IPNetwork, NextHop, Route, RoutingRule
from ktp.parse.text import (
    SHAPE_ERRORS,
    gc_paused,
    list_of,
    load_json,
    number_of,
    object_of,
    optional_string,
    string_of,
    strings_of,
)

T = TypeVar("T")

# /etc/iproute2/rt_tables and linux/rtnetlink.h (RT_TABLE_*, RT_SCOPE_*, RTN_*).
_TABLES = {"253": "default", "254": "main", "255": "local"}
_SCOPES = {"0": "global", "200": "site", "253": "link", "254": "host", "255": "nowhere"}
_TYPES = {
    "1": "unicast",
    "2": "local",
    "3": "broadcast",
    "4": "anycast",
    "5": "multicast",
    "6": "blackhole",
    "7": "unreachable",
    "8": "prohibit",
    "9": "throw",
    "10": "nat",
}
# /etc/iproute2/rt_dsfield, old names and new ones.
_DSFIELDS = {
    "default": 0x00,
    "lowdelay": 0x10,
    "throughput": 0x08,
    "reliability": 0x04,
    "mincost": 0x02,
    **{f"CS{n}": n << 5 for n in range(8)},
    **{f"AF{n}{m}": n << 5 | m << 3 for n in range(1, 5) for m in range(1, 4)},
    "EF": 0xB8,
}

# What `ip -j rule` prints that the fields of RoutingRule hold, and what has no say in the lookup.
_MODELLED_RULE_KEYS = frozenset(
    [
        "priority",
        "not",
        "src",
        "srclen",
        "dst",
        "dstlen",
        "tos",
        "fwmark",
        "fwmask",
        "iif",
        "oif",
        "l3mdev",
        "uid_start",
        "uid_end",
        "ipproto",
        "sport",
        "sport_start",
        "sport_end",
        "dport",
        "dport_start",
        "dport_end",
        "table",
        "suppress_prefixlen",
        "goto",
        "nop",
        "action",
    ]
)
_IDLE_RULE_KEYS = frozenset(
    ("protocol", "flow_from", "flow_to", "realms", "iif_detached", "oif_detached", "unresolved")
)


# ----------------------------------------------------------------------------------------------------- interfaces


def parse_interfaces(data: bytes | str, *, source: str = "ip-addr.json") -> tuple[Interface, ...]:
    """The devices of `ip -j addr`, in index order as printed; addresses of other families are left out."""
    return tuple(_parse_entries(data, source, _interface, "ip -j addr"))


def _interface(entry: dict[str, Any]) -> Interface:
    name = string_of(entry.get("ifname"))
    if not name:
        raise ValueError("it has no ifname")
    addresses = [_address(object_of(info)) for info in list_of(entry.get("addr_info"))]
    return Interface(
        name=name,
        index=number_of(entry.get("ifindex"), 0),
        flags=frozenset(strings_of(entry.get("flags"))),
        link_type=string_of(entry.get("link_type"), "ether"),
        master=optional_string(entry.get("master")),
        kind=optional_string(object_of(entry.get("linkinfo")).get("info_kind")),
        mtu=number_of(entry.get("mtu"), None),
        addresses=tuple(address for address in addresses if address is not None),
    )


def _address(info: dict[str, Any]) -> InterfaceAddress | None:
    if info.get("family") not in ("inet", "inet6") or not info.get("local"):
        return None
    ip = ip_address(string_of(info["local"]))
    scope = str(info.get("scope") or "global")
    return InterfaceAddress(
        ip=ip,
        prefixlen=number_of(info.get("prefixlen"), ip.max_prefixlen),
        scope=_SCOPES.get(scope, scope),
        secondary=bool(info.get("secondary")),
        peer=ip_address(string_of(info["address"])) if info.get("address") else None,
        deprecated=bool(info.get("deprecated")),
    )


# --------------------------------------------------------------------------------------------------------- routes


def parse_routes(
    data: bytes | str, *, source: str = "ip-route.json", family: int | None = None
) -> tuple[Route, ...]:
    """The routes of `ip -j route show table all`, in the order printed.

    `family` 4 or 6 is that of every route; None where both may occur, as `ip route show table all` without -4 or -6
    prints first IPv4's and then IPv6's. The family of a "default" is then told by its gateway or by the preference
    (`pref`) that IPv6 routes alone have, or, with neither, by its place.
    """
    saw_ipv6 = False

    def parse(entry: dict[str, Any]) -> Route:
        nonlocal saw_ipv6
        own = family or _family_of(entry) or (6 if saw_ipv6 else 4)
        saw_ipv6 = saw_ipv6 or own == 6
        return _route(entry, own)

    return tuple(_parse_entries(data, source, parse, "ip -j route show table all"))


def merge_routes(first: Iterable[Route], second: Iterable[Route]) -> tuple[Route, ...]:
    """`first`, then what of `second` is not in it: newer iproute2 prints IPv6 routes without -6 as well."""
    routes = tuple(first)
    known = frozenset(routes)
    return (*routes, *[route for route in second if route not in known])


def _family_of(entry: dict[str, Any]) -> int | None:
    destination = string_of(entry.get("dst"))
    if ":" in destination or entry.get("pref") is not None:
        return 6
    if destination[:1].isdigit() or entry.get("via"):  # `via` is an IPv4 route's gateway of the other family
        return 4
    for hop in (entry, *map(object_of, list_of(entry.get("nexthops")))):
        for key in ("gateway", "prefsrc", "from"):
            if hop.get(key):
                return 6 if ":" in string_of(hop[key]) else 4
        if hop.get("via"):
            return 4
    return None


def _route(entry: dict[str, Any], family: int) -> Route:
    kind = string_of(entry.get("type"), "unicast")
    scope = str(entry.get("scope") or "global")
    hops = [_next_hop(object_of(hop)) for hop in list_of(entry.get("nexthops"))]
    if not hops and (entry.get("dev") or entry.get("gateway") or entry.get("via")):
        hops = [_next_hop(entry)]
    metric = next((m for m in _metrics(entry) if "mtu" in m), {})
    return Route(
        dst=_network(string_of(entry.get("dst"), "default"), family),
        type=_TYPES.get(kind, kind),
        table=_table(entry.get("table")) or "main",
        nexthops=tuple(hops),
        prefsrc=ip_address(string_of(entry["prefsrc"])) if entry.get("prefsrc") else None,
        metric=number_of(entry.get("metric"), 0),
        scope=_SCOPES.get(scope, scope),
        protocol=str(entry.get("protocol") or "boot"),
        tos=_dsfield(entry.get("tos")),
        src=_network(string_of(entry["from"]), family) if entry.get("from") not in (None, "all") else None,
        mtu=number_of(metric.get("mtu"), None),
        mtu_locked=metric["lock"] if isinstance(metric.get("lock"), bool) else None,
    )


def _metrics(route: dict[str, Any]) -> list[dict[str, Any]]:
    """`"metrics": [{"mtu": 1450}]`, and the form without the list."""
    return [route, *map(object_of, list_of(route.get("metrics")))]


def _next_hop(hop: dict[str, Any]) -> NextHop:
    flags = list_of(hop.get("flags"))
    gateway = hop.get("gateway") or object_of(hop.get("via")).get("host")
    return NextHop(
        dev=optional_string(hop.get("dev")),
        gateway=ip_address(string_of(gateway)) if gateway else None,
        weight=number_of(hop.get("weight"), 1),
        dead="dead" in flags,
        linkdown="linkdown" in flags,
    )


# ---------------------------------------------------------------------------------------------------------- rules


def parse_rules(
    data: bytes | str, *, source: str = "ip-rule.json", family: int = 4
) -> tuple[RoutingRule, ...]:
    """The rules of `ip -j rule` (or `ip -6 -j rule`: `family` 6), in the order printed, which is the lookup's.

    A condition or action that RoutingRule has no field for is named in `unsupported`.
    """
    return tuple(_parse_entries(data, source, lambda entry: _rule(entry, family), "ip -j rule"))


def _rule(entry: dict[str, Any], family: int) -> RoutingRule:
    priority = number_of(entry.get("priority"), None)
    if priority is None:
        raise ValueError("it has no priority")
    table = _table(entry.get("table"))
    unsupported = [
        key if value is None else f"{key} {value}"
        for key, value in entry.items()
        if key not in _MODELLED_RULE_KEYS and key not in _IDLE_RULE_KEYS
    ]
    goto = entry.get("goto")
    if goto is not None:
        action = "goto"
    elif "nop" in entry:
        action = "nop"
    else:
        action = string_of(entry.get("action"), "lookup")
        action = {"to_tbl": "lookup", "table": "lookup"}.get(action, _TYPES.get(action, action))
    return RoutingRule(
        priority=priority,
        table=table,
        action=action,
        src=_selector(entry.get("src"), entry.get("srclen"), family),
        dst=_selector(entry.get("dst"), entry.get("dstlen"), family),
        iif=optional_string(entry.get("iif")),
        oif=optional_string(entry.get("oif")),
        fwmark=_hexadecimal(entry.get("fwmark")),
        fwmask=0xFFFFFFFF if entry.get("fwmask") is None else _hexadecimal(entry["fwmask"]) or 0,
        tos=_dsfield(entry["tos"]) if entry.get("tos") is not None else None,
        ipproto=_protocol(entry.get("ipproto")),
        sport=_span(entry, "sport", "sport_start", "sport_end"),
        dport=_span(entry, "dport", "dport_start", "dport_end"),
        uidrange=_span(entry, "uid", "uid_start", "uid_end"),
        suppress_prefixlength=number_of(entry.get("suppress_prefixlen"), None),
        goto=None if goto in (None, "none") else number_of(goto, None),
        inverted="not" in entry,
        l3mdev="l3mdev" in entry,
        unsupported=tuple(unsupported),
    )


def _selector(address: Any, length: Any, family: int) -> IPNetwork | None:
    text = string_of(address, "all")
    if text == "all":
        return None
    return _network(text if length is None else f"{text}/{number_of(length, 0)}", family)


def _span(entry: dict[str, Any], one: str, start: str, end: str) -> tuple[int, int] | None:
    if entry.get(one) is not None:
        number = number_of(entry[one], 0)
        return number, number
    if entry.get(start) is None:
        return None
    low = number_of(entry[start], 0)
    return low, number_of(entry.get(end), low)


def _protocol(value: Any) -> str | None:
    """A protocol's name, or its number as text where iproute2 knows no name for it ("ipproto-200")."""
    return None if value is None else str(value).removeprefix("ipproto-")


# ---------------------------------------------------------------------------------------------------------- pieces


def _parse_entries(
    data: bytes | str, source: str, parse: Callable[[dict[str, Any]], T], command: str
) -> list[T]:
    """`parse` of every object of the array; empty objects, which old iproute2 prints for what it left out, skipped."""
    remedy = f"write it again: {command}"
    with gc_paused():
        document = load_json(data, source, remedy=remedy)
        if not isinstance(document, list):
            raise EvidenceError(f"{source} is not the output of `{command}`", hint=remedy)
        parsed = []
        for index, entry in enumerate(document):
            try:
                if object_of(entry):
                    parsed.append(parse(entry))
            except SHAPE_ERRORS as error:
                words = f"entry {index + 1} of {source} is not one of `{command}`: {error}"
                raise EvidenceError(words, hint=remedy) from error
    return parsed


def _network(text: str, family: int) -> IPNetwork:
    if text in ("default", "all", "any"):
        text = "0.0.0.0/0" if family == 4 else "::/0"
    return IPv6Network(text, strict=False) if ":" in text else IPv4Network(text, strict=False)


def _table(value: Any) -> str | None:
    return None if value is None else _TABLES.get(str(value), str(value))


def _dsfield(value: Any) -> int:
    if value is None:
        return 0
    text = str(value)
    return _DSFIELDS[text] if text in _DSFIELDS else int(text, 0)


def _hexadecimal(value: Any) -> int | None:
    """A mark: "0x4000", or 0 without a prefix."""
    return None if value is None else int(str(value), 0)
