"""iptables and ip6tables rulesets as programs: chains walked as ipt_do_table walks them (net/ipv4/netfilter).

Every matching rule is recorded: the walk that decides is the trace that is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, NamedTuple

from ktp.dataplane import packet as pk
from ktp.dataplane.chain_index import INDEX_FROM, positions
from ktp.dataplane.host import Host
from ktp.dataplane.matches import CompiledMatches, Test, compile_matches, dscp_value
from ktp.dataplane.packet import RANDOM_PORTS, Packet, Port, to_int, to_text
from ktp.dataplane.state import (
    ACCEPT,
    ASKED,
    DROP,
    MOST_WAYS,
    RANDOM,
    REJECT,
    UNKNOWN,
    Decision,
    LimitExceededError,
    State,
    StepRecord,
    Verdict,
)
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.effect import (
    Accept,
    Change,
    Count,
    Drop,
    Effect,
    Endpoint,
    Goto,
    Jump,
    Keep,
    Mark,
    Nat,
    NoTrack,
    Refuse,
    Return,
    Steal,
    Translate,
    Unmodelled,
)
from ktp.model.reading import Lack, lost_words, unread_words
from ktp.model.ruleset import PORT_FLAGS, Chain, Match, Rule, Ruleset, Target, are_ports_lost
from ktp.model.trace import StepKind

# Actions of a compiled rule.
_CONTINUE, _ACCEPT, _DROP, _RETURN, _JUMP, _GOTO, _CHANGE, _END, _UNKNOWN = range(9)
_MOST_ADDRESSES = 64  # of a range that one is drawn from


class Compiled(NamedTuple):
    """A rule ready to be asked."""

    rule: Rule
    tests: tuple[Test, ...]
    assumptions: tuple[Assumption, ...]
    chance: float | None
    recent: tuple[tuple[str, str, bool], ...]
    unknown: str | None  # why a match cannot be answered, where one is not modelled
    action: int
    data: Any
    effect: Effect | None  # None: `data` makes it of the packet
    noted: dict[str, StepRecord]  # by hook, what is noted where `effect` is all that it does


class Program:
    """The chains of one table of one ruleset."""

    def __init__(self, ruleset: Ruleset, table: str, *, ports_lost: bool | None = None) -> None:
        """`ports_lost` is what `are_ports_lost` says of the ruleset, where that was asked already."""
        self.ruleset = ruleset
        self.table = table
        self.backend = ruleset.backend.value
        self.family = 4 if ruleset.family == "ip" else 6
        self._chains: dict[str, CompiledChain | None] = {}
        self.ports_lost = are_ports_lost(ruleset) if ports_lost is None else ports_lost

    def chain(self, name: str) -> CompiledChain | None:
        """The compiled chain; None where the ruleset has none of that name."""
        if name not in self._chains:
            found = self.ruleset.chain(self.table, name)
            self._chains[name] = CompiledChain(self, found) if found is not None else None
        return self._chains[name]

    def compile_matches(self, matches: tuple[Match, ...]) -> CompiledMatches:
        """The matches of a rule, as they are asked."""
        return compile_matches(matches)

    def is_idle(self, hook: str) -> bool:
        """Whether the base chain of `hook` is absent, or has no rules and accepts."""
        chain = self.chain(hook)
        return chain is None or (chain.size == 0 and chain.source.policy in (None, "ACCEPT"))

    def listed_as(self, family: str, hook: str) -> tuple[str, str, str]:
        """Family, table and name of the base chain of iptables-nft."""
        return (family, self.table, hook)

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Walk the base chain of `hook`: every way through it, as verdicts."""
        base = self.chain(hook)
        if base is None:
            return [Verdict(ACCEPT, state)]
        return _walk(self, base, state, host, hook)


class CompiledChain:
    """A chain whose rules are compiled when first met."""

    __slots__ = (
        "_candidates",
        "_compiled",
        "_every",
        "name",
        "program",
        "size",
        "source",
    )

    def __init__(self, program: Program, source: Chain) -> None:
        self.program = program
        self.source = source
        self.name = source.name
        self.size = len(source)
        self._compiled: dict[int, Compiled] = {}
        self._candidates: dict[tuple[int, int, Port], Sequence[Compiled]] = {}
        self._every: Sequence[Compiled] | None = None  # of a chain that is walked whole

    def candidates(self, p: Packet) -> Sequence[Compiled]:
        """The rules that may match a packet of this destination, protocol and port, in order."""
        if self._every is not None:
            return self._every
        if self.size < INDEX_FROM:
            self._every = [self._rule(i) for i in range(self.size)]
            return self._every
        key = (p.dst, p.proto, p.dport)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) > 20_000:
                self._candidates.clear()
            found = self._candidates[key] = [self._rule(i) for i in positions(self.source, p)]
        return found

    def _rule(self, index: int) -> Compiled:
        found = self._compiled.get(index)
        if found is None:
            found = self._compiled[index] = compile_rule(self.program, self.source.rule(index))
        return found


