"""Random nftables rulesets for the laboratory. Everything follows from one seed.

Rules are drawn around the packets that will be sent, so that most of them have a chance to match. Beside tables of
nothing but chance there are some of the shapes that kube-proxy, firewalld, Docker, and Calico give theirs, and now
and then iptables rules of either back end on the same node.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.kernel.drawing import Case, Drawing, Packet
from tests.kernel.generator import Maker
from tests.kernel.lab import NODES, POD_PORTS, PODS

_TARGETS = ("pa1", "pa2", "qa1", "qa2", "pb1", "qb1", "srv", "a", "b", "a.dummy", "b.eth1")
_DEVICES = ("eth0", "eth*", "cni0", "lo", "vp-*", "vp-pa1", "eth1", "vq-*", "dummy0")
# (chain type, hook) → priorities. The names are those that nft allows there; some stand before conntrack (-200).
_PRIORITIES = {
    ("filter", "prerouting"): ("raw", "raw - 5", "-250", "mangle", "mangle + 5", "dstnat - 1", "dstnat + 10", "filter"),
    ("filter", "input"): ("mangle", "filter", "filter", "filter + 10", "filter - 5", "security", "110"),
    ("filter", "forward"): ("mangle", "filter", "filter", "filter + 10", "filter - 5", "security"),
    ("filter", "output"): ("raw", "-250", "mangle", "-90", "filter", "filter + 10", "security"),
    ("filter", "postrouting"): ("mangle", "filter", "srcnat - 5", "srcnat + 10"),
    ("nat", "prerouting"): ("dstnat", "dstnat", "dstnat - 10", "dstnat + 5", "-150"),
    ("nat", "input"): ("100", "110"),
    ("nat", "output"): ("-100", "-100", "-110", "-95"),
    ("nat", "postrouting"): ("srcnat", "srcnat", "srcnat - 5", "srcnat + 10"),
    ("route", "output"): ("mangle", "mangle - 10", "raw", "filter", "-90"),
}  # fmt: skip
# What a user chain may hold, by the hooks that it is reached from: the kernel refuses the rest.
_CALLS = {
    ("filter", "prerouting"): ("any", "filter"),
    ("filter", "input"): ("any", "filter"),
    ("filter", "forward"): ("any", "filter"),
    ("filter", "output"): ("any", "filter"),
    ("filter", "postrouting"): ("any",),
    ("nat", "prerouting"): ("any", "destination"),
    ("nat", "input"): ("any",),
    ("nat", "output"): ("any", "destination"),
    ("nat", "postrouting"): ("any", "source"),
    ("route", "output"): ("any", "filter"),
}
_REJECTS = {
    4: ("icmp port-unreachable", "icmp net-unreachable", "icmp host-unreachable", "icmp prot-unreachable",
        "icmp net-prohibited", "icmp host-prohibited", "icmp admin-prohibited"),
    6: ("icmpv6 no-route", "icmpv6 admin-prohibited", "icmpv6 addr-unreachable", "icmpv6 port-unreachable",
        "icmpv6 policy-fail", "icmpv6 reject-route"),
}  # fmt: skip
_REJECTS_OF_ANY = (
    "icmpx port-unreachable",
    "icmpx admin-prohibited",
    "icmpx no-route",
    "icmpx host-unreachable",
)
_Match = tuple[str, "str | None"]  # the words, and the protocol that they need


@dataclass(frozen=True)
class Place:
    """Where a rule stands: a base chain's type and hook, or what kind of user chain it is."""

    chain: str
    type: str = ""
    hook: str = ""
    early: bool = False  # before conntrack
    kind: str = ""


def make_nft_case(seed: int, size: int = 12) -> Case:
    """The case of a seed, with `size` packets."""
    r = random.Random(seed)
    case = Case(seed, 6 if r.random() < 0.25 else 4)
    case.packets = [Drawing(case, r).packet() for _ in range(size)]
    for node in r.choice((("a",), ("a",), ("b",), NODES)):
        maker = NftMaker(case, r, node)
        case.nft[node] = maker.ruleset()
        if r.random() < 0.2:
            case.rules[node, r.choice(("nft", "legacy"))] = Maker(case, r, node).ruleset(shared=True)
        maker.settings()
    return case


