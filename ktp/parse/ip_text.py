"""What iproute2 prints for people (`ip -d address`, `ip route show table all`, `ip rule`) → what it prints with -j.

Sources: iproute2's ipaddress.c, iproute.c, iprule.c. Only of the fields that ktp.parse.ip_json reads. Every function
raises ValueError for a line with a word that it does not know: a file that was understood in part would lack routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Json = dict[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DEVICE = re.compile(r"(\d+): ([^:@\s]+)(?:@(\S+))?: <([A-Z0-9,_-]*)> (.*)$")
_KIND = re.compile(r"[a-z][a-z0-9_]*")
# The first word of a line below a device that says nothing of its kind.
_NO_KIND = frozenset(
    ("altname", "alias", "numtxqueues", "valid_lft", "vf", "parentbus", "permaddr", "dummy_slave")
)
_ADDRESS_FLAGS = _words(
    """secondary temporary dynamic deprecated tentative noprefixroute mngtmpaddr dadfailed nodad optimistic home
    autojoin permanent stable-privacy"""
)


def addresses_of(text: str) -> list[Json]:
    """The devices of `ip address`, with -d or without, as `ip -j -d address` has them."""
    found: list[Json] = []
    for line in _lines(text):
        head = _DEVICE.match(line)
        words = line.split()
        if head is not None:
            number, name, peer, flags, rest = head.groups()
            device: Json = {
                "ifindex": int(number),
                "ifname": name,
                "flags": flags.split(","),
                "addr_info": [],
            }
            if peer:
                device["link"] = peer
            values = rest.split()
            for key, value in pairwise(values):
                if key == "mtu":
                    device["mtu"] = int(value)
                elif key == "master":
                    device["master"] = value
            found.append(device)
        elif not found or not line[0].isspace():
            raise ValueError(f"it is no line of `ip address`: {line}")
        elif words[0].startswith("link/"):
            found[-1]["link_type"] = words[0].removeprefix("link/")
        elif words[0] in ("inet", "inet6"):
            found[-1]["addr_info"].append(_address(words))
        elif words[0] in _NO_KIND or words[0].endswith("_slave") or words[0].startswith("prog/"):
            continue
        elif not _KIND.fullmatch(words[0]):
            raise ValueError(f"it is no line of `ip address`: {line}")
        elif "linkinfo" not in found[-1]:
            found[-1]["linkinfo"] = {"info_kind": words[0]}
    return found


def _address(words: list[str]) -> Json:
    family, own, *rest = words
    local, _, length = own.partition("/")
    info: Json = {"family": family, "local": local}
    items = iter(rest)
    for word in items:
        if word == "peer":
            info["address"], _, length = next(items).partition("/")
        elif word in ("brd", "any", "metric", "proto"):
            next(items, "")
        elif word == "scope":
            info["scope"] = next(items)
        elif word in _ADDRESS_FLAGS:
            # IPv6 calls "temporary" what IPv4 calls "secondary".
            info["secondary" if word == "temporary" else word] = True
        else:
            info["label"] = word
    info["prefixlen"] = int(length) if length else 32 if family == "inet" else 128
    return info


# --------------------------------------------------------------------------------------------------------- routes

_TYPES = _words("unicast local broadcast anycast multicast blackhole unreachable prohibit throw nat")
_ROUTE_VALUES = {
    "dev": "dev", "table": "table", "proto": "protocol", "scope": "scope", "src": "prefsrc", "metric": "metric",
    "from": "from", "tos": "tos", "dsfield": "tos", "pref": "pref", "weight": "weight",
}  # fmt: skip
_ROUTE_METRICS = _words(
    """mtu advmss error expires nhid hoplimit initcwnd initrwnd rto_min window rtt rttvar cwnd ssthresh reordering
    congctl quickack realm realms features fastopen_no_cookie users age"""
)
_ROUTE_FLAGS = _words(
    "onlink linkdown dead pervasive offload offload_failed rt_offload_failed rt_trap trap notify unresolved"
)
_NUMBERS = frozenset(("metric", "weight"))


def routes_of(text: str) -> list[Json]:
    """The routes of `ip route show table all`, as `ip -j route show table all` has them."""
    found: list[Json] = []
    for line in _lines(text):
        words = line.split()
        if words[0] == "nexthop":
            if not found:
                raise ValueError(f"it is no route: {line}")
            found[-1].setdefault("nexthops", []).append(_route(words[1:], {}, line))
            continue
        route: Json = {}
        if words[0] in _TYPES:
            route["type"] = words.pop(0)
        if not words or not re.fullmatch(r"default|[0-9a-f.:]+(?:/\d+)?", words[0]):
            raise ValueError(f"it is no route: {line}")
        route["dst"] = words.pop(0)
        found.append(_route(words, route, line))
    return found


def _route(words: list[str], route: Json, line: str) -> Json:
    items = iter(words)
    for word in items:
        if word == "via":
            gateway = next(items, "")
            if gateway in ("inet", "inet6"):
                route["via"] = {"family": gateway, "host": next(items, "")}
            else:
                route["gateway"] = gateway
        elif word in _ROUTE_VALUES:
            value = next(items, "")
            key = _ROUTE_VALUES[word]
            route[key] = int(value) if key in _NUMBERS else value
        elif word in _ROUTE_METRICS:
            value = next(items, "")
            is_locked = value == "lock"
            value = next(items, "") if is_locked else value
            if word == "mtu":
                # `ip -j` has no word for the lock (iproute2, print_rta_metrics).
                route["metrics"] = [{"mtu": int(value), "lock": is_locked}]
        elif word in _ROUTE_FLAGS:
            route.setdefault("flags", []).append(word)
        else:
            raise ValueError(f"the word {word} of a route is not known: {line}")
    return route


# ---------------------------------------------------------------------------------------------------------- rules

_RULE_VALUES = {
    "iif": "iif",
    "oif": "oif",
    "ipproto": "ipproto",
    "tos": "tos",
    "dsfield": "tos",
    "proto": "protocol",
}
_RULE_SPANS = {"sport": "sport", "dport": "dport", "uidrange": "uid"}
_ACTIONS = frozenset(("unreachable", "blackhole", "prohibit"))
_DETACHED = {"[detached]", "[unresolved]"}


def rules_of(text: str) -> list[Json]:
    """The rules of `ip rule`, as `ip -j rule` has them."""
    found = []
    for line in _lines(text):
        number, colon, rest = line.partition(":")
        if not colon or not number.isdigit():
            raise ValueError(f"it is no rule of routing: {line}")
        found.append(_rule(rest.split(), {"priority": int(number)}, line))
    return found


def _rule(words: list[str], rule: Json, line: str) -> Json:
    items = iter(words)
    for word in items:
        if word in ("from", "to"):
            key = "src" if word == "from" else "dst"
            address, _, length = next(items, "").partition("/")
            rule[key] = address
            if length:
                rule[f"{key}len"] = int(length)
        elif word == "fwmark":
            rule["fwmark"], slash, mask = next(items, "").partition("/")
            if slash:
                rule["fwmask"] = mask
        elif word in ("lookup", "table"):
            table = next(items, "")
            if table == "[l3mdev-table]":
                rule["l3mdev"] = None
            else:
                rule["table"] = table
        elif word in _RULE_VALUES:
            rule[_RULE_VALUES[word]] = next(items, "")
        elif word in _RULE_SPANS:
            low, dash, high = next(items, "").partition("-")
            key = _RULE_SPANS[word]
            if dash:
                rule[f"{key}_start"], rule[f"{key}_end"] = int(low), int(high)
            else:
                rule[key] = int(low)
        elif word in ("suppress_prefixlength", "suppress_prefixlen"):
            rule["suppress_prefixlen"] = int(next(items, ""))
        elif word == "goto":
            target = next(items, "")
            rule["goto"] = int(target) if target.isdigit() else target
        elif word in ("not", "nop"):
            rule[word] = None
        elif word in _ACTIONS:
            rule["action"] = word
        elif word not in _DETACHED:
            raise ValueError(f"the word {word} of a rule of routing is not known: {line}")
    return rule


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip():
            yield line.rstrip()
