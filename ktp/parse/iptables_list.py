"""A row of `iptables -L` → the line that `iptables -S` prints for that rule, as far as the columns tell.

Sources: iptables 1.8 (print_firewall, print_rule4) and the extensions' print functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_COLUMNS = re.compile(
    r"\s*(num\s+)?(pkts\s+bytes\s+)?target\s+prot\s+(opt\s+)?(in\s+out\s+)?source\s+destination\s*$"
)
_ADDRESS = re.compile(r"!?(?:anywhere|[0-9.]+(?:/[0-9.]+)?|[0-9a-f]*:[0-9a-f:.]*(?:/[0-9a-f:]+)?)$")
_OPT = re.compile(r"(?:--|-f|!f|----)$")
_PROTOCOLS = {
    "6": "tcp",
    "17": "udp",
    "132": "sctp",
    "1": "icmp",
    "58": "ipv6-icmp",
    "47": "gre",
    "50": "esp",
}
_ANY_PROTOCOL = ("all", "0")
_COUNT = re.compile(r"\d+[KMGT]?$")
# Without -v no row tells the interfaces. kube-proxy's chains name none; any other rule may.
UNPRINTED = "-m unprinted-interface"
_KUBE = re.compile(r"KUBE-(?!SVC-)")


def columns_of(text: str) -> tuple[str, ...] | None:
    """The columns that a header line names; None where it is none."""
    return tuple(text.split()) if _COLUMNS.match(text) else None


def listed_rule(chain: str, row: str, columns: tuple[str, ...]) -> str | None:
    """The rule of a row; None where a word of it is not understood."""
    words = row.split()
    verbose = "in" in columns
    at = next((i for i in range(len(words) - 1) if _ADDRESS.match(words[i]) and _ADDRESS.match(words[i + 1])
               and i >= ("num" in columns) + 2 * ("pkts" in columns) + 2 * verbose + 1), -1)  # fmt: skip
    if at < 0:
        return None
    rest = row
    for _ in range(at + 2):
        rest = rest.lstrip().partition(" ")[2]
    head = words[("num" in columns) : at]
    counted = ""
    if "pkts" in columns:
        if len(head) < 2 or not (_COUNT.match(head[0]) and _COUNT.match(head[1])):
            return None
        if head[0].isdigit() and head[1].isdigit():  # 12K is rounded
            counted = f"[{head[0]}:{head[1]}] "
        head = head[2:]
    parts: list[str] = []
    for flag, word in (("-s", words[at]), ("-d", words[at + 1])):
        parts += _address(flag, word)
    if verbose:
        for flag, word in (("-i", head[-2]), ("-o", head[-1])):
            parts += _negatable(flag, word) if word not in ("*", "any") else []
        head = head[:-2]
    fragment = False
    if head and _OPT.match(head[-1]):
        fragment = head[-1] != "--" and head[-1] != "----"
        head = head[:-1]
    if not 1 <= len(head) <= 2:
        return None
    protocol = head[-1].removeprefix("!")
    if protocol not in _ANY_PROTOCOL:
        parts += _negatable("-p", head[-1].replace(protocol, _PROTOCOLS.get(protocol, protocol)))
    if fragment:
        return None
    target = head[0] if len(head) == 2 else ""
    found = _extensions(rest.strip(), target)
    if found is None:
        return None
    matches, options, goto = found
    parts += matches
    if not verbose and not _KUBE.match(chain):
        parts.append(UNPRINTED)
    if target:
        parts += ["-g" if goto else "-j", target, *options]
    return f"{counted}-A {chain} " + " ".join(parts)


def _negatable(flag: str, word: str) -> list[str]:
    return ["!", flag, word[1:]] if word.startswith("!") else [flag, word]


def _address(flag: str, word: str) -> list[str]:
    bare = word.removeprefix("!")
    if bare in ("anywhere", "0.0.0.0/0", "::/0"):
        return []
    if "/" not in bare:
        word += "/128" if ":" in bare else "/32"
    return _negatable(flag, word)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ports(m: re.Match[str]) -> str | None:
    protocol, told = m.group(1), m.group(2).split()
    parts = [f"-m {protocol}"]
    for one in told:
        name, _, value = one.partition(":")
        negated = value.startswith("!")
        value = value.removeprefix("!")
        if name == "flags":
            mask, _, flags = value.partition("/")
            words = _flags(mask), _flags(flags)
            if None in words:
                return None
            option = f"--tcp-flags {words[0]} {words[1]}"
        elif not re.fullmatch(r"\d+(?::\d+)?", value):
            return None
        else:
            option = f"--{name.rstrip('s')[0]}port {value}"
        parts.append(("! " if negated else "") + option)
    return " ".join(parts)


def _flags(number: str) -> str | None:
    names = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
    if not re.fullmatch(r"0x[0-9A-Fa-f]+", number):
        return None
    bits = int(number, 16)
    if bits == 0:
        return "NONE"
    return ",".join(name for bit, name in enumerate(names) if bits >> bit & 1)


def _addrtype(m: re.Match[str]) -> str:
    parts = ["-m addrtype"]
    for flag, value in (("--src-type", m.group(1)), ("--dst-type", m.group(2))):
        if value:
            parts.append(f"! {flag} {value[1:]}" if value.startswith("!") else f"{flag} {value}")
    return " ".join(parts)


def _recent(m: re.Match[str]) -> str:
    negated, verb, how, name, side, mask = m.groups()
    parts = ["-m recent", ("! " if negated else "") + {"CHECK": "--rcheck"}.get(verb, f"--{verb.lower()}")]
    for word, value in re.findall(r"(seconds|hit_count|reap)(?:: (\d+))?", how):
        parts.append(
            {"seconds": f"--seconds {value}", "hit_count": f"--hitcount {value}"}.get(word, "--reap")
        )
    parts += [
        f"--name {name}",
        f"--mask {mask}" if mask else "",
        "--rsource" if side == "source" else "--rdest",
    ]
    return " ".join(p for p in parts if p)


def _multiport(m: re.Match[str]) -> str:
    value = m.group(2)
    negated = "! " if value.startswith("!") else ""
    return f"-m multiport {negated}--{m.group(1)} {value.removeprefix('!')}"


def _mark(m: re.Match[str]) -> str:
    verb, value = m.groups()
    every = 0xFFFFFFFF
    if verb == "or":
        return f"--set-xmark {value}/{value}"
    if verb == "and":
        return f"--set-xmark 0x0/{every & ~int(value, 16):#x}"
    if verb == "xor":
        return f"--set-xmark {value}/0x0"
    return f"--set-{'x' if verb == 'xset' else ''}mark {value}"


def _limit(m: re.Match[str]) -> str:
    burst = f" --limit-burst {m.group(2)}" if m.group(2) != "5" else ""  # as iptables-save leaves it out
    return f"-m limit --limit {m.group(1)}{burst}"


_Write = Callable[[re.Match[str]], "str | None"]


def _not(m: re.Match[str]) -> str:
    return "! " if m.group(1) else ""


_MATCHES: tuple[tuple[re.Pattern[str], _Write], ...] = (
    (re.compile(r"/\* (.*?) \*/"), lambda m: f"-m comment --comment {_quoted(m.group(1))}"),
    (re.compile(r"(tcp|udp|sctp|dccp)\b((?: (?:[ds]pts?|flags):\S+)*)"), _ports),
    (re.compile(r"multiport ([ds]ports|ports) (!?\s?[\d,:]+)"), _multiport),
    (re.compile(r"ADDRTYPE match(?: src-type (\S+))?(?: dst-type (\S+))?"), _addrtype),
    (re.compile(r"(! )?ctstate ([A-Z,]+)"), lambda m: f"-m conntrack {_not(m)}--ctstate {m.group(2)}"),
    (re.compile(r"(! )?state ([A-Z,]+)"), lambda m: f"-m state {_not(m)}--state {m.group(2)}"),
    (
        re.compile(r"mark match (! ?)?(0x[0-9a-f]+(?:/0x[0-9a-f]+)?)"),
        lambda m: f"-m mark {_not(m)}--mark {m.group(2)}",
    ),
    (
        re.compile(r"connmark match (! ?)?(0x[0-9a-f]+(?:/0x[0-9a-f]+)?)"),
        lambda m: f"-m connmark {_not(m)}--mark {m.group(2)}",
    ),
    (
        re.compile(r"statistic mode random (! )?probability ([\d.]+)"),
        lambda m: f"-m statistic --mode random {_not(m)}--probability {m.group(2)}",
    ),
    (
        re.compile(r"(! )?match-set (\S+) ([a-z,]+)"),
        lambda m: f"-m set {_not(m)}--match-set {m.group(2)} {m.group(3)}",
    ),
    (
        re.compile(
            r"(! )?recent: (CHECK|UPDATE|SET|REMOVE) (.*?)name: (\S+) side: (source|dest)(?: mask: (\S+))?"
        ),
        _recent,
    ),
    (re.compile(r"limit: avg (\S+) burst (\d+)"), _limit),
    (re.compile(r"PHYSDEV match --physdev-is-bridged"), lambda _: "-m physdev --physdev-is-bridged"),
    (re.compile(r"icmp(?:v6)?-?type (\d+)"), lambda m: f"-m icmp --icmp-type {m.group(1)}"),
)

_TARGETS: dict[str, tuple[tuple[re.Pattern[str], _Write], ...]] = {
    "DNAT": (
        (re.compile(r"to:(\S+)"), lambda m: f"--to-destination {m.group(1)}"),
        (re.compile(r"(random|persistent)"), lambda m: f"--{m.group(1)}"),
    ),
    "SNAT": (
        (re.compile(r"to:(\S+)"), lambda m: f"--to-source {m.group(1)}"),
        (re.compile(r"(random-fully|random|persistent)"), lambda m: f"--{m.group(1)}"),
    ),
    "MASQUERADE": (
        (re.compile(r"masq ports: (\S+)"), lambda m: f"--to-ports {m.group(1)}"),
        (re.compile(r"(random-fully|random)"), lambda m: f"--{m.group(1)}"),
    ),
    "REDIRECT": ((re.compile(r"redir ports (\S+)"), lambda m: f"--to-ports {m.group(1)}"),),
    "REJECT": ((re.compile(r"reject-with (\S+)"), lambda m: f"--reject-with {m.group(1)}"),),
    "MARK": ((re.compile(r"MARK (or|and|xor|xset|set) (0x[0-9a-f]+(?:/0x[0-9a-f]+)?)"), _mark),),
    "LOG": (
        (re.compile(r"LOG flags \d+ level \d+"), lambda _: ""),
        (re.compile(r'prefix "(.*?)"'), lambda m: f"--log-prefix {_quoted(m.group(1))}"),
    ),
    "NFLOG": (
        (re.compile(r"nflog-(group|threshold|range) (\d+)"), lambda m: f"--nflog-{m.group(1)} {m.group(2)}"),
        (re.compile(r'nflog-prefix +"?([^"]*)"?'), lambda m: f"--nflog-prefix {_quoted(m.group(1))}"),
    ),
    "TCPMSS": ((re.compile(r"TCPMSS clamp to PMTU"), lambda _: "--clamp-mss-to-pmtu"),),
    "CT": ((re.compile(r"(?:CT )?notrack", re.IGNORECASE), lambda _: "--notrack"),),
}


def _extensions(rest: str, target: str) -> tuple[list[str], list[str], bool] | None:
    """What stands behind the destination: matches, the target's options, and whether it is a goto."""
    matches: list[str] = []
    options: list[str] = []
    goto = False
    while rest:
        if rest.startswith("[goto]"):
            goto, rest = True, rest[6:].lstrip()
            continue
        patterns = [
            *((p, w, options) for p, w in _TARGETS.get(target, ())),
            *((p, w, matches) for p, w in _MATCHES),
        ]
        found = next(((m, w, into) for p, w, into in patterns if (m := p.match(rest)) is not None), None)
        if found is None:
            return None
        m, write, into = found
        text = write(m)
        if text is None:
            return None
        into += [text] if text else []
        rest = rest[m.end() :].lstrip()
    return matches, options, goto
