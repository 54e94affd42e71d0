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
# Of one port's TCP connections that are masqueraded: more than an endpoint can have through one address of a node.
MOST_TRANSLATED = 70_000
_MOST_PORTS = 8


def counter_command(seconds: int) -> tuple[str, ...]:
    """The command that prints the counters, and once more after so many seconds."""
    read = f"cat {' '.join(COUNTER_FILES)} 2>/dev/null"
    return "sh", "-c", f"{read}; sleep {seconds}; {read}; true"


def connection_commands(reach: Reach | None, *, counters: bool = False) -> Sequence[tuple[str, ...]]:
    """The commands that print the entries of the asked UDP ports; () where no such port was asked for.

    Of TCP, only with `counters`, those whose source is translated, since these take ports: a client that tries again
    has another source port, and with it a new entry.
    """
    families = ["ipv4"]
    if reach is not None and any(":" in address for d in reach.destinations for address in d.addresses or ()):
        families.append("ipv6")
    wanted: list[tuple[str, ...]] = [
        ("udp", "--orig-port-dst", str(port)) for port in _asked_ports(reach, "udp")
    ]
    if counters:
        wanted += [("tcp", "--src-nat", "--orig-port-dst", str(port)) for port in _asked_ports(reach, "tcp")]
    return [("conntrack", "-L", "-f", family, "-p", *words) for words in wanted for family in families]


def most_entries(command: Sequence[str]) -> int:
    """How many entries one of these commands may print; what prints more is left out."""
    return MOST_TRANSLATED if "--src-nat" in command else MOST_ENTRIES


def connection_file_command(reach: Reach | None) -> tuple[str, ...]:
    """What prints them where the command `conntrack` is not there; () as above. Lines of others may be among them."""
    ports = _asked_ports(reach, "udp")
    if not ports:
        return ()
    return "awk", f'$3 == "udp" && / dport=({"|".join(map(str, ports))}) /', CONNECTION_FILE


def _asked_ports(reach: Reach | None, protocol: str) -> list[int]:
    asked = reach.destinations if reach is not None else ()
    ports = sorted({d.port for d in asked if d.protocol == protocol and d.port is not None})
    return ports if len(ports) <= _MOST_PORTS else []
