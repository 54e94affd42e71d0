"""Random virtual servers for the laboratory, and rules that meet what they do. Everything follows from one seed."""

from __future__ import annotations

import random

from tests.kernel.drawing import Case, Packet
from tests.kernel.generator import HOOKS, Maker
from tests.kernel.lab import NODES, POD_PORTS

_SCHEDULERS = ("rr", "rr", "rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq", "lblc", "lblcr", "fo")
_REAL = ("pa1", "pa2", "qa1", "qa2", "pb1", "qb1", "pa1", "pb1", "srv", "a", "b", "a.dummy", "dead")
_VIRTUAL = ("vip.a", "vip.a", "vip.a2", "a", "a.second", "a.eth1", "a.dummy")
_MARK = 7


def make_case(seed: int, size: int = 12) -> Case:
    """The case of a seed, with `size` packets; node a has virtual servers, sometimes b too."""
    r = random.Random(seed)
    case = Case(seed, 6 if r.random() < 0.25 else 4)
    node = r.choice("aaab")
    maker = IpvsMaker(case, r, node)
    case.packets = [maker.any_packet() for _ in range(size)]
    case.ipvs[node] = maker.virtual_servers()
    case.rules[node, "legacy"] = maker.rules()
    maker.settings()
    case.sysctls[node] = {**case.sysctls.get(node, {}), **maker.ipvs_settings()}
    case.commands[node] = [*case.commands.get(node, ()), *maker.addresses()]
    # The router swallows virtual addresses: the other node has a way of its own to those that are this node's.
    network, via = ("10.96.{}.0/24", "10.1.0.{}") if case.family == 4 else ("fd00:96:{}::/64", "fd00:1::{}")
    number = NODES.index(node) + 1
    way = f"-{case.family} route add {network.format(number)} via {via.format(number + 10)}"
    case.commands.setdefault(maker.other, []).append(way)
    maker.own_clients()
    return case


def _with_rules(lines: list[str], added: list[tuple[str, str]]) -> str:
    """An iptables-save text with further rules: (table, rule)."""
    for table, rule in added:
        head = f"*{table}"
        if head not in lines:
            lines += [head, *(f":{hook} ACCEPT [0:0]" for hook in HOOKS[table]), "COMMIT"]
        lines.insert(lines.index("COMMIT", lines.index(head)), rule)
    return "\n".join(lines) + "\n"