class NftMaker(Drawing):
    """Draws the nftables ruleset of one node, as commands for `nft -f`, one a line."""

    def __init__(self, case: Case, r: random.Random, node: str) -> None:
        super().__init__(case, r, node)
        self.word = "ip" if self.family == 4 else "ip6"
        self.address = "ipv4_addr" if self.family == 4 else "ipv6_addr"
        self.bits = 32 if self.family == 4 else 128
        self.lines: list[str] = []
        self.table = ""
        self.named = False  # whether the table has the sets of `_sets`
        self.maps = False  # and whether those of `_verdicts`
        self.number = 0
        self.chains: dict[str, list[str]] = {}  # kind → user chains that may still be called

    def ruleset(self) -> str:
        """The commands."""
        r = self.r
        shapes: list[Callable[[], None]] = [self._chance] * r.choice((0, 1, 1, 2, 3))
        shapes += r.choice((
            (self._chance,), (self._chance,), (self._chance,), (self._kube_proxy,), (self._kube_proxy,), (self._firewalld,),
            (self._docker,), (self._calico,), (self._kube_proxy, self._firewalld), (self._kube_proxy, self._calico),
        ))  # fmt: skip
        r.shuffle(shapes)
        for number, shape in enumerate(shapes):
            self.number = number
            shape()
        return "\n".join(self.lines) + "\n"

    # -- words

    def _add(self, what: str, *words: str) -> None:
        self.lines.append(" ".join(("add", what, self.table, *words)))

    def _rule(self, chain: str, *words: str) -> None:
        self._add("rule", chain, *(w for w in words if w))

    def _open(self, family: str, name: str) -> None:
        self.table = f"{family} {name}"
        self.named = self.maps = False
        self.chains = {}
        self.lines.append(f"add table {self.table}")

    def _base(self, name: str, kind: str, hook: str, priority: str, policy: str = "accept") -> None:
        self._add("chain", name, f"{{ type {kind} hook {hook} priority {priority}; policy {policy}; }}")

    def _one(self) -> Packet:
        return self.r.choice(self.case.packets)

    def _some(self) -> str:
        """An address of some packet."""
        p = self._one()
        return self.r.choice((p.dst, p.dst, self.source_of(p)))

    def _near(self, p: Packet, side: str) -> str:
        own = self.source_of(p) if side == "saddr" else p.dst
        return self.r.choice((own, own, own, self.ip(self.r.choice(_TARGETS))))

    def _prefix(self, ip: str) -> str:
        return f"{ip}/{self.r.choice((self.bits, self.bits - 8, self.bits // 2))}"

    def _endpoint(self, ip: str, port: int | str) -> str:
        return f"[{ip}]:{port}" if self.family == 6 else f"{ip}:{port}"

    def _among(self, *words: str) -> str:
        return self.r.choice(words)

    def _not(self) -> str:
        return "!= " if self.r.random() < 0.25 else ""

    @staticmethod
    def _set_of(values: Iterable[object]) -> str:
        return "{ " + ", ".join(dict.fromkeys(map(str, values))) + " }"

    # -- tables of chance

    def _chance(self) -> None:
        r = self.r
        family = r.choice((self.word, self.word, "inet", "inet", "inet", "ip6" if self.family == 4 else "ip"))
        self._open(family, f"t{self.number}")
        foreign = family not in (self.word, "inet")
        if not foreign:
            self._sets()
        if r.random() < 0.02:
            self.lines[-1 if not self.named else self.lines.index(f"add table {self.table}")] += (
                " { flags dormant; }"
            )
        users = [
            (f"u{n}", r.choice(("any", "any", "filter", "destination", "source")))
            for n in range(r.choice((1, 2, 3, 5)))
        ]
        bases: list[Place] = []
        for n in range(r.choice((1, 2, 3, 4, 5))):
            kind, hook = r.choice((
                ("filter", "prerouting"), ("filter", "input"), ("filter", "forward"), ("filter", "output"),
                ("filter", "postrouting"), ("nat", "prerouting"), ("nat", "prerouting"), ("nat", "output"),
                ("nat", "postrouting"), ("nat", "postrouting"), ("nat", "input"), ("route", "output"),
                ("filter", "input"), ("filter", "forward"),
            ))  # fmt: skip
            priority = r.choice(_PRIORITIES[kind, hook])
            policy = "drop" if kind == "filter" and r.random() < 0.06 else "accept"
            name = f"{hook}{n}"
            self._base(name, kind, hook, priority, policy)
            early = priority.startswith(("raw", "-250")) and kind != "nat"
            bases.append(Place(name, kind, hook, early))
            if policy == "drop" and r.random() < 0.7:
                self._rule(name, "ct state established,related accept")
        for name, _ in users:
            self._add("chain", name)
        if r.random() < 0.5 and self.named:
            self._verdicts([name for name, kind in users if kind == "any"])
        for n, (name, kind) in enumerate(users):
            self.chains = _by_kind(users[n + 1 :])
            for _ in range(r.choice((1, 2, 3))):
                self._random_rule(Place(name, kind=kind), foreign=foreign)
        self.chains = _by_kind(users)
        for place in bases:
            for _ in range(r.choice((1, 2, 3, 5))):
                self._random_rule(place, foreign=foreign)
        if self.named and r.random() < 0.3:
            self._remembering(r.choice(bases), r.choice(bases))
        if family == self.word and r.random() < 0.06:
            self._ingress()

    def _sets(self) -> None:
        """Sets and maps of every make, with elements from the packets."""
        r, a = self.r, self.address
        self.named = True
        somewhere = [self._some() for _ in range(3)]
        self._add("set", "addrs", f"{{ type {a}; elements = {self._set_of(somewhere)}; }}")
        nets = self._disjoint([self._prefix(self._some()) for _ in range(2)])
        catch = ""
        self._add(
            "set", "nets", f"{{ type {a}; flags interval; auto-merge; elements = {self._set_of(nets)}; }}"
        )
        triples = [f"{p.dst} . {p.proto} . {p.port}" for p in (self._one(), self._one(), self._one())]
        self._add(
            "set",
            "services",
            f"{{ type {a} . inet_proto . inet_service; elements = {self._set_of(triples)}; }}",
        )
        p = self._one()
        spans = [f"{self._prefix(p.dst)} . {r.choice((p.port, '8000-9000', '1-1023', '30000-32767'))}"]
        self._add(
            "set",
            "ranges",
            f"{{ type {a} . inet_service; flags interval; elements = {self._set_of(spans)}; }}",
        )
        ports = r.sample(("80", "443", "8080-8090", "30000-32767", "5353"), 2)
        self._add(
            "set", "ports", f"{{ type inet_service; flags interval; elements = {self._set_of(ports)}; }}"
        )
        devices = r.sample(("eth0", "cni0", "lo", "vp-pa1", "eth1"), 2)
        names = self._set_of(f'"{d}"' for d in devices)
        self._add("set", "links", f"{{ type ifname; elements = {names}; }}")
        self._add("set", "wild", '{ type ifname; flags interval; elements = { "vp-*", "eth*" }; }')
        self._add(
            "set",
            "marks",
            f"{{ type mark; flags interval; elements = {{ {r.choice(('0x1-0x3', '0x0', '0x4000'))}, 0x100 }}; }}",
        )
        self._add("set", "seen", f"{{ type {a}; flags dynamic,timeout; timeout 1h; }}")
        self._add("set", "pairs", f"{{ type {a} . {a}; flags dynamic; size 1000; }}")
        catch = r.choice(("", "", f", * : {self.ip(r.choice(tuple(PODS)))}"))
        port_of = [f"{p.port} : {self.ip(r.choice(_TARGETS))}" for p in (self._one(), self._one())]
        flags = " flags interval;" if catch else ""
        self._add(
            "map",
            "port_to",
            f"{{ type inet_service : {a};{flags} elements = {self._map_of(port_of, catch)}; }}",
        )
        pods = r.choices(tuple(PODS), k=3)
        whole = [
            f"{p.dst} . {p.proto} . {p.port} : {self.ip(pod)} . {r.choice((80, 8080))}"
            for p, pod in zip((self._one(), self._one(), self._one()), pods, strict=True)
        ]
        self._add(
            "map",
            "endpoints",
            f"{{ type {a} . inet_proto . inet_service : {a} . inet_service; elements = {self._map_of(whole)}; }}",
        )
        catch = r.choice(("", ", * : 0x2"))
        marks = [f"{self._some()} : {r.choice(('0x1', '0x4000', '0x3'))}" for _ in range(2)]
        flags = " flags interval;" if catch else ""
        self._add("map", "mark_of", f"{{ type {a} : mark;{flags} elements = {self._map_of(marks, catch)}; }}")
        self._add("limit", "wide", "{ rate 10000/second; }")
        self._add("quota", "plenty", "{ over 100 mbytes; }")
        self._add("counter", "all")

    def _verdicts(self, chains: Sequence[str]) -> None:
        """A named verdict map, which base chains look into."""
        r = self.r
        verdicts = (
            "accept",
            "drop",
            "return",
            "continue",
            *(f"jump {c}" for c in chains),
            *(f"goto {c}" for c in chains),
        )
        values = [
            f"{p.dst} . {p.port} : {r.choice(verdicts)}" for p in (self._one(), self._one(), self._one())
        ]
        self._add(
            "map",
            "verdicts",
            f"{{ type {self.address} . inet_service : verdict; elements = {self._map_of(values)}; }}",
        )
        values = [f"{p.port} : {r.choice(verdicts)}" for p in (self._one(), self._one())]
        values.append(f"{r.choice(('1-79', '9000-30000', '81-442'))} : {r.choice(verdicts)}")
        catch = r.choice(("", f", * : {r.choice(verdicts)}"))
        self._add(
            "map",
            "by_port",
            f"{{ type inet_service : verdict; flags interval; elements = {self._map_of(values, catch)}; }}",
        )
        self.maps = True

    @staticmethod
    def _map_of(elements: Iterable[str], catch: str = "") -> str:
        """Elements of a map; of two with one key the first."""
        found: dict[str, str] = {}
        for element in elements:
            key, _, value = element.rpartition(" : ")
            found.setdefault(key, value)
        return "{ " + ", ".join(f"{k} : {v}" for k, v in found.items()) + catch + " }"

    @staticmethod
    def _disjoint(values: Sequence[str]) -> Sequence[str]:
        return values

    def _remembering(self, first: Place, last: Place) -> None:
        """One chain writes to a set what another asks for, before all their other rules."""
        word = self._among(
            "add @seen {{ {w} saddr }}",
            "update @seen {{ {w} saddr timeout 60s }}",
            "add @seen {{ {w} daddr }}",
        )
        asks = self._among(
            "{w} saddr @seen", "{w} daddr @seen", "{w} saddr != @seen", "{w} saddr @seen tcp flags syn"
        )
        end = self._among("drop", "accept", "meta mark set 0x1", "ct mark set 0x1", "counter", "drop")
        for place, words in ((last, f"{asks.format(w=self.word)} {end}"), (first, word.format(w=self.word))):
            self.lines.append(f"insert rule {self.table} {place.chain} {words}")

    def _ingress(self) -> None:
        """A chain of one device, before everything else. It leaves ARP and neighbour discovery alone."""
        r = self.r
        self._open("netdev", f"n{self.number}")
        p = self._one()
        device = r.choice(("eth0", "eth0", "eth1", "cni0"))
        name = "g"
        self._add(
            "chain",
            name,
            f'{{ type filter hook ingress device "{device}" priority {r.choice((0, -500, 10))}; policy accept; }}',
        )
        for _ in range(r.choice((1, 2))):
            p = self._one()
            words = r.choice((
                f"{p.proto} dport {p.port}", f"{self.word} daddr {p.dst} {p.proto} dport {p.port}",
                f"{self.word} saddr {self.source_of(p)} meta l4proto {p.proto}", f"{p.proto} sport {p.port}",
            ))  # fmt: skip
            self._rule(
                name,
                words,
                r.choice(("drop", "accept", "counter", "meta mark set 0x1", f"{self.word} dscp set cs1")),
            )

    # -- rules of chance

    def _random_rule(self, place: Place, *, foreign: bool) -> None:
        r = self.r
        p = self._one()
        words: list[str] = []
        proto: str | None = None
        if not foreign:
            for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
                text, needs = self._match(p, proto, place)
                if not text or text in words:
                    continue
                proto = proto or needs
                words.append(text)
        changes = [self._change(p, place)] if r.random() < 0.35 and not foreign else []
        if changes and words and r.random() < 0.25:
            words.insert(r.randrange(len(words)), changes.pop())  # a change before the last match
        end, needs = (
            self._end(p, place, proto) if not foreign else (r.choice(("drop", "counter", "accept")), None)
        )
        if needs and proto is None:
            words.append(f"meta l4proto {needs}")
        self._rule(place.chain, *words, *changes, end)

    def _match(self, p: Packet, proto: str | None, place: Place) -> _Match:
        makers: list[Callable[[Packet, Place], _Match]] = [
            self._m_address, self._m_address, self._m_address, self._m_port, self._m_port, self._m_port, self._m_flags,
            self._m_meta, self._m_meta, self._m_device, self._m_ct, self._m_ct, self._m_tuple, self._m_fib, self._m_concat,
            self._m_concat, self._m_odd, self._m_chance, self._m_dynamic,
        ]  # fmt: skip
        for _ in range(20):
            text, needs = self.r.choice(makers)(p, place)
            if text and (needs is None or proto is None or needs == proto):
                return text, needs
        return "", None

    def _m_address(self, p: Packet, place: Place) -> _Match:
        r = self.r
        side = r.choice(("saddr", "daddr", "daddr"))
        ip = self._near(p, side)
        what = r.randrange(7)
        head = f"{self.word} {side}"
        if what == 0:
            return f"{head} {self._not()}{ip}", None
        if what == 1:
            return f"{head} {self._not()}{self._prefix(ip)}", None
        if what == 2:
            return f"{head} {self._not()}{self._set_of((ip, self._some(), self.ip('far')))}", None
        if what == 3 and self.named:
            return f"{head} {self._not()}@{r.choice(('addrs', 'nets'))}", None
        if what == 4:
            mask = "0.0.0.255" if self.family == 4 else "::ffff"
            low = f"0.0.0.{ip.rpartition('.')[2]}" if self.family == 4 else f"::{ip.rpartition(':')[2]}"
            return f"{head} & {mask} {r.choice(('==', '=='))} {low}", None
        if what == 5:
            low, high = sorted((ip, self._some()), key=_number)
            return f"{head} {self._not()}{low}-{high}" if low != high else f"{head} {ip}", None
        return f"{head} {ip}", None

    def _m_port(self, p: Packet, place: Place) -> _Match:
        r = self.r
        if r.random() < 0.15:
            word = r.choice((">= 1024", "1-1023", "!= 22", "32768-65535", "{ 80, 8080 }", "80", "8080"))
            return f"{p.proto} sport {word}", p.proto
        head, needs = r.choice(
            ((f"{p.proto} dport", p.proto), (f"{p.proto} dport", p.proto), ("th dport", None))
        )
        value = r.choice((
            f"{p.port}", f"{p.port}", f"{self._not()}{p.port}", f"{self._not()}8000-9000", f"{self._not()}30000-32767",
            f"{self._not()}{self._set_of((p.port, 22, r.choice(POD_PORTS)))}", f"{self._not()}{self._set_of(('79-90', p.port))}"
            if not 79 <= p.port <= 90 else "{ 79-90, 443 }",
            f"< {p.port}", f"<= {p.port}", f"> {p.port - 1}", f">= {p.port}", "& 0x1 == 0x0",
            *((f"{self._not()}@ports",) if self.named else ()),
        ))  # fmt: skip
        return f"{head} {value}", needs

    def _m_flags(self, p: Packet, place: Place) -> _Match:
        word = self._among(
            "syn", "!= syn", "== syn", "! ack", "syn,ack", "& (syn | ack) == syn", "& (syn | ack) == (syn | ack)",
            "& (fin | syn | rst | ack) != syn", "{ syn, syn | ack }", "& rst == rst", "syn / syn,ack", "! fin,rst",
        )  # fmt: skip
        return f"tcp flags {word}", "tcp"

    def _m_meta(self, p: Packet, place: Place) -> _Match:
        nfproto = "ipv4" if self.family == 4 else "ipv6"
        mark = self._among("0x1", "0x0", "!= 0x0", "& 0x1 == 0x1", "& 0x4000 == 0x4000", "& 0x4000 != 0x4000", "{ 0x1, 0x2-0x9 }",
                           "and 0x2 == 0x0", "> 0x1", *(("@marks", "!= @marks") if self.named else ()))  # fmt: skip
        return self._among(
            f"meta l4proto {p.proto}", f"meta l4proto {self._not()}{p.proto}", "meta l4proto { tcp, udp }", "meta l4proto { udp, sctp }",
            f"meta nfproto {nfproto}", f"meta nfproto != {nfproto}", f"meta protocol {self.word}", f"meta mark {mark}", f"meta mark {mark}",
            f"meta mark {mark}", "meta pkttype host", "meta pkttype != { broadcast, multicast }", "meta ipsec missing",
            "meta iiftype ether" if place.hook in ("prerouting", "input", "forward") else "meta l4proto tcp",
            f"{self.word} {'protocol' if self.family == 4 else 'nexthdr'} {self._not()}{p.proto}", "meta length != 1-20",
        ), None  # fmt: skip

    def _m_device(self, p: Packet, place: Place) -> _Match:
        r = self.r
        sides = {"prerouting": "i", "input": "i", "forward": "io", "output": "o", "postrouting": "o"}.get(
            place.hook, "io"
        )
        side = r.choice((sides[0], sides[-1], sides[0], "i"))
        name = r.choice(_DEVICES)
        what = r.randrange(6)
        if what == 0 and self.named:
            return f"{side}ifname {self._not()}@{r.choice(('links', 'wild'))}", None
        if what == 1:
            return f'{side}ifname {self._not()}{{ "{name}", "{r.choice(("lo", "eth0"))}" }}', None
        if what == 2:
            return f'{side}if {self._not()}"{r.choice(("eth0", "lo", "cni0", "eth1"))}"', None
        return f'{side}ifname {self._not()}"{name}"', None

    def _m_ct(self, p: Packet, place: Place) -> _Match:
        return self._among(
            "ct state new", "ct state established,related", "ct state != new", "ct state { new, untracked }", "ct state invalid",
            "ct state != invalid", "ct state untracked", "ct state established", "ct direction original", "ct direction reply",
            "ct direction != reply", "ct status dnat", "ct status & (dnat | snat) != 0", "ct status ! dnat", "ct status seen-reply",
            "ct status confirmed", "ct status snat", "ct mark 0x1", "ct mark & 0x1 == 0x1", "ct mark != 0x0", "ct mark 0x0",
            "ct state new ct direction original", "ct zone 0", "ct state vmap { invalid : drop, established : accept, related : accept }",
            f"ct l3proto {'ipv4' if self.family == 4 else 'ipv6'}",
        ), None  # fmt: skip

    def _m_tuple(self, p: Packet, place: Place) -> _Match:
        r = self.r
        ip = r.choice((p.dst, self.source_of(p), self.ip(r.choice(_TARGETS))))
        direction, side = r.choice(("original", "reply")), r.choice(("saddr", "daddr"))
        if r.random() < 0.4:
            number = r.choice(("proto-dst", "proto-src"))
            return (
                f"meta l4proto {p.proto} ct {direction} {number} {self._not()}{r.choice((p.port, 8080, '1024-65535'))}",
                p.proto,
            )
        return f"ct {direction} {self.word} {side} {self._not()}{r.choice((ip, self._prefix(ip)))}", None

    def _m_fib(self, p: Packet, place: Place) -> _Match:
        words = [
            "fib daddr type local", "fib daddr type != local", "fib daddr type unicast", "fib saddr type local", "fib saddr type unicast",
            "fib daddr type { local, unicast }", "fib daddr type != { broadcast, multicast }",
        ]  # fmt: skip
        if place.hook == "prerouting":
            words += ["fib saddr . iif oif exists", "fib saddr . iif oif missing", "fib daddr . iif type local", 'fib saddr oifname "eth0"',
                      "fib saddr oif exists", "fib daddr oif exists", "fib saddr . mark . iif oif exists"]  # fmt: skip
        elif place.hook in ("input", "forward"):
            words += ["fib daddr . iif type local", "fib saddr . iif oif exists"]
        elif place.hook == "postrouting":
            words += ["fib daddr . oif type unicast"]
        return self.r.choice(words), None

    def _m_concat(self, p: Packet, place: Place) -> _Match:
        r, w = self.r, self.word
        s = self.source_of(p)
        other = self._one()
        words: list[_Match] = [
            (f"{w} daddr . meta l4proto . th dport {self._not()}{{ {p.dst} . {p.proto} . {p.port} }}", None),
            (
                f"{w} saddr . {w} daddr {self._not()}{self._set_of((f'{s} . {p.dst}', f'{self.source_of(other)} . {other.dst}'))}",
                None,
            ),
            (
                f"{w} saddr . {w} daddr . {p.proto} dport {{ {self._prefix(s)} . {self._prefix(p.dst)} . {r.choice((p.port, '1-1024'))} }}",
                p.proto,
            ),
            (f"meta l4proto . th dport {self._not()}{{ {p.proto} . {p.port}, tcp . 22 }}", None),
            (f"{w} daddr . meta mark {{ {p.dst} . 0x0, {p.dst} . 0x1 }}", None),
            (f'iifname . meta l4proto {self._not()}{{ "eth0" . {p.proto}, "lo" . tcp }}', None),
            (f"{w} daddr . {p.proto} dport {{ {p.dst} . {p.port}, {other.dst} . 8000-9000 }}", p.proto),
            (f"ct direction . meta l4proto {{ {r.choice(('original', 'reply'))} . {p.proto} }}", None),
        ]
        if self.named:
            words += [
                (f"{w} daddr . meta l4proto . th dport {self._not()}@services", None),
                (f"{w} daddr . {p.proto} dport {self._not()}@ranges", p.proto),
                (f"{w} daddr . th dport @ranges", None),
            ]
        return r.choice(words)

    def _m_odd(self, p: Packet, place: Place) -> _Match:
        named = ('limit name "wide"', 'quota name "plenty"', 'counter name "all"') if self.named else ()
        ttl = "ip6 hoplimit" if self.family == 6 else "ip ttl"
        word = self._among(
            "limit rate 10000/second", "limit rate over 10000/second", "quota over 100 mbytes", "quota 100 mbytes",
            f"{self.word} dscp cs0", f"{self.word} dscp != cs1", f"{ttl} > 1", f"{ttl} 64", f"{self.word} version {self.family}",
            "rt classid 0" if False else f"{self.word} ecn not-ect", "ct count over 100000" if not place.early else f"{ttl} < 64",
            "ip frag-off & 0x1fff == 0" if self.family == 4 else "exthdr frag missing", "socket transparent 0" if self.r.random() < 0.05 else "counter",
            "@th,16,16 80", *named,
        )  # fmt: skip
        return word, None

    def _m_chance(self, p: Packet, place: Place) -> _Match:
        return self._among(
            "numgen random mod 2 0", "numgen random mod 10 < 5", "numgen inc mod 2 1", "numgen random mod 1 0",
            f"jhash {self.word} saddr mod 2 seed 0x3 0", f"jhash {self.word} saddr . {self.word} daddr mod 3 != 1",
            "numgen random mod 4 offset 10 { 10, 12 }", "numgen random mod 2 vmap { 0 : continue, 1 : continue }",
        ), None  # fmt: skip

    def _m_dynamic(self, p: Packet, place: Place) -> _Match:
        if not self.named:
            return "", None
        w = self.word
        return self._among(
            f"{w} saddr @seen", f"{w} daddr @seen", f"{w} saddr != @seen", f"add @seen {{ {w} saddr }}", f"update @seen {{ {w} saddr timeout 60s }}",
            f"{w} saddr . {w} daddr @pairs", f"add @pairs {{ {w} saddr . {w} daddr }}", f"{w} daddr . {w} saddr @pairs",
            f"update @seen {{ {w} daddr limit rate 10000/second }}", f"update @seen {{ {w} saddr limit rate over 10000/second }}",
            f"delete @seen {{ {w} saddr }}",
        ), None  # fmt: skip

    def _change(self, p: Packet, place: Place) -> str:
        r, w = self.r, self.word
        words = [
            "meta mark set 0x1", "meta mark set 0x0", "meta mark set meta mark | 0x4000", "meta mark set meta mark & 0xfffffffe",
            "meta mark set meta mark ^ 0x3", "meta mark set meta mark or 0x2", f"meta mark set {w} saddr map {{ {self._some()} : 0x1, {self.ip('far')} : 0x2 }}",
            "meta mark set ct mark", "ct mark set meta mark", "ct mark set 0x1", "ct mark set ct mark | 0x2", "counter",
            "log prefix \"ktp\" level debug", f"{w} dscp set cs1", f"{w} dscp set af21", "meta priority set 1:2",
            "meta mark set numgen random mod 2", "meta mark set meta mark and 0xffff xor 0x10",
        ]  # fmt: skip
        if self.named:
            words += [f"meta mark set {w} daddr map @mark_of", f"meta mark set {w} saddr map @mark_of", f"add @seen {{ {w} saddr }}",
                      f"update @pairs {{ {w} saddr . {w} daddr }}", f"add @seen {{ {w} daddr timeout 5m }}"]  # fmt: skip
        if place.hook in {"forward", "postrouting"}:
            words.append("tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu")
        if place.hook == "prerouting" and r.random() < 0.2:
            words += [
                "ip6 hoplimit set 3" if self.family == 6 else "ip ttl set 3",
                "ip6 hoplimit set 1" if self.family == 6 else "ip ttl set 1",
            ]
        if place.early:
            words += ["notrack", "notrack"]
            # On output a process goes on to send by the way that it has found for the old address.
            if place.hook == "prerouting" and r.random() < 0.3:
                other = self.ip(r.choice(_TARGETS))
                words += [
                    f"{w} daddr set {other}",
                    f"{p.proto} dport set {r.choice((80, 8080))}",
                    "ct zone set 7",
                ]
        return r.choice(words)

    # -- what a rule ends with

    def _end(self, p: Packet, place: Place, proto: str | None) -> _Match:
        r = self.r
        kinds = _CALLS.get((place.type, place.hook), ("any", place.kind) if place.kind != "any" else ("any",))
        callable_chains = [name for kind in kinds for name in self.chains.get(kind, ())]
        if callable_chains and r.random() < (0.45 if place.hook else 0.25):
            return self._call(p, place, callable_chains)
        options: list[_Match] = [(word, None) for word in ("accept", "return", "counter", "continue", "")]
        own = {"prerouting": "destination", "output": "destination", "postrouting": "source"}.get(
            place.hook, ""
        )
        if place.type == "nat" and place.hook == "input":
            return r.choice(
                (*options, (f"snat {self._to()} {self.ip(r.choice(('srv', 'c1', 'vip.a', 'dead')))}", None))
            )
        if (own if place.type == "nat" else place.kind) == "destination":
            return r.choice((*options[:3], *(self._destination(p, proto) for _ in range(7))))
        if (own if place.type == "nat" else place.kind) == "source":
            return r.choice((*options[:3], *(self._source(p, proto) for _ in range(7))))
        options += [("drop", None), ("accept", None), ("counter drop", None)]
        if place.kind == "filter" or (place.type in ("filter", "route") and place.hook != "postrouting"):
            options += [self._reject(proto)] * 2
        if place.hook == "prerouting" and r.random() < 0.02:
            options += [(f"meta l4proto {p.proto} tproxy to :{p.port}", p.proto)]
        if r.random() < 0.02:
            options.append((r.choice(("queue num 3 bypass", "queue num 3")), None))
        return r.choice(options)

    def _call(self, p: Packet, place: Place, chains: Sequence[str]) -> _Match:
        r = self.r
        one, two = r.choice(chains), r.choice(chains)
        verb = r.choice(("jump", "jump", "jump", "goto"))
        s = self.source_of(p)
        options: list[_Match] = [(f"{verb} {one}", None)] * 6
        options += [
            (f"{p.proto} dport vmap {{ {p.port} : {verb} {one}, 22 : drop }}", p.proto),
            (
                f"th dport vmap {{ {p.port} : {verb} {one}, * : {r.choice(('continue', 'return', f'jump {two}'))} }}",
                None,
            ),
            (f"{self.word} daddr vmap {{ {p.dst} : {verb} {one}, {self.ip('far')} : goto {two} }}", None),
            (
                f"{self.word} saddr . {p.proto} dport vmap {{ {self._prefix(s)} . {p.port} : {verb} {one} }}",
                p.proto,
            ),
            (f"meta l4proto vmap {{ tcp : {verb} {one}, udp : jump {two} }}", None),
            (f"ct state vmap {{ established : accept, new : {verb} {one}, related : accept }}", None),
            (f"numgen random mod 2 vmap {{ 0 : jump {one}, 1 : {verb} {two} }}", None),
            (f'iifname vmap {{ "eth0" : {verb} {one}, "lo" : jump {two}, "cni0" : continue }}', None),
            (f"ct direction vmap {{ original : {verb} {one}, reply : accept }}", None),
            (f"meta mark & 0x1 vmap {{ 0x0 : {verb} {one}, 0x1 : jump {two} }}", None),
        ]
        if self.maps and place.hook:  # from a user chain they might lead back to it
            options += [(f"{self.word} daddr . {p.proto} dport vmap @verdicts", p.proto), ("th dport vmap @by_port", None),
                        (f"{self.word} daddr . th dport vmap @verdicts", None)]  # fmt: skip
        return r.choice(options)

    def _reject(self, proto: str | None) -> _Match:
        r = self.r
        options: list[_Match] = [("reject", None), (f"reject with {r.choice(_REJECTS[self.family])}", None)]
        if proto != "udp":
            options.append(("reject with tcp reset", "tcp"))
        if self.table.startswith("inet"):
            options += [(f"reject with {r.choice(_REJECTS_OF_ANY)}", None)] * 2
        return r.choice(options)

    def _to(self) -> str:
        """`ip to`, as tables of family inet need it."""
        return f"{self.word} to" if self.table.startswith("inet") or self.r.random() < 0.2 else "to"

    def _destination(self, p: Packet, proto: str | None) -> _Match:
        r, w, needs = self.r, self.word, proto or p.proto
        ip, other = self.ip(r.choice(_TARGETS)), self.ip(r.choice(tuple(PODS)))
        port = r.choice((80, 8080, 8080, 443, 30081))
        to = self._to()
        options: list[_Match] = [(f"dnat {to} {self._endpoint(ip, port)}", needs)] * 5
        options += [
            (f"dnat {to} {ip}", None), (f"dnat {to} :{port}" if to == "to" else f"dnat {to} {ip}", needs),
            (f"redirect to :{port}", needs), ("redirect", None), (f"dnat {to} {self._endpoint(ip, '8080-8083')}", needs),
            (f"redirect to :{needs} dport map {{ {p.port} : {port}, 22 : 2222 }}", needs),
            (f"dnat {to} {w} daddr map {{ {p.dst} : {ip}, {self.ip('far')} : {other} }}", None),
            (f"dnat {to} {needs} dport map {{ {p.port} : {ip} }}", needs),
            (f"dnat {w} addr . port to {needs} dport map {{ {p.port} : {ip} . {port}, 22 : {other} . 22 }}", needs),
            (f"dnat {to} numgen random mod 2 map {{ 0 : {ip}, 1 : {other} }}", None),
            (f"dnat {w} addr . port to numgen random mod 2 map {{ 0 : {ip} . {port}, 1 : {other} . 8080 }}", needs),
            (f"dnat {to} jhash {w} saddr mod 2 map {{ 0 : {ip}, 1 : {other} }}", None),
            (f"dnat {to} numgen inc mod 2 map {{ 0 : {ip}, 1 : {other} }}", None),
            (f"dnat {to} {ip} {r.choice(('random', 'persistent', 'fully-random'))}", None),
            (f"dnat {to} {self.ip('pa1')}-{self.ip('pa2')}" if self.family == 4 else f"dnat {to} {ip}", None),
            (f"dnat {w} prefix to {w} daddr map {{ {self._prefix(p.dst)} : {self.net_of('pa1')} }}" if self.family == 4 else "", None),
        ]  # fmt: skip
        if self.named:
            options += [
                (f"dnat {w} addr . port to {w} daddr . meta l4proto . th dport map @endpoints", needs),
                (f"dnat {w} addr . port to {w} daddr . meta l4proto . th dport map @endpoints", needs),
                (f"dnat {to} {needs} dport map @port_to", needs), (f"dnat {to} th dport map @port_to", None),
            ]  # fmt: skip
        return r.choice(options)

    def _source(self, p: Packet, proto: str | None) -> _Match:
        r, w, needs = self.r, self.word, proto or p.proto
        ip = self.ip(self.node + r.choice(("", ".second", ".dummy")))
        to = self._to()
        return r.choice((
            ("masquerade", None), ("masquerade", None), ("masquerade", None), ("masquerade random", None), ("masquerade fully-random", None),
            ("masquerade to :20000-30000", needs), (f"snat {to} {ip}", None), (f"snat {to} {ip}", None),
            (f"snat {to} {self._endpoint(ip, '20000-30000')}", needs), (f"snat {to} {w} saddr map {{ {self.source_of(p)} : {ip} }}", None),
            (f"snat {to} {ip} random", None), (f"snat {to} {ip} persistent", None), ("masquerade persistent", None),
        ))  # fmt: skip

    # -- shapes

    def _services(self) -> list[Packet]:
        """Some of the packets, each of another address, protocol, and port."""
        found: dict[tuple[str, str, int], Packet] = {}
        for p in self.case.packets:
            found.setdefault((p.dst, p.proto, p.port), p)
        return [p for p in found.values() if self.r.random() < 0.6]

    def _kube_proxy(self) -> None:
        """Verdict maps from a Service's address to its chain, from there by lot to an endpoint's, masquerade by mark."""
        r, w, a = self.r, self.word, self.address
        self._open(self.word, "kube-proxy")
        for name, kind, hook, priority in (
            ("nat-prerouting", "nat", "prerouting", "dstnat"), ("nat-output", "nat", "output", "-100"),
            ("nat-postrouting", "nat", "postrouting", "srcnat"), ("filter-prerouting-pre-dnat", "filter", "prerouting", "dstnat - 10"),
            ("filter-output-pre-dnat", "filter", "output", "-110"), ("filter-input", "filter", "input", "filter"),
            ("filter-forward", "filter", "forward", "filter"), ("filter-output", "filter", "output", "filter"),
        ):  # fmt: skip
            self._base(name, kind, hook, priority)
        for name in ("services", "masquerading", "mark-for-masquerade", "reject-chain", "service-endpoints-check", "nodeport-endpoints-check",
                     "firewall-check", "cluster-ips-check"):  # fmt: skip
            self._add("chain", name)
        key = f"{a} . inet_proto . inet_service"
        self._add("map", "service-ips", f"{{ type {key} : verdict; }}")
        self._add("map", "service-nodeports", "{ type inet_proto . inet_service : verdict; }")
        self._add("map", "no-endpoint-services", f"{{ type {key} : verdict; }}")
        self._add("map", "no-endpoint-nodeports", "{ type inet_proto . inet_service : verdict; }")
        self._add("map", "firewall-ips", f"{{ type {key} : verdict; }}")
        ips = [self.ip(name) for name in ("a", "a.second", "b", "a.eth1")]
        self._add("set", "nodeport-ips", f"{{ type {a}; elements = {self._set_of(r.sample(ips, 2))}; }}")
        self._add(
            "set",
            "cluster-ips",
            f"{{ type {a}; elements = {self._set_of((self.ip('vip.a'), self.ip('vip.b')))}; }}",
        )
        self._rule("mark-for-masquerade", "meta mark set meta mark or 0x4000")
        self._rule("masquerading", "meta mark and 0x4000 == 0 return")
        self._rule("masquerading", "meta mark set meta mark xor 0x4000")
        self._rule("masquerading", r.choice(("masquerade fully-random", "masquerade")))
        self._rule("reject-chain", "reject")
        for n, p in enumerate(self._services()):
            self._service(n, p)
        nodeports = f"fib daddr type local {w} daddr @nodeport-ips"
        if r.random() < 0.3:
            nodeports = f"fib daddr type local {w} daddr != {self.ip('localhost')}"
        self._rule("services", f"{w} daddr . meta l4proto . th dport vmap @service-ips")
        self._rule("services", f"{nodeports} meta l4proto . th dport vmap @service-nodeports")
        self._rule(
            "service-endpoints-check", f"{w} daddr . meta l4proto . th dport vmap @no-endpoint-services"
        )
        self._rule(
            "nodeport-endpoints-check", f"{nodeports} meta l4proto . th dport vmap @no-endpoint-nodeports"
        )
        self._rule("firewall-check", f"{w} daddr . meta l4proto . th dport vmap @firewall-ips")
        self._rule(
            "cluster-ips-check",
            f'{w} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',
        )
        for name in ("nat-prerouting", "nat-output"):
            self._rule(name, "jump services")
        self._rule("nat-postrouting", "jump masquerading")
        self._rule("filter-prerouting-pre-dnat", "ct state new jump firewall-check")
        self._rule("filter-output-pre-dnat", "ct state new jump firewall-check")
        self._rule("filter-input", "ct state new jump nodeport-endpoints-check")
        self._rule("filter-input", "ct state new jump service-endpoints-check")
        for name in ("filter-forward", "filter-output"):
            self._rule(name, "ct state new jump service-endpoints-check")
            self._rule(name, "ct state new jump cluster-ips-check")

    def _service(self, n: int, p: Packet) -> None:
        r, w = self.r, self.word
        name = f"service-{n:04}"
        by_port = r.random() < 0.3
        key = f"{p.proto} . {p.port}" if by_port else f"{p.dst} . {p.proto} . {p.port}"
        kind = r.random()
        if kind < 0.15:
            table, verdict = (
                ("no-endpoint-nodeports" if by_port else "no-endpoint-services"),
                r.choice(("goto reject-chain", "drop")),
            )
            self._add("element", table, f"{{ {key} : {verdict} }}")
            return
        endpoints = r.sample(tuple(PODS), r.choice((1, 1, 2, 3)))
        affinity = r.random() < 0.2
        external = f"external-{n:04}"
        self._add("chain", name)
        self._add("chain", external)
        chains = []
        for number, pod in enumerate(endpoints):
            chain = f"endpoint-{n:04}-{number}"
            chains.append(chain)
            self._add("chain", chain)
            self._rule(chain, f"{w} saddr {self.ip(pod)} jump mark-for-masquerade")
            if affinity:
                self._add(
                    "set",
                    f"affinity-{n:04}-{number}",
                    f"{{ type {self.address}; flags dynamic,timeout; timeout 3h; }}",
                )
                self._rule(chain, f"update @affinity-{n:04}-{number} {{ {w} saddr }}")
            self._rule(
                chain, f"meta l4proto {p.proto} dnat to {self._endpoint(self.ip(pod), r.choice((80, 8080)))}"
            )
        if r.random() < 0.5:
            self._rule(
                name,
                f"{w} daddr {p.dst} {p.proto} dport {p.port} {w} saddr != {self.net_of('pa1')} jump mark-for-masquerade",
            )
        if affinity:
            for number, chain in enumerate(chains):
                self._rule(name, f"{w} saddr @affinity-{n:04}-{number} goto {chain}")
        values = ", ".join(f"{i} : goto {c}" for i, c in enumerate(chains))
        self._rule(name, f"numgen random mod {len(chains)} vmap {{ {values} }}")
        policy = r.choice(("Cluster", "Local"))
        if policy == "Cluster":
            self._rule(external, "jump mark-for-masquerade")
            self._rule(external, f"goto {name}")
        else:
            local = [c for c, pod in zip(chains, endpoints, strict=True) if PODS[pod] == self.node]
            self._rule(
                external, f'{w} saddr {self.net_of("pa1")} goto {name} comment "short-circuit pod traffic"'
            )
            self._rule(
                external, 'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"'
            )
            self._rule(external, f'fib saddr type local goto {name} comment "short-circuit local traffic"')
            if local:
                values = ", ".join(f"{i} : goto {c}" for i, c in enumerate(local))
                self._rule(external, f"numgen random mod {len(local)} vmap {{ {values} }}")
            else:
                nothing = "no-endpoint-nodeports" if by_port else "no-endpoint-services"
                self._add("element", nothing, f"{{ {key} : drop }}")
        chain = r.choice((name, external))
        self._add("element", "service-nodeports" if by_port else "service-ips", f"{{ {key} : goto {chain} }}")
        if r.random() < 0.2 and not by_port:
            firewall = f"firewall-{n:04}"
            self._add("chain", firewall)
            self._rule(firewall, f"{w} saddr {self._set_of((self._prefix(self.source_of(p)),))} return")
            self._rule(firewall, "drop")
            self._add("element", "firewall-ips", f"{{ {key} : goto {firewall} }}")

    def _firewalld(self) -> None:
        """Zones by interface, policies of drop or reject behind what is established, everything in family inet."""
        r, p = self.r, self._one()
        self._open("inet", "firewalld")
        for name, kind, hook, priority in (
            ("mangle_PREROUTING", "filter", "prerouting", "mangle + 10"), ("nat_PREROUTING", "nat", "prerouting", "dstnat + 10"),
            ("nat_POSTROUTING", "nat", "postrouting", "srcnat + 10"), ("filter_PREROUTING", "filter", "prerouting", "filter + 10"),
            ("filter_INPUT", "filter", "input", "filter + 10"), ("filter_FORWARD", "filter", "forward", "filter + 10"),
            ("filter_OUTPUT", "filter", "output", "filter + 10"),
        ):  # fmt: skip
            self._base(name, kind, hook, priority)
        zones = ("public", "trusted")
        for zone in zones:
            for part in ("IN", "FWD"):
                self._add("chain", f"filter_{part}_{zone}")
                self._add("chain", f"filter_{part}_{zone}_allow")
                self._rule(f"filter_{part}_{zone}", f"jump filter_{part}_{zone}_allow")
                if zone == "trusted":
                    self._rule(f"filter_{part}_{zone}", "accept")
                elif r.random() < 0.5:
                    self._rule(f"filter_{part}_{zone}", "meta l4proto { icmp, ipv6-icmp } accept")
            self._add("chain", f"nat_POST_{zone}")
            self._add("chain", f"nat_PRE_{zone}")
        for _ in range(3):
            q = self._one()
            self._rule(
                "filter_IN_public_allow",
                f"{q.proto} dport {q.port} ct state {r.choice(('new', '{ new, untracked }'))} accept",
            )
            self._rule("filter_FWD_public_allow", f"{self.word} daddr {q.dst} accept")
        self._rule("nat_POST_public", f'meta nfproto ipv{self.family} oifname != "lo" masquerade')
        self._rule("nat_PRE_public", f"{p.proto} dport {p.port} {self._destination(p, p.proto)[0]}")
        for part, dev in (("INPUT", "iifname"), ("FORWARD", "iifname")):
            chain, short = f"filter_{part}", "IN" if part == "INPUT" else "FWD"
            self._rule(chain, "ct state { established, related } accept")
            if r.random() < 0.8:
                self._rule(chain, "ct status dnat accept")
            self._rule(chain, 'iifname "lo" accept')
            zone = r.choice(zones)
            self._rule(chain, f'{dev} "cni0" goto filter_{short}_trusted' if r.random() < 0.5 else "")
            self._rule(chain, f"{dev} vmap {{ \"eth0\" : goto filter_{short}_{zone}, \"vp-*\" : goto filter_{short}_trusted }}"
                       if r.random() < 0.5 else f'{dev} "eth0" jump filter_{short}_{zone}')  # fmt: skip
            self._rule(chain, "ct state invalid drop")
            if r.random() < 0.4:
                self._rule(chain, r.choice(("reject with icmpx admin-prohibited", "drop")))
        self._rule("filter_OUTPUT", "ct state { established, related } accept")
        if r.random() < 0.5:
            self._rule("filter_PREROUTING", "icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept")
            self._rule(
                "filter_PREROUTING", f"meta nfproto ipv{self.family} fib saddr . mark . iif oif missing drop"
            )
        self._rule("nat_PREROUTING", f'iifname "{r.choice(("eth0", "vp-*", "eth1"))}" goto nat_PRE_public')
        self._rule("nat_POSTROUTING", f'oifname "{r.choice(("eth0", "cni0", "vp-*"))}" goto nat_POST_public')

    def _docker(self) -> None:
        """Published ports by an address type, masquerade by subnet, isolation in two stages."""
        r, w = self.r, self.word
        self._open(self.word, "docker-bridges")
        self._base("nat-prerouting-and-output", "nat", "prerouting", "dstnat")
        self._base("nat-output", "nat", "output", "-100")
        self._base("nat-postrouting", "nat", "postrouting", "srcnat")
        self._base("filter-FORWARD", "filter", "forward", "filter", r.choice(("accept", "drop")))
        self._base("raw-PREROUTING", "filter", "prerouting", "raw")
        for name in ("DOCKER", "isolation-1", "isolation-2"):
            self._add("chain", name)
        for name in ("nat-prerouting-and-output", "nat-output"):
            self._rule(name, f"{w} daddr != {self.ip('localhost')} fib daddr type local counter jump DOCKER"
                       if r.random() < 0.5 else "fib daddr type local counter jump DOCKER")  # fmt: skip
        for _ in range(3):
            p = self._one()
            pod = self.ip(r.choice(("qa1", "qa2", "pa1", "qb1")))
            self._rule(
                "DOCKER",
                'iifname != "cni0"' if r.random() < 0.5 else "",
                f"{p.proto} dport {p.port} dnat to {self._endpoint(pod, 8080)}",
            )
            self._rule("raw-PREROUTING", f'{w} daddr {pod} iifname != {{ "cni0", "eth0", "vp-*" }} drop')
        self._rule("nat-postrouting", f'{w} saddr {self.net_of("qa1")} oifname != "cni0" masquerade')
        self._rule("nat-postrouting", f"{w} saddr {self.ip('qa1')} {w} daddr {self.ip('qa1')} masquerade")
        self._rule("filter-FORWARD", "jump isolation-1")
        self._rule("filter-FORWARD", 'oifname "cni0" ct state established,related accept')
        self._rule(
            "filter-FORWARD",
            'oifname "cni0" ct status dnat accept' if r.random() < 0.5 else 'iifname "cni0" accept',
        )
        self._rule("filter-FORWARD", 'iifname "cni0" oifname "cni0" accept')
        self._rule("filter-FORWARD", "ct state established,related accept")
        self._rule(
            "isolation-1", f'iifname "cni0" oifname != "cni0" {r.choice(("jump", "goto"))} isolation-2'
        )
        self._rule("isolation-2", f'oifname "{r.choice(("vp-*", "dummy0", "eth1"))}" drop')

    def _calico(self) -> None:
        """Marks that carry a policy's answer from chain to chain, interfaces by prefix, sets of addresses."""
        r, w = self.r, self.word
        self._open(self.word, "calico")
        self._sets()
        for name, kind, hook, priority in (
            ("raw-PREROUTING", "filter", "prerouting", "raw"), ("mangle-PREROUTING", "filter", "prerouting", "mangle"),
            ("nat-PREROUTING", "nat", "prerouting", "dstnat"), ("nat-POSTROUTING", "nat", "postrouting", "srcnat"),
            ("filter-INPUT", "filter", "input", "filter"), ("filter-FORWARD", "filter", "forward", "filter"),
        ):  # fmt: skip
            self._base(name, kind, hook, priority)
        names = (
            "cali-tw-pa1",
            "cali-fw-pa1",
            "cali-pi-one",
            "cali-po-one",
            "cali-from-wl",
            "cali-to-wl",
            "cali-wl-to-host",
            "cali-host",
        )
        for name in names:
            self._add("chain", name)
        accepted, passed = "0x10000", "0x20000"
        for name in ("cali-pi-one", "cali-po-one"):
            for _ in range(2):
                self._rule(
                    name,
                    *self._match(self._one(), None, Place(name, kind="filter"))[:1],
                    f"counter meta mark set meta mark or {accepted}",
                )
                self._rule(name, f"meta mark & {accepted} == {accepted} return")
            if r.random() < 0.5:
                self._rule(name, f"{w} saddr {r.choice(('@addrs', '@nets'))} drop")
        for name, policy in (("cali-tw-pa1", "cali-pi-one"), ("cali-fw-pa1", "cali-po-one")):
            self._rule(name, "ct state { established, related } accept")
            self._rule(name, "ct state invalid drop")
            self._rule(name, "meta mark set meta mark & 0xfffcffff")
            self._rule(name, f"meta mark & {passed} == 0x0 jump {policy}")
            self._rule(name, f"meta mark & {accepted} == {accepted} return")
            self._rule(name, f"meta mark & {passed} == 0x0 {r.choice(('drop', 'counter', 'reject'))}")
        self._rule("cali-from-wl", 'iifname vmap { "vp-pa1" : goto cali-fw-pa1, "vp-*" : return }')
        self._rule("cali-to-wl", 'oifname vmap { "vp-pa1" : goto cali-tw-pa1, "vp-*" : return }')
        self._rule("cali-wl-to-host", "jump cali-from-wl")
        self._rule("cali-wl-to-host", r.choice(("accept", "drop", "return")))
        self._rule("cali-host", f"meta mark & {accepted} == {accepted} accept")
        for hook, dev, chain in (
            ("INPUT", "iifname", "cali-wl-to-host"),
            ("FORWARD", "iifname", "cali-from-wl"),
            ("FORWARD", "oifname", "cali-to-wl"),
        ):
            self._rule(f"filter-{hook}", f'{dev} "vp-*" {r.choice(("jump", "jump", "goto"))} {chain}')
        for hook in ("INPUT", "FORWARD"):
            self._rule(f"filter-{hook}", "jump cali-host")
        if r.random() < 0.3:
            p = self._one()
            self._rule("raw-PREROUTING", f"{w} daddr {p.dst} {p.proto} dport {p.port} notrack")
        self._rule("raw-PREROUTING", "meta mark set meta mark & 0xffe0ffff")
        self._rule("raw-PREROUTING", 'iifname "vp-*" meta mark set meta mark | 0x40000')
        self._rule("raw-PREROUTING", "meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif missing drop")
        self._rule("mangle-PREROUTING", "ct state { established, related } accept")
        self._rule(
            "nat-POSTROUTING",
            f"{w} saddr @nets {w} daddr != @nets {r.choice(('masquerade random', 'masquerade'))}",
        )


def _by_kind(chains: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in chains:
        found.setdefault(kind, []).append(name)
    return found


def _number(text: str) -> int:
    import ipaddress

    return int(ipaddress.ip_address(text))
