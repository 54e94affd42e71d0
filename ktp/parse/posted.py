"""Packet filter rules as people post them → rulesets, with what each text was taken for.

iptables-save in any dress (quoted, indented, numbered, fenced, folded), without its COMMIT or its table headers;
`iptables -S`; `iptables -L`; several of them in one text. A line that is not understood is counted, and where it stands
among rules it stays there as one that cannot be answered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from enum import Enum
from itertools import pairwise

from ktp.model.reading import Lack, Reading, TableReading
from ktp.model.record import dataclass
from ktp.model.ruleset import (
    BASE_CHAINS,
    BUILT_IN_CHAINS,
    Backend,
    Chain,
    Counters,
    DictRuleset,
    PartialRuleset,
    Rule,
    Ruleset,
    unread_ruleset,
)
from ktp.parse.iptables_list import columns_of, listed_rule
from ktp.parse.iptables_save import chains_of, other_backend, parse_rule, with_unread_tables
from ktp.parse.text import decode_text


class Form(Enum):
    """What a part of a text was taken for."""

    SAVE = "iptables-save"
    LINES = "rules of iptables-save without their tables' names"
    RULES = "iptables -S"
    LISTING = "iptables -L"


class Dress(Enum):
    """What was taken off the lines."""

    QUOTED = "quoted"
    NUMBERED = "numbered"
    INDENTED = "indented"
    FENCED = "fenced"
    DASHES = "with typeset dashes, quotes or blanks"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedHost:
    """The rulesets of one node: of both families and back ends, as far as the text has them."""

    rulesets: tuple[Ruleset, ...]
    first_line: int
    last_line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What a text holds, and what it was taken for. `unparsed` are the numbers of lines that were not understood."""

    hosts: tuple[PostedHost, ...]
    forms: tuple[Form, ...]
    dress: tuple[Dress, ...] = ()
    joined: int = 0
    unparsed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str


# ------------------------------------------------------------------------------------------------------- dress

_BLANKS = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2007": " ", "\u200b": "", "\ufeff": ""})
_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"'})
_LONG_DASH = re.compile(r"(?<![\w\"])[\u2014\u2015\u2013](?=[a-z]{2})")
_SHORT_DASH = re.compile(r"(?<![\w\"])[\u2013\u2014](?=[A-Za-z] )")
_MARK = re.compile(r"^(?:\s*(?:>|&gt;))+ ?")
_FENCE = re.compile(r"^\s*(?:>\s*)*(?:```|~~~)\S*\s*$")
# `cat -n` and `nl` end the number with a tab, `grep -n` with a colon (a hyphen in lines around a hit).
_NUMBER = re.compile(
    r"^\s*(?:[\w./-]+:)?(\d+)(?:\t|:|-(?=[-*:#\[C])| {1,2}(?=[-*:#\[]|COMMIT|Chain |num |pkts |target ))"
)
_FILE = re.compile(r"^[\w./-]+:(?=-[APN] |# [A-Z]|\[\d+:\d+\] -A |:\S+ \S+ \[|\*[a-z]+$|COMMIT$)")


def _undressed(text: str) -> tuple[list[_Line], list[Dress]]:
    """The lines without quoting, numbers, indentation and fences; their numbers are those in the text."""
    dress: dict[Dress, None] = {}
    plain = text.translate(_BLANKS)
    if not plain.isascii():
        plain = _SHORT_DASH.sub("-", _LONG_DASH.sub("--", plain.translate(_QUOTES)))
    if plain != text:
        dress[Dress.DASHES] = None
    lines: list[_Line] = []
    for number, line in enumerate(plain.splitlines(), 1):
        if _FENCE.match(line):
            dress[Dress.FENCED] = None
        elif line.strip():
            lines.append(_Line(number, line))
    quoted = [_MARK.match(line.text) for line in lines]
    if 2 * sum(m is not None for m in quoted) > len(
        lines
    ):  # the rest of a folded comment may begin with "> ", too
        dress[Dress.QUOTED] = None
        lines = [
            line if m is None else _Line(line.number, line.text[m.end() :])
            for line, m in zip(lines, quoted, strict=True)
        ]
        fenced = [line for line in lines if _FENCE.match(line.text)]
        if fenced:
            dress[Dress.FENCED] = None
        lines = [line for line in lines if line.text.strip() and not _FENCE.match(line.text)]
    lines, indented = _without_indent(lines)
    lines, numbered = _without_numbers(lines)
    if numbered:
        dress[Dress.NUMBERED] = None
        lines, _ = _without_indent(lines)
    elif indented:
        dress[Dress.INDENTED] = None
    return [_Line(line.number, _FILE.sub("", line.text)) for line in lines if line.text.strip()], list(dress)