def compile_rule(program: Program, rule: Rule) -> Compiled:
    """Rule → Compiled. What is not modelled leaves `unknown` set: the walk then goes both ways."""
    unknown: str | None
    if rule.unread is not None:
        sentence = unread_words(rule.unread)
        if rule.unread.assumed:
            taken = Assumption(sentence, EvidenceKind(rule.unread.table or "rules"))
            return Compiled(rule, (), (taken,), None, (), None, _CONTINUE, None, Count(), {})
        return Compiled(rule, (), (), None, (), sentence, _UNKNOWN, sentence, Unmodelled("?"), {})
    if rule.error is not None:
        unknown = f"the line could not be parsed ({rule.error})"
        return Compiled(rule, (), (), None, (), unknown, _UNKNOWN, unknown, Unmodelled("?"), {})
    tests, assumptions, chance, recent, unknown = program.compile_matches(rule.matches)
    action, data, effect = _compile_target(program, rule)
    if rule.lost is not None:
        action, data, effect = _UNKNOWN, lost_words(rule.lost), Unmodelled("?")
        unknown = data if rule.lost is Lack.PORTS_LOST else unknown
    elif program.ports_lost and _asks_for_no_port(rule):
        unknown = lost_words(Lack.PORTS_LOST)
    return Compiled(rule, tests, assumptions, chance, recent, unknown, action, data, effect, {})


def _asks_for_no_port(rule: Rule) -> bool:
    """Whether a rule asks for a protocol with ports, and for none of them."""
    options = [o for m in rule.matches for o in m.options]
    protocols = {word for o in options if o.flag == "-p" for word in o.args}
    return not protocols.isdisjoint(("tcp", "udp", "sctp")) and not any(o.flag in PORT_FLAGS for o in options)


# -- targets

REJECT_TYPES = {
    "icmp-net-unreachable": "icmp-net-unreachable", "net-unreach": "icmp-net-unreachable",
    "icmp-host-unreachable": "icmp-host-unreachable", "host-unreach": "icmp-host-unreachable",
    "icmp-proto-unreachable": "icmp-proto-unreachable", "proto-unreach": "icmp-proto-unreachable",
    "icmp-port-unreachable": "icmp-port-unreachable", "port-unreach": "icmp-port-unreachable",
    "icmp-net-prohibited": "icmp-net-prohibited", "net-prohib": "icmp-net-prohibited",
    "icmp-host-prohibited": "icmp-host-prohibited", "host-prohib": "icmp-host-prohibited",
    "icmp-admin-prohibited": "icmp-admin-prohibited", "admin-prohib": "icmp-admin-prohibited",
    "tcp-reset": "tcp-reset", "tcp-rst": "tcp-reset",
    "icmp6-no-route": "icmp6-no-route", "no-route": "icmp6-no-route",
    "icmp6-adm-prohibited": "icmp6-adm-prohibited", "adm-prohibited": "icmp6-adm-prohibited",
    "icmp6-addr-unreachable": "icmp6-addr-unreachable", "addr-unreach": "icmp6-addr-unreachable",
    "icmp6-port-unreachable": "icmp6-port-unreachable",
    "icmp6-policy-fail": "icmp6-policy-fail", "policy-fail": "icmp6-policy-fail",
    "icmp6-reject-route": "icmp6-reject-route", "reject-route": "icmp6-reject-route",
}  # fmt: skip

Ended = Sequence[tuple[Verdict, "Effect | None"]]
"""How each way through a rule ends, with what it did there where that depends on the packet."""


