"""One rule in a sentence, from its matches and target alone, whoever wrote it.

A sentence is "conditions: action". What is not known is quoted, never left out.
"""

from __future__ import annotations

from collections.abc import Callable

from ktp.model.reading import lost_words, unread_words
from ktp.model.ruleset import Match, Option, Rule, Target

_PROTOCOL_WORDS = {"icmpv6": "ICMPv6", "ipv6-icmp": "ICMPv6", "icmp": "ICMP"}
TYPE_WORDS = {
    "LOCAL": "an address of this node",
    "BROADCAST": "a broadcast address",
    "MULTICAST": "a multicast address",
    "UNICAST": "a unicast address that is not this node's",
    "ANYCAST": "an anycast address",
    "UNSPEC": "the unspecified address",
    "BLACKHOLE": "a blackholed address",
    "UNREACHABLE": "an unreachable address",
    "PROHIBIT": "a prohibited address",
}
_REJECT_WORDS = {
    "icmp-port-unreachable": "the client sees 'connection refused'",
    "icmp6-port-unreachable": "the client sees 'connection refused'",
    "port-unreach": "the client sees 'connection refused'",
    "tcp-reset": "the client sees 'connection refused'",
}


def rule_words(rule: Rule) -> str:
    """`rule` in a sentence. Never empty, never raises."""
    if rule.unread is not None:
        return unread_words(rule.unread)
    if rule.lost is not None:
        return lost_words(rule.lost)
    if rule.error is not None:
        return f"not understood ({rule.error}); whether it matches is not known"
    conditions = condition_words(rule)
    return f"{conditions or 'every packet'}: {target_words(rule.target)}"


def condition_words(rule: Rule) -> str:
    """The rule's conditions, comma separated; "" where it has none."""
    parts: list[str] = []
    protocol = ""
    for match in rule.matches:
        if match.name == "" and match.options and match.options[0].flag == "-p":
            option = match.options[0]
            name = option.args[0] if option.args else "?"
            protocol = _not(option) + _PROTOCOL_WORDS.get(name, name)
            parts.append(protocol)
        else:
            parts.extend(words for words in match_words(match) if words)
    return ", ".join(dict.fromkeys(parts))


def match_words(match: Match) -> list[str]:
    """One match, as one phrase for each of its conditions."""
    if match.name == "":
        return [_header(o) for o in match.options]
    special = _MATCHES.get(match.name)
    if special is not None:
        return special(match)
    return [
        f"{match.name} matches ({' '.join(_raw(o) for o in match.options)})" if match.options else match.name
    ]


def target_words(target: Target | None) -> str:
    """What the rule does with a packet that meets its conditions."""
    if target is None:
        return "only counted"
    special = _TARGETS.get(target.name)
    if special is not None and not target.goto:
        return special(target)
    if target.goto:
        return f"on to {target.name}, not to come back here"
    if not target.options:
        return f"on to {target.name}"
    return f"{target.name} ({' '.join(_raw(o) for o in target.options)})"


# -- matches


def _not(option: Option) -> str:
    return "not " if option.negated else ""


def _first(option: Option) -> str:
    return " ".join(option.args) if option.args else "?"


def _raw(option: Option) -> str:
    return " ".join([*(["!"] if option.negated else []), option.flag, *option.args])


def host_words(text: str) -> str:
    """An address without the prefix length that says nothing."""
    return text.removesuffix("/32") if "." in text else text.removesuffix("/128")


_HEADER = {"-s": "from {}", "-d": "to {}", "-i": "in by {}", "-o": "out by {}"}


def _header(option: Option) -> str:
    if option.flag == "-f":
        return "first fragments and whole packets" if option.negated else "later fragments"
    phrase = _HEADER.get(option.flag)
    return _raw(option) if phrase is None else _not(option) + phrase.format(host_words(_first(option)))


def _by_flag(table: dict[str, str | Callable[[Option], str]]) -> Callable[[Match], list[str]]:
    """Phrases by flag, behind "not " where the option is negated; `{}` stands for the arguments."""

    def phrase(option: Option) -> str:
        found = table.get(option.flag)
        if found is None:
            return _raw(option)
        return _not(option) + (found.format(_first(option)) if isinstance(found, str) else found(option))

    return lambda match: [phrase(option) for option in match.options]


_OPENING = "opening a connection (SYN)"


