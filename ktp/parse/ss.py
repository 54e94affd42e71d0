"""Output of ss(8), `ss -lntuH` with or without -p, -S and the header → listening sockets."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address, ip_address

from ktp.errors import EvidenceError
from ktp.model.host import IPAddress, ListeningSocket
from ktp.parse.text import decode_text

_PROTOCOLS = frozenset(("tcp", "udp", "sctp"))
# What ss -l shows of a protocol: TCP and SCTP sockets that listen, UDP sockets that are bound and not connected.
_STATES = {"tcp": "LISTEN", "udp": "UNCONN", "sctp": "LISTEN"}
_ALL_STATES = frozenset(
    (
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        "UNCONN",
        "CLOSE-WAIT",
        "LAST-ACK",
    )
) | {"LISTEN", "CLOSING", "NEW-SYN-RECV", "BOUND-INACTIVE", "UNKNOWN"}
# ss prints other socket families where it is asked for more than -t, -u and -S.
_OTHER_FAMILIES = frozenset(
    ("raw", "u_str", "u_dgr", "u_seq", "p_raw", "p_dgr", "nl", "icmp6", "dccp", "mptcp")
) | {*("tipc", "vsock", "v_str", "v_dgr", "xdp", "???")}
_PROCESS = re.compile(r'users:\(\("(.*?)",pid=')
_LOCAL = re.compile(r"(?P<address>\[[^]]*\]|\*|[^\[\]%*]*)(?:%(?P<zone>[^:]+))?:(?P<port>[^:]+)")


def parse_sockets(data: bytes | str, *, source: str = "ss.txt") -> tuple[ListeningSocket, ...]:
    """The listening TCP and SCTP and the unconnected UDP sockets, in the order printed; others are left out.

    `ss` leaves the protocol out where it is asked for one only. Such lines are SCTP's (`ss -lnSH` appended to the
    rest) where other lines name theirs; alone they are TCP's (LISTEN) or UDP's (UNCONN). `*` is a wildcard socket
    of both families; only ss before iproute2 4.11 means IPv4 by it, and is told by a `*` peer of an IPv4 socket or
    by `:::port`.

    Raises EvidenceError naming the first line that is no socket, such as one with a port by name (ss without -n).
    """
    rows: list[tuple[int, str | None, str, list[str], list[str], str]] = []
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        words = line.split()
        if not words or words[0] in ("Netid", "State") or words[0] in _OTHER_FAMILIES:
            continue
        protocol = words.pop(0) if words[0] in _PROTOCOLS else None
        if len(words) < 5 or words[0] not in _ALL_STATES:
            raise _not_a_socket(line, number, source)
        rows.append((number, protocol, words[0], words[1:3], words[3:5], line))
    named = any(protocol for _, protocol, *_ in rows)
    old = any(
        local.startswith(":::") or (_is_dotted(local) and peer == "*:*") for *_, (local, peer), _line in rows
    )
    sockets = []
    for number, protocol, state, counts, (local, _peer), line in rows:
        proto = protocol or ("sctp" if named else "udp" if state == "UNCONN" else "tcp")
        if state != _STATES[proto]:
            continue
        socket = _socket(proto, local, old, line)
        if socket is None:
            raise _not_a_socket(line, number, source)
        if proto == "tcp" and counts[0].isdecimal() and counts[1].isdecimal():
            waiting, backlog = int(counts[0]), int(counts[1])
            socket = replace(socket, waiting=waiting, backlog=backlog, is_full=waiting > backlog)
        sockets.append(socket)
    return tuple(sockets)


def _socket(protocol: str, local: str, old: bool, line: str) -> ListeningSocket | None:
    found = _LOCAL.fullmatch(local)
    if found is None or not found["port"].isdecimal():
        return None
    ip: IPAddress | None
    text = found["address"]
    if text == "*":
        ip, family = None, 4 if old else 0
    else:
        try:
            ip = ip_address(text.strip("[]"))
        except ValueError:
            return None
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        family = ip.version
        if ip.is_unspecified:
            # Before 4.11 "[::]" did not tell whether the socket is IPv6's only; by default it is not.
            ip, family = None, 0 if old and family == 6 else family
    process = _PROCESS.search(line)
    return ListeningSocket(
        protocol=protocol,
        ip=ip,
        port=int(found["port"]),
        family=family,
        interface=found["zone"],
        process=process[1] if process else None,
    )


def _is_dotted(local: str) -> bool:
    return local[:1].isdigit() and local.count(".") == 3


def _not_a_socket(line: str, number: int, source: str) -> EvidenceError:
    return EvidenceError(
        f"line {number} of {source} is not a socket as `ss -lntuH` prints it: {line.strip()!r:.100}",
        hint="write it again: ss -lntuH",
    )
