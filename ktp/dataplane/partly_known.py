"""Base chains asked of a packet of which no more is known than what some rules say that it met.

What of a packet those rules do not tell is unknown to every condition, and both ways are followed: how all ways end is
how every such packet fares. A condition is held to be true only where the same one is among what is known, or where
all that it looks at is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.matches import CompiledMatches, compile_match, joined
from ktp.dataplane.matches.compiled import Compiled as CompiledMatch
from ktp.dataplane.matches.compiled import always, number_range
from ktp.dataplane.nft_program import TableProgram
from ktp.dataplane.nft_values import BREAK, UNKNOWN, Compiled, constant, unknown_value
from ktp.dataplane.packet import PROTOCOLS, Conn, Packet, to_int
from ktp.dataplane.state import ACCEPT, DROP, REJECT, LimitExceededError, State, Verdict
from ktp.dataplane.xtables import Compiled as CompiledRule
from ktp.dataplane.xtables import CompiledChain, Program
from ktp.model.nftables import (
    Binary,
    Ct,
    Expression,
    ExtensionHeader,
    Fib,
    Immediate,
    Ipsec,
    MapLookup,
    Meta,
    Osf,
    Payload,
    RawPayload,
    Rt,
    Socket,
    Statement,
    datatype_of,
)
from ktp.model.nftables import Match as NftMatch
from ktp.model.ruleset import Match, Rule

Condition = tuple[str, tuple[tuple[str, bool, tuple[str, ...]], ...]]

TO_THE_NODE: Condition = ("addrtype", (("--dst-type", False, ("LOCAL",)),))
# Matches on what no rule of a table changes while the packet is in it.
_LASTING = frozenset(("", "tcp", "udp", "sctp", "multiport", "addrtype", "iprange", "physdev"))
# Those of them that look at nothing but what may be known here.
_ASKED = _LASTING - {"physdev"}
_TRANSPORT: Mapping[str, int] = {"tcp": pk.TCP, "udp": pk.UDP, "sctp": pk.SCTP}
_PORTS = {
    "--dport": "dport",
    "--destination-port": "dport",
    "--dports": "dport",
    "--destination-ports": "dport",
    "--sport": "sport",
    "--source-port": "sport",
    "--sports": "sport",
    "--source-ports": "sport",
}
_ADDRESSES = {"daddr": "dst", "saddr": "src"}


@dataclass(frozen=True)
class Known:
    """What is known of a packet: fields of `Packet` by name, and conditions of iptables that it meets."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    holds: frozenset[Condition] = frozenset()

    @property
    def key(self) -> tuple[Any, ...]:
        """What is known, to be remembered by."""
        return tuple(sorted(self.fields.items())), self.holds

    def and_also(self, other: Known) -> Known | None:
        """Both; None where no packet can be so."""
        if any(self.fields.get(name, value) != value for name, value in other.fields.items()):
            return None
        return Known({**self.fields, **other.fields}, self.holds | other.holds)


def known_of(parts: Iterable[Known]) -> Known | None:
    """All of it; None where no packet can be so."""
    found: Known | None = Known()
    for part in parts:
        found = found.and_also(part) if found is not None else None
    return found


# ------------------------------------------------------------------------------------------------ what rules say


def known_of_rule(rule: Rule) -> Known:
    """What a packet is like that a rule of iptables matches."""
    fields: dict[str, Any] = {}
    holds = set()
    for match in rule.matches:
        if match.name not in _LASTING:
            continue
        holds.add(_condition(match))
        fields |= {"proto": _TRANSPORT[match.name]} if match.name in _TRANSPORT else {}
        for option in match.options:
            if not option.negated and len(option.args) == 1:
                fields |= _field(match.name, option.flag, option.args[0])
    return Known(fields, frozenset(holds))


def _condition(match: Match) -> Condition:
    return match.name, tuple((o.flag, o.negated, tuple(o.args)) for o in match.options)


def _field(name: str, flag: str, word: str) -> dict[str, Any]:
    if name in _TRANSPORT or name == "multiport":
        ports = number_range(word) if flag in _PORTS else None
        return {_PORTS[flag]: ports[0]} if ports is not None and ports[0] == ports[1] else {}
    if name:
        return {}
    if flag == "-p":
        number = int(word) if word.isdigit() else PROTOCOLS.get(word.lower())
        return {"proto": number} if number else {}
    if flag in ("-i", "-o"):
        return {} if word.endswith("+") else {"iif" if flag == "-i" else "oif": word}
    if flag in ("-s", "-d"):
        try:
            net = ip_network(word, strict=False)
        except ValueError:
            return {}
        if net.prefixlen == net.max_prefixlen:
            return {"src" if flag == "-s" else "dst": int(net.network_address)}
    return {}


def known_of_statements(statements: Iterable[Statement]) -> Known:
    """What a packet is like that meets the conditions among statements of a rule of nft."""
    fields: dict[str, Any] = {}
    holds = set()
    for statement in statements:
        if not isinstance(statement, NftMatch) or statement.operator not in ("==", "!="):
            continue
        left = statement.left
        if isinstance(left, Payload):
            # Whatever it is compared with: without that header the rule is left.
            fields |= {"proto": _TRANSPORT[left.protocol]} if left.protocol in _TRANSPORT else {}
            fields |= {"family": {"ip": 4, "ip6": 6}[left.protocol]} if left.protocol in ("ip", "ip6") else {}
        if statement.operator != "==" or not isinstance(statement.right, Immediate):
            continue
        try:
            value = constant(statement.right, datatype_of(left))
        except (ValueError, KeyError, OSError):
            continue
        name = _name_of(left)
        if name == "nfproto" and value in (2, 10):
            fields["family"] = 4 if value == 2 else 6
        elif name in ("iif", "oif"):
            fields |= {name: value} if isinstance(value, str) else {}
        elif name is not None and isinstance(value, int):
            fields[name] = value
        elif left == Fib("type", ("daddr",)) and value == "local":
            holds.add(TO_THE_NODE)
    return Known(fields, frozenset(holds))