def _without_indent(lines: list[_Line]) -> tuple[list[_Line], bool]:
    least = min((len(line.text) - len(line.text.lstrip()) for line in lines), default=0)
    return ([_Line(line.number, line.text[least:]) for line in lines], True) if least else (lines, False)


def _without_numbers(lines: list[_Line]) -> tuple[list[_Line], bool]:
    """Without the numbers of `grep -n` or `cat -n`: they grow from line to line, and heads of chains have them, too."""
    found = [_NUMBER.match(line.text) for line in lines]
    numbers = [int(m.group(1)) for m in found if m is not None]
    bare = any(m is None and _HEAD.match(line.text) for line, m in zip(lines, found, strict=True))
    if bare or 2 * len(numbers) <= len(lines) or any(a >= b for a, b in pairwise(numbers)):
        return lines, False
    out = [
        line if m is None else _Line(line.number, line.text[m.end() :])
        for line, m in zip(lines, found, strict=True)
    ]
    return [line for line in out if line.text != "--"], True


def undressed_text(data: bytes) -> bytes:
    """The text without quoting, numbers and fences, and without the commands that printed it: for other readers."""
    lines, _ = _undressed(data.decode("utf-8-sig", "replace"))
    return "\n".join(line.text for line in lines if not _SHELL.match(line.text)).encode()


# ------------------------------------------------------------------------------------------------------- lines

_COUNTED = r"(?:\[\d+:\d+\] )?"
_RULE = re.compile(rf"{_COUNTED}(?:-A|--append) (\S+)(?: |$)")
_TABLE = re.compile(r"\*([a-z]+)$")
_DECLARED = re.compile(r":(\S+) (-|ACCEPT|DROP|QUEUE)(?: \[(\d+):(\d+)\])?$")
_POLICY = re.compile(r"(?:-P|--policy) (\S+) (ACCEPT|DROP|QUEUE)(?: -c (\d+) (\d+))?$")
_NEW = re.compile(r"(?:-N|--new-chain) (\S+)$")
_HEAD = re.compile(
    r"\s*Chain (\S+) \((?:policy (\w+)(?: (\d+)[KMGT]? packets, (\d+)[KMGT]? bytes)?|-?\d+ references?)\)"
)
_GENERATED = re.compile(
    r"# Generated by (ip6?tables)(?:-(nft|legacy))?-save v[\d.]+(?: \((nf_tables|legacy)\))?"
)
_COMMAND = re.compile(
    r"(?:\S+@\S+.*?[#$%]\s*|\[\S+@[^\]]*\][#$%]?\s*|[#$%]\s+)?"
    r"(?:sudo\s+|kubectl\s.*?--\s+|docker exec \S+ |nsenter\s.*?)?"
    r"(?P<what>ip6?tables)(?:-(?P<backend>nft|legacy))?(?P<save>-save)?(?P<rest>\s.*)?$"
)
_PROMPT = re.compile(r"(?:\S+@\S+[:~ ].*?[#$%]|\[\S+@[^\]]*\]\s?[#$%]|[$%])(?:\s.*)?$")
_SHELL = re.compile(
    r"(?:\S+@\S+.*?[#$%]\s*|\[\S+@[^\]]*\][#$%]?\s*|[#$%]\s+)(?:sudo\s+)?(?:(?:ipvsadm|nft|ip6?tables)\b.*)?$"
)
_ADDED = re.compile(r"(?:.*\s)?(?:-A|--append)\s")
_IN_TABLE = re.compile(r"(?:^|\s)(?:-t|--table)[\s=]*(\w+)")
_ELIDED = re.compile(
    r"[\W_]*(?:\.\.+|\u2026|snip\w*|truncated|omitted|cut)[\W_]*(?:\w+[\W_]*)?$", re.IGNORECASE
)


