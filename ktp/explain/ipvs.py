"""kube-proxy's IPVS mode in words: virtual servers, and the ipsets and rules beside them.

Rules hold only marks and filters there; where a packet goes is in the virtual servers (`ipvsadm -Sn`). Facts:
kube-proxy since 1.18, ipvsadm(8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ktp.dataplane.host import Host
from ktp.dataplane.ipset import compile_set
from ktp.dataplane.ipvs import draw
from ktp.dataplane.packet import Packet
from ktp.explain.balancer import explain_table
from ktp.explain.kube import purpose_of
from ktp.explain.purpose import Aim, Purpose, ipset_words
from ktp.explain.tree import Way
from ktp.explain.words import percent
from ktp.kubeproxy.names import (
    KUBE_IPVS_FILTER,
    KUBE_IPVS_OUT_FILTER,
    KUBE_PROXY_FIREWALL,
    host_port,
)
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.effect import Endpoint
from ktp.model.explanation import (
    ChainNode,
    ElementNode,
    Explanation,
    LookupNode,
    RuleNode,
    StageNode,
)
from ktp.model.host import IpSet, NodeState
from ktp.model.ipvs import IPVS_INTERFACE, IpvsTable, RealServer, VirtualServer
from ktp.model.ruleset import Rule, Ruleset

TABLE = "ipvs"
_SCHEDULERS = {
    "rr": "in turn",
    "wrr": "in turn, by weight",
    "lc": "to the one with the fewest connections",
    "wlc": "to the one with the fewest connections, by weight",
    "lblc": "by destination, to the one with the fewest connections",
    "lblcr": "by destination, to the one with the fewest connections",
    "dh": "by a hash of the destination",
    "sh": "by a hash of the source",
    "mh": "by a hash of the source (Maglev)",
    "sed": "to the one with the shortest expected delay",
    "nq": "to an idle one, else the shortest expected delay",
    "fo": "to the one with the highest weight",
    "ovf": "to the one with the highest weight, until it is full",
}
_EMPTY = Purpose(aim=Aim.NO_REAL_SERVER)
_MOST_TRIED = 20_000  # entries of one set that are tried for the packet's


# ------------------------------------------------------------------------------------------------------- rules


def ipvs_generation(ruleset: Ruleset) -> str:
    """Which kube-proxy in IPVS mode wrote the rules, in words."""
    if ruleset.chain("filter", KUBE_IPVS_OUT_FILTER) is not None:
        words = "1.29 or newer"
    elif ruleset.chain("filter", KUBE_IPVS_FILTER) is not None:
        words = "1.26 to 1.28"
    elif ruleset.chain("filter", KUBE_PROXY_FIREWALL) is not None:
        words = "1.25"
    else:
        words = "1.24 or older"
    return f"kube-proxy {words}, IPVS mode"


def ipset_lookups(rule: Rule, host: Host, packets: Sequence[Packet]) -> tuple[LookupNode, ...]:
    """What the rule's ipsets have for the packets."""
    found: list[LookupNode] = []
    for match in rule.matches:
        for option in match.options if match.name == "set" else ():
            if option.flag != "--match-set" or len(option.args) < 2:
                continue
            name, sides = option.args[0], option.args[1]
            ipset = (host.state.ipsets or {}).get(name)
            if ipset is None:
                found.append(LookupNode(kind="ipset", name=name, words="which was not read"))
                continue
            hits = _entries(ipset, sides, packets)
            total = len(ipset.entries)
            left = total - len(hits)
            words = "other entry" if left == 1 else "other entries"
            if not hits:
                words = "entry, not for this packet" if total == 1 else "entries, none for this packet"
            found.append(
                LookupNode(
                    kind="ipset",
                    name=name,
                    words=ipset_words(name),
                    elements=tuple(ElementNode(text=entry, words="in the set") for entry in hits),
                    left_out=left,
                    left_out_words=words if left else "",
                )
            )
    return tuple(found)


