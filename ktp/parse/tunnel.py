"""`ip -j -d link`, `ip -j neigh`, `bridge -j fdb`, `wg show all dump` → tunnel devices and who is behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.tunnel import ForwardingEntry, IPAddress, Neighbour, TunnelDevice, Wireguard, WireguardPeer
from ktp.parse.text import decode_text, list_of, load_json, number_of, object_of, string_of, strings_of

# Devices whose packets leave as packets of another device (rtnl_link_ops of drivers/net and net/ipv4, ipv6).
_KINDS = frozenset(
    ("vxlan", "geneve", "ipip", "ip6tnl", "gre", "gretap", "sit", "wireguard", "xfrm", "vti", "vti6")
)
_NONE = "(none)"
_DEFAULT_PORTS = {"vxlan": 8472, "geneve": 6081}


def parse_tunnels(data: bytes | str, *, source: str = "ip-link.json") -> dict[str, TunnelDevice]:
    """The tunnel devices by name; {} where a node has none."""
    found = {}
    for entry in list_of(load_json(data, source)):
        link = object_of(entry)
        info = object_of(link.get("linkinfo"))
        kind = string_of(info.get("info_kind"))
        if kind in _KINDS:
            name = string_of(link.get("ifname"))
            found[name] = _device(name, kind, strings_of(link.get("flags")), object_of(info.get("info_data")))
    return found


def _device(name: str, kind: str, flags: tuple[str, ...], said: dict[str, Any]) -> TunnelDevice:
    port = number_of(said.get("port"), 0) or _DEFAULT_PORTS.get(kind)
    return TunnelDevice(
        name=name,
        kind=kind,
        is_up="UP" in flags,
        is_external=bool(said.get("external")),
        learns=bool(said.get("learning", True)),
        number=number_of(said.get("id"), 0) if "id" in said else None,
        port=port,
        local=_address(said.get("local") or said.get("local6")),
        df=string_of(said.get("df"), "unset"),
        finds_mtu=said.get("pmtudisc") is not False,
        ignores_df=bool(said.get("ignore_df")),
        remote=_address(said.get("remote") or said.get("group") or said.get("remote6")),
    )


def _address(text: Any) -> IPAddress | None:
    try:
        ip = ip_address(string_of(text))
    except ValueError:
        return None  # "any", or nothing
    return None if ip.is_unspecified or ip.is_multicast else ip


def parse_wireguard(data: bytes | str, *, source: str = "wg.txt") -> dict[str, Wireguard]:
    """`wg show all dump` (wg(8)) by device: a line of five fields for each, then of each of its peers one of nine.

    Private and preshared keys, in the 2nd and the 3rd, are not looked at. Raises EvidenceError for other lines.
    """
    found: dict[str, Wireguard] = {}
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        try:
            match line.split("\t"):
                case [name, _, public, port, mark]:
                    found[name] = Wireguard(
                        public_key=public, port=int(port), mark=0 if mark == "off" else int(mark, 0)
                    )
                case [name, public, _, endpoint, allowed, handshake, heard, sent, keepalive]:
                    peer = WireguardPeer(
                        public_key=public,
                        endpoint=_endpoint(endpoint),
                        allowed=tuple(map(ip_network, allowed.split(","))) if allowed != _NONE else (),
                        answered=int(handshake) > 0,
                        heard=int(heard) > 0,
                        sent=int(sent) > 0,
                        keepalive=keepalive not in ("off", "0"),
                    )
                    found[name] = replace(found[name], peers=(*found[name].peers, peer))
                case _:
                    raise ValueError
        except (ValueError, KeyError):
            # The line itself may hold a key.
            raise EvidenceError(f"{source} line {number} is none of `wg show all dump`") from None
    return found


def _endpoint(text: str) -> tuple[IPAddress, int] | None:
    if text == _NONE:
        return None
    address, _, port = text.rpartition(":")
    return ip_address(address.strip("[]").partition("%")[0]), int(port)


def with_wireguard(
    tunnels: Mapping[str, TunnelDevice] | None, found: Mapping[str, Wireguard] | None
) -> Mapping[str, TunnelDevice] | None:
    """The tunnel devices, those of WireGuard with what was read of them."""
    if not tunnels or not found:
        return tunnels
    return {name: replace(t, wireguard=found.get(name)) for name, t in tunnels.items()}


def parse_neighbours(data: bytes | str, *, source: str = "ip-neigh.json") -> tuple[Neighbour, ...]:
    """Entries that have a hardware address; those that failed or are being asked for have none."""
    found = []
    for entry in map(object_of, list_of(load_json(data, source))):
        ip, mac = _address(entry.get("dst")), string_of(entry.get("lladdr"))
        if ip is not None and mac and "FAILED" not in strings_of(entry.get("state")):
            found.append(Neighbour(device=string_of(entry.get("dev")), ip=ip, mac=mac.lower()))
    return tuple(found)


def parse_forwarding(data: bytes | str, *, source: str = "bridge-fdb.json") -> tuple[ForwardingEntry, ...]:
    """Entries of tunnels: those that lead to an address."""
    found = []
    for entry in map(object_of, list_of(load_json(data, source))):
        to = _address(entry.get("dst"))
        if to is not None:
            device = string_of(entry.get("ifname"))
            found.append(ForwardingEntry(device=device, mac=string_of(entry.get("mac")).lower(), to=to))
    return tuple(found)
