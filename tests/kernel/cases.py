"""Named cases: what once was wrong in ktp, and the facts of the kernel that it stands on.

Each is a small ruleset and some packets. `test_regressions.py` runs them on the kernel; what the kernel did and said
of itself then is kept in `tests/unit/dataplane/recorded.json` (written by `record.py`), so that the model is held to
it where there is no kernel to ask.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.kernel.drawing import Case, Packet
from tests.kernel.lab import ADDRESSES, PODS


@dataclass(frozen=True)
class Named:
    """A case with its name and the reason for it. `counted`: the rules that matched are compared as well."""

    name: str
    why: str
    case: Case
    counted: bool = False


ALL: list[Named] = []
_HOOKS = {
    "raw": "PREROUTING OUTPUT", "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING", "filter": "INPUT FORWARD OUTPUT", "security": "INPUT FORWARD OUTPUT",
}  # fmt: skip


def add(
    name: str,
    why: str,
    packets: list[Packet],
    rules: dict[str, str] | None = None,
    *,
    backend: str = "nft",
    family: int = 4,
    counted: bool = False,
    sysctls: dict[str, dict[str, str]] | None = None,
    commands: dict[str, list[str]] | None = None,
    sets: dict[str, str] | None = None,
) -> None:
    """Enter a case. `rules`: node or node/back end → lines `table: -A …`; chains are made as they are met.

    `commands`: node → words of `ip` before its packets; ` add ` becomes ` del ` after them, and what stands behind ` / `
    takes anything else back. `sets`: node → `ipset restore`.
    """
    loaded = {}
    for key, text in (rules or {}).items():
        node, _, own = key.partition("/")
        loaded[node, own or backend] = save_text(text)
    case = Case(0, family, loaded, sets or {}, sysctls or {}, commands or {}, packets)
    ALL.append(Named(name, why, case, counted))


def save_text(text: str) -> str:
    """Lines `table: -A …` as iptables-restore reads them. `table: -P CHAIN POLICY` sets a policy."""
    tables: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        table, _, rule = line.strip().partition(": ")
        tables.setdefault(table, []).append(rule)
    out = []
    for table, rules in tables.items():
        policies = dict(r.split()[1:3] for r in rules if r.startswith("-P"))
        own = [
            r.split()[1] for r in rules if r.startswith("-A") and r.split()[1] not in _HOOKS[table].split()
        ]
        out.append(f"*{table}")
        out += [f":{hook} {policies.get(hook, 'ACCEPT')} [0:0]" for hook in _HOOKS[table].split()]
        out += [f":{chain} - [0:0]" for chain in dict.fromkeys(own)]
        out += [r for r in rules if r.startswith("-A")]
        out.append("COMMIT")
    return "\n".join(out) + "\n"


def p(
    host: str, to: str, port: int = 8080, proto: str = "tcp", *, src: str | None = None, six: bool = False
) -> Packet:
    """A packet between names of the laboratory."""
    via = to[4] if to.startswith("vip") and host not in PODS and host not in ("a", "b") else None
    dst = ADDRESSES[to][six] if to in ADDRESSES else to
    return Packet(host, dst, port, proto, ADDRESSES[src][six] if src in ADDRESSES else src, via)


def both(host: str, to: str, port: int = 8080, *, src: str | None = None, six: bool = False) -> list[Packet]:
    """The same over TCP and UDP."""
    return [p(host, to, port, proto, src=src, six=six) for proto in ("tcp", "udp")]


_OPEN_LOCALNET = {"net/ipv4/conf/all/route_localnet": "1"}

# -- what a sender sees

add(
    "a datagram dropped in OUTPUT fails at once, a SYN waits",
    "NF_HOOK's -EPERM reaches sendto(), and is ignored by tcp_connect",
    [*both("a", "b"), *both("a", "pa1", 80)],
    {"a": "filter: -A OUTPUT -d 10.1.0.12 -j DROP\nmangle: -A POSTROUTING -d 10.244.1.10 -j DROP"},
)
add(
    "a datagram rejected in OUTPUT fails at once, a SYN is refused",
    "the error for the SYN is taken from its retransmission, after a second",
    both("a", "b"),
    {"a": "filter: -A OUTPUT -d 10.1.0.12 -j REJECT"},
)
add(
    "a datagram dropped behind lo is lost in silence",
    "loopback_xmit has taken it: no error comes back",
    [*both("a", "a"), *both("a", "a.second", 30081)],
    {
        "a": "raw: -A PREROUTING -i lo -p udp --dport 8080 -j DROP\nfilter: -A INPUT -p udp --dport 30081 -j DROP"
    },
)
add(
    "from 127.0.0.1 to elsewhere there is no way without route_localnet",
    "__mkroute_output: EINVAL",
    [*both("a", "b", src="localhost"), *both("a", "pa1", 80, src="localhost")],
)
add(
    "no way after OUTPUT translated the packet",
    "ip_route_me_harder fails: sendto() says so, connect() waits",
    both("a", "localhost", 30081),
    {"a": "nat: -A OUTPUT -d 127.0.0.1 -p tcp -j DNAT --to-destination 10.244.1.10:8080\n"
          "nat: -A OUTPUT -d 127.0.0.1 -p udp -j DNAT --to-destination 10.244.1.10:8080"},
)  # fmt: skip
add(
    "a neighbour that does not answer",
    "arp_error_report: EHOSTUNREACH for TCP; a connected UDP socket is not told of soft errors",
    [*both("a", "dead"), *both("pa1", "dead"), *both("c1", "vip.a")],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.1.0.99\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.1.0.99"},
)  # fmt: skip
add(
    "an IPv6 neighbour that does not answer",
    "ndisc_error_report",
    [*both("a", "dead", six=True), *both("pa1", "dead", six=True)],
    family=6,
)
for _number, _kind in enumerate((
    "icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable",
    "icmp-net-prohibited", "icmp-host-prohibited", "icmp-admin-prohibited",
)):  # fmt: skip
    add(
        f"REJECT with {_kind}",
        "icmp_err_convert",
        [*both("c1", "a"), *both("c1", "pa1", 80), *both("pa1", "pb1", 80)],
        {
            "a": f"filter: -A INPUT -j REJECT --reject-with {_kind}\nfilter: -A FORWARD -j REJECT --reject-with {_kind}"
        },
        backend=("nft", "legacy")[_number % 2],
    )
for _number, _kind in enumerate((
    "icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable", "icmp6-policy-fail",
    "icmp6-reject-route",
)):  # fmt: skip
    add(
        f"REJECT with {_kind}",
        "icmpv6_err_convert",
        [*both("c1", "a", six=True), *both("c1", "pa1", 80, six=True)],
        {
            "a": f"filter: -A INPUT -j REJECT --reject-with {_kind}\nfilter: -A FORWARD -j REJECT --reject-with {_kind}"
        },
        backend=("nft", "legacy")[_number % 2],
        family=6,
    )
for _kind in ("unreachable", "prohibit", "blackhole"):
    add(
        f"a route of type {_kind}",
        "ip_error tells a forwarded sender, ip_route_output the local one",
        [*both("a", "far"), *both("pa1", "far"), *both("c1", "vip.a")],
        {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 203.0.113.9\n"
              "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 203.0.113.9"},
        commands={"a": [f"-4 route add {_kind} 203.0.113.0/24"]},
    )  # fmt: skip
    add(
        f"an IPv6 route of type {_kind}",
        "ip6_pkt_discard, ip6_pkt_prohibit, dst_discard",
        [*both("a", "far", six=True), *both("pa1", "far", six=True)],
        commands={"a": [f"-6 route add {_kind} fd00:113::/64"]},
        family=6,
    )

# -- errors and their connection

add(
    "a REJECT's error belongs to the refused connection",
    "nf_ct_attach: RELATED already in raw OUTPUT, and translated back",
    both("c1", "vip.a"),
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10:8080\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.244.1.10:8080\n"
          "filter: -A FORWARD -p tcp -j REJECT --reject-with tcp-reset\nfilter: -A FORWARD -p udp -j REJECT\n"
          "raw: -A OUTPUT -m conntrack --ctstate RELATED\nraw: -A OUTPUT -m conntrack --ctstate INVALID\n"
          "mangle: -A POSTROUTING -m conntrack --ctstate RELATED,DNAT\n"
          "filter: -A OUTPUT -m conntrack --ctstate RELATED --ctdir REPLY"},
    counted=True,
)  # fmt: skip
add(
    "the stack's own error finds its connection at conntrack only",
    "ip_local_deliver dropped the packet's connection: INVALID in raw OUTPUT, then ESTABLISHED (reset), RELATED (ICMP)",
    both("c1", "vip.a"),
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j REDIRECT --to-ports 443\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j REDIRECT --to-ports 443\n"
          "raw: -A OUTPUT -m conntrack --ctstate INVALID\nraw: -A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED\n"
          "mangle: -A OUTPUT -m conntrack --ctstate ESTABLISHED\nmangle: -A OUTPUT -m conntrack --ctstate RELATED"},
    counted=True,
)  # fmt: skip
add(
    "an answer has no connection yet in raw OUTPUT",
    "the SYN-ACK is a new packet",
    [p("c1", "a", 30080), p("c1", "a", 8080, "udp")],
    {"a": "raw: -A OUTPUT -m conntrack --ctorigsrcport 1024:65535 -j DROP\n"
          "raw: -A OUTPUT -m conntrack ! --ctproto 6 -j DROP\nraw: -A OUTPUT -m conntrack --ctstate INVALID"},
    counted=True,
)  # fmt: skip
add(
    "a reset from a bridge port goes straight back to it",
    "nf_send_reset: no hook translates it back, so a pod that asked a Service does not know it; an ICMP error it does",
    [p("qa1", "vip.a"), p("qa1", "a", 30081), p("qa1", "vip.a", 8080, "udp"), p("pa1", "vip.a")],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j REDIRECT --to-ports 30081\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j REDIRECT --to-ports 30081\n"
          "filter: -A INPUT -p tcp -j REJECT --reject-with tcp-reset\nfilter: -A INPUT -p udp -j REJECT"},
)  # fmt: skip
add(
    "an ICMP error's TOS is that of internetwork control",
    "icmp_send",
    [p("c1", "a", 443, "udp")],
    {"a": "filter: -A OUTPUT -p icmp -m tos ! --tos 0xc0/0xff -j DROP"},
    counted=True,
)
add(
    "of an untracked packet the error is INVALID",
    "there is no connection that it could belong to",
    [p("c1", "a", 443), p("c1", "a", 443, "udp"), p("c1", "a", 8080, "udp")],
    {"a": "raw: -A PREROUTING -j CT --notrack\nfilter: -A OUTPUT -m conntrack --ctstate INVALID -p tcp -j DROP\n"
          "filter: -A OUTPUT -m conntrack --ctstate NEW"},
    counted=True,
)  # fmt: skip

# -- connections

add(
    "a SYN-ACK at a node that has not seen the SYN is INVALID",
    "tcp_new; a datagram's answer there opens a connection of its own",
    [p("pa1", "vip.a", 8080), p("pa1", "vip.a", 8080, "udp"), p("c1", "pb1", 80)],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.2.10:8080\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.244.2.10:8080",
     "b": "raw: -A PREROUTING -i eth0 -j CT --notrack\nfilter: -A FORWARD -m conntrack --ctstate INVALID -j DROP"},
)  # fmt: skip
add(
    "without an entry only ctstate can match",
    "conntrack_mt answers by --ctstate alone, and no negation helps where there is none",
    [p("c1", "a"), p("c1", "a", 8080, "udp")],
    {"a": "raw: -A PREROUTING -m conntrack ! --ctproto 6 -j DROP\n"
     "raw: -A PREROUTING -m conntrack ! --ctstatus CONFIRMED -j DROP\n"
          "raw: -A PREROUTING -m conntrack --ctstate INVALID --ctorigdst 192.0.2.1\n"
          "raw: -A PREROUTING -m connmark ! --mark 0x1 -j DROP"},
    counted=True,
)  # fmt: skip
add(
    "ctstatus NONE never matches",
    "xt_conntrack.c asks status & mask, and NONE is no bit",
    [p("c1", "a"), p("c1", "a", 30081)],
    {"a": "filter: -A INPUT -p tcp --dport 8080 -m conntrack --ctstatus NONE -j DROP\n"
          "filter: -A INPUT -p tcp --dport 30081 -m conntrack ! --ctstatus NONE -j DROP"},
)  # fmt: skip
add(
    "a mark stays on its node",
    "a mark is the kernel's own note, and is not on the wire",
    [p("pa1", "pb1", 80), p("pa1", "b")],
    {"a": "mangle: -A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
     "b": "filter: -A FORWARD -m mark --mark 0x4000/0x4000 -j DROP\n"
          "filter: -A INPUT -m mark --mark 0x4000/0x4000 -j DROP"},
)  # fmt: skip
add(
    "connmark carries a mark from SYN to answer",
    "CONNMARK save and restore",
    [p("c1", "pa1", 80), p("c1", "pa1", 443)],
    {"a": "mangle: -A PREROUTING -p tcp --dport 80 -j MARK --set-xmark 0x1/0x1\n"
     "mangle: -A FORWARD -j CONNMARK --save-mark\n"
          "mangle: -A PREROUTING -m conntrack --ctdir REPLY -j CONNMARK --restore-mark\n"
          "mangle: -A POSTROUTING -m conntrack --ctdir REPLY -m mark --mark 0x1 -j DROP"},
)  # fmt: skip
add(
    "in OUTPUT the first route's interface is seen to the end",
    "nf_hook_state.out does not change when nat translates; POSTROUTING sees the new one",
    [p("a", "vip.a"), p("a", "vip.a", 8080, "udp")],
    {"a": "nat: -A OUTPUT -d 10.96.1.10 -p tcp -j REDIRECT\nnat: -A OUTPUT -d 10.96.1.10 -p udp -j REDIRECT\n"
          "filter: -A OUTPUT -o lo\nfilter: -A OUTPUT -o eth0\nmangle: -A POSTROUTING -o lo\n"
          "mangle: -A POSTROUTING -o eth0"},
)  # fmt: skip
add(
    "a process reaches its own node port through OUTPUT, and meets no nat behind lo",
    "the connection is translated already when it comes in by lo",
    [p("a", "a", 30080), p("a", "a.second", 30080, "udp")],
    {"a": "nat: -A OUTPUT -p tcp --dport 30080 -j DNAT --to-destination 10.1.0.11:8080\n"
          "nat: -A OUTPUT -p udp --dport 30080 -j DNAT --to-destination 10.1.0.11:8080\n"
          "nat: -A PREROUTING -j DNAT --to-destination 10.244.1.10\nraw: -A PREROUTING -i lo\n"
          "mangle: -A PREROUTING -i lo"},
    counted=True,
)  # fmt: skip
add(
    "nat INPUT gives the process another client",
    "SNAT in INPUT, undone in OUTPUT",
    [*both("c1", "a"), *both("pa1", "a"), *both("c1", "a", 443)],
    {
        "a": "nat: -A INPUT -p tcp -j SNAT --to-source 10.1.0.60\nnat: -A INPUT -p udp -j SNAT --to-source 10.1.0.60"
    },
    backend="legacy",
)

# -- addresses that are given

add(
    "MASQUERADE takes the outgoing interface's address, or another's where it has none",
    "inet_select_addr; pa2's veth has no address, pa1's has the gateway's",
    [p("c1", "pa1", 80), p("c1", "pa2", 80), p("c1", "qa1", 80), p("c1", "pb1", 80), p("pa1", "srv", 80)],
    {"a": "nat: -A POSTROUTING -j MASQUERADE"},
)
add(
    "MASQUERADE and the hints of a route",
    "nf_nat_masquerade_ipv4 asks the device, not the route: `src` does not matter",
    [p("pa1", "srv", 80), p("pa1", "b")],
    {"a": "nat: -A POSTROUTING -j MASQUERADE"},
    commands={"a": ["-4 route add 10.1.0.60 dev eth0 src 10.1.0.21"]},
)
add(
    "MASQUERADE in IPv6",
    "ipv6_dev_get_saddr: the longest common prefix counts as far as the address's own prefix",
    [
        p("c1", "pa1", 80, six=True),
        p("c1", "pa2", 80, six=True),
        p("pa1", "srv", 80, six=True),
        p("pa1", "b", six=True),
    ],
    {"a": "nat: -A POSTROUTING -j MASQUERADE"},
    family=6,
)
add(
    "which address a process sends from",
    "fib_select_path and ipv6_dev_get_saddr",
    [
        p("a", "b"),
        p("a", "b.eth1"),
        p("a", "pb1", 80),
        p("a", "pa1", 80),
        p("a", "pa2", 80),
        p("a", "qa1", 80),
        p("a", "a.dummy"),
    ],
)
add(
    "which address a process sends from in IPv6",
    "ipv6_dev_get_saddr",
    [p("a", n, 8080, six=True) for n in ("b", "b.eth1", "pb1", "pa1", "pa2", "qa1", "a.dummy", "localhost")],
    family=6,
)
add(
    "a source hint of the route",
    "fib_info.fib_prefsrc",
    [p("a", "srv", 80), p("a", "pb1", 80)],
    commands={"a": ["-4 route add 10.244.2.10 via 10.1.0.12 src 10.99.0.11"]},
)
add(
    "a range of ports",
    "nf_nat_l4proto_unique_tuple: a port in the range is kept, else the first is taken",
    [
        p("c1", "vip.a", 30080),
        p("c1", "vip.a", 8082),
        p("c1", "vip.a2", 443),
        p("c1", "a", 443),
        p("c1", "vip.a", 30080, "udp"),
    ],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10:8081-8083\n"
          "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.244.1.10:8081-8083\n"
          "nat: -A PREROUTING -d 10.96.1.11 -p tcp -j DNAT --to-destination 10.244.1.10:8080-8083/440\n"
          "nat: -A PREROUTING -d 10.1.0.11 -p tcp --dport 443 -j REDIRECT --to-ports 8080-8083"},
)  # fmt: skip
add(
    "a range of addresses",
    "find_best_ips_proto draws by a hash",
    [p("c1", "vip.a", 80), p("c2", "vip.a", 80), p("pb1", "vip.a", 80), p("pa1", "srv", 80)],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10-10.244.1.11\n"
          "nat: -A POSTROUTING -d 10.1.0.60 -p tcp -j SNAT --to-source 10.1.0.20-10.1.0.21"},
)  # fmt: skip
add(
    "ports of MASQUERADE and SNAT",
    "the answer finds its way back whatever port was drawn",
    [*both("pa1", "srv", 80), *both("pa2", "srv", 80), *both("qa1", "srv", 80)],
    {"a": "nat: -A POSTROUTING -s 10.244.1.10 -p tcp -j MASQUERADE --random-fully\n"
          "nat: -A POSTROUTING -s 10.244.1.10 -p udp -j MASQUERADE --to-ports 100-200\n"
          "nat: -A POSTROUTING -s 10.244.1.11 -p tcp -j SNAT --to-source 10.1.0.21:7000-7999\n"
          "nat: -A POSTROUTING -s 10.244.1.11 -p udp -j SNAT --to-source 10.1.0.21:7\n"
          "nat: -A POSTROUTING -s 10.244.11.10 -p tcp -j MASQUERADE\n"
          "nat: -A POSTROUTING -s 10.244.11.10 -p udp -j SNAT --to-source 10.99.0.11"},
)  # fmt: skip
add(
    "NETMAP changes the network part",
    "NETMAP",
    [p("c1", "vip.a", 80), p("c1", "vip.a2", 80)],
    {"a": "nat: -A PREROUTING -d 10.96.1.0/24 -j NETMAP --to 10.244.1.0/24"},
)

# -- loopback addresses

_TO_POD = (
    "nat: -A OUTPUT -d 127.0.0.1 -p tcp --dport 30081 -j DNAT --to-destination 10.244.1.10:8080\n"
    "nat: -A OUTPUT -d 127.0.0.1 -p udp --dport 30081 -j DNAT --to-destination 10.244.1.10:8080"
)
add(
    "from 127.0.0.1 to a pod, not masqueraded",
    "the pod drops a loopback source",
    [*both("a", "localhost", 30081), *both("a", "srv", 80, src="localhost")],
    {"a": _TO_POD},
    sysctls={"a": _OPEN_LOCALNET},
)
add(
    "from 127.0.0.1 to a pod, masqueraded",
    "the answer comes back to the node's address and is translated to 127.0.0.1",
    both("a", "localhost", 30081),
    {"a": _TO_POD + "\nnat: -A POSTROUTING -s 127.0.0.1 ! -o lo -j MASQUERADE"},
    sysctls={"a": _OPEN_LOCALNET},
)
add(
    "from 127.0.0.1 to a pod of another node, masqueraded",
    "as kube-proxy up to 1.32 lets node ports be used on localhost",
    both("a", "localhost", 30081),
    {
        "a": (_TO_POD + "\nnat: -A POSTROUTING -s 127.0.0.1 ! -o lo -j MASQUERADE").replace(
            "10.244.1.10", "10.244.2.10"
        )
    },
    sysctls={"a": {"net/ipv4/conf/eth0/route_localnet": "1"}},
)
add(
    "from ::1 to a pod, masqueraded",
    "the answer is translated to ::1, to which no route leads from a wire (rt6_need_strict)",
    [*both("a", "localhost", 30081, six=True), *both("a", "pa1", 80, src="localhost", six=True)],
    {"a": "nat: -A OUTPUT -d ::1 -p tcp --dport 30081 -j DNAT --to-destination [fd00:244:1::10]:8080\n"
          "nat: -A OUTPUT -d ::1 -p udp --dport 30081 -j DNAT --to-destination [fd00:244:1::10]:8080\n"
          "nat: -A POSTROUTING -s ::1 ! -o lo -j MASQUERADE"},
    family=6,
)  # fmt: skip
add(
    "a process that calls from ::1 at another of its node's addresses",
    "tcp_v6_send_response finds no route to ::1 by that address's interface: no reset comes; an answer does",
    [*both("b", "b", 8081, src="localhost", six=True), *both("b", "b", src="localhost", six=True),
     *both("b", "localhost", 8082, six=True), *both("b", "localhost", 8082, src="b", six=True)],
    family=6,
)  # fmt: skip
add(
    "a packet with 127.0.0.1 in it from the wire",
    "ip_route_input_slow asks route_localnet of the incoming interface",
    [p("c1", "vip.a"), p("pa1", "vip.a")],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 127.0.0.1:8081"},
    sysctls={"a": {"net/ipv4/conf/eth0/route_localnet": "1"}},
)

# -- pods and bridges

_SERVICE = (
    "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.11.11:8080\n"
    "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.244.11.11:8080"
)
_BRIDGE_OFF = {"net/bridge/bridge-nf-call-iptables": "0", "net/bridge/bridge-nf-call-ip6tables": "0"}
add(
    "a Service whose endpoint is on the client's bridge, bridged packets seen",
    "the answer crosses the bridge, and is translated back there",
    [*both("qa1", "vip.a"), *both("qa1", "qa2", 80)],
    {
        "a": _SERVICE
        + "\nfilter: -A FORWARD -m physdev --physdev-is-bridged\nmangle: -A POSTROUTING -m physdev --physdev-is-bridged"
    },
)
add(
    "a Service whose endpoint is on the client's bridge, bridged packets not seen",
    "the answer goes over the bridge by itself, and the client does not know it",
    [*both("qa1", "vip.a"), *both("qa1", "qa2", 80), *both("qa2", "vip.a")],
    {"a": _SERVICE},
    sysctls={"a": _BRIDGE_OFF},
)
add(
    "the same, masqueraded",
    "the answer goes to the node, which translates it back",
    [*both("qa1", "vip.a"), *both("qa2", "vip.a"), *both("pa1", "vip.a")],
    {"a": _SERVICE + "\nnat: -A POSTROUTING -s 10.244.0.0/16 -d 10.244.11.0/24 -j MASQUERADE"},
    sysctls={"a": _BRIDGE_OFF},
)
add(
    "a pod that reaches itself by a Service",
    "without masquerading it gets a packet from itself",
    [*both("qa2", "vip.a"), p("pa1", "vip.a2"), p("pa1", "vip.a2", 8080, "udp")],
    {"a": _SERVICE + "\nnat: -A PREROUTING -d 10.96.1.11 -p tcp -j DNAT --to-destination 10.244.1.10:8080\n"
          "nat: -A PREROUTING -d 10.96.1.11 -p udp -j DNAT --to-destination 10.244.1.10:8080"},
)  # fmt: skip
add(
    "a pod that reaches itself by a Service in IPv6",
    "its answer goes to itself",
    [p("pa1", "vip.a2", six=True)],
    {"a": "nat: -A PREROUTING -d fd00:96:1::11 -p tcp -j DNAT --to-destination [fd00:244:1::10]:8080"},
    family=6,
)
add(
    "a pod that reaches itself by a Service, masqueraded",
    "hairpin",
    [*both("qa2", "vip.a"), p("pa1", "vip.a2"), p("pa1", "vip.a2", 8080, "udp")],
    {"a": _SERVICE + "\nnat: -A PREROUTING -d 10.96.1.11 -p tcp -j DNAT --to-destination 10.244.1.10:8080\n"
          "nat: -A PREROUTING -d 10.96.1.11 -p udp -j DNAT --to-destination 10.244.1.10:8080\n"
          "nat: -A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE"},
)  # fmt: skip
add(
    "from a pod of a bridge to one that is not on it",
    "that packet is routed, not bridged",
    [*both("qa1", "pa1", 80), *both("pa1", "qa1", 80), *both("qa1", "qa2", 80)],
    {"a": "filter: -A FORWARD -m physdev --physdev-is-bridged -j DROP"},
)
add(
    "physdev is seen behind the bridge too",
    "ip_sabotage_in leaves the bridge's note on the packet: INPUT and FORWARD know the port",
    [p("qa1", "a"), p("qa1", "pa1", 80), p("pa1", "a")],
    {"a": "filter: -A INPUT -m physdev --physdev-in vq-+ -j DROP\n"
     "filter: -A FORWARD -m physdev --physdev-is-in -j DROP\n"
          "filter: -A INPUT -m physdev ! --physdev-in vq-+"},
    counted=True,
)  # fmt: skip

# -- routing and where a packet comes from

add(
    "rp_filter 1 and a way back by another interface",
    "fib_validate_source; c2 is reached by eth1 and asks for eth0's address",
    [*both("c2", "a"), *both("c2", "a.eth1"), *both("c1", "a"), p("c2", "vip.a", 8080)],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j REDIRECT"},
    sysctls={"a": {"net/ipv4/conf/all/rp_filter": "1"}},
)
add(
    "rp_filter 2 and a way back by another interface",
    "loose: any way back is enough",
    [*both("c2", "a"), *both("c2", "a.eth1"), *both("pa2", "a"), *both("c2", "pa1", 80)],
    sysctls={"a": {"net/ipv4/conf/eth0/rp_filter": "2", "net/ipv4/conf/eth1/rp_filter": "1"}},
)
add(
    "rp_filter where the interface has no address",
    "__fib_validate_source: last_resort",
    [*both("pa2", "a"), *both("pa1", "a"), *both("pa2", "srv", 80)],
    sysctls={"a": {"net/ipv4/conf/all/rp_filter": "1"}},
    commands={
        "a": [
            "-4 route add 10.244.1.11 dev vp-pa1 metric 0 table 101",
            "-4 rule add pref 90 to 10.244.1.11 iif lo lookup 101",
        ]
    },
)
add(
    "the node's own address as a source from outside",
    "fib_validate_source: martian",
    [p("pa1", "vip.a", 8080)],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.1.0.12:8080\n"
          "nat: -A POSTROUTING -p tcp --dport 8080 -j SNAT --to-source 10.1.0.12"},
)  # fmt: skip
add(
    "a rule for lo that forbids does not make a source bad",
    "a failed lookup is last_resort in __fib_validate_source, and without rp_filter that is good",
    [p("pa1", "a"), p("c1", "pa1", 80)],
    commands={"a": ["-4 rule add pref 100 iif lo to 10.244.1.0/24 prohibit"]},
)
add(
    "a routing rule for the outgoing interface",
    "the answers of an outside server come in by eth0 and meet `iif eth0`",
    [*both("pa1", "srv", 80), *both("c1", "pa1", 80), *both("a", "srv", 80)],
    commands={"a": ["-4 rule add pref 50 iif eth0 blackhole"]},
)
add(
    "policy routing does not move a pod",
    "the packet comes from the pod's own veth, whatever way others to the pod take",
    [p("pa1", "srv", 80), p("pa1", "a"), p("pa2", "pa1", 80)],
    commands={
        "a": ["-4 rule add pref 100 not fwmark 0x1 lookup 100", "-4 route add default via 10.2.0.1 table 100"]
    },
)
add(
    "a mark in PREROUTING chooses the route",
    "ip rule fwmark",
    [
        p("c1", "pb1", 80),
        p("pa1", "srv", 80),
        p("pa1", "srv", 8080),
        p("pa1", "b"),
        p("pa1", "b", 8080, "udp"),
    ],
    {"a": "mangle: -A PREROUTING -p tcp --dport 8080 -j MARK --set-xmark 0x1/0xffffffff"},
    commands={
        "a": ["-4 route add unreachable default table 100", "-4 rule add pref 100 fwmark 0x1 lookup 100"]
    },
)
add(
    "a mark in mangle OUTPUT routes again",
    "ip_route_me_harder; nat and filter do not route again for a mark",
    [*both("a", "srv", 80), *both("a", "srv", 8080), *both("a", "srv", 443)],
    {"a": "mangle: -A OUTPUT -p tcp --dport 80 -j MARK --set-xmark 0x1/0xffffffff\n"
          "mangle: -A OUTPUT -p udp --dport 80 -j MARK --set-xmark 0x1/0xffffffff\n"
          "filter: -A OUTPUT -p tcp --dport 443 -j MARK --set-xmark 0x1/0xffffffff"},
    commands={"a": ["-4 route add unreachable default table 100", "-4 rule add pref 100 fwmark 0x1 lookup 100"]},
)  # fmt: skip
add(
    "an outside endpoint answers its client itself",
    "a node translates, and the server on the client's LAN answers past it; masqueraded, the answer comes back",
    [*both("c1", "vip.a"), *both("c1", "vip.a2"), *both("pa1", "vip.a"), *both("a", "vip.b")],
    {"a": "nat: -A PREROUTING -d 10.96.1.0/24 -p tcp -j DNAT --to-destination 10.1.0.60:8080\n"
          "nat: -A PREROUTING -d 10.96.1.0/24 -p udp -j DNAT --to-destination 10.1.0.60:8080\n"
          "nat: -A OUTPUT -d 10.96.2.10 -p tcp -j DNAT --to-destination 10.1.0.60:8080\n"
          "nat: -A OUTPUT -d 10.96.2.10 -p udp -j DNAT --to-destination 10.1.0.60:8080\n"
          "nat: -A POSTROUTING -m conntrack --ctorigdst 10.96.1.11 -j MASQUERADE"},
)  # fmt: skip
add(
    "a node that does not forward",
    "ip_forward 0: what is for the node itself still comes",
    [
        p("c1", "pa1", 80),
        p("c1", "a"),
        p("pa1", "pa2", 80),
        p("pa1", "a"),
        p("a", "pa1", 80),
        p("c1", "vip.a"),
    ],
    {"a": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10:8080"},
    sysctls={"a": {"net/ipv4/ip_forward": "0"}},
)
add(
    "a node that does not forward IPv6",
    "net.ipv6.conf.all.forwarding 0",
    [p("c1", "pa1", 80, six=True), p("c1", "a", six=True), p("a", "pa1", 80, six=True)],
    sysctls={"a": {"net/ipv6/conf/all/forwarding": "0"}},
    family=6,
)
add(
    "a TTL that ends at the node",
    "ip_forward",
    [*both("c1", "pa1", 80), p("c1", "a"), *both("a", "pb1", 80)],
    {"a": "mangle: -A PREROUTING -i eth0 -j TTL --ttl-set 1\nmangle: -A OUTPUT -j TTL --ttl-set 1"},
)

# -- matches

add(
    "addrtype in IPv6 wants UNICAST and one of the routed types",
    "match_type6",
    [p("c1", "a", six=True), p("c1", "pa1", 80, six=True)],
    {"a": "mangle: -A PREROUTING -m addrtype --dst-type UNICAST,LOCAL\n"
     "mangle: -A PREROUTING -m addrtype --dst-type UNICAST\n"
          "mangle: -A PREROUTING -m addrtype --dst-type LOCAL\n"
          "mangle: -A PREROUTING -m addrtype --dst-type LOCAL --limit-iface-in\n"
          "mangle: -A PREROUTING -m addrtype --dst-type ANYCAST"},
    family=6,
)  # fmt: skip
add(
    "addrtype",
    "inet_dev_addr_type asks the local table alone",
    [p("c1", "a"), p("c1", "pa1", 80), p("c2", "a.eth1")],
    {"a": "mangle: -A PREROUTING -m addrtype --dst-type UNICAST\nmangle: -A PREROUTING -m addrtype --dst-type LOCAL\n"
          "mangle: -A PREROUTING -m addrtype --src-type LOCAL\n"
          "mangle: -A PREROUTING -m addrtype --dst-type LOCAL --limit-iface-in\n"
          "mangle: -A PREROUTING -m addrtype ! --dst-type LOCAL -j DROP"},
    counted=True,
)  # fmt: skip
add(
    "length",
    "a SYN is 40 to 60 bytes long, a datagram anything from 28; IPv6 headers are 20 longer",
    [*both("c1", "a"), *both("c1", "pa1", 80)],
    {"a": "filter: -A INPUT -m length --length 0:27 -j DROP\n"
     "filter: -A FORWARD -p tcp -m length --length 61:65535 -j DROP\n"
          "filter: -A FORWARD -m length ! --length 28:65535 -j DROP"},
)  # fmt: skip
add(
    "length in IPv6",
    "length_mt6 counts the header too",
    [*both("c1", "a", six=True), *both("c1", "pa1", 80, six=True)],
    {"a": "filter: -A INPUT -m length --length 0:47 -j DROP\nfilter: -A FORWARD -m length ! --length 0:27\n"
          "filter: -A FORWARD -p tcp -m length --length 81:65535 -j DROP"},
    family=6,
)  # fmt: skip
add(
    "a set is asked about an ephemeral port",
    "no element of the set is in the range that the port is from",
    [p("c1", "a"), p("c1", "a", 8080, "udp"), p("c1", "pa1", 80)],
    {"a": "filter: -A OUTPUT -m set --match-set ktpipport dst,dst -j DROP\n"
     "filter: -A FORWARD -m set --match-set ktpport src -j DROP\n"
          "filter: -A INPUT -m set ! --match-set ktpipport dst,dst -j DROP"},
    sets={"a": "create ktpipport hash:ip,port family inet\nadd ktpipport 10.1.0.11,tcp:8080\n"
          "add ktpipport 10.1.0.50,tcp:8080\n"
               "create ktpport bitmap:port range 1-20000\nadd ktpport 80\n"},
)  # fmt: skip
add(
    "sets with nomatch, and a list of sets",
    "the longest prefix decides; nomatch there says no",
    [p("c1", "pa1", 80), p("c1", "pa2", 80), p("c1", "qa1", 80), p("c1", "a")],
    {"a": "filter: -A FORWARD -m set --match-set ktpnet dst -j DROP\n"
     "filter: -A INPUT -m set --match-set ktplist dst,dst -j DROP"},
    sets={"a": "create ktpnet hash:net family inet\nadd ktpnet 10.244.1.0/24\nadd ktpnet 10.244.1.10 nomatch\n"
               "create ktpip hash:ip family inet\nadd ktpip 10.1.0.11\ncreate ktplist list:set size 8\n"
               "add ktplist ktpip\n"},
)  # fmt: skip
add(
    "recent remembers within one packet's walk",
    "--set and then --rcheck",
    [p("c1", "a")],
    {"a": "filter: -A INPUT -m recent --name ktpfirst --rcheck -j DROP\n"
     "filter: -A INPUT -m recent --name ktpseen --set\n"
          "filter: -A INPUT -m recent --name ktpseen --rcheck -j REJECT"},
)  # fmt: skip
add(
    "chains, goto and policies",
    "ipt_do_table: goto returns to the caller's caller, RETURN in a base chain means the policy",
    [p("c1", "a"), p("c1", "a", 30081), p("c1", "a", 443), p("c1", "a", 8080, "udp")],
    {"a": "filter: -P INPUT DROP\nfilter: -A INPUT -p tcp --dport 8080 -j U0\n"
     "filter: -A INPUT -p tcp --dport 30081 -g U0\n"
          "filter: -A INPUT -p tcp -j ACCEPT\nfilter: -A U0 -g U1\nfilter: -A U0 -j DROP\nfilter: -A U1 -j RETURN"},
    counted=True,
)  # fmt: skip

# -- two back ends

add(
    "of two back ends one translates and the other lets it pass",
    "whichever is first, the answer is one",
    [*both("c1", "vip.a"), p("c1", "a", 30080)],
    {"a/nft": "nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10:8080\n"
              "nat: -A PREROUTING -d 10.96.1.10 -p udp -j DNAT --to-destination 10.244.1.10:8080",
     "a/legacy": "nat: -A PREROUTING -p tcp --dport 30080 -j REDIRECT --to-ports 8080\n"
                 "filter: -A FORWARD -p udp -j DROP"},
)  # fmt: skip
