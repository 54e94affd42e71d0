"""`ethtool -k DEVICE`, of one device or several one behind the other → what each leaves to the hardware."""

from __future__ import annotations

import re

from ktp.errors import EvidenceError
from ktp.parse.text import decode_text

# Before ethtool 3.1 "Offload parameters for".
_DEVICE = re.compile(r"(?:Features|Offload parameters) for (\S+):")
# `off [fixed]`, `on [requested off]`, `off [not requested]`.
_FEATURE = re.compile(r"\s*([\w-][\w ()-]*): (on|off)(?: \[[a-z ]+\])?")


def parse_offloads(data: bytes | str, *, source: str = "ethtool.txt") -> dict[str, dict[str, bool]]:
    """Of each device its features by name, and whether they are on. Raises EvidenceError for a line that is none."""
    found: dict[str, dict[str, bool]] = {}
    features: dict[str, bool] | None = None
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        if not line.strip():
            continue
        if device := _DEVICE.fullmatch(line.strip()):
            features = found.setdefault(device[1], {})
        elif features is not None and (feature := _FEATURE.fullmatch(line.rstrip())):
            features[feature[1]] = feature[2] == "on"
        else:
            raise EvidenceError(
                f"{source} line {number} is no feature of a device: {line[:80]!r}",
                hint="keep what `ethtool -k DEVICE` prints",
            )
    return found