def _is_start(text: str) -> bool:
    """Whether a line of its own begins here, and no rest of a folded one."""
    return bool(
        _RULE.match(text)
        or text.startswith("#")
        or text.strip() == "COMMIT"
        or _TABLE.match(text.strip())
        or _DECLARED.match(text.strip())
        or _POLICY.match(text)
        or _NEW.match(text)
        or _HEAD.match(text)
        or columns_of(text) is not None
        or _COMMAND.match(text)
        or _PROMPT.match(text)
        or _ELIDED.match(text)
    )


def _unfolded(lines: list[_Line]) -> tuple[list[_Line], int]:
    """Rules that were folded, in one piece again where that is sure; and how many."""
    starts = [_is_start(line.text) for line in lines]
    if all(starts) or not any(_RULE.match(line.text) for line in lines):
        return lines, 0
    widths = Counter(
        len(line.text) for line, following in zip(lines, starts[1:], strict=False) if not following
    )
    width, often = widths.most_common(1)[0] if widths else (0, 0)
    out: list[_Line] = []
    joined = 0
    at = 0
    while at < len(lines):
        first = lines[at]
        end = at + 1
        while end < len(lines) and not starts[end]:
            end += 1
        pieces = [line.text for line in lines[at:end]]
        foldable = end > at + 1 and (_RULE.match(first.text) or first.text.startswith("#"))
        whole = _join(pieces, width if often > 1 else 0) if foldable else None
        if whole is None:
            out.extend(lines[at:end])
        else:
            joined += 1
            out.append(_Line(first.number, whole))
        at = end
    return out, joined


def _join(pieces: Sequence[str], width: int) -> str | None:
    """The rule, or remark, that was folded into `pieces`; None where there is not exactly one way to read it."""
    ways = [pieces[0]]
    sure = True  # a rule may do without a target: KUBE-FW chains end with a mere comment
    for before, piece in pairwise(pieces):
        if len(before) == width or before.endswith(" ") or piece.startswith(" "):
            ways = [way + piece for way in ways]
            continue
        if sure and _sound(ways[0].strip(), targeted=True):
            return None  # what looks whole may be whole
        sure = False
        ways = [way + space + piece for way in ways for space in ("", " ")]
        if len(ways) > 16:
            return None
    if pieces[0].startswith("#"):
        return ways[0] if sure else None
    sound = [way for way in ways if _sound(way.strip(), targeted=not sure)]
    return sound[0].strip() if len(sound) == 1 else None


def _sound(text: str, *, targeted: bool) -> bool:
    m = _RULE.match(text)
    rule = parse_rule("", m.group(1), text) if m is not None else None
    return rule is not None and rule.error is None and not (targeted and rule.target is None)


# ------------------------------------------------------------------------------------------------------- blocks


@dataclass(slots=True)
class _Block:
    """Lines that belong to one table, as far as that is known when they are met."""

    form: Form
    first: int
    table: str | None = None
    family: str | None = None
    backend: Backend = Backend.UNKNOWN
    declared: dict[str, tuple[str | None, Counters | None]] = field(default_factory=dict)
    rules: list[tuple[int, str, str]] = field(default_factory=list)  # number, chain, line
    ended: bool = False  # what comes behind it shows that it does not break off
    elided: bool = False
    user_rules: bool = False
    last: int = 0

    @property
    def is_table(self) -> bool:
        """Whether all chains of a table are declared that the rules are in."""
        hooks = BASE_CHAINS.get(self.table or "", ())
        if self.form is Form.SAVE:
            return all(chain in self.declared for _, chain, _ in self.rules)
        return set(hooks) <= set(self.declared) and not self.elided

    def hooks(self) -> set[str]:
        """The base chains that it has rules of."""
        return {chain for _, chain, _ in self.rules if chain in BUILT_IN_CHAINS}