def _entries(ipset: IpSet, sides: str, packets: Sequence[Packet]) -> list[str]:
    """The entries that the packets match, as the dump writes them."""
    ports = {str(p.dport) for p in packets}
    found = []
    for entry, options in ipset.entries[:_MOST_TRIED]:
        if ipset.type == "bitmap:port" and "-" not in entry and entry not in ports:
            continue
        if ",port" in ipset.type and ":" in entry and not any(f":{port}" in entry for port in ports):
            continue
        test = compile_set(ipset.name, {ipset.name: replace(ipset, entries=((entry, options),))})
        if test is not None and any(test(p, sides) for p in packets):
            found.append(entry)
    return found


# --------------------------------------------------------------------------------------------- virtual servers


def server_words(server: VirtualServer) -> str:
    """`virtual server 10.0.0.3:31015/tcp, scheduler rr (in turn), no persistence`."""
    where = f"firewall mark {server.port}"
    if server.ip is not None:
        where = f"{host_port(str(server.ip), server.port)}/{server.protocol}"
    how = _SCHEDULERS.get(server.scheduler)
    words = f"virtual server {where}, scheduler {server.scheduler}" + (f" ({how})" if how else "")
    if server.persistent is not None:
        return f"{words}; persistent: a client stays with its real server for {server.persistent} s"
    return words


def _server_text(server: VirtualServer) -> str:
    return f"-A {_front(server)} -s {server.scheduler}" + (
        f" -p {server.persistent}" if server.persistent is not None else ""
    )


def _front(server: VirtualServer) -> str:
    if server.protocol == "fwmark" or server.ip is None:
        return f"-f {server.port}"
    flag = {"tcp": "-t", "udp": "-u"}.get(server.protocol, "--sctp-service")
    return f"{flag} {host_port(str(server.ip), server.port)}"


def _real_text(server: VirtualServer, real: RealServer) -> str:
    method = {"masq": "-m", "route": "-g"}.get(real.method, "-i")
    return f"-a {_front(server)} -r {host_port(str(real.ip), real.port)} {method} -w {real.weight}"


def _real_words(real: RealServer, share: float) -> str:
    where = f"real server {host_port(str(real.ip), real.port)}, weight {real.weight}"
    if real.weight == 0:
        return f"{where}: takes no new connections (being removed; open ones go on)"
    words = f"{where}: {percent(share)} of new connections" if share < 1 else f"{where}: all connections"
    other = {"route": "sent on unchanged (direct routing)", "tunnel": "sent on in a tunnel"}.get(real.method)
    return f"{words}; {other}, which kube-proxy does not do" if other else words


def _shares(server: VirtualServer) -> dict[tuple[str, int], float]:
    """The part of new connections that each real server gets."""
    return {(str(s.ip), s.port): chance for s, chance in draw(server).choices if s is not None}


def _server_node(
    server: VirtualServer, share: float | None, servers: dict[Endpoint, float] | None
) -> RuleNode:
    shares = _shares(server)
    elements = []
    for real in server.servers:
        part = shares.get((str(real.ip), real.port), 0.0)
        elements.append(
            ElementNode(
                text=_real_text(server, real),
                words=_real_words(real, part),
                share=None
                if servers is None
                else min(1.0, servers.get(Endpoint(str(real.ip), real.port), 0.0)),
            )
        )
    words = "no real servers" if not elements else "real servers"
    if not shares:
        words = f"{words} that take connections" if elements else words
    return RuleNode(
        position=0,
        line=0,
        text=_server_text(server),
        words=server_words(server) if shares else _EMPTY.words(conditions=server_words(server)),
        share=share,
        lookups=(LookupNode(kind="servers", name="", words=words, elements=tuple(elements)),),
    )


def ipvs_stage(
    way: Way, host: Host, words: str, packets: Sequence[Packet], priority: int
) -> StageNode | None:
    """IPVS at one hook: the virtual server of the packet, and how many others there are."""
    table = host.state.ipvs
    if table is None or host.virtual_servers is None:
        return None
    met = (way.hook, TABLE, TABLE, "", 0)
    share = way.taken.share(met)
    taken = {e: s for (k, e), s in way.taken.effects.items() if k == met and isinstance(e, Endpoint)}
    servers: list[VirtualServer] = []
    for packet in packets:
        scheduled = host.virtual_servers.schedule(packet)
        if scheduled is not None and scheduled.server not in servers:
            servers.append(scheduled.server)
    total = len(table.services)
    left = total - len(servers)
    return StageNode(
        hook=way.hook,
        words=words,
        backend=TABLE,
        chain=ChainNode(
            table=TABLE,
            name="virtual servers",
            words="sends packets to virtual servers on to one of their real servers",
            rules=tuple(_server_node(s, share, taken) for s in servers),
            left_out=left,
            left_out_words="virtual servers of other addresses and ports" if left else "",
        ),
        priority=priority,
    )