def _tcp_flags(option: Option) -> str:
    if option.args == ("FIN,SYN,RST,ACK", "SYN"):
        return _OPENING
    if len(option.args) != 2:
        return " ".join((option.flag, *option.args))
    return "with TCP flags {1} set of {0}".format(*option.args)


_tcp = _by_flag(
    {
        "--dport": "to port {}",
        "--destination-port": "to port {}",
        "--sport": "from port {}",
        "--source-port": "from port {}",
        "--tcp-flags": _tcp_flags,
        "--syn": _OPENING,
    }
)


def _types(side: str) -> Callable[[Option], str]:
    """Kinds of addresses."""
    return lambda option: (
        f"{side} " + " or ".join(TYPE_WORDS.get(k, k) for k in _first(option).split(",") if option.args)
    )


_addrtype = _by_flag(
    {
        "--dst-type": _types("to"),
        "--src-type": _types("from"),
        "--limit-iface-in": "(of the interface it came in by)",
        "--limit-iface-out": "(of the interface it goes out by)",
    }
)


def _statistic(match: Match) -> list[str]:
    for o in match.options:
        if o.flag == "--probability":
            try:
                chance = float(o.args[0])
            except (ValueError, IndexError):
                break
            return [f"{'all but ' if o.negated else ''}{percent(chance)} of what gets here, drawn at random"]
        if o.flag == "--every":
            return [f"{'all but ' if o.negated else ''}one in {_first(o)} of what gets here, in turn"]
    return [f"statistic ({' '.join(_raw(o) for o in match.options)})"]


def percent(share: float) -> str:
    """`33%`, `12.5%`, `<0.1%`."""
    value = share * 100
    if 0 < value < 0.1:
        return "<0.1%"
    text = f"{value:.1f}"
    return (text[:-2] if text.endswith(".0") else text) + "%"


def _recent(match: Match) -> list[str]:
    name = next((_first(o) for o in match.options if o.flag == "--name"), "DEFAULT")
    seconds = next((_first(o) for o in match.options if o.flag == "--seconds"), None)
    hits = next((_first(o) for o in match.options if o.flag == "--hitcount"), None)
    within = (f" within {seconds} s" if seconds else "") + (f" {hits} times" if hits else "")
    out = []
    for o in match.options:
        if o.flag in ("--rcheck", "--update"):
            out.append(f"{'client not' if o.negated else 'client'} seen before{within} (list {name})")
        elif o.flag == "--set":
            out.append(f"client noted in list {name}")
        elif o.flag == "--remove":
            out.append(f"client taken off list {name}")
    return out or [f"recent ({' '.join(_raw(o) for o in match.options)})"]


def _set(match: Match) -> list[str]:
    out = []
    sides = {"src": "source", "dst": "destination"}
    for o in match.options:
        if o.flag == "--match-set" and len(o.args) >= 2:
            what = " and ".join(sides.get(s, s) for s in o.args[1].split(","))
            out.append(f"{what} {'not ' if o.negated else ''}in ipset {o.args[0]}")
        elif not o.flag.startswith(("--return-nomatch", "!")):
            out.append(_raw(o))
    return out


def _limit(match: Match) -> list[str]:
    rate = next((_first(o) for o in match.options if o.flag == "--limit"), "3/hour")
    burst = next((_first(o) for o in match.options if o.flag == "--limit-burst"), None)
    return [f"while below {rate}" + (f" (burst {burst})" if burst else "")]


def _hashlimit(match: Match) -> list[str]:
    upto = next((o for o in match.options if o.flag in ("--hashlimit-upto", "--hashlimit-above")), None)
    per = next((_first(o) for o in match.options if o.flag == "--hashlimit-mode"), None)
    if upto is None:
        return [f"hashlimit ({' '.join(_raw(o) for o in match.options)})"]
    side = "below" if upto.flag.endswith("upto") != upto.negated else "above"
    return [f"while {side} {_first(upto)}" + (f" for each {per}" if per else "")]


def _mark(what: str) -> Callable[[Match], list[str]]:
    def words(match: Match) -> list[str]:
        return [_marked(o, what) if o.flag == "--mark" else _raw(o) for o in match.options]

    return words


