"""A node's kernel counts packets that it drops while it is looked at.

# What it means
Counters of drops grew between two readings: of connection tracking, of the reverse path filter, of routing, of
checksums, of sockets that take no more. They are of the whole node. Which packets it were, they do not say.

# Why traffic fails
Each counter is one reason for which packets of any connection are lost; the finding names those that grew. Where one of
ktp's other findings is of the same reason, the counter is among its evidence, too.

insert_failed grows, and drop with it, where a new connection would have the same addresses and ports as one that is
there. So it does where all source ports for masquerading towards one endpoint are taken (1024 to 65535, or the rule's
--to-ports; KTP223): the kernel tries some, and gives up. drop alone is the table that has no room (KTP216).

Wrong checksums of UDP may be a tunnel's own: a VXLAN or Geneve device leaves checksums to what is underneath
(tx-checksum-ip-generic), and some do them wrongly: Linux before 5.7 (5.6.13, 5.4.41, 4.19.123, 4.14.181) where such a
packet is masqueraded twice with --random-fully, and network cards of virtual machines. A TCP connection then opens
after 1, 3, 7 … 63 seconds, or never. Where other nodes have such devices (`ethtool.txt`), they are named: a suspicion.

# Evidence
/proc/net/netstat, /proc/net/snmp, /proc/net/stat/nf_conntrack and rt_cache, twice: `ktp diagnose --counters SECONDS`,
or both readings in a snapshot's `netstat.txt`. What the columns mean is in conntrack(8) and in the kernel's
Documentation/networking/snmp_counter.rst.

# Confirm by hand
    nstat -z; sleep 5; nstat          # what grew within five seconds
    conntrack -S                      # a line for each CPU
    ethtool -K flannel.1 tx-checksum-ip-generic off    # on the senders: does Udp.InCsumErrors stand still then?
    conntrack -L -p tcp --reply-src POD-IP --reply-dst NODE-IP | wc -l     # ports taken towards one endpoint

# Fix
See where the packets come from while the counter grows: `tcpdump` at the interface, or the kernel's own words where
net.ipv4.conf.all.log_martians is 1. A counter that grows without anybody's complaint may be of packets that are meant
to be dropped.

# Example
Two DNS requests of one socket at once, whose entries clash: insert_failed grows, and one of the two times out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, listed
from ktp.diagnose.checks.offload_common import WORDS, deferring, shown, trial
from ktp.diagnose.checks.passing_common import INVALID, growing, growth, strict_drop
from ktp.model.diagnosis import Finding, Severity

_SHOWN = 4
_UDP_CHECKSUMS = "Udp.InCsumErrors"
_OVERFLOWS, _LISTEN_DROPS = "TcpExt.ListenOverflows", "TcpExt.ListenDrops"
# The counter, and of what it counts one for each. conntrack(8), -S; snmp_counter.rst; ip_route_input_slow.
_TRACKING = {
    "nf_conntrack.drop": "packets of which no connection could be tracked",
    "nf_conntrack.early_drop": "connections forgotten for want of room in the table",
    "nf_conntrack.insert_failed": "packets whose new connection clashed with one that is there, or had no free port",
}
_OTHER = {
    INVALID: "packets that fit no connection",
    "TcpExt.IPReversePathFilter": "packets dropped by the reverse path filter",
    "IpExt.InNoRoutes": "packets without a route",
    "rt_cache.in_martian_src": "packets from addresses that cannot be there, in pods' networks too",
    "rt_cache.in_martian_dst": "packets to addresses that cannot be there, in pods' networks too",
    _OVERFLOWS: "connections dropped at full accept queues of the node's own sockets",
    _LISTEN_DROPS: "connections that the node's own sockets did not take",
    "Tcp.InCsumErrors": "TCP segments with a wrong checksum",
    _UDP_CHECKSUMS: "UDP datagrams with a wrong checksum",
}


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node with a counter of drops that grew; a warning where connection tracking drops."""
    for node in case.nodes:
        state = case.state(node)
        harm = growth(state, _TRACKING)
        other = growth(state, _OTHER)
        if other.get(_LISTEN_DROPS, 0) <= other.get(_OVERFLOWS, 0):
            other.pop(_LISTEN_DROPS, None)  # each overflow is such a drop, too (tcp_v4_syn_recv_sock)
        if INVALID in other and strict_drop(state) is not None:
            del other[INVALID]  # KTP221 says it
        if not (harm or other):
            continue
        what = listed(f"{by} {(_TRACKING | _OTHER)[name]}" for name, by in (harm | other).items())
        # Who receives a tunnel's packet with a wrong outer checksum counts and drops it (udp_queue_rcv_one_skb).
        spoiled = _UDP_CHECKSUMS in other and state is not None and bool(state.tunnels)
        suspects = (
            deferring(case.snapshot, (n for n in case.snapshot.nodes if n != node)) if spoiled else []
        )[:_SHOWN]
        fix = trial(suspects)
        suspicion = f"; {WORDS.format(listed(name for name, _ in suspects))}" if suspects else ""
        yield CHECK.finding(
            f"{node} counted {what} while it was looked at; whether the Service's were among them, "
            f"a counter does not tell{suspicion}",
            node=node,
            evidence=[*growing(state, *harm, *other), *shown(case.snapshot, suspects)],
            fixes=[fix] if fix is not None else [],
            severity=Severity.WARNING if harm else None,
        )


CHECK = Check("KTP219", "DropsCounted", Severity.INFO, run)