class _Reader:
    """Lines → blocks."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.unparsed: list[int] = []
        self._block: _Block | None = None
        self._family: str | None = None
        self._backend = Backend.UNKNOWN
        self._table: str | None = None  # that a command named
        self._columns: tuple[str, ...] | None = None
        self._chain = ""

    def read(self, lines: Iterable[_Line]) -> None:
        """Every line goes somewhere: into a block, or among the unparsed."""
        for line in lines:
            block = self._block
            if not self._line(line):
                self.unparsed.append(line.number)
                block = self._block
                if block is not None and block.rules:
                    # Something stands here that was not understood: whoever comes along must know.
                    block.rules.append((line.number, block.rules[-1][1], line.text.strip()))
            if self._block is not None:
                self._block.last = line.number

    def _line(self, line: _Line) -> bool:
        text = line.text.strip()
        m = _RULE.match(text)
        if m is not None:
            self._rule(line.number, m.group(1), text)
        elif text.startswith("#"):
            self._remark(text)
        elif (m := _TABLE.match(text)) is not None:
            self._end()
            self._begin(Form.SAVE, line.number, m.group(1))
        elif text == "COMMIT":
            self._end()
        elif (m := _DECLARED.match(text)) is not None:
            self._declare(line.number, m)
        elif (m := _POLICY.match(text) or _NEW.match(text)) is not None:
            block = self._block
            if block is None or block.form is not Form.RULES or block.rules or m.group(1) in block.declared:
                self._end()
                block = self._begin(Form.RULES, line.number, self._table)
            groups = m.groups()
            policy = groups[1] if len(groups) > 1 else None
            block.declared[m.group(1)] = (policy, _counters(*groups[2:]) if len(groups) > 1 else None)
        elif (m := _HEAD.match(text)) is not None:
            self._head(line.number, m)
        elif (columns := columns_of(text)) is not None and self._chain:
            self._columns = columns
        elif (m := _COMMAND.match(text)) is not None:
            self._command(line.number, m)
        elif _PROMPT.match(text):
            self._end()
        elif _ELIDED.match(text):
            for block in self.blocks[-1:]:
                block.elided = True
            return False
        else:
            return self._row(line.number, text)
        return True

    def _begin(self, form: Form, number: int, table: str | None) -> _Block:
        block = _Block(form, number, table, self._family, self._backend)
        self.blocks.append(block)
        self._block = block
        return block

    def _end(self) -> None:
        if self._block is not None:
            self._block.ended = True
        self._block = None
        self._chain = ""

    def _rule(self, number: int, chain: str, text: str) -> None:
        block = self._block
        base = chain in BUILT_IN_CHAINS
        if (
            block is None
            or (block.form is Form.LINES and base and block.user_rules)
            or block.form is Form.LISTING
        ):
            self._end()
            block = self._begin(Form.LINES, number, self._table)
        block.user_rules = block.user_rules or not base
        block.rules.append((number, chain, text))

    def _declare(self, number: int, m: re.Match[str]) -> None:
        block, name = self._block, m.group(1)
        if block is None or (
            block.form is not Form.SAVE
            and (block.rules or block.form is not Form.LINES or name in block.declared)
        ):
            self._end()
            block = self._begin(Form.LINES, number, None)
        policy = m.group(2)
        block.declared[name] = (None if policy == "-" else policy, _counters(m.group(3), m.group(4)))

    def _head(self, number: int, m: re.Match[str]) -> None:
        block, name, policy = self._block, m.group(1), m.group(2)
        if (
            block is None
            or block.form is not Form.LISTING
            or name in block.declared
            or (policy is not None and any(p is None for p, _ in block.declared.values()))
        ):
            self._end()
            block = self._begin(Form.LISTING, number, self._table)
        block.declared[name] = (policy, _counters(m.group(3), m.group(4)))
        self._chain = name
        self._columns = None

    def _row(self, number: int, text: str) -> bool:
        block = self._block
        if block is None or block.form is not Form.LISTING or self._columns is None:
            return False
        rule = listed_rule(self._chain, text, self._columns)
        block.rules.append((number, self._chain, rule if rule is not None else f"-A {self._chain} {text}"))
        if rule is None:
            self.unparsed.append(number)
        return True

    def _remark(self, text: str) -> None:
        m = _GENERATED.match(text)
        if m is not None:
            self._end()
            self._table = None
            self._family = "ip6" if m.group(1) == "ip6tables" else "ip"
            nft = m.group(2) == "nft" or m.group(3) == "nf_tables"
            self._backend = Backend.NFT if nft else Backend.LEGACY
        elif text.startswith("# Completed"):
            self._end()
        elif (m := _COMMAND.match(text)) is not None:
            self._end()
            self._follow(m)

    def _command(self, number: int, m: re.Match[str]) -> None:
        rest = m.group("rest") or ""
        added = _ADDED.match(rest)
        if added is None:
            self._end()
            self._follow(m)
            return
        # A command that adds a rule: a script, or what somebody typed.
        named = _IN_TABLE.search(rest)
        table = named.group(1) if named is not None else "filter"
        text = "-A " + _IN_TABLE.sub("", rest[added.end() :]).strip()
        family = "ip6" if m.group("what") == "ip6tables" else "ip"
        block = self._block
        if block is None or block.form is not Form.LINES or (block.table, block.family) != (table, family):
            self._end()
            block = self._begin(Form.LINES, number, table)
            block.family = family
        block.rules.append((number, text.split()[1] if len(text.split()) > 1 else "", text))

    def _follow(self, m: re.Match[str]) -> None:
        """What a command in front of its output tells of it."""
        rest = m.group("rest") or ""
        named = _IN_TABLE.search(rest)
        self._table = named.group(1) if named is not None else None
        if self._table is None and m.group("save") is None:
            self._table = "filter"  # iptables(8)
        self._family = "ip6" if m.group("what") == "ip6tables" else "ip"
        found = m.group("backend")
        self._backend = {"nft": Backend.NFT, "legacy": Backend.LEGACY}.get(found or "", Backend.UNKNOWN)


def _counters(packets: str | None, size: str | None) -> Counters | None:
    return Counters(int(packets), int(size)) if packets and size else None


# ------------------------------------------------------------------------------------------------------- tables

_TARGET_TABLES = {
    **dict.fromkeys(("DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"), "nat"),
    **dict.fromkeys(("REJECT", "DROP"), "filter"),
    **dict.fromkeys(("TPROXY", "TOS", "DSCP", "TTL", "CLASSIFY", "TCPMSS", "CHECKSUM"), "mangle"),
    **dict.fromkeys(("CT", "NOTRACK"), "raw"),
    **dict.fromkeys(("SECMARK", "CONNSECMARK"), "security"),
}
_PREFIX_TABLES = (
    (re.compile(r"KUBE-(?:SVC|SVL|EXT|XLB|FW|SEP)-"), "nat"),
    (re.compile(r"KUBE-(?:MARK-MASQ|MARK-DROP|POSTROUTING|LOAD-BALANCER|NODE-PORT)$"), "nat"),
    (
        re.compile(
            r"KUBE-(?:FORWARD|FIREWALL|EXTERNAL-SERVICES|PROXY-FIREWALL|IPVS-.*|SOURCE-RANGES-FIREWALL)$"
        ),
        "filter",
    ),
    (re.compile(r"KUBE-(?:NWPLCY|POD-FW|ROUTER)-"), "filter"),
    (re.compile(r"KUBE-IPTABLES-HINT$"), "mangle"),
    (re.compile(r"CNI-(?:HOSTPORT|DN|SN|[0-9a-f]{20,})"), "nat"),
    (
        re.compile(r"(?:FLANNEL-POSTRTG|IP-MASQ(?:-AGENT)?|WEAVE|OVN-KUBE-(?:NODEPORT|ETP|ITP|EXTERNALIP))$"),
        "nat",
    ),
    (re.compile(r"(?:FLANNEL-FWD|CNI-FORWARD|CNI-ADMIN|WEAVE-NPC.*|cali-(?:fw|tw|pi|po)-.*)$"), "filter"),
    (re.compile(r"DOCKER-(?:USER|ISOLATION.*|FORWARD|CT|BRIDGE)$"), "filter"),
)
_SHARED = ("KUBE-SERVICES", "KUBE-NODEPORTS")  # in nat and in filter alike


def _named_table(name: str) -> str | None:
    return next((table for pattern, table in _PREFIX_TABLES if pattern.match(name)), None)


def _table_of(chain: str, text: str) -> str | None:
    """The table that a rule must be in, by its chain and target; None where it may be in several."""
    if (table := _named_table(chain)) is not None:
        return table
    rule = parse_rule("", chain, text)
    target = rule.target.name if rule.target is not None else ""
    if chain in _SHARED and target in ("ACCEPT", "RETURN"):
        return "filter"
    if target in _TARGET_TABLES:
        return _TARGET_TABLES[target]
    if (table := _named_table(target)) is not None:
        return table
    if target in _SHARED:
        if chain in ("INPUT", "FORWARD") or any(m.name in ("conntrack", "state") for m in rule.matches):
            return "filter"
        return "nat" if chain in ("PREROUTING", "OUTPUT", "KUBE-SERVICES") else None
    return "filter" if chain == "FORWARD" and target == "ACCEPT" else None


def _settle(block: _Block) -> list[_Block]:
    """The block with its table; or several, where its lines are of several tables."""
    if block.table is not None:
        return [block]
    hooks = {name for name in block.declared if name in BUILT_IN_CHAINS}
    alike = [t for t in ("filter", "nat", "mangle", "raw") if hooks == set(BASE_CHAINS[t])]
    votes = [_table_of(chain, text) for _, chain, text in block.rules]
    told = Counter(v for v in votes if v is not None)
    if alike:
        block.table = alike[0]
        return [block]
    if len(told) == 1 or (block.form is not Form.LINES and told):
        block.table = told.most_common(1)[0][0]
        return [block]
    if block.form is not Form.LINES and hooks and hooks <= set(BASE_CHAINS["filter"]):
        block.table = "filter"  # what iptables(8) lists where no table is named
        return [block]
    if not block.rules:
        tables = {t for name in block.declared if (t := _named_table(name)) is not None}
        block.table = tables.pop() if len(tables) == 1 else None
        return [block] if block.table is not None else []
    return _split(block, votes)


def _split(block: _Block, votes: Sequence[str | None]) -> list[_Block]:
    """A block of each table, by each rule's own vote, or its chain's others', or its callers'."""
    of_chain: dict[str, str] = {}
    for (_, chain, _), vote in zip(block.rules, votes, strict=True):
        if vote is not None and chain not in _SHARED and chain not in BUILT_IN_CHAINS:
            of_chain.setdefault(chain, vote)
    for (_, _, text), vote in zip(block.rules, votes, strict=True):
        m = re.search(r"-[jg] (\S+)", text)
        if vote is not None and m is not None and m.group(1) not in _SHARED:
            of_chain.setdefault(m.group(1), vote)
    out: dict[str, _Block] = {}
    before: str | None = None
    for (number, chain, text), vote in zip(block.rules, votes, strict=True):
        table = vote or of_chain.get(chain) or (before if chain in _SHARED else None)
        before = vote or before
        key = table or ""
        if key not in out:
            out[key] = _Block(
                block.form, number, table, block.family, block.backend, ended=block.ended, elided=block.elided
            )
        out[key].rules.append((number, chain, text))
        out[key].last = number
    for name, what in block.declared.items():
        table = _named_table(name) or of_chain.get(name)
        if table is not None and table in out:
            out[table].declared[name] = what
    return list(out.values())


# ------------------------------------------------------------------------------------------------------- rulesets


@dataclass(slots=True)
class _Dump:
    """The tables of one family and back end on one node."""

    family: str
    backend: Backend
    tables: dict[str, list[_Block]] = field(default_factory=dict)

    def takes(self, block: _Block) -> bool:
        """Whether the block may be of the same dump: its table is not there, or neither is a whole one."""
        same = self.tables.get(block.table or "")
        if same is not None and block.form is Form.LINES and all(other.form is Form.LINES for other in same):
            # Several greps of one node, unless a hook's rules come again.
            return not any(other.hooks() & block.hooks() for other in same)
        return same is None or (
            block.form is not Form.SAVE
            and all(
                other.form is not Form.SAVE and not set(other.declared) & set(block.declared)
                for other in same
            )
        )


def read_posted(data: bytes, source: str) -> Posted:
    """The rulesets of a text, whatever its dress; no host where it has no rules."""
    text = decode_text(data, source)
    lines, dress = _undressed(text)
    lines, joined = _unfolded(lines)
    reader = _Reader()
    reader.read(lines)
    blocks = [
        b for block in reader.blocks for b in _settle(block) if b.rules or b.declared or b.form is Form.SAVE
    ]
    unparsed = list(reader.unparsed)
    unparsed += [number for b in blocks if b.table is None for number, _, _ in b.rules]
    blocks = [b for b in blocks if b.table is not None]
    breaks_off = bool(reader.blocks) and reader.blocks[-1].form is Form.SAVE and not reader.blocks[-1].ended
    remarks = "\n".join(line.text for line in lines if line.text.startswith("#"))
    warned = other_backend(remarks.encode("utf-8", "replace"))
    hosts = []
    for dumps in _hosts(blocks):
        every = [b for dump in dumps for bs in dump.tables.values() for b in bs]
        rulesets = [
            _ruleset(dump, source, remarks, last=blocks[-1] if breaks_off else None) for dump in dumps
        ]
        if warned is not None and not any(r.backend is warned for r in rulesets):
            rulesets.append(unread_ruleset(rulesets[0].family, warned, source, BASE_CHAINS))
        hosts.append(
            PostedHost(
                rulesets=tuple(rulesets),
                first_line=min(b.first for b in every),
                last_line=max(b.last or b.first for b in every),
            )
        )
    return Posted(
        hosts=tuple(hosts),
        forms=tuple(dict.fromkeys(b.form for b in blocks)),
        dress=tuple(dress),
        joined=joined,
        unparsed=tuple(sorted(set(unparsed))),
    )


def _hosts(blocks: Iterable[_Block]) -> list[list[_Dump]]:
    """Blocks by node: a table that comes again, of the same family and back end, is another node's."""
    hosts: list[list[_Dump]] = []
    for block in blocks:
        family = block.family or _family(block)
        host = hosts[-1] if hosts else None
        dump = None
        if host is not None:
            dump = next((d for d in host if (d.family, d.backend) == (family, block.backend)), None)
            if dump is None and block.backend is Backend.UNKNOWN:
                dump = next((d for d in host if d.family == family), None)
            if dump is not None and not dump.takes(block):
                host = None
        if host is None:
            host = []
            hosts.append(host)
            dump = None
        if dump is None:
            dump = _Dump(family, block.backend)
            host.append(dump)
        dump.tables.setdefault(block.table or "", []).append(block)
    return hosts


