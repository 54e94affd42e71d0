"""One node's state, compiled for lookups: addresses, sysctls, routes, sockets, sets."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address

from ktp.dataplane.cilium import Programs
from ktp.dataplane.ipset import Tester, compile_set
from ktp.dataplane.ipvs import VirtualServers
from ktp.dataplane.packet import LOCAL_PORTS, PROTOCOL_NAMES, Packet, Port
from ktp.dataplane.routing import LOCAL, Fib, Lookup
from ktp.model.assumption import POD_AS_MADE, Assumption, EvidenceKind
from ktp.model.host import Interface, InterfaceAddress, ListeningSocket, NodeState, Route

# Protocol, source, destination and its port, of a packet as nat sends it on; addresses as numbers.
Towards = tuple[str, int, int, int]

_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}
_TYPE_NAMES = {
    "unicast": "UNICAST",
    "local": "LOCAL",
    "broadcast": "BROADCAST",
    "anycast": "ANYCAST",
    "multicast": "MULTICAST",
    "blackhole": "BLACKHOLE",
    "unreachable": "UNREACHABLE",
    "prohibit": "PROHIBIT",
    "throw": "THROW",
}


def interface_matches(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern`, or begins with it where it ends in "+"."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


_ROUTED6 = frozenset(("LOCAL", "ANYCAST", "BLACKHOLE", "PROHIBIT", "UNREACHABLE"))


# What is said of a node whose network was not read, where a packet meets it; its sockets are asked for by port.
_TAKEN = {
    EvidenceKind.ADDRESSES: "the addresses are those that the routes or the API's Node tell",
    EvidenceKind.ROUTES: "the routes are those that follow from the addresses and from where pods run",
    EvidenceKind.ROUTING_RULES: "there are no routing rules but the usual three",
    EvidenceKind.SETS: "kube-proxy's ipsets hold what the API's Services ask for",
    EvidenceKind.SYSCTLS: "sysctls are as kubelet and kube-proxy set them (net.ipv4.ip_forward is 1)",
}


class Host:
    """A node as the dataplane sees it.

    A node of which only rules are known (`has_network` False) answers for addresses from `assumed_local`, the
    addresses that the question takes to be its own, and does not know interfaces or routes.
    """

    def __init__(
        self,
        state: NodeState,
        assumed_local: frozenset[tuple[int, int]] = frozenset(),
        *,
        node: str | None = None,
    ) -> None:
        """Compile `state`; `assumed_local` holds (family, number) pairs. A pod's namespace has the `node` it is on."""
        self.state = state
        self.name = state.name
        self.sides: dict[int, object] = {}  # what `ktp.dataplane.order_told` keeps, by family
        self.node = state.name if node is None else node
        self.pod = state.name if node is not None else ""
        self.has_ipsec = state.xfrm is not None and bool(state.xfrm.policies)
        self.interfaces: dict[str, Interface] = {i.name: i for i in state.interfaces or ()}
        routes = state.routes
        if routes is None and state.interfaces is not None:
            routes = _routes_from_addresses(state.interfaces)
        self.has_network = routes is not None
        self.fib = {
            4: Fib(4, routes or (), state.rules4),
            6: Fib(6, routes or (), state.rules6),
        }
        self._assumed_local = assumed_local
        servers = state.ipvs
        self.virtual_servers = VirtualServers(servers) if servers is not None and servers.services else None
        readable = state.cilium is not None and state.cilium.is_readable and self.has_network
        self.cilium = Programs(state.name, state.cilium) if readable and state.cilium is not None else None
        self._addresses: dict[tuple[int, int], tuple[Interface, InterfaceAddress]] = {}
        for interface in state.interfaces or ():
            for address in interface.addresses:
                self._addresses.setdefault((address.ip.version, int(address.ip)), (interface, address))
        self._sysctls: Mapping[str, str] = state.sysctls or {}
        supposed = state.supposed if node is None else ()
        every = [Assumption(words, kind, state.name) for kind, words in _TAKEN.items() if kind in supposed]
        self.taken = {4: list(every), 6: list(every)}
        for key in state.supposed_sysctls:
            words = f"{key} is {self._sysctls[key]}, which sysctl.txt does not have"
            family = 6 if key.startswith("net.ipv6.") else 4
            self.taken[family].append(Assumption(words, EvidenceKind.SYSCTLS, state.name))
        if node is not None:
            for family, taken in self.taken.items():
                if state.supposed or not state.knows_rules_of(family):
                    taken.append(POD_AS_MADE)
        self._sets: dict[str, Tester | None] = {}
        self._conf: dict[tuple[str, str], int] = {}
        self._taken_ports: dict[Towards, dict[int, bool]] | None = None
        self._types: dict[tuple[int, int, str | None], str | None] = {}

    def taken_ports(self, towards: Towards) -> Mapping[int, bool]:
        """The source ports of tracked connections, by what their answers look like; False for those that have ended."""
        if self._taken_ports is None:
            self._taken_ports = {}
            for each in self.state.tracked or ():
                back = each.reply
                key = each.protocol, int(back.dst), int(back.src), back.sport
                self._taken_ports.setdefault(key, {})[back.dport] = not each.is_closing
        return self._taken_ports.get(towards, {})

    # -- addresses

    def device_at(self, index: int) -> str | None:
        """The device with an index."""
        return next((i.name for i in self.interfaces.values() if index and i.index == index), None)

    def owns(self, family: int, ip: int) -> bool:
        """Whether the address is one of an interface of this node."""
        return (family, ip) in self._addresses or (family, ip) in self._assumed_local

    def interface_of(self, family: int, ip: int) -> str | None:
        """The interface that holds the address."""
        found = self._addresses.get((family, ip))
        return found[0].name if found else None

    def port_matches(self, bridge: str | None, pattern: str) -> bool | None:
        """Whether the ports of a bridge match an interface pattern; None where some do and some do not."""
        answers = {interface_matches(pattern, i.name) for i in self.interfaces.values() if i.master == bridge}
        return answers.pop() if len(answers) == 1 else None

    def own_addresses(self) -> list[tuple[int, int, str]]:
        """(family, number, interface) of every address."""
        return [(f, n, i.name) for (f, n), (i, _) in self._addresses.items()]

    def address_type(self, family: int, ip: int, dev: str | None = None) -> str | None:
        """Type of an address as `addrtype` and `fib` name it (__inet_dev_addr_type: the local table alone)."""
        key = (family, ip, dev)
        if key in self._types:
            return self._types[key]
        answer = self._address_type(family, ip, dev)
        self._types[key] = answer
        return answer

    def _address_type(self, family: int, ip: int, dev: str | None) -> str | None:
        if not self.has_network:
            if (family, ip) in self._assumed_local:
                return "LOCAL"
            if (family == 4 and ip >> 24 == 127) or (family == 6 and ip == 1):
                return "LOCAL"
            return "UNICAST"
        if family == 4:
            if ip >> 24 == 0 or ip == 0xFFFFFFFF:
                return "BROADCAST"
            if ip >> 28 == 0xE:
                return "MULTICAST"
        elif ip >> 120 == 0xFF:
            return "MULTICAST"
        found = self.fib[family].in_table(LOCAL, ip, dev)
        if found is None:
            return "UNICAST"
        return _TYPE_NAMES.get(found[0].type, "UNICAST")

    def fib_type6(self, p: Packet, *, source: bool, mark: bool, dev: str | None) -> str | None:
        """Type of an address of a packet as `fib` names it in IPv6: by a whole route lookup (nft_fib6_eval_type)."""
        ip, other = (p.src, p.dst) if source else (p.dst, p.src)
        if not self.has_network:
            found_type = self.address_type(6, ip, dev)
            return None if found_type is None else found_type.lower()
        found = self.fib[6].lookup(ip, src=other, mark=p.mark if mark else 0, iif="lo", proto=p.proto)
        if found.type == "unknown":
            return None
        if found.type in ("blackhole", "prohibit"):
            return found.type
        if found.type not in ("unicast", "local", "anycast", "multicast"):
            return "unreachable"
        if found.type == "anycast":
            return "anycast"
        if self.interface_of(6, ip) == dev if dev is not None else found.type == "local":
            return "local"
        return "multicast" if ip >> 120 == 0xFF else "unicast"

    def has_address_type6(self, ip: int, wanted: frozenset[str], dev: str | None) -> bool:
        """The `addrtype` match in IPv6 (match_type6): UNICAST, MULTICAST and UNSPEC must hold, of the rest one."""
        multicast = ip >> 120 == 0xFF
        if "MULTICAST" in wanted and not multicast:
            return False
        if "UNICAST" in wanted and (multicast or ip == 0):
            return False
        if "UNSPEC" in wanted and ip != 0:
            return False
        routed = wanted & _ROUTED6
        if not routed:
            return True
        if not self.has_network:
            return "LOCAL" in routed and self.is_local(6, ip)
        found = self.fib[6].lookup(ip, iif="lo", oif=dev)
        kinds = set()
        if dev is not None:
            if self.interface_of(6, ip) == dev:
                kinds.add("LOCAL")
        elif found.type == "local":
            kinds.add("LOCAL")
        if found.type in ("unreachable", "hostunreach"):
            kinds.add("UNREACHABLE")
        elif found.type in ("anycast", "blackhole", "prohibit"):
            kinds.add(found.type.upper())
        return bool(routed & kinds)

    def is_local(self, family: int, ip: int) -> bool:
        """Whether a packet to this address is for this node."""
        return self.address_type(family, ip) == "LOCAL"

    def select_source(self, family: int, dev: str | None, dst: int, scope: str = "global") -> int | None:
        """The source address for a packet out of `dev` (inet_select_addr; ipv6_dev_get_saddr in short)."""
        if family == 6:
            return self._select_source6(dev, dst)
        limit = _SCOPES.get(scope, 0)
        interface = self.interfaces.get(dev or "")
        chosen: int | None = None
        if interface is not None:
            ceiling = (
                _SCOPES["link"] if self.conf("ipv4", interface.name, "route_localnet") else _SCOPES["host"]
            )
            for a in interface.addresses:
                if a.ip.version != 4 or a.secondary:
                    continue
                if min(_SCOPES.get(a.scope, 0), ceiling) > limit:
                    continue
                number = int(a.ip)
                shift = 32 - a.prefixlen
                if dst >> shift == number >> shift:
                    return number
                if chosen is None:
                    chosen = number
        if chosen is not None:
            return chosen
        for other in sorted(self.interfaces.values(), key=lambda i: i.index):
            for a in other.addresses:
                if (
                    a.ip.version == 4
                    and not a.secondary
                    and a.scope != "link"
                    and _SCOPES.get(a.scope, 0) <= limit
                ):
                    return int(a.ip)
        return None

    def _select_source6(self, dev: str | None, dst: int) -> int | None:
        best: tuple[tuple[int, ...], int] | None = None
        dst_scope = _scope6(dst)
        for interface in self.interfaces.values():
            for a in interface.addresses:
                if a.ip.version != 6:
                    continue
                number = int(a.ip)
                scope = _scope6(number)
                if scope == 2 and interface.name != dev:
                    continue  # a link-local address serves its own link only
                # RFC 6724 rules 1, 2, 3, 5, 6, 8
                enough = scope >= dst_scope
                rank = (
                    int(number == dst),
                    int(enough),
                    -scope if enough else scope,
                    int(not a.deprecated),
                    int(interface.name == dev),
                    int(_label6(number) == _label6(dst)),
                    min(_common(number, dst), a.prefixlen),  # ipv6_get_saddr_eval: no further than the prefix
                )
                if best is None or rank > best[0]:
                    best = (rank, number)
        return best[1] if best else None

    # -- sysctls

    def sysctl(self, key: str) -> int | None:
        """The value as a number, None where it was not read or is none."""
        text = self._sysctls.get(key)
        try:
            return int(text.split()[0], 0) if text else None
        except ValueError:
            return None

    def local_ports(self) -> tuple[int, int]:
        """The ports that the node's own processes connect from (net.ipv4.ip_local_port_range)."""
        words = self._sysctls.get("net.ipv4.ip_local_port_range", "").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            return int(words[0]), int(words[1])
        return LOCAL_PORTS

    def conf(self, family: str, interface: str, name: str) -> int:
        """`net.FAMILY.conf.INTERFACE.NAME` joined with `all` as the kernel does (IN_DEV_*CONF).

        rp_filter takes the larger, route_localnet either, forwarding the interface's own; a key that is not in the
        snapshot counts as `default`'s, and that as the kernel's 0.
        """
        key = (interface, family + name)
        value = self._conf.get(key)
        if value is None:
            value = self._read_conf(family, interface, name)
            self._conf[key] = value
        return value

    def _read_conf(self, family: str, interface: str, name: str) -> int:
        prefix = f"net.{family}.conf"
        every = self.sysctl(f"{prefix}.all.{name}") or 0
        own = self.sysctl(f"{prefix}.{interface}.{name}")
        if name == "forwarding":
            if own is not None:
                return own
            overall = self.sysctl("net.ipv4.ip_forward") if family == "ipv4" else None
            if overall is None:
                overall = self.sysctl(f"{prefix}.all.forwarding")
            return 1 if overall is None else overall
        if own is None:
            own = self.sysctl(f"{prefix}.default.{name}") or 0
        if name in ("rp_filter", "arp_ignore"):
            return max(every, own)
        if name == "src_valid_mark":
            return every or own
        if name in ("accept_local", "route_localnet", "proxy_arp"):
            return every or own
        return own

    # -- routes

    def route(self, p: Packet, *, iif: str | None, src: int | None = None) -> Lookup:
        """The route for the packet's destination; `iif` "lo" for what this node sends itself."""
        return self.fib[p.family].lookup(
            p.dst,
            src=p.src if src is None else src,
            mark=p.mark,
            iif=iif,
            tos=p.tos & 0x1C,
            proto=p.proto,
            sport=p.sport,
            dport=p.dport,
        )

    def mtu(self, route: Route | None, device: str | None) -> int | None:
        """How many bytes what is sent by a route may have (ip_dst_mtu_maybe_forward); None where that was not read."""
        if route is not None and route.mtu:
            return route.mtu
        interface = self.interfaces.get(device or "")
        return interface.mtu if interface is not None else None

    def validate_source(self, p: Packet, iif: str, oif: str | None) -> str | None:
        """Why a packet that came in on `iif` is dropped for its source, or None (fib_validate_source).

        `oif` is the interface that it is routed to, None where it is for the node itself.
        """
        if p.family != 4 or not self.has_network:
            return None
        fib = self.fib[4]
        rpf = self.conf("ipv4", iif, "rp_filter")
        accept_local = self.conf("ipv4", iif, "accept_local")
        own = "its source is an address of the node itself (martian source)"
        if not rpf and oif != iif:
            if accept_local:
                return None
            if not fib.has_custom_rules:
                return own if self.owns(4, p.src) else None
        mark = p.mark if self.conf("ipv4", iif, "src_valid_mark") else 0
        back = fib.lookup(p.src, src=p.dst, mark=mark, iif=oif or "lo", tos=p.tos & 0x1C, **fib.flow_back(p))
        if back.type == "unknown":
            return None
        no_way = f"no route leads back to its source (rp_filter={rpf})" if rpf else None
        if back.type in ("unreachable", "hostunreach", "prohibit", "blackhole") or back.route is None:
            return no_way
        if back.type == "local":
            if not accept_local:
                return own
            if iif == "lo":
                return None
        elif back.type != "unicast":
            return "no unicast route leads back to its source (martian source)"
        if any(h.dev == iif for h in back.route.nexthops):
            return None
        interface = self.interfaces.get(iif)
        if interface is not None and not any(a.ip.version == 4 for a in interface.addresses):
            return self._rp_words(rpf, iif, back) if rpf else None
        if rpf == 1:
            return self._rp_words(rpf, iif, back)
        return None

    @staticmethod
    def _rp_words(rpf: int, iif: str, back: Lookup) -> str:
        dev = back.route.dev if back.route is not None else None
        return f"the way back to its source is {dev}, not {iif} (rp_filter={rpf})"

    def rpfilter(self, p: Packet, *, loose: bool, validmark: bool, accept_local: bool) -> bool | None:
        """The `rpfilter` match (xt ipt_rpfilter.c)."""
        if not self.has_network:
            return None
        iif = p.iif
        if iif is None or iif == "lo":
            return True
        back = self.fib[p.family].lookup(
            p.src, src=p.dst, mark=p.mark if validmark else 0, iif="lo", tos=p.tos & 0x1C
        )
        if back.route is None or back.type not in ("unicast", "local"):
            return False
        if back.type == "local" and not accept_local:
            return False
        return loose or any(h.dev == iif for h in back.route.nexthops)

    # -- sockets and sets

    def listener(
        self, family: int, proto: int, ip: int, port: Port, iif: str | None
    ) -> ListeningSocket | bool | None:
        """The socket that takes a packet to ip:port; False where none does; None where sockets were not read."""
        if self.state.sockets is None:
            return None
        name = PROTOCOL_NAMES.get(proto)
        best: ListeningSocket | None = None
        for s in self.state.sockets:
            if s.port != port or s.protocol != name:
                continue
            if s.interface is not None and iif is not None and s.interface != iif:
                continue
            if s.ip is None:
                if s.family in (0, family):
                    best = best or s
            elif s.ip.version == family and int(s.ip) == ip:
                return s
        return best if best is not None else False

    def is_queue_full(self, socket: ListeningSocket) -> bool:
        """Whether connections to the socket, and to those that share its port (SO_REUSEPORT), are dropped."""
        return all(s.is_full for s in self.state.sockets or () if s.place == socket.place)

    def in_set(self, name: str, p: Packet, directions: str) -> bool | None:
        """Whether the packet is in ipset `name`; None where the set was not dumped."""
        if name not in self._sets:
            self._sets[name] = compile_set(name, self.state.ipsets) if self.state.ipsets is not None else None
        tester = self._sets[name]
        return tester(p, directions) if tester is not None else None


