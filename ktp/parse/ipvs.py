"""Output of `ipvsadm -Sn` or `ipvsadm -Ln` → virtual servers. Source: ipvsadm(8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

from ktp.errors import EvidenceError
from ktp.model.host import IPAddress
from ktp.model.ipvs import IpvsTable, RealServer, VirtualServer
from ktp.parse.text import decode_text

_SERVICES = {
    "-t": "tcp",
    "--tcp-service": "tcp",
    "-u": "udp",
    "--udp-service": "udp",
    "--sctp-service": "sctp",
    "-f": "fwmark",
    "--fwmark-service": "fwmark",
}
_METHODS = {
    "-m": "masq",
    "--masquerading": "masq",
    "-g": "route",
    "--gatewaying": "route",
    "-i": "tunnel",
    "--ipip": "tunnel",
}
_LONG = {
    "--add-service": "-A",
    "--add-server": "-a",
    "--scheduler": "-s",
    "--persistent": "-p",
    "--weight": "-w",
    "--real-server": "-r",
    "--netmask": "-M",
    "--sched-flags": "-b",
    "--ipv6": "-6",
    "--ops": "-o",
    "--u-threshold": "-x",
    "--l-threshold": "-y",
}
# Options that have no say in whether and where a connection goes, so far as ktp tells it.
_IDLE_WITH_VALUE = frozenset(("-M", "-b", "-x", "-y", "--pe", "--tun-type", "--tun-port"))
_IDLE = frozenset(("-o", "--tun-nocsum", "--tun-csum", "--tun-remcsum"))
_DEFAULT_PERSISTENCE = 300  # seconds
_LISTED_METHODS = {"Masq": "masq", "Route": "route", "Tunnel": "tunnel", "Local": "masq"}
_LISTED_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp", "FWM": "fwmark"}


def parse_ipvs(data: bytes | str, *, source: str = "ipvsadm.txt") -> IpvsTable:
    """All virtual servers with their real servers, in the order printed; no text is an empty table.

    `persistent` is in seconds (300 where -p has no argument). A weight of 0 stays: such a server takes no new
    connections. Raises EvidenceError naming the first line that is not understood.
    """
    services: dict[tuple[str, IPAddress | None, int], VirtualServer] = {}
    servers: dict[tuple[str, IPAddress | None, int], list[RealServer]] = {}
    listed: VirtualServer | None = None
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#") or words[:2] in _LISTING_HEADS:
            continue
        try:
            if words[0] in _LISTED_PROTOCOLS or words[0] == "->":
                service, server = _parse_listed(words, listed)
                listed = service
            else:
                service, server = _parse_line(words)
            key = service.protocol, service.ip, service.port
            if server is None:
                services[key] = service
                servers[key] = []
            else:
                servers[key].append(server)
        except (ValueError, LookupError) as error:
            raise EvidenceError(
                f"line {number} of {source} is not one of `ipvsadm -Sn` or -Ln: {line.strip()!r:.100}",
                hint="write it again: ipvsadm -Sn",
            ) from error
    return IpvsTable(
        services=tuple(replace(service, servers=tuple(servers[key])) for key, service in services.items()),
        source=source,
    )


def _parse_line(words: list[str]) -> tuple[VirtualServer, RealServer | None]:
    """The virtual server that a line names and, in an -a line, the real server that it adds."""
    rest = iter([_LONG.get(word, word) for word in words])
    command = next(rest)
    if command not in ("-A", "-a"):
        raise ValueError(command)
    front: tuple[str, IPAddress | None, int] | None = None
    real: tuple[IPAddress, int] | None = None
    scheduler, method, weight = "wlc", "route", 1  # ipvsadm(8)'s defaults
    persistent: int | None = None
    pending: str | None = None
    marks_ipv6 = False
    while (word := pending or next(rest, None)) is not None:
        pending = None
        if word in _SERVICES:
            where = _value(rest)
            protocol = _SERVICES[word]
            front = (
                (protocol, None, int(where))
                if protocol == "fwmark"
                else (protocol, *_address_and_port(where))
            )
        elif word == "-s":
            scheduler = _value(rest)
        elif word == "-p":
            value = next(rest, None)
            if value is not None and value.isdecimal():
                persistent = int(value)
            else:
                persistent, pending = _DEFAULT_PERSISTENCE, value
        elif word == "-r":
            real = _address_and_port(_value(rest))
        elif word == "-w":
            weight = int(_value(rest))
        elif word in _METHODS:
            method = _METHODS[word]
        elif word == "-6":
            marks_ipv6 = True
        elif word in _IDLE_WITH_VALUE:
            _value(rest)
        elif word not in _IDLE:
            raise ValueError(word)
    if front is None or (real is None) != (command == "-A"):
        raise ValueError(command)
    protocol, ip, port = front
    service = VirtualServer(
        protocol=protocol, ip=ip, port=port, scheduler=scheduler, persistent=persistent, marks_ipv6=marks_ipv6
    )
    if real is None:
        return service, None
    return service, RealServer(ip=real[0], port=real[1], weight=weight, method=method)


_LISTING_HEADS = (["IP", "Virtual"], ["Prot", "LocalAddress:Port"], ["->", "RemoteAddress:Port"])


def _parse_listed(words: list[str], before: VirtualServer | None) -> tuple[VirtualServer, RealServer | None]:
    """A line of `ipvsadm -Ln`: a virtual server, or a real server of the one `before`."""
    if words[0] == "->":
        if before is None or len(words) < 4:
            raise ValueError(words[0])
        ip, port = _address_and_port(words[1])
        return before, RealServer(ip=ip, port=port, weight=int(words[3]), method=_LISTED_METHODS[words[2]])
    protocol, where, *flags = [word for word in words if word != "IPv6"]
    persistent = int(flags[flags.index("persistent") + 1]) if "persistent" in flags else None
    kind = _LISTED_PROTOCOLS[protocol]
    ip_or_none, port = (None, int(where)) if kind == "fwmark" else _address_and_port(where)
    service = VirtualServer(
        protocol=kind, ip=ip_or_none, port=port, scheduler=flags[0], persistent=persistent,
        marks_ipv6="IPv6" in words,
    )  # fmt: skip
    return service, None


def _value(rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise ValueError("an option lacks its argument")
    return value


def _address_and_port(text: str) -> tuple[IPAddress, int]:
    """`10.0.0.3:80`, `[fd00::3]:80`; a port that is left out is 0, which is every port."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        address, _, port = text.partition(":")
    return ip_address(address), int(port or "0")