_IPV6 = re.compile(r" (?:-[sd]|--to-destination|--to-source) \[?[0-9a-f]*:[0-9a-f:]*:")


def _family(block: _Block) -> str:
    return "ip6" if any(_IPV6.search(text) for _, _, text in block.rules) else "ip"


def _ruleset(dump: _Dump, source: str, remarks: str, *, last: _Block | None) -> Ruleset:
    tables: dict[str, dict[str, Chain]] = {}
    readings: dict[str, TableReading] = {}
    one_table = False
    greped = _is_grep_of_kube([b for bs in dump.tables.values() for b in bs])
    for table, blocks in dump.tables.items():
        tables[table] = _chains(table, blocks)
        reading = _reading(blocks, last, greped=greped)
        if reading is not None:
            readings[table] = reading
        one_table = one_table or any(b.form in (Form.RULES, Form.LISTING) for b in blocks)
    base = DictRuleset(dump.family, dump.backend, source, tables)
    if one_table or Lack.CUT_OFF in {r.lack for r in readings.values()}:
        # `iptables -S` and -L print one table at a time; what comes after the end of a text is not known either.
        for table in BASE_CHAINS:
            if table not in tables:
                lack = Lack.OTHER_TABLES if one_table else Lack.CUT_OFF
                readings[table] = TableReading(
                    reading=Reading.NOT_READ, lack=lack, assumed=table not in ("nat", "filter")
                )
        return PartialRuleset(base, readings)
    return with_unread_tables(base, remarks, readings)


