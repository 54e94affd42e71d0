"""Recordings of which ktp does not say the truth yet, and why: whoever mends it takes the line away (xfail is strict)."""

from __future__ import annotations

import pytest

SILENT = "IPVS without conntrack, and a process that dials from the virtual server's own address: the handshake alone ends well"

# A part of a recording's name → why. `WALK`: what becomes of packets; `FINDINGS`: what the diagnosis makes of it.
WALK = {"ipvs-1.30-legacy-byhand-fault-vs-conntrack-0": SILENT}
FINDINGS: dict[str, str] = {}


def reason(name: str, known: dict[str, str]) -> str | None:
    """Why the recording `name` is among `known`; None where it is not."""
    return next((why for part, why in known.items() if part in name), None)


def marks(name: str, known: dict[str, str]) -> list[pytest.MarkDecorator]:
    """The marks for a test of the recording `name`."""
    why = reason(name, known)
    return [pytest.mark.xfail(reason=why, strict=True)] if why is not None else []
