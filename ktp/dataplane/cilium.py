"""Cilium's programs on a packet's way: at connect(), at a pod's device, at a node's device, at cilium_host.

They see a packet before any rule (tc BPF). What the maps hold is decided here, the rest by the stack.
Facts: bpf/bpf_sock.c, bpf_lxc.c, bpf_host.c, bpf_overlay.c, lib/nodeport.h, lib/lb.h and lib/policy.h of Cilium 1.12 to
1.19, and recordings of 1.19.4 in tunnel and native routing, SNAT and DSR.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address

from ktp.dataplane.packet import PROTOCOL_NAMES, Packet, Port
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.cilium import (
    API_SERVER_IDENTITY,
    HOST_IDENTITY,
    OWN_DEVICES,
    REMOTE_NODE_IDENTITY,
    CiliumEndpoint,
    CiliumState,
    IpcacheEntry,
    LbBackend,
    LbFlag,
    LbFrontend,
    LbKind,
    NodePortMode,
    PolicyEntry,
)
from ktp.model.host import UNNAMED_DEVICES, UPLINK
from ktp.model.record import dataclass

_TCP = 6
_LOOPBACK_SOURCE = int(ip_address("169.254.42.1"))  # bpf/node_config.h, IPV4_LOOPBACK


class Fate(Enum):
    """What a front end does with a packet."""

    TRANSLATE = "translate"
    REFUSE = "refuse"  # an ICMP error from the program
    DROP = "drop"
    UNREACHABLE = "unreachable"  # connect() fails with EHOSTUNREACH
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Balance:
    """A front end's answer: its fate, why (for people), and the backends that may be drawn, alike."""

    frontend: LbFrontend
    fate: Fate
    why: str = ""
    backends: tuple[LbBackend, ...] = ()
    assumption: Assumption | None = None


@dataclass(frozen=True, slots=True)
class Balanced:
    """A connection that a program of `node` has translated: it undoes that for the answer, where it sees it.

    `virtual` is what the client dialled, `real` the backend, `client` the client's address, `source` the one that the
    backend sees.
    """

    node: str
    virtual: tuple[int, Port]
    real: tuple[int, Port]
    client: int
    source: int
    direct: bool = False  # the backend's node answers the client itself (DSR)


