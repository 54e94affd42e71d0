"""`ip -j -d link`, `ip -j neigh`, `bridge -j fdb` → tunnel devices and who is behind them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from ktp.model.tunnel import ForwardingEntry, IPAddress, Neighbour, TunnelDevice
from ktp.parse.text import list_of, load_json, number_of, object_of, string_of, strings_of

# Devices whose packets leave as packets of another device (rtnl_link_ops of drivers/net and net/ipv4, ipv6).
_KINDS = frozenset(("vxlan", "geneve", "ipip", "ip6tnl", "gre", "gretap", "sit"))
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
