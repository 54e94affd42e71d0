"""The kinds of evidence (design §5)."""

from __future__ import annotations

from enum import Enum


class EvidenceKind(str, Enum):
    """Wire spelling of what may be read, or not."""

    ADDRESSES = "addresses"
    ROUTES = "routes"
    ROUTING_RULES = "rules-of-routing"
    SYSCTLS = "sysctls"
    SOCKETS = "sockets"
