"""Output of sysctl(8) → keys and values."""

from __future__ import annotations

from ktp.errors import EvidenceError
from ktp.model.capture import NO_BRIDGE_NETFILTER
from ktp.parse.text import decode_text

_COMPLAINTS = ("sysctl:", "error:", "#", ";")
_SWAP = str.maketrans("./", "/.")


def parse_sysctls(data: bytes | str, *, source: str = "sysctl.txt") -> dict[str, str]:
    """Keys, normalised, and their values from "key = value" or "key=value" lines; tabs inside a value are kept.

    What sysctl complains of (keys that this kernel does not have) is left out, but for those of a bridge's packets,
    whose absence means 0. Raises EvidenceError naming the
    first line that is none of this.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(_COMPLAINTS):
            if absent := NO_BRIDGE_NETFILTER.match(line):
                values.setdefault(f"net.bridge.{absent[1]}", "0")
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key or " " in key:
            raise EvidenceError(
                f"line {number} of {source} is not `key = value`: {line!r:.80}",
                hint="write it again: sysctl KEY… prints such lines",
            )
        values[normalise_key(key)] = value.strip()
    return values


def normalise_key(key: str) -> str:
    """The spelling that sysctl(8) prints: `net.ipv4.conf.eth0/100.rp_filter` for the interface eth0.100.

    As procps, the separator that comes first separates: `net/ipv4/conf/eth0.100/rp_filter` is the same key.
    """
    slash, dot = key.find("/"), key.find(".")
    if slash != -1 and (dot == -1 or slash < dot):
        key = key.removeprefix("/proc/sys/") if key.startswith("/") else key
        return key.translate(_SWAP)
    return key