class IpvsMaker(Maker):
    """Draws the virtual servers of one node, and its rules around them."""

    def __init__(self, case: Case, r: random.Random, node: str) -> None:
        super().__init__(case, r, node)
        self.other = NODES[1 - NODES.index(node)]
        self.kinds: list[tuple[str, str, int]] = []  # protocol, address, port of virtual servers
        self.marked = False

    def mine(self, name: str) -> str:
        """A name of node a, as that of the node that is drawn for."""
        if self.node == "a":
            return name
        return {"vip.a": "vip.b", "vip.a2": "vip.b"}.get(name, "b" + name[1:] if name[0] == "a" else name)

    def any_packet(self) -> Packet:
        """Most packets are for what may be a virtual server."""
        packet = self.packet()
        if self.r.random() < 0.2:
            return packet
        name = self.mine(self.r.choice(_VIRTUAL))
        if packet.host == "c2" and name.endswith("dummy"):
            name = self.node
        via = self.node if name.startswith("vip") and packet.host in ("c1", "c2", "srv") else None
        return Packet(packet.host, self.ip(name), packet.port, packet.proto, packet.src, via)

    def virtual_servers(self) -> str:
        """What `ipvsadm -R` reads."""
        r, lines = self.r, []
        for p in r.sample(self.case.packets, k=r.choice((2, 4, 6, 8))):
            key = (p.proto, p.dst, p.port)
            if key in self.kinds:
                continue
            self.kinds.append(key)
            where = f"[{p.dst}]:{p.port}" if self.family == 6 else f"{p.dst}:{p.port}"
            lines += self._server(f"-{p.proto[0]} {where}", own_port=None)
        if r.random() < 0.15:
            every = f"[{p.dst}]:0" if self.family == 6 else f"{p.dst}:0"
            lines += self._server(f"-{p.proto[0]} {every}", own_port=0)
        if r.random() < 0.2:
            self.marked = True
            lines += self._server(f"-f {_MARK}{' -6' if self.family == 6 else ''}", own_port=0)
        return "\n".join(lines) + "\n"

    def _server(self, what: str, own_port: int | None) -> list[str]:
        r = self.r
        persistent = r.random() < 0.15 or what.endswith(":0")
        flags = f" -p {r.choice((300, 10800))}" if persistent else ""
        if persistent and r.random() < 0.3:
            flags += " -M 64" if self.family == 6 else " -M 255.255.255.0"
        lines = [f"-A {what} -s {r.choice(_SCHEDULERS)}{flags}"]
        seen = set()
        for name in r.sample(_REAL, k=r.choice((0, 1, 1, 2, 3))):
            ip = self.ip(self.mine(name))
            port = own_port if own_port is not None else r.choice((*POD_PORTS[:3], 8080, 30081))
            if (ip, port) in seen:
                continue
            seen.add((ip, port))
            real = f"[{ip}]:{port}" if self.family == 6 else f"{ip}:{port}"
            method = "m"
            if (
                name == "a" and ":" in what and r.random() < 0.3
            ):  # to this node itself what is not rewritten goes on as it is
                method, real = r.choice("gi"), real.replace(f":{port}", f":{what.rpartition(':')[2]}")
            lines.append(f"-a {what} -r {real} -{method} -w {r.choice((1, 1, 1, 2, 5, 0))}")
        return lines

    def addresses(self) -> list[str]:
        """The virtual addresses on a device of the node: one that is up, or kube-proxy's kube-ipvs0, which is down."""
        r = self.r
        if r.random() < 0.1:
            return []
        device = r.choice(("kube-ipvs0", "dummy0"))
        out = [f"link add {device} type dummy"] if device == "kube-ipvs0" else []
        bits, flags = (128, " nodad") if self.family == 6 else (32, "")
        version = "-6 " if self.family == 6 else ""
        for name in sorted({self.mine("vip.a"), self.mine("vip.a2")}):
            out.append(f"{version}addr add {self.ip(name)}/{bits} dev {device}{flags}")
        return out

    def ipvs_settings(self) -> dict[str, str]:
        """The sysctls of IPVS that change what a first packet meets."""
        r, out = self.r, {}
        if r.random() < 0.6:
            out["net/ipv4/vs/conntrack"] = "1"
        if r.random() < 0.1:
            out["net/ipv4/vs/snat_reroute"] = "0"
        return out

    def rules(self) -> str:
        """Half of the time any rules at all, else only those that people have beside IPVS."""
        text = self.ruleset(shared=False) if self.r.random() < 0.4 else ""
        return _with_rules(text.splitlines(), self._beside())

    def own_clients(self) -> None:
        """Processes of the node dial virtual servers, also by a mark of their own, and filter asks for what is NEW.

        A real server's SYN-ACK is INVALID where IPVS works without conntrack, and its next segment is NEW. Drawn last:
        what else a seed draws stays what it was.
        """
        r, case = self.r, self.case
        case.heard = r.random() < 0.7
        if not case.heard:
            return
        # Rules that people have beside IPVS, and no others: what these do to later packets is not walked.
        beside = self._beside()
        if (marked := r.random() < 0.5) and not self.marked:
            mark = f"-f {_MARK}{' -6' if self.family == 6 else ''}"
            case.ipvs[self.node] += "\n".join(self._server(mark, own_port=0)) + "\n"
        for number in r.sample(range(len(case.packets)), k=len(case.packets) // 2):
            p = case.packets[number]
            address = self.ip(self.mine(r.choice(_VIRTUAL)))
            case.packets[number] = Packet(self.node, address, p.port, r.choice(("tcp", "tcp", p.proto)))
        for p in r.sample(case.packets, k=2) if marked else ():
            hook = "OUTPUT" if p.host == self.node else "PREROUTING"
            port = f"-p {p.proto} -m {p.proto} --dport {p.port}"
            beside.append(("mangle", f"-A {hook} {port} -j MARK --set-mark {_MARK}"))
        if r.random() < 0.7:
            hook = r.choice(("INPUT", "INPUT", "FORWARD", "OUTPUT"))
            virtual = self.ip(self.mine("vip.a"))
            about = r.choice(("", f"-d {virtual} ", f"-s {virtual} "))
            states, target = r.choice(("NEW", "NEW", "INVALID", "NEW,INVALID")), r.choice(("DROP", "REJECT"))
            beside.append(("filter", f"-A {hook} {about}-m conntrack --ctstate {states} -j {target}"))
        case.rules[self.node, "legacy"] = _with_rules([], beside)

    def _m_odd(self, p: Packet) -> tuple[str, str | None]:
        """Without connlimit, which in the guest's Linux 6.1 drops errors that later kernels let pass."""
        while "connlimit" in (found := super()._m_odd(p))[0]:
            pass
        return found

    def _beside(self) -> list[tuple[str, str]]:
        r, out = self.r, []
        p = r.choice(self.case.packets)
        if self.marked:
            hook = r.choice(("PREROUTING", "PREROUTING", "OUTPUT"))
            out.append(
                ("mangle", f"-A {hook} -p {p.proto} -m {p.proto} --dport {p.port} -j MARK --set-mark {_MARK}")
            )
        if r.random() < 0.15:
            hook = r.choice(("PREROUTING", "OUTPUT"))
            out.append(("raw", f"-A {hook} -p {p.proto} -m {p.proto} --dport {p.port} -j NOTRACK"))
        if r.random() < 0.5:
            out.append(("nat", f"-A POSTROUTING {self._ipvs_match()} -j MASQUERADE"))
        elif r.random() < 0.5:
            out.append(("nat", "-A POSTROUTING -j MASQUERADE"))
        for _ in range(r.choice((0, 1, 1, 2))):
            table = r.choice(("filter", "filter", "mangle", "raw", "nat"))
            hook = r.choice(HOOKS[table])
            target = r.choice(("DROP", "ACCEPT", "MARK --set-xmark 0x1/0x1")) if table == "mangle" else r.choice(
                ("ACCEPT",) if table == "nat" else ("DROP", "ACCEPT")
            )  # fmt: skip
            out.append((table, f"-A {hook} {self._ipvs_match()} -j {target}"))
        return out

    def _ipvs_match(self) -> str:
        r = self.r
        if not self.kinds:
            return "-m ipvs --ipvs"
        proto, ip, port = r.choice(self.kinds)
        options = [
            f"--vproto {6 if proto == 'tcp' else 17}", f"--vaddr {ip}/{128 if self.family == 6 else 32}",
            f"--vport {port}", f"--vdir {r.choice(('ORIGINAL', 'REPLY'))}", f"--vmethod {r.choice(('MASQ', 'GATE'))}",
            f"--vportctl {port}",
        ]  # fmt: skip
        if r.random() < 0.3:
            return f"-m ipvs {self._not()}--ipvs"
        return "-m ipvs " + " ".join(self._not() + each for each in r.sample(options, k=r.choice((1, 2, 3))))