def keeps_source(rules: Sequence[Rule]) -> bool:
    """Whether the packet met the rule that spares externalTrafficPolicy Local from masquerading."""
    met = [p for r in rules if (p := purpose_of(r)) is not None]
    return any(p.aim.keeps_source or p.set_name == "EXTERNAL-IP-LOCAL" for p in met)


def ipvs_notes(state: NodeState | None, dst: str) -> tuple[str, ...]:
    """What kube-ipvs0 has to do with the dialled address."""
    if state is None or state.ipvs is None:
        return ()
    held = next((i for i in state.interfaces or () if i.name == IPVS_INTERFACE), None)
    if state.interfaces is not None and held is None:
        return (
            f"the node has no interface {IPVS_INTERFACE}, which kube-proxy's IPVS mode keeps for Service addresses",
        )
    if held is not None and any(str(a.ip) == dst for a in held.addresses):
        return (
            f"{dst} is an address of {IPVS_INTERFACE}: so the node takes packets to it in, and IPVS sees them",
        )
    return ()


# ------------------------------------------------------------------------------------------------ a dump alone


def ipvs_node_ports(table: IpvsTable) -> list[tuple[int, str, str]]:
    """Every (port, protocol, "") that has a virtual server."""
    return sorted({(s.port, s.protocol, "") for s in table.services if s.ip is not None})


def servers_of_port(table: IpvsTable, protocol: str, port: int) -> list[VirtualServer]:
    """The virtual servers of a port: of a node port one for each address of the node."""
    return [s for s in table.services if s.protocol == protocol and s.port == port and s.ip is not None]


def explain_ipvs_dump(
    table: IpvsTable, node: str, protocol: str, port: int, address: str | None = None
) -> Explanation | None:
    """The virtual servers of a port, from `ipvsadm -Sn` alone; None where there is none. `address`: of that alone."""
    servers = [s for s in servers_of_port(table, protocol, port) if address in (None, str(s.ip))]
    if not servers:
        return None
    nodes = tuple(_server_node(s, None, None) for s in servers)
    shares = {host_port(ip, number): share for (ip, number), share in _shares(servers[0]).items()}
    notes = [
        "ipsets and rules decide whether the client's address is replaced: a snapshot with ipset-save.txt and "
        "iptables-save.txt tells that"
    ]
    if len({_server_set(s) for s in servers}) > 1:
        notes.append(
            "the virtual servers of this port do not have the same real servers; the verdict is of the first"
        )
    elif shares:
        notes.append(
            "under externalTrafficPolicy Local kube-proxy 1.24 and newer lists all endpoints where this node has none: "
            "clients outside then time out although the virtual server has real servers; the health check port says 503"
        )
    left = len(table.services) - len(servers)
    return explain_table(
        ChainNode(
            table=TABLE,
            name="virtual servers",
            words="send new connections on to one of their real servers",
            rules=nodes,
            left_out=left,
            left_out_words="virtual servers of other ports" if left else "",
        ),
        shares,
        node=node,
        protocol=protocol,
        port=port,
        address=address,
        source=table.source,
        written_by="IPVS virtual servers (ipvsadm)",
        sends="IPVS sends new connections to a real server",
        why=f"balanced over {len(shares)} real server{'s' * (len(shares) > 1)}"
        if shares
        else _EMPTY.why("the Service", ""),
        rule=nodes[0].text,
        assumption=Assumption(
            "no rule stops the packets, and the answers come back by this node (ipvsadm tells neither rules nor "
            "ipsets)",
            EvidenceKind.RULES,
            node,
        ),
        notes=notes,
    )


def _server_set(server: VirtualServer) -> frozenset[tuple[str, int, int]]:
    return frozenset((str(s.ip), s.port, s.weight) for s in server.servers)
