"""Random iptables rulesets for the laboratory. Everything follows from one seed.

Rules are drawn around the packets that will be sent, so that most of them have a chance to match.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.kernel.drawing import Case, Drawing, Packet
from tests.kernel.lab import ADDRESSES, NODES, POD_PORTS

HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
_REJECTS = {
    4: ("icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable",
        "icmp-net-prohibited", "icmp-host-prohibited", "icmp-admin-prohibited", "tcp-reset"),
    6: ("icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable",
        "icmp6-policy-fail", "icmp6-reject-route", "tcp-reset"),
}  # fmt: skip
_TARGETS = ("pa1", "pa2", "qa1", "qa2", "pb1", "qb1", "srv", "a", "b", "a.dummy", "b.eth1")


def make_case(seed: int, size: int = 12) -> Case:
    """The case of a seed, with `size` packets."""
    r = random.Random(seed)
    case = Case(seed, 6 if r.random() < 0.25 else 4)
    case.packets = [Drawing(case, r).packet() for _ in range(size)]
    for node in r.choice((("a",), ("a",), ("b",), NODES)):
        maker = Maker(case, r, node)
        backends = r.choice((("nft",), ("legacy",), ("nft",), ("legacy",), ("nft", "legacy")))
        if r.random() < 0.5:
            case.sets[node] = maker.sets()
        for backend in backends:
            case.rules[node, backend] = maker.ruleset(shared=len(backends) > 1)
        maker.settings()
    return case


class Maker(Drawing):
    """Draws the iptables rules of one node."""

    def __init__(self, case: Case, r: random.Random, node: str) -> None:
        super().__init__(case, r, node)
        self.table = ""
        self.hook = ""
        self.names: list[str] = []

    # -- sets

    def sets(self) -> str:
        r, inet = self.r, "inet" if self.family == 4 else "inet6"
        bits = 32 if self.family == 4 else 128
        lines = [
            f"create ktpip hash:ip family {inet}",
            f"create ktpnet hash:net family {inet}",
            f"create ktpipport hash:ip,port family {inet}",
            f"create ktpnetport hash:net,port family {inet}",
            f"create ktpipportip hash:ip,port,ip family {inet}",
            f"create ktpipportnet hash:ip,port,net family {inet}",
            f"create ktpnetif hash:net,iface family {inet}",
            "create ktpport bitmap:port range 1-40000",
            "create ktplist list:set size 8",
        ]
        if self.family == 4:
            lines.append("create ktpbip bitmap:ip range 10.0.0.0/16")
            lines.append(f"add ktpbip {r.choice(('10.0.0.1', '10.0.1.0-10.0.1.9'))}")

        def some() -> str:
            p = r.choice(self.case.packets)
            return r.choice((p.dst, p.dst, self.source_of(p)))

        for _ in range(3):
            lines.append(f"add ktpip {some()}")
            lines.append(
                f"add ktpnet {some()}/{r.choice((bits, bits - 8, bits // 2))}{r.choice(('', '', ' nomatch'))}"
            )
            p = r.choice(self.case.packets)
            lines.append(f"add ktpipport {some()},{p.proto}:{p.port}")
            lines.append(
                f"add ktpnetport {some()}/{r.choice((bits, bits - 8))},{p.proto}:{p.port}{r.choice(('', ' nomatch'))}"
            )
            lines.append(f"add ktpipportip {p.dst},{p.proto}:{p.port},{self.source_of(p)}")
            lines.append(
                f"add ktpipportnet {p.dst},{p.proto}:{p.port},{self.source_of(p)}/{r.choice((bits, bits - 8))}"
            )
            lines.append(
                f"add ktpnetif {some()}/{r.choice((bits, bits - 8))},{r.choice(('eth0', 'cni0', 'vp-pa1'))}"
            )
            lines.append(f"add ktpport {r.choice((p.port, '8080-8090'))}")
        lines += [f"add ktplist {name}" for name in r.sample(("ktpip", "ktpnet", "ktpipport"), 2)]
        seen: set[str] = set()
        out = []
        for line in lines:
            word = " ".join(line.split()[:3]).removesuffix(" nomatch")
            if line.startswith("add") and word in seen:
                continue
            seen.add(word)
            out.append(line)
        return "\n".join(out) + "\n"

    # -- rulesets

    def ruleset(self, *, shared: bool) -> str:
        r = self.r
        tables = [t for t in HOOKS if r.random() < (0.85 if t in ("nat", "filter") else 0.4)]
        if shared and r.random() < 0.6:
            tables = [t for t in tables if t in ("nat", "filter")]
        out = []
        for table in tables:
            self.table = table
            self.names = [f"U{n}" for n in range(r.choice((0, 1, 2, 4)))]
            lines = [f"*{table}"]
            for hook in HOOKS[table]:
                policy = "DROP" if table == "filter" and r.random() < 0.06 else "ACCEPT"
                lines.append(f":{hook} {policy} [0:0]")
            lines += [f":{name} - [0:0]" for name in self.names]
            for hook in HOOKS[table]:
                self.hook = hook
                count = r.choice((0, 1, 2, 3, 5)) if table in ("nat", "filter") else r.choice((0, 1, 2))
                lines += [self._rule(hook, self.names) for _ in range(count)]
            for n, name in enumerate(self.names):
                self.hook = ""
                lines += [self._rule(name, self.names[n + 1 :]) for _ in range(r.choice((1, 2, 3)))]
            lines.append("COMMIT")
            out += lines
        return "\n".join(out) + "\n"

    def _rule(self, chain: str, further: list[str]) -> str:
        r = self.r
        packet = r.choice(self.case.packets)
        words: list[str] = []
        kinds: list[Any] = []
        proto: str | None = None
        for _ in range(r.choice((0, 1, 1, 2, 3))):
            text, needs = self._match(packet, proto)
            # iptables-nft-save 1.8.9 prints two `-m tcp` of a rule as one, and wrongly: one of a kind is enough
            kind = (
                text.removeprefix("! ").split()[:2] if text.startswith("-m") else text.removeprefix("! ")[:2]
            )
            if not text or kind in kinds:
                continue
            kinds.append(kind)
            if needs and proto is None:
                proto = needs
                words.append(f"-p {proto}")
            words.append(text)
        target, needs = self._target(packet, further)
        if needs and proto != needs:
            if proto is not None:
                return f"-A {chain} {' '.join(words)}"
            words.insert(0, f"-p {needs}")
        return " ".join(w for w in (f"-A {chain}", *words, target) if w)

    def _match(self, p: Packet, proto: str | None) -> tuple[str, str | None]:
        r = self.r
        makers: list[Callable[[Packet], tuple[str, str | None]]] = [
            self._m_header, self._m_header, self._m_port, self._m_port, self._m_flags, self._m_multiport,
            self._m_addrtype,
            self._m_mark, self._m_conntrack, self._m_conntrack, self._m_iprange, self._m_set, self._m_set,
            self._m_physdev,
            self._m_odd, self._m_odd, self._m_ct_fields,
        ]  # fmt: skip
        while True:
            text, needs = r.choice(makers)(p)
            if needs is None or proto is None or needs == proto:
                return text, needs

    def _not(self) -> str:
        return "! " if self.r.random() < 0.2 else ""

    def _m_header(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        bits = 32 if self.family == 4 else 128
        masks = (bits, bits, bits - 8, bits // 2)
        what = r.choice("sdsdio")
        devices = ["eth0", "eth+", "cni0", "lo", "vp-+", "vp-pa1", "eth1", "vq-+"]
        if what == "s":
            name = r.choice((self.source_of(p), self.ip(r.choice(list(ADDRESSES)))))
            return f"{self._not()}-s {name}/{r.choice(masks)}", None
        if what == "d":
            name = r.choice((p.dst, p.dst, self.ip(r.choice(list(ADDRESSES)))))
            return f"{self._not()}-d {name}/{r.choice(masks)}", None
        if what == "i" and self.hook in ("PREROUTING", "INPUT", "FORWARD", ""):
            if self.hook == "" and self.table == "nat":
                return "", None
            return (f"{self._not()}-i {r.choice(devices)}", None) if self.hook else ("", None)
        if what == "o" and self.hook in ("POSTROUTING", "OUTPUT", "FORWARD"):
            return f"{self._not()}-o {r.choice(devices)}", None
        return "", None

    def _m_port(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        if r.random() < 0.15:
            return (
                f"-m {p.proto} {self._not()}--sport {r.choice(('1024:65535', '1:1023', '80', '8080'))}",
                p.proto,
            )
        ports = (str(p.port), str(p.port), "1:1023", "8000:9000", "30000:32767", str(r.choice(POD_PORTS)))
        return f"-m {p.proto} {self._not()}--dport {r.choice(ports)}", p.proto

    def _m_flags(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        words = (
            "--syn", "! --syn", "--tcp-flags SYN,ACK SYN,ACK", "--tcp-flags ALL SYN", "--tcp-flags SYN,RST,ACK SYN",
            "! --tcp-flags FIN,SYN,RST,ACK SYN", "--tcp-flags RST RST", "--tcp-flags ALL NONE",
        )  # fmt: skip
        return f"-m tcp {r.choice(words)}", "tcp"

    def _m_multiport(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        flag = r.choice(("--dports", "--dports", "--sports", "--ports"))
        ports = r.choice((f"{p.port},443", "22,80,8000:8999", "1:1023,30080", "30000:40000"))
        return f"-m multiport {self._not()}{flag} {ports}", p.proto

    def _m_addrtype(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        side = r.choice(("--dst-type", "--dst-type", "--src-type"))
        kind = r.choice(("LOCAL", "LOCAL", "UNICAST", "LOCAL,UNICAST", "BROADCAST"))
        limit = ""
        if r.random() < 0.2:
            if self.hook in ("PREROUTING", "INPUT", "FORWARD"):
                limit = " --limit-iface-in"
            elif self.hook in ("POSTROUTING", "OUTPUT"):
                limit = " --limit-iface-out"
        if self.family == 6 and kind == "BROADCAST":
            kind = "LOCAL"
        return f"-m addrtype {self._not()}{side} {kind}{limit}", None

    def _m_mark(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        name = r.choice(("mark", "mark", "connmark"))
        return (
            f"-m {name} {self._not()}--mark {r.choice(('0x1', '0x1/0x1', '0x2/0x2', '0x0', '0x4000/0x4000'))}",
            None,
        )

    def _m_conntrack(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        if r.random() < 0.3:
            return (
                f"-m state {self._not()}--state {r.choice(('NEW', 'ESTABLISHED,RELATED', 'INVALID', 'UNTRACKED'))}",
                None,
            )
        states = r.choice((
            "NEW", "RELATED,ESTABLISHED", "INVALID", "INVALID,UNTRACKED", "DNAT", "SNAT", "NEW,DNAT",
            "RELATED", "ESTABLISHED",
            "UNTRACKED",
        ))  # fmt: skip
        return f"-m conntrack {self._not()}--ctstate {states}", None

    def _m_ct_fields(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        bits = 32 if self.family == 4 else 128
        ip = r.choice((p.dst, self.source_of(p), self.ip(r.choice(_TARGETS))))
        what = r.choice((
            f"--ctorigdst {ip}/{bits}", f"--ctorigsrc {ip}/{bits - 8}", f"--ctreplsrc {ip}/{bits}",
            f"--ctrepldst {ip}/{bits}",
            f"--ctorigdstport {p.port}", "--ctreplsrcport 80:8080", "--ctdir ORIGINAL", "--ctdir REPLY",
            f"--ctproto {p.proto}",
            "--ctstatus SEEN_REPLY", "--ctstatus CONFIRMED", "--ctstatus NONE", "--ctorigsrcport 1024:65535",
        ))  # fmt: skip
        if what.startswith("--ctdir"):
            return f"-m conntrack {what}", None
        return f"-m conntrack {self._not()}{what}", None

    def _m_iprange(self, p: Packet) -> tuple[str, str | None]:
        side, ip = self.r.choice((("--src-range", self.source_of(p)), ("--dst-range", p.dst)))
        return f"-m iprange {self._not()}{side} {ip}-{ip}", None

    def _m_set(self, p: Packet) -> tuple[str, str | None]:
        if self.node not in self.case.sets:
            return "", None
        r = self.r
        name, directions = r.choice((
            ("ktpip", ("src", "dst")), ("ktpnet", ("src", "dst")), ("ktpipport", ("dst,dst", "src,dst", "src,src")),
            ("ktpnetport", ("dst,dst", "src,dst")), ("ktpport", ("dst", "src")), ("ktplist", ("dst,dst",
            "src,dst", "dst")),
            ("ktpipportip", ("dst,dst,src",)), ("ktpipportnet", ("dst,dst,src",)), ("ktpnetif", ("src,src", "dst,src")),
            *((("ktpbip", ("src", "dst")),) if self.family == 4 else ()),
        ))  # fmt: skip
        return f"-m set {self._not()}--match-set {name} {r.choice(directions)}", None

    def _m_physdev(self, p: Packet) -> tuple[str, str | None]:
        r = self.r
        words = ["--physdev-in vq-+", "--physdev-is-in", "--physdev-in eth0"]
        if self.hook in ("FORWARD", "POSTROUTING"):
            words += ["--physdev-is-bridged", "--physdev-is-bridged", "--physdev-is-bridged"]
            if self.hook == "POSTROUTING" or "bridged" in words[-1]:
                words += ["--physdev-out vq-+ --physdev-is-bridged"]
        if self.hook in ("OUTPUT", ""):
            return "", None
        text = r.choice(words)
        if " --" in text:
            return f"-m physdev {text}", None
        return f"-m physdev {self._not()}{text}", None

    def _m_odd(self, p: Packet) -> tuple[str, str | None]:
        r, six = self.r, self.family == 6
        hl = "-m hl --hl-" if six else "-m ttl --ttl-"
        words = [
            "-m comment --comment \"two words\"", "-m statistic --mode random --probability 0.50000000000",
            "-m statistic --mode random --probability 1.00000000000",
            "-m statistic --mode random --probability 0.00000000000",
            "-m limit --limit 10000/sec --limit-burst 10000", "-m policy --dir in --pol none", f"{hl}eq 64",
            f"{hl}lt 64",
            f"{hl}gt 1", "-m dscp --dscp 0x00", "-m dscp ! --dscp 0x08", "-m tos --tos 0x00/0xff",
            "-m tos ! --tos 0x10/0x3f",
            "-m length --length 0:2000", "-m length ! --length 0:27",
            "-m quota --quota 100000000", "-m helper --helper ftp", "-m connlimit --connlimit-upto 10000",
            "-m pkttype --pkt-type unicast", "-m pkttype ! --pkt-type broadcast", "-m realm --realm 0x1",
            "-m connlimit --connlimit-above 0", "-m hashlimit --hashlimit-upto 10000/sec --hashlimit-burst 10000 "
            "--hashlimit-name ktp",
        ]  # fmt: skip
        if p.proto == "tcp":
            words.append("-p tcp -m length --length 2000:3000")
        if self.table in ("raw", "mangle") and self.hook == "PREROUTING":
            words += [
                "-m rpfilter",
                "-m rpfilter --invert",
                "-m rpfilter --loose",
                "-m rpfilter --validmark",
                "-m rpfilter --invert",
            ]
        if self.hook in ("OUTPUT", "POSTROUTING"):
            words = [w for w in words if "--dir in" not in w]
            if r.random() < 0.1:
                return "-m owner --uid-owner 0-1000", None
        if self.hook == "":
            words = [w for w in words if "--dir in" not in w]
        text = r.choice(words)
        return (text.removeprefix("-p tcp "), "tcp") if text.startswith("-p") else (text, None)

    # -- targets

    def _target(self, p: Packet, further: list[str]) -> tuple[str, str | None]:
        r, table, hook = self.r, self.table, self.hook
        if further and r.random() < (0.5 if hook else 0.2):
            return f"-{r.choice('jjjg')} {r.choice(further)}", None
        options: list[tuple[str, str | None]] = [("-j ACCEPT", None), ("-j RETURN", None), ("", None)]
        options += [
            (r.choice(("-j LOG --log-prefix ktp --log-level 7", "-j NFLOG --nflog-group 3")), None)
        ] * (r.random() < 0.15)
        mark = r.choice((
            "-j MARK --set-xmark 0x1/0xffffffff", "-j MARK --set-xmark 0x2/0x2", "-j MARK --set-xmark 0x4000/0x4000",
            "-j MARK --set-xmark 0x0/0x1", "-j MARK --set-mark 0x3/0x1", "-j MARK --and-mark 0xfffffffe",
        ))  # fmt: skip
        options.append((mark, None))
        if r.random() < 0.5:
            options.append((r.choice((
                "-j CONNMARK --save-mark", "-j CONNMARK --restore-mark", "-j CONNMARK --set-xmark 0x1/0x1",
                "-j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1",
            )), None))  # fmt: skip
        if table == "filter":
            options += [("-j DROP", None), ("-j ACCEPT", None)]
            if hook in ("INPUT", "FORWARD", "OUTPUT", ""):
                kind = r.choice(_REJECTS[self.family])
                options += [(f"-j REJECT --reject-with {kind}", "tcp" if kind == "tcp-reset" else None)] * 2
        elif table == "nat":
            options = [*options[:3], *self._nat(p), *self._nat(p), *self._nat(p), (mark, None)]
        elif table == "raw":
            options += [(r.choice(("-j CT --notrack", "-j NOTRACK")), None), ("-j DROP", None)]
        elif table == "mangle":
            options += [
                (r.choice(("-j TOS --set-tos 0x10/0xff", "-j TOS --or-tos 0x08", "-j DSCP --set-dscp 0x08")), None),
                ("-j TCPMSS --clamp-mss-to-pmtu", "syn"), ("-j DROP", None), (mark, None), (mark, None),
            ]  # fmt: skip
            if r.random() < 0.3:
                options.append(("-j HL --hl-set 3" if self.family == 6 else "-j TTL --ttl-set 3", None))
            if r.random() < 0.1:
                options.append(("-j HL --hl-dec 63" if self.family == 6 else "-j TTL --ttl-dec 63", None))
        else:
            options += [("-j DROP", None)]
        text, needs = r.choice(options)
        if needs == "syn":
            return (
                ("", None)
                if hook in ("INPUT", "PREROUTING", "")
                else (f"-m tcp --tcp-flags SYN,RST SYN {text}", "tcp")
            )
        return text, needs

    def _nat(self, p: Packet) -> list[tuple[str, str | None]]:
        r, hook = self.r, self.hook
        out: list[tuple[str, str | None]] = []
        if hook in ("PREROUTING", "OUTPUT"):
            name = r.choice(_TARGETS)
            port = r.choice((80, 8080, 8080, 443, 30081))
            if name in ("pa1", "pa2", "qa1", "qa2", "pb1", "qb1", "srv") or r.random() < 0.8:
                ip = self.ip(name)
                if r.random() < 0.8:
                    text = f"[{ip}]:{port}" if self.family == 6 else f"{ip}:{port}"
                    out += [(f"-j DNAT --to-destination {text}", p.proto)] * 3
                else:
                    out.append((f"-j DNAT --to-destination {ip}", None))
            out.append((r.choice(("-j REDIRECT", f"-j REDIRECT --to-ports {port}")), p.proto))
            if r.random() < 0.3:
                out.append((f"-j NETMAP --to {self.net_of(r.choice(('pa1', 'pb1', 'qa1')))}", None))
        elif hook == "POSTROUTING":
            out += [("-j MASQUERADE", None)] * 3
            out += [
                (
                    f"-j SNAT --to-source {self.ip(self.node + r.choice(('', '.second', '.dummy')))}",
                    None,
                )
            ]
            out.append(
                (r.choice(("-j MASQUERADE --random-fully", "-j MASQUERADE --to-ports 20000-30000")), p.proto)
            )
        elif hook == "INPUT":
            out += [(f"-j SNAT --to-source {self.ip(r.choice(('srv', 'c1', 'vip.a', 'dead')))}", None)]
        return out
