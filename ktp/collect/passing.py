"""What of a node is read of what passes there: the asked connections that it tracks, and its counters, twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktp.collect.nft_chains import Reach

COUNTER_FILES = (
    "/proc/uptime",
    "/proc/net/netstat",
    "/proc/net/snmp",
    "/proc/net/stat/nf_conntrack",
    "/proc/net/stat/rt_cache",
)
# Without the module that `conntrack` talks to, asking would load it; a kernel without modules has it built in.
CONNTRACK_MODULE = "/sys/module/nf_conntrack_netlink"
MOST_ENTRIES = 10_000
_MOST_PORTS = 8


def counter_command(seconds: int) -> tuple[str, ...]:
    """The command that prints the counters, and once more after so many seconds."""
    read = f"cat {' '.join(COUNTER_FILES)} 2>/dev/null"
    return "sh", "-c", f"{read}; sleep {seconds}; {read}; true"


def connection_commands(reach: Reach | None) -> Sequence[str]:
    """The commands that print the entries of the asked UDP ports; () where no such port was asked for.

    Of TCP there are none: a client that tries again has another source port, and with it a new entry.
    """
    if reach is None:
        return ()
    asked = [d for d in reach.destinations if d.protocol == "udp" and d.port is not None]
    ports = sorted({d.port for d in asked if d.port is not None})
    if len(ports) > _MOST_PORTS:
        return ()
    families = ["ipv4"]
    if any(":" in address for d in asked for address in d.addresses or ()):
        families.append("ipv6")
    return [
        f"conntrack -L -f {family} -p udp --orig-port-dst {port}" for port in ports for family in families
    ]