def _chains(table: str, blocks: Sequence[_Block]) -> dict[str, Chain]:
    rules: dict[str, list[str]] = {}
    numbers: dict[str, list[int]] = {}
    declared: dict[str, tuple[str | None, Counters | None]] = {}
    for block in blocks:
        declared.update(block.declared)
        for name in block.declared:
            rules.setdefault(name, [])
            numbers.setdefault(name, [])
        for number, chain, text in block.rules:
            rules.setdefault(chain, []).append(text)
            numbers.setdefault(chain, []).append(number)
    return chains_of(table, rules, numbers, declared)


def _reading(blocks: Sequence[_Block], last: _Block | None, *, greped: bool) -> TableReading | None:
    """How far a table was read; None where it is whole."""
    block = blocks[0]
    if len(blocks) > 1 or not block.is_table or block.form is Form.LINES or block.elided:
        listed = [b for b in blocks if b.form in (Form.RULES, Form.LISTING) and not b.elided]
        return TableReading(
            reading=Reading.PART,
            lack=Lack.FRAGMENT,
            whole=frozenset(name for b in listed for name in b.declared),
            prefix="KUBE-" if greped else "",
        )
    if block is not last:
        return None
    with_rules = {chain for _, chain, _ in block.rules}
    cut = block.rules[-1][1] if block.rules else None
    names = list(block.declared)
    behind = names[names.index(cut) + 1 :] if cut is not None else names
    return TableReading(
        reading=Reading.PART,
        lack=Lack.CUT_OFF,
        cut=cut or "",
        unread=frozenset(n for n in behind if n not in with_rules),
        names_known=cut is not None,
    )


