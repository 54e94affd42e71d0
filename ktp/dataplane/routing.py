"""Routing as net/ipv4/fib_*.c and net/ipv6/ip6_fib.c do it: policy rules, tables, longest prefix, metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ktp.dataplane.packet import PROTOCOLS, Packet, Port
from ktp.model.host import IPNetwork, NextHop, Route, RoutingRule
from ktp.model.record import dataclass

LOCAL, MAIN, DEFAULT = "local", "main", "default"
_TABLE_NAMES = {"255": LOCAL, "254": MAIN, "253": DEFAULT, "0": "unspec"}
_DEFAULT_RULES = (
    RoutingRule(priority=0, table=LOCAL),
    RoutingRule(priority=32766, table=MAIN),
    RoutingRule(priority=32767, table=DEFAULT),
)


@dataclass(frozen=True, slots=True)
class Lookup:
    """The result of a lookup.

    `type` is the route's type, or "unreachable" (ENETUNREACH) where no rule led to a route. `hops` are the
    usable next hops. `route` is None where none was found; `unknown` names what could not be decided.
    """

    type: str
    route: Route | None = None
    hops: tuple[NextHop, ...] = ()
    table: str = ""
    unknown: str | None = None


NO_ROUTE = Lookup("unreachable")


class Fib:
    """The routing tables of one node and family."""

    def __init__(self, family: int, routes: Iterable[Route], rules: Iterable[RoutingRule] | None) -> None:
        """Index `routes` (those of the other family are passed over) by table and prefix length."""
        self.family = family
        self._bits = 32 if family == 4 else 128
        self._tables: dict[str, dict[int, dict[int, list[Route]]]] = {}
        for route in routes:
            if route.dst.version != family:
                continue
            table = _TABLE_NAMES.get(route.table, route.table)
            by_length = self._tables.setdefault(table, {})
            nets = by_length.setdefault(route.dst.prefixlen, {})
            nets.setdefault(int(route.dst.network_address), []).append(route)
        for by_length in self._tables.values():
            for nets in by_length.values():
                for candidates in nets.values():
                    candidates.sort(key=lambda r: r.metric)
        self._lengths = {t: sorted(by, reverse=True) for t, by in self._tables.items()}
        given = tuple(rules) if rules is not None else ()
        self.rules = tuple(sorted(given, key=lambda r: r.priority)) if given else _DEFAULT_RULES
        self.simple = all(_plain(r) for r in self.rules)
        self._cache: dict[int, Lookup] = {}

    @property
    def has_custom_rules(self) -> bool:
        """Whether rules other than the three of boot are there (fib4_has_custom_rules)."""
        return not self.simple or len(self.rules) != 3

    def flow_back(self, p: Packet) -> dict[str, Any]:
        """What a lookup of the way back knows of the packet beside addresses (fib4_rules_early_flow_dissect)."""
        if any(r.ipproto is not None or r.sport is not None or r.dport is not None for r in self.rules):
            return {"proto": p.proto, "sport": p.dport, "dport": p.sport}
        return {}

    def routes(self) -> Iterator[Route]:
        """All routes."""
        for by_length in self._tables.values():
            for nets in by_length.values():
                for candidates in nets.values():
                    yield from candidates

    def in_table(
        self, table: str, dst: int, oif: str | None = None, tos: int = 0
    ) -> tuple[Route, tuple[NextHop, ...]] | None:
        """The best route of one table for `dst`, with its usable next hops; None where it has none."""
        by_length = self._tables.get(table)
        if by_length is None:
            return None
        for length in self._lengths[table]:
            shift = self._bits - length
            candidates = by_length[length].get(dst >> shift << shift)
            if not candidates:
                continue
            for route in candidates:
                if route.tos and route.tos != tos:
                    continue
                if route.type not in ("unicast", "local", "broadcast", "anycast", "multicast"):
                    return route, ()
                hops = tuple(h for h in route.nexthops if not h.dead and (oif is None or h.dev == oif))
                if hops or (not route.nexthops and oif is None):
                    return route, hops
        return None

    def lookup(
        self,
        dst: int,
        *,
        src: int = 0,
        mark: int = 0,
        iif: str | None = None,
        oif: str | None = None,
        tos: int = 0,
        proto: int = 0,
        sport: Port = 0,
        dport: Port = 0,
    ) -> Lookup:
        """fib_lookup: the first rule whose table has a route for `dst`. `iif` is "lo" for local output."""
        if self.simple and oif is None and not tos:
            hit = self._cache.get(dst)
            if hit is None:
                hit = self._walk_simple(dst)
                if len(self._cache) > 100_000:
                    self._cache.clear()
                self._cache[dst] = hit
            return hit
        skip_to = -1
        for rule in self.rules:
            if rule.priority < skip_to:
                continue
            answer = self._applies(rule, dst, src, mark, iif, oif, tos, proto, sport, dport)
            if answer is False:
                continue
            if answer is None:
                return Lookup(
                    "unknown", unknown=f"routing rule {rule.priority} asks what a snapshot cannot tell"
                )
            if rule.action == "goto":
                skip_to = rule.goto or 0
                continue
            if rule.action == "nop" or rule.l3mdev:
                continue
            if rule.action in ("blackhole", "unreachable", "prohibit"):
                return Lookup("hostunreach" if rule.action == "unreachable" else rule.action)
            found = self._from_table(rule, dst, oif, tos)
            if found is not None:
                return found
        return NO_ROUTE

    def _walk_simple(self, dst: int) -> Lookup:
        for rule in self.rules:
            found = self._from_table(rule, dst, None, 0)
            if found is not None:
                return found
        return NO_ROUTE

    def _from_table(self, rule: RoutingRule, dst: int, oif: str | None, tos: int) -> Lookup | None:
        table = _TABLE_NAMES.get(rule.table or MAIN, rule.table or MAIN)
        found = self.in_table(table, dst, oif, tos)
        if found is None:
            return None
        route, hops = found
        if route.type == "throw":
            return None
        limit = rule.suppress_prefixlength
        if limit is not None and limit >= 0 and route.dst.prefixlen <= limit:
            return None
        kind = "hostunreach" if route.type == "unreachable" else route.type
        return Lookup(kind, route, hops, table)

    def _inside(self, number: int, net: IPNetwork) -> bool:
        shift = self._bits - net.prefixlen
        return number >> shift == int(net.network_address) >> shift

    def _applies(
        self,
        rule: RoutingRule,
        dst: int,
        src: int,
        mark: int,
        iif: str | None,
        oif: str | None,
        tos: int,
        proto: int,
        sport: Port,
        dport: Port,
    ) -> bool | None:
        if rule.unsupported:
            return None
        answer = not (
            (rule.src is not None and not self._inside(src, rule.src))
            or (rule.dst is not None and not self._inside(dst, rule.dst))
            or (rule.iif is not None and rule.iif != iif)
            or (rule.oif is not None and rule.oif != oif)
            or (rule.fwmark is not None and (mark ^ rule.fwmark) & rule.fwmask)
            or (rule.tos is not None and rule.tos != tos)
            or (rule.ipproto is not None and _protocol(rule.ipproto) != proto)
        )
        unknown = False
        for wanted, port in ((rule.dport, dport), (rule.sport, sport)):
            if answer and wanted is not None:
                inside = _port_inside(port, wanted)
                unknown = unknown or inside is None
                answer = inside is not False
        if answer and rule.uidrange is not None:
            if iif == "lo":
                unknown = True
            else:
                answer = False
        if not answer:
            return rule.inverted
        return None if unknown else not rule.inverted


def _port_inside(port: Port, wanted: tuple[int, int]) -> bool | None:
    """Whether a port, or one of a range that is not known, is in `wanted`."""
    low, high = (port, port) if isinstance(port, int) else port
    if wanted[0] <= low and high <= wanted[1]:
        return True
    return False if high < wanted[0] or low > wanted[1] else None


def _protocol(word: str) -> int:
    return int(word) if word.isdigit() else PROTOCOLS.get(word, -1)


def _plain(rule: RoutingRule) -> bool:
    return (
        rule.src is None
        and rule.dst is None
        and rule.iif is None
        and rule.oif is None
        and rule.fwmark is None
        and rule.tos is None
        and rule.ipproto is None
        and rule.sport is None
        and rule.dport is None
        and rule.uidrange is None
        and rule.action == "lookup"
        and not rule.l3mdev
        and not rule.inverted
        and not rule.unsupported
        and rule.suppress_prefixlength is None
    )
