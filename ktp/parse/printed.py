"""What commands print for people where a snapshot has their output for programs: ip, sysctl, ss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ktp.parse.ip_text import addresses_of, routes_of, rules_of

_ROUTE = re.compile(rb"(?:[a-z]+ )?(?:default|[0-9a-f.:/]+) +(?:via|dev|proto|table|metric) ")
_IP_TEXT: tuple[tuple[re.Pattern[bytes], str, Callable[[str], list[dict[str, Any]]]], ...] = (
    (re.compile(rb"1: lo: <"), "ip-addr.json", addresses_of),
    (_ROUTE, "ip{0}-route.json", routes_of),
    (re.compile(rb"\d+:\s+(?:not )?from "), "ip{0}-rule.json", rules_of),
)  # fmt: skip
_OF_IPV6 = re.compile(r"ip(?:[ _]-)?6(?!\d)")  # `ip -6 rule`, as collectors name it
_SYSCTL = re.compile(rb"(?:\S+ = .*\n)*?net\.ipv4\.\S+ = ", re.MULTILINE)
_PORT = re.compile(r":\d+$")
_SOCKETS = re.compile(rb"Netid\s+State\s+Recv-Q\s+Send-Q\s+Local Address:Port\s+Peer Address:Port")


def printed_for_people(base: str, content: bytes) -> tuple[str, bytes] | None:
    """Output of ip, sysctl and ss → a snapshot's file and its content; None of what is not understood, or in part.

    `base` is the name of the file without folders: it tells IPv6's routes and rules from IPv4's.
    """
    start = content[:65536].lstrip()
    for head, file, read in _IP_TEXT:
        if head.match(start) is None:
            continue
        try:
            entries = read(content.decode(errors="replace"))
        except (ValueError, StopIteration):
            return None
        # Of `ip route` alone, `ip link`, or one device, what they leave out would be taken for missing.
        if read is routes_of and not any(entry.get("table") == "local" for entry in entries):
            return None
        if read is addresses_of and (len(entries) < 2 or not entries[0]["addr_info"]):
            return None
        return file.format("6" if _OF_IPV6.search(base) else ""), json.dumps(entries).encode()
    if _SYSCTL.match(content):
        lines = [line for line in content.split(b"\n") if line.startswith(b"net.")]
        return "sysctl.txt", b"\n".join(lines) + b"\n"
    if _SOCKETS.match(start):
        rows = [line.split() for line in content.decode(errors="replace").splitlines()]
        listening = [row[:6] for row in rows if row[:2] in (["tcp", "LISTEN"], ["udp", "UNCONN"])]
        # Every node has both; where one is lacking (`ss -tu`, `ss -ltx`), they were not asked for. Nor are names ports.
        if {row[0] for row in listening} != {"tcp", "udp"} or not all(
            _PORT.search(row[4]) for row in listening
        ):
            return None
        return "ss.txt", "".join(" ".join(row) + "\n" for row in listening).encode()
    return None
