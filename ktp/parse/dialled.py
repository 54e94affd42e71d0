"""What somebody dialled, as people write it: an address with a port, a URL, a node, a Service or its DNS name."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from ktp.errors import UsageError
from ktp.model.record import dataclass

_PROTOCOLS = ("tcp", "udp", "sctp")
_SCHEMES = {"http": 80, "https": 443, "ws": 80, "wss": 443, "grpc": None, "tcp": None, "udp": None}
_CLUSTER_DOMAIN = re.compile(r"\.svc(?:\.[a-z0-9.-]+)?$")
_HINT = "write IP:PORT, [IPv6]:PORT, :NODE-PORT, a URL, a node's name, or NAMESPACE/NAME of a Service"


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """`host` is a name or "" (any node), `ip` its address where it is one; `port` None where none was written.

    `service` is (namespace or None, name) where the words can only mean a Service.
    """

    text: str
    host: str = ""
    ip: IPv4Address | IPv6Address | None = None
    port: int | None = None
    protocol: str | None = None
    service: tuple[str | None, str] | None = None


def is_address(text: str) -> bool:
    """Whether it can only mean an address with a port: `10.96.0.10:53/udp`, `[fd00::1]:80`."""
    return re.fullmatch(r"(?:\d+(?:\.\d+){3}|\[[0-9A-Fa-f:.]+\]):\d+(?:/[a-z]+)?", text) is not None


def parse_what(text: str) -> What:
    """`text` in any form of `ktp diagnose WHAT`; UsageError for what is none."""
    words, protocol = text.strip(), None
    scheme, separator, _ = words.partition("://")
    default = None
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise UsageError(f"{text!r}: ktp knows no scheme {scheme}", hint=_HINT)
        protocol = "udp" if scheme.lower() == "udp" else None
        default = _SCHEMES[scheme.lower()]
        words = urlsplit(words).netloc.rpartition("@")[2]
    head, slash, tail = words.rpartition("/")
    if slash and tail.lower() in _PROTOCOLS and head:
        words, protocol = head, tail.lower()
    kind, slash, name = words.partition("/")
    if slash and kind in ("svc", "service", "services"):
        return What(text=text, protocol=protocol, service=_service(name, text))
    if slash:
        return What(text=text, protocol=protocol, service=_service(words, text))
    host, port = _host_and_port(words, text)
    port = port if port is not None else default
    if not host:
        return What(text=text, port=port, protocol=protocol)
    try:
        return What(text=text, host=host, ip=ip_address(host.partition("%")[0]), port=port, protocol=protocol)
    except ValueError:
        pass
    if (m := _CLUSTER_DOMAIN.search(host)) is not None:
        name, _, namespace = host[: m.start()].rpartition(".")
        return What(
            text=text, host=host, port=port, protocol=protocol, service=(namespace, name.rpartition(".")[2])
        )
    return What(text=text, host=host, port=port, protocol=protocol)


def _service(words: str, text: str) -> tuple[str | None, str]:
    namespace, slash, name = words.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        raise UsageError(f"{text!r} names no Service", hint=_HINT)
    return namespace or None, name


def _host_and_port(words: str, text: str) -> tuple[str, int | None]:
    if words.isdigit():
        return "", _port(words, text)
    if words.startswith("["):
        host, bracket, rest = words[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is no address", hint=_HINT)
        return host, _port(rest[1:], text) if rest else None
    if words.count(":") > 1:  # IPv6 without brackets has no port
        return words, None
    host, colon, port = words.partition(":")
    if not host and not colon:
        raise UsageError(f"{text!r} is no address", hint=_HINT)
    return host, _port(port, text) if colon else None


def _port(words: str, text: str) -> int:
    if not words.isdigit() or not 0 < int(words) < 65536:
        raise UsageError(f"{text!r}: a port is a number from 1 to 65535", hint=_HINT)
    return int(words)