def _is_grep_of_kube(blocks: Sequence[_Block]) -> bool:
    """Whether all lines that name kube-proxy's chains are here: `grep KUBE` finds the jumps to them, too."""
    lines = [text for block in blocks for _, _, text in block.rules]
    return (
        bool(lines)
        and all("KUBE" in text for text in lines)
        and any(
            chain in ("PREROUTING", "OUTPUT", "FORWARD", "INPUT")
            for block in blocks
            for _, chain, _ in block.rules
        )
    )


def taken_for(posted: Posted) -> str:
    """In a line: what the text was taken for, and what was not understood; "" for plain iptables-save."""
    words = " and ".join(form.value for form in posted.forms)
    if posted.dress:
        words += f" ({', '.join(d.value for d in posted.dress)})"
    parts = [f"taken for {words}"]
    if posted.joined:
        parts.append(f"{posted.joined} folded line{'s' * (posted.joined > 1)} joined")
    if posted.unparsed:
        count = len(posted.unparsed)
        some = ", ".join(map(str, posted.unparsed[:5])) + (", …" if count > 5 else "")
        parts.append(f"{count} line{'s' * (count > 1)} not understood ({some})")
    plain = posted.forms == (Form.SAVE,) and not posted.dress and len(parts) == 1
    return "" if plain else "; ".join(parts)