class Programs:
    """The programs of one node, over what was read of their maps."""

    def __init__(self, name: str, state: CiliumState) -> None:
        """Index `state`, whose front ends, endpoints and `config.replaces` were read."""
        self.name = name
        self.config = state.config
        self._state = state
        self._frontends: dict[tuple[int, int, int], list[LbFrontend]] = {}
        for f in state.frontends or ():
            self._frontends.setdefault((f.ip.version, int(f.ip), f.port), []).append(f)
        self._endpoints: dict[tuple[int, int], CiliumEndpoint] = {
            (ip.version, int(ip)): endpoint for ip, endpoint in (state.endpoints or {}).items()
        }
        self._nets = sorted(
            (
                (e.network.version, int(e.network.network_address), int(e.network.netmask), e)
                for e in state.ipcache or ()
            ),
            key=lambda x: -x[3].network.prefixlen,
        )

    # -- maps

    def endpoint(self, family: int, ip: int) -> CiliumEndpoint | None:
        """What this node delivers to at an address: a pod, or the node itself."""
        return self._endpoints.get((family, ip))

    def pod(self, family: int, ip: int) -> CiliumEndpoint | None:
        """The pod of this node that has an address."""
        found = self._endpoints.get((family, ip))
        return found if found is not None and not found.is_host else None

    def identity(self, family: int, ip: int) -> int | None:
        """Whose an address is, by the longest prefix; None where the map was not read or does not tell."""
        found = self._ipcache(family, ip)
        return found.identity if found is not None else None

    def mark_of(self, family: int, ip: int) -> int:
        """The mark with which a pod's packet gets to the stack: its identity (lib/common.h, MARK_MAGIC_IDENTITY)."""
        identity = self.identity(family, ip) or 0
        return (identity & 0xFFFF) << 16 | identity >> 16 & 0xFF | 0xF00

    def is_tunnelled(self, family: int, ip: int) -> bool | None:
        """Whether a packet for the address goes through the tunnel; None where that was not read."""
        if self.config.tunnel is False:
            return False
        found = self._ipcache(family, ip)
        if found is None or self.config.tunnel is None:
            return None
        return found.tunnelled

    def _ipcache(self, family: int, ip: int) -> IpcacheEntry | None:
        for version, net, mask, entry in self._nets:
            if version == family and ip & mask == net:
                return entry
        return None

    def _entry(self, family: int, ip: int, port: Port, proto: int, *, internal: bool) -> LbFrontend | None:
        word = PROTOCOL_NAMES.get(proto)
        for f in self._frontends.get((family, ip, port if isinstance(port, int) else -1), ()):
            if f.internal == internal and f.protocol in (None, word):
                return f
        return None

    def _find(self, family: int, ip: int, port: Port, proto: int, *, switch: bool) -> LbFrontend | None:
        """lb4_lookup_service: the external scope; where both are there and `switch` asks for it, the internal one."""
        found = self._entry(family, ip, port, proto, internal=False)
        if found is None or not switch or LbFlag.TWO_SCOPES not in found.flags:
            return found
        return self._entry(family, ip, port, proto, internal=True)

    def _is_whole(self, family: int, ip: int) -> LbFrontend | None:
        """The entry of port 0 that takes what no port of the address does (from 1.19 on)."""
        return self._entry(family, ip, 0, 0, internal=False)

    # -- programs

    def balances_at_socket(self, *, of_node: bool) -> bool | None:
        """Whether connect() of the node's processes (or its pods) is translated; None where that was not read.

        Where it is not, packets of pods are translated at the pod's device.
        """
        if self.config.socket_lb is False:
            return False
        if not of_node and self.config.socket_lb_host_only:
            return False
        return self.config.socket_lb

    def has_program(self, device: str | None) -> bool:
        """Whether packets that come in by `device` from outside meet the load balancer (bpf_host, from-netdev)."""
        if device is None or device in OWN_DEVICES or not self.config.replaces:
            return False
        # Where nobody read its name: Cilium attaches to the devices that hold the node's addresses.
        if device in UNNAMED_DEVICES:
            return device == UPLINK
        return device in self.config.devices if self.config.devices else not device.startswith(("lxc", "lo"))

    def at_socket(self, p: Packet, *, of_node: bool) -> Balance | None:
        """connect() (bpf_sock.c, __sock4_xlate_fwd); None where the address goes out as it is."""
        f = self._find(p.family, p.dst, p.dport, p.proto, switch=True)
        if f is None:
            f = self._wildcard(p, of_node=of_node)
        if f is None:
            whole = self._is_whole(p.family, p.dst)
            if whole is not None and self.identity(p.family, p.dst) != HOST_IDENTITY:
                # Not seen in a recording: whether connect() asks that entry too.
                return Balance(whole, Fate.UNKNOWN, "no front end has this port of a Service's address")
            return None
        if not f.backends and LbFlag.L7 not in f.flags:
            version = self.config.version
            if version is not None and version < (1, 14):
                return None  # before 1.14 the connection goes out untranslated
            return Balance(f, Fate.UNREACHABLE, "the front end has no backend: connect() fails")
        if f.kind in (LbKind.EXTERNAL_IPS, LbKind.HOST_PORT) and self.config.external_ip_mitigated:
            # sock4_skip_xlate: a Service may not take an address that is not the node's
            loopback = p.family == 4 and p.dst >> 24 == 127
            if self.identity(p.family, p.dst) != HOST_IDENTITY and not (
                f.kind is LbKind.HOST_PORT and loopback
            ):
                return None
        return self._draw(f)

    def _wildcard(self, p: Packet, *, of_node: bool) -> LbFrontend | None:
        """sock4_wildcard_lookup_full: a node port at any node's address, a host port at this node's."""
        loopback = p.dst >> 24 == 127 if p.family == 4 else p.dst == 1
        identity = self.identity(p.family, p.dst)
        here = (of_node and loopback) or identity == HOST_IDENTITY
        if not here and identity not in (REMOTE_NODE_IDENTITY, API_SERVER_IDENTITY):
            return None
        f = self._find(p.family, 0, p.dport, p.proto, switch=True)
        if f is None or (f.kind is not LbKind.NODE_PORT and not (here and f.kind is LbKind.HOST_PORT)):
            return None
        return f

    def at_pod_device(self, p: Packet) -> Balance | None:
        """A packet of a pod whose connect() is not translated (bpf_lxc.c, __per_packet_lb_svc_xlate_4)."""
        f = self._find(p.family, p.dst, p.dport, p.proto, switch=bool(self.config.replaces))
        if f is None:
            whole = self._is_whole(p.family, p.dst)
            if whole is None:
                return None
            return Balance(whole, Fate.UNKNOWN, "no front end has this port of a Service's address")
        if not f.backends and LbFlag.L7 not in f.flags:
            return self._without_backend(f)
        return self._draw(f)

    def at_device(self, p: Packet) -> Balance | None:
        """A packet from outside (lib/nodeport.h, nodeport_lb4)."""
        f = self._find(p.family, p.dst, p.dport, p.proto, switch=False) or self._is_whole(p.family, p.dst)
        if f is None:
            return None
        if LbFlag.NON_ROUTABLE in f.flags:
            return Balance(f, Fate.DROP, "the front end is not for clients outside")
        if LbFlag.SOURCE_RANGE in f.flags or LbFlag.SOURCE_RANGE_DENY in f.flags:
            ranges = self._state.source_ranges
            if ranges is None:
                return Balance(f, Fate.UNKNOWN, "the source ranges of Cilium's front ends were not read")
            listed = any(
                net.version == p.family and p.src & int(net.netmask) == int(net.network_address)
                for net in ranges.get(f.revnat, ())
            )
            if listed == (LbFlag.SOURCE_RANGE_DENY in f.flags):
                return Balance(f, Fate.DROP, "the client is not in the front end's source ranges")
        if not f.backends and LbFlag.L7 not in f.flags:
            return self._without_backend(f)
        return self._draw(f)

    def _without_backend(self, f: LbFrontend) -> Balance:
        if self.config.rejects is None:
            return Balance(
                f, Fate.UNKNOWN, "whether Cilium refuses or drops without a backend depends on its version"
            )
        return Balance(f, Fate.REFUSE if self.config.rejects else Fate.DROP, "the front end has no backend")

    def _draw(self, f: LbFrontend) -> Balance:
        if LbFlag.L7 in f.flags or f.kind is LbKind.LOCAL_REDIRECT:
            return Balance(
                f, Fate.UNKNOWN, "the front end hands the packet to a proxy, which is not modelled"
            )
        if not f.flags_known and f.kind is LbKind.UNKNOWN:
            return Balance(f, Fate.UNKNOWN, "the front end has a flag that ktp does not know")
        assumption = None
        if LbFlag.AFFINITY in f.flags:
            assumption = Assumption(
                "no earlier connection of this client is remembered (session affinity)",
                EvidenceKind.CONNTRACK,
            )
        elif not f.counted and len(f.backends) > 1:
            assumption = Assumption(
                "all slots of the front end are drawn (their count was not read)",
                EvidenceKind.DATA_PLANE,
                self.name,
            )
        return Balance(f, Fate.TRANSLATE, "", f.backends, assumption)

    def is_direct(self, f: LbFrontend, proto: int) -> bool | None:
        """Whether the backend's node answers the client itself; None where the mode was not read."""
        if LbFlag.DSR in f.flags:
            return True
        mode = self.config.mode
        if mode is None:
            return None if self.config.replaces else False
        # Up to 1.13 no flag tells: then the mode does.
        older = self.config.version is not None and self.config.version < (1, 14)
        return older and (mode is NodePortMode.DSR or (mode is NodePortMode.HYBRID and proto == _TCP))

    @staticmethod
    def loopback_source(family: int) -> int | None:
        """The source that a pod sees of itself, where a packet of its own comes back to it."""
        return _LOOPBACK_SOURCE if family == 4 else None

    # -- policy

    def permits(
        self, endpoint: CiliumEndpoint, identities: frozenset[int | None], p: Packet, *, egress: bool
    ) -> bool | None:
        """Whether the endpoint's policy map lets the packet through; None where that cannot be told.

        `identities` are those that the other side may have: they must be answered alike.
        """
        if self.config.enforces_policy is False:
            return True
        if self._state.policies is None or endpoint.identifier is None:
            return None
        entries = [e for e in self._state.policies.get(endpoint.identifier, ()) if e.egress == egress]
        answers = {None if i is None else _permits(entries, i, p) for i in identities}
        return answers.pop() if len(answers) == 1 else None


def _permits(entries: list[PolicyEntry], identity: int, p: Packet) -> bool:
    """lib/policy.h: an entry that denies wins over those that allow; without one the packet is dropped."""
    port = p.dport if isinstance(p.dport, int) else 0
    matching = [
        e for e in entries
        if e.identity in (0, identity)
        and e.protocol in (0, p.proto)
        and (not e.port or e.port >> (16 - e.port_bits) == port >> (16 - e.port_bits))
    ]  # fmt: skip
    return bool(matching) and not any(e.deny for e in matching)