def _name_of(expression: Expression) -> str | None:
    """The field of `Packet` that an expression reads, or "nfproto"."""
    match expression:
        case Payload("ip" | "ip6", "daddr" | "saddr" as name):
            return _ADDRESSES[name]
        case Payload("ip", "protocol") | Payload("ip6", "nexthdr") | Meta("l4proto"):
            return "proto"
        case Payload("tcp" | "udp" | "sctp" | "th", "dport" | "sport" as name):
            return name
        case Meta("iifname"):
            return "iif"
        case Meta("oifname"):
            return "oif"
        case Meta("nfproto"):
            return "nfproto"
    return None


# ---------------------------------------------------------------------------------------------- chains, so asked


class PartlyKnown(Program):
    """A table of iptables, asked of packets of which `known` is known."""

    known = Known()

    def compile_matches(self, matches: tuple[Match, ...]) -> CompiledMatches:
        """Tests that know no more than that; what is drawn is drawn as ever."""
        return joined(matches, self._compiled)

    def _compiled(self, match: Match) -> CompiledMatch:
        compiled = compile_match(match)
        if compiled is not None and compiled.probability is not None:
            return compiled
        if match.name == "recent" and any(o.flag == "--set" and not o.negated for o in match.options):
            return CompiledMatch(always(True))  # iptables-extensions(8): it always succeeds
        asked = match.name in _ASKED and compiled is not None and compiled.assumption is None
        condition = _condition(match)

        def test(_: Packet, host: Host, hook: str) -> bool | None:
            if condition in self.known.holds:
                return True
            if not asked or compiled is None:
                return None
            try:
                seen = SimpleNamespace(**{"family": self.family, **self.known.fields})
                return compiled.test(cast("Packet", seen), host, hook)
            except AttributeError:  # it looks at what is not known
                return None

        return CompiledMatch(test)

    def chain(self, name: str) -> CompiledChain | None:
        """The compiled chain, whose every rule is asked."""
        if name not in self._chains:
            found = self.ruleset.chain(self.table, name)
            self._chains[name] = _EveryRule(self, found) if found is not None else None
        return self._chains[name]


class _EveryRule(CompiledChain):
    __slots__ = ()

    def candidates(self, p: Packet) -> Sequence[CompiledRule]:  # noqa: ARG002 - as of every chain
        if not self._candidates:
            self._candidates[0, 0, 0] = [self._rule(i) for i in range(self.size)]
        return self._candidates[0, 0, 0]


class PartlyKnownTable(TableProgram):
    """A table of nft, asked of packets of which `known` is known."""

    known = Known()

    def _map_value(self, expression: Expression) -> Compiled | None:
        match expression:
            case MapLookup():
                return super()._map_value(expression)
            case Binary("&", Payload("ip", "frag-off")):
                return unknown_value("not known")
            case (
                Payload()
                | Meta()
                | Fib()
                | Ct()
                | Socket()
                | RawPayload()
                | ExtensionHeader()
                | Osf()
                | Ipsec()
                | Rt()
            ):
                return Compiled(lambda *_: self._read(expression))
        return None

    def _read(self, expression: Expression) -> Any:
        known = self.known.fields
        if isinstance(expression, Payload):
            proto = _TRANSPORT.get(expression.protocol)
            if proto is not None and known.get("proto", proto) != proto:
                return BREAK
            if expression.protocol in ("ip", "ip6") and (expression.protocol == "ip") != (self.family == 4):
                return BREAK
            if proto is not None and "proto" not in known:
                return UNKNOWN
        if expression == Fib("type", ("daddr",)):
            return "local" if TO_THE_NODE in self.known.holds else UNKNOWN
        name = _name_of(expression)
        if name == "nfproto":
            return 2 if self.family == 4 else 10
        return known.get(name, UNKNOWN) if name is not None else UNKNOWN


def takes_all(
    run: Callable[[State, Host, str], list[Verdict]],
    known: Known,
    family: int,
    host: Host,
    hook: str,
    *,
    nat: bool,
) -> bool:
    """Whether a base chain leaves no packet of which that is known to those behind it.

    It drops or refuses each, or in nat makes its translation. `run` is the `run` of its program, which knows `known`.
    """
    f = known.fields
    none = to_int("192.0.2.1" if family == 4 else "2001:db8::1")[1]
    packet = Packet(
        family, f.get("proto", pk.TCP), f.get("src", none), f.get("dst", none),
        f.get("sport", pk.CLIENT_PORTS), f.get("dport", 1),
    )  # fmt: skip
    packet.iif, packet.oif = f.get("iif"), f.get("oif")
    packet.ct = Conn(host.name, packet)
    packet.ctstate = pk.NEW
    try:
        verdicts = run(State(packet), host, hook)
    except LimitExceededError:
        return False
    return all(_is_taken(verdict, hook, nat=nat) for verdict in verdicts)


def _is_taken(verdict: Verdict, hook: str, *, nat: bool) -> bool:
    if verdict.state.assumptions:
        return False
    ct = verdict.state.packet.ct
    if verdict.code == ACCEPT and nat and ct is not None:
        return ct.dst_done if hook in ("PREROUTING", "OUTPUT") else ct.src_done
    return verdict.code in (DROP, REJECT)