def _marked(option: Option, what: str) -> str:
    """`marked 0x4000`, `not marked 0x20000` (also for the bit asked to be 0), `marked 0x1 in the bits 0xff`."""
    value, slash, mask = _first(option).partition("/")
    if slash and value == "0x0" and _is_bit(mask):
        return f"{'' if option.negated else 'not '}{what} {mask}"
    bits = "" if not slash or mask in (value, "0xffffffff") else f" in the bits {mask}"
    return f"{_not(option)}{what} {value}{bits}"


def _is_bit(mask: str) -> bool:
    number = int(mask, 0)
    return number > 0 and number & (number - 1) == 0


def _rpfilter(match: Match) -> list[str]:
    inverted = any(o.flag == "--invert" for o in match.options)
    return [
        f"the way back to the source {'is not' if inverted else 'is'} the interface it came in by (rpfilter)"
    ]


_MATCHES: dict[str, Callable[[Match], list[str]]] = {
    "tcp": _tcp,
    "udp": _tcp,
    "sctp": _tcp,
    "dccp": _tcp,
    "udplite": _tcp,
    "comment": lambda _: [],
    "nfacct": lambda match: [f"counted as {_first(o)}" for o in match.options if o.flag == "--nfacct-name"],
    "addrtype": _addrtype,
    "statistic": _statistic,
    "recent": _recent,
    "set": _set,
    "limit": _limit,
    "hashlimit": _hashlimit,
    "mark": _mark("marked"),
    "connmark": _mark("of a connection marked"),
    "physdev": _by_flag(
        {
            "--physdev-in": "in by bridge port {}",
            "--physdev-out": "out by bridge port {}",
            "--physdev-is-in": "in by a bridge port",
            "--physdev-is-out": "out by a bridge port",
            "--physdev-is-bridged": "bridged, not routed",
        }
    ),
    "rpfilter": _rpfilter,
    "conntrack": _by_flag(
        {
            "--ctstate": "in state {}",
            "--ctproto": "of a connection of protocol {}",
            "--ctorigsrc": "of a connection that came from {}",
            "--ctorigdst": "of a connection that dialled {}",
            "--ctreplsrc": "of a connection answered from {}",
            "--ctrepldst": "of a connection answered to {}",
            "--ctorigsrcport": "of a connection that came from port {}",
            "--ctorigdstport": "of a connection that dialled port {}",
            "--ctreplsrcport": "of a connection answered from port {}",
            "--ctrepldstport": "of a connection answered to port {}",
            "--ctstatus": "of a connection with status {}",
            "--ctexpire": "of a connection that ends in {} s",
            "--ctdir": "of direction {}",
        }
    ),
    "state": _by_flag({"--state": "in state {}"}),
    "multiport": _by_flag(
        {
            "--dports": "to ports {}",
            "--destination-ports": "to ports {}",
            "--sports": "from ports {}",
            "--source-ports": "from ports {}",
            "--ports": "from or to ports {}",
        }
    ),
    "iprange": _by_flag({"--src-range": "from {}", "--dst-range": "to {}"}),
    "icmp": _by_flag({"--icmp-type": "ICMP type {}"}),
    "icmp6": _by_flag({"--icmpv6-type": "ICMPv6 type {}"}),
    "pkttype": _by_flag({"--pkt-type": "{} packets"}),
    "length": _by_flag({"--length": "of length {}"}),
    "ttl": _by_flag({"--ttl-eq": "TTL {}", "--ttl-lt": "TTL below {}", "--ttl-gt": "TTL above {}"}),
    "hl": _by_flag(
        {"--hl-eq": "hop limit {}", "--hl-lt": "hop limit below {}", "--hl-gt": "hop limit above {}"}
    ),
    "mac": _by_flag({"--mac-source": "from hardware address {}"}),
    "tos": _by_flag({"--tos": "TOS {}"}),
    "dscp": _by_flag({"--dscp": "DSCP {}", "--dscp-class": "DSCP class {}"}),
    "owner": _by_flag(
        {
            "--uid-owner": "sent by user {}",
            "--gid-owner": "sent by group {}",
            "--socket-exists": "sent by a process of this node",
        }
    ),
    "helper": _by_flag({"--helper": "of a connection with helper {}"}),
    "socket": _by_flag(
        {
            "--transparent": "its socket is transparent",
            "--nowildcard": "also for wildcard sockets",
            "--restore-skmark": "mark taken from the socket",
        }
    ),
    "quota": _by_flag({"--quota": "until {} bytes have passed"}),
    "connlimit": _by_flag(
        {
            "--connlimit-upto": "client has at most {} connections",
            "--connlimit-above": "client has more than {} connections",
            "--connlimit-mask": "(clients counted by /{})",
            "--connlimit-saddr": "(by source)",
            "--connlimit-daddr": "(by destination)",
        }
    ),
    "cgroup": _by_flag({"--path": "sent from cgroup {}", "--cgroup": "sent from cgroup {}"}),
}