def _compile_target(program: Program, rule: Rule) -> tuple[int, Any, Effect | None]:
    target = rule.target
    if target is None:
        return _CONTINUE, None, Count()
    name = target.name
    if target.goto:
        return _GOTO, name, Goto(name)
    if name not in _TARGETS and not target.options and program.ruleset.chain(program.table, name) is not None:
        return _JUMP, name, Jump(name)
    entry = _TARGETS.get(name)
    if entry is None:
        if program.ruleset.chain(program.table, name) is not None:
            return _JUMP, name, Jump(name)
        return (
            _UNKNOWN,
            f"{name} is a target that is not modelled, or a chain that was not read",
            Unmodelled(name),
        )
    try:
        made = entry[0](target, program)
    except (ValueError, IndexError, KeyError):
        made = None
    if made is None:
        return _UNKNOWN, f"target {name} with these options is not modelled", Unmodelled(name)
    return made


def _simple(action: int, effect: Effect) -> Callable[[Target, Program], tuple[int, Any, Effect | None]]:
    return lambda target, program: (action, None, effect)


def _nothing(by: str) -> Callable[[Target, Program], tuple[int, Any, Effect | None]]:
    """Targets that go on with the next rule and leave alone all that ktp models."""
    return lambda target, program: (_CONTINUE, None, Count(by))


def _reject(target: Target, program: Program) -> tuple[int, Any, Effect | None]:
    given = target.value("--reject-with")
    if given is None:
        kind = "icmp-port-unreachable" if program.family == 4 else "icmp6-port-unreachable"
    elif program.family == 6 and given == "port-unreach":
        kind = "icmp6-port-unreachable"
    else:
        kind = REJECT_TYPES[given]
    return _END, lambda state, host, hook: [(Verdict(REJECT, state, kind), None)], Refuse(kind)