# The EKS log collector ends each listing by a count.
_TRAILER = re.compile(rb"^=======\nTotal Number of Rules: \d+\s*$", re.MULTILINE)


def dump_of_listing(data: bytes, table: str, source: str) -> str | None:
    """What `iptables -t TABLE -nvL` printed, as iptables-save prints that table; None where a row is not understood."""
    command = f"# iptables -t {table} -nvL\n".encode()
    posted = read_posted(command + _TRAILER.sub(b"", data), source)
    if posted.unparsed or len(posted.hosts) != 1 or len(posted.hosts[0].rulesets) != 1:
        return None
    (ruleset,) = posted.hosts[0].rulesets
    chains = [
        chain for name in ruleset.chain_names(table) if (chain := ruleset.chain(table, name)) is not None
    ]
    rules = [rule for chain in chains for rule in chain]
    if not chains or any(rule.error is not None or rule.lost is not None for rule in rules):
        return None
    lines = [f"*{table}"]
    for chain in chains:
        packets, size = (
            (chain.counters.packets, chain.counters.bytes) if chain.counters is not None else (0, 0)
        )
        lines.append(f":{chain.name} {chain.policy or '-'} [{packets}:{size}]")
    for chain in chains:
        lines += [_with_counters(rule) for rule in chain]
    return "\n".join([*lines, "COMMIT", ""])


def _with_counters(rule: Rule) -> str:
    counted = rule.counters
    return rule.text if counted is None else f"[{counted.packets}:{counted.bytes}] {rule.text}"
