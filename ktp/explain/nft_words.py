"""One nftables rule in a sentence, from its statements alone, whoever wrote it.

A sentence is "conditions: actions". What is not known is quoted, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.explain.words import TYPE_WORDS
from ktp.model import nftables as nft

_REFUSED = ("port-unreachable", "icmp-port-unreachable", "icmpv6-port-unreachable")
_SILENT = (nft.Counter, nft.Last)
_SHOWN = 6  # elements of an anonymous set or map that a sentence names


def nft_rule_words(rule: nft.NftRule, *, policy: str | None = None) -> str:
    """`rule` in a sentence. Never empty, never raises. `policy` is that of the base chain that it stands in."""
    conditions = condition_words(rule.statements)
    actions = [
        f"to the end of the chain, whose policy is {policy}"
        if policy is not None and isinstance(s, nft.Verdict) and s.kind == "return"
        else w
        for s in rule.statements
        if (w := action_words(s))
    ]
    return f"{conditions or 'every packet'}: {'; '.join(actions) if actions else 'only counted'}"


def condition_words(statements: Iterable[nft.Statement]) -> str:
    """The conditions among the statements, comma separated; "" where there is none."""
    return ", ".join(dict.fromkeys(w for s in statements if (w := _condition(s))))


def _condition(statement: nft.Statement) -> str:
    match statement:
        case nft.Match():
            return match_words(statement)
        case nft.Limit(name=name) if name is not None:
            return f"as limit {name} allows"
        case nft.Limit(over=over):
            rate = statement.body().removeprefix("rate ").removeprefix("over ")
            return f"while {'above' if over else 'below'} {rate}"
        case nft.Quota(name=name, over=over):
            what = f"quota {name}" if name is not None else statement.body().removeprefix("over ")
            return f"{'after' if over else 'until'} {what} {'has passed' if over else 'is used up'}"
        case nft.CtCount(value, over):
            return f"while {'more than' if over else 'at most'} {value} connections match"
        case nft.SetUpdate(element=element):
            return condition_words(element.statements)
        case nft.Meter(name, key, inner):
            return f"by meter {name} for each {key}: {_condition(inner) or inner}"
        case nft.Xt("match", name):
            return f"xt match {name} (nft lists no more of it than its name)"
        case nft.UnsupportedStatement(raw):
            return f"`{raw}` (not understood; whether it matches is not known)"
        case _:
            return ""


def match_words(match: nft.Match) -> str:
    """One condition as a phrase."""
    left, right = match.left, match.right
    no = "not " if match.operator in ("!=", "!") else ""
    if match.operator not in ("==", "!=", "in", "!"):
        return f"{left} {match.operator} {nft.render(right, nft.datatype_of(left))}"
    if isinstance(right, nft.SetReference):
        return f"{no}{_what(left)} in set {right.name}"
    values = _values(right, nft.datatype_of(left))
    match left:
        case nft.Payload("ip" | "ip6", "saddr"):
            return f"{no}from {values}"
        case nft.Payload("ip" | "ip6", "daddr"):
            return f"{no}to {values}"
        case nft.Payload(protocol, "dport"):
            return f"{no}{_protocol(protocol)}to port {values}"
        case nft.Payload(protocol, "sport"):
            return f"{no}{_protocol(protocol)}from port {values}"
        case nft.Payload("ip", "protocol") | nft.Payload("ip6", "nexthdr") | nft.Meta("l4proto"):
            return f"{no}{values}"
        case nft.Payload("icmp" | "icmpv6" as protocol, "type"):
            return f"{no}{'ICMP' if protocol == 'icmp' else 'ICMPv6'} {values}"
        case nft.Meta("nfproto"):
            return f"{no}{values.replace('ipv4', 'IPv4').replace('ipv6', 'IPv6')}"
        case nft.Meta("iifname" | "iif"):
            return f"{no}in by {values}"
        case nft.Meta("oifname" | "oif"):
            return f"{no}out by {values}"
        case nft.Meta("mark"):
            return f"{no}marked {values}"
        case nft.Binary("&", nft.Meta("mark"), nft.Immediate(mask)) if isinstance(right, nft.Immediate):
            if right.value == 0:
                several = isinstance(mask, int) and bool(mask & (mask - 1))
                return f"{'' if no else 'not '}marked {'with any of ' if several else ''}{_hex(mask)}"
            return f"{no}marked {_hex(right.value)}" + ("" if mask == right.value else f"/{_hex(mask)}")
        case nft.Ct("state", None):
            return f"{no}in state {values}"
        case nft.Ct("status", None):
            return f"{no}of a connection with status {values}"
        case nft.Ct("mark", None):
            return f"{no}of a connection marked {values}"
        case nft.Fib("type", ("saddr",)) | nft.Fib("type", ("daddr",)):
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


def _what(expression: nft.Expression) -> str:
    """What of the packet is looked up."""
    match expression:
        case nft.Payload(_, name) if name in _SIDES:
            return _SIDES[name]
        case nft.Meta("l4proto"):
            return "protocol"
        case nft.Meta("iifname" | "iif"):
            return "incoming interface"
        case nft.Meta("oifname" | "oif"):
            return "outgoing interface"
        case nft.Meta("mark"):
            return "mark"
        case nft.Ct("state"):
            return "connection state"
        case nft.Numgen("random", mod):
            return f"a number drawn out of {mod}"
        case nft.Numgen(_, mod):
            return f"one of {mod} in turn"
        case nft.Jhash(_, mod) | nft.Symhash(mod):
            return f"a hash, one of {mod}"
        case _:
            parts = getattr(expression, "parts", None)
            if parts and not isinstance(expression, nft.Flags):
                return ", ".join(_what(part) for part in parts)
            return f"`{expression}`"


def _values(expression: nft.Expression, datatype: str | None) -> str:
    """Constants as words: `22, 80 or 443`."""
    if isinstance(expression, nft.AnonymousSet):
        keys = [_plain(e.key, datatype) for e in expression.elements]
    elif isinstance(expression, nft.Flags):
        keys = [_plain(part, datatype) for part in expression.parts]
    else:
        return _plain(expression, datatype)
    if len(keys) > _SHOWN:
        keys = [*keys[: _SHOWN - 1], f"{len(keys) - _SHOWN + 1} others"]
    return ", ".join(keys[:-1]) + f" or {keys[-1]}" if len(keys) > 1 else keys[0] if keys else "nothing"


def _plain(expression: nft.Expression, datatype: str | None) -> str:
    match expression:
        case nft.Immediate(value) if datatype == "mark":
            return _hex(value)
        case nft.Range(low, high):
            return f"{_plain(low, datatype)}-{_plain(high, datatype)}"
        case nft.UnsupportedExpression(raw):
            return f"`{raw}`"
        case _:
            return nft.render(expression, datatype).strip('"')


# -- what a rule does


def action_words(statement: nft.Statement) -> str:
    """What a statement does; "" where it is a condition or changes nothing."""
    match statement:
        case nft.Match() | nft.Limit() | nft.Quota() | nft.CtCount() | nft.Meter():
            return ""
        case nft.Verdict():
            return verdict_words(statement)
        case nft.Vmap():
            return _vmap_words(statement)
        case nft.Reject():
            return _reject_words(statement)
        case nft.Nat():
            return _nat_words(statement)
        case nft.Mangle():
            return _mangle_words(statement)
        case nft.SetUpdate(operation, name, element):
            verb = "taken out of" if operation == "delete" else "noted in"
            return f"{_what(element.key)} {verb} set {name}"
        case nft.Log(prefix):
            return f"logged as '{prefix.strip()}'" if prefix else "logged"
        case nft.Notrack():
            return "not tracked: no NAT rule sees it"
        case nft.Queue():
            return "handed to a program of this node, which decides (queue)"
        case nft.Tproxy():
            return f"handed to a proxy of this node ({statement})"
        case nft.Synproxy():
            return "answered by the node in the server's place (synproxy)"
        case nft.Dup() | nft.Fwd():
            return f"`{statement}`"
        case nft.FlowOffload():
            return "later packets of the connection pass by the rules (flow table)"
        case nft.Xt("match", _):
            return ""
        case nft.Xt(kind, name):
            return f"xt {kind} {name} (nft lists no more of it than its name; what it does is not known)"
        case nft.UnsupportedStatement():
            return ""
        case _:
            return "" if isinstance(statement, _SILENT) else f"`{statement}`"


_VERDICTS = {
    "accept": "accepted (by this table: others may still stop it)",
    "drop": "dropped without an answer (the client times out)",
    "return": "back to the chain before",
    "continue": "on to the next rule",
    "jump": "on to {}",
    "goto": "on to {}, not to come back here",
}


def verdict_words(verdict: nft.Verdict) -> str:
    """A verdict as the end of a sentence."""
    words = _VERDICTS.get(verdict.kind)
    return words.format(verdict.target) if words is not None else str(verdict)


def _vmap_words(vmap: nft.Vmap) -> str:
    if isinstance(vmap.data, nft.SetReference):
        return f"{_what(vmap.key)} looked up in map {vmap.data.name}, whose element decides"
    if not isinstance(vmap.data, nft.AnonymousSet):
        return f"`{vmap}`"
    datatype = nft.datatype_of(vmap.key)
    shown = [
        f"{_plain(e.key, datatype)} {_brief(e.value) if isinstance(e.value, nft.Verdict) else e.value}"
        for e in vmap.data.elements[:_SHOWN]
    ]
    more = len(vmap.data.elements) - len(shown)
    return f"by {_what(vmap.key)}: {', '.join(shown)}" + (f" and {more} others" if more else "")


def _brief(verdict: nft.Verdict) -> str:
    words = {"accept": "is accepted", "drop": "is dropped", "return": "goes back", "continue": "goes on"}
    return words.get(verdict.kind, f"goes on to {verdict.target}")


def _reject_words(reject: nft.Reject) -> str:
    if reject.type == "tcp reset":
        return "refused with a TCP reset (the client sees 'connection refused')"
    code = str(reject.code) if reject.code is not None else "port-unreachable"
    seen = " (the client sees 'connection refused')" if code in _REFUSED else ""
    return f"refused with {reject.type} {code}{seen}" if not reject.bare else f"refused{seen}"


def _nat_words(nat: nft.Nat) -> str:
    if nat.kind == "masquerade":
        return "source replaced by this node's address (masquerading)"
    if nat.kind == "redirect":
        port = f", port {_plain(nat.port, 'inet_service')}" if nat.port is not None else ""
        return f"taken by a process of this node{port} (redirect)"
    target = _nat_target(nat)
    if nat.kind == "snat":
        return f"source replaced by {target} (SNAT)"
    return f"sent to {target} instead (DNAT)"


def _nat_target(nat: nft.Nat) -> str:
    address = nat.address
    if isinstance(address, nft.MapLookup):
        if isinstance(address.data, nft.SetReference):
            return f"what map {address.data.name} has for its {_what(address.key)}"
        if isinstance(address.key, nft.Numgen | nft.Jhash | nft.Symhash):
            return f"one of {len(address.data.elements)} ({_what(address.key)})"
        return f"what its map has for its {_what(address.key)}"
    text = _plain(address, None) if address is not None else "the same address"
    if nat.port is None:
        return text
    return f"{f'[{text}]' if ':' in text else text}:{_plain(nat.port, 'inet_service')}"


def _mangle_words(mangle: nft.Mangle) -> str:
    key, value = mangle.key, mangle.value
    if isinstance(key, nft.Meta) and key.key == "mark":
        match value:
            case nft.Binary("|", nft.Meta("mark"), nft.Immediate(bits)):
                return f"marked {_hex(bits)}"
            case nft.Binary("^", nft.Meta("mark"), nft.Immediate(bits)):
                return f"mark {_hex(bits)} taken off again"
            case nft.Immediate(bits):
                return f"mark set to {_hex(bits)}"
            case nft.Ct("mark", None):
                return "mark restored from its connection"
            case _:
                return f"mark changed (`{mangle}`)"
    if isinstance(key, nft.Ct) and key.key == "mark":
        return (
            "mark saved in its connection"
            if value == nft.Meta("mark")
            else f"connection's mark changed (`{mangle}`)"
        )
    return f"`{mangle}`"
