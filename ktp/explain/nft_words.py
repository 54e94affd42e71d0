"""One nftables rule in a sentence, from its statements alone, whoever wrote it.

A sentence is "conditions: actions". What is not known is quoted, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.explain.words import TYPE_WORDS
from ktp.model.nftables import (
    AnonymousSet,
    Binary,
    Counter,
    Ct,
    CtCount,
    Dup,
    Expression,
    Fib,
    Flags,
    FlowOffload,
    Fwd,
    Immediate,
    Jhash,
    Last,
    Limit,
    Log,
    Mangle,
    MapLookup,
    Match,
    Meta,
    Meter,
    Nat,
    NftRule,
    Notrack,
    Numgen,
    Payload,
    Queue,
    Quota,
    Range,
    Reject,
    SetReference,
    SetUpdate,
    Statement,
    Symhash,
    Synproxy,
    Tproxy,
    UnsupportedExpression,
    UnsupportedStatement,
    Verdict,
    Vmap,
    Xt,
    datatype_of,
    render,
)

_REFUSED = ("port-unreachable", "icmp-port-unreachable", "icmpv6-port-unreachable")
_SILENT = (Counter, Last)
_SHOWN = 6  # elements of an anonymous set or map that a sentence names


def nft_rule_words(rule: NftRule, *, policy: str | None = None) -> str:
    """`rule` in a sentence. Never empty, never raises. `policy` is that of the base chain that it stands in."""
    conditions = condition_words(rule.statements)
    actions = [
        f"to the end of the chain, whose policy is {policy}"
        if policy is not None and isinstance(s, Verdict) and s.kind == "return"
        else w
        for s in rule.statements
        if (w := action_words(s))
    ]
    return f"{conditions or 'every packet'}: {'; '.join(actions) if actions else 'only counted'}"


def condition_words(statements: Iterable[Statement]) -> str:
    """The conditions among the statements, comma separated; "" where there is none."""
    return ", ".join(dict.fromkeys(w for s in statements if (w := _condition(s))))


def _condition(statement: Statement) -> str:
    match statement:
        case Match():
            return match_words(statement)
        case Limit(name=name) if name is not None:
            return f"as limit {name} allows"
        case Limit(over=over):
            rate = statement.body().removeprefix("rate ").removeprefix("over ")
            return f"while {'above' if over else 'below'} {rate}"
        case Quota(name=name, over=over):
            what = f"quota {name}" if name is not None else statement.body().removeprefix("over ")
            return f"{'after' if over else 'until'} {what} {'has passed' if over else 'is used up'}"
        case CtCount(value, over):
            return f"while {'more than' if over else 'at most'} {value} connections match"
        case SetUpdate(element=element):
            return condition_words(element.statements)
        case Meter(name, key, inner):
            return f"by meter {name} for each {key}: {_condition(inner) or inner}"
        case Xt("match", name):
            return f"xt match {name} (nft lists no more of it than its name)"
        case UnsupportedStatement(raw):
            return f"`{raw}` (not understood; whether it matches is not known)"
        case _:
            return ""


def match_words(match: Match) -> str:
    """One condition as a phrase."""
    left, right = match.left, match.right
    no = "not " if match.operator in ("!=", "!") else ""
    if match.operator not in ("==", "!=", "in", "!"):
        return f"{left} {match.operator} {render(right, datatype_of(left))}"
    if isinstance(right, SetReference):
        return f"{no}{_what(left)} in set {right.name}"
    values = _values(right, datatype_of(left))
    match left:
        case Payload("ip" | "ip6", "saddr"):
            return f"{no}from {values}"
        case Payload("ip" | "ip6", "daddr"):
            return f"{no}to {values}"
        case Payload(protocol, "dport"):
            return f"{no}{_protocol(protocol)}to port {values}"
        case Payload(protocol, "sport"):
            return f"{no}{_protocol(protocol)}from port {values}"
        case Payload("ip", "protocol") | Payload("ip6", "nexthdr") | Meta("l4proto"):
            return f"{no}{values}"
        case Payload("icmp" | "icmpv6" as protocol, "type"):
            return f"{no}{'ICMP' if protocol == 'icmp' else 'ICMPv6'} {values}"
        case Meta("nfproto"):
            return f"{no}{values.replace('ipv4', 'IPv4').replace('ipv6', 'IPv6')}"
        case Meta("iifname" | "iif"):
            return f"{no}in by {values}"
        case Meta("oifname" | "oif"):
            return f"{no}out by {values}"
        case Meta("mark"):
            return f"{no}marked {values}"
        case Binary("&", Meta("mark"), Immediate(mask)) if isinstance(right, Immediate):
            if right.value == 0:
                several = isinstance(mask, int) and bool(mask & (mask - 1))
                return f"{'' if no else 'not '}marked {'with any of ' if several else ''}{_hex(mask)}"
            return f"{no}marked {_hex(right.value)}" + ("" if mask == right.value else f"/{_hex(mask)}")
        case Ct("state", None):
            return f"{no}in state {values}"
        case Ct("status", None):
            return f"{no}of a connection with status {values}"
        case Ct("mark", None):
            return f"{no}of a connection marked {values}"
        case Fib("type", ("saddr",)) | Fib("type", ("daddr",)):
            side = "from" if left.flags == ("saddr",) else "to"
            kinds = [TYPE_WORDS.get(v.upper(), v) for v in values.split(" or ")]
            return f"{no}{side} {' or '.join(kinds)}"
        case _:
            return f"`{match}`"


def _protocol(protocol: str) -> str:
    return "" if protocol == "th" else f"{protocol}, "


def _hex(value: object) -> str:
    return hex(value) if isinstance(value, int) else str(value)


_SIDES = {
    "saddr": "source address",
    "daddr": "destination address",
    "sport": "source port",
    "dport": "destination port",
}


def _what(expression: Expression) -> str:
    """What of the packet is looked up."""
    match expression:
        case Payload(_, name) if name in _SIDES:
            return _SIDES[name]
        case Meta("l4proto"):
            return "protocol"
        case Meta("iifname" | "iif"):
            return "incoming interface"
        case Meta("oifname" | "oif"):
            return "outgoing interface"
        case Meta("mark"):
            return "mark"
        case Ct("state"):
            return "connection state"
        case Numgen("random", mod):
            return f"a number drawn out of {mod}"
        case Numgen(_, mod):
            return f"one of {mod} in turn"
        case Jhash(_, mod) | Symhash(mod):
            return f"a hash, one of {mod}"
        case _:
            parts = getattr(expression, "parts", None)
            if parts and not isinstance(expression, Flags):
                return ", ".join(_what(part) for part in parts)
            return f"`{expression}`"


def _values(expression: Expression, datatype: str | None) -> str:
    """Constants as words: `22, 80 or 443`."""
    if isinstance(expression, AnonymousSet):
        keys = [_plain(e.key, datatype) for e in expression.elements]
    elif isinstance(expression, Flags):
        keys = [_plain(part, datatype) for part in expression.parts]
    else:
        return _plain(expression, datatype)
    if len(keys) > _SHOWN:
        keys = [*keys[: _SHOWN - 1], f"{len(keys) - _SHOWN + 1} others"]
    return ", ".join(keys[:-1]) + f" or {keys[-1]}" if len(keys) > 1 else keys[0] if keys else "nothing"


def _plain(expression: Expression, datatype: str | None) -> str:
    match expression:
        case Immediate(value) if datatype == "mark":
            return _hex(value)
        case Range(low, high):
            return f"{_plain(low, datatype)}-{_plain(high, datatype)}"
        case UnsupportedExpression(raw):
            return f"`{raw}`"
        case _:
            return render(expression, datatype).strip('"')


# -- what a rule does


def action_words(statement: Statement) -> str:
    """What a statement does; "" where it is a condition or changes nothing."""
    match statement:
        case Match() | Limit() | Quota() | CtCount() | Meter():
            return ""
        case Verdict():
            return verdict_words(statement)
        case Vmap():
            return _vmap_words(statement)
        case Reject():
            return _reject_words(statement)
        case Nat():
            return _nat_words(statement)
        case Mangle():
            return _mangle_words(statement)
        case SetUpdate(operation, name, element):
            verb = "taken out of" if operation == "delete" else "noted in"
            return f"{_what(element.key)} {verb} set {name}"
        case Log(prefix):
            return f"logged as '{prefix.strip()}'" if prefix else "logged"
        case Notrack():
            return "not tracked: no NAT rule sees it"
        case Queue():
            return "handed to a program of this node, which decides (queue)"
        case Tproxy():
            return f"handed to a proxy of this node ({statement})"
        case Synproxy():
            return "answered by the node in the server's place (synproxy)"
        case Dup() | Fwd():
            return f"`{statement}`"
        case FlowOffload():
            return "later packets of the connection pass by the rules (flow table)"
        case Xt("match", _):
            return ""
        case Xt(kind, name):
            return f"xt {kind} {name} (nft lists no more of it than its name; what it does is not known)"
        case UnsupportedStatement():
            return ""
        case _:
            return "" if isinstance(statement, _SILENT) else f"`{statement}`"


def verdict_words(verdict: Verdict) -> str:
    """A verdict as the end of a sentence."""
    match verdict.kind:
        case "accept":
            return "accepted (by this table: others may still stop it)"
        case "drop":
            return "dropped without an answer (the client times out)"
        case "return":
            return "back to the chain before"
        case "continue":
            return "on to the next rule"
        case "jump":
            return f"on to {verdict.target}"
        case "goto":
            return f"on to {verdict.target}, not to come back here"
        case _:
            return str(verdict)


def _vmap_words(vmap: Vmap) -> str:
    if isinstance(vmap.data, SetReference):
        return f"{_what(vmap.key)} looked up in map {vmap.data.name}, whose element decides"
    if not isinstance(vmap.data, AnonymousSet):
        return f"`{vmap}`"
    datatype = datatype_of(vmap.key)
    shown = [
        f"{_plain(e.key, datatype)} {_brief(e.value) if isinstance(e.value, Verdict) else e.value}"
        for e in vmap.data.elements[:_SHOWN]
    ]
    more = len(vmap.data.elements) - len(shown)
    return f"by {_what(vmap.key)}: {', '.join(shown)}" + (f" and {more} others" if more else "")


def _brief(verdict: Verdict) -> str:
    words = {"accept": "is accepted", "drop": "is dropped", "return": "goes back", "continue": "goes on"}
    return words.get(verdict.kind, f"goes on to {verdict.target}")


def _reject_words(reject: Reject) -> str:
    if reject.type == "tcp reset":
        return "refused with a TCP reset (the client sees 'connection refused')"
    code = str(reject.code) if reject.code is not None else "port-unreachable"
    seen = " (the client sees 'connection refused')" if code in _REFUSED else ""
    return f"refused with {reject.type} {code}{seen}" if not reject.bare else f"refused{seen}"


def _nat_words(nat: Nat) -> str:
    if nat.kind == "masquerade":
        return "source replaced by this node's address (masquerading)"
    if nat.kind == "redirect":
        port = f", port {_plain(nat.port, 'inet_service')}" if nat.port is not None else ""
        return f"taken by a process of this node{port} (redirect)"
    target = _nat_target(nat)
    if nat.kind == "snat":
        return f"source replaced by {target} (SNAT)"
    return f"sent to {target} instead (DNAT)"


def _nat_target(nat: Nat) -> str:
    address = nat.address
    if isinstance(address, MapLookup):
        if isinstance(address.data, SetReference):
            return f"what map {address.data.name} has for its {_what(address.key)}"
        if isinstance(address.key, Numgen | Jhash | Symhash):
            return f"one of {len(address.data.elements)} ({_what(address.key)})"
        return f"what its map has for its {_what(address.key)}"
    text = _plain(address, None) if address is not None else "the same address"
    if nat.port is None:
        return text
    return f"{f'[{text}]' if ':' in text else text}:{_plain(nat.port, 'inet_service')}"


def _mangle_words(mangle: Mangle) -> str:
    key, value = mangle.key, mangle.value
    if isinstance(key, Meta) and key.key == "mark":
        match value:
            case Binary("|", Meta("mark"), Immediate(bits)):
                return f"marked {_hex(bits)}"
            case Binary("^", Meta("mark"), Immediate(bits)):
                return f"mark {_hex(bits)} taken off again"
            case Immediate(bits):
                return f"mark set to {_hex(bits)}"
            case Ct("mark", None):
                return "mark restored from its connection"
            case _:
                return f"mark changed (`{mangle}`)"
    if isinstance(key, Ct) and key.key == "mark":
        return (
            "mark saved in its connection"
            if value == Meta("mark")
            else f"connection's mark changed (`{mangle}`)"
        )
    return f"`{mangle}`"
