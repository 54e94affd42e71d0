"""Lines of `ktp trace --batch` → flows (design §5). What is no flow is refused with one sentence."""

from __future__ import annotations

import json
from collections.abc import Container
from functools import lru_cache
from typing import Any, NamedTuple

from ktp.errors import UsageError
from ktp.model.cluster import is_address
from ktp.model.trace import Flow

_is_address = lru_cache(maxsize=65536)(is_address)  # of a batch, whose flows share their ends
PROTOCOLS = ("tcp", "udp", "sctp")


class FlowQuestion(NamedTuple):
    """One line: its `id`, whatever it is, and the flow."""

    id: Any
    flow: Flow


class FlowLineError(ValueError):
    """A line that holds no flow. `id` is the line's own where it could be read, else None."""

    def __init__(self, message: str, id: Any = None) -> None:  # noqa: A002 - the field's name in the JSON
        super().__init__(message)
        self.id = id


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def parse_flow_line(line: bytes | str, nodes: Container[str]) -> FlowQuestion:
    """One line of JSON → its flow. `nodes` holds the names that exist. Raises FlowLineError."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError:
        raise FlowLineError("the line is not UTF-8 text") from None
    text = text.strip("\ufeff \t\r\n")
    if not text:
        raise FlowLineError("the line is empty")
    try:
        data = _decode(text)
    except json.JSONDecodeError as error:
        raise FlowLineError(f"the line is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise FlowLineError(f"the line is not JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(data, dict):
        raise FlowLineError("the line is not a JSON object")
    return FlowQuestion(data.get("id"), parse_flow(data, nodes))


def parse_flow(data: dict[str, Any], nodes: Container[str]) -> Flow:
    """The flow that one line's object asks for. Raises FlowLineError."""
    try:
        dst = _address(data, "to", required=True)
        port = data.get("port")
        if type(port) is not int or not 0 < port < 65536:  # True is an int too
            if port is None:
                raise ValueError('"port" is missing')
            raise ValueError(f'"port" must be a number from 1 to 65535, not {_shown(port)}')
        protocol = data.get("protocol")
        if protocol not in PROTOCOLS:
            if protocol is None:
                raise ValueError('"protocol" is missing: tcp, udp or sctp')
            if not isinstance(protocol, str) or protocol.lower() not in PROTOCOLS:
                raise ValueError(f'"protocol" must be tcp, udp or sctp, not {_shown(protocol)}')
            protocol = protocol.lower()
        src = _address(data, "from")
        from_node = _node(data, "from_node", nodes)
        via = _node(data, "via", nodes)
        if src is None and from_node is None:
            raise ValueError(
                '"from" is missing: the sender\'s address, or "from_node" for a process of a node'
            )
        if src is not None and dst is not None and (":" in src) != (":" in dst):
            raise ValueError(f'"from" {src} and "to" {dst} are of different address families')
    except ValueError as error:
        raise FlowLineError(str(error), data.get("id")) from None
    return Flow(dst=dst or "", port=port, protocol=protocol, src=src, from_node=from_node, via=via)


def _address(data: dict[str, Any], field: str, *, required: bool = False) -> str | None:
    value = data.get(field)
    if value is None:
        if required:
            raise ValueError(f'"{field}" is missing')
        return None
    if not isinstance(value, str) or not _is_address(value):
        raise ValueError(f'"{field}" must be an IP address, not {_shown(value)}')
    return value


def _node(data: dict[str, Any], field: str, nodes: Container[str]) -> str | None:
    value = data.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or value not in nodes:
        raise ValueError(f'"{field}": there is no node {_shown(value)}')
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_target(text: str) -> tuple[str, int, str]:
    """`HOST:PORT[/PROTOCOL]` of the command line → (host without brackets, port, protocol). Raises UsageError."""
    address, _, protocol = text.partition("/")
    host, colon, port = address.rpartition(":")
    example = "write IP:PORT, [IPV6]:PORT or NODE:PORT, with /udp or /sctp behind it where it is not TCP"
    if not colon or not host:
        raise UsageError(f"{text!r} is not an address and a port", hint=example)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(
            f"{text!r}: an IPv6 address stands in brackets, so that its port can be told", hint=example
        )
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{port!r} is not a port: a number from 1 to 65535", hint=example)
    protocol = protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise UsageError(f"{protocol!r} is not a protocol that Services have: tcp, udp or sctp")
    return host, int(port), protocol


def parse_source(text: str) -> tuple[str | None, str | None]:
    """`IP[@NODE]`, `@NODE` or `NAMESPACE/POD` of the command line → (IP or pod, node). Raises UsageError."""
    who, at, node = text.partition("@")
    if who.startswith("[") and who.endswith("]"):
        who = who[1:-1]
    if at and not node:
        raise UsageError(
            f"{text!r} names no node behind the @", hint="write IP@NODE, or @NODE for a process of it"
        )
    if not who and not node:
        raise UsageError("the sender is empty", hint="write IP, IP@NODE, @NODE or NAMESPACE/POD")
    return who or None, node or None