def _scope6(ip: int) -> int:
    if ip >> 118 == 0x3FA:  # fe80::/10
        return 2
    if ip == 1:
        return 1
    return 14


def _label6(ip: int) -> int:
    if ip == 1:
        return 0
    if ip >> 121 == 0x7E:  # fc00::/7
        return 13
    if ip >> 32 == 0xFFFF:
        return 4
    if ip >> 112 == 0x2002:
        return 2
    if ip >> 96 == 0x20010000:
        return 5
    return 1


def _common(a: int, b: int) -> int:
    return 128 - (a ^ b).bit_length()


def _routes_from_addresses(interfaces: tuple[Interface, ...]) -> tuple[Route, ...]:
    """The routes that the kernel makes for addresses: what is left where `ip route` was not read."""
    from ipaddress import ip_network

    from ktp.model.host import NextHop

    out: list[Route] = []
    for i in interfaces:
        for a in i.addresses:
            hop = (NextHop(dev=i.name),)
            bits = a.ip.max_prefixlen
            out.append(
                Route(
                    dst=ip_network((a.ip, bits)),
                    type="local",
                    table=LOCAL,
                    nexthops=hop,
                    prefsrc=a.ip,
                    scope="host",
                )
            )
            net = ip_network((a.ip, a.prefixlen), strict=False)
            if i.is_loopback and not isinstance(a.ip, IPv6Address):
                out.append(
                    Route(dst=net, type="local", table=LOCAL, nexthops=hop, prefsrc=a.ip, scope="host")
                )
            elif a.prefixlen < bits:
                out.append(
                    Route(dst=net, nexthops=hop, prefsrc=a.ip if a.ip.version == 4 else None, scope="link")
                )
    return tuple(out)