# -- targets


def _fixed(words: str) -> Callable[[Target], str]:
    return lambda _: words


def _reject(target: Target) -> str:
    kind = target.value("--reject-with") or "icmp-port-unreachable"
    return f"refused with {kind}" + (f" ({_REJECT_WORDS[kind]})" if kind in _REJECT_WORDS else "")


def _options(words: str) -> Callable[[Target], str]:
    """What is changed, with the options as they are written."""
    return lambda target: f"{words} ({' '.join(_raw(o) for o in target.options)}), then on"


def _with(words: str, flag: str, default: str = "?") -> Callable[[Target], str]:
    return lambda target: words.format(target.value(flag) or default)


def _mark_target(target: Target) -> str:
    if len(target.options) != 1 or not target.options[0].args:
        return f"mark changed ({' '.join(_raw(o) for o in target.options)})"
    option = target.options[0]
    value, _, mask = option.args[0].partition("/")
    if option.flag == "--set-xmark" and mask:
        if mask == value:
            return f"marked {value}"
        if mask == "0x0":
            return f"mark {value} taken off again"
        if value == "0x0":
            return f"mark cleared in bits {mask}"
        if mask == "0xffffffff":
            return f"mark set to {value}"
    return f"mark changed ({_raw(option)})"


def _connmark(target: Target) -> str:
    flags = {o.flag for o in target.options}
    if "--save-mark" in flags:
        return "packet's mark saved in its connection"
    if "--restore-mark" in flags:
        return "packet's mark restored from its connection"
    return f"connection's mark changed ({' '.join(_raw(o) for o in target.options)})"


def _ct(target: Target) -> str:
    if target.option("--notrack") is not None:
        return "not tracked: no NAT rule sees it"
    return f"conntrack: {' '.join(_raw(o) for o in target.options)}"


def _log(target: Target) -> str:
    prefix = target.value("--log-prefix") or target.value("--nflog-prefix")
    return f"logged as '{prefix.strip()}', then on" if prefix else "logged, then on"


def _redirect(target: Target) -> str:
    ports = target.value("--to-ports")
    return f"taken by a process here, port {ports}" if ports else "taken by a process here"


_TARGETS: dict[str, Callable[[Target], str]] = {
    "ACCEPT": _fixed("accepted"),
    "DROP": _fixed("dropped without an answer (the client times out)"),
    "RETURN": _fixed("back to the chain before"),
    "REJECT": _reject,
    "DNAT": _with("sent to {} instead (DNAT)", "--to-destination"),
    "SNAT": _with("source replaced by {} (SNAT)", "--to-source"),
    "MASQUERADE": _fixed("source replaced by this node's address (masquerading)"),
    "REDIRECT": _redirect,
    "NETMAP": _with("network part of the address replaced by {} (NETMAP)", "--to"),
    "MARK": _mark_target,
    "CONNMARK": _connmark,
    "CT": _ct,
    "NOTRACK": _fixed("not tracked: no NAT rule sees it"),
    "LOG": _log,
    "NFLOG": _log,
    "ULOG": _log,
    "TRACE": _fixed("traced in the kernel's log, then on"),
    "TCPMSS": _fixed("TCP segment size lowered, then on"),
    "CHECKSUM": _fixed("checksum filled in, then on"),
    "NFQUEUE": _fixed("handed to a program of this node, which decides (NFQUEUE)"),
    "QUEUE": _fixed("handed to a program of this node, which decides (QUEUE)"),
    "TPROXY": _fixed("handed to a proxy of this node (TPROXY)"),
    "TEE": _with("copied to {}, then on", "--gateway"),
    "SET": _options("ipset changed"),
    "TOS": _options("TOS changed"),
    "DSCP": _options("DSCP changed"),
    "TTL": _options("TTL changed"),
    "HL": _options("hop limit changed"),
    "CLASSIFY": _options("traffic class set"),
}
