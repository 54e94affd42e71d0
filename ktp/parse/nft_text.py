"""The text of `nft list ruleset` → model: a tokenizer and a recursive descent parser.

Of a rule, what is not understood becomes an `UnsupportedStatement`, up to the next word that certainly begins
another statement. Of a set, an object or a table, a line that is not understood is an error of the whole listing:
a set read in part would answer wrongly. The grammar is nft(8)'s; only what `nft list` prints is read, in the
spellings of 0.9.3 and later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Final, NamedTuple, NoReturn

from ktp.errors import EvidenceError
from ktp.model.nftables import (
    BITMASK_TYPES,
    AnonymousSet,
    Binary,
    Concat,
    Counter,
    Ct,
    CtCount,
    CtObject,
    Dup,
    Expression,
    ExtensionHeader,
    Fib,
    Flags,
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
    UnsupportedStatement,
    Verdict,
    Vmap,
    Wildcard,
    Xt,
    datatype_of,
    datatypes_of,
    priority_names,
)

FAMILIES: Final = frozenset({"ip", "ip6", "inet", "arp", "bridge", "netdev"})
VERDICTS: Final = frozenset({"accept", "drop", "continue", "return", "jump", "goto"})
NAT_FLAGS: Final = frozenset({"random", "fully-random", "persistent"})

_TOKEN = re.compile(
    r"""[ \t\r\f\v]+
      | (?P<newline>\n)
      | "(?P<string>[^"\n]*)"
      | (?P<comment>\#[^\n]*)
      | (?P<operator>==|!=|<=|>=|<<|>>|[{}(),;=<>&|^!])
      | (?P<word>[^\s{}(),;=<>&|^!"\#]+)""",
    re.VERBOSE,
)
_HANDLE = re.compile(r"#\s*handle (\d+)")
_XT_COMMENT = re.compile(r"#\s*xt_(\S+)\s*$")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_DURATION = re.compile(r"(?:\d+(?:ms|[wdhms]))+")
_DURATION_PART = re.compile(r"(\d+)(ms|[wdhms])")
_PREFIX = re.compile(r"([0-9a-fA-F.:]+)/(\d+)")
_POINT = (
    r"(?:0x[0-9a-fA-F]+|\d+(?:\.\d+){0,3}|[0-9a-fA-F:]*:[0-9a-fA-F:.]*|(?:\d+(?:ms|[wdhms]))+|cs\d|af\d\d)"
)
_RANGE = re.compile(f"({_POINT})-({_POINT})")
_BRACKETED = re.compile(r"\[([^\]]+)\](?:-\[([^\]]+)\])?(?::(.+))?")
_SECONDS = {"ms": 0, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"bytes": 1, "kbytes": 1024, "mbytes": 1024**2}


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of packet headers (nft(8), PAYLOAD EXPRESSIONS).
_FIELDS: Final = {
    name: _word_set(fields)
    for name, fields in {
        "ether": "saddr daddr type",
        "vlan": "id dei cfi pcp type",
        "arp": "htype ptype hlen plen operation",
        "ip": "version hdrlength dscp ecn length id frag-off ttl protocol checksum saddr daddr",
        "icmp": "type code checksum id sequence gateway mtu",
        "igmp": "type checksum group mrt",
        "ip6": "version dscp ecn flowlabel length nexthdr hoplimit saddr daddr",
        "icmpv6": "type code checksum parameter-problem packet-too-big id sequence max-delay taddr daddr mtu",
        "tcp": "sport dport sequence ackseq doff reserved flags window checksum urgptr",
        "udp": "sport dport length checksum",
        "udplite": "sport dport checksum csumcov",
        "sctp": "sport dport vtag checksum",
        "dccp": "sport dport type",
        "th": "sport dport",
        "ah": "nexthdr hdrlength reserved spi sequence",
        "esp": "spi sequence",
        "comp": "nexthdr flags cpi",
        "gre": "version flags protocol",
    }.items()
}
# Fields of IPv6 extension headers (nft(8), EXTENSION HEADER EXPRESSIONS).
_EXTENSIONS: Final = {
    name: _word_set(fields)
    for name, fields in {
        "hbh": "nexthdr hdrlength",
        "frag": "nexthdr frag-off more-fragments id reserved reserved2",
        "rt": "nexthdr hdrlength type seg-left",
        "rt0": "addr",
        "rt2": "addr",
        "srh": "flags tag sid seg-left last-entry",
        "dst": "nexthdr hdrlength",
        "mh": "nexthdr hdrlength checksum type",
    }.items()
}
_OPTION_FIELDS: Final = _word_set(
    "kind length size left right count tsval tsecr type value ptr offset type flags sid tsn stream ssn ppid"
    " init-tag a-rwnd num-outbound-streams num-inbound-streams initial-tsn cum-tsn-ack num-gap-ack-blocks"
    " num-dup-tsns lowest-tsn seqno new-cum-tsn addr"
)
_META_KEYS: Final = _word_set(
    "length protocol priority random mark iif iifname iiftype iifkind iifgroup oif oifname oiftype oifkind oifgroup"
    " skuid skgid nftrace rtclassid ibrname obrname ibriport obriport ibridgename obridgename ibrpvid ibrvproto"
    " pkttype cpu cgroup nfproto l4proto secpath ipsec secmark time day hour sdif sdifname broute"
)
# Keys that may stand without the word `meta`.
_BARE_META: Final = _word_set(
    "mark iif iifname iiftype iifgroup oif oifname oiftype oifgroup skuid skgid nftrace rtclassid ibriport obriport"
    " ibrname obrname ibridgename obridgename pkttype cpu cgroup ipsec time day hour"
)
_CT_KEYS: Final = _word_set(
    "state direction status mark expiration helper label l3proto protocol bytes packets avgpkt zone id saddr daddr"
    " proto-src proto-dst event secmark"
)
# Words that begin a statement and nothing else: where reading goes on after what is not understood.
_SURE_STATEMENTS: Final = VERDICTS | _word_set(
    "counter log limit quota reject dnat snat masquerade redirect notrack queue comment"
)
_WORD_OPERATORS: Final = {"and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>"}
_RELATIONS: Final = frozenset({"==", "!=", "<", ">", "<=", ">=", "!"})
_WORD_RELATIONS: Final = {"eq": "==", "ne": "!=", "lt": "<", "gt": ">", "le": "<=", "ge": ">="}
_BINARY: Final = {"|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4}
_REJECT_DEFAULT: Final = {"ip": "icmp", "ip6": "icmpv6"}


def parse_duration(text: str) -> int:
    """`1d2h3m4s`, `90`, `4m58s996ms` → whole seconds; ValueError for anything else."""
    if text.isdigit():
        return int(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(int(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def constant(word: str) -> Expression:
    """A constant as nft prints it: number, prefix, range, `exists`, `*`, a set reference, or a word."""
    if _NUMBER.fullmatch(word):
        return Immediate(int(word, 0) if word.startswith("0x") else int(word))
    if word[0] == "@" and len(word) > 1:
        return SetReference(word[1:])
    if word == "*":
        return Wildcard()
    if word == "exists":
        return Immediate(True)
    if word == "missing":
        return Immediate(False)
    if found := _PREFIX.fullmatch(word):
        return Prefix(Immediate(found[1]), int(found[2]))
    if found := _RANGE.fullmatch(word):
        return Range(constant(found[1]), constant(found[2]))
    return Immediate(word)


def flags_of(parts: Sequence[Expression]) -> Expression:
    """Constants that were listed or or-ed: one stays itself, several become `Flags`."""
    flat: list[Expression] = []
    for part in parts:
        flat += part.parts if isinstance(part, Flags) else (part,)
    return flat[0] if len(flat) == 1 else Flags(tuple(flat))


def binary(operator: str, left: Expression, right: Expression) -> Expression:
    """`left operator right`; constants or-ed together are `Flags`, whichever way they were written."""
    if operator == "|" and isinstance(left, Immediate | Flags) and isinstance(right, Immediate | Flags):
        return flags_of((left, right))
    return Binary(operator, left, right)


def make_match(operator: str | None, left: Expression, right: Expression) -> Match:
    """The condition; `operator` None where none was written, which asks for any bit of a bitmask (nft(8))."""
    datatype = datatype_of(left)
    if operator is None:
        is_set = isinstance(right, AnonymousSet | SetReference)
        any_bit = datatype in BITMASK_TYPES and not isinstance(left, Binary) and not is_set
        operator = "in" if any_bit else "=="
    return Match(operator, left, typed(right, datatype))


def typed(expression: Expression, datatype: str | None) -> Expression:
    """The same constants for types whose text and JSON differ: times, realms, interfaces by number."""
    if datatype == "interval_time":
        match expression:
            case Immediate(str(text)) if _DURATION.fullmatch(text):
                return Immediate(parse_duration(text))
            case Range(low, high):
                return Range(typed(low, datatype), typed(high, datatype))
            case AnonymousSet(elements):
                return AnonymousSet(tuple(replace(e, key=typed(e.key, datatype)) for e in elements))
    if datatype == "realm" and isinstance(expression, Immediate):
        return Immediate(str(expression.value))
    if datatype == "iface_index" and isinstance(expression, Immediate) and str(expression.value).isdigit():
        return Immediate(int(expression.value))
    return expression


def make_reject(family: str, type_: str | None, code: Expression | None) -> Reject:
    """The statement with the defaults of the table's family filled in (nft(8), REJECT STATEMENT)."""
    default = _REJECT_DEFAULT.get(family, "icmpx")
    type_ = type_ or default
    if type_ == "tcp reset":
        return Reject(type_)
    code = code or Immediate("port-unreachable")
    return Reject(type_, code, bare=type_ == default and code == Immediate("port-unreachable"))


class _Token(NamedTuple):
    kind: str  # newline, string, comment, operator, word, end
    text: str
    start: int
    end: int
    line: int


class _SyntaxError(Exception):
    """The text is not what was expected at `token`."""

    def __init__(self, message: str, token: _Token) -> None:
        super().__init__(message)
        self.token = token


def _as_map(found: NftSet, value_types: tuple[str, ...]) -> NftMap:
    common = {part.name: getattr(found, part.name) for part in fields(NftSet)}
    return NftMap(**common, value_types=value_types)


def _begins_statement(token: _Token) -> bool:
    return token.kind == "word" and token.text in _SURE_STATEMENTS


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    line, position = 1, 0
    for found in _TOKEN.finditer(text):
        if found.start() != position:
            break
        position = found.end()
        kind = found.lastgroup
        if kind is None:
            continue
        tokens.append(_Token(kind, found[kind], found.start(), position, line))
        if kind == "newline":
            line += 1
    if position != len(text):
        raise _SyntaxError(
            "unexpected characters", _Token("end", text[position : position + 20], position, position, line)
        )
    tokens.append(_Token("newline", "\n", position, position, line))
    tokens.append(_Token("end", "the end", position, position, line))
    return tokens


class _Parser:
    """Reads tokens from left to right; `family` is that of the table being read."""

    def __init__(self, text: str, family: str = "ip") -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.position = 0
        self.family = family

    # ------------------------------------------------------------------------------------------------- tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def fail(self, expected: str) -> NoReturn:
        raise _SyntaxError(f"expected {expected}", self.token)

    def peek(self, ahead: int = 1) -> _Token:
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def is_operator(self, text: str) -> bool:
        token = self.tokens[self.position]
        return token.kind == "operator" and token.text == text

    def is_word(self, text: str) -> bool:
        token = self.tokens[self.position]
        return token.kind == "word" and token.text == text

    def take_operator(self, text: str) -> bool:
        if self.is_operator(text):
            self.position += 1
            return True
        return False

    def take_word(self, text: str) -> bool:
        if self.is_word(text):
            self.position += 1
            return True
        return False

    def expect_operator(self, text: str) -> None:
        if not self.take_operator(text):
            self.fail(repr(text))

    def expect_word(self, text: str | None = None) -> str:
        token = self.token
        if token.kind != "word" or (text is not None and token.text != text):
            self.fail(repr(text) if text else "a word")
        self.position += 1
        return token.text

    def expect_name(self) -> str:
        token = self.token
        if token.kind not in ("word", "string"):
            self.fail("a name")
        self.position += 1
        return token.text

    def expect_string(self) -> str:
        return self.expect_name()

    def expect_number(self) -> int:
        word = self.expect_word()
        if not _NUMBER.fullmatch(word):
            self.position -= 1
            self.fail("a number")
        return int(word, 0) if word.startswith("0x") else int(word)

    def expect_duration(self) -> int:
        try:
            return parse_duration(self.expect_word())
        except ValueError:
            self.position -= 1
            self.fail("a time")

    def names(self) -> tuple[str, ...]:
        """`a,b,c`."""
        found = [self.expect_name()]
        while self.take_operator(","):
            found.append(self.expect_name())
        return tuple(found)

    def skip_newlines(self) -> None:
        while self.token.kind == "newline":
            self.position += 1

    def skip_separators(self) -> int:
        """Newlines, semicolons and comments; the handle that a comment told, or 0."""
        handle = 0
        while True:
            token = self.token
            if token.kind == "comment":
                found = _HANDLE.match(token.text)
                handle = int(found[1]) if found else handle
            elif token.kind != "newline" and not (token.kind == "operator" and token.text == ";"):
                return handle
            self.position += 1

    def at_end_of_line(self) -> bool:
        token = self.token
        return token.kind in ("newline", "comment", "end") or (
            token.kind == "operator" and token.text in ";}"
        )

    # ------------------------------------------------------------------------------------------------ ruleset

    def ruleset(self) -> tuple[NftTable, ...]:
        tables: dict[tuple[str, str], NftTable] = {}
        while True:
            self.skip_separators()
            if self.token.kind == "end":
                return tuple(tables.values())
            self.expect_word("table")
            family = self.expect_name()
            if family in FAMILIES and self.token.kind in ("word", "string"):
                name = self.expect_name()
            else:
                family, name = "ip", family
            table = self.table(family, name)
            tables[family, name] = table

    def table(self, family: str, name: str) -> NftTable:
        self.family = family
        chains: dict[str, NftChain] = {}
        sets: dict[str, NftSet] = {}
        maps: dict[str, NftMap] = {}
        objects: list[NftObject] = []
        flowtables: list[NftFlowtable] = []
        flags: tuple[str, ...] = ()
        comment: str | None = None
        self.expect_operator("{")
        handle = self.skip_separators()
        while not self.take_operator("}"):
            word = self.expect_word()
            if word == "chain":
                chain = self.chain()
                chains[chain.name] = chain
            elif word in ("set", "map", "meter"):
                found = self.named_set(is_map=word == "map")
                if isinstance(found, NftMap):
                    maps[found.name] = found
                else:
                    sets[found.name] = found
            elif word == "flowtable":
                flowtables.append(self.flowtable())
            elif word == "flags":
                flags = self.names()
            elif word == "comment":
                comment = self.expect_string()
            elif word in ("counter", "quota", "limit", "synproxy", "secmark", "ct", "tunnel"):
                objects.append(self.object(word))
            else:
                self.position -= 1
                self.fail("a chain, a set, a map or an object")
            self.skip_separators()
        return NftTable(
            family=family,
            name=name,
            chains=chains,
            sets=sets,
            maps=maps,
            objects=tuple(objects),
            flowtables=tuple(flowtables),
            flags=flags,
            comment=comment,
            handle=handle,
        )

    def chain(self) -> NftChain:
        name = self.expect_name()
        self.expect_operator("{")
        chain = NftChain(name=name, handle=self.skip_separators())
        rules: list[NftRule] = []
        while not self.take_operator("}"):
            if self.is_word("type") and not rules and self.peek(2).text == "hook":
                chain = self.base_chain(chain)
            elif self.is_word("comment") and not rules and self.peek().kind == "string":
                self.position += 1
                chain = replace(chain, comment=self.expect_string())
            elif self.is_word("policy") and not rules:
                self.position += 1
                chain = replace(chain, policy=self.expect_word())
            elif self.is_word("flags") and not rules:
                self.position += 1
                chain = replace(chain, flags=self.names())
            else:
                rules.append(self.rule(len(rules)))
            self.skip_separators()
        return replace(chain, rules=tuple(rules))

    def base_chain(self, chain: NftChain) -> NftChain:
        self.expect_word("type")
        type_ = self.expect_word()
        self.expect_word("hook")
        hook = self.expect_word()
        devices: tuple[str, ...] = ()
        priority = 0
        while not self.at_end_of_line():
            if self.take_word("device"):
                devices = (self.expect_name(),)
            elif self.take_word("devices"):
                devices = self.device_list()
            else:
                self.expect_word("priority")
                priority = self.priority()
        return replace(chain, type=type_, hook=hook, priority=priority, devices=devices, policy="accept")

    def device_list(self) -> tuple[str, ...]:
        self.expect_operator("=")
        self.expect_operator("{")
        self.skip_newlines()
        devices: list[str] = []
        while not self.take_operator("}"):
            devices.append(self.expect_name())
            self.take_operator(",")
            self.skip_newlines()
        return tuple(devices)

    def priority(self) -> int:
        word = self.expect_word()
        if word.lstrip("-").isdigit():
            return int(word)
        standard = priority_names(self.family).get(word)
        if standard is None:
            self.position -= 1
            self.fail("a priority")
        if self.token.kind == "word" and self.token.text in ("+", "-"):
            sign = 1 if self.expect_word() == "+" else -1
            return standard + sign * self.expect_number()
        return standard

    # --------------------------------------------------------------------------------------- sets and objects

    def named_set(self, *, is_map: bool) -> NftSet:
        name = self.expect_name()
        self.expect_operator("{")
        handle = self.skip_separators()
        key_types: tuple[str, ...] = ()
        value_types: tuple[str, ...] = ()
        typeof = policy = comment = None
        flags: tuple[str, ...] = ()
        timeout = gc_interval = size = None
        auto_merge = False
        statements: list[Statement] = []
        elements: tuple[SetElement, ...] = ()
        while not self.take_operator("}"):
            if self.take_word("type"):
                key_types = self.type_list()
                if self.take_word(":"):
                    value_types = self.type_list()
            elif self.take_word("typeof"):
                start = self.token.start
                key_types = self.typeof_list()
                if self.take_word(":"):
                    value_types = ("verdict",) if self.take_word("verdict") else self.typeof_list()
                typeof = self.text[start : self.tokens[self.position - 1].end]
            elif self.take_word("flags"):
                flags = self.names()
            elif self.take_word("timeout"):
                timeout = self.expect_duration()
            elif self.take_word("gc-interval"):
                gc_interval = self.expect_duration()
            elif self.take_word("size"):
                size = self.expect_number()
            elif self.take_word("policy"):
                policy = self.expect_word()
            elif self.take_word("auto-merge"):
                auto_merge = True
            elif self.take_word("comment"):
                comment = self.expect_string()
            elif self.take_word("elements"):
                self.expect_operator("=")
                elements = self.elements()
            else:
                statements.append(self.statement())
            handle = self.skip_separators() or handle
        found = NftSet(
            name=name,
            key_types=key_types,
            elements=elements,
            flags=flags,
            timeout=timeout,
            gc_interval=gc_interval,
            size=size,
            policy=policy,
            auto_merge=auto_merge,
            statements=tuple(statements),
            typeof=typeof,
            comment=comment,
            handle=handle,
        )
        return _as_map(found, value_types) if is_map else found

    def type_list(self) -> tuple[str, ...]:
        found = [self.expect_word()]
        while self.take_word("."):
            found.append(self.expect_word())
        return tuple(found)

    def typeof_list(self) -> tuple[str, ...]:
        start = self.position
        try:
            return tuple(datatype or "integer" for datatype in datatypes_of(self.concat()))
        except _SyntaxError:
            # A header that ktp does not know: the type of the key is unknown, and so is every lookup.
            self.position = start
            while not self.at_end_of_line() and not self.is_word(":"):
                self.position += 1
            return ("unknown",)

    def elements(self) -> tuple[SetElement, ...]:
        """`{ element, … }`."""
        self.expect_operator("{")
        found: list[SetElement] = []
        self.skip_newlines()
        while not self.take_operator("}"):
            found.append(self.element())
            self.skip_newlines()
            if not self.take_operator(",") and not self.is_operator("}"):
                self.fail("',' or '}'")
            self.skip_newlines()
        return tuple(found)

    def element(self) -> SetElement:
        self.split_colon()
        key = self.concat()
        timeout: int | None = None
        expires: int | None = None
        comment: str | None = None
        value: MapValue | None = None
        statements: list[Statement] = []
        while True:
            if self.take_word("timeout"):
                timeout = 0 if self.take_word("never") else self.expect_duration()
            elif self.take_word("expires"):
                expires = self.expect_duration()
            elif self.take_word("comment"):
                comment = self.expect_string()
            elif self.take_word(":"):
                value = self.map_value()
            elif self.token.kind == "word" and self.token.text in ("counter", "limit", "quota", "ct", "last"):
                statements.append(self.statement())
            else:
                return SetElement(key, value, timeout, expires, comment, tuple(statements))

    def split_colon(self) -> None:
        """Makes `80:` two tokens: people write so, nft does not."""
        token = self.token
        if (
            token.kind == "word"
            and len(token.text) > 1
            and token.text.endswith(":")
            and not token.text.endswith("::")
        ):
            middle = token.end - 1
            first = _Token("word", token.text[:-1], token.start, middle, token.line)
            self.tokens[self.position : self.position + 1] = [
                first,
                _Token("word", ":", middle, token.end, token.line),
            ]

    def map_value(self) -> MapValue:
        if self.token.kind == "word" and self.token.text in VERDICTS:
            return self.verdict()
        return self.concat()

    def object(self, kind: str) -> NftObject:
        if kind == "ct":
            kind = f"ct {self.expect_word()}"
        name = self.expect_name()
        self.expect_operator("{")
        handle = self.skip_separators()
        comment: str | None = None
        statement: Counter | Quota | Limit | Synproxy | None = None
        options: dict[str, str | int | dict[str, int]] = {}
        while not self.take_operator("}"):
            if self.take_word("comment"):
                comment = self.expect_string()
            elif kind == "counter":
                statement = self.counter_body()
            elif kind == "quota":
                statement = self.quota_body()
            elif kind == "limit":
                statement = self.limit_body()
            elif kind == "synproxy":
                more = self.synproxy_body()
                old = statement if isinstance(statement, Synproxy) else Synproxy()
                statement = Synproxy(more.mss or old.mss, more.wscale or old.wscale, more.flags or old.flags)
            elif kind == "secmark":
                options["context"] = self.expect_string()
            elif self.token.kind == "word" and self.token.text == "policy":
                self.position += 1
                self.expect_operator("=")
                options["policy"] = self.timeout_policy()
            else:
                key = self.expect_word()
                value = self.expect_name()
                if key == "timeout":
                    options[key] = parse_duration(value)
                else:
                    options[key] = int(value) if value.isdigit() else value
            handle = self.skip_separators() or handle
        return NftObject(
            kind=kind, name=name, statement=statement, options=options, comment=comment, handle=handle
        )

    def timeout_policy(self) -> dict[str, int]:
        self.expect_operator("{")
        policy: dict[str, int] = {}
        self.skip_newlines()
        while not self.take_operator("}"):
            self.split_colon()
            state = self.expect_word()
            self.expect_word(":")
            policy[state] = self.expect_duration()
            self.take_operator(",")
            self.skip_newlines()
        return policy

    def flowtable(self) -> NftFlowtable:
        name = self.expect_name()
        self.expect_operator("{")
        handle = self.skip_separators()
        hook = None
        priority = None
        devices: tuple[str, ...] = ()
        flags: tuple[str, ...] = ()
        counter = False
        while not self.take_operator("}"):
            if self.take_word("hook"):
                hook = self.expect_word()
                self.expect_word("priority")
                family, self.family = self.family, "netdev"
                priority = self.priority()
                self.family = family
            elif self.take_word("devices"):
                devices = self.device_list()
            elif self.take_word("flags"):
                flags = self.names()
            else:
                self.expect_word("counter")
                counter = True
            handle = self.skip_separators() or handle
        return NftFlowtable(
            name=name,
            hook=hook,
            priority=priority,
            devices=devices,
            flags=flags,
            counter=counter,
            handle=handle,
        )

    # -------------------------------------------------------------------------------------------------- rules

    def rule(self, index: int) -> NftRule:
        first = self.token
        if first.kind == "end":
            self.fail("'}'")  # the text breaks off inside a chain
        statements: list[Statement] = []
        comment: str | None = None
        handle = 0
        end = first.end
        while True:
            token = self.token
            if token.kind == "comment":
                if found := _HANDLE.match(token.text):
                    handle = int(found[1])
                elif found := _XT_COMMENT.match(token.text):
                    statements.append(Xt("", found[1]))
                    end = token.end
                else:
                    statements.append(UnsupportedStatement(token.text))
                    end = token.end
                self.position += 1
                continue
            if self.at_end_of_line():
                break
            if token.kind == "word" and token.text == "comment":
                self.position += 1
                comment = self.expect_string()
            else:
                statements.append(self.statement_or_unsupported())
            end = self.tokens[self.position - 1].end
        return NftRule(
            statements=tuple(statements),
            comment=comment,
            index=index,
            handle=handle,
            line=first.line,
            source=self.text[first.start : end],
        )

    def statement_or_unsupported(self) -> Statement:
        start = self.position
        try:
            return self.statement()
        except _SyntaxError:
            self.position = start
        depth = 0
        last = self.token
        while self.token.kind != "end":
            token = self.token
            if depth == 0 and self.position > start and (self.at_end_of_line() or _begins_statement(token)):
                break
            if token.kind == "operator" and token.text in "{}":
                depth += 1 if token.text == "{" else -1
            last = token
            self.position += 1
        return UnsupportedStatement(self.text[self.tokens[start].start : last.end])

    def statement(self) -> Statement:
        token = self.token
        if token.kind == "word":
            word = token.text
            if word in VERDICTS:
                return self.verdict()
            if parse := _STATEMENTS.get(word):
                if word not in ("add", "update", "delete") or self.peek().text.startswith("@"):
                    self.position += 1
                    return parse(self)
            if word == "ct" and self.peek().text == "count":
                self.position += 2
                over = self.take_word("over")
                return CtCount(self.expect_number(), over)
            if (
                word == "ct"
                and self.peek().text in ("helper", "timeout", "expectation")
                and self.peek(2).text == "set"
            ):
                kind = self.peek().text
                self.position += 3
                return CtObject(kind, self.object_name())
        return self.expression_statement()

    def expression_statement(self) -> Statement:
        left = self.concat()
        if self.take_word("vmap"):
            return Vmap(left, self.map_data())
        if self.take_word("set"):
            value = self.concat()
            if self.is_operator(","):
                value = self.constants(value)
            return Mangle(left, typed(value, datatype_of(left)))
        if isinstance(left, Immediate | SetReference | Wildcard | Prefix | Range | Flags | AnonymousSet):
            self.fail("a statement")
        operator: str | None = None
        if self.token.kind == "operator" and self.token.text in _RELATIONS:
            operator = self.token.text
            self.position += 1
        elif self.token.kind == "word" and self.token.text in _WORD_RELATIONS:
            operator = _WORD_RELATIONS[self.token.text]
            self.position += 1
        if self.at_end_of_line():
            self.fail("a value")
        right = self.constants(self.concat())
        if self.take_word("/"):
            mask = self.constants(self.concat())
            return make_match(operator or "==", Binary("&", left, mask), right)
        return make_match(operator, left, right)

    def constants(self, first: Expression) -> Expression:
        """The rest of `a,b,c`."""
        parts = [first]
        while self.take_operator(","):
            parts.append(self.concat())
        return flags_of(parts) if len(parts) > 1 else first

    def verdict(self) -> Verdict:
        kind = self.expect_word()
        return Verdict(kind, self.expect_name()) if kind in ("jump", "goto") else Verdict(kind)

    def map_data(self) -> SetReference | AnonymousSet:
        if self.is_operator("{"):
            return AnonymousSet(self.elements())
        word = self.expect_word()
        if not word.startswith("@"):
            self.position -= 1
            self.fail("a map")
        return SetReference(word[1:])

    def object_name(self) -> Expression:
        """The name of a stateful object, or a map of names."""
        if self.token.kind == "string":
            return Immediate(self.expect_string())
        if self.token.kind == "word" and self.peek().kind != "word":
            return Immediate(self.expect_word())
        return self.concat()

    def parse_counter(self) -> Counter:
        if self.take_word("name"):
            return Counter(name=self.object_name())
        return self.counter_body()

    def counter_body(self) -> Counter:
        if not self.take_word("packets"):
            return Counter()
        packets = self.expect_number()
        self.expect_word("bytes")
        return Counter(packets, self.expect_number())

    def parse_limit(self) -> Limit:
        if self.take_word("name"):
            return Limit(name=self.object_name())
        return self.limit_body()

    def limit_body(self) -> Limit:
        self.expect_word("rate")
        over = self.take_word("over")
        number, slash, per = self.expect_word().partition("/")
        unit = "packets"
        if not slash:
            unit, slash, per = self.expect_word().partition("/")
        if not number.isdigit() or not slash:
            self.position -= 1
            self.fail("a rate")
        burst, burst_unit = (5, "packets") if unit == "packets" else (0, "bytes")
        if self.take_word("burst"):
            burst = self.expect_number()
            burst_unit = self.expect_word()
        return Limit(int(number), per, burst, unit, burst_unit, over)

    def parse_quota(self) -> Quota:
        if self.take_word("name"):
            return Quota(name=self.object_name())
        return self.quota_body()

    def quota_body(self) -> Quota:
        over = self.take_word("over")
        if not over:
            self.take_word("until")
        value = self.number_of_bytes()
        used = self.number_of_bytes() if self.take_word("used") else 0
        return Quota(value, used, over)

    def number_of_bytes(self) -> int:
        number = self.expect_number()
        return number * _BYTES.get(self.expect_word(), 1)

    def parse_log(self) -> Log:
        prefix = level = None
        numbers: dict[str, int] = {}
        flags: list[str] = []
        while self.token.kind == "word":
            if self.take_word("prefix"):
                prefix = self.expect_string()
            elif self.take_word("level"):
                level = self.expect_word()
            elif self.token.text in ("group", "snaplen", "queue-threshold"):
                word = self.expect_word()
                numbers[word] = self.expect_number()
            elif self.take_word("flags"):
                kind = self.expect_word()
                if kind in ("tcp", "ip"):
                    flags += [f"{kind} {name}" for name in self.names()]
                else:
                    flags.append(kind)
            else:
                break
        return Log(
            prefix,
            level,
            numbers.get("group"),
            numbers.get("snaplen"),
            numbers.get("queue-threshold"),
            tuple(flags),
        )

    def parse_reject(self) -> Reject:
        if not self.take_word("with"):
            return make_reject(self.family, None, None)
        type_ = self.expect_word()
        if type_ == "tcp":
            self.expect_word("reset")
            return Reject("tcp reset")
        self.take_word("type")
        return make_reject(self.family, type_, constant(self.expect_word()))

    def parse_dnat(self) -> Nat:
        return self.nat("dnat")

    def parse_snat(self) -> Nat:
        return self.nat("snat")

    def parse_masquerade(self) -> Nat:
        return self.nat("masquerade")

    def parse_redirect(self) -> Nat:
        return self.nat("redirect")

    def nat(self, kind: str) -> Nat:
        family: str | None = None
        types: list[str] = []
        address: Expression | None = None
        port: Expression | None = None
        while self.token.kind == "word" and self.token.text in ("ip", "ip6", "addr", "prefix", "interval"):
            word = self.expect_word()
            if word in ("ip", "ip6"):
                if self.token.kind == "word" and self.token.text in _FIELDS[word]:
                    self.position -= 1
                    break
                family = word
            elif word == "addr":
                self.expect_word(".")
                self.expect_word("port")
                types.append("concat")
            else:
                types.append(word)
        if self.take_word("to"):
            address, port = self.nat_target()
        elif kind in ("dnat", "snat"):
            self.fail("'to'")
        flags: tuple[str, ...] = ()
        if self.token.kind == "word" and self.token.text in NAT_FLAGS:
            flags = self.names()
        return Nat(kind, family, address, port, flags, tuple(types))

    def nat_target(self) -> tuple[Expression | None, Expression | None]:
        """`addr`, `addr:port`, `:port`, each with ranges; an IPv6 address with a port is in brackets."""
        token = self.token
        address: Expression | None = None
        if token.kind == "word":
            word = token.text
            if word.startswith(":") and not word.startswith("::"):
                return None, self.port_after_colon()
            if found := _BRACKETED.fullmatch(word):
                self.position += 1
                address = Range(Immediate(found[1]), Immediate(found[2])) if found[2] else Immediate(found[1])
                return address, constant(found[3]) if found[3] else None
            if word.count(":") == 1:
                self.position += 1
                left, _, right = word.partition(":")
                return constant(left), constant(right)
        address = self.concat()
        token = self.token
        if token.kind == "word" and token.text.startswith(":"):
            return address, self.port_after_colon()
        return address, None

    def port_after_colon(self) -> Expression:
        token = self.token
        if token.text == ":":
            self.position += 1
        else:
            self.tokens[self.position] = token._replace(text=token.text[1:], start=token.start + 1)
        return self.concat()

    def parse_tproxy(self) -> Tproxy:
        family = self.expect_word() if not self.is_word("to") else None
        self.expect_word("to")
        return Tproxy(family, *self.nat_target())

    def parse_dup(self) -> Dup:
        self.expect_word("to")
        address = self.concat()
        return Dup(address, self.concat() if self.take_word("device") else None)

    def parse_fwd(self) -> Fwd:
        family = self.expect_word() if not self.is_word("to") else None
        self.expect_word("to")
        target = self.concat()
        if self.take_word("device"):
            return Fwd(self.concat(), family, target)
        return Fwd(target)

    def parse_queue(self) -> Queue:
        flags: tuple[str, ...] = ()
        number: Expression | None = None
        if self.take_word("flags"):
            flags = self.names()
        if self.take_word("to") or self.take_word("num"):
            number = self.concat()
        if self.token.kind == "word" and self.token.text in ("bypass", "fanout"):
            flags = self.names()
        return Queue(number, flags)

    def parse_synproxy(self) -> Synproxy:
        if self.take_word("name"):
            return Synproxy(name=self.object_name())
        return self.synproxy_body()

    def synproxy_body(self) -> Synproxy:
        mss = wscale = None
        flags: list[str] = []
        while self.token.kind == "word":
            if self.take_word("mss"):
                mss = self.expect_number()
            elif self.take_word("wscale"):
                wscale = self.expect_number()
            elif self.token.text in ("timestamp", "sack-perm"):
                flags.append(self.expect_word())
            else:
                break
        return Synproxy(mss, wscale, tuple(flags))

    def parse_flow(self) -> FlowOffload:
        operation = self.expect_word()
        if operation == "offload":
            operation = "add"
        return FlowOffload(operation, self.expect_word().removeprefix("@"))

    def parse_meter(self) -> Meter:
        name = self.expect_name()
        size = self.expect_number() if self.take_word("size") else None
        self.expect_operator("{")
        key = self.concat()
        timeout = self.expect_duration() if self.take_word("timeout") else None
        statement = self.statement()
        self.expect_operator("}")
        return Meter(name, key, statement, size, timeout)

    def parse_last(self) -> Last:
        return Last(self.expect_word()) if self.take_word("used") else Last()

    def parse_notrack(self) -> Notrack:
        return Notrack()

    def parse_xt(self) -> Xt:
        return Xt(self.expect_word(), self.expect_name())

    def set_update(self, operation: str) -> SetUpdate:
        name = self.expect_word().removeprefix("@")
        elements = self.elements()
        if len(elements) != 1:
            self.fail("one element")
        return SetUpdate(operation, name, elements[0])

    def parse_add(self) -> SetUpdate:
        return self.set_update("add")

    def parse_update(self) -> SetUpdate:
        return self.set_update("update")

    def parse_delete(self) -> SetUpdate:
        return self.set_update("delete")

    # -------------------------------------------------------------------------------------------- expressions

    def concat(self) -> Expression:
        """`a . b . c`, with `map` behind it."""
        parts = [self.operation(0)]
        while self.take_word("."):
            parts.append(self.operation(0))
        found = parts[0] if len(parts) == 1 else Concat(tuple(parts))
        if self.take_word("map"):
            return MapLookup(found, self.map_data())
        return found

    def operation(self, minimum: int) -> Expression:
        left = self.primary()
        while True:
            token = self.token
            operator = token.text if token.kind == "operator" else ""
            if token.kind == "word":
                operator = _WORD_OPERATORS.get(token.text, "")
            precedence = _BINARY.get(operator, 0)
            if precedence <= minimum:
                return left
            self.position += 1
            left = binary(operator, left, self.operation(precedence))

    def primary(self) -> Expression:
        token = self.token
        if token.kind == "string":
            self.position += 1
            if self.is_word("-") and self.peek().kind == "string":
                self.position += 1
                return Range(Immediate(token.text), Immediate(self.expect_string()))
            return Immediate(token.text)
        if token.kind == "operator":
            if token.text == "{":
                return AnonymousSet(self.elements())
            if token.text == "(":
                self.position += 1
                inner = self.constants(self.concat())
                self.expect_operator(")")
                return inner
        if token.kind != "word":
            self.fail("an expression")
        following = self.peek()
        word = token.text
        if following.kind == "word" and (parse := _EXPRESSIONS.get(word)):
            start = self.position
            if (found := parse(self)) is not None:
                return found
            self.position = start
        if word in ("@ll", "@nh", "@th", "@ih") and following.text == ",":
            self.position += 2
            offset = self.expect_number()
            self.expect_operator(",")
            return RawPayload(word[1:], offset, self.expect_number())
        self.position += 1
        return Meta(word) if word in _BARE_META else constant(word)

    def parse_payload(self) -> Expression | None:
        protocol = self.expect_word()
        name = self.expect_word()
        if protocol == "arp" and name in ("saddr", "daddr"):
            return Payload(protocol, f"{name} {self.expect_word()}")
        if protocol == "ip" and name == "option":
            return self.option("ip option")
        if protocol == "tcp" and name == "option":
            return self.option("tcp option")
        if protocol == "dccp" and name == "option":
            return self.option("dccp option")
        if protocol == "sctp" and name == "chunk":
            return self.option("sctp chunk")
        return Payload(protocol, name) if name in _FIELDS[protocol] else None

    def option(self, kind: str) -> ExtensionHeader:
        name = self.expect_word()
        if name.startswith("@"):
            parts = [name]
            while self.take_operator(","):
                parts.append(self.expect_word())
            return ExtensionHeader(kind, ",".join(parts))
        if self.token.kind == "word" and self.token.text in _OPTION_FIELDS:
            return ExtensionHeader(kind, name, self.expect_word())
        return ExtensionHeader(kind, name)

    def parse_exthdr(self) -> Expression | None:
        self.expect_word()
        return ExtensionHeader("exthdr", self.expect_word())

    def parse_extension(self) -> Expression | None:
        name = self.expect_word()
        found = self.expect_word()
        if found.partition("[")[0] in _EXTENSIONS[name]:
            return ExtensionHeader("exthdr", name, found)
        return None

    def parse_rt(self) -> Expression | None:
        self.expect_word()
        key = self.expect_word()
        if key in ("ip", "ip6") and self.is_word("nexthop"):
            return Rt(self.expect_word(), key)
        if key in ("classid", "nexthop", "mtu", "ipsec"):
            return Rt(key)
        self.position -= 2
        return self.parse_extension()

    def parse_meta(self) -> Expression | None:
        self.expect_word()
        key = self.expect_word()
        if key == "secpath":
            key = "ipsec"
        return Meta(key) if key in _META_KEYS else None

    def parse_ct(self) -> Expression | None:
        self.expect_word()
        direction = self.expect_word() if self.token.text in ("original", "reply") else None
        key = self.expect_word()
        if key in ("ip", "ip6") and self.token.text in ("saddr", "daddr"):
            key = f"{key} {self.expect_word()}"
        elif key not in _CT_KEYS:
            return None
        return Ct(key, direction)

    def parse_fib(self) -> Expression | None:
        self.expect_word()
        flags = [self.expect_word()]
        while self.take_word("."):
            flags.append(self.expect_word())
        result = self.expect_word()
        return Fib(result, tuple(flags)) if result in ("oif", "oifname", "type") else None

    def parse_socket(self) -> Expression | None:
        self.expect_word()
        key = self.expect_word()
        if key == "cgroupv2":
            self.expect_word("level")
            return Socket(key, self.expect_number())
        return Socket(key) if key in ("transparent", "mark", "wildcard") else None

    def parse_osf(self) -> Expression | None:
        self.expect_word()
        ttl = self.expect_word() if self.take_word("ttl") else None
        key = self.expect_word()
        return Osf(key, ttl) if key in ("name", "version") else None

    def parse_ipsec(self) -> Expression | None:
        self.expect_word()
        direction = self.expect_word()
        if direction not in ("in", "out"):
            return None
        number = self.expect_number() if self.take_word("spnum") else 0
        family = self.expect_word() if self.token.text in ("ip", "ip6") else None
        return Ipsec(self.expect_word(), direction, number, family)

    def parse_numgen(self) -> Expression | None:
        self.expect_word()
        mode = self.expect_word()
        self.expect_word("mod")
        mod = self.expect_number()
        return Numgen(mode, mod, self.expect_number() if self.take_word("offset") else 0)

    def parse_jhash(self) -> Expression | None:
        self.expect_word()
        hashed = self.concat()
        self.expect_word("mod")
        mod = self.expect_number()
        seed = self.expect_number() if self.take_word("seed") else None
        return Jhash(hashed, mod, seed, self.expect_number() if self.take_word("offset") else 0)

    def parse_symhash(self) -> Expression | None:
        self.expect_word()
        self.expect_word("mod")
        mod = self.expect_number()
        return Symhash(mod, self.expect_number() if self.take_word("offset") else 0)


_STATEMENTS: Final[Mapping[str, Callable[[_Parser], Statement]]] = {
    "counter": _Parser.parse_counter,
    "limit": _Parser.parse_limit,
    "quota": _Parser.parse_quota,
    "log": _Parser.parse_log,
    "reject": _Parser.parse_reject,
    "dnat": _Parser.parse_dnat,
    "snat": _Parser.parse_snat,
    "masquerade": _Parser.parse_masquerade,
    "redirect": _Parser.parse_redirect,
    "tproxy": _Parser.parse_tproxy,
    "dup": _Parser.parse_dup,
    "fwd": _Parser.parse_fwd,
    "queue": _Parser.parse_queue,
    "synproxy": _Parser.parse_synproxy,
    "flow": _Parser.parse_flow,
    "meter": _Parser.parse_meter,
    "last": _Parser.parse_last,
    "notrack": _Parser.parse_notrack,
    "xt": _Parser.parse_xt,
    "add": _Parser.parse_add,
    "update": _Parser.parse_update,
    "delete": _Parser.parse_delete,
}
_EXPRESSIONS: Final[Mapping[str, Callable[[_Parser], Expression | None]]] = {
    **dict.fromkeys(_FIELDS, _Parser.parse_payload),
    **dict.fromkeys(_EXTENSIONS, _Parser.parse_extension),
    "exthdr": _Parser.parse_exthdr,
    "rt": _Parser.parse_rt,
    "meta": _Parser.parse_meta,
    "ct": _Parser.parse_ct,
    "fib": _Parser.parse_fib,
    "socket": _Parser.parse_socket,
    "osf": _Parser.parse_osf,
    "ipsec": _Parser.parse_ipsec,
    "numgen": _Parser.parse_numgen,
    "jhash": _Parser.parse_jhash,
    "symhash": _Parser.parse_symhash,
}


def parse_nft_text(text: str, source: str) -> NftRuleset:
    """The text of `nft list ruleset` as a ruleset; EvidenceError where it is something else, or breaks off."""
    if not text.strip():
        # `nft list ruleset` prints nothing where there are no tables.
        return NftRuleset(tables=(), source=source)
    try:
        tables = _Parser(text).ruleset()
    except _SyntaxError as error:
        token = error.token
        raise EvidenceError(
            f"{source} is not what `nft list ruleset` prints: line {token.line}, at {token.text.strip()!r}: {error}",
            hint="save it with `nft list ruleset > FILE`, or better as JSON with `nft -j list ruleset > FILE`",
        ) from None
    return NftRuleset(tables=tables, source=source)


def parse_nft_statements(text: str, family: str) -> tuple[Statement, ...]:
    """The statements of one rule."""
    try:
        return _Parser(text, family).rule(0).statements
    except _SyntaxError:
        return (UnsupportedStatement(text),)


def parse_nft_type(text: str) -> tuple[str, ...]:
    """`ipv4_addr . inet_service` → its parts."""
    return tuple(part.strip() for part in text.split(" . "))


def joined(words: Iterable[str]) -> str:
    """The parts of a type as one text."""
    return " . ".join(words)