def _mark(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    if len(target.options) != 1:
        return None
    option = target.options[0]
    value, _, mask_text = option.args[0].partition("/")
    number, mask = int(value, 0), int(mask_text, 0) if mask_text else 0xFFFFFFFF
    keep, flip = _mark_operation(option.flag, number, mask)

    def change(p: Packet, host: Host) -> Effect:
        before = p.mark
        p.mark = (before & keep) ^ flip
        return Mark(before, p.mark, keep, flip)

    return _CHANGE, change, None


def _mark_operation(flag: str, number: int, mask: int) -> tuple[int, int]:
    """(keep, flip): mark' = (mark & keep) ^ flip. --set-mark value/mask zeroes mask and ORs; --set-xmark XORs."""
    every = 0xFFFFFFFF
    if flag == "--set-xmark":
        return every & ~mask, number
    if flag == "--set-mark":
        return every & ~(mask | number), number
    if flag == "--and-mark":
        return number, 0
    if flag == "--or-mark":
        return every & ~number, number
    if flag == "--xor-mark":
        return every, number
    raise ValueError(flag)


def _connmark(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    verb = next((o for o in target.options if o.flag.endswith("mark") and "mask" not in o.flag), None)
    if verb is None:
        return None
    if verb.flag in ("--save-mark", "--restore-mark"):
        both = target.value("--mask")
        nf = int(target.value("--nfmask") or both or "0xffffffff", 0)
        ctm = int(target.value("--ctmask") or both or "0xffffffff", 0)
        if verb.flag == "--save-mark":

            def save(p: Packet, host: Host) -> None:
                if p.ct is not None:
                    p.ct.mark = (p.ct.mark & ~ctm & 0xFFFFFFFF) ^ (p.mark & nf)

            return _CHANGE, save, Change("connection mark saved from the packet's")

        def restore(p: Packet, host: Host) -> None:
            if p.ct is not None:
                p.mark = (p.mark & ~nf & 0xFFFFFFFF) ^ (p.ct.mark & ctm)

        return _CHANGE, restore, Change("mark restored from the connection's")
    value, _, mask_text = verb.args[0].partition("/")
    number, mask = int(value, 0), int(mask_text, 0) if mask_text else 0xFFFFFFFF
    keep, flip = _mark_operation(verb.flag, number, mask)

    def change(p: Packet, host: Host) -> Effect:
        before = p.ct.mark if p.ct is not None else 0
        after = (before & keep) ^ flip
        if p.ct is not None:
            p.ct.mark = after
        return Mark(before, after, keep, flip, connection=True)

    return _CHANGE, change, None


def _ct(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    if target.option("--notrack") is not None:
        return _notrack(target, program)
    helper = target.value("--helper")
    if all(o.flag in ("--helper", "--ctevents", "--expevents", "--timeout") for o in target.options):
        return _CONTINUE, None, Count(f"conntrack helper {helper}" if helper else "conntrack options set")
    return None  # zones are not modelled


def _notrack(target: Target, program: Program) -> tuple[int, Any, Effect | None]:
    def change(p: Packet, host: Host) -> None:
        if p.ct is None:
            p.ctstate = pk.UNTRACKED

    return _CHANGE, change, NoTrack()


def _tos(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    option = target.options[0]
    text, _, mask_text = option.args[0].partition("/")
    number = int(text, 0)
    mask = int(mask_text, 0) if mask_text else 0xFF
    if option.flag == "--set-tos":

        def change(p: Packet, host: Host) -> None:
            p.tos = (p.tos & ~mask & 0xFF) ^ number

    elif option.flag == "--and-tos":

        def change(p: Packet, host: Host) -> None:
            p.tos &= number

    elif option.flag in ("--or-tos", "--xor-tos"):
        either = option.flag == "--or-tos"

        def change(p: Packet, host: Host) -> None:
            p.tos = p.tos | number if either else p.tos ^ number

    else:
        return None
    return _CHANGE, change, Change("TOS changed")


def _dscp(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    value = dscp_value(target.options[0])
    if value is None:
        return None

    def change(p: Packet, host: Host) -> None:
        p.tos = (p.tos & 3) | value << 2

    return _CHANGE, change, Change(f"DSCP set to {value}")


def _ttl(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    option = target.options[0]
    value = int(option.args[0])
    kind = option.flag.rsplit("-", 1)[-1]
    if kind not in ("set", "inc", "dec"):
        return None

    def change(p: Packet, host: Host) -> None:
        if kind == "set":
            p.from_far = False
        p.ttl = value if kind == "set" else max(0, min(255, p.ttl + (value if kind == "inc" else -value)))

    return _CHANGE, change, Change(f"TTL {kind} {value}")


def _set_target(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    if target.option("--map-set") is not None:
        return None
    words = ", ".join(f"{o.flag[2:]} {o.args[0]}" for o in target.options if o.args)
    return _CONTINUE, None, Count(f"ipset: {words}")


# -- NAT


@lru_cache(maxsize=65536)
def _endpoint(family: int, ip: int, port: Port) -> Endpoint:
    return Endpoint(to_text(family, ip), port if isinstance(port, int) else None)


def translation(kind: Nat, family: int, before: tuple[int, Port], after: tuple[int, Port]) -> Effect:
    """What became of a destination (or source), which are (address, port)."""
    was, now = _endpoint(family, *before), _endpoint(family, *after)
    return Keep(kind, now) if was == now else Translate(kind, was, now)


def translate_destination(state: State, dst: int, dport: Port, kind: Nat) -> Effect:
    """Rewrite the packet's destination and note it in its connection (nf_nat_setup_info, DST)."""
    p = state.packet
    before = p.dst, p.dport
    ct = p.ct
    assert ct is not None
    if dst != p.dst or dport != p.dport:
        ct.dnat = True
    p.dst = ct.dst = dst
    p.dport = ct.dport = dport
    ct.dst_done = True
    return translation(kind, p.family, before, (dst, dport))


def translate_source(state: State, src: int, sport: Port, kind: Nat) -> Effect:
    """Rewrite the packet's source and note it in its connection (nf_nat_setup_info, SRC)."""
    p = state.packet
    before = p.src, p.sport
    ct = p.ct
    assert ct is not None
    if src != p.src or sport != p.sport:
        ct.snat = True
    p.src = ct.src = src
    p.sport = ct.sport = sport
    ct.src_done = True
    return translation(kind, p.family, before, (src, sport))


def _address_range(
    text: str, family: int
) -> tuple[int | None, int | None, int | None, int | None, int | None]:
    """`IP[-IP][:port[-port[/base]]]` → (low, high, port low, port high, base); None where not given."""
    low = high = None
    if text.startswith("["):
        inside, _, rest = text[1:].partition("]")
        addresses, ports = inside, rest.removeprefix(":")
    elif family == 6:
        addresses, ports = (text, "") if not text.startswith(":") or text.startswith("::") else ("", text[1:])
    else:
        addresses, _, ports = text.partition(":")
    if addresses:
        first, _, last = addresses.partition("-")
        low = to_int(first)[1]
        high = to_int(last)[1] if last else low
    plow = phigh = base = None
    if ports:
        span, _, base_text = ports.partition("/")
        first, _, last = span.partition("-")
        plow = int(first)
        phigh = int(last) if last else plow
        base = int(base_text) if base_text else None
    return low, high, plow, phigh, base


def _each_address(
    state: State, low: int, high: int, text: str, translate: Callable[[State, int], Effect]
) -> Ended:
    """Each address of a range with its chance: find_best_ips_proto takes one by a hash that nobody can foretell."""
    count = high - low + 1
    if count > _MOST_ADDRESSES:
        return [(Verdict(UNKNOWN, state, f"which address of {text} is drawn is not modelled"), None)]
    states = [state.fork() for _ in range(count - 1)] + [state]
    for number, each in enumerate(states):
        if count > 1:
            each.decide(Decision(RANDOM, text, number, 1 / count, "", "", None))
    return [(Verdict(ACCEPT, each), translate(each, low + number)) for number, each in enumerate(states)]


def _dnat(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    option = target.option("--to-destination")
    if option is None or len([o for o in target.options if o.flag == "--to-destination"]) != 1:
        return None
    low, high, plow, phigh, base = _address_range(option.args[0], program.family)
    text = option.args[0]
    random = any(o.flag in ("--random", "--random-fully") for o in target.options)

    def act(state: State, host: Host, hook: str) -> Ended:
        p = state.packet
        dport = p.dport
        if plow is not None and phigh is not None:
            if base is not None and isinstance(p.dport, int):
                dport = plow + (p.dport - base) % (phigh - plow + 1)
            elif not random and isinstance(p.dport, int) and plow <= p.dport <= phigh:
                dport = p.dport
            elif plow == phigh or not random:
                dport = plow  # nf_nat_l4proto_unique_tuple begins with the first, and the tuple is new
            else:
                return [
                    (
                        Verdict(UNKNOWN, state, f"DNAT to the ports {text}: which is drawn is not modelled"),
                        None,
                    )
                ]
        if low is None or high is None or low <= p.dst <= high:
            return [(Verdict(ACCEPT, state), translate_destination(state, p.dst, dport, Nat.DNAT))]
        return _each_address(
            state, low, high, text, lambda each, ip: translate_destination(each, ip, dport, Nat.DNAT)
        )

    return _END, act, None


def _snat(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    option = target.option("--to-source")
    if option is None or len([o for o in target.options if o.flag == "--to-source"]) != 1:
        return None
    low, high, plow, phigh, _ = _address_range(option.args[0], program.family)
    text = option.args[0]

    def act(state: State, host: Host, hook: str) -> Ended:
        p = state.packet
        sport: Port = p.sport
        if plow is not None and phigh is not None:
            sport = plow if plow == phigh else (plow, phigh)
        elif any(o.flag in ("--random", "--random-fully") for o in target.options):
            sport = RANDOM_PORTS
        if low is None or high is None or low <= p.src <= high:
            return [(Verdict(ACCEPT, state), translate_source(state, p.src, sport, Nat.SNAT))]
        return _each_address(
            state, low, high, text, lambda each, ip: translate_source(each, ip, sport, Nat.SNAT)
        )

    return _END, act, None


def masquerade(state: State, host: Host, sport: Port | None = None) -> tuple[Verdict, Effect]:
    """MASQUERADE: the source that the kernel gives (nf_nat_masquerade_ipv4/6); dropped where it has none.

    `sport` is the new source port or range, None where the port is kept.
    """
    p = state.packet
    port = p.sport if sport is None else sport
    if not host.has_network:
        # The dialled address is the one address of this node that is known.
        own = (number for family, number, _ in host.own_addresses() if family == p.family)
        given = next(own, p.ct.odst if p.ct is not None else p.dst)
        state.assume(
            Assumption(
                "the node masquerades with its own address (its interfaces were not read)",
                EvidenceKind.ADDRESSES,
                host.name,
            )
        )
        return Verdict(ACCEPT, state), translate_source(state, given, port, Nat.MASQUERADE)
    next_hop = p.dst
    if p.family == 4:
        found = host.route(p, iif="lo")
        if found.hops and found.hops[0].gateway is not None and found.hops[0].gateway.version == 4:
            next_hop = int(found.hops[0].gateway)
    source = host.select_source(p.family, p.oif, next_hop)
    if source is None:
        return Verdict(DROP, state, "MASQUERADE finds no address to give"), Drop()
    return Verdict(ACCEPT, state), translate_source(state, source, port, Nat.MASQUERADE)


def _masquerade(target: Target, program: Program) -> tuple[int, Any, Effect | None]:
    sport: Port | None = None
    if target.option("--random") is not None or target.option("--random-fully") is not None:
        sport = RANDOM_PORTS
    ports = target.value("--to-ports")
    if ports is not None:
        low, _, high = ports.partition("-")
        sport = (int(low), int(high)) if high and high != low else int(low)
    return _END, lambda state, host, hook: [masquerade(state, host, sport)], None


def redirect_address(state: State, host: Host, hook: str) -> int | None:
    """REDIRECT's new destination: loopback for local output, else the first address of the incoming interface."""
    p = state.packet
    if hook == "OUTPUT":
        return 0x7F000001 if p.family == 4 else 1
    interface = host.interfaces.get(p.iif or "")
    for a in interface.addresses if interface else ():
        if a.ip.version == p.family and (p.family == 6 or not a.secondary):
            return int(a.ip)
    return None


def _redirect(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    ports = target.value("--to-ports")
    low, _, high = (ports or "").partition("-")
    first = int(low) if low else None
    last = int(high) if high else first
    random = any(o.flag in ("--random", "--random-fully") for o in target.options)
    if random and first != last:
        return None

    def act(state: State, host: Host, hook: str) -> Ended:
        dport = state.packet.dport
        if first is not None and last is not None and not (isinstance(dport, int) and first <= dport <= last):
            dport = first  # as DNAT: the first of the range, where the packet's own is not in it
        new = redirect_address(state, host, hook)
        if new is None:
            if not host.has_network:
                return [
                    (Verdict(UNKNOWN, state, "REDIRECT: the addresses of the interface were not read"), None)
                ]
            return [(Verdict(DROP, state, "REDIRECT finds no address on the interface"), Drop())]
        return [(Verdict(ACCEPT, state), translate_destination(state, new, dport, Nat.REDIRECT))]

    return _END, act, None


def _netmap(target: Target, program: Program) -> tuple[int, Any, Effect | None] | None:
    text = target.value("--to")
    if text is None:
        return None
    net = ip_network(text, strict=False)
    mask = (1 << (net.max_prefixlen - net.prefixlen)) - 1
    value = int(net.network_address)

    def act(state: State, host: Host, hook: str) -> Ended:
        p = state.packet
        if hook in ("PREROUTING", "OUTPUT"):
            effect = translate_destination(state, value | p.dst & mask, p.dport, Nat.NETMAP)
        else:
            effect = translate_source(state, value | p.src & mask, p.sport, Nat.NETMAP)
        return [(Verdict(ACCEPT, state), effect)]

    return _END, act, None


def _unknown_target(why: str) -> Callable[[Target, Program], tuple[int, Any, Effect | None]]:
    return lambda target, program: (_UNKNOWN, why, Unmodelled(target.name))


def _nfqueue(target: Target, program: Program) -> tuple[int, Any, Effect | None]:
    return _UNKNOWN, "NFQUEUE hands the packet to a program of the node", Steal("queue")


_TARGETS: dict[str, tuple[Callable[[Target, Program], tuple[int, Any, Effect | None] | None], str, str]] = {
    "ACCEPT": (_simple(_ACCEPT, Accept()), "exact", ""),
    "DROP": (_simple(_DROP, Drop()), "exact", ""),
    "RETURN": (_simple(_RETURN, Return()), "exact", ""),
    "REJECT": (_reject, "exact", "each type with its symptom"),
    "MARK": (_mark, "exact", ""),
    "CONNMARK": (_connmark, "exact", "shifts are unknown"),
    "CT": (_ct, "exact", "zones are unknown"),
    "NOTRACK": (_notrack, "exact", ""),
    "DNAT": (
        _dnat,
        "exact",
        "of several addresses each has its chance; of several ports with --random the one drawn is unknown",
    ),
    "SNAT": (_snat, "exact", "of several addresses each has its chance"),
    "MASQUERADE": (_masquerade, "exact", "the source port is not modelled"),
    "REDIRECT": (_redirect, "exact", "of several ports with --random the one drawn is unknown"),
    "NETMAP": (_netmap, "exact", ""),
    "TOS": (_tos, "exact", ""),
    "DSCP": (_dscp, "exact", ""),
    "TTL": (_ttl, "exact", ""),
    "HL": (_ttl, "exact", ""),
    "LOG": (_nothing("logged"), "exact", ""),
    "NFLOG": (_nothing("logged"), "exact", ""),
    "ULOG": (_nothing("logged"), "exact", ""),
    "TRACE": (_nothing("traced"), "exact", ""),
    "CHECKSUM": (_nothing("checksum filled"), "exact", ""),
    "TCPMSS": (_nothing("MSS set"), "exact", "does not change the packet's way"),
    "TCPOPTSTRIP": (_nothing("TCP options removed"), "exact", "does not change the packet's way"),
    "ECN": (_nothing("ECN bits removed"), "exact", "does not change the packet's way"),
    "CLASSIFY": (_nothing("class set"), "exact", "does not change the packet's way"),
    "AUDIT": (_nothing("audited"), "exact", ""),
    "LED": (_nothing("LED triggered"), "exact", ""),
    "RATEEST": (_nothing("rate estimated"), "exact", ""),
    "IDLETIMER": (_nothing("idle timer reset"), "exact", ""),
    "TEE": (_nothing("copied"), "exact", "the copy is not followed"),
    "SECMARK": (_nothing("security mark set"), "exact", ""),
    "CONNSECMARK": (_nothing("security mark copied"), "exact", ""),
    "SET": (_set_target, "assumed", "additions made by the packet itself are not seen by later rules"),
    "NFQUEUE": (_nfqueue, "unknown", "a program of the node decides"),
    "QUEUE": (_nfqueue, "unknown", "a program of the node decides"),
    "TPROXY": (
        _unknown_target("TPROXY hands the packet to a proxy of the node"),
        "unknown",
        "a proxy takes it",
    ),
    "SYNPROXY": (_unknown_target("SYNPROXY answers in the server's place"), "unknown", ""),
    "DNPT": (_unknown_target("DNPT is not modelled"), "unknown", ""),
    "SNPT": (_unknown_target("SNPT is not modelled"), "unknown", ""),
    "HMARK": (_unknown_target("HMARK sets a mark by a hash"), "unknown", ""),
    "CLUSTERIP": (_unknown_target("CLUSTERIP is not modelled"), "unknown", ""),
}


def is_target(name: str) -> bool:
    """Whether it is a target that ktp knows by name: a rule that names it does not mean a chain."""
    return name in _TARGETS


def supported_targets() -> tuple[tuple[str, str, str], ...]:
    """(name, level, note) of every target that ktp knows by name, for the reference page."""
    chains = ("user chains", "exact", "jump, goto, return, policy")
    return (chains, *((n, level, note) for n, (_, level, note) in sorted(_TARGETS.items())))


# -- the walk


def _walk(program: Program, base: CompiledChain, first: State, host: Host, hook: str) -> list[Verdict]:
    """Every way through a base chain. Iterative: a Service may have thousands of endpoints, each a fork."""
    out: list[Verdict] = []
    table, backend = program.table, program.backend
    # A frame is (chain, candidates, next index, trail). The stack holds the callers' frames; a trail names the chains
    # that led here: the kernel loads no ruleset whose chains jump in a circle (mark_source_chains).
    work: list[tuple[State, CompiledChain, Sequence[Compiled], int, tuple[str, ...], tuple[Any, ...]]] = [
        (first, base, base.candidates(first.packet), 0, (base.name,), ())
    ]
    while work:
        if len(out) > MOST_WAYS:
            raise LimitExceededError
        state, chain, rules, index, trail, stack = work.pop()
        p = state.packet
        while True:
            if index >= len(rules):
                if stack:  # the end of a user chain: back to the caller
                    (chain, rules, index, trail), stack = stack[-1], stack[:-1]
                    continue
                out.append(_policy(base, state, hook, table, backend))
                break
            compiled = rules[index]
            index += 1
            answer: bool | None = True
            for test in compiled.tests:
                one = test(p, host, hook)
                if one is False:
                    answer = False
                    break
                if one is None:
                    answer = None
            if answer is False:
                continue
            if compiled.recent:
                answer = _ask_recent(compiled, state, answer)
                if answer is False:
                    for assumption in compiled.assumptions:
                        state.assume(assumption)
                    continue
            if answer is None or compiled.unknown is not None:
                key = (host.name, backend, table, compiled.rule.text, p.flow_key())
                known = state.asked.get(key) if state.asked else None
                if known is False:
                    continue
                if known is None:
                    other = state.fork()
                    why = compiled.unknown or "a snapshot cannot tell whether it matches"
                    _ask(other, key, False, compiled.rule, why)
                    work.append((other, chain, rules, index, trail, stack))
                    _ask(state, key, True, compiled.rule, why)
            if compiled.chance is not None and compiled.chance < 1:
                if compiled.chance <= 0:
                    continue
                other = state.fork()
                other.decide(Decision(RANDOM, compiled.rule, 1, 1 - compiled.chance, "", "", compiled.rule))
                work.append((other, chain, rules, index, trail, stack))
                state.decide(Decision(RANDOM, compiled.rule, 0, compiled.chance, "", "", compiled.rule))
            for assumption in compiled.assumptions:
                state.assume(assumption)
            if compiled.recent:
                _enter_recent(compiled, state)
            action, effect = compiled.action, compiled.effect
            if action == _CHANGE:
                effect = compiled.data(p, host) or effect
            elif action == _END:
                if table == "nat" and p.ct is None:
                    _note(state, compiled, Count(), hook, table, chain.name, backend)
                    continue
                for verdict, made in compiled.data(state, host, hook):
                    step = _note(verdict.state, compiled, made or effect, hook, table, chain.name, backend)
                    if verdict.code == ACCEPT and p.ct is not None and hook in ("PREROUTING", "OUTPUT"):
                        verdict.state.nat_step = step
                    out.append(verdict._replace(step=step))
                break
            step = _note(state, compiled, effect, hook, table, chain.name, backend)
            if action in (_CONTINUE, _CHANGE):
                continue
            if action in (_JUMP, _GOTO):
                target = program.chain(compiled.data)
                if target is None:
                    out.append(Verdict(UNKNOWN, state, f"chain {compiled.data} is not in the dump", step))
                    break
                if target.name in trail:
                    out.append(Verdict(UNKNOWN, state, "the chains jump in a circle", step))
                    break
                if action == _JUMP:
                    stack = (*stack, (chain, rules, index, trail))
                trail = (*trail, target.name)
                chain, rules, index = target, target.candidates(p), 0
                continue
            if action == _RETURN:
                if stack:
                    (chain, rules, index, trail), stack = stack[-1], stack[:-1]
                    continue
                out.append(_policy(base, state, hook, table, backend))
                break
            if action == _ACCEPT:
                out.append(Verdict(ACCEPT, state, "", step))
                break
            if action == _DROP:
                out.append(Verdict(DROP, state, "", step))
                break
            out.append(Verdict(UNKNOWN, state, compiled.data, step))
            break
    return out


def _note(
    state: State, compiled: Compiled, effect: Effect | None, hook: str, table: str, chain: str, backend: str
) -> StepRecord:
    step = compiled.noted.get(hook) if effect is compiled.effect else None
    if step is None:
        effects = (effect,) if effect is not None else ()
        step = StepRecord(StepKind.RULE, hook, table, chain, compiled.rule, effects, backend)
        if effect is compiled.effect:
            compiled.noted[hook] = step
    state.steps = (state.steps, step)
    return step


def _policy(base: CompiledChain, state: State, hook: str, table: str, backend: str) -> Verdict:
    policy = base.source.policy or "ACCEPT"
    if policy == "DROP":
        step = state.note(
            StepKind.POLICY,
            Drop(),
            hook=hook,
            table=table,
            chain=base.name,
            backend=backend,
            text=f"policy {policy} of {base.name}",
        )
        return Verdict(DROP, state, "", step)
    return Verdict(ACCEPT, state)


def _ask(state: State, key: Hashable, answer: bool, rule: Rule, why: str) -> None:
    state.asked = {**(state.asked or {}), key: answer}
    state.decide(Decision(ASKED, key, 0 if answer else 1, 1.0, rule.text, why, rule))


def _ask_recent(compiled: Compiled, state: State, answer: bool | None) -> bool | None:
    p = state.packet
    for name, side, enters in compiled.recent:
        if enters:
            continue
        present = (name, p.src if side == "src" else p.dst) in state.recent
        inverted = any(
            o.negated
            for m in compiled.rule.matches
            if m.name == "recent"
            for o in m.options
            if o.flag in ("--rcheck", "--update", "--remove")
        )
        if present == inverted:
            return False
    return answer


def _enter_recent(compiled: Compiled, state: State) -> None:
    p = state.packet
    for name, side, enters in compiled.recent:
        if enters:
            state.recent = state.recent | {(name, p.src if side == "src" else p.dst)}
