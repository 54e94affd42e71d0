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
# Of this network namespace; not every kernel has it (CONFIG_NF_CONNTRACK_PROCFS), and root alone may read it.
CONNECTION_FILE = "/proc/net/nf_conntrack"
MOST_ENTRIES = 10_000
_MOST_PORTS = 8


def counter_command(seconds: int) -> tuple[str, ...]:
    """The command that prints the counters, and once more after so many seconds."""
    read = f"cat {' '.join(COUNTER_FILES)} 2>/dev/null"
    return "sh", "-c", f"{read}; sleep {seconds}; {read}; true"


def connection_commands(reach: Reach | None) -> Sequence[tuple[str, ...]]:
    """The commands that print the entries of the asked UDP ports; () where no such port was asked for.

    Of TCP there are none: a client that tries again has another source port, and with it a new entry.
    """
    ports = _asked_ports(reach)
    families = ["ipv4"]
    if reach is not None and any(":" in address for d in reach.destinations for address in d.addresses or ()):
        families.append("ipv6")
    return [
        ("conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-dst", str(port))
        for port in ports
        for family in families
    ]


def connection_file_command(reach: Reach | None) -> tuple[str, ...]:
    """What prints them where the command `conntrack` is not there; () as above. Lines of others may be among them."""
    ports = _asked_ports(reach)
    if not ports:
        return ()
    return "awk", f'$3 == "udp" && / dport=({"|".join(map(str, ports))}) /', CONNECTION_FILE


def _asked_ports(reach: Reach | None) -> list[int]:
    asked = reach.destinations if reach is not None else ()
    ports = sorted({d.port for d in asked if d.protocol == "udp" and d.port is not None})
    return ports if len(ports) <= _MOST_PORTS else []
